"""Who works on which file of a folder that several processes or machines share: a lease beside it, without a lock.

A lease is a file that only one can create. Its owner touches it again and again; it is lost where its process is no more,
or, on another machine, where it was not touched for `PATIENCE` s by the clock of who looks, since clocks of machines differ.
Then the next one takes it over. That two take the same file for theirs is unlikely, not impossible, and costs time alone:
what is written under a lease is a function of its input, and takes its name when it is whole.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from slm.errors import writing

PATIENCE = 150.0
"""s; above those for which a network file system shows old times (60 by default of NFS)."""
POLL = 0.2
"""s between two looks at what others have."""
SUFFIX = ".lease"


def _machine() -> str:
    """A name of this machine, since it was started."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text(encoding='ascii').strip() if boot.exists() else ''}"


class Leases:
    """The leases that this process has in a folder; given back where the block ends. patience: s."""

    def __init__(self, folder: Path, patience: float = PATIENCE) -> None:
        self.folder, self.patience = folder, patience
        self._owner = json.dumps({"machine": _machine(), "process": os.getpid(), "token": secrets.token_hex(8)})
        self._ours: set[Path] = set()
        self._seen: dict[Path, tuple[tuple[str, int], float]] = {}
        """Of leases of others: what was last seen of them, and since when."""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._touch, daemon=True)

    def __enter__(self) -> Leases:
        with writing(self.folder / SUFFIX):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        for lease in list(self._ours):
            self._remove(lease)

    def _touch(self) -> None:
        while not self._stopped.wait(self.patience / 10):
            for lease in list(self._ours):
                with suppress(OSError):  # taken over meanwhile, or a disk that fails: the work itself will say so
                    os.utime(lease)

    def _remove(self, lease: Path) -> None:
        self._ours.discard(lease)
        with suppress(OSError):
            if lease.read_text(encoding="utf-8") == self._owner:
                lease.unlink()

    def take(self, path: Path) -> bool:
        """Whether `path` is now ours to write. Raises MachineError where the folder cannot be written to."""
        lease = lease_of(path)
        if lease.exists() and not (self._lost(lease) and self._drop(lease)):
            return False
        with writing(lease):
            try:
                handle = os.open(lease, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                return False
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(self._owner)
            except OSError:
                lease.unlink()
                raise
        self._ours.add(lease)
        return True

    def give_back(self, path: Path) -> None:
        """Others may write `path`."""
        self._remove(lease_of(path))

    @contextmanager
    def alone(self, path: Path) -> Iterator[None]:
        """Wait until `path` is ours."""
        while not self.take(path):
            time.sleep(POLL)
        try:
            yield
        finally:
            self.give_back(path)

    def wait(self, paths: Iterable[Path], finished: Callable[[Path], bool]) -> None:
        """Wait until one of these is finished or can be taken."""
        paths = list(paths)
        while paths and not any(finished(path) or self._free(lease_of(path)) for path in paths):
            time.sleep(POLL)

    def tidy(self) -> None:
        """Remove what ended processes have left half written; of others that are at work, nothing."""
        others = [lease for lease in self.folder.glob(f".*{SUFFIX}") if lease not in self._ours]
        if all([self._lost(lease) and self._drop(lease) for lease in others]):
            for path in self.folder.glob(".*.tmp"):
                path.unlink(missing_ok=True)

    def _free(self, lease: Path) -> bool:
        return not lease.exists() or self._lost(lease)

    def _lost(self, lease: Path) -> bool:
        """Whether nobody works under a lease of another any more."""
        try:
            owner, touched = lease.read_text(encoding="utf-8"), lease.stat().st_mtime_ns
        except OSError:
            return False  # just given back
        now = time.monotonic()
        state, since = self._seen.get(lease, (None, now))
        if state != (owner, touched):
            self._seen[lease], since = ((owner, touched), now), now
        return now - since > self.patience or _ended(owner)

    def _drop(self, lease: Path) -> bool:
        """Remove a lost lease and what was half written under it; whether it was still that one."""
        (owner, _), _ = self._seen.pop(lease)
        aside = lease.with_name(f".{lease.name}.{secrets.token_hex(4)}.tmp")
        try:
            os.rename(lease, aside)  # by one of those that see it lost
            if aside.read_text(encoding="utf-8") != owner:  # another one has taken it over meanwhile
                os.rename(aside, lease)
                return False
            aside.unlink()
        except OSError:
            return False
        drop_half_written(lease.with_name(lease.name[1:].removesuffix(SUFFIX)))
        return True


def lease_of(path: Path) -> Path:
    """The lease of a file."""
    return path.with_name(f".{path.name}{SUFFIX}")


def drop_half_written(path: Path) -> None:
    """Remove what somebody who works no more has left half written of a file."""
    for temporary in path.parent.glob(f".{path.stem}.*.tmp"):
        temporary.unlink(missing_ok=True)


def _ended(owner: str) -> bool:
    """Whether the owner is a process of this machine that has ended."""
    try:
        known = json.loads(owner)
        if known["machine"] != _machine():
            return False
        os.kill(int(known["process"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return False
