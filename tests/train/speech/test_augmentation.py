"""What is done to speech: levels, lengths, bands, and the same every time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from train.speech.augmentation import (
    NOISES,
    SAMPLE_RATE,
    Augmentation,
    Noise,
    clip,
    equalise,
    noise,
    pitch,
    rate,
    room,
    telephone,
)
from train.speech.voices import Voices, speak


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    voices = Voices.load()
    return speak("The little dog ran to the river, and the ball was gone.", "en", voices.speaker("basile"), voices)


def rms(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.mean(waveform.astype(np.float64) ** 2)))


def share_above(waveform: np.ndarray, frequency: float) -> float:
    """Share of the energy above a frequency in Hz."""
    energy = np.abs(np.fft.rfft(waveform)) ** 2
    return float(energy[np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE) > frequency].sum() / energy.sum())


def voice_like_tone() -> np.ndarray:
    """1 s of eight harmonics of 125 Hz."""
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    return sum(0.1 * np.sin(2 * np.pi * 125 * n * time) for n in range(1, 9)).astype(np.float32)


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("snr_db", [-5.0, 10.0, 30.0])
def test_noise_is_as_loud_as_asked_and_drawn_from_the_seed(speech: np.ndarray, kind: Noise, snr_db: float) -> None:
    noisy = noise(speech, snr_db, 7, kind)
    assert noisy.dtype == np.float32
    assert 20 * np.log10(rms(speech) / rms(noisy - speech)) == pytest.approx(snr_db, abs=0.05)
    assert np.array_equal(noisy, noise(speech, snr_db, 7, kind))
    assert not np.array_equal(noisy, noise(speech, snr_db, 8, kind))


def test_noises_have_their_colours(speech: np.ndarray) -> None:
    white, pink, babble = (noise(speech, 0.0, 1, kind) - speech for kind in NOISES)
    assert share_above(white, 4000) == pytest.approx(0.5, abs=0.03)
    assert share_above(pink, 4000) < 0.2
    assert share_above(babble, 4000) == pytest.approx(share_above(speech, 4000), abs=0.1)


EFFECTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "room": lambda x: room(x, 3),
    "telephone": telephone,
    "equalise": lambda x: equalise(x, (6, -6, 0, 9)),
    "clip": lambda x: clip(x, 0.05),
    "up": lambda x: pitch(x, 4),
    "down": lambda x: pitch(x, -4),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_effects_keep_length_and_level_and_repeat_themselves(speech: np.ndarray, name: str) -> None:
    changed = EFFECTS[name](speech)
    assert changed.dtype == np.float32
    assert changed.shape == speech.shape
    assert rms(changed) == pytest.approx(rms(speech), rel=1e-3)
    assert rms(changed - speech) > 0.05 * rms(speech)
    assert np.array_equal(changed, EFFECTS[name](speech))


def test_a_telephone_passes_its_band_only() -> None:
    hiss = np.random.default_rng(0).standard_normal(SAMPLE_RATE).astype(np.float32)
    heard = telephone(hiss)
    assert share_above(heard, 4000) < 0.02
    assert share_above(heard, 250) > 0.97
    assert share_above(heard, 3000) > 0.05


def test_an_equaliser_does_what_it_says() -> None:
    hiss = np.random.default_rng(0).standard_normal(4 * SAMPLE_RATE).astype(np.float32)
    spectrum = np.abs(np.fft.rfft(equalise(hiss, (0, 0, 12))) / np.fft.rfft(hiss))
    per_hz = len(spectrum) / (SAMPLE_RATE / 2)
    at = [float(np.median(spectrum[int((hz - 20) * per_hz) : int((hz + 20) * per_hz)])) for hz in (400, 7900)]
    assert 20 * np.log10(at[1] / at[0]) == pytest.approx(12, abs=0.6)


def test_a_room_goes_on_after_the_sound() -> None:
    click = np.zeros(SAMPLE_RATE, np.float32)
    click[1000] = 1.0
    heard = room(click, 1, seconds=0.4, direct_db=6.0).astype(np.float64)
    assert np.abs(heard).argmax() == 1000
    assert 10 * np.log10(heard[1000] ** 2 / np.sum(heard[1001:] ** 2)) == pytest.approx(6, abs=0.1)
    early, late = np.sum(heard[1100:2600] ** 2), np.sum(heard[4300:5800] ** 2)  # 0.2 s apart: 30 dB
    assert 10 * np.log10(early / late) == pytest.approx(30, abs=2)


def test_clipping_cuts_the_share_asked_for(speech: np.ndarray) -> None:
    clipped = clip(speech, 0.05)
    assert np.mean(np.abs(clipped) >= np.abs(clipped).max() * 0.999) == pytest.approx(0.05, abs=0.005)


@settings(max_examples=12, deadline=None)
@given(factor=st.floats(0.7, 1.4))
def test_rate_changes_the_length_and_not_the_pitch(factor: float) -> None:
    tone = voice_like_tone()
    changed = rate(tone, factor)
    assert len(changed) == round(len(tone) / factor)
    inner = changed[1600:-1600]
    spectrum = np.abs(np.fft.rfft(inner * np.hanning(len(inner)), 1 << 17))
    peaks = [spectrum[round((125 * n) / SAMPLE_RATE * (1 << 17))] for n in range(1, 9)]
    between = [spectrum[round((125 * n + 62) / SAMPLE_RATE * (1 << 17))] for n in range(1, 9)]
    assert min(peaks) > 10 * max(between)
    assert rms(inner) == pytest.approx(rms(tone), rel=0.1)


def test_rate_one_changes_nothing(speech: np.ndarray) -> None:
    assert np.array_equal(rate(speech, 1.0), speech)
    assert np.array_equal(pitch(speech, 0.0), speech)
    assert np.abs(rate(speech, 1.0000001) - speech).max() < 1e-5


@pytest.mark.parametrize("semitones", [-4.0, -1.5, 2.0, 4.0])
def test_pitch_is_shifted_by_semitones(semitones: float) -> None:
    heard = torch.from_numpy(pitch(voice_like_tone(), semitones))[None]
    found = torchaudio.functional.detect_pitch_frequency(heard, SAMPLE_RATE, freq_low=60, freq_high=400)
    assert 12 * np.log2(float(found.median()) / 125) == pytest.approx(semitones, abs=0.25)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_a_recording_is_a_pure_function_of_its_seed(seed: int) -> None:
    everything = Augmentation(room=1, noise=1, telephone=1, equaliser=1, clipping=1)
    recording = everything.recording(seed)
    assert recording == everything.recording(seed)
    assert 10 <= (recording.noise or (0,))[0] <= 40
    speech = np.random.default_rng(seed).standard_normal(4000).astype(np.float32)
    heard = recording.of(speech)
    assert heard.shape == speech.shape
    assert heard.dtype == np.float32
    assert np.abs(heard).max() <= 0.95 + 1e-6
    assert np.array_equal(heard, recording.of(speech))
    nothing = Augmentation(room=0, noise=0, telephone=0, equaliser=0, clipping=0).recording(seed)
    assert np.allclose(nothing.of(0.1 * speech / np.abs(speech).max()), 0.1 * speech / np.abs(speech).max())
