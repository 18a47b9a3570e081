"""What a server does beside talking: it forgets closed pages in time, gives memory back, and ends."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from demo.service import Service

TIDY_SECONDS = 5.0


def tidy(service: Service) -> None:
    """Until the server ends: forget closed pages, and give back the memory of replies once nobody talks."""
    before = service.waiting_line.taken, 0
    while not service.stopping.wait(TIDY_SECONDS):
        now = service.waiting_line.taken, len(service.sessions())
        if now != before and not service.waiting_line.busy:
            give_back()
            before = now


def give_back() -> None:
    """Memory that is free within this process, back to the system: glibc keeps what threads have freed, each in an arena of
    its own; elsewhere there is nothing to do."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def stop(service: Service) -> None:
    """The server ends: so do all replies, and the lines to the pages."""
    service.stopping.set()
    service.transcripts.stop()
    for session in service.sessions():
        session.hang_up()
