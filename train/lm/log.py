"""What a language model's training reports: losses by language, log.jsonl and the same for TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train.lm.packing import IGNORE, PackedBatch
from train.tools.progress import Log


class LossMeter:
    """Sums of loss and number of targets by language, kept on the device until somebody reads them."""

    def __init__(self, languages: tuple[str, ...], accelerator: Any) -> None:
        self.languages, self.accelerator = languages, accelerator
        self.sums = torch.zeros(2, len(languages), dtype=torch.float64, device=accelerator.device)

    def add(self, losses: Tensor, batch: PackedBatch) -> None:
        """losses: nats [B, L], of the batch's targets."""
        real = (batch.targets != IGNORE).flatten().to(losses.device, torch.float64, non_blocking=True)
        values = torch.stack([losses.detach().flatten().double(), real])
        self.sums.index_add_(1, batch.languages.flatten().to(losses.device, non_blocking=True), values)

    def read(self) -> dict[str, float]:
        """{"all": mean loss, LANG: ...} over all processes, and start again. Waits for the device."""
        total, count = self.accelerator.reduce(self.sums, reduction="sum").cpu()
        self.sums.zero_()
        each = {name: float(total[k] / count[k]) for k, name in enumerate(self.languages) if count[k]}
        return {"all": float(total.sum() / count.sum()), **each}


class RunLog(Log):
    """log.jsonl, and the same in tensorboard/."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(folder / "log.jsonl", step)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, entry: dict[str, Any]) -> None:
        """entry: {"step", name: number | text | nested mapping}."""
        super().write(entry)
        for name, value in _numbers(entry):
            if name != "step":
                self.board.add_scalar(name, value, entry["step"])
        self.board.flush()


def _numbers(entry: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in entry.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield prefix + name, value


def by_language(losses: dict[str, float]) -> str:
    """Mean losses for people: `3.1234 (en 3.1, fr 3.2)`."""
    each = ", ".join(f"{name} {value:.3f}" for name, value in losses.items() if name != "all")
    return f"{losses['all']:.4f} ({each})"
