"""Turns kept on disk, only where the user named a folder: one sub-folder a turn, which appears complete or not at all.

Which of them are whose is known to the sessions alone (`demo.sessions`), and not written down.

DIR/20261121-142530-fr-1a2b3c/  prompt.wav  reply-1-fr.wav  turn.json
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from demo.archive import describe_reply
from demo.conversation import Turn
from slm.audio import write_wav
from slm.errors import TresseError, writing

MOST = 200
"""Turns that a session can list and fetch: its latest."""
FILE = re.compile(r"(prompt|reply-\d+-[A-Za-z0-9_-]+)\.wav")


def open_folder(folder: Path) -> Path:
    """Make the folder where it is missing. Raises TresseError where it cannot be written."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise TresseError(f"cannot write to {folder}: choose another folder for the recordings")
    return folder


def save(folder: Path, turn: Turn, conversation: str, number: int, bundle: dict[str, Any]) -> Path:
    """Keep one turn; conversation, number: where it belongs; bundle: its bundle.json. Returns the new sub-folder.

    Raises TresseError where it cannot be written.
    """
    spoken = "-".join(turn.replies[0].languages) if turn.replies else turn.prompt.language
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{spoken}-{secrets.token_hex(3)}"
    temporary = folder / f".{name}.tmp"
    files = [f"reply-{part}-{'-'.join(reply.languages)}.wav" for part, reply in enumerate(turn.replies, 1)]
    description = {
        "conversation": conversation,
        "turn": number + 1,
        "settings": asdict(turn.settings),
        "prompt": {
            "file": "prompt.wav",
            "language": turn.prompt.language,
            "in_domain": turn.prompt.in_domain,
            "seconds": round(turn.prompt.seconds, 3),
            "transcript": turn.transcript,
        },
        "replies": [{"file": file, **describe_reply(reply)} for file, reply in zip(files, turn.replies, strict=True)],
        "bundle": {key: bundle[key] for key in ("format", "name", "provenance") if key in bundle},
    }
    try:
        with writing(folder / name):
            temporary.mkdir(parents=True)
            _write(temporary, turn, files, description)
            os.replace(temporary, folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder / name


def _write(folder: Path, turn: Turn, files: list[str], description: dict[str, Any]) -> None:
    write_wav(folder / "prompt.wav", turn.waveform, turn.rate)
    for file, reply in zip(files, turn.replies, strict=True):
        write_wav(folder / file, reply.waveform, reply.sample_rate)
    text = json.dumps(description, ensure_ascii=False, default=str)
    (folder / "turn.json").write_text(text + "\n", encoding="utf-8")


def listing(folder: Path, kept: Iterable[str], language: str | None = None) -> list[dict[str, Any]]:
    """The turns in the sub-folders `kept`, the last of them first; language: those in which somebody spoke it. Damaged
    ones are left out."""
    turns: list[dict[str, Any]] = []
    for name in reversed(list(kept)):
        try:
            turn = json.loads((folder / name / "turn.json").read_text(encoding="utf-8"))
            prompt, replies = turn["prompt"], turn["replies"]
            spoken = {prompt["language"], *(code for reply in replies for code in reply["languages"])}
            if language and language not in spoken:
                continue
            parts = [{"file": prompt["file"], "languages": [prompt["language"]], **_shown(prompt)}]
            parts += [{"file": reply["file"], "languages": reply["languages"], **_shown(reply)} for reply in replies]
            turns.append({"name": name, "conversation": turn["conversation"], "turn": turn["turn"], "parts": parts})
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return turns


def _shown(part: dict[str, Any]) -> dict[str, Any]:
    return {"seconds": part["seconds"], "text": part.get("transcript", "")}


def file_of(folder: Path, kept: Iterable[str], name: str, file: str) -> Path:
    """The path of one recording in the sub-folders `kept`. Raises TresseError where there is no such file in them."""
    path = folder / name / file
    if name not in kept or not FILE.fullmatch(file) or not path.is_file():
        raise TresseError("there is no such recording: reload the page")
    return path
