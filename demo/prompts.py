"""The prompts of a folder, where each continuation goes, and what tells a finished one from one that is out of date."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from slm.audio import SUFFIXES
from slm.errors import MachineError, cannot_read, writing

MANIFEST = "manifest.jsonl"
"""A row a continuation, beside them."""
PARTS = ("units", "slm", "vocoder", "asr")
"""What of a bundle a row depends on: its sound, and the transcript."""


def find_prompts(folder: Path, out: Path) -> tuple[list[Path], list[Path]]:
    """The audio files of a folder in order, and its other files. What lies in `out`, or is listed as a continuation in a
    manifest of the folder, is neither: an earlier run made it."""
    made = {path.resolve() for manifest in folder.rglob(MANIFEST) for path in (manifest, *_listed(manifest))}
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.resolve() not in made and out.resolve() not in path.resolve().parents
    ]
    prompts = [path for path in files if path.suffix.lower() in SUFFIXES]
    return prompts, [path for path in files if path.suffix.lower() not in SUFFIXES]


def _listed(manifest: Path) -> Iterable[Path]:
    return [manifest.parent / str(row["file"]) for row in read_rows(manifest) if "file" in row]


def read_rows(manifest: Path) -> list[dict[str, Any]]:
    """The rows of a manifest; what is no row, such as a line that an interrupted run was writing, is left out."""
    rows: list[dict[str, Any]] = []
    if manifest.exists():
        for line in manifest.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                rows.append(row)
    return rows


def append_row(manifest: Path, row: Mapping[str, Any]) -> None:
    """Add a row. What an interrupted run wrote of its last one is taken away first, and this one where it does not fit.

    Raises MachineError where it cannot be written.
    """
    try:
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # the name of a file that is not text
        line = json.dumps(row).encode() + b"\n"
    with writing(manifest), manifest.open("ab+", buffering=0) as rows:
        end = _end_of_rows(rows)
        rows.truncate(end)
        try:
            if rows.write(line) != len(line):  # the disk took a part of it
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            rows.truncate(end)
            raise


def _end_of_rows(file: IO[bytes]) -> int:
    """Where the last complete line ends."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        begin = max(0, end - 4096)
        file.seek(begin)
        complete = file.read(end - begin).rfind(b"\n") + 1
        if complete:
            return begin + complete
        end = begin
    return 0


def continuation_file(name: Path, language: str) -> Path:
    """Where the continuation of a prompt goes; name: the prompt, relative to its folder. No two share a file."""
    return name.with_name(f"{name.name}.{language}.wav")


def digest(*paths: Path) -> str:
    """A hash of the content of files, or of all files of folders with their names; what is not there counts as nothing."""
    content = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                name = file.relative_to(path).as_posix() if file != path else ""
                content.update(name.encode("utf-8", "surrogateescape") + b"\0")
                content.update(hashlib.sha256(file.read_bytes()).digest())
    return content.hexdigest()[:16]


def content_of(prompt: Path) -> str:
    """`digest` of a prompt; empty where it cannot be read. Raises MachineError where no file could be read."""
    try:
        return digest(prompt)
    except OSError as error:
        if isinstance(fault := cannot_read(prompt, error), MachineError):
            raise fault from error
        return ""


def finished(
    rows: Iterable[Mapping[str, Any]], key: Mapping[str, Any], wav: Path, file: str
) -> Mapping[str, Any] | None:
    """The row of a continuation that need not be made again: the latest of its file, of the same prompt, bundle and
    settings, whose sound is still there as it was written. None where there is none."""
    latest = next((row for row in reversed(list(rows)) if row.get("file") == file), None)
    if latest is None or any(latest.get(field) != value for field, value in key.items()):
        return None
    return latest if wav.is_file() and digest(wav) == latest.get("sound") else None
