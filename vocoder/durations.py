"""How long each collapsed unit lasts, and what the units so far say about its prosody.

A causal stack over collapsed units (speaker and language added) that looks some 90 units, about 3 s, back. It serves
twice: a categorical distribution over run lengths, and features for the backbone, which on its own remembers half a
second only. 0.3M parameters; one step per unit instead of one per head frame, so it costs little.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vocoder.causal import CausalStack
from vocoder.config import VocoderConfig


class DurationPredictor(nn.Module):
    """Collapsed units -> features and logits over run lengths 1 .. max_run_length unit frames."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        dim = config.duration_dim
        self.units = nn.Embedding(config.codebook_size, dim)
        self.speakers = nn.Embedding(len(config.speakers), dim)
        self.languages = nn.Embedding(len(config.languages), dim)
        self.stack = CausalStack(dim, 2 * dim, config.kernel_size, config.duration_dilations)
        self.out = nn.Linear(dim, config.max_run_length)

    def forward(
        self, ids_BN: Tensor, speaker_B: Tensor, language_BN: Tensor, state: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Units [B, N], speaker [B], language of each unit [B, N] -> features [B, N, C], logits [B, N, R], state."""
        x = self.units(ids_BN) + self.speakers(speaker_B)[:, None] + self.languages(language_BN)
        features, state = self.stack(x, state)
        return features, self.out(features), state

    def loss(self, logits_BNR: Tensor, run_lengths_BN: Tensor) -> Tensor:
        """Mean cross-entropy in nats a unit; run length 0 marks padding."""
        target = run_lengths_BN.clamp(max=logits_BNR.shape[-1]) - 1  # padding becomes -1
        return F.cross_entropy(logits_BNR.float().flatten(0, 1), target.flatten(), ignore_index=-1)


def run_lengths(logits_NR: Tensor, remainder: float) -> tuple[list[int], float]:
    """Deterministic run lengths [N] from logits: the mean of each distribution, rounded.

    Most runs last one or two frames, where rounding each alone (or taking medians) would change the tempo by a third.
    So what rounding takes from one unit it gives to the next: `remainder` (frames, |remainder| <= 0.5) is the carry.
    """
    lengths = torch.arange(1, logits_NR.shape[-1] + 1, dtype=logits_NR.dtype, device=logits_NR.device)
    chosen = []
    for mean in (logits_NR.softmax(dim=-1) @ lengths).tolist():
        wanted = mean + remainder
        length = max(1, math.floor(wanted + 0.5))
        remainder = wanted - length
        chosen.append(length)
    return chosen, remainder
