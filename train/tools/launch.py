"""Data-parallel training on the cores of one machine: processes of one thread each, gradients exchanged by gloo.

On a few shared cores that is faster than one process of several threads, which wait for each other after every
operation; processes wait once a step. GPUs and several machines are for `accelerate launch`.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from slm.errors import TresseError, machine_fault


def under_launcher() -> bool:
    """Whether this process is one of several that somebody else started (`accelerate launch`)."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main() -> bool:
    """Whether this process is the first of those."""
    return int(os.environ.get("RANK", "0")) == 0


def local_rank() -> int:
    """The number of this process among those on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def machine() -> tuple[int, int]:
    """(number of this machine among those of the run, how many there are)."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return int(os.environ.get("RANK", "0")) // here, max(1, int(os.environ.get("WORLD_SIZE", "1")) // here)


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def leave_group() -> None:
    """End what connects this process with the others of its run: its threads must not meet the interpreter's end."""
    import torch.distributed as distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def on_processes(count: int, function: Callable[..., Any], *arguments: Any) -> None:
    """Call a module-level function in `count` new processes that accelerate sees as one run on the CPU.

    They end with this process, however it ends. Raises the TresseError of the first that raises one.
    """
    import torch.multiprocessing as multiprocessing

    errors = multiprocessing.get_context("spawn").SimpleQueue()
    port = free_port()
    try:
        multiprocessing.start_processes(
            _enter, (count, port, errors, function, arguments), nprocs=count, start_method="spawn"
        )
    except multiprocessing.ProcessExitedException:
        if errors.empty():
            raise
        raise TresseError(errors.get()) from None


def _enter(
    rank: int, count: int, port: int, errors: Any, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # it comes with Ctrl+C, and when the parent is gone
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(count),
        LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        ACCELERATE_USE_CPU="true",
    )
    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    try:
        function(*arguments)
    except Exception as error:
        fault = error if isinstance(error, TresseError) else machine_fault(error)
        if fault is None:
            raise
        errors.put(str(fault))
        raise SystemExit(2) from None
    leave_group()
