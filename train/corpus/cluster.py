"""The shards of a corpus over a Ray cluster, on this machine or on many that share folders: each shard is a task.

Tasks and not Ray Data, which moves rows through operators: here a task gets the rows of a shard, writes a file and returns a
few numbers. A task whose worker or machine dies runs again elsewhere. This process reads the stories and has the leases: it
goes on with what is missing, alone or beside others, as without Ray.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from slm.errors import TresseError
from train.corpus.leases import drop_half_written, lease_of
from train.corpus.work import Counts, Shard, Work

LOCAL = "local"
"""The address of a cluster that is started on this machine, for this process."""
RETRIES = 3
"""Times that a shard is begun again after its worker died."""
STORE = 100 * 2**20
"""Bytes of memory for the rows of the shards that wait, on this machine; what is more goes to its disk."""
CARRIED = ("TRESSE_MODELS",)
"""Environment variables that mean the same to every worker."""

WriteShard = Callable[[Shard, Work], Counts]


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster. address: LOCAL, `auto` (the one that this machine belongs to) or host:port. gpus: of each worker, which
    may be a part of one."""

    address: str = LOCAL
    gpus: float = 0.0


def written_by(
    cluster: Cluster, shards: Iterator[Shard], work: Work, write: WriteShard, workers: int
) -> Iterator[tuple[Path, Counts]]:
    """Write shards by `write`, each in a worker of the cluster; what each holds, as they are finished.

    workers: processes of a local cluster; another one has as many as it has CPUs, or GPUs where they need some. Twice as
    many shards are handed out as it has workers, so that none waits and a cluster that can grow does.
    Raises TresseError where Ray is not installed or cannot be reached, a shard's workers died more than RETRIES times, or a
    worker does not see the folder; what `write` raises is raised here.
    """
    try:
        import ray
    except ImportError as error:
        raise TresseError("Ray is not installed: pip install 'tresse[ray]'") from error
    with connected(ray, cluster, workers):
        begin = ray.remote(num_cpus=1, num_gpus=cluster.gpus, max_retries=RETRIES)(_write)
        shared = ray.put((work, write, Path.cwd(), {name: os.environ[name] for name in CARRIED if name in os.environ}))
        waiting: dict[Any, Path] = {}
        while True:
            for shard in islice(shards, max(0, 2 * _slots(ray, cluster) - len(waiting))):
                waiting[begin.remote(shard, shared)] = shard.path
            if not waiting:
                return
            for task in ray.wait(list(waiting), timeout=10)[0]:
                yield (path := waiting.pop(task)), _result(ray, task, path)


def _write(shard: Shard, shared: tuple[Work, WriteShard, Path, dict[str, str]]) -> Counts:
    """What a worker does: the same as without Ray, from the same working folder, with one thread."""
    import torch

    work, write, folder, environment = shared
    torch.set_num_threads(1)
    os.environ.update(environment)
    try:
        os.chdir(folder)  # relative paths mean the same
    except OSError as error:
        raise _unseen(folder) from error
    if not lease_of(shard.path).exists():
        raise _unseen(shard.path.parent)
    drop_half_written(shard.path)  # by a worker that died
    return write(shard, work)


def _unseen(folder: Path) -> TresseError:
    return TresseError(f"the machine {socket.gethostname()} does not see {folder}: the machines must share it")


def _slots(ray: ModuleType, cluster: Cluster) -> int:
    """Workers that the cluster has room for now."""
    resources = ray.cluster_resources()
    slots = resources.get("CPU", 0.0)
    if cluster.gpus:
        gpus = resources.get("GPU", 0.0)
        if gpus < cluster.gpus:
            raise TresseError(f"Ray has {gpus:g} GPUs and a worker needs {cluster.gpus:g}: choose --device cpu")
        slots = min(slots, gpus / cluster.gpus)
    return max(1, int(slots))


def _result(ray: ModuleType, task: Any, path: Path) -> Counts:
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise TresseError(
            f"{path.name}: its worker died {RETRIES + 1} times (out of memory?): run it again with fewer workers"
        ) from error


@contextmanager
def connected(ray: ModuleType, cluster: Cluster, workers: int) -> Iterator[None]:
    """Start or join the cluster, and leave it behind the block; a local one ends there. Where this process has joined one
    before, that is taken, and stays."""
    if ray.is_initialized():
        yield
        return
    _reach(cluster.address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    options: dict[str, Any] = {"address": cluster.address}
    if cluster.address == LOCAL:
        options |= {"num_cpus": workers, "object_store_memory": STORE, "include_dashboard": False}
    try:
        with _own_signals():
            ray.init(**options, log_to_driver=False, logging_level="error")
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        mend = "run it again" if cluster.address == LOCAL else "check the address"
        raise TresseError(f"cannot use Ray at {cluster.address} ({reason}): {mend}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Raises TresseError where nobody answers at host:port: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise TresseError(f"cannot reach Ray at {address} ({error}): check the address") from error


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself as it starts: afterwards it is ours again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
