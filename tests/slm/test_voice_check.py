"""What is said of a voice: its level, noise and clipping, alike in pieces of any size, and what would help."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.audio import resample
from slm.bundle import Bundle
from slm.voice_activity import RATE, speech_segments
from slm.voice_check import ADVICE, CLIPPED, FULL, MOST_SNR, NOISY, QUIET, Voice, VoiceMeter
from tests.conftest import spoken_beginning

SILENCE = np.zeros(RATE, np.float32)


def check(waveform: np.ndarray) -> Voice | None:
    """float32 [samples] at 16 kHz."""
    meter = VoiceMeter()
    meter.push(waveform)
    speech_segments(waveform, RATE, meter)
    return meter.finish()


def at_level(level: float) -> np.ndarray:
    """A second of silence, a story's beginning whose speech has this level in dB, a second of silence."""
    told = np.concatenate([SILENCE, spoken_beginning("en"), SILENCE])
    voice = check(told)
    assert voice is not None
    return told * 10 ** ((level - voice.level) / 20)


@settings(deadline=None, max_examples=12)
@given(
    rate=st.sampled_from([16000, 48000, 22050]),
    cuts=st.lists(st.integers(1, 30000), max_size=20),
    gain=st.floats(0.05, 4.0),
    seed=st.integers(0, 1000),
)
def test_a_voice_that_is_still_speaking_is_judged_as_the_whole_recording(
    bundle: Bundle, rate: int, cuts: list[int], gain: float, seed: int
) -> None:
    noise = np.random.default_rng(seed).normal(0, 0.01, len(spoken_beginning("en")) + 2 * RATE)
    told = gain * np.concatenate([SILENCE, spoken_beginning("en"), SILENCE]) + noise
    waveform = resample(np.clip(told, -1, 1).astype(np.float32), RATE, rate)
    stream = bundle.prompt_stream(rate)
    for part in np.split(waveform, np.cumsum(cuts)[: np.searchsorted(np.cumsum(cuts), len(waveform))]):
        stream.push(part)
    streamed, whole = stream.finish(), bundle.prompt(waveform, rate)
    assert streamed.voice is not None
    assert whole.voice is not None
    assert streamed.voice.level == pytest.approx(whole.voice.level, abs=0.11)  # rounded to 0.1
    assert streamed.voice.snr == pytest.approx(whole.voice.snr, abs=0.11)
    assert streamed.voice.clipped == whole.voice.clipped
    assert streamed.advice == whole.advice


@settings(deadline=None, max_examples=15)
@given(snr=st.floats(3, 40), level=st.floats(-40, -20), seed=st.integers(0, 1000))
def test_level_and_noise_are_those_that_were_mixed(snr: float, level: float, seed: int) -> None:
    told = at_level(level)
    noise = np.random.default_rng(seed).normal(0, 10 ** ((level - snr) / 20), len(told))
    voice = check((told + noise).astype(np.float32))
    assert voice is not None
    assert voice.snr == pytest.approx(snr, abs=2.5)
    assert voice.level == pytest.approx(10 * np.log10(10 ** (level / 10) + 10 ** ((level - snr) / 10)), abs=1.5)


@settings(deadline=None, max_examples=15)
@given(gain=st.floats(0.5, 20))
def test_clipped_is_the_share_of_samples_at_full_scale(gain: float) -> None:
    told = np.clip(gain * spoken_beginning("fr"), -1, 1)
    voice = check(told)
    assert voice is not None
    assert voice.clipped == pytest.approx(np.mean(np.abs(told) >= FULL), abs=1e-4)


def test_silence_is_no_voice_and_without_silence_nothing_is_said_of_noise() -> None:
    assert check(SILENCE) is None
    told = at_level(-20)
    whole, inside = check(told), check(told[RATE + 8000 : RATE + 16000])
    assert whole is not None
    assert inside is not None
    assert whole.snr == MOST_SNR
    assert inside.snr is None


@given(
    level=st.floats(-90, 0),
    snr=st.none() | st.floats(-20, MOST_SNR),
    clipped=st.floats(0, 1),
    in_domain=st.booleans(),
)
def test_advice_names_what_is_wrong(level: float, snr: float | None, clipped: float, in_domain: bool) -> None:
    wrong = {
        "clipped": clipped >= CLIPPED,
        "quiet": level < QUIET,
        "noisy": snr is not None and snr < NOISY,
        "unfamiliar": not in_domain,
    }
    advice = Voice(level, snr, clipped).advice(in_domain)
    assert set(wrong) == set(ADVICE)
    assert wrong[advice] if advice else not any(wrong.values())
    if advice == "unfamiliar":  # only where nothing else explains it
        assert sum(wrong.values()) == 1
