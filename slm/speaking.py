"""A continuation aloud: generated tokens in, pieces of sound out, as soon as each is certain.

The voice is any stream that turns units into samples; the bundle gives the vocoder's.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np

from slm.continuation import Prompt, Sentence, Step
from slm.scheduling import Scheduler
from slm.units import Units

SENTENCE_PAUSE = 0.2
"""s of silence between two sentences of a continuation, beside the sentences' own."""
FIRST_SECONDS = 0.06
"""s of sound with which a reply begins, at least: the next must be made meanwhile."""


class UnitVoice(Protocol):
    """A vocoder's stream: one speaker, one utterance."""

    run_lengths: np.ndarray
    """Unit frames that each unit spoken by the latest push, or flush, lasts: int64 [N]. Units are spoken in order; the last
    ones of a push may wait for what follows."""

    def push(
        self,
        ids: np.ndarray,
        run_lengths: np.ndarray | None = None,
        language: str | None = None,
        *,
        begins: bool = False,
    ) -> np.ndarray:
        """Units int64 [N] and their lengths in frames (None: predicted) -> float32 [samples now certain].

        begins: a sentence begins with the first of these units.
        """
        ...

    def flush(self) -> np.ndarray:
        """The last samples: float32 [n]."""
        ...


@dataclass(frozen=True)
class Chunk:
    """A piece of a continuation: float32 [samples] at the bundle's rate, the units it was spoken from (those new since the
    chunk before), tokens generated so far, s since the prompt was given, and the prompt as it was understood.

    sentence: int64 [N], for each unit the number of its sentence in the continuation, -1 in the pauses between them;
    languages: of the sentences begun so far."""

    audio: np.ndarray
    units: Units
    tokens: int
    elapsed: float
    prompt: Prompt
    sentence: np.ndarray
    languages: tuple[str, ...]


def sentences_of(chunks: Iterable[Chunk]) -> list[Sentence]:
    """The sentences of a continuation, as a further prompt needs them."""
    spoken = list(chunks)
    if not spoken:
        return []
    units, number = Units.concatenate([c.units for c in spoken]), np.concatenate([c.sentence for c in spoken])
    parts = [(units.ids[number == k], units.run_lengths[number == k]) for k in range(len(spoken[-1].languages))]
    return [
        Sentence(Units(ids, lengths, units.frame_rate), language)
        for (ids, lengths), language in zip(parts, spoken[-1].languages, strict=True)
        if len(ids)
    ]


@dataclass(frozen=True)
class ReplySpeaker:
    """What all replies of a bundle share. sample_rate, frame_rate: Hz; silence: the unit that stands for it; collapsed:
    a unit is a run of frames, not one frame; scheduler: whose turn it is to use a core."""

    sample_rate: int
    frame_rate: float
    silence: int
    collapsed: bool
    scheduler: Scheduler

    def speak(
        self, steps: Iterator[Step], voice: UnitVoice, prompt: Prompt, max_seconds: float, started: float
    ) -> Iterator[Chunk]:
        """The steps of a continuation as Chunks, of `max_seconds` s together at most.

        started: time.perf_counter() when the prompt was given. Closing the iterator ends the generation.
        """
        limit = int(max_seconds * self.sample_rate)
        samples = tokens = 0
        due = started  # when its sound runs out: who has none yet is late
        audio = np.zeros(0, np.float32)
        languages: list[str] = []
        pushed = np.zeros((2, 0), np.int64)  # units that are in no chunk yet, and the sentence of each
        lasting = np.zeros(0, np.int64)  # run lengths of those that were spoken
        begins = True

        def chunk(audio: np.ndarray) -> Chunk:
            nonlocal pushed, lasting
            ids, owner = pushed[:, : len(lasting)]
            units, elapsed = Units(ids, lasting, self.frame_rate), time.perf_counter() - started
            pushed, lasting = pushed[:, len(lasting) :], lasting[:0]
            return Chunk(audio, units, tokens, elapsed, prompt, owner, tuple(languages))

        with contextlib.closing(cast(Generator, steps)):
            for step in steps:
                tokens += 1
                if step.boundary or not languages:
                    languages.append(step.language)
                ids, lengths = self._units(step)
                with self.scheduler.core(due):
                    made = voice.push(ids, lengths, language=step.language, begins=begins)
                audio = np.concatenate([audio, made])
                begins = step.boundary
                owner = np.full(len(ids), -1 if step.boundary else len(languages) - 1)
                pushed = np.concatenate([pushed, np.stack([ids, owner])], axis=1)
                lasting = np.concatenate([lasting, voice.run_lengths])
                if len(audio) > (0 if samples else FIRST_SECONDS * self.sample_rate):
                    if samples + len(audio) >= limit:
                        yield chunk(_fade_out(audio[: limit - samples], self.sample_rate))
                        return
                    due = (due if samples else time.perf_counter()) + len(audio) / self.sample_rate
                    samples += len(audio)
                    yield chunk(audio)
                    audio = audio[:0]
        audio = np.concatenate([audio, voice.flush()])[: limit - samples]
        lasting = np.concatenate([lasting, voice.run_lengths])
        if len(audio):
            yield chunk(audio)

    def _units(self, step: Step) -> tuple[np.ndarray, np.ndarray | None]:
        """The units of a step, int64 [N], and their lengths in frames, int64 [N]; None where they are predicted."""
        pause = max(1, round(SENTENCE_PAUSE * self.frame_rate))
        if not self.collapsed:
            ids = np.full(pause, self.silence) if step.boundary else step.unit_ids
            return ids, np.ones_like(ids)
        if step.boundary:
            return np.array([self.silence]), np.array([pause])
        return step.unit_ids, None


def _fade_out(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    count = min(len(audio), sample_rate // 50)
    audio = audio.copy()
    audio[len(audio) - count :] *= np.linspace(1, 0, count, dtype=np.float32)
    return audio
