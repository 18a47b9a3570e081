"""The default unit encoder: a small causal convolutional network on log-mels, trained to hear words, not voices.

50 units a second at 16 kHz. A unit is certain once the look-ahead of the convolutions is there. `slm.units.causal` runs it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
import torchaudio
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from slm.units.causal import CausalUnitEncoder, LogMel, UnitNetwork
from slm.units.vocabulary import MAX_CODEBOOK


@dataclass(frozen=True)
class ConvEncoderConfig:
    """Shape of the network. dilations, look_ahead: one entry a layer, look_ahead in frames of 20 ms. switch_cost: of a
    change of unit, in nats (`slm.units.smoothing`)."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    codebook_size: Annotated[int, Field(strict=True, ge=2, le=MAX_CODEBOOK)] = 100
    sample_rate: Annotated[int, Field(strict=True, ge=4000, le=96_000)] = 16000
    mels: Annotated[int, Field(strict=True, ge=1, le=FFT // 2)] = 40
    width: Annotated[int, Field(strict=True, ge=1, le=8192)] = 160
    expansion: Annotated[int, Field(strict=True, ge=1, le=64)] = 3
    kernel: Annotated[int, Field(strict=True, ge=1, le=127)] = 5
    dilations: Annotated[tuple[Annotated[int, Field(strict=True, ge=1, le=256)], ...], Field(max_length=128)] = (
        1, 1, 2, 2, 4, 4, 1,
    )  # fmt: skip
    look_ahead: tuple[Annotated[int, Field(strict=True, ge=0, le=10_000)], ...] = (1, 1, 1, 1, 2, 0, 0)
    switch_cost: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0

    def __post_init__(self) -> None:
        if not self.dilations or len(self.dilations) != len(self.look_ahead):
            raise ValueError("dilations and look_ahead need one entry a layer")
        for dilation, frames in zip(self.dilations, self.look_ahead, strict=True):
            if frames > (self.kernel - 1) * dilation:
                raise ValueError(f"a look-ahead of {frames} frames needs a wider kernel than {self.kernel}x{dilation}")


FFT, FLOOR = 512, 1e-6


def log_mel(mels: int, sample_rate: int) -> LogMel:
    """The front of the network: energies between 40 Hz and 200 Hz under half the rate."""
    with torch.device("cpu"):  # whatever the weights are made on: filters look at their values
        filters = torchaudio.functional.melscale_fbanks(FFT // 2 + 1, 40.0, sample_rate / 2 - 200, mels, sample_rate)
    return LogMel(filters, FFT, FLOOR, centre=-5.0, scale=4.0)


class Block(nn.Module):
    """Residual block: depthwise convolution over time, then a per-frame MLP. State: the last frames of its input."""

    def __init__(self, width: int, expansion: int, kernel: int, dilation: int, look_ahead: int) -> None:
        super().__init__()
        self.kernel, self.dilation, self.look_ahead = kernel, dilation, look_ahead
        self.context = (kernel - 1) * dilation
        self.taps = nn.Parameter(torch.randn(kernel, width) / math.sqrt(kernel))
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)

    def forward(self, x_BTD: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B, T, D] and the state -> the frames whose look-ahead is covered, and the new state."""
        if state is None:
            state = x_BTD.new_zeros(len(x_BTD), self.context - self.look_ahead, x_BTD.shape[2])
        x = torch.cat([state, x_BTD], dim=1)
        count = max(0, x.shape[1] - self.context)
        y = x.new_zeros(len(x), count, x.shape[2])
        for tap in range(self.kernel):
            y = y + x[:, tap * self.dilation : tap * self.dilation + count] * self.taps[tap]
        offset = self.context - self.look_ahead
        y = x[:, offset : offset + count] + self.down(F.gelu(self.up(self.norm(y))))
        return y, x[:, count:]


class ConvNetwork(UnitNetwork):
    """Log-mels [B, 2T, mels] -> logits over the codebook [B, T - look-ahead, K], with explicit state."""

    def __init__(self, config: ConvEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.mel = log_mel(config.mels, config.sample_rate)
        self.inward = nn.Linear(2 * config.mels, config.width)
        self.blocks = nn.ModuleList(
            Block(config.width, config.expansion, config.kernel, dilation, look)
            for dilation, look in zip(config.dilations, config.look_ahead, strict=True)
        )
        self.norm = nn.LayerNorm(config.width)
        self.outward = nn.Linear(config.width, config.codebook_size)
        self.look_ahead = sum(config.look_ahead)

    def forward(self, mels_BTM: Tensor, state: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Log-mels [B, 2T, mels] -> (logits [B, T', K], new state); T' = T - look-ahead at first, T afterwards."""
        x = self._inward(mels_BTM)
        new_state = []
        for index, block in enumerate(self.blocks):
            x, tail = block(x, state[index] if state else None)
            new_state.append(tail)
        return self.outward(self.norm(x)), new_state

    def features(self, mels_BTM: Tensor) -> Tensor:
        """Log-mels [B, 2T, mels] -> what units are decided on [B, T - look-ahead, D]."""
        return self.norm(self.hidden(mels_BTM, -1))

    def hidden(self, mels_BTM: Tensor, layer: int) -> Tensor:
        """Log-mels [B, 2T, mels] -> the output of block `layer` [B, T - its look-ahead, D]."""
        x = self._inward(mels_BTM)
        for block in self.blocks[: range(len(self.blocks))[layer] + 1]:
            x, _ = block(x, None)
        return x

    def _inward(self, mels_BTM: Tensor) -> Tensor:
        """Two mel frames become one frame of 20 ms: [B, 2T, mels] -> [B, T, D]."""
        return self.inward(mels_BTM.unflatten(1, (-1, 2)).flatten(2))


class ConvUnitEncoder(CausalUnitEncoder):
    """The encoder of a `ConvNetwork`."""

    kind, config_type, network_type = "conv", ConvEncoderConfig, ConvNetwork
