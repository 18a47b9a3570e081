"""Atomic files and checkpoints: what is on disk is either the old state or the new one, never half of it.

A training run's state is its weights, its optimiser and the number of steps done. Nothing else: every batch and every
random draw is a pure function of (seed, step), so that a run killed anywhere and started again repeats itself exactly.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary neighbour of `path`; it takes the name only if the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a training state (tensors, numbers, strings in dicts and lists) atomically."""
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read what `save_checkpoint` wrote, or None where there is none yet. Never unpickles code."""
    if not path.exists():
        return None
    return torch.load(path, map_location="cpu", weights_only=True)


def linear_schedule(steps: int, warmup: int, floor: float = 0.0) -> Callable[[int], float]:
    """Linear warm-up, then linear decay to `floor`, as a factor of the peak learning rate, by step."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / max(1, warmup)
        return max(floor, 1.0 - (step - warmup) / max(1, steps - warmup) * (1.0 - floor))

    return factor
