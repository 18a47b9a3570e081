"""What the vocoder is trained on: sentences of its speakers with their units and pitch, and the crops of every step.

The targets are always a vocoder speaker's speech. The units are those of the same speech, or of another voice that says
the same sentence, aligned with it: so the vocoder also learns to speak from the slightly different units of other voices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slm.errors import TresseError
from slm.units import UnitEncoder, Units, collapses
from train.speech.pitch import fundamental_phase, pitch_contours
from train.speech.time_warping import dtw_batch, mfcc
from train.speech.voices import SAMPLE_RATE, Voices, speak_all
from train.tools.progress import Progress
from train.vocoder.losses import DISCRIMINATORS
from train.vocoder.settings import VocoderTraining
from vocoder.config import VocoderConfig

MFCC_RATE = 50.0
"""Hz of `train.speech.time_warping.mfcc`."""


@dataclass
class Clip:
    """One sentence. waveform: float32 [samples] at the vocoder's rate; units: of the vocoder's frame rate.

    pitch: f0 in Hz (0: unvoiced) and phase of the fundamental in rad of every head frame, float32 [2, frames]; None: to be
    measured.
    """

    waveform: np.ndarray
    units: Units
    speaker: str
    language: str
    pitch: np.ndarray | None = None


def make_clips(
    encoder: UnitEncoder,
    sentences: Sequence[tuple[str, str]],
    voices: Voices,
    hop_length: int,
    *,
    others: int = 1,
    seed: int = 0,
    workers: int = 1,
) -> list[Clip]:
    """(language, text) sentences as clips of every vocoder speaker, and as many more with units of `others` other voices.

    hop_length: of the vocoder's head, at which pitch is measured.
    """
    rng = np.random.default_rng([seed, 2])
    names = [name for name in voices.training if name not in voices.vocoder]
    others = min(others, len(names))
    speakers = [[*voices.vocoder, *rng.choice(names, others, replace=False)] for _ in sentences]
    requests = [
        (text, language, voices.speaker(str(name)))
        for (language, text), some in zip(sentences, speakers, strict=True)
        for name in some
    ]
    waveforms = speak_all(requests, voices, workers)
    units: list[Units] = [Units.empty(encoder.frame_rate)] * len(waveforms)
    order = sorted(range(len(waveforms)), key=lambda index: len(waveforms[index]))
    progress = Progress("vocoder units", len(order), unit="clips")
    for first in range(0, len(order), 16):
        block = order[first : first + 16]
        for index, encoded in zip(block, encoder.encode_batch([waveforms[i] for i in block]), strict=True):
            units[index] = encoded
        progress.update(first + len(block))
    group, spoken = len(voices.vocoder) + others, len(voices.vocoder)
    own = [index for index in range(len(waveforms)) if index % group < spoken]
    pitches = measure_pitch([waveforms[index] for index in own], SAMPLE_RATE, hop_length)
    clips = [
        Clip(waveforms[index], units[index], requests[index][2].name, requests[index][1], pitch)
        for index, pitch in zip(own, pitches, strict=True)
    ]
    pairs = [(clip, index // group * group + other) for clip, index in enumerate(own) for other in range(spoken, group)]
    for first in range(0, len(pairs), 64):
        part = pairs[first : first + 64]
        sources = [mfcc(clips[clip].waveform)[:, :13] for clip, _ in part]
        targets = [mfcc(waveforms[other])[:, :13] for _, other in part]
        for (clip, other), path in zip(part, dtw_batch(sources, targets), strict=True):
            aligned = aligned_units(units[other], clips[clip].units, path.numpy(), encoder)
            clips.append(replace(clips[clip], units=aligned))
    return clips


def aligned_units(units: Units, like: Units, path: np.ndarray, encoder: UnitEncoder) -> Units:
    """Another voice's units in the timing of `like`. path: for each MFCC frame of `like`'s speech, that of the other's."""
    rate = units.frame_rate
    frames = units.frames()
    middle = (np.arange(int(like.run_lengths.sum())) + 0.5) / rate
    there = path[np.minimum((middle * MFCC_RATE).astype(int), len(path) - 1)]
    picked = np.minimum(((there + 0.5) / MFCC_RATE * rate).astype(int), len(frames) - 1)
    return Units.from_frames(frames[picked], rate, collapses(encoder))


def measure_pitch(waveforms: Sequence[np.ndarray], sample_rate: int, hop_length: int) -> list[np.ndarray]:
    """Frequency (Hz, 0: unvoiced) and phase (rad) of the fundamental of each waveform: float32 [2, frames]."""
    return [
        np.stack([f0, fundamental_phase(waveform, f0, sample_rate, hop_length)])
        for waveform, f0 in zip(waveforms, pitch_contours(waveforms, sample_rate, hop_length), strict=True)
    ]


def check(config: VocoderConfig, training: VocoderTraining, clips: list[Clip]) -> list[Clip]:
    """The clips worth training on, with their pitch. Raises TresseError, naming the mend, where they do not fit."""
    if training.discriminator not in DISCRIMINATORS:
        raise TresseError(f"unknown discriminator {training.discriminator!r}: choose {' or '.join(DISCRIMINATORS)}")
    if training.adversarial_clips < 1:
        raise TresseError("adversarial_clips must be at least 1; adversarial_from None turns the discriminators off")
    for clip in clips:
        for kind, name, known in (
            ("speaker", clip.speaker, config.speakers),
            ("language", clip.language, config.languages),
        ):
            if name not in known:
                raise TresseError(f"a clip's {kind} {name!r} is not one of the vocoder's: {', '.join(known)}")
        if abs(clip.units.frame_rate - config.frame_rate) > 1e-6:
            raise TresseError(f"a clip's units have {clip.units.frame_rate:g} Hz, the vocoder {config.frame_rate:g} Hz")
        if len(clip.units) and not 0 <= clip.units.ids.min() <= clip.units.ids.max() < config.codebook_size:
            raise TresseError(f"a clip's units go beyond the codebook of {config.codebook_size}: use one encoder")
    clips = [
        replace(clip, waveform=clip.waveform[: int(clip.units.run_lengths.sum()) * config.frame_samples])
        for clip in clips
        if len(clip.units)
    ]
    if not clips:
        raise TresseError("no clips with units to train the vocoder on: prepare the data first")
    unknown = [clip.waveform for clip in clips if clip.pitch is None]
    pitches = iter(measure_pitch(unknown, config.sample_rate, config.hop_length))
    return [clip if clip.pitch is not None else replace(clip, pitch=next(pitches)) for clip in clips]


@dataclass
class Batch:
    """One step's data. B clips, N units (padded), T head frames of a crop, L samples of a segment."""

    ids_BN: Tensor
    run_lengths_BN: Tensor
    """0 marks padding."""
    speaker_B: Tensor
    language_B: Tensor
    unit_BT: Tensor
    start_BT: Tensor
    end_BT: Tensor
    inside_BT: Tensor
    """False behind a clip's end, where the stream's look-ahead sees zeros."""
    f0_BT: Tensor
    phase_BT: Tensor
    frame_BT: Tensor
    """Number of the head frame in its clip."""
    inner_B: Tensor
    """Head frame at which the segment begins."""
    segment_BL: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch elsewhere."""
        return Batch(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


def draw_batch(config: VocoderConfig, training: VocoderTraining, clips: list[Clip], step: int) -> Batch:
    """The batch of this step, a pure function of (seed, step): clips by their length, then an offset in each."""
    rng = np.random.default_rng([training.seed, step])
    frames = np.array([int(clip.units.run_lengths.sum()) for clip in clips], np.float64)
    chosen = rng.choice(len(clips), training.batch_size, p=frames / frames.sum())
    offsets = rng.random(training.batch_size)
    repeats, hop = config.repeats, config.hop_length
    segment = max(1, round(training.segment_seconds * config.frame_rate))
    context = round(training.context_seconds * config.frame_rate)
    ahead = -(-(config.lookahead + config.n_fft // hop) // repeats)
    window = (context + segment + ahead) * repeats
    longest = max(len(clips[index].units) for index in chosen)
    rows: list[dict[str, Any]] = []
    for index, offset in zip(chosen, offsets, strict=True):
        clip = clips[index]
        total = int(frames[index])
        begin = int(offset * (max(0, total - segment) + 1))
        cut = max(0, begin - context)  # at a clip's start there is no context, and the fresh state is exact
        steps = clip.units.run_lengths * repeats
        ends = np.cumsum(steps)
        frame = np.arange(cut * repeats, cut * repeats + window)
        inside = frame < total * repeats
        frame = np.minimum(frame, total * repeats - 1)
        unit = np.searchsorted(ends, frame, side="right")
        to_end = ends[unit] - 1 - frame
        assert clip.pitch is not None  # `check` has measured it
        tone = np.where(inside, clip.pitch[:, np.minimum(frame, clip.pitch.shape[1] - 1)], 0.0).astype(np.float32)
        samples = clip.waveform[begin * config.frame_samples : (begin + segment) * config.frame_samples]
        padding = longest - len(clip.units)
        rows.append(
            {
                "ids_BN": np.pad(clip.units.ids, (0, padding)),
                "run_lengths_BN": np.pad(clip.units.run_lengths, (0, padding)),
                "speaker_B": config.speakers.index(clip.speaker),
                "language_B": config.languages.index(clip.language),
                "unit_BT": unit,
                "start_BT": steps[unit] - 1 - to_end,
                "end_BT": to_end,
                "inside_BT": inside,
                "f0_BT": tone[0],
                "phase_BT": tone[1],
                "frame_BT": np.arange(cut * repeats, cut * repeats + window),
                "inner_B": (begin - cut) * repeats,
                "segment_BL": np.pad(samples, (0, segment * config.frame_samples - len(samples))).astype(np.float32),
            }
        )
    return Batch(**{name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]})
