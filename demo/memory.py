"""Memory that is free within this process, given back to the system."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """glibc keeps what threads have freed, each in an arena of its own; elsewhere there is nothing to do."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
