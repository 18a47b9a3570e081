"""The waiting line: so many replies are made at once; who comes later waits in the order of arrival. And the commands of one
page, which are done one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from slm.errors import TresseError
from slm.scheduling import Scheduler

T = TypeVar("T")

ARRIVAL = 0.0
"""Everybody is due at the same time: who came first goes first."""


MAX_COMMANDS = 32
"""Commands of one page: the one that is being done, and those that wait for it."""
BUSY = "what you asked for before is still being done: wait a moment, then try again"


class Left(Exception):
    """Who waited did not want to any more."""


class WaitingLine:
    """`places` at once, `longest` waiting."""

    def __init__(self, places: int, longest: int = 64) -> None:
        self.longest = longest
        self.taken = 0
        """Places that were taken since the beginning."""
        self._scheduler = Scheduler(places)

    @property
    def busy(self) -> int:
        """Places in use."""
        return self._scheduler.busy

    @property
    def waiting(self) -> int:
        """How many wait."""
        return self._scheduler.waiting

    def spare(self) -> Callable[[], None] | None:
        """A place that nobody waits for: what gives it back, from any thread and once; None where there is none."""
        give_back = self._scheduler.spare()
        self.taken += give_back is not None
        return give_back

    @contextlib.contextmanager
    def wait(self, stop: threading.Event, report: Callable[[int], None] = lambda position: None) -> Iterator[None]:
        """Take a place. report: called with the position, 1 is next, as often as it changes.

        Raises Left where `stop` is set meanwhile, and TresseError where the line is too long.
        """
        reported = 0

        def waiting(position: int) -> None:
            nonlocal reported
            if position > self.longest:
                raise TresseError(f"{self.longest} people are waiting already: please try again in a minute")
            if position != reported:
                report(position)
                reported = position
            if stop.is_set():
                raise Left

        with self._scheduler.core(ARRIVAL, waiting):
            self.taken += 1
            yield


class Commands:
    """The commands of one page, one at a time, in the order in which they came."""

    def __init__(self) -> None:
        self._turn, self._count = asyncio.Lock(), 0

    async def run(self, command: Callable[..., T], *arguments: Any) -> T:
        """What it returns, called in a thread when all that came before are done; those that wait hold no thread.

        Raises TresseError where MAX_COMMANDS are here already, or as the command does.
        """
        if self._count >= MAX_COMMANDS:
            raise TresseError(BUSY)
        self._count += 1
        try:
            async with self._turn:
                return await asyncio.to_thread(command, *arguments)
        finally:
            self._count -= 1
