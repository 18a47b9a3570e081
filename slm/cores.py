"""Whose turn it is where more replies are made at once than there are cores."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Cores:
    """`count` pieces of work at a time. Of those that wait, the one that is due first goes first: the reply that would
    be the first to run out of sound."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: list[tuple[float, int]] = []
        self._changed = threading.Condition()
        self._number = itertools.count()

    @contextmanager
    def one(self, due: float) -> Iterator[None]:
        """Hold a core; due: time.perf_counter() until when the work should be done."""
        with self._changed:
            ticket = (due, next(self._number))
            heapq.heappush(self._waiting, ticket)
            self._changed.wait_for(lambda: self._free > 0 and self._waiting[0] == ticket)
            heapq.heappop(self._waiting)
            self._free -= 1
            self._changed.notify_all()  # there may be a core for the next one as well
        try:
            yield
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify_all()
