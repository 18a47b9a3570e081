"""Where a bundle comes from: the commit of the code, and how long each stage took."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path


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
