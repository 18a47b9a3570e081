"""The waiting line: so many replies are made at once; who comes later waits in the order of arrival, and is told where."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from slm.errors import TresseError

CHECK = 0.1
"""s between two looks at whether somebody still wants to wait."""


class Left(Exception):
    """Who waited did not want to any more."""


class Line:
    """`places` at once, `longest` waiting."""

    def __init__(self, places: int, longest: int = 64) -> None:
        self.places, self.longest = places, longest
        self._free = places
        self._waiting: list[object] = []
        self._changed = threading.Condition()

    @property
    def busy(self) -> int:
        """Places in use."""
        return self.places - self._free

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @contextlib.contextmanager
    def wait(self, stop: threading.Event, tell: Callable[[int], None] = lambda position: None) -> Iterator[None]:
        """Hold a place. tell: called with the position, 1 is next, as often as it changes.

        Raises Left where `stop` is set meanwhile, and TresseError where the line is too long.
        """
        ticket = object()
        with self._changed:
            if len(self._waiting) >= self.longest:
                raise TresseError(f"{self.longest} people are waiting already: please try again in a minute")
            self._waiting.append(ticket)
            told = 0
            try:
                while self._free == 0 or self._waiting[0] is not ticket:
                    position = self._waiting.index(ticket) + 1
                    if position != told:
                        tell(position)
                        told = position
                    if stop.is_set():
                        raise Left
                    self._changed.wait(CHECK)
                self._free -= 1
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify_all()
