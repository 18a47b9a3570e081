"""What the recogniser is trained on: letters, features, the pool and its clips."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from slm.errors import TresseError
from tests.train.asr.tiny import (
    PLAIN,
    SENTENCES,
    TRAINING,
    spoken,
)
from train.asr.clips import Clips, ClipSettings, augment
from train.asr.features import MelFeatures
from train.asr.model import train_tokenizer
from train.asr.plan import PoolSettings, Utterance, plan_pool, scramble, written
from train.asr.pool import UNKNOWN, Renderer, frame_phones, make_pool
from train.asr.training import spoken_words
from train.speech.augmentation import Augmentation
from train.speech.phones import SILENCE
from train.speech.voices import Voices


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
    from tests.bundles import BRAID

    renderer = Renderer(MelFeatures(), one_voice, Augmentation(), BRAID)
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
