"""Turns kept on disk, only where the user named a folder: one sub-folder a turn, which appears complete or not at all.

DIR/20261121-142530-fr-1a2b3c/  prompt.wav  reply-1-fr.wav  turn.json
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from demo.archive import describe_reply
from demo.conversation import Turn
from slm.audio import write_wav
from slm.errors import TresseError, writing

NAME = re.compile(r"\d{8}-\d{6}-[A-Za-z0-9_-]+-[0-9a-f]{6}")
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


def listing(folder: Path, language: str | None = None, limit: int = 200) -> list[dict[str, Any]]:
    """The latest turns kept, newest first; language: those in which somebody spoke it. Damaged ones are left out."""
    turns: list[dict[str, Any]] = []
    for path in sorted(folder.iterdir(), reverse=True):
        if not NAME.fullmatch(path.name):
            continue
        try:
            turn = json.loads((path / "turn.json").read_text(encoding="utf-8"))
            prompt, replies = turn["prompt"], turn["replies"]
            spoken = {prompt["language"], *(code for reply in replies for code in reply["languages"])}
            if language and language not in spoken:
                continue
            parts = [{"file": prompt["file"], "languages": [prompt["language"]], **_shown(prompt)}]
            parts += [{"file": reply["file"], "languages": reply["languages"], **_shown(reply)} for reply in replies]
            turns.append(
                {"name": path.name, "conversation": turn["conversation"], "turn": turn["turn"], "parts": parts}
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if len(turns) >= limit:
            break
    return turns


def _shown(part: dict[str, Any]) -> dict[str, Any]:
    return {"seconds": part["seconds"], "text": part.get("transcript", "")}


def file_of(folder: Path, name: str, file: str) -> Path:
    """The path of one recording. Raises TresseError where there is no such file."""
    path = folder / name / file
    if not NAME.fullmatch(name) or not FILE.fullmatch(file) or not path.is_file():
        raise TresseError("there is no such recording: reload the page")
    return path
