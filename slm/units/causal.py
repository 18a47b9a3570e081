"""Encoders that name frames as the sound arrives: what all causal networks of this room share.

A network turns log-mels into logits over the codebook, with explicit state and a fixed look-ahead; 50 units a second at
16 kHz. float64 decides, which buys what units need to be data: the same speech gives the same units whatever the chunking,
batching, number of threads or device (rounding differences stay 10^-13 of the decision margins). float32 computes first,
several times faster, and what it leaves open float64 computes again: a whole clip, or what a stream has heard since.
"""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from slm.audio import resample
from slm.errors import TresseError
from slm.schema import parse, read_json
from slm.units.sequence import Units
from slm.units.smoothing import Smoothing
from slm.weights import WEIGHTS, build, narrow

WINDOW, HOP = 400, 160
FRAME = 2 * HOP
"""Samples a unit stands for: two mel frames."""
DOUBT = 1e-3
"""Between the two best units, the least lead in nats that float32 decides: forty times the error of its logits or more."""
BACKLOG = 500
"""Frames that a stream's float64 is behind at most, so that a close decision never waits long."""


class LogMel(nn.Module):
    """Causal log-mel energies: frame j sees the 25 ms that end with its own 10 ms. filters: float32 [fft / 2 + 1, mels];
    floor: the least energy; centre, scale: what makes log energies of speech about zero mean and unit variance."""

    def __init__(self, filters: Tensor, fft: int, floor: float, centre: float, scale: float) -> None:
        super().__init__()
        self.fft, self.floor, self.centre, self.scale = fft, floor, centre, scale
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)

    def power(self, samples_BS: Tensor) -> Tensor:
        """[B, WINDOW - HOP + 160 k] -> mel energies [B, k, mels]. The first 240 samples are history."""
        frames = samples_BS.unfold(1, WINDOW, HOP) * self.window
        return torch.fft.rfft(frames, self.fft).abs().square() @ self.filters

    def log(self, power: Tensor) -> Tensor:
        """Energies -> log energies, centred and scaled."""
        return (torch.log(power + self.floor) - self.centre) / self.scale


class UnitNetwork(nn.Module, ABC):
    """A network that names frames. mel: its front; look_ahead: frames of 20 ms that must follow a frame, at most;
    outward: its last layer."""

    config: Any
    mel: LogMel
    outward: Any
    look_ahead: int

    def silence_after(self, frames: int) -> int:
        """Frames of silence that must follow a recording of so many, so that all of them are named."""
        return self.look_ahead

    @abstractmethod
    def forward(self, mels_BTM: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Log-mels [B, 2T, mels] -> (logits [B, T', K], new state): of the frames that are now certain."""

    def state_of_training(self, mels_BTM: Tensor, rng: np.random.Generator) -> Any:
        """The state before a segment of training, which may lie anywhere in a recording."""
        return None

    @abstractmethod
    def features(self, mels_BTM: Tensor) -> Tensor:
        """Log-mels [B, 2T, mels] -> what units are decided on [B, T', D]: what `outward` is given."""


class CausalUnitEncoder:
    """The encoder as the rest of the system sees it: see `slm.units.UnitEncoder`.

    kind: in config.json; config_type, network_type: of the network; stored: how its matrices are saved; patience: frames
    that a stream waits for before it computes: a large network has to be read from memory each time.
    """

    kind: ClassVar[str]
    config_type: ClassVar[type]
    network_type: ClassVar[Any]
    stored: ClassVar[torch.dtype] = torch.float16
    patience: ClassVar[int] = 1

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

    def to(self, device: torch.device | str) -> Self:
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
        frames, certainty = self._named(self.single(), batch)
        doubtful = [row for row, count in enumerate(counts) if (certainty[row, :count] < DOUBT).any()]
        if doubtful:
            frames[doubtful] = self._named(self.network, batch[doubtful])[0]
        return [Units.from_frames(row[:count], self.frame_rate) for row, count in zip(frames, counts, strict=True)]

    def encode_exactly(self, waveform: np.ndarray) -> Units:
        """float32 [samples] at 16 kHz -> units, in float64 alone: those of `encode`, later."""
        clip = np.pad(waveform, (0, -len(waveform) % FRAME))
        return Units.from_frames(self._named(self.network, clip[None])[0][0], self.frame_rate)

    def single(self) -> UnitNetwork:
        """The network in float32."""
        if self._single is None:
            self._single = copy.deepcopy(self.network).float()
        return self._single

    @torch.inference_mode()
    def _named(self, network: UnitNetwork, batch_BS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whole clips of a multiple of 320 samples [B, S] -> frames [B, S / 320], and their lead over the next best."""
        if batch_BS.shape[1] == 0:
            return np.zeros((len(batch_BS), 0), np.int64), np.zeros((len(batch_BS), 0))
        units, leads = Smoothing(self.config.switch_cost).push(self._logits(network, batch_BS))
        return units.cpu().numpy(), leads.cpu().numpy()

    def _logits(self, network: UnitNetwork, batch_BS: np.ndarray) -> Tensor:
        """Whole clips of a multiple of 320 samples [B, S], with silence behind them -> logits [B, S / 320, K]."""
        frames = batch_BS.shape[1] // FRAME
        return network(self._mels(network, batch_BS))[0][:, :frames]

    def _mels(self, network: UnitNetwork, batch_BS: np.ndarray) -> Tensor:
        """Clips of a multiple of 320 samples [B, S] -> their log-mels, with silence behind them."""
        after = network.silence_after(batch_BS.shape[1] // FRAME) * FRAME
        samples = torch.from_numpy(np.pad(batch_BS, ((0, 0), (WINDOW - HOP, after))))
        return network.mel.log(network.mel.power(samples.to(self.device, network.mel.filters.dtype)))

    @torch.inference_mode()
    def log_probabilities(self, waveform: np.ndarray) -> np.ndarray:
        """float32 [samples] at 16 kHz -> log probabilities of the units in every frame, in float32: [T, codebook size]."""
        frames = -(-len(waveform) // FRAME)
        if frames == 0:
            return np.zeros((0, self.codebook_size), np.float32)
        clip = np.pad(waveform, (0, frames * FRAME - len(waveform)))
        return self._logits(self.single(), clip[None])[0].log_softmax(-1).cpu().numpy()

    def smoothed(self, log_probabilities_TK: np.ndarray) -> np.ndarray:
        """Log probabilities of the units [T, K] -> the unit of every frame, int64 [T], in runs (`slm.units.smoothing`)."""
        logits = torch.from_numpy(log_probabilities_TK)[None]
        return Smoothing(self.config.switch_cost).push(logits)[0][0].numpy()

    @torch.inference_mode()
    def features(self, waveform: np.ndarray) -> np.ndarray:
        """float32 [samples] at 16 kHz -> what the units are decided on: float32 [T, width], a row a frame."""
        frames = -(-len(waveform) // FRAME)
        clip = np.pad(waveform, (0, frames * FRAME - len(waveform)))
        return self.network.features(self._mels(self.network, clip[None]))[0, :frames].float().cpu().numpy()

    def stream(self) -> EncoderStream:
        """A fresh streaming state for samples at 16 kHz."""
        return EncoderStream(self)

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors (see `slm.weights.narrow`)."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(narrow(self.network.state_dict(), self.stored), str(folder / WEIGHTS))
        (folder / "config.json").write_text(json.dumps({"type": self.kind, **asdict(self.config)}, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote. Raises TresseError where it is missing or damaged."""
        path = folder / "config.json"
        values = parse(dict[str, Any], read_json(path), path)
        config = parse(cls.config_type, {key: value for key, value in values.items() if key != "type"}, path)
        try:
            network = build(lambda: cls.network_type(config), folder / WEIGHTS)
        except Exception as error:  # safetensors raises its own kinds
            raise TresseError(f"cannot read the unit encoder in {folder}: restore the bundle's files") from error
        assert isinstance(network, UnitNetwork)
        return cls(network)


class EncoderStream:
    """State of one encoding: samples and mels not yet used, and what both precisions of the network remember."""

    def __init__(self, encoder: CausalUnitEncoder) -> None:
        self.encoder = encoder
        self._samples = torch.zeros(1, WINDOW - HOP, dtype=torch.float64, device=encoder.device)
        self._received = 0
        self._given = 0
        """Samples that have come, and frames that have left."""
        self._fast = _Naming(encoder.single(), encoder.config.switch_cost)
        self._exact = _Naming(encoder.network, encoder.config.switch_cost)
        self._backlog: list[Tensor] = []
        """Mels [1, 2 T, mels] that float64 has not seen yet."""

    @torch.inference_mode()
    def _advance(self, samples: np.ndarray, patience: int) -> np.ndarray:
        """[n] -> frames [k]. patience: frames for which the network waits."""
        new = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float64)).to(self.encoder.device)
        self._samples = torch.cat([self._samples, new[None]], dim=1)
        count = (self._samples.shape[1] - (WINDOW - HOP)) // FRAME
        if count < patience:
            return np.zeros(0, np.int64)
        network = self.encoder.network
        mels = network.mel.log(network.mel.power(self._samples[:, : WINDOW - HOP + count * FRAME]))
        self._samples = self._samples[:, count * FRAME :]
        self._backlog.append(mels)
        units, leads = self._fast.push(mels.float())
        if bool((leads < DOUBT).any()):
            exact, _ = self._exact.push(torch.cat(self._backlog, 1))
            self._backlog = []
            units = exact[:, exact.shape[1] - units.shape[1] :]
        while sum(part.shape[1] for part in self._backlog) > 2 * BACKLOG:
            self._exact.push(self._backlog.pop(0))
        self._given += units.shape[1]
        return units[0].cpu().numpy()

    def push(self, samples: np.ndarray) -> np.ndarray:
        """float32 [n] -> frames int64 [k] that are now certain."""
        self._received += len(samples)
        return self._advance(samples, self.encoder.patience)

    def flush(self) -> np.ndarray:
        """The last frames int64 [k], as if silence followed."""
        if not self._received:
            return np.zeros(0, np.int64)
        count = -(-self._received // FRAME)
        left, silence = count - self._given, self.encoder.network.silence_after(count)
        frames = self._advance(np.zeros((count + silence) * FRAME - self._received), 1)[:left]
        self._received = self._given = 0
        return frames


class _Naming:
    """A network with its state, and that of the smoothing behind it."""

    def __init__(self, network: UnitNetwork, switch_cost: float) -> None:
        self._network, self._state, self._smoothing = network, None, Smoothing(switch_cost)

    def push(self, mels_BTM: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mels [1, 2 T, mels] -> units int64 [1, k] and their leads [1, k]."""
        logits, self._state = self._network(mels_BTM, self._state)
        return self._smoothing.push(logits)
