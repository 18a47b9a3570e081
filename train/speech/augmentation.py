"""What happens to speech between mouth and model: noise, rooms, telephones, equalisers, clipping, other pitch and rate.

Every function takes and gives float32 [samples] at 16 kHz and is a pure function of its arguments (seeds included).
All but `rate` keep the length, and all but `noise` (which adds to the speech) keep the level (root mean square). Used
to train for robustness (`Augmentation`, optional in a corpus) and to measure it (the unit evaluation). 100 to 2,000 times
real time on one core.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal

import numpy as np
from pydantic import ConfigDict, Field

from slm.audio import resample

SAMPLE_RATE = 16000
Noise = Literal["white", "pink", "babble"]
NOISES: tuple[Noise, ...] = ("white", "pink", "babble")
TELEPHONE_BAND = (300.0, 3400.0)
"""Hz, of an analogue line (ITU-T G.712)."""
TALKERS = 8
"""Voices in babble."""


def noise(waveform: np.ndarray, snr_db: float, seed: int, kind: Noise = "white") -> np.ndarray:
    """Add noise at `snr_db` under the speech (ratio of mean powers over the clip).

    Babble is made of the clip itself: eight copies, time-reversed, at random offsets and speeds: it has the spectrum and the
    rhythm of speech, and no words.
    """
    rng = np.random.default_rng(seed)
    if kind == "white":
        added = rng.standard_normal(len(waveform))
    elif kind == "pink":
        added = _filtered(rng.standard_normal(len(waveform)), lambda f: np.maximum(f, 20.0) ** -0.5)
    elif kind == "babble":
        added = np.zeros(len(waveform))
        for _ in range(TALKERS):
            speed, offset = rng.uniform(0.8, 1.25), rng.integers(len(waveform))
            position = (offset + speed * np.arange(len(waveform))) % len(waveform)
            added += np.interp(position, np.arange(len(waveform)), waveform[::-1])
    else:
        raise ValueError(f"unknown noise {kind!r}: choose one of {', '.join(NOISES)}")
    gain = _rms(waveform) / max(1e-9, _rms(added)) * 10 ** (-snr_db / 20)
    return (waveform + gain * added).astype(np.float32)


def room(waveform: np.ndarray, seed: int, seconds: float = 0.4, direct_db: float = 6.0) -> np.ndarray:
    """Reverberation of a synthetic room.

    The impulse response is the direct sound and a tail of Gaussian noise that decays by 60 dB in `seconds` (Polack 1988),
    `direct_db` weaker in energy than the direct sound.
    """
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(time)) * 10 ** (-3.0 * time / seconds)
    tail[: int(0.002 * SAMPLE_RATE)] = 0.0  # the first wall is 70 cm away
    response = tail / np.sqrt(np.sum(tail**2)) * 10 ** (-direct_db / 20)
    response[0] = 1.0
    size = 1 << (len(waveform) + len(response) - 1).bit_length()
    wet = np.fft.irfft(np.fft.rfft(waveform, size) * np.fft.rfft(response, size), size)[: len(waveform)]
    return _levelled(wet, waveform)


def telephone(waveform: np.ndarray) -> np.ndarray:
    """A telephone line: 300 to 3,400 Hz, and the 8-bit mu-law of 8 kHz telephony (ITU-T G.711)."""
    low, high = TELEPHONE_BAND

    def band(frequency: np.ndarray) -> np.ndarray:
        edges = np.clip((frequency - low + 100) / 100, 0, 1), np.clip((high + 400 - frequency) / 400, 0, 1)
        return np.multiply(*edges)

    narrow = _filtered(waveform, band)
    peak = max(1e-9, float(np.abs(narrow).max()))
    companded = np.sign(narrow) * np.log1p(255 * np.abs(narrow) / peak) / math.log(256)
    coded = np.round(companded * 127) / 127
    return _levelled(np.sign(coded) * np.expm1(np.abs(coded) * math.log(256)) / 255, waveform)


def equalise(waveform: np.ndarray, gains_db: tuple[float, ...]) -> np.ndarray:
    """A smooth equaliser: gains at points evenly spaced in octaves from 100 Hz to 8 kHz, interpolated between them."""
    points = np.geomspace(100.0, SAMPLE_RATE / 2, len(gains_db))

    def curve(frequency: np.ndarray) -> np.ndarray:
        return 10 ** (np.interp(np.log(np.maximum(frequency, 1.0)), np.log(points), gains_db) / 20)

    return _levelled(_filtered(waveform, curve), waveform)


def clip(waveform: np.ndarray, share: float) -> np.ndarray:
    """Overdriven recording: the loudest `share` (0..1) of the samples are cut off flat."""
    limit = float(np.quantile(np.abs(waveform), 1.0 - share))
    return _levelled(np.clip(waveform, -limit, limit), waveform)


def rate(waveform: np.ndarray, factor: float) -> np.ndarray:
    """Speak `factor` times as fast, at the same pitch: [samples] -> [round(samples / factor)].

    WSOLA (Verhelst and Roelands 1993): 32 ms windows are laid 16 ms apart, each taken from within 8 ms of its nominal place
    where it goes on most like the window before. Clearer for speech than a phase vocoder, which smears voice pulses.
    """
    if factor == 1.0:
        return waveform.astype(np.float32)
    window, hop, reach = 512, 256, 128
    length = round(len(waveform) / factor)
    frames = -(-length // hop) + 1
    source = np.pad(waveform, (hop + reach, 2 * window + 2 * reach + hop)).astype(np.float64)
    taper = np.hanning(window + 1)[:-1]
    tie = 1e-6 * np.abs(np.arange(-reach, reach + 1))  # in silence, where all is alike, stay in place
    out = np.zeros((frames + 1) * hop)
    start = reach  # index in `source`; the first window's middle is the first sample
    for frame in range(frames):
        nominal = min(reach + round(frame * hop * factor), len(source) - window - hop - reach)
        if frame:
            natural = source[start + hop : start + hop + window]  # what would follow the window before
            region = source[nominal - reach : nominal + reach + window]
            energy = np.convolve(region**2, np.ones(window), "valid")
            likeness = np.correlate(region, natural, "valid") / np.sqrt(energy + 1e-9)
            start = nominal - reach + int((likeness - tie).argmax())
        out[frame * hop : frame * hop + window] += taper * source[start : start + window]
    return out[hop : hop + length].astype(np.float32)


def pitch(waveform: np.ndarray, semitones: float) -> np.ndarray:
    """Shift the pitch, formants with it, and keep the duration: another throat. Resampled, then `rate`."""
    if semitones == 0.0:
        return waveform.astype(np.float32)
    ratio = Fraction(2 ** (semitones / 12)).limit_denominator(60)  # within 0.01 semitones
    resampled = resample(np.ascontiguousarray(waveform, np.float32), ratio.numerator * 50, ratio.denominator * 50)
    shifted = rate(resampled, float(1 / ratio))
    return _levelled(np.pad(shifted, (0, max(0, len(waveform) - len(shifted))))[: len(waveform)], waveform)


def _filtered(waveform: np.ndarray, gain: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Linear-phase filter with a gain given by frequency in Hz."""
    size = 1 << (len(waveform) + SAMPLE_RATE // 10).bit_length()
    spectrum = np.fft.rfft(waveform, size) * gain(np.fft.rfftfreq(size, 1 / SAMPLE_RATE))
    return np.fft.irfft(spectrum, size)[: len(waveform)]


def _rms(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64)))) if len(waveform) else 0.0


def _levelled(waveform: np.ndarray, like: np.ndarray) -> np.ndarray:
    return (waveform * (_rms(like) / max(1e-9, _rms(waveform)))).astype(np.float32)


Share = Annotated[float, Field(ge=0.0, le=1.0)]


@dataclass(frozen=True)
class Augmentation:
    """How often each thing happens to a recording (probabilities), and how bad noise gets (dB, drawn uniformly)."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    room: Share = 0.3
    noise: Share = 0.3
    telephone: Share = 0.1
    equaliser: Share = 0.3
    clipping: Share = 0.05
    snr_db: tuple[float, float] = (10.0, 40.0)

    def recording(self, seed: int) -> Recording:
        """Draw the conditions of one recording."""
        rng = np.random.default_rng(seed)
        happens = dict(zip(("room", "noise", "telephone", "equaliser", "clipping"), rng.random(5), strict=True))
        snr_db, seconds, direct_db, share = rng.uniform(*self.snr_db), *rng.uniform((0.2, 0, 0.005), (0.8, 12, 0.05))
        gains = tuple(float(gain) for gain in rng.uniform(-9, 9, 6))
        kind = NOISES[rng.integers(len(NOISES))]
        return Recording(
            seed,
            room=(float(seconds), float(direct_db)) if happens["room"] < self.room else None,
            noise=(float(snr_db), kind) if happens["noise"] < self.noise else None,
            gains_db=gains if happens["equaliser"] < self.equaliser else None,
            clipped=float(share) if happens["clipping"] < self.clipping else None,
            telephone=bool(happens["telephone"] < self.telephone),
        )


@dataclass(frozen=True)
class Recording:
    """The conditions under which a speaker was recorded: the same for all sentences of a recording.

    room: (s, dB) as in `room`; noise: (dB, kind); clipped: share of the samples.
    """

    seed: int
    room: tuple[float, float] | None = None
    noise: tuple[float, Noise] | None = None
    gains_db: tuple[float, ...] | None = None
    clipped: float | None = None
    telephone: bool = False

    def of(self, waveform: np.ndarray) -> np.ndarray:
        """The speech float32 [samples] as recorded, peaks held under 0.95; in the order in which sound travels."""
        if self.room:
            waveform = room(waveform, self.seed, *self.room)
        if self.noise:
            waveform = noise(waveform, self.noise[0], self.seed, self.noise[1])
        if self.gains_db:
            waveform = equalise(waveform, self.gains_db)
        if self.clipped:
            waveform = clip(waveform, self.clipped)
        if self.telephone:
            waveform = telephone(waveform)
        return waveform * np.float32(min(1.0, 0.95 / max(1e-9, float(np.abs(waveform).max()))))
