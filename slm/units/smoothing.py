"""Units in runs: a change of unit has a price, paid where the logits are worth it, decided as they arrive.

Of all paths through the logits, where every change of unit costs `switch_cost`, the cheapest that ends at a frame names it
(the forward half of the Viterbi algorithm). No look-ahead is needed. Without a price it is the likeliest unit.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Smoothing:
    """State of a batch of streams. switch_cost: in nats."""

    def __init__(self, switch_cost: float) -> None:
        self.switch_cost = switch_cost
        self._costs: Tensor | None = None

    def push(self, logits_BTK: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, T, K] -> units int64 [B, T], and by how much each led over the next best [B, T]."""
        if self.switch_cost == 0:
            best = logits_BTK.topk(2, dim=-1)
            return logits_BTK.argmax(-1), best.values[..., 0] - best.values[..., 1]
        units, leads = [], []
        costs = self._costs
        for logits in logits_BTK.unbind(1):
            if costs is None:
                costs = -logits
            else:  # costs above the cheapest path's, so that they stay small
                costs = (costs - costs.amin(-1, keepdim=True)).clamp_(max=self.switch_cost) - logits
            best = costs.topk(2, dim=-1, largest=False)
            units.append(best.indices[..., 0])
            leads.append(best.values[..., 1] - best.values[..., 0])
        self._costs = costs
        if not units:
            return logits_BTK.new_zeros(logits_BTK.shape[:2], dtype=torch.int64), logits_BTK.new_zeros(
                logits_BTK.shape[:2]
            )
        return torch.stack(units, 1), torch.stack(leads, 1)
