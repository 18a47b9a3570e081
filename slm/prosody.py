"""How speech falls off before a pause: melody, loudness and length of its last second.

People who have finished let their voice fall, grow quieter and lengthen the last syllable; people who go on often do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RATE = 16000
"""Hz."""
LOOK = 1.2
"""s of speech before the pause that are looked at."""
FRAME, HOP = 640, 160
LOWEST, HIGHEST = 65.0, 400.0
"""Hz of voices."""
VOICED = 0.55
"""Share of a frame's energy that repeats after a period, from which on it is voiced."""
AUDIBLE = 25.0
"""dB below the loudest frame down to which a frame is speech."""
END = 0.2
"""s that count as the end."""


@dataclass(frozen=True)
class Fall:
    """The end of speech beside what came before it. pitch: semitones that it lies above the median of all that is looked at
    (below: negative); energy: dB, likewise; voiced: s of the last voiced stretch."""

    pitch: float
    energy: float
    voiced: float


def fall(samples: np.ndarray) -> Fall:
    """float32 [n] at 16 kHz, the speech before a pause -> how it fell. Nothing voiced gives no fall of pitch."""
    samples = np.asarray(samples, np.float64)[-round(LOOK * RATE) :]
    if len(samples) < 2 * FRAME:
        return Fall(0.0, 0.0, 0.0)
    frames = np.lib.stride_tricks.sliding_window_view(samples, FRAME)[(len(samples) - FRAME) % HOP :: HOP]
    energy = 10 * np.log10((frames**2).mean(1) + 1e-10)
    pitch = _pitch(frames)
    heard = energy > energy.max() - AUDIBLE
    voiced = heard & (pitch > 0)
    last = round(END * RATE / HOP)
    numbers = np.flatnonzero(voiced)
    if len(numbers) < 4:
        return Fall(0.0, float(energy[-last:].mean() - np.median(energy[heard])), 0.0)
    semitones = 12 * np.log2(pitch[numbers])
    ending = semitones[-min(len(semitones) // 2, last // 2) :]
    begins = numbers[-1]
    while begins > 0 and voiced[begins - 1]:
        begins -= 1
    return Fall(
        float(np.median(ending) - np.median(semitones)),
        float(energy[-last:].mean() - np.median(energy[heard])),
        float((numbers[-1] + 1 - begins) * HOP / RATE),
    )


def _pitch(frames: np.ndarray) -> np.ndarray:
    """Frames float64 [T, FRAME] -> Hz [T], 0 where a frame is not voiced: the strongest peak of the autocorrelation."""
    window = np.hanning(FRAME)
    spectrum = np.fft.rfft((frames - frames.mean(1, keepdims=True)) * window, 2 * FRAME)
    repeats = np.fft.irfft(np.abs(spectrum) ** 2)[:, :FRAME]
    alone = np.fft.irfft(np.abs(np.fft.rfft(window, 2 * FRAME)) ** 2)[:FRAME]
    shortest, longest = int(RATE / HIGHEST), int(RATE / LOWEST)
    repeats = repeats[:, : longest + 1] / np.maximum(repeats[:, :1], 1e-12) / (alone[: longest + 1] / alone[0])
    lags = np.arange(shortest, longest + 1)
    best = shortest + (repeats[:, shortest:] - 0.0005 * lags).argmax(1)  # of equal peaks the shortest period
    strength = repeats[np.arange(len(repeats)), best]
    return np.where(strength >= VOICED, RATE / best, 0.0)
