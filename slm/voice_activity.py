"""Where speech is: Silero's voice activity detector, which comes with faster-whisper and runs offline, and one rule that
makes stretches of speech of its probabilities.

The detector looks at a window of 32 ms at a time and keeps its state, so chunks of any size give the same decisions.
Prompts are cut into sentences at pauses, because the language model was trained with a tag before every sentence;
transcripts are made piece by piece; and hands-free, a pause ends a turn. Each has its `PauseSettings`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

import numpy as np

from slm.audio import ResampleStream

RATE = 16000
"""Hz."""
WINDOW = 512
"""Samples in one decision."""
CONTEXT = 64
"""Samples before a window that the detector sees as well."""
SHORT_PAUSE = 0.098
"""s of silence at which a stretch that gets too long may be cut."""


@dataclass(frozen=True)
class PauseSettings:
    """Where a stretch of speech begins and ends.

    speech, silence: probability from which on a window is speech, and below which it is none; resume: from which on
    silence is over; onset: windows of speech in a row that make a beginning; pause: s of silence, up to the beginning of
    the window that decides, that end a stretch; shortest: s, stretches up to which are dropped; pad: s that a stretch is
    longer at either end than what was found; longest: s of a stretch.
    """

    speech: float
    silence: float
    resume: float
    pause: float
    onset: int = 1
    shortest: float = 0.0
    pad: float = 0.0
    longest: float = math.inf


PROMPT_PAUSES = PauseSettings(speech=0.4, silence=0.25, resume=0.4, pause=0.35, shortest=0.12, pad=0.06)
"""Between the sentences of a prompt."""
TRANSCRIPT_PAUSES = PauseSettings(speech=0.4, silence=0.25, resume=0.4, pause=0.3, shortest=0.12, pad=0.08)
"""Between the pieces that a recogniser gets."""
TURN_PAUSES = PauseSettings(speech=0.5, silence=0.35, resume=0.35, pause=math.inf, onset=3)
"""Between the turns of somebody who talks hands-free; how long they last is judged each time (`slm.turn_ends`)."""


class Change(Enum):
    """What a window changed: a stretch of speech began or ended; within a turn, somebody pauses or goes on."""

    BEGAN = "began"
    PAUSED = "paused"
    RESUMED = "resumed"
    ENDED = "ended"


class PauseSegmenter:
    """Push the probability of speech of every window; `finish` for the stretches. `speaking`: within one now.

    The rule is Silero's (faster_whisper.vad.get_speech_timestamps), which wants the whole recording.
    """

    _start: int | None
    """The first sample of the stretch under way."""
    _quiet: int | None
    """Where the silence began in which the latest window lies."""
    _cut: int | None
    """Where the latest silence of `SHORT_PAUSE` began."""
    _resumed: int | None
    """Where speech went on after that."""

    def __init__(self, settings: PauseSettings) -> None:
        self.settings = settings
        self._stretches: list[tuple[int, int]] = []
        self._at = 0
        """The first sample of the window."""
        self._run = 0
        """Windows of speech in a row, before a stretch."""
        self._clear()

    @property
    def speaking(self) -> bool:
        """Whether the latest window belongs to a stretch of speech."""
        return self._start is not None

    @property
    def quiet(self) -> int:
        """Samples of silence within a stretch, up to the end of the latest window."""
        return 0 if self._quiet is None else self._at - self._quiet

    def push(self, probability: float) -> Change | None:
        """The next window."""
        at, self._at = self._at, self._at + WINDOW
        if self._start is None:
            return self._wait(at, probability)
        if probability >= self.settings.resume and self._quiet is not None:
            self._quiet = None
            if self._cut is not None and self._resumed is None:
                self._resumed = at
        if at - self._start > self._room and self._split(at):
            return Change.ENDED
        if probability < self.settings.silence:
            return self._fall_silent(at)
        return None

    def finish(self, samples: int) -> list[tuple[int, int]]:
        """(start, end) of every stretch in a recording of so many samples, in samples, padded."""
        if self._start is not None:
            self._add(self._start, samples)
        pad, edges = round(self.settings.pad * RATE), [list(stretch) for stretch in self._stretches]
        for before, after in itertools.pairwise(edges):
            share = min(pad, (after[0] - before[1]) // 2)
            before[1], after[0] = min(samples, before[1] + share), after[0] - share
        if edges:
            edges[0][0], edges[-1][1] = max(0, edges[0][0] - pad), min(samples, edges[-1][1] + pad)
        return [(start, end) for start, end in edges]

    def _clear(self) -> None:
        self._start = self._quiet = self._cut = self._resumed = None

    @property
    def _room(self) -> float:
        """Samples of a stretch before its padding."""
        return RATE * self.settings.longest - WINDOW - 2 * round(self.settings.pad * RATE)

    def _wait(self, at: int, probability: float) -> Change | None:
        self._run = self._run + 1 if probability >= self.settings.speech else 0
        if self._run < self.settings.onset:
            return None
        self._start, self._run = at - (self.settings.onset - 1) * WINDOW, 0
        return Change.BEGAN

    def _split(self, at: int) -> bool:
        """A stretch is too long: end it in its last short pause, or here. Whether nothing of it goes on."""
        assert self._start is not None
        start, cut, resumed = self._start, self._cut, self._resumed
        self._stretches.append((start, at if cut is None else cut))
        self._clear()
        self._start = resumed
        return resumed is None

    def _fall_silent(self, at: int) -> Change | None:
        assert self._start is not None
        if self._quiet is None:
            self._quiet = at
        if at - self._quiet > SHORT_PAUSE * RATE:
            self._cut, self._resumed = self._quiet, None
        if at - self._quiet < self.settings.pause * RATE:
            return None
        self._add(self._start, self._quiet)
        self._clear()
        return Change.ENDED

    def _add(self, start: int, end: int) -> None:
        if end - start > self.settings.shortest * RATE:
            self._stretches.append((start, end))


def segment(probabilities: Iterable[float], samples: int, settings: PauseSettings) -> list[tuple[int, int]]:
    """The windows of a recording of so many samples -> (start, end) of its stretches of speech in samples."""
    segmenter = PauseSegmenter(settings)
    for probability in probabilities:
        segmenter.push(probability)
    return segmenter.finish(samples)


class SpeechProbability:
    """Chunks of 16 kHz samples -> the probability of speech in every window that is complete.

    powers: the mean squares of the windows that the latest chunk completed, float32 [k].
    """

    def __init__(self) -> None:
        self._state = [np.zeros((1, 1, 128), np.float32) for _ in range(2)]
        self._before = np.zeros(CONTEXT, np.float32)
        self._rest = np.zeros(0, np.float32)
        self.powers = np.zeros(0, np.float32)

    def push(self, samples: np.ndarray) -> np.ndarray:
        """float32 [n] -> float32 [k]."""
        from faster_whisper.vad import get_vad_model

        self._rest = np.concatenate([self._rest, samples])
        count = len(self._rest) // WINDOW
        self.powers = np.zeros(0, np.float32)
        if not count:
            return np.zeros(0, np.float32)
        windows = self._rest[: count * WINDOW].reshape(count, WINDOW)
        self._rest = self._rest[count * WINDOW :]
        self.powers = (windows**2).mean(1)
        before = np.concatenate([self._before[None], windows[:-1, -CONTEXT:]])
        self._before = windows[-1, -CONTEXT:]
        inputs = {"input": np.concatenate([before, windows], 1), "h": self._state[0], "c": self._state[1]}
        out, *self._state = get_vad_model().session.run(None, inputs)
        return np.asarray(out).reshape(-1)

    def flush(self) -> np.ndarray:
        """The last window, filled up with silence: float32 [0 or 1]."""
        return self.push(np.zeros(-len(self._rest) % WINDOW, np.float32))


class WindowMeter(Protocol):
    """What else wants to know the windows of a recording."""

    def push_windows(self, windows: np.ndarray) -> None:
        """float32 [k, 2]: probability of speech and mean square of every further window."""


class SpeechStream:
    """Push float32 [n] at `sample_rate` Hz as they come, then `finish`. meter: is given every window as well."""

    def __init__(
        self, sample_rate: int, settings: PauseSettings = PROMPT_PAUSES, meter: WindowMeter | None = None
    ) -> None:
        self._resample = ResampleStream(sample_rate, RATE)
        self._probability = SpeechProbability()
        self._segmenter = PauseSegmenter(settings)
        self._meter = meter
        self._samples = 0

    def push(self, samples: np.ndarray) -> None:
        """More of the recording."""
        self._add(self._resample.push(samples))

    def finish(self) -> list[tuple[float, float]]:
        """(start, end) of every stretch of speech in s."""
        self._add(self._resample.flush())
        self._decide(self._probability.flush())
        return [(start / RATE, end / RATE) for start, end in self._segmenter.finish(self._samples)]

    def _add(self, samples: np.ndarray) -> None:
        self._samples += len(samples)
        self._decide(self._probability.push(samples))

    def _decide(self, probabilities: np.ndarray) -> None:
        if self._meter is not None:
            self._meter.push_windows(np.stack([probabilities, self._probability.powers], 1))
        for probability in probabilities.tolist():
            self._segmenter.push(probability)


def speech_segments(
    waveform: np.ndarray, sample_rate: int, meter: WindowMeter | None = None
) -> list[tuple[float, float]]:
    """All of a `SpeechStream` at once: float32 [samples] -> (start, end) in s."""
    stream = SpeechStream(sample_rate, meter=meter)
    stream.push(waveform)
    return stream.finish()


def speech_pieces(audio: np.ndarray, longest: float) -> list[tuple[int, int]]:
    """float32 [samples] at 16 kHz -> (start, end) in samples of the pieces for a recogniser, of `longest` s at most."""
    from faster_whisper.vad import get_vad_model

    probabilities = get_vad_model()(np.pad(audio, (0, WINDOW - len(audio) % WINDOW))).reshape(-1).tolist()
    pieces = segment(probabilities, len(audio), replace(TRANSCRIPT_PAUSES, longest=longest - 0.2))
    return [(start, min(end, start + int(longest * RATE))) for start, end in pieces]
