"""Recordings that users bring: a folder of audio files with `NAME.txt` beside them, or with a `list.jsonl` in it, a row a
recording: {"audio", "text"?, "language"?, "speaker"?, "family"?}.

Without a speaker a file is its own; without a family (of synthesisers, or "people") a speaker is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm.audio import SUFFIXES
from slm.errors import TresseError
from train.stories.grammar import read_lines
from train.tools.texts import plain

LISTING = "list.jsonl"


@dataclass(frozen=True)
class Recording:
    """A recording, what is said in it (None: unknown), in which language, by whom, and the speaker's family."""

    path: Path
    text: str | None
    language: str | None
    speaker: str
    family: str


def read_recordings(folder: Path) -> list[Recording]:
    """The recordings of a folder, in order. Raises TresseError where there are none, or a row is wrong."""
    listing = folder / LISTING
    if listing.exists():
        recordings = [_listed(folder, number, row) for number, row in read_lines(listing)]
    else:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        recordings = [Recording(path, _beside(path), None, path.stem, path.stem) for path in paths]
    if not recordings:
        raise TresseError(f"there are no recordings in {folder}: give audio files, or a {LISTING}")
    return recordings


def _listed(folder: Path, number: int, row: Mapping[str, Any]) -> Recording:
    if not isinstance(row.get("audio"), str):
        raise TresseError(f"{folder / LISTING}, line {number}: add 'audio', the path of the recording")
    path = folder / row["audio"]
    speaker = str(row.get("speaker") or path.stem)
    text = row.get("text")
    text = plain(text) if isinstance(text, str) else text
    return Recording(path, text, row.get("language"), speaker, str(row.get("family") or speaker))


def _beside(path: Path) -> str | None:
    text = path.with_suffix(".txt")
    if not text.exists():
        return None
    try:
        return plain(text.read_text(encoding="utf-8-sig")).strip()
    except UnicodeDecodeError:
        raise TresseError(f"{text} is not UTF-8: save it in this encoding") from None
