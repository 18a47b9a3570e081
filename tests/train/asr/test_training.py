"""The recogniser: trained from nothing until it can tell four sentences apart, resumed bit for bit, read by
faster-whisper, in one piece or as speech arrives."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from slm.errors import TresseError
from slm.transcribe import RATE, Segment, Transcriber, Transcript
from slm.voice_activity import speech_pieces
from train.asr.clips import Clips, ClipSettings, augment
from train.asr.features import MelFeatures
from train.asr.model import SPECIAL, ASRModel, train_tokenizer
from train.asr.plan import PoolSettings, Utterance, plan_pool, scramble, written
from train.asr.pool import UNKNOWN, Renderer, frame_phones, make_pool
from train.asr.training import ASRTraining, spoken_words, train_asr
from train.evaluate.recogniser import evaluate_recogniser
from train.speech.augmentation import Augmentation
from train.speech.phones import SILENCE
from train.speech.voices import SAMPLE_RATE, Voices, speak
from train.tools.checkpoints import load_checkpoint

SENTENCES = [
    ("en", "Anna found a red ball."),
    ("fr", "Le chat dort sous la table."),
    ("en", "The dog was very hungry."),
    ("fr", "Il pleut sur la grande maison."),
]
PLAIN = ClipSettings(
    batch=4, block=4, together=0.1, whole=0.2, tempo=(1.0, 1.0), warp=0.0, noise=0.2, masks=0, equaliser=0.1
)
TRAINING = ASRTraining(
    steps=120,
    model=ASRModel(width=64, heads=2, encoder_layers=2, decoder_layers=1, vocabulary=320),
    pool=PoolSettings(utterances=8, scrambled=0.0, recorded=0.0),
    clips=PLAIN,
    learning_rate=3e-3,
    warmup=20,
    smoothing=0.0,
    log_every=20,
    checkpoint_every=40,
    precision="no",
    device="cpu",
)


@pytest.fixture(scope="module")
def one_voice(voices: Voices) -> Voices:
    """The reference voice for training, one other held out."""
    return replace(voices, training={voices.reference: voices.training[voices.reference]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, one_voice: Voices) -> Path:
    """A recogniser that knows four sentences."""
    return train_asr(TRAINING, SENTENCES, one_voice, tmp_path_factory.mktemp("asr"), workers=1)


def spoken(voices: Voices, *numbers: int, pause: float = 0.6) -> np.ndarray:
    """Some of the sentences, in the reference voice, with pauses between them."""
    silence = np.zeros(int(pause * SAMPLE_RATE), np.float32)
    speaker = voices.speaker(voices.reference)
    parts = [part for n in numbers for part in (speak(SENTENCES[n][1], SENTENCES[n][0], speaker, voices), silence)]
    return np.concatenate(parts[:-1])


@pytest.mark.parametrize("number", range(len(SENTENCES)))
def test_it_writes_down_what_it_learned(folder: Path, voices: Voices, number: int) -> None:
    """The whole chain: features, network, conversion and decoding agree, or nothing sensible would come out."""
    transcript = Transcriber(folder, threads=1).transcribe(spoken(voices, number), SAMPLE_RATE)
    language, text = SENTENCES[number]
    assert (transcript.text, transcript.language) == (text, language)
    assert transcript.confidence > 0.5
    [segment] = transcript.segments
    assert 0 <= segment.start < segment.end <= len(spoken(voices, number)) / SAMPLE_RATE


def test_a_language_can_be_asked_for(folder: Path, voices: Voices) -> None:
    transcriber = Transcriber(folder, threads=1)
    assert set(transcriber.languages) == {"en", "fr"}
    assert {one.language for one in transcriber.segments(spoken(voices, 0), SAMPLE_RATE, "fr")} == {"fr"}
    only = Transcriber(folder, ["fr", "xx"], threads=1)
    assert only.transcribe(spoken(voices, 0), SAMPLE_RATE).language == "fr"
    with pytest.raises(TresseError, match="en, fr"):
        transcriber.transcribe(spoken(voices, 0), SAMPLE_RATE, "de")
    with pytest.raises(TresseError, match="none of de"):
        Transcriber(folder, ["de"])


@pytest.mark.parametrize("chunk", [1600, 7001])
def test_a_stream_hears_what_the_whole_hears(folder: Path, voices: Voices, chunk: int) -> None:
    """Pieces come before the end, in order, in both languages, and with their true times."""
    transcriber = Transcriber(folder, threads=1)
    waveform = spoken(voices, 0, 3, 2, pause=0.9)
    whole = transcriber.transcribe(waveform, SAMPLE_RATE)
    assert [one.text for one in whole.segments] == [SENTENCES[n][1] for n in (0, 3, 2)]
    stream = transcriber.stream(SAMPLE_RATE)
    early = [one for first in range(0, len(waveform), chunk) for one in stream.push(waveform[first : first + chunk])]
    late = stream.finish()
    assert len(early) >= 2
    for one, two in zip(whole.segments, early + late, strict=True):
        assert (one.text, one.language) == (two.text, two.language)
        assert abs(one.start - two.start) < 0.25
        assert abs(one.end - two.end) < 0.25
    assert stream.finish() == []


def test_silence_says_nothing(folder: Path) -> None:
    transcriber = Transcriber(folder, threads=1)
    transcript = transcriber.transcribe(np.zeros(RATE, np.float32), RATE)
    assert (transcript.text, transcript.language, transcript.confidence) == ("", None, 0.0)
    stream = transcriber.stream(RATE)
    for _ in range(4):
        assert stream.push(np.zeros(RATE, np.float32)) == []
    assert stream.finish() == []


def test_a_stream_knows_the_time_after_silence(folder: Path, voices: Voices) -> None:
    stream = Transcriber(folder, threads=1).stream(SAMPLE_RATE)
    for _ in range(5):
        stream.push(np.zeros(SAMPLE_RATE, np.float32))
    waveform = spoken(voices, 0)
    [segment] = [*stream.push(waveform), *stream.finish()]
    assert segment.text == SENTENCES[0][1]
    assert segment.start == pytest.approx(5.0, abs=0.2)
    assert segment.end == pytest.approx(5.0 + len(waveform) / SAMPLE_RATE, abs=0.2)


def test_speech_is_cut_into_what_the_model_takes(voices: Voices) -> None:
    """However long the speech without a pause: no piece is longer than asked for, none overlap, little is lost."""
    waveform = spoken(voices, 0, 1, 2, 3, 0, 1, 2, 3, pause=0.0)
    pieces = speech_pieces(waveform, 3.0)
    assert all(0 < end - start <= 3.0 * RATE for start, end in pieces)
    assert all(one[1] <= two[0] for one, two in pairwise(pieces))
    assert sum(end - start for start, end in pieces) > 0.85 * len(waveform)


def test_other_rates_and_speech_languages(folder: Path, voices: Voices) -> None:
    waveform = spoken(voices, 1)
    doubled = np.repeat(waveform, 2)
    assert Transcriber(folder).transcribe(doubled, 2 * SAMPLE_RATE).text == SENTENCES[1][1]


def test_the_language_is_that_of_most_of_the_speech() -> None:
    parts = (Segment(0, 1, "a", "en", 1.0, 0.5), Segment(1, 4, "b", "fr", 0.9, 0.9), Segment(4, 5, "", "en", 1.0, 0.5))
    transcript = Transcript(parts)
    assert (transcript.language, transcript.text) == ("fr", "a b")
    assert transcript.confidence == pytest.approx((0.5 + 2.7 + 0.5) / 5)


def test_no_such_recogniser(tmp_path: Path) -> None:
    for name in (tmp_path, tmp_path / "nowhere", "no-such-model"):
        with pytest.raises(TresseError, match="faster-whisper") as caught:
            Transcriber(name)
        assert "\n" not in str(caught.value)


def test_the_bundles_recogniser_or_another(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TresseError, match="--asr"):
        Transcriber.of_bundle(tmp_path, ["en", "fr"])
    for bundle, asr in ((folder.parent, None), (tmp_path, folder)):
        transcriber = Transcriber.of_bundle(bundle, ["fr"], asr, threads=1)
        assert list(transcriber.languages) == ["fr"]
        assert transcriber.longest == 8.0


def test_reading_needs_no_torch() -> None:
    code = "import sys, slm.transcribe; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_interrupted_training_ends_with_the_same_weights(tmp_path: Path, one_voice: Voices) -> None:
    """Killed between two checkpoints, with dropout and augmentation: bit-identical, and one log."""
    model = replace(TRAINING.model, width=32, encoder_layers=1, dropout=0.1)
    training = replace(
        TRAINING, model=model, steps=10, log_every=1, checkpoint_every=4, ctc=0.5, clips=ClipSettings(batch=3, block=2)
    )

    class Interrupted(Exception):
        pass

    def kill(record: dict) -> None:
        if record["step"] == 7:
            raise Interrupted

    train_asr(training, SENTENCES, one_voice, tmp_path / "straight", workers=1)
    with pytest.raises(Interrupted):
        train_asr(training, SENTENCES, one_voice, tmp_path / "resumed", workers=1, progress=kill)
    assert not (tmp_path / "resumed" / "asr").exists()
    train_asr(training, SENTENCES, one_voice, tmp_path / "resumed", workers=1)
    states = [load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("straight", "resumed")]
    for name, value in states[0]["learner"].items():
        assert torch.equal(value, states[1]["learner"][name]), name
    logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").open()] for name in ("straight", "resumed")]
    straight, resumed = ([(record["step"], record["loss"]) for record in log] for log in logs)
    assert straight == resumed
    train_asr(
        training, SENTENCES, one_voice, tmp_path / "resumed", workers=1, progress=lambda _: pytest.fail("trained again")
    )
    with pytest.raises(TresseError, match="another folder"):
        train_asr(replace(training, learning_rate=1e-4), SENTENCES, one_voice, tmp_path / "resumed", workers=1)


def test_the_auxiliary_losses_are_learned(folder: Path) -> None:
    """Phones are told from what is heard, and tokens looked for where they are heard."""
    log = [json.loads(line) for line in (folder.parent / "log.jsonl").open()]
    assert log[-1]["phones"] < 0.3 * log[0]["phones"]
    assert log[-1]["focus"] < 0.5 * log[0]["focus"]


def test_evaluation_counts_words_and_languages(folder: Path, one_voice: Voices) -> None:
    results = evaluate_recogniser(Transcriber(folder, ["en", "fr"], threads=1), SENTENCES, one_voice)
    assert results["word_error"]["training"] == {"en": 0.0, "fr": 0.0}
    assert results["language"]["training"] == 1.0
    assert results["utterances"] == 8
    assert 0 < results["real_time_factor"] < 1
    assert set(results["word_error"]["held_out"]) == {"en", "fr"}


def test_the_ids_are_in_the_order_that_ctranslate2_wants() -> None:
    tokenizer = train_tokenizer(SENTENCES, 300)
    ids = [tokenizer.token_to_id(token) for token in (*SPECIAL, "<|en|>", "<|fr|>", "<|transcribe|>")]
    assert ids == sorted(ids)
    assert tokenizer.token_to_id("<|notimestamps|>") == tokenizer.get_vocab_size() - 1
    assert tokenizer.token_to_id("") is not None
    assert tokenizer.token_to_id("") < ids[0]


@cache
def _tokenizer() -> Tokenizer:
    return train_tokenizer(SENTENCES, 300)


@given(st.text(max_size=40))
@settings(deadline=None)
def test_any_text_can_be_written(text: str) -> None:
    tokenizer = _tokenizer()
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


@given(st.lists(st.sampled_from(["« Où es-tu ? »", "l’arbre", "“Look,” she said.", "Oui !", "dit-elle", "-", "– et"])))
def test_what_nobody_hears_is_not_written(parts: list[str]) -> None:
    text = " ".join(parts)
    assert spoken_words(written(text)) == spoken_words(text)
    assert not set(written(text)) & set('«»“”’"\N{NO-BREAK SPACE}')
    assert written(written(text)) == written(text)


def test_features_are_faster_whispers(tmp_path: Path, one_voice: Voices) -> None:
    """A clip without augmentation is what the recogniser will be given for that waveform, zero behind its end."""
    features = MelFeatures()
    plan = plan_pool(replace(TRAINING.pool, utterances=4), SENTENCES, list(one_voice.training))
    pool = make_pool(plan, Renderer(features, one_voice, Augmentation()), tmp_path, 1)
    settings = replace(
        PLAIN, batch=1, together=0.0, whole=1.0, noise=0.0, equaliser=0.0, silence=(0.0, 0.0), gain=(0.0, 0.0)
    )
    batch = Clips(pool, features, settings, 0).batch(0)
    [number] = [index for index, one in enumerate(pool.utterances) if one.text == batch.texts[0]]
    waveform = spoken(one_voice, [text for _, text in SENTENCES].index(pool.utterances[number].text))
    from faster_whisper.feature_extractor import FeatureExtractor

    extractor = FeatureExtractor(feature_size=64, hop_length=320, n_fft=512, chunk_length=8)
    wanted = extractor(waveform, padding=0)
    frames = int(batch.frames_B[0])
    assert batch.mels_BMT.shape == (1, 64, extractor.nb_max_frames)
    assert frames == wanted.shape[1]
    np.testing.assert_allclose(batch.mels_BMT[0, :, :frames].numpy(), wanted, atol=2e-3)
    assert not batch.mels_BMT[0, :, frames:].any()


def test_batches_are_a_function_of_seed_and_step(tmp_path: Path, one_voice: Voices) -> None:
    features = MelFeatures()
    plan = plan_pool(replace(TRAINING.pool, utterances=6), SENTENCES, list(one_voice.training))
    pool = make_pool(plan, Renderer(features, one_voice, Augmentation()), tmp_path, 1)
    clips = Clips(pool, features, ClipSettings(batch=4, block=3, together=0.5), 0)
    batches = [clips.batch(step) for step in range(6)]
    again = [Clips(pool, features, clips.settings, 0).batch(step) for step in (5, 2)]
    assert torch.equal(batches[5].mels_BMT, again[0].mels_BMT)
    assert torch.equal(batches[2].mels_BMT, again[1].mels_BMT)
    other = Clips(pool, features, clips.settings, 1).batch(2)
    assert other.mels_BMT.shape != batches[2].mels_BMT.shape or not torch.equal(other.mels_BMT, batches[2].mels_BMT)
    texts = {written(text) for _, text in SENTENCES}
    for batch in batches:
        assert batch.mels_BMT.shape[2] <= features.frames
        assert torch.isfinite(batch.mels_BMT).all()
        assert (batch.frames_B <= batch.mels_BMT.shape[2]).all()
        inside = torch.arange(batch.mels_BMT.shape[2]) < batch.frames_B[:, None]
        assert torch.equal(batch.labels_BT != UNKNOWN, inside)
        for text, frames, (letters, places) in zip(batch.texts, batch.frames_B, batch.knots, strict=True):
            assert (letters[0], letters[-1]) == (1, len(text) + 1)
            assert (np.diff(letters) > 0).all()
            assert (np.diff(places) >= 0).all()
            assert 0 <= places[0] < places[-1] <= frames
    assert any(text not in texts for batch in batches for text in batch.texts), "several sentences in a clip"


def test_the_pool_goes_on_and_refuses_others(tmp_path: Path, voices: Voices, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.asr.pool.SHARD", 3)
    renderer = Renderer(MelFeatures(), voices, Augmentation())
    plan = plan_pool(PoolSettings(utterances=8), SENTENCES, list(voices.training))
    assert [one.language for one in plan] == ["en", "fr"] * 4
    assert {one.speaker for one in plan} <= set(voices.training)
    again = plan_pool(
        PoolSettings(utterances=400, resynthesised=0.5, retimed=0.0), SENTENCES, list(voices.training), bundle=True
    )
    other = plan_pool(
        PoolSettings(utterances=400, resynthesised=0.5, retimed=0.5), SENTENCES, list(voices.training), bundle=True
    )
    assert [replace(one, retimed=False) for one in other] == again
    retimed = [one.through for one in other if one.retimed]
    assert all(retimed)
    assert 60 < len(retimed) < 140
    first = make_pool(plan, renderer, tmp_path, 1)
    (tmp_path / "shard-0001.npz").unlink()
    second = make_pool(plan, renderer, tmp_path, 1)
    assert np.array_equal(first.mels_FM, second.mels_FM)
    assert [len(first.mel(index)) for index in range(8)] == first.lengths.tolist()
    with pytest.raises(TresseError, match="other sentences"):
        make_pool(plan[:-1], renderer, tmp_path, 1)


def test_the_pool_knows_the_phones(tmp_path: Path, one_voice: Voices, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is spoken, and of what is spoken again in a time that is known; not where the sound lasts another time."""
    rests = iter([1.0, 1.0, 0.5, 0.5])

    def shortened(waveform: np.ndarray, *_: object) -> tuple[np.ndarray, np.ndarray]:
        return waveform[: int(next(rests) * len(waveform))], np.full((2, 1), len(waveform) / 16000)

    monkeypatch.setattr("train.asr.pool.resynthesise", shortened)
    monkeypatch.setattr(Renderer, "fingerprint", lambda *_: "")
    plan = plan_pool(PoolSettings(utterances=6, recorded=0.5), SENTENCES, list(one_voice.training))
    plan = [replace(one, through=number >= 2) for number, one in enumerate(plan)]
    pool = make_pool(plan, Renderer(MelFeatures(), one_voice, Augmentation(), tmp_path), tmp_path, 1)
    for number in range(4):
        labels = pool.labels(number)
        assert len(labels) == len(pool.mel(number))
        assert labels[0] == labels[-1] == pool.silence
        assert len(set(labels.tolist())) > 6
        assert UNKNOWN not in labels
        loud = pool.mel(number).astype(np.float32).max(1)
        assert loud[labels == pool.silence].mean() < loud[labels != pool.silence].mean() - 1
    for number in (4, 5):
        assert set(pool.labels(number).tolist()) == {UNKNOWN}
    assert {"S", "b"} <= set(pool.phones)


def test_phones_move_with_the_vocoders_own_timing(one_voice: Voices) -> None:
    """Spoken by the shipped vocoder with the run lengths that it predicts, a phone is where it sounds: what is labelled
    silence is silent, as it is with the run lengths that were heard."""
    from slm.bundle import SHIPPED

    renderer = Renderer(MelFeatures(), one_voice, Augmentation(), SHIPPED)
    speaker, gaps, spans = next(iter(one_voice.training)), [], []
    for retimed in (False, True):
        for language, text in SENTENCES:
            waveform, heard = renderer.record(Utterance(language, text, speaker, through=True, retimed=retimed))
            mel = renderer.features(waveform).max(1)
            labels = frame_phones(heard, len(mel), renderer.features)
            gaps.append(mel[labels != SILENCE].mean() - mel[labels == SILENCE].mean())
            spans.append(heard[-1].end)
            assert abs(heard[-1].end - len(waveform) / 16000) < 0.1
    assert min(gaps) > 1.5, "log10 of power"
    assert spans[: len(SENTENCES)] != spans[len(SENTENCES) :]


@given(st.lists(st.integers(20, 60), min_size=1, max_size=4), st.floats(0.5, 0.99), st.integers(0, 999))
@settings(deadline=None, max_examples=40)
def test_labels_go_with_the_frames(lengths: list[int], slowest: float, seed: int) -> None:
    """Frames that say their own label, as mels, still do when their tempo has changed."""
    label = torch.arange(max(lengths)).expand(len(lengths), -1)
    log = (label / 10.0)[:, :, None].expand(-1, -1, 8).contiguous()
    plain = replace(ClipSettings().weakened(0), tempo=(slowest, 1 / slowest), gain=(0.0, 0.0))
    generator = torch.Generator().manual_seed(seed)
    mels, labels, frames, tempo = augment(log, label, torch.tensor(lengths), 50, plain, generator)
    assert (frames <= 50).all()
    for mel, heard, count, length, factor in zip(mels, labels, frames, lengths, tempo, strict=True):
        assert count == min(50, int(length / factor))
        assert (heard[count:] == UNKNOWN).all()
        said = 10 * (4 * mel[:count].mean(1) - 4)
        assert ((said - heard[:count]).abs() <= 0.51).all()


@given(st.integers(0, 2**32))
def test_scrambled_words_are_the_sentences_words(seed: int) -> None:
    texts = [text for _, text in SENTENCES]
    known = {word for text in texts for word in spoken_words(text)}
    words = spoken_words(scramble(texts, np.random.default_rng(seed)))
    assert len(words) >= 2
    assert set(words) <= known
