"""A unit encoder that begins where Whisper's does: its convolutions and first layers, causal, trained to name units.

Whisper's encoder (Radford et al. 2022, arXiv:2212.04356) has heard people of all kinds, and sees 30 s at once. Here a frame
attends to `history` frames before it and to a few after it, so that it can name units as the sound arrives: 50 a second at
16 kHz. `train.units.whisper` brings the weights that training begins with; `slm.units.causal` runs the encoder. Its
matrices are kept as int8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from slm.units.causal import WINDOW, CausalUnitEncoder, LogMel, UnitNetwork
from slm.units.vocabulary import MAX_CODEBOOK

POSITIONS = 1500
"""Positions of Whisper's 30 s; a longer recording begins again at the first."""
FLOOR = 1e-7
BLOCK = 250
"""Frames that are computed at once, so that memory does not grow with a recording."""


@dataclass(frozen=True)
class AttentionEncoderConfig:
    """Shape of the network. look_ahead: one entry a layer, in frames of 20 ms; the convolutions need one frame more.
    history: frames that a layer looks back. switch_cost: of a change of unit, in nats (`slm.units.smoothing`)."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    look_ahead: Annotated[tuple[Annotated[int, Field(strict=True, ge=0, le=10_000)], ...], Field(max_length=128)]
    codebook_size: Annotated[int, Field(strict=True, ge=2, le=MAX_CODEBOOK)] = 100
    sample_rate: Annotated[int, Field(strict=True, ge=16_000, le=16_000)] = 16_000
    mels: Annotated[int, Field(strict=True, ge=1, le=WINDOW // 2)] = 80
    width: Annotated[int, Field(strict=True, ge=2, le=8192)] = 512
    heads: Annotated[int, Field(strict=True, ge=1, le=256)] = 8
    history: Annotated[int, Field(strict=True, ge=1, le=10_000)] = 128
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    switch_cost: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0

    def __post_init__(self) -> None:
        if not self.look_ahead:
            raise ValueError("look_ahead needs one entry a layer")
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"a width of {self.width} cannot be shared by {self.heads} heads")


@dataclass(frozen=True)
class LayerState:
    """What a layer keeps. keys, values: [B, heads, <= history + look-ahead, D / heads]; waiting: frames that wait for those
    after them [B, <= look-ahead, D]; before: how many of the keys come before the first waiting frame."""

    keys: Tensor
    values: Tensor
    waiting: Tensor
    before: int


class Layer(nn.Module):
    """A layer of Whisper's encoder whose frames attend to `history` frames before and `look_ahead` frames after them."""

    def __init__(self, config: AttentionEncoderConfig, look_ahead: int) -> None:
        super().__init__()
        width = config.width
        self.heads, self.history, self.look_ahead = config.heads, config.history, look_ahead
        self.norm = nn.LayerNorm(width)
        self.attend = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.norm_up = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, state: LayerState | None) -> tuple[Tensor, LayerState]:
        """[B, T, D] and the state -> the frames whose look-ahead is covered, and the new state."""
        batch, _, width = x_BTD.shape
        if state is None:
            none = x_BTD.new_zeros(batch, self.heads, 0, width // self.heads)
            state = LayerState(none, none, x_BTD[:, :0], 0)
        x = torch.cat([state.waiting, x_BTD], 1)
        waited = state.waiting.shape[1]
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.attend(self.norm(x)).chunk(3, -1)
        )
        keys, values = (
            torch.cat([old, new[:, :, waited:]], 2) for old, new in ((state.keys, key), (state.values, value))
        )
        count = max(0, x.shape[1] - self.look_ahead)
        queries = torch.arange(count, device=x.device) + state.before
        distance = torch.arange(keys.shape[2], device=x.device)[None] - queries[:, None]
        near = (distance >= -self.history) & (distance <= self.look_ahead)
        heard = F.scaled_dot_product_attention(query[:, :, :count], keys, values, attn_mask=near)
        y = x[:, :count] + self.dropout(self.mix(heard.transpose(1, 2).flatten(2)))
        y = y + self.dropout(self.down(F.gelu(self.up(self.norm_up(y)))))
        past = max(0, state.before + count - self.history)
        return y, LayerState(keys[:, :, past:], values[:, :, past:], x[:, count:], state.before + count - past)


@dataclass(frozen=True)
class AttentionState:
    """mels: that the convolutions still need [B, n, mels]; position: of the next frame; layers: a state each."""

    mels: Tensor
    position: int
    layers: list[LayerState | None]


class AttentionNetwork(UnitNetwork):
    """Log-mels [B, 2T, mels] -> logits over the codebook [B, T - look-ahead, K], with explicit state."""

    def __init__(self, config: AttentionEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.mel = log_mel(config.mels, config.sample_rate)
        self.first = nn.Conv1d(config.mels, config.width, 3)
        self.second = nn.Conv1d(config.width, config.width, 3, stride=2)
        self.layers = nn.ModuleList(Layer(config, frames) for frames in config.look_ahead)
        self.norm = nn.LayerNorm(config.width)
        self.outward = nn.Linear(config.width, config.codebook_size)
        self.look_ahead = 1 + sum(config.look_ahead)
        with torch.device("cpu"):
            self.register_buffer("positions", positions(config.width), persistent=False)

    def forward(self, mels_BTM: Tensor, state: AttentionState | None = None) -> tuple[Tensor, AttentionState]:
        """Log-mels [B, 2T, mels] -> (logits [B, T', K], new state); T' = T - look-ahead at first, T afterwards."""
        logits = []
        for block in mels_BTM.split(2 * BLOCK, dim=1) if mels_BTM.shape[1] else (mels_BTM,):
            x, state = self._layers(block, state, len(self.layers))
            logits.append(self.outward(self.norm(x)))
        assert state is not None
        return torch.cat(logits, 1), state

    def hidden(self, mels_BTM: Tensor, layer: int) -> Tensor:
        """Log-mels [B, 2T, mels] -> the output of layer `layer` [B, T - its look-ahead, D]."""
        outputs, state = [], None
        for block in mels_BTM.split(2 * BLOCK, dim=1):
            x, state = self._layers(block, state, range(len(self.layers))[layer] + 1)
            outputs.append(x)
        return torch.cat(outputs, 1)

    def begin(self, mels_BTM: Tensor, position: int = 0) -> AttentionState:
        """The state before a recording: two mels of silence before the first, which stands at `position`."""
        silence = torch.zeros_like(mels_BTM[:, :1]).repeat(1, 2, 1)
        return AttentionState(self.mel.log(silence), position, [None] * len(self.layers))

    def state_of_training(self, mels_BTM: Tensor, rng: np.random.Generator) -> AttentionState:
        """A beginning at any position."""
        return self.begin(mels_BTM, int(rng.integers(POSITIONS)))

    def _layers(self, mels_BTM: Tensor, state: AttentionState | None, count: int) -> tuple[Tensor, AttentionState]:
        state = state or self.begin(mels_BTM)
        mels = torch.cat([state.mels, mels_BTM], 1)
        frames = max(0, (mels.shape[1] - 5) // 2 + 1)  # of two mels each, and the last needs three more
        if frames == 0:
            x = mels.new_zeros(len(mels), 0, self.config.width)
        else:
            x = F.gelu(self.second(F.gelu(self.first(mels[:, : 2 * frames + 3].transpose(1, 2))))).transpose(1, 2)
            numbers = torch.arange(state.position, state.position + frames, device=x.device) % POSITIONS
            x = x + self.positions[numbers]
        layers = list(state.layers)
        for index in range(count):
            x, layers[index] = self.layers[index](x, layers[index])
        return x, AttentionState(mels[:, 2 * frames :], state.position + frames, layers)


class AttentionUnitEncoder(CausalUnitEncoder):
    """The encoder of an `AttentionNetwork`."""

    kind, config_type, network_type = "attention", AttentionEncoderConfig, AttentionNetwork
    stored = torch.int8
    patience = 5


def log_mel(mels: int, sample_rate: int) -> LogMel:
    """Whisper's mel filters, and about its scale."""
    with torch.device("cpu"):
        filters = torchaudio.functional.melscale_fbanks(
            WINDOW // 2 + 1, 0.0, sample_rate / 2, mels, sample_rate, norm="slaney", mel_scale="slaney"
        )
    return LogMel(filters, WINDOW, FLOOR, centre=-4.0 * math.log(10), scale=4.0 * math.log(10))


def positions(width: int) -> Tensor:
    """Whisper's sinusoids: float32 [POSITIONS, width]."""
    rates = torch.exp(-math.log(10_000) / (width // 2 - 1) * torch.arange(width // 2).double())
    angles = torch.arange(POSITIONS).double()[:, None] * rates[None]
    return torch.cat([angles.sin(), angles.cos()], 1).float()
