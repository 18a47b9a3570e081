"""Replies kept on disk, only where the user named a folder: one sub-folder a reply, which appears complete or not at all.

DIR/20261121-142530-fr-1a2b3c/  prompt.wav  reply.wav  reply.json
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from demo.turn import Reply
from slm.audio import write_wav
from slm.errors import TresseError


def open_folder(folder: Path) -> Path:
    """Make the folder where it is missing. Raises TresseError where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TresseError(f"cannot keep recordings in {folder} ({error.strerror}): choose another folder") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise TresseError(f"cannot write to {folder}: choose another folder for the recordings")
    return folder


def save(folder: Path, prompt: np.ndarray, prompt_rate: int, reply: Reply, bundle: dict[str, Any]) -> Path:
    """Keep one turn. prompt: float32 [samples] at prompt_rate Hz; bundle: its bundle.json. Returns the new sub-folder.

    Raises TresseError where it cannot be written.
    """
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{reply.settings.language}-{secrets.token_hex(3)}"
    temporary = folder / f".{name}.tmp"
    description = {
        **asdict(reply.settings),
        "prompt_language": reply.prompt_language,
        "prompt_seconds": round(len(prompt) / prompt_rate, 3),
        "seconds": round(reply.seconds, 3),
        "tokens": reply.tokens,
        "time_to_first_audio_ms": round(1000 * reply.first_audio, 1),
        "real_time_factor": round(reply.real_time_factor, 4),
        "stopped": reply.stopped,
        "bundle": bundle,
    }
    try:
        temporary.mkdir(parents=True)
        write_wav(temporary / "prompt.wav", prompt, prompt_rate)
        write_wav(temporary / "reply.wav", reply.waveform, reply.sample_rate)
        text = json.dumps(description, ensure_ascii=False, indent=2, default=str)
        (temporary / "reply.json").write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, folder / name)
    except OSError as error:
        raise TresseError(f"cannot keep the recording in {folder} ({error.strerror}): free some space there") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder / name
