"""Checkpoints that the processes of a training write together, each its own shards, while the training goes on.

A folder a step, `step-00000500/`: a safetensors file of each process (torch.distributed.checkpoint) and, written when all of
them are on the disk, `complete.json`: facts, and size and CRC-32 of each file. A folder without it is of a save that was cut
off. It is never read, and the next save removes it. Any number of processes reads what another number wrote. Nothing is
unpickled.

Sync points: a save waits for the one before, and until the shards are copied to main memory. Cost there: the bytes of a
process's shards, and as many again while they are written.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
import zlib
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter, async_save, load
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from slm.errors import MACHINE_READS, TresseError, cannot_read, cannot_write, complain
from train.tools.checkpoints import atomic_path, sync_folder

MARK = "complete.json"
"""Written last: a checkpoint that has it is whole."""
BLOCK = 1 << 24
"""Bytes read at a time for a checksum."""


@dataclass(frozen=True)
class ShardedCheckpoint:
    """One that is complete. facts: what was saved beside the tensors. files: name -> (bytes, CRC-32); None where the mark
    itself is damaged."""

    path: Path
    step: int
    facts: dict[str, Any]
    files: dict[str, list[int]] | None


class ShardedCheckpoints:
    """The sharded checkpoints in a folder that all processes of a run share: the newest two are kept.

    Every process makes one, and all call its methods in the same order. A single process without torch.distributed reads
    them too.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # of its own: saves talk in a thread, while the training does so in the main one
        self.group = distributed.new_group(backend="gloo") if distributed.is_initialized() else None
        self._in_flight: tuple[Path, Future[Any]] | None = None
        self._last: Path | None = None

    def newest(self) -> ShardedCheckpoint | None:
        """The newest complete checkpoint, or None where there is none yet.

        Where it is damaged it is the one before, and a line on standard error says so. Raises TresseError where neither is
        sound, or where one may not be read (no permission, a disk that fails).
        """
        complete: list[ShardedCheckpoint] = self._gather(_complete(self.folder))[0]
        for checkpoint in complete:
            if self._is_sound(checkpoint):
                if checkpoint is not complete[0] and self._rank() == 0:
                    complain(f"{complete[0].path} is damaged: going on from {checkpoint.path.name}")
                self._last = checkpoint.path
                return checkpoint
        if complete:
            raise TresseError(
                f"{complete[0].path} is damaged and there is none before it: delete {self.folder} to begin this training "
                "again"
            )
        return None

    def load(self, checkpoint: ShardedCheckpoint, tensors: dict[str, Any]) -> None:
        """Read tensors in place, by name; those that processes share out (DTensor) may be shared out otherwise than when
        they were saved. Raises TresseError where the checkpoint lacks some, or has them in another shape."""
        with _in_one_line(checkpoint.path, reads=True), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without torch.distributed one process is what is meant
            reader = HuggingFaceStorageReader(str(checkpoint.path))
            load(tensors, storage_reader=reader, process_group=self.group, no_dist=self.group is None)

    def save(self, step: int, tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint; returns when the tensors are copied and may change. Waits for the save before it.

        tensors: every process has all the names, and its shard where a tensor is shared out (DTensor). facts: for JSON; the
        first process's are kept. Raises TresseError where the save before failed.
        """
        self.wait()
        path = self.folder / f"step-{step:08d}"
        writer = _Writer(path, step, dict(facts), [path, *([] if self._last is None else [self._last])])
        stager = DefaultStager(StagingOptions(False, False, False, False))
        with _in_one_line(path):
            future = async_save(dict(tensors), storage_writer=writer, async_stager=stager, process_group=self.group)
        self._in_flight = path, future

    def wait(self) -> bool:
        """Until the save in flight is complete; whether there was one. Raises TresseError where it failed."""
        if self._in_flight is None:
            return False
        (path, future), self._in_flight = self._in_flight, None
        with _in_one_line(path):
            future.result()
        self._last = path
        return True

    def delete(self) -> None:
        """Remove them all. For one process alone."""
        for path in self.folder.glob("step-*"):
            _remove(path)
        with suppress(OSError):  # there may be none, or other files in it
            self.folder.rmdir()

    def _rank(self) -> int:
        return 0 if self.group is None else distributed.get_rank(self.group)

    def _gather(self, value: Any) -> list[Any]:
        """A value of each process."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * distributed.get_world_size(self.group)
        distributed.all_gather_object(values, value, group=self.group)
        return values

    def _is_sound(self, checkpoint: ShardedCheckpoint) -> bool:
        """Whether all files are as they were written. Each process reads some of them."""
        if checkpoint.files is None:
            return False
        count = 1 if self.group is None else distributed.get_world_size(self.group)
        mine = sorted(checkpoint.files)[self._rank() :: count]
        faults = [_fault(checkpoint.path / name, checkpoint.files[name]) for name in mine]
        every = [fault for some in self._gather(faults) for fault in some if fault is not None]
        for fault in every:
            if fault:
                raise TresseError(fault)
        return not every


class _Writer(HuggingFaceStorageWriter):
    """How a save is written: `prepare_global_plan` runs in one process before any file is begun, `write_data` in all, and
    `finish` in that one process again when all have written theirs."""

    def __init__(self, path: Path, step: int, facts: dict[str, Any], kept: Collection[Path]) -> None:
        """kept: the checkpoints to leave when this one is complete."""
        super().__init__(str(path), save_distributed=True)
        self.step, self.facts, self.kept = step, facts, kept
        self.per_thread_copy_ahead = 0  # all is on the CPU already: no stream of a GPU is needed

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        """Clear the folder of a save that was cut off there."""
        _clear(Path(self.path))
        return super().prepare_global_plan(plans)

    def write_data(self, plan: Any, planner: Any) -> Any:
        """Write this process's file; gives [name, bytes, CRC-32] of it to `finish`."""
        written = super().write_data(plan, planner).wait()
        names = sorted({result.storage_data.relative_path for result in written})
        checked: torch.futures.Future[Any] = torch.futures.Future()
        checked.set_result([[name, *_checksum(Path(self.path) / name)] for name in names])
        return checked

    def finish(self, metadata: Any, results: list[Any]) -> None:
        """Mark the checkpoint as complete, and then remove what it replaces."""
        path = Path(self.path)
        files = {name: [size, checksum] for written in results for name, size, checksum in written}
        sync_folder(path)
        sync_folder(path.parent)
        with atomic_path(path / MARK) as temporary, temporary.open("w", encoding="utf-8") as file:
            json.dump({"step": self.step, "files": files, "facts": self.facts}, file)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path)
        for other in path.parent.glob("step-*"):
            if other not in self.kept:
                _remove(other)


def _complete(folder: Path) -> list[ShardedCheckpoint]:
    """Those that are marked as complete, the newest first."""
    complete = []
    for mark in sorted(folder.glob(f"step-*/{MARK}"), reverse=True):
        try:
            read = json.loads(mark.read_bytes())
            checkpoint = ShardedCheckpoint(mark.parent, int(read["step"]), read["facts"], read["files"])
        except (ValueError, KeyError, TypeError):
            checkpoint = ShardedCheckpoint(mark.parent, 0, {}, None)
        except OSError as error:
            raise cannot_read(mark, error) from error
        complete.append(checkpoint)
    return complete


def _checksum(path: Path) -> tuple[int, int]:
    """(bytes, CRC-32) of a file."""
    size = checksum = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            size, checksum = size + len(block), zlib.crc32(block, checksum)
    return size, checksum


def _fault(path: Path, written: list[int]) -> str | None:
    """None for a file as it was written, an empty text for one that is damaged or missing, and a line to show for one that
    may not be read."""
    try:
        sound = path.stat().st_size == written[0] and list(_checksum(path)) == written
    except OSError as error:
        return str(cannot_read(path, error)) if error.errno in {errno.EACCES, errno.EPERM, *MACHINE_READS} else ""
    return None if sound else ""


def _clear(path: Path) -> None:
    """Empty a folder of files, the mark first: what is half removed must not look complete."""
    (path / MARK).unlink(missing_ok=True)
    for file in path.iterdir():
        file.unlink()


def _remove(path: Path) -> None:
    """Remove a checkpoint."""
    (path / MARK).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _in_one_line(path: Path, reads: bool = False) -> Iterator[None]:
    """Around torch.distributed.checkpoint, whose exception holds those of all processes. Raises TresseError for what the
    user can mend, and the first process's error for the rest."""
    try:
        yield
    except CheckpointException as failure:
        error = next(iter(failure.failures.values()))[0]
        if reads:
            raise TresseError(
                f"cannot read the checkpoint {path} ({error}): it is of another model, or delete it to go on from the one "
                "before"
            ) from failure
        raise (cannot_write(path, error) or error) from failure
