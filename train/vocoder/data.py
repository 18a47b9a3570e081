"""What the vocoder is trained on: sentences of its speakers with their units and pitch, and the crops of every step.

The targets are always a vocoder speaker's speech. The units are those of the same speech, as it is or recorded under other
conditions, of another voice that says the same sentence, aligned with it, or of the phones that were spoken: so the vocoder
also learns to speak from the slightly different units of other voices, and of a language model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slm.errors import TresseError
from slm.units import UnitEncoder, Units, collapses
from train.speech.augmentation import Augmentation
from train.speech.phones import Phone, frame_labels
from train.speech.pitch import fundamental_phase, pitch_contours
from train.speech.pool import Clip as Spoken
from train.speech.pool import speak_pool
from train.speech.realignment import RATE, Alignment, features_of, realign
from train.speech.time_warping import dtw_batch, mfcc
from train.speech.voices import SAMPLE_RATE, Voices
from train.tools.progress import Progress
from train.vocoder.losses import DISCRIMINATORS
from train.vocoder.settings import VocoderTraining
from vocoder.config import VocoderConfig

CONDITIONS = Augmentation(room=0.5, noise=0.6, telephone=0.1, equaliser=0.3, snr_db=(8.0, 30.0))
"""Under which speech is recorded again."""
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


@dataclass(frozen=True)
class Hearing:
    """Whose units a clip is learnt with, beside those of its own speech: of `others` other voices that say the same; of the
    same speech, recorded `rerecorded` times under `CONDITIONS`; of the phones that were spoken (`units_of_phones`: the unit
    of each, None for none of these). realigned: whether each unit lasts as long as it sounds, not as it was heard."""

    others: int = 0
    rerecorded: int = 0
    units_of_phones: Mapping[str, int] | None = None
    realigned: bool = False


def in_turns(told: Sequence[Sequence[tuple[str, str]]]) -> list[tuple[str, str]]:
    """The sentences of several languages, one of each after the other."""
    return [sentence for turn in zip_longest(*told) for sentence in turn if sentence is not None]


def make_clips(
    encoder: UnitEncoder,
    sentences: Sequence[tuple[str, str]],
    voices: Voices,
    hop_length: int,
    folder: Path,
    *,
    hearing: Hearing = Hearing(others=1),
    seed: int = 0,
    workers: int = 1,
) -> list[Clip]:
    """(language, text) sentences as clips of every vocoder speaker, and again with the units of what `hearing` says.

    hop_length: of the vocoder's head, at which pitch is measured. folder: where the speech is kept, so that it is spoken
    once.
    """
    rng = np.random.default_rng([seed, 2])
    names = [name for name in voices.training if name not in voices.vocoder]
    others = min(hearing.others, len(names))
    speakers = [[*voices.vocoder, *rng.choice(names, others, replace=False)] for _ in sentences]
    requests = [
        (text, language, voices.speaker(str(name)))
        for (language, text), some in zip(sentences, speakers, strict=True)
        for name in some
    ]
    speech = speak_pool(requests, voices, folder, workers, SAMPLE_RATE)
    spoken = {(row.text, row.language, row.speaker): (row, row.read(folder)) for row in speech}
    speakers_of: dict[tuple[str, str], list[str]] = {}
    for text, language, name in spoken:
        speakers_of.setdefault((text, language), []).append(name)
    own = [key for key in spoken if key[2] in voices.vocoder]
    pitches = measure_pitch([spoken[key][1] for key in own], SAMPLE_RATE, hop_length)
    units = dict(zip(spoken, _encoded([waveform for _, waveform in spoken.values()], encoder), strict=True))
    clips = [Clip(spoken[key][1], units[key], key[2], key[1], pitch) for key, pitch in zip(own, pitches, strict=True)]
    own_clips = list(clips)
    pairs = [
        (clip, (*key[:2], name))
        for clip, key in zip(own_clips, own, strict=True)
        for name in speakers_of[key[:2]]
        if name not in voices.vocoder
    ]
    for first in range(0, len(pairs), 64):
        part = pairs[first : first + 64]
        sources = [mfcc(clip.waveform)[:, :13] for clip, _ in part]
        targets = [mfcc(spoken[other][1])[:, :13] for _, other in part]
        for (clip, other), path in zip(part, dtw_batch(sources, targets), strict=True):
            clips.append(replace(clip, units=aligned_units(units[other], clip.units, path.numpy(), encoder)))
    for time in range(hearing.rerecorded):
        recorded = [
            CONDITIONS.recording(seed + time * len(own) + number).of(clip.waveform)
            for number, clip in enumerate(own_clips)
        ]
        encoded = _encoded(recorded, encoder)
        clips += [replace(clip, units=heard) for clip, heard in zip(own_clips, encoded, strict=True)]
    if hearing.units_of_phones is not None:
        for clip, key in zip(own_clips, own, strict=True):
            named = phone_units(spoken[key][0], clip.units, hearing.units_of_phones)
            clips += [] if named is None else [replace(clip, units=named)]
    return realigned(clips) if hearing.realigned else clips


def realigned(clips: Sequence[Clip]) -> list[Clip]:
    """The clips, each language's aligned anew (`train.speech.realignment`): their units begin when they sound.

    Raises TresseError for units of another rate than realignment has.
    """
    if wrong := [clip.units.frame_rate for clip in clips if clip.units.frame_rate != RATE]:
        raise TresseError(f"units of {wrong[0]:g} Hz cannot be realigned, only those of {RATE:g}: leave realigned out")
    made = list(clips)
    for language in sorted({clip.language for clip in clips}):
        own = [index for index, clip in enumerate(clips) if clip.language == language and len(clip.units)]
        sentences = []
        for clip in (clips[index] for index in own):
            assert clip.pitch is not None
            frames, features = int(clip.units.run_lengths.sum()), features_of(clip.waveform, clip.pitch[0])
            features = np.pad(features, ((0, max(0, frames - len(features))), (0, 0)), mode="edge")[:frames]
            starts = np.cumsum(clip.units.run_lengths) - clip.units.run_lengths
            sentences.append(Alignment([str(unit) for unit in clip.units.ids], starts, features))
        for index, starts, sentence in zip(own, realign(sentences), sentences, strict=True):
            lengths = np.diff(np.append(starts, len(sentence.features)))
            made[index] = replace(
                clips[index], units=Units(clips[index].units.ids, lengths, clips[index].units.frame_rate)
            )
    return made


def _encoded(waveforms: Sequence[np.ndarray], encoder: UnitEncoder) -> list[Units]:
    """The units of waveforms at 16 kHz, in batches of like length."""
    units = [Units.empty(encoder.frame_rate)] * len(waveforms)
    order = sorted(range(len(waveforms)), key=lambda index: len(waveforms[index]))
    progress = Progress("vocoder units", len(order), unit="clips")
    for first in range(0, len(order), 16):
        block = order[first : first + 16]
        for index, encoded in zip(block, encoder.encode_batch([waveforms[i] for i in block]), strict=True):
            units[index] = encoded
        progress.update(first + len(block))
    return units


def phone_units(spoken: Spoken, like: Units, units: Mapping[str, int]) -> Units | None:
    """The units of the phones that were spoken, as many frames as `like` has; phones that have no unit sound as the phone
    before them. None where the synthesiser told no phones."""
    if spoken.phones is None:
        return None
    known = [Phone(name, start, end) for name, start, end in spoken.phones if name in units]
    if not known:
        return None
    joined = [replace(phone, end=then.start) for phone, then in pairwise(known)]
    joined.append(replace(known[-1], end=math.inf))
    labels = frame_labels(joined, int(like.run_lengths.sum()), like.frame_rate)
    return Units.from_frames(np.array([units[str(name)] for name in labels]), like.frame_rate)


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
    remembers_B: Tensor
    """Whether the backbone gets the features of the sentence so far."""
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
    remembers = rng.random(training.batch_size) >= training.memory_dropout
    repeats, hop = config.repeats, config.hop_length
    segment = max(1, round(training.segment_seconds * config.frame_rate))
    context = round(training.context_seconds * config.frame_rate)
    ahead = -(-(config.lookahead + config.n_fft // hop) // repeats)
    window = (context + segment + ahead) * repeats
    longest = max(len(clips[index].units) for index in chosen)
    rows: list[dict[str, Any]] = []
    for index, offset, remembers_it in zip(chosen, offsets, remembers, strict=True):
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
                "remembers_B": remembers_it,
                "inner_B": (begin - cut) * repeats,
                "segment_BL": np.pad(samples, (0, segment * config.frame_samples - len(samples))).astype(np.float32),
            }
        )
    return Batch(**{name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]})
