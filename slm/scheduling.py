"""Whose turn it is where more is to be done at once than there are cores, or seats."""

from __future__ import annotations

import bisect
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

POLL = 0.1
"""s between two calls of `waiting` for somebody who waits."""


class Scheduler:
    """`count` pieces of work at a time, each on a core. Of those that wait, the one that is due first goes first: the
    reply that would be the first to run out of sound. What is due at the same time goes in the order of arrival."""

    def __init__(self, count: int) -> None:
        self.busy = 0
        """Cores in use."""
        self._count = count
        self._waiting: list[tuple[float, int]] = []
        self._changed = threading.Condition()
        self._number = itertools.count()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def spare(self) -> Callable[[], None] | None:
        """Use a core that is free while nobody waits: what gives it back, once and from any thread. None where none is."""
        with self._changed:
            if self.busy == self._count or self._waiting:
                return None
            self.busy += 1
        return self._give_back

    def _give_back(self) -> None:
        with self._changed:
            self.busy -= 1
            self._changed.notify_all()

    @contextmanager
    def core(self, due: float, waiting: Callable[[int], None] | None = None) -> Iterator[None]:
        """Use a core; due: time.perf_counter() until when the work should be done.

        waiting: called with the position in the line, 1 is next, again and again while no core is free; what it raises
        ends the waiting.
        """
        with self._changed:
            ticket = (due, next(self._number))
            bisect.insort(self._waiting, ticket)
            try:
                while self.busy == self._count or self._waiting[0] != ticket:
                    if waiting is not None:
                        waiting(self._waiting.index(ticket) + 1)
                    self._changed.wait(None if waiting is None else POLL)
                self.busy += 1
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()  # there may be a core for the next one as well
        try:
            yield
        finally:
            self._give_back()
