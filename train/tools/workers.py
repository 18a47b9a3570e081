"""Worker processes that go when they are not needed any more: on Ctrl+C at once, and when their parent was killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from types import FrameType


class _Deaf(SpawnProcess):
    """A process that Ctrl+C does not reach, from its first moment: the parent decides."""

    def start(self) -> None:
        """Start it with SIGINT blocked, which a new process inherits; a KeyboardInterrupt waits until it has started."""
        resource_tracker.ensure_running()  # whose own start unblocks SIGINT
        with _after_the_block():
            before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            try:
                super().start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _after_the_block() -> Iterator[None]:
    """Ctrl+C takes effect behind the block. A blocked signal is not enough: another thread would take it for this one."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    came: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        before(signal.SIGINT, came[0])


class _Context(SpawnContext):
    Process = _Deaf  # type: ignore[assignment]


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of single-threaded processes. An error or Ctrl+C in the block kills them and drops what they were doing."""
    # a fork would copy torch's thread pools without their threads
    pool = ProcessPoolExecutor(workers, mp_context=_Context(), initializer=_begin)
    try:
        yield pool
    except BaseException:
        children = multiprocessing.active_children()
        for child in children:  # one that still starts would print that its queues are gone
            with suppress(ProcessLookupError):
                if child.pid is not None:
                    os.kill(child.pid, signal.SIGSTOP)
        pool.shutdown(wait=False, cancel_futures=True)
        time.sleep(0.3)  # until the pool's own thread has dropped what was cancelled: it may not fail it any more
        for child in children:
            child.kill()
        raise
    pool.shutdown()


def _begin() -> None:
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
