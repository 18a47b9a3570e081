"""The fundamental frequency of recorded speech: what the pitch predictor learns from, and what evaluation measures.

Normalised autocorrelation and one path through all frames, as in Boersma 1993 ("Accurate short-term analysis of the
fundamental frequency"), on a logarithmic grid of frequencies. About 100 times real time on one core.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LOWEST, HIGHEST, PER_OCTAVE = 60.0, 500.0, 48
"""Hz, Hz, and candidate frequencies an octave."""
VOICED = 0.5
"""Autocorrelation that counts as voice as much as not."""
QUIET = 0.02
"""Share of the loudest frame's amplitude below which nothing is voiced."""
OCTAVE_COST, JUMP_COST, VOICING_COST = 0.03, 0.6, 0.15
"""A candidate's price for each octave below HIGHEST, a path's for each octave it jumps, and for voicing on or off."""
REACH = 8
"""Candidates that a path may rise or fall from one frame to the next."""
BLOCK = 64


def pitch_contours(waveforms: Sequence[np.ndarray], sample_rate: int, hop_length: int) -> list[np.ndarray]:
    """float32 [samples] each -> float32 [samples // hop_length] Hz each, 0 where there is no voice.

    Frame t is centred on sample (t + 1/2) hop_length.
    """
    order = sorted(range(len(waveforms)), key=lambda index: len(waveforms[index]))
    contours: list[np.ndarray] = [np.zeros(0, np.float32)] * len(waveforms)
    for first in range(0, len(order), BLOCK):
        block = order[first : first + BLOCK]
        strengths = [_strengths(waveforms[index], sample_rate, hop_length) for index in block]
        steps = max(len(strength) for strength in strengths)
        padded_BTS = np.stack([np.pad(strength, ((0, steps - len(strength)), (0, 0))) for strength in strengths])
        for index, strength, path in zip(block, strengths, _best_paths(padded_BTS), strict=True):
            contours[index] = _frequencies(strength, path[: len(strength)])
    return contours


def _grid() -> np.ndarray:
    count = int(np.log2(HIGHEST / LOWEST) * PER_OCTAVE) + 1
    return LOWEST * 2.0 ** (np.arange(count) / PER_OCTAVE)


def _strengths(waveform: np.ndarray, sample_rate: int, hop: int) -> np.ndarray:
    """How periodic every frame is at every candidate frequency, less its price: [T, S]; very low where it is quiet."""
    window = int(3 * sample_rate / LOWEST) // 2 * 2
    frames = len(waveform) // hop
    grid = _grid()
    if frames == 0:
        return np.zeros((0, len(grid)), np.float32)
    padded = np.pad(np.asarray(waveform, np.float32), window // 2)
    views = np.lib.stride_tricks.sliding_window_view(padded, window)[hop // 2 :: hop][:frames]
    shape = np.hanning(window).astype(np.float32)
    size = 1 << (window + int(sample_rate / LOWEST) + 2).bit_length()
    cut = np.fft.rfftfreq(size, 1 / sample_rate) < 2000  # harmonics that carry the period; fricatives lie above

    def correlation(x: np.ndarray) -> np.ndarray:
        power = np.square(np.abs(np.fft.rfft(x, size, axis=-1))) * cut
        return np.fft.irfft(power, axis=-1)[..., : int(sample_rate / LOWEST) + 2]

    centred = (views - views.mean(1, keepdims=True)) * shape
    strength_by_lag = correlation(centred)
    strength_by_lag = strength_by_lag / np.maximum(strength_by_lag[:, :1], 1e-9)
    own = np.fft.irfft(np.square(np.abs(np.fft.rfft(shape, size))))[: strength_by_lag.shape[1]]
    strength_by_lag = strength_by_lag / (own / own[0])
    lag = sample_rate / grid
    whole = lag.astype(int)
    strength = strength_by_lag[:, whole] * (1 - (lag - whole)) + strength_by_lag[:, whole + 1] * (lag - whole)
    loudness = np.sqrt(np.mean(np.square(centred), axis=1))
    strength -= OCTAVE_COST * np.log2(HIGHEST / grid)
    strength[loudness < QUIET * loudness.max(initial=1e-9)] = -1.0
    return strength.astype(np.float32)


def _best_paths(strength_BTS: np.ndarray) -> np.ndarray:
    """The best path of each clip: candidate per frame, or S where unvoiced. Viterbi, int [B, T]."""
    batch, steps, states = strength_BTS.shape
    shifts = np.arange(-REACH, REACH + 1)
    price = (JUMP_COST / PER_OCTAVE) * np.abs(shifts)
    score = np.concatenate([strength_BTS[:, 0], np.full((batch, 1), VOICED)], axis=1)
    back = np.zeros((steps, batch, states + 1), np.int16)
    here = np.arange(states)
    for step in range(1, steps):
        padded = np.pad(score[:, :states], ((0, 0), (REACH, REACH)), constant_values=-np.inf)
        moved = np.lib.stride_tricks.sliding_window_view(padded, 2 * REACH + 1, axis=1) - price
        best = moved.argmax(2)
        along = np.take_along_axis(moved, best[:, :, None], 2)[:, :, 0]
        onset = score[:, states:] - VOICING_COST
        loudest = score[:, :states].argmax(1)
        offset = np.take_along_axis(score, loudest[:, None], 1) - VOICING_COST
        back[step, :, :states] = np.where(along >= onset, here + shifts[best], states)
        back[step, :, states] = np.where(score[:, states] >= offset[:, 0], states, loudest)
        score = np.concatenate(
            [np.maximum(along, onset) + strength_BTS[:, step], np.maximum(score[:, states:], offset) + VOICED], axis=1
        )
    path = np.zeros((batch, steps), np.int64)
    state = score.argmax(1)
    for step in range(steps - 1, -1, -1):
        path[:, step] = state
        state = back[step, np.arange(batch), state]
    return path


def _frequencies(strength_TS: np.ndarray, path_T: np.ndarray) -> np.ndarray:
    """Hz along a path, refined by a parabola through each peak's neighbours."""
    states = strength_TS.shape[1]
    voiced = path_T < states
    state = np.clip(path_T, 1, states - 2)
    rows = np.arange(len(path_T))
    left, peak, right = (strength_TS[rows, state + shift] for shift in (-1, 0, 1))
    bend = left - 2 * peak + right
    shift = np.where(bend < -1e-6, np.clip(0.5 * (left - right) / np.where(bend < -1e-6, bend, 1.0), -0.5, 0.5), 0.0)
    frequency = LOWEST * 2.0 ** ((state + shift) / PER_OCTAVE)
    return np.where(voiced, frequency, 0.0).astype(np.float32)


def fundamental_phase(waveform: np.ndarray, f0_T: np.ndarray, sample_rate: int, hop_length: int) -> np.ndarray:
    """Phase of the fundamental at the centre of every frame: float32 [T] in rad, 0 where f0 is 0."""
    window = int(3 * sample_rate / LOWEST) // 2 * 2
    padded = np.pad(np.asarray(waveform, np.float32), window // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[hop_length // 2 :: hop_length][: len(f0_T)]
    time = (np.arange(window, dtype=np.float32) - window // 2) / sample_rate
    wave = np.exp((-2j * np.pi * f0_T[:, None] * time).astype(np.complex64)) * np.hanning(window).astype(np.float32)
    return (np.angle((frames * wave).sum(1)) * (f0_T > 0)).astype(np.float32)
