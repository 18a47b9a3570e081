"""What units do not carry: how long each lasts, and the melody of the sentence.

Two causal stacks over collapsed units (speaker and language added). The first gives a categorical distribution over run
lengths; the second also hears the run lengths, given or predicted, and how long the sentence has lasted, and gives the
pitch: fundamental frequency and voicing of every head frame, and features for the backbone, which on its own remembers
half a second only. Both look some 90 units back, to the sentence's beginning at most: there they begin anew. So
declination and stress are modelled; what a sentence's later words decide (a question's rise) is not known yet when its
beginning is spoken. 0.6M parameters, most steps one per unit instead of one per head frame, so it costs little.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vocoder.causal import CausalStack
from vocoder.config import VocoderConfig

MIDDLE = 150.0
"""Hz: pitch is predicted in octaves from here."""
CLOCK, TENTHS = 0.1, 80
"""s that a step of the sentence's clock lasts; the clock stands still after TENTHS steps."""
HIDDEN = 64


@dataclass
class ProsodyState:
    """What was heard of a sentence: both stacks, and unit frames since its beginning."""

    durations: list[Tensor] | None = None
    melody: list[Tensor] | None = None
    elapsed: int = 0


class Following(nn.Module):
    """What the units behind each one add to its embedding, so that a sound is on its way to the next.

    Behind the end of a sentence stands the id `codebook_size`.
    """

    def __init__(self, codebook_size: int, ahead: int, dim: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(codebook_size + 1, dim) for _ in range(ahead))

    def start(self) -> None:
        """Set all embeddings to zero: to the units alone."""
        for table in self.tables:
            nn.init.zeros_(table.weight)  # type: ignore[arg-type]

    def forward(self, units: nn.Embedding, ids_BM: Tensor) -> Tensor:
        """The embedding of units, and units with those that follow the last of them, M = N + ahead -> what is known of
        the N units, [B, N, C]. Of padding (`codebook_size`) nothing is heard."""
        count = ids_BM.shape[1] - len(self.tables)
        x_BNC = units(ids_BM[:, :count].clamp(max=units.num_embeddings - 1))
        for far, table in enumerate(self.tables, 1):
            x_BNC = x_BNC + table(ids_BM[:, far : far + count])
        return x_BNC


class Prosody(nn.Module):
    """Collapsed units -> logits over run lengths 1 .. max_run_length unit frames; with run lengths, the pitch."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        dim = config.prosody_dim
        self.frame_rate = config.frame_rate
        self.units = nn.Embedding(config.codebook_size, dim)
        self.speakers = nn.Embedding(len(config.speakers), dim)
        self.languages = nn.Embedding(len(config.languages), dim)
        self.following = Following(config.codebook_size, config.units_ahead, dim)
        self.stack = CausalStack(dim, 2 * dim, config.kernel_size, config.prosody_dilations)
        self.out = nn.Linear(dim, config.max_run_length)
        self.lengths = nn.Embedding(config.max_run_length, dim)
        self.clock = nn.Embedding(TENTHS, dim)
        self.melody = CausalStack(dim, 2 * dim, config.kernel_size, config.prosody_dilations)
        self.tone = nn.Linear(dim, HIDDEN)
        self.place = nn.Linear(3, HIDDEN)
        self.pitch_out = nn.Linear(HIDDEN, 2)
        self.dropout = nn.Dropout(0.0)
        """Set by training."""

    def durations(
        self, ids_BM: Tensor, speaker_B: Tensor, language_BN: Tensor, state: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Units and the `units_ahead` that follow [B, M], speaker [B], language of each unit [B, N] -> features [B, N, C],
        logits [B, N, R], state."""
        x = self.following(self.units, ids_BM) + self.speakers(speaker_B)[:, None] + self.languages(language_BN)
        features, state = self.stack(self.dropout(x), state)
        return features, self.out(self.dropout(features)), state

    def features(
        self, heard_BNC: Tensor, run_lengths_BN: Tensor, elapsed: int = 0, state: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Features of `durations`, run lengths [B, N], unit frames since the sentence began -> [B, N, C], state."""
        since = elapsed + run_lengths_BN.cumsum(1) - run_lengths_BN
        tick = (since / (self.frame_rate * CLOCK)).long().clamp(max=TENTHS - 1)
        length = run_lengths_BN.clamp(1, self.lengths.num_embeddings) - 1
        return self.melody(self.dropout(heard_BNC + self.lengths(length) + self.clock(tick)), state)

    def pitch(self, melody_BNC: Tensor, unit_BT: Tensor, start_BT: Tensor, end_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Features of units, and of each head frame its unit, the head frames since the run's start and to its end.

        Returns octaves above MIDDLE and voicing logits, [B, T] each.
        """
        tone = self.tone(self.dropout(melody_BNC))
        tone = torch.gather(tone, 1, unit_BT[:, :, None].expand(-1, -1, HIDDEN))
        start, end = start_BT.to(tone.dtype), end_BT.to(tone.dtype)
        position = torch.stack([(start + 0.5) / (start + end + 1), start / 16, end / 16], dim=-1)
        octaves, voicing = self.pitch_out(F.gelu(tone + self.place(position.clamp(max=2.0)))).unbind(-1)
        return octaves.clamp(-2.0, 2.0), voicing


def followed(ids_BN: Tensor, run_lengths_BN: Tensor, codebook_size: int, ahead: int) -> Tensor:
    """Whole sentences, padded where run lengths are 0 -> the units with those that follow them, [B, N + ahead]."""
    ids = torch.where(run_lengths_BN > 0, ids_BN, codebook_size)
    return F.pad(ids, (0, ahead), value=codebook_size)


def duration_loss(logits_BNR: Tensor, run_lengths_BN: Tensor) -> Tensor:
    """Mean cross-entropy in nats a unit; run length 0 marks padding."""
    target = run_lengths_BN.clamp(max=logits_BNR.shape[-1]) - 1  # padding becomes -1
    return F.cross_entropy(logits_BNR.float().flatten(0, 1), target.flatten(), ignore_index=-1)


def pitch_loss(octaves_BT: Tensor, voicing_BT: Tensor, target_BT: Tensor, inside_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Mean error in octaves of voiced frames, and cross-entropy of voicing. target: Hz, 0 where unvoiced."""
    voiced = (target_BT > 0) & inside_BT
    wanted = torch.log2(target_BT.clamp(min=1.0) / MIDDLE)
    error = ((octaves_BT.float() - wanted).abs() * voiced).sum() / voiced.sum().clamp(min=1)
    entropy = F.binary_cross_entropy_with_logits(voicing_BT.float(), voiced.float(), reduction="none")
    return error, (entropy * inside_BT).sum() / inside_BT.sum().clamp(min=1)


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
