"""The default unit encoder: a small causal convolutional network on log-mels, trained to hear words, not voices.

50 units a second at 16 kHz. A unit is certain 120 ms after its own 20 ms: the look-ahead of the convolutions. It computes
in float64, which buys what units need to be data: the same speech gives the same units whatever the chunking, batching,
number of threads or device (rounding differences stay 10^-13 of the decision margins). Whole clips are computed in float32
first, four times faster, and again in float64 where a decision is close.
"""

from __future__ import annotations

import copy
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from pydantic import ConfigDict, Field
from safetensors.torch import save_file
from torch import Tensor, nn

from slm.audio import resample
from slm.errors import TresseError
from slm.schema import parse, read_json
from slm.units.sequence import Units
from slm.units.smoothing import Smoothing
from slm.units.vocabulary import MAX_CODEBOOK
from slm.weights import WEIGHTS, build

WINDOW, HOP, FFT = 400, 160, 512
FRAME = 2 * HOP
"""Samples a unit stands for: two mel frames."""


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


FLOOR = 1e-6
DOUBT = 1e-3
"""Between the two best units, the least lead in nats that float32 decides: a hundred times the error of its logits."""


class LogMel(nn.Module):
    """Causal log-mel energies: frame j sees the 25 ms that end with its own 10 ms."""

    def __init__(self, mels: int, sample_rate: int) -> None:
        super().__init__()
        with torch.device("cpu"):  # whatever the weights are made on: filters look at their values
            filters = torchaudio.functional.melscale_fbanks(
                FFT // 2 + 1, 40.0, sample_rate / 2 - 200, mels, sample_rate
            )
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)

    def power(self, samples_BS: Tensor) -> Tensor:
        """[B, WINDOW - HOP + 160 k] -> mel energies [B, k, mels]. The first 240 samples are history."""
        frames = samples_BS.unfold(1, WINDOW, HOP) * self.window
        return torch.fft.rfft(frames, FFT).abs().square() @ self.filters

    @staticmethod
    def log(power: Tensor) -> Tensor:
        """Energies -> log energies, centred and scaled to about unit variance for speech."""
        return (torch.log(power + FLOOR) + 5.0) / 4.0


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


class UnitNetwork(nn.Module):
    """Log-mels [B, 2T, mels] -> logits over the codebook [B, T - look-ahead, K], with explicit state."""

    def __init__(self, config: ConvEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.mel = LogMel(config.mels, config.sample_rate)
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

    def hidden(self, mels_BTM: Tensor, layer: int) -> Tensor:
        """Log-mels [B, 2T, mels] -> the output of block `layer` [B, T - its look-ahead, D]."""
        x = self._inward(mels_BTM)
        for block in self.blocks[: range(len(self.blocks))[layer] + 1]:
            x, _ = block(x, None)
        return x

    def _inward(self, mels_BTM: Tensor) -> Tensor:
        """Two mel frames become one frame of 20 ms: [B, 2T, mels] -> [B, T, D]."""
        return self.inward(mels_BTM.unflatten(1, (-1, 2)).flatten(2))


class ConvUnitEncoder:
    """The encoder as the rest of the system sees it: see `slm.units.UnitEncoder`."""

    def __init__(self, network: UnitNetwork) -> None:
        self.network = network.double().eval().requires_grad_(False)
        self.config = network.config
        self.sample_rate = network.config.sample_rate
        self.frame_rate = self.sample_rate / FRAME
        self.codebook_size = network.config.codebook_size
        self.device = torch.device("cpu")
        self._single: UnitNetwork | None = None

    @property
    def look_ahead_seconds(self) -> float:
        """Audio that must follow a unit's own 20 ms before the unit is certain, in s."""
        return self.network.look_ahead / self.frame_rate

    def to(self, device: torch.device | str) -> ConvUnitEncoder:
        """Move the network; the units stay the same."""
        self.device = torch.device(device)
        self.network.to(self.device)
        self._single = None
        return self

    def encode(self, waveform: np.ndarray, sample_rate: int) -> Units:
        """float32 [samples] at any rate -> units. An empty waveform gives no units."""
        return self.encode_batch([resample(waveform, sample_rate, self.sample_rate)])[0]

    def encode_batch(self, waveforms: list[np.ndarray]) -> list[Units]:
        """Clips at 16 kHz -> units, each as if encoded alone (shorter clips are followed by silence, as offline)."""
        if not waveforms:
            return []
        counts = [-(-len(waveform) // FRAME) for waveform in waveforms]
        longest = max(counts) * FRAME
        batch = np.stack([np.pad(waveform, (0, longest - len(waveform))) for waveform in waveforms])
        frames, certainty = self._fast(batch)
        doubtful = [row for row, count in enumerate(counts) if (certainty[row, :count] < DOUBT).any()]
        if doubtful:
            frames[doubtful] = EncoderStream(self, len(doubtful)).encode_all(batch[doubtful])
        return [Units.from_frames(row[:count], self.frame_rate) for row, count in zip(frames, counts, strict=True)]

    @torch.inference_mode()
    def _fast(self, batch_BS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`EncoderStream.encode_all` in float32: frames [B, T], and their lead over the next best [B, T]."""
        if self._single is None:
            self._single = copy.deepcopy(self.network).float()
        single, after = self._single, self.network.look_ahead * FRAME
        samples = np.pad(batch_BS.astype(np.float32), ((0, 0), (WINDOW - HOP, after)))
        mels = single.mel.log(single.mel.power(torch.from_numpy(samples).to(self.device)))
        units, leads = Smoothing(self.config.switch_cost).push(single(mels)[0])
        return units.cpu().numpy(), leads.cpu().numpy()

    @torch.inference_mode()
    def features(self, waveform: np.ndarray) -> np.ndarray:
        """float32 [samples] at 16 kHz -> what the units are decided on: float32 [T, width], a row a frame."""
        frames = -(-len(waveform) // FRAME)
        after = (frames + self.network.look_ahead) * FRAME - len(waveform)
        samples = torch.from_numpy(np.pad(waveform.astype(np.float64), (WINDOW - HOP, after)))[None].to(self.device)
        mels = self.network.mel.log(self.network.mel.power(samples))
        return self.network.norm(self.network.hidden(mels, -1))[0].float().cpu().numpy()

    def stream(self) -> EncoderStream:
        """A fresh streaming state for samples at 16 kHz."""
        return EncoderStream(self)

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors: weights as float16 where that changes nothing, else as float32."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: _narrow(tensor.contiguous().cpu()) for name, tensor in self.network.state_dict().items()}
        save_file(state, str(folder / "model.safetensors"))
        (folder / "config.json").write_text(json.dumps({"type": "conv", **asdict(self.config)}, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> ConvUnitEncoder:
        """Read what `save` wrote. Raises TresseError where it is missing or damaged."""
        path = folder / "config.json"
        values = parse(dict[str, Any], read_json(path), path)
        config = parse(ConvEncoderConfig, {key: value for key, value in values.items() if key != "type"}, path)
        try:
            network = build(lambda: UnitNetwork(config), folder / WEIGHTS)
        except Exception as error:  # safetensors raises its own kinds
            raise TresseError(f"cannot read the unit encoder in {folder}: restore the bundle's files") from error
        assert isinstance(network, UnitNetwork)
        return cls(network)


def _narrow(tensor: Tensor) -> Tensor:
    return tensor.half() if torch.equal(tensor.half().to(tensor.dtype), tensor) else tensor.float()


class EncoderStream:
    """State of one encoding (or of a batch of equally long ones): samples not yet used, and the layers' tails."""

    def __init__(self, encoder: ConvUnitEncoder, batch: int = 1) -> None:
        self.encoder = encoder
        self._samples = torch.zeros(batch, WINDOW - HOP, dtype=torch.float64, device=encoder.device)
        self._state: list[Tensor] | None = None
        self._smoothing = Smoothing(encoder.config.switch_cost)
        self._received = 0

    @torch.inference_mode()
    def _advance(self, samples_BS: np.ndarray) -> np.ndarray:
        """[B, n] -> frames [B, k]."""
        new = torch.from_numpy(np.ascontiguousarray(samples_BS, dtype=np.float64)).to(self.encoder.device)
        self._samples = torch.cat([self._samples, new], dim=1)
        count = (self._samples.shape[1] - (WINDOW - HOP)) // FRAME
        if count == 0:
            return np.zeros((len(samples_BS), 0), np.int64)
        network = self.encoder.network
        used = self._samples[:, : WINDOW - HOP + count * FRAME]
        self._samples = self._samples[:, count * FRAME :]
        logits, self._state = network(network.mel.log(network.mel.power(used)), self._state)
        return self._smoothing.push(logits)[0].cpu().numpy()

    def push(self, samples: np.ndarray) -> np.ndarray:
        """float32 [n] -> frames int64 [k] that are now certain."""
        self._received += len(samples)
        return self._advance(samples[None])[0]

    def flush(self) -> np.ndarray:
        """The last frames int64 [k], as if silence followed."""
        padding = -self._received % FRAME + self.encoder.network.look_ahead * FRAME
        frames = self._advance(np.zeros((1, padding)))[0] if self._received else np.zeros(0, np.int64)
        self._received = 0
        return frames

    def encode_all(self, batch_BS: np.ndarray) -> np.ndarray:
        """Whole clips of a multiple of 320 samples [B, S] -> frames [B, S / 320]."""
        if batch_BS.shape[1] == 0:
            return np.zeros((len(batch_BS), 0), np.int64)
        silence = np.zeros((len(batch_BS), self.encoder.network.look_ahead * FRAME))
        return self._advance(np.concatenate([batch_BS, silence], axis=1))
