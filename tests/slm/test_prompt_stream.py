"""Prompts that are still being spoken, stories of several turns, replies in several languages."""

from __future__ import annotations

import functools
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.audio import ResampleStream, resample
from slm.bundle import Bundle
from slm.continuation import Prompt, Sentence, prompt_tokens
from slm.errors import TresseError
from slm.settings import ReplySettings
from slm.speaking import sentences_of
from slm.units import Units
from slm.voice_activity import (
    PROMPT_PAUSES,
    RATE,
    TRANSCRIPT_PAUSES,
    WINDOW,
    PauseSettings,
    SpeechStream,
    segment,
    speech_segments,
)
from tests.conftest import spoken_beginning


def pieces(waveform: np.ndarray, cuts: list[int]) -> list[np.ndarray]:
    return np.split(waveform, np.cumsum(cuts)[: np.searchsorted(np.cumsum(cuts), len(waveform))])


@settings(deadline=None, max_examples=30)
@given(
    rate=st.sampled_from([16000, 22050, 24000, 44100, 48000, 8000]),
    cuts=st.lists(st.integers(0, 6000), max_size=12),
    length=st.integers(1, 20000),
)
def test_resampled_chunks_are_the_resampled_whole(rate: int, cuts: list[int], length: int) -> None:
    waveform = np.random.default_rng(length).uniform(-1, 1, length).astype(np.float32)
    stream = ResampleStream(rate, 16000)
    got = np.concatenate([*(stream.push(part) for part in pieces(waveform, cuts)), stream.flush()])
    whole = resample(waveform, rate, 16000)
    assert got.shape == whole.shape
    assert np.abs(got - whole).max() < 1e-5


@settings(deadline=None, max_examples=20)
@given(
    rate=st.sampled_from([16000, 48000, 22050]),
    cuts=st.lists(st.integers(1, 9000), max_size=30),
    start=st.integers(0, 20000),
    length=st.integers(1, 60000),
)
def test_speech_is_found_alike_in_chunks_of_any_size(rate: int, cuts: list[int], start: int, length: int) -> None:
    waveform = resample(np.tile(story_beginning(), 2)[start : start + length], 16000, rate)
    stream = SpeechStream(rate)
    for part in pieces(waveform, cuts):
        stream.push(part)
    assert stream.finish() == speech_segments(waveform, rate)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), pauses=st.lists(st.integers(0, 16000), max_size=6))
def test_stretches_of_speech_are_those_of_faster_whisper(seed: int, pauses: list[int]) -> None:
    from faster_whisper.vad import VadOptions, get_speech_timestamps

    parts = np.array_split(story_beginning(), len(pauses) + 1)
    noise = np.random.default_rng(seed).normal(0, 0.001, 16000).astype(np.float32)
    waveform = np.concatenate(
        [*(sound for n, part in zip(pauses, parts, strict=False) for sound in (part, noise[:n])), parts[-1]]
    )
    timestamps = get_speech_timestamps(waveform.copy(), VadOptions(**silero_options(PROMPT_PAUSES)))
    expected = [(part["start"] / RATE, part["end"] / RATE) for part in timestamps]
    assert speech_segments(waveform, RATE) == expected


@settings(deadline=None, max_examples=200)
@given(
    runs=st.lists(st.tuples(st.sampled_from([0.1, 0.3, 0.9]), st.integers(1, 40)), max_size=20),
    rest=st.integers(0, WINDOW - 1),
    longest=st.sampled_from([1.0, 2.5, 8.0, float("inf")]),
)
def test_long_stretches_are_cut_as_by_faster_whisper(runs: list[tuple[float, int]], rest: int, longest: float) -> None:
    """Probabilities made up, in runs of windows; pieces for a recogniser that takes so many s."""
    from faster_whisper import vad

    probabilities = [probability for probability, count in runs for _ in range(count)] + [0.1]
    samples = (len(probabilities) - 1) * WINDOW + rest
    asked = replace(TRANSCRIPT_PAUSES, longest=longest)
    options = vad.VadOptions(**silero_options(asked), max_speech_duration_s=longest)
    with mock.patch.object(vad, "get_vad_model", return_value=lambda audio: np.array(probabilities)):
        timestamps = vad.get_speech_timestamps(np.zeros(samples, np.float32), options)
    assert segment(probabilities, samples, asked) == [(part["start"], part["end"]) for part in timestamps]


def silero_options(asked: PauseSettings) -> dict[str, float]:
    return {
        "threshold": asked.speech,
        "neg_threshold": asked.silence,
        "min_speech_duration_ms": round(1000 * asked.shortest),
        "min_silence_duration_ms": round(1000 * asked.pause),
        "speech_pad_ms": round(1000 * asked.pad),
    }


@functools.cache
def story_beginning() -> np.ndarray:
    return spoken_beginning("en")


@pytest.mark.parametrize("rate", [16000, 48000])
def test_a_streamed_prompt_is_the_whole_prompt(bundle: Bundle, rate: int) -> None:
    waveform = resample(spoken_beginning("en"), 16000, rate)
    whole = bundle.prompt(waveform, rate)
    stream = bundle.prompt_stream(rate)
    early = sum(len(stream.push(part)) for part in pieces(waveform, [rate // 10] * 200))
    prompt = stream.finish()
    assert early > 0.9 * prompt.seconds * bundle.units.frame_rate  # nearly everything was done before the end
    assert prompt.seconds == pytest.approx(whole.seconds)
    assert [list(s.frames()) for s in prompt.sentences] == [list(s.frames()) for s in whole.sentences]
    assert prompt.language == whole.language == "en"
    assert prompt.in_domain == whole.in_domain
    assert prompt.before == ()


def test_a_streamed_prompt_that_cannot_be_used_says_so(bundle: Bundle) -> None:
    stream = bundle.prompt_stream(16000)
    stream.push(np.zeros(16000 * 59, np.float32))
    with pytest.raises(TresseError, match="longer than 60 s"):
        stream.push(np.zeros(16000 * 2, np.float32))
    noise = bundle.prompt_stream(16000)
    noise.push(np.random.default_rng(0).normal(0, 0.05, 32000).astype(np.float32))
    with pytest.raises(TresseError, match="no speech found"):
        noise.finish()


def test_braided_replies_take_turns_sentence_by_sentence(bundle: Bundle) -> None:
    prompt = bundle.prompt(spoken_beginning("en"), 16000)
    for seed in range(3):
        chunks = list(bundle.reply(prompt, ReplySettings(("fr", "en"), seed, max_seconds=20.0)))
        languages = chunks[-1].languages
        assert list(languages) == ["fr", "en"] * (len(languages) // 2) + ["fr"] * (len(languages) % 2)
        again = list(bundle.reply(prompt, ReplySettings(("fr", "en"), seed, max_seconds=20.0)))
        assert np.array_equal(np.concatenate([c.audio for c in chunks]), np.concatenate([c.audio for c in again]))
        sentences = sentences_of(chunks)
        assert [sentence.language for sentence in sentences] == list(languages)[: len(sentences)]
        units = sum(len(chunk.units) for chunk in chunks)
        assert sum(len(sentence.units) for sentence in sentences) == units - max(0, len(languages) - 1)
    assert len(languages) > 1


def test_the_model_gets_the_story_so_far_in_its_languages(bundle: Bundle) -> None:
    first = bundle.prompt(spoken_beginning("en"), 16000)
    reply = sentences_of(bundle.reply(first, ReplySettings(("fr",), 1, max_seconds=4.0)))
    second = bundle.prompt(spoken_beginning("fr"), 16000, before=(*first.story, *reply))
    tokens = prompt_tokens(second, "en", bundle.vocabulary, 10_000)
    tags = [bundle.vocabulary.language_of_tag[t] for t in tokens if t in bundle.vocabulary.language_of_tag]
    assert tags == ["en", "en", *["fr"] * len(reply), "fr", "fr", "en"]
    heard = np.concatenate([sentence.units.ids for sentence in second.story])
    assert np.array_equal(bundle.vocabulary.decode(tokens), heard)
    used, limit, forgotten = bundle.context_use(second.story, 12.0)
    assert (used, forgotten) == (len(tokens) - 2, 0)
    assert limit > 0.8 * bundle.context
    used, limit, forgotten = bundle.context_use(second.story * 20, 12.0)
    assert 0 < used <= limit
    assert forgotten > 0


@settings(deadline=None, max_examples=30)
@given(languages=st.lists(st.sampled_from(["en", "fr"]), min_size=1, max_size=8), limit=st.integers(8, 120))
def test_old_sentences_give_way_whole(bundle: Bundle, languages: list[str], limit: int) -> None:
    rng = np.random.default_rng(limit)
    story = [Sentence(Units.from_frames(rng.integers(0, 100, rng.integers(1, 50)), 50.0), name) for name in languages]
    last = story[-1]
    prompt = Prompt([last.units], last.language, 1.0, tuple(story[:-1]))
    tokens = prompt_tokens(prompt, "fr", bundle.vocabulary, limit)
    assert len(tokens) <= limit
    kept = [t for t in tokens[:-1] if t in bundle.vocabulary.language_of_tag]
    assert [bundle.vocabulary.language_of_tag[t] for t in kept] == languages[len(languages) - len(kept) :]
    ends = np.concatenate([sentence.units.ids for sentence in story[len(story) - len(kept) :]])
    decoded = bundle.vocabulary.decode(tokens)
    assert np.array_equal(decoded, ends[len(ends) - len(decoded) :])
    assert len(kept) == 1 or len(decoded) == len(ends)
