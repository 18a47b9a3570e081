"""One turn of talking: a prompt and settings go in, sound comes out chunk by chunk, figures follow.

Knows nothing of the page. `Runs` tells a running turn, from another thread, that nobody listens any more.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
    from slm.bundle import Bundle

MAX_SEED = 2**31 - 1


@dataclass(frozen=True)
class Settings:
    """How to go on. max_seconds in s; speaker None: the bundle chooses."""

    language: str
    seed: int
    temperature: float = 0.8
    top_p: float = 0.95
    max_seconds: float = 12.0
    speaker: str | None = None


@dataclass(frozen=True)
class Reply:
    """A reply and its figures. waveform float32 [samples] at sample_rate Hz; first_audio, wall: s since the turn began;
    prompt_language: the language the prompt was heard in."""

    waveform: np.ndarray
    sample_rate: int
    settings: Settings
    first_audio: float
    wall: float
    tokens: int
    prompt_language: str
    stopped: bool

    @property
    def seconds(self) -> float:
        """Length in s."""
        return len(self.waveform) / self.sample_rate

    @property
    def real_time_factor(self) -> float:
        """s of work per s of speech."""
        return self.wall / self.seconds


def new_seed() -> int:
    """A seed nobody chose; short enough to be read out."""
    return secrets.randbelow(1_000_000)


class Runs:
    """The turns under way, by name. A name may be stopped before its turn has come: queued turns then end at once."""

    REMEMBERED = 1000

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stops: OrderedDict[str, threading.Event] = OrderedDict()

    def _event(self, run: str) -> threading.Event:
        with self._lock:
            event = self._stops.setdefault(run, threading.Event())
            while len(self._stops) > self.REMEMBERED:
                self._stops.popitem(last=False)
            return event

    @contextlib.contextmanager
    def begin(self, run: str) -> Iterator[threading.Event]:
        """While the turn lasts: an event that is set when it shall stop."""
        try:
            yield self._event(run)
        finally:
            with self._lock:
                self._stops.pop(run, None)

    def stop(self, run: str) -> None:
        """Ask the turn of this name to stop."""
        self._event(run).set()


class Turn:
    """Iterate for float32 [samples] chunks; `reply` (None where no sound was made) is there afterwards.

    Closing the iterator, or setting `stop`, ends the generation. Raises TresseError for prompts and settings that the
    bundle cannot use.
    """

    def __init__(
        self, bundle: Bundle, waveform: np.ndarray, sample_rate: int, settings: Settings, stop: threading.Event
    ) -> None:
        self.bundle = bundle
        self.waveform = waveform
        self.sample_rate = sample_rate
        self.settings = settings
        self.stop = stop
        self.reply: Reply | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        began = time.monotonic()
        parts: list[np.ndarray] = []
        first_audio, tokens, prompt_language = 0.0, 0, ""
        s = self.settings
        stream = self.bundle.continue_speech(
            self.waveform,
            self.sample_rate,
            to=s.language,
            seed=s.seed,
            temperature=s.temperature,
            top_p=s.top_p,
            max_seconds=s.max_seconds,
            speaker=s.speaker,
        )
        with contextlib.closing(cast(Generator, stream)):
            for chunk in stream:
                if self.stop.is_set():
                    break
                tokens, prompt_language = chunk.tokens, chunk.prompt_language
                if not len(chunk.audio):
                    continue
                if not parts:
                    first_audio = time.monotonic() - began
                parts.append(chunk.audio)
                yield chunk.audio
        wall = time.monotonic() - began
        if parts:
            self.reply = Reply(
                waveform=np.concatenate(parts),
                sample_rate=self.bundle.sample_rate,
                settings=s,
                first_audio=first_audio,
                wall=wall,
                tokens=tokens,
                prompt_language=prompt_language,
                stopped=self.stop.is_set(),
            )
