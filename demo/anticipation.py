"""Anticipated replies: computed while somebody pauses, spoken when the turn is over, withdrawn when it goes on.

What is anticipated lies here and nowhere else: until it is claimed, the session's story, settings and messages are as if it
were not. It is claimed only where story and settings are still those that it was computed for, so it is the reply that would
be computed then. It takes a place of the waiting line only where one is free, and gives it back as soon as anybody waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from demo.conversation import Reply, Settings, Speaking, SpokenPrompt

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from demo.waiting_line import WaitingLine
    from slm.bundle import Bundle
    from slm.continuation import Sentence
    from slm.speaking import Chunk

AHEAD = 1.0
"""s of sound that are computed before a reply is claimed, at most."""
POLL = 0.1
"""s between two looks at the waiting line."""

ReadPrompt = Callable[[tuple["Sentence", ...]], SpokenPrompt]
"""Called with the story so far. The same story gives the same prompt."""


@dataclass(frozen=True)
class Asked:
    """What a reply depends on: how the prompt is read, the story before it, and the settings."""

    read: ReadPrompt
    story: tuple[Sentence, ...]
    settings: Settings

    def understood_alike(self, other: Asked) -> bool:
        """Whether the prompt would be the same."""
        return self.read is other.read and _alike(self.story, other.story)


def _alike(story: Sequence[Sentence], other: Sequence[Sentence]) -> bool:
    """Whether two stories have the same languages, units and run lengths."""
    return len(story) == len(other) and all(
        mine.language == theirs.language
        and np.array_equal(mine.units.ids, theirs.units.ids)
        and np.array_equal(mine.units.run_lengths, theirs.units.run_lengths)
        for mine, theirs in zip(story, other, strict=True)
    )


class Anticipated:
    """What was said so far (`spoken`), and the first sounds of the reply to it. Iterate, once claimed, for the reply's
    chunks; `reply` is there afterwards, as in `Speaking`.

    replies: the settings of all replies, the first of which is computed. stop: set it to withdraw the reply, or to end it.
    """

    def __init__(self, bundle: Bundle, line: WaitingLine, asked: Asked, spoken: SpokenPrompt) -> None:
        self.asked, self.spoken = asked, spoken
        self.replies = asked.settings.replies(bundle.languages, spoken[2].language)
        self.stop = threading.Event()
        self.reply: Reply | None = None
        self._line = line
        self._place = line.spare()
        self._claimed: float | None = None
        """time.perf_counter()."""
        self._first = 0.0
        """time.perf_counter() when the first chunk was there."""
        self._chunks: list[Chunk] = []
        self._over = self._place is None
        self._error: Exception | None = None
        self._changed = threading.Condition()
        if self._place is not None:
            speaking = Speaking(bundle, spoken[2], self.replies[0], self.stop)
            threading.Thread(target=self._work, args=(speaking,), daemon=True).start()

    def read(self, before: tuple[Sentence, ...]) -> SpokenPrompt:
        """What was said so far, where `before` is the story that it was asked with."""
        return self.spoken

    def claim(self, asked: Asked) -> bool:
        """Whether this is the reply to what is asked: then it is spoken, and `place` is the caller's to give back."""
        with self._changed:
            fits = self.asked.understood_alike(asked) and self.asked.settings == asked.settings
            if not fits or self._place is None or self._error is not None or self.stop.is_set():
                return False
            self._claimed = time.perf_counter()
            self._changed.notify_all()
            return True

    def withdraw(self) -> None:
        """It is not wanted: nothing remains of it."""
        with self._changed:
            self.stop.set()
            self._changed.notify_all()

    def give_back(self) -> None:
        """The place in the waiting line is free again."""
        with self._changed:
            give_back, self._place = self._place, None
        if give_back is not None:
            give_back()

    def __iter__(self) -> Iterator[Chunk]:
        number = 0
        while (chunk := self._chunk(number)) is not None:
            number += 1
            yield chunk
        if self._error is not None:
            raise self._error
        if self.reply is not None and self._claimed is not None:
            self.reply.first_audio = max(0.0, self._first - self._claimed)

    def _chunk(self, number: int) -> Chunk | None:
        """The chunk of this number, as soon as it is there; None behind the last."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or len(self._chunks) > number)
            return self._chunks[number] if len(self._chunks) > number else None

    def _work(self, speaking: Speaking) -> None:
        waited, seconds = 0.0, 0.0
        try:
            with closing(cast("Generator[Chunk]", iter(speaking))) as stream:
                for chunk in stream:
                    self._first = self._first or time.perf_counter()
                    seconds += len(chunk.audio) / speaking.bundle.sample_rate
                    with self._changed:
                        self._chunks.append(chunk)
                        self._changed.notify_all()
                    waited += self._wait(seconds)
                    if self._claimed is None and self.stop.is_set():
                        break
        except Exception as error:  # who claims the reply is told, as who computes it would be
            self._error = error
        with self._changed:
            if (reply := speaking.reply) is not None:
                reply.wall -= waited
            self.reply, self._over = reply, True
            self._changed.notify_all()
            while self._claimed is None and not self.stop.is_set():  # complete, and nobody has asked for it yet
                self._look()
        if self._claimed is None:
            self.give_back()

    def _wait(self, seconds: float) -> float:
        """Wait, with so many s of sound computed, until more is wanted; how many s that took."""
        began = time.perf_counter()
        with self._changed:
            if self._claimed is None and self._line.waiting:
                self.stop.set()
            while seconds >= AHEAD and self._claimed is None and not self.stop.is_set():
                self._look()
        return time.perf_counter() - began

    def _look(self) -> None:
        """Wait for a moment; whoever waits in the line comes first."""
        self._changed.wait(POLL)
        if self._claimed is None and self._line.waiting:
            self.stop.set()
