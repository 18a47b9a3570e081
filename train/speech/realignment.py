"""When each phone of spoken sentences sounds, from the speech itself.

A synthesiser's durations say how long it attends to each of its tokens, not when the sound is heard: Kokoro's phones are
40 ms away on average, up to 150 ms, and by them 40 % of the frames of an /s/ are voiced (19 % after this). Phones whose
order is known are aligned anew, as toolkits of hidden Markov models do ("embedded" or Viterbi training, Young et al. 2006,
The HTK Book, ch. 8): every phone is two states of one Gaussian each, estimated from all sentences, and the likeliest path
through each sentence gives new times; a few rounds of both. 14 rounds over 47 minutes of speech take a core one minute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from slm.audio import resample
from train.speech.pitch import pitch_contours
from train.speech.pool import Clip
from train.speech.time_warping import mfcc
from train.speech.voices import SAMPLE_RATE

RATE = 50.0
"""Frames a second."""
ROUNDS = 9
REACH = 9
"""Frames by which a boundary may move in a round."""
FLOOR = 0.05
"""Least variance of a feature, as a share of its variance over all frames."""


@dataclass(frozen=True)
class Alignment:
    """A sentence: its phones in order, the frame at which each begins (increasing, [N]), and features [T, D]."""

    phones: Sequence[str]
    starts: np.ndarray
    features: np.ndarray


def features_of(waveform: np.ndarray, f0: np.ndarray) -> np.ndarray:
    """Cepstra, their slopes, loudness and voicing of 20 ms frames: float32 [T, D].

    waveform: float32 [samples] at 16 kHz; f0: Hz at 100 Hz, 0 where unvoiced.
    """
    cepstra = mfcc(waveform)[:, :13].numpy()
    frames = len(cepstra)
    pairs = np.resize(np.pad(f0 > 0, (0, max(0, 2 * frames - len(f0))))[: 2 * frames], (frames, 2))
    blocks = np.pad(waveform, (0, max(0, 320 * frames - len(waveform))))[: 320 * frames].reshape(frames, 320)
    loudness = np.log(np.sqrt(np.square(blocks).mean(1)) + 1e-4)
    # over three frames: those of `mfcc`, over five, leave boundaries less sharp (silence voiced in 14 % for 7 %)
    slopes = np.gradient(cepstra, axis=0) if frames > 1 else np.zeros_like(cepstra)
    extra = np.stack([loudness, np.gradient(loudness) if frames > 1 else loudness * 0, pairs.mean(1)], 1)
    return np.concatenate([cepstra, slopes, extra], 1).astype(np.float32)


def realigned_clips(clips: Sequence[Clip], folder: Path) -> list[Clip]:
    """The clips of a pool, those whose phones are known aligned anew, each language by itself. folder: of the pool.

    Raises TresseError where a clip cannot be read.
    """
    made = list(clips)
    for language in sorted({clip.language for clip in clips}):
        own = [index for index, clip in enumerate(clips) if clip.language == language and clip.phones]
        sentences: list[Alignment] = []
        for first in range(0, len(own), 64):
            some = [clips[index] for index in own[first : first + 64]]
            waveforms = [resample(clip.read(folder), clip.sample_rate, SAMPLE_RATE) for clip in some]
            contours = pitch_contours(waveforms, SAMPLE_RATE, SAMPLE_RATE // 100)
            for clip, waveform, f0 in zip(some, waveforms, contours, strict=True):
                names, starts, _ = zip(*(clip.phones or []), strict=True)
                frames = np.round(np.array(starts) * RATE).astype(np.int64)
                sentences.append(Alignment(names, frames, features_of(waveform, f0)))
        for index, starts_N, sentence in zip(own, realign(sentences), sentences, strict=True):
            edges = np.append(starts_N / RATE, clips[index].samples / clips[index].sample_rate).tolist()
            phones = [(name, edges[n], edges[n + 1]) for n, name in enumerate(sentence.phones)]
            made[index] = replace(clips[index], phones=phones)
    return made


def realign(sentences: Sequence[Alignment], rounds: int = ROUNDS) -> list[np.ndarray]:
    """The frame at which each phone of each sentence begins, int [N] each: at least one frame a phone, none moves past the
    next. Sentences of more phones than frames stay as they are."""
    starts = [np.asarray(sentence.starts, np.int64) for sentence in sentences]
    names = {name: number for number, name in enumerate(sorted({p for s in sentences for p in s.phones}))}
    numbers = [np.array([names[phone] for phone in sentence.phones], np.int64) for sentence in sentences]
    fitting = [index for index, s in enumerate(sentences) if 0 < len(s.phones) <= len(s.features)]
    if not fitting:
        return starts
    everything = np.concatenate([sentences[index].features for index in fitting])
    floor = FLOOR * everything.var(0) + 1e-8
    states = {index: _halves(starts[index], len(sentences[index].features)) for index in fitting}
    for _ in range(rounds):
        means, variances = _gaussians(sentences, numbers, states, len(names), everything, floor)
        for index in fitting:
            chain = np.stack([2 * numbers[index], 2 * numbers[index] + 1], 1).ravel()
            scores = _log_likelihood(sentences[index].features, means[chain], variances[chain])
            states[index] = _path(scores, starts[index])
            starts[index] = np.searchsorted(states[index] // 2, np.arange(len(numbers[index])))
    return starts


def _halves(starts_N: np.ndarray, frames: int) -> np.ndarray:
    """The state of each frame, 2 n for the first half of phone n and 2 n + 1 for the second: int [T]."""
    ends = np.append(starts_N[1:], frames)
    phone = np.clip(np.searchsorted(starts_N, np.arange(frames), side="right") - 1, 0, None)
    return 2 * phone + (np.arange(frames) >= (starts_N[phone] + ends[phone] + 1) // 2)


def _gaussians(
    sentences: Sequence[Alignment],
    numbers: Sequence[np.ndarray],
    states: dict[int, np.ndarray],
    count: int,
    everything: np.ndarray,
    floor: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Means and variances of the states of every phone [2 K, D]; of a state that has few frames, those of all frames weigh
    in."""
    kinds = np.concatenate([2 * numbers[index][path // 2] + path % 2 for index, path in states.items()])
    order = np.argsort(kinds, kind="stable")
    bounds = np.searchsorted(kinds[order], np.arange(2 * count + 1))
    means = np.tile(everything.mean(0), (2 * count, 1))
    variances = np.tile(everything.var(0) + floor, (2 * count, 1))
    for state in range(2 * count):
        own = everything[order[bounds[state] : bounds[state + 1]]]
        if len(own):
            share = len(own) / (len(own) + 5.0)
            means[state] = share * own.mean(0) + (1 - share) * means[state]
            variances[state] = np.maximum(floor, share * own.var(0) + (1 - share) * variances[state])
    return means, variances


def _log_likelihood(features_TD: np.ndarray, means_SD: np.ndarray, variances_SD: np.ndarray) -> np.ndarray:
    """[T, S], but for a constant."""
    precision = 1.0 / variances_SD
    square = features_TD**2 @ precision.T - 2 * features_TD @ (means_SD * precision).T
    return -0.5 * (square + (means_SD**2 * precision).sum(1) + np.log(variances_SD).sum(1))


def _path(scores_TS: np.ndarray, starts_N: np.ndarray) -> np.ndarray:
    """The likeliest path from the first state to one of the last two: int [T]. Each phone's second state may be skipped,
    phones may not, and none begins more than REACH frames from `starts`."""
    frames, states = scores_TS.shape
    begin = np.repeat(np.asarray(starts_N), 2)
    end = np.append(begin[2:], [frames, frames])
    time = np.arange(frames)[:, None]
    allowed = (time >= begin - REACH) & (time < end + REACH)
    left = frames - time  # frames from here on: enough for the phones that are still to come
    phone = np.arange(states) // 2
    allowed &= (phone <= time) & (states // 2 - phone <= left)
    scores = np.where(allowed, scores_TS, -1e9)
    first = np.arange(states) % 2 == 0
    total = np.full(states, -np.inf)
    total[0] = scores[0, 0]
    back = np.zeros((frames, states), np.int8)
    for step in range(1, frames):
        one_back = np.concatenate([[-np.inf], total[:-1]])
        two_back = np.where(first, np.concatenate([[-np.inf, -np.inf], total[:-2]]), -np.inf)
        choices = np.stack([total, one_back, two_back])
        back[step] = choices.argmax(0)
        total = choices.max(0) + scores[step]
    state = states - 1 if total[-1] >= total[-2] else states - 2
    path = np.zeros(frames, np.int64)
    for step in range(frames - 1, -1, -1):
        path[step] = state
        state -= int(back[step, state])
    return path
