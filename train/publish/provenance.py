"""Where a bundle comes from: the commit of the code, the model it began as, and how long each stage took."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from slm.model import unit_model
from slm.schema import read_info


def commit() -> str | None:
    """The commit of the code, or None outside a checkout."""
    try:
        folder = Path(__file__).parent
        return subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def stage_seconds(out: Path) -> dict[str, float]:
    """s of work on each stage of a run that is done, in the order in which they ended."""
    markers = sorted((out / "done").glob("*.json"), key=lambda path: path.stat().st_mtime)
    return {path.stem: json.loads(path.read_text(encoding="utf-8"))["seconds"] for path in markers}


def began_as(source: str | None) -> dict[str, Any]:
    """What the language model was before this training: a bundle and its provenance, or a text LM; {} for nothing."""
    if source is None:
        return {}
    folder = unit_model(source)
    if folder is None or not (folder.parent / "bundle.json").exists():
        return {"model": Path(source).name if Path(source).exists() else source}
    info = read_info(folder.parent)
    return {"bundle": info.get("name"), **info.get("provenance", {})}
