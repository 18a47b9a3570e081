"""The recogniser: trained from nothing until it can tell four sentences apart, resumed bit for bit, read by
faster-whisper, in one piece or as speech arrives."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slm.errors import TresseError
from slm.recognisers import open_recogniser
from slm.transcribe import RATE, Segment, Transcriber, Transcript
from slm.voice_activity import speech_pieces
from tests.train.asr.tiny import (
    SENTENCES,
    TRAINING,
    spoken,
)
from train.asr.clips import ClipSettings
from train.asr.model import SPECIAL, train_tokenizer
from train.asr.training import LETTERS, letters_of, train_asr
from train.evaluate.recogniser import evaluate_recogniser
from train.speech.voices import SAMPLE_RATE, Voices
from train.stories.written import written_stories
from train.tools.checkpoints import load_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, one_voice: Voices) -> Path:
    """A recogniser that knows four sentences."""
    return train_asr(TRAINING, SENTENCES, one_voice, tmp_path_factory.mktemp("asr"), workers=1)


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
        open_recogniser(tmp_path, ["en", "fr"])
    for bundle, asr in ((folder.parent, None), (tmp_path, folder)):
        transcriber = open_recogniser(bundle, ["fr"], asr, threads=1)
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


@given(st.lists(st.text(max_size=30), max_size=5))
def test_every_letter_of_the_texts_can_be_spelt(texts: list[str]) -> None:
    letters = letters_of(texts)
    assert letters.startswith(LETTERS)
    assert len(set(letters)) == len(letters)
    assert {letter for text in texts for letter in text.lower() if letter.isalpha()} <= set(letters)


def test_letters_of_a_language_are_those_of_its_stories() -> None:
    told = [text for story in written_stories() for text in story.sentences.get("es", ())]
    assert set(letters_of(told)) - set(LETTERS) == set("áíóúñ")
