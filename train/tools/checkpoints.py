"""Atomic files and checkpoints: what is on disk is either the old state or the new one, never half of it.

A training run's state is its weights, its optimiser and the number of steps done. Nothing else: every batch and every
random draw is a pure function of (seed, step), so that a run killed anywhere and started again repeats itself exactly.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import secrets
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from slm.errors import MACHINE_READS, TresseError, cannot_read, complain, writing


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary neighbour of `path`; it takes the name only if the block ends well.

    Raises MachineError where a disk is full, a folder read-only and the like, whatever the block wrote with.
    """
    temporary = path.with_name(
        f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    )  # machines may share the folder
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a training state (tensors, numbers, strings in dicts and lists) atomically, down to the disk.

    The state that was there stays beside it as `previous_generation(path)`, unless it is damaged.
    """
    previous = previous_generation(path)
    with atomic_path(path) as newest:
        with newest.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if not path.exists():
            previous.unlink(missing_ok=True)  # of a run whose checkpoint was deleted
        elif zipfile.is_zipfile(path):
            with atomic_path(previous) as older:
                try:
                    os.link(path, older)
                except OSError:  # a file system without hard links
                    shutil.copyfile(path, older)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Bring to the disk what files a folder has, where the system can."""
    with suppress(OSError):  # not every system opens folders
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def previous_generation(path: Path) -> Path:
    """Where the checkpoint before the one at `path` is."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read what `save_checkpoint` wrote, or None where there is none yet. Never unpickles code.

    Where the newest is damaged (a full disk, a power cut) the one before is read, and a line on standard error says so.
    Raises TresseError where neither can be read, or where a sound one may not be (no permission, a disk that fails).
    """
    if not path.exists():
        return None
    for candidate in (path, previous_generation(path)):
        state = _read(candidate)
        if state is not None:
            if candidate != path:
                complain(f"{path} is damaged: going on from {candidate.name}")
            return state
    raise TresseError(f"{path} is damaged and there is none before it: delete it to begin this training again")


def _read(path: Path) -> dict[str, Any] | None:
    """The state in a file, or None where the file is missing or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return None
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        if isinstance(error, OSError) and error.errno in {errno.EACCES, errno.EPERM, *MACHINE_READS}:
            raise cannot_read(path, error) from error
        return None
