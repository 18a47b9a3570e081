"""Worker processes that go when they are not needed any more: on Ctrl+C at once, and when their parent was killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of single-threaded processes. An error or Ctrl+C in the block kills them and drops what they were doing."""
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's thread pools without their threads
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        time.sleep(0.3)  # until the pool's own thread has dropped what was cancelled: it may not fail it any more
        for child in multiprocessing.active_children():
            child.kill()
        raise
    pool.shutdown()


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches the whole group: the parent decides
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
