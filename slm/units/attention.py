"""A unit encoder that hears as Whisper does: its whole encoder, by blocks of a second, and a small network that names units.

Whisper's encoder (Radford et al. 2022, arXiv:2212.04356) has heard people of all kinds, and sees 30 s at once. Here it hears
a block of frames with some after it, and what it made of `history` frames before (blockwise processing with right context:
Shi et al. 2021, Emformer, arXiv:2010.10759), so that it can name units as the sound arrives: 50 a second. A pair of
GRUs names them, one that goes on through the recording and one that comes back from the end of each block's frames.
`train.units.whisper` brings the weights that training begins with; `slm.units.causal` runs the encoder. Its matrices are
kept in six bits a weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
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
PORTION = 250
"""Frames that the convolutions compute at once, so that memory does not grow with a recording."""


@dataclass(frozen=True)
class AttentionEncoderConfig:
    """Shape of the network. block: frames of 20 ms that are named together; ahead: frames after them that are heard with
    them; history: frames that a layer looks back, at most. inward, recurrent: widths of the network that names units.
    switch_cost: of a change of unit, in nats (`slm.units.smoothing`)."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    codebook_size: Annotated[int, Field(strict=True, ge=2, le=MAX_CODEBOOK)] = 100
    sample_rate: Annotated[int, Field(strict=True, ge=16_000, le=16_000)] = 16_000
    mels: Annotated[int, Field(strict=True, ge=1, le=WINDOW // 2)] = 80
    layers: Annotated[int, Field(strict=True, ge=1, le=128)] = 6
    width: Annotated[int, Field(strict=True, ge=2, le=8192)] = 512
    heads: Annotated[int, Field(strict=True, ge=1, le=256)] = 8
    block: Annotated[int, Field(strict=True, ge=1, le=POSITIONS)] = 48
    ahead: Annotated[int, Field(strict=True, ge=0, le=POSITIONS)] = 24
    history: Annotated[int, Field(strict=True, ge=1, le=10_000)] = 256
    inward: Annotated[int, Field(strict=True, ge=1, le=8192)] = 256
    recurrent: Annotated[int, Field(strict=True, ge=1, le=8192)] = 192
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    head_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    switch_cost: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"a width of {self.width} cannot be shared by {self.heads} heads")


class Layer(nn.Module):
    """A layer of Whisper's encoder, whose frames attend to all frames of their block, those after it, and those kept."""

    def __init__(self, config: AttentionEncoderConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.history = config.heads, config.history
        self.norm = nn.LayerNorm(width)
        self.attend = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.norm_up = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, own: int, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        """x: a block's `own` frames and those after it [B, T, D]; kept: keys and values of the frames before it
        [2, B, heads, <= history, D / heads] -> the layer's output [B, T, D], and what the next block needs."""
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.attend(self.norm(x_BTD)).chunk(3, -1)
        )
        both = torch.stack([key, value])
        if kept is not None:
            both = torch.cat([kept, both], 3)
        heard = F.scaled_dot_product_attention(query, both[0], both[1])
        x = x_BTD + self.dropout(self.mix(heard.transpose(1, 2).flatten(2)))
        x = x + self.dropout(self.down(F.gelu(self.up(self.norm_up(x)))))
        end = both.shape[3] - (x_BTD.shape[1] - own)
        return x, both[:, :, :, max(0, end - self.history) : end]


class Head(nn.Module):
    """Names units from the last layer. Its shape is that of `train.units.teacher.PhoneHead`."""

    def __init__(self, config: AttentionEncoderConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.inward = nn.Linear(config.width, config.inward)
        self.onward = nn.GRU(config.inward, config.recurrent, batch_first=True)
        self.back = nn.GRU(config.inward, config.recurrent, batch_first=True)
        self.outward = nn.Linear(2 * config.recurrent, config.codebook_size)
        self.dropout = nn.Dropout(config.head_dropout)

    def forward(self, x_BTD: Tensor, own: int, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """x: as a layer's; memory: of the GRU that goes on [1, B, recurrent] -> what units are decided on
        [B, own, 2 recurrent], and the memory behind the block."""
        x = self.dropout(F.gelu(self.inward(self.norm(x_BTD))))
        onward, memory = self.onward(x[:, :own], memory)
        back = self.back(x.flip(1))[0].flip(1)[:, :own]
        return self.dropout(torch.cat([onward, back], 2)), memory


@dataclass(frozen=True)
class AttentionState:
    """mels: that the convolutions still need [B, n, mels]; position: of the next frame; waiting: frames of blocks that are
    not complete [B, < block + ahead, D]; kept: of each layer; memory: of the head."""

    mels: Tensor
    position: int
    waiting: Tensor
    kept: tuple[Tensor | None, ...]
    memory: Tensor | None = None


class AttentionNetwork(UnitNetwork):
    """Log-mels [B, 2T, mels] -> logits over the codebook of all blocks that are complete, with explicit state."""

    def __init__(self, config: AttentionEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.mel = log_mel(config.mels, config.sample_rate)
        self.first = nn.Conv1d(config.mels, config.width, 3)
        self.second = nn.Conv1d(config.width, config.width, 3, stride=2)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = Head(config)
        self.look_ahead = (
            config.block + config.ahead
        )  # the last frame of a block needs `ahead` and the convolutions' one
        with torch.device("cpu"):
            self.register_buffer("positions", positions(config.width), persistent=False)

    @property
    def outward(self) -> nn.Linear:
        """What decides."""
        return self.head.outward

    def silence_after(self, frames: int) -> int:
        """Frames that fill the last block, those after it, and that of the convolutions."""
        return -frames % self.config.block + self.config.ahead + 1

    def forward(self, mels_BTM: Tensor, state: AttentionState | None = None) -> tuple[Tensor, AttentionState]:
        """Log-mels [B, 2T, mels] -> (logits [B, T', K], new state); T': frames of the blocks that are now complete."""
        x, state = self._blocks(mels_BTM, state)
        return self.outward(x), state

    def features(self, mels_BTM: Tensor) -> Tensor:
        """Log-mels [B, 2T, mels] -> what units are decided on [B, T', 2 recurrent]."""
        return self._blocks(mels_BTM, None)[0]

    def begin(self, mels_BTM: Tensor, position: int = 0) -> AttentionState:
        """The state before a recording: two mels of silence before the first, which stands at `position`."""
        silence = torch.zeros_like(mels_BTM[:, :1]).repeat(1, 2, 1)
        none = mels_BTM.new_zeros(len(mels_BTM), 0, self.config.width)
        return AttentionState(self.mel.log(silence), position, none, (None,) * len(self.layers))

    def state_of_training(self, mels_BTM: Tensor, rng: np.random.Generator) -> AttentionState:
        """A beginning at any position."""
        return self.begin(mels_BTM, int(rng.integers(POSITIONS)))

    def _blocks(self, mels_BTM: Tensor, state: AttentionState | None) -> tuple[Tensor, AttentionState]:
        """Log-mels -> what units are decided on, of the blocks that are now complete, and the new state."""
        state = state or self.begin(mels_BTM)
        own, needed = self.config.block, self.config.block + self.config.ahead
        named = [mels_BTM.new_zeros(len(mels_BTM), 0, 2 * self.config.recurrent)]
        for portion in mels_BTM.split(2 * PORTION, dim=1) if mels_BTM.shape[1] else (mels_BTM,):
            x, state = self._convolutions(portion, state)
            x, kept, memory = torch.cat([state.waiting, x], 1), list(state.kept), state.memory
            while x.shape[1] >= needed:
                y = x[:, :needed]
                for index, layer in enumerate(self.layers):
                    y, kept[index] = layer(y, own, kept[index])
                decided, memory = self.head(self.norm(y), own, memory)
                named.append(decided)
                x = x[:, own:]
            state = replace(state, waiting=x, kept=tuple(kept), memory=memory)
        return torch.cat(named, 1), state

    def _convolutions(self, mels_BTM: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState]:
        """Log-mels [B, 2T, mels] -> frames with their positions [B, T', D], and the state behind them."""
        mels = torch.cat([state.mels, mels_BTM], 1)
        frames = max(0, (mels.shape[1] - 5) // 2 + 1)  # of two mels each, and the last needs three more
        if frames == 0:
            return mels.new_zeros(len(mels), 0, self.config.width), replace(state, mels=mels)
        x = F.gelu(self.second(F.gelu(self.first(mels[:, : 2 * frames + 3].transpose(1, 2))))).transpose(1, 2)
        numbers = torch.arange(state.position, state.position + frames, device=x.device) % POSITIONS
        x = x + self.positions[numbers]
        return x, replace(state, mels=mels[:, 2 * frames :], position=state.position + frames)


class AttentionUnitEncoder(CausalUnitEncoder):
    """The encoder of an `AttentionNetwork`."""

    kind, config_type, network_type = "attention", AttentionEncoderConfig, AttentionNetwork
    stored = torch.uint8
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
