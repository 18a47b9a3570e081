"""Units of a HuBERT or mHuBERT layer: k-means clusters of its hidden states (Hsu et al., "HuBERT", arXiv:2106.07447).

HuBERT attends to the whole utterance, before and after: it has no streaming form. A stream therefore keeps the samples and
encodes them at `flush`; the first unit leaves when the prompt has ended. What it gives is what `encode` gives. Zero-padded
batches would change a clip's features, so only clips of equal length share a batch. float64 decides, and float32 computes
first (see `slm.units.mimi`). Layers above the chosen one are dropped.

Measured on 62 s of synthetic speech in 20 clips, with random weights of the base model's size and 500 clusters of its ninth
layer: float32 left 2 of 3,098 frames open, so that 2 of the 20 clips were computed again. Its largest error was 1.7e-6 of a
clip's largest norm, and no unit was wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from slm.audio import resample
from slm.errors import TresseError
from slm.schema import HubertUnits, regular
from slm.units.hub import load_pretrained, locate, read_config, save_config
from slm.units.precision import Precisions, decided, nearest
from slm.units.sequence import Units
from slm.weights import check_finite

CENTROIDS = "centroids.safetensors"
BATCH = 16


class HubertFeatures:
    """The hidden states of one layer. source: folder or hub id; layer: 1 .. the model's number of layers."""

    def __init__(self, source: str, layer: int) -> None:
        from transformers import HubertModel

        model = load_pretrained(HubertModel, source)
        count = len(model.encoder.layers)
        if not 1 <= layer <= count:
            raise TresseError(f"{source} has no layer {layer}: choose 1 to {count}")
        if layer < count:
            model.encoder.layers = model.encoder.layers[:layer]
            if model.config.do_stable_layer_norm:
                model.encoder.layer_norm = nn.Identity()  # it belongs behind the last layer only
        self.model = model.double().eval().requires_grad_(False)
        self.source, self.layer = source, layer
        self.sample_rate, self.normalise = _front_end(source)
        self.frame_samples = math.prod(model.config.conv_stride)
        self.frame_rate = self.sample_rate / self.frame_samples
        self.receptive_field = 1
        for kernel, stride in reversed(list(zip(model.config.conv_kernel, model.config.conv_stride, strict=True))):
            self.receptive_field = (self.receptive_field - 1) * stride + kernel
        self.device = torch.device("cpu")
        self._model = Precisions(self.model)

    def to(self, device: torch.device | str) -> HubertFeatures:
        """Move the model."""
        self.device = torch.device(device)
        self.model.to(self.device)
        self._model = Precisions(self.model)
        return self

    @torch.inference_mode()
    def __call__(self, waveforms_BS: np.ndarray, precision: torch.dtype = torch.float64) -> Tensor:
        """Clips of one length [B, S] at `sample_rate` -> [B, ceil(S / frame_samples), D] in this precision; S at least 1.

        Silence follows where the last frame's receptive field reaches beyond the end.
        """
        x = torch.from_numpy(np.ascontiguousarray(waveforms_BS, dtype=np.float64)).to(self.device)
        if self.normalise:
            x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-7).sqrt()
        frames = -(-x.shape[1] // self.frame_samples)
        x = nn.functional.pad(x, (0, max(0, (frames - 1) * self.frame_samples + self.receptive_field - x.shape[1])))
        return self._model(precision)(x.to(precision)).last_hidden_state[:, :frames]


class HubertUnitEncoder:
    """See `slm.units.UnitEncoder`. centroids: [K, D] of the layer's hidden states."""

    def __init__(self, hidden: HubertFeatures, centroids_KD: Tensor, collapse: bool = True) -> None:
        width = hidden.model.config.hidden_size
        if centroids_KD.ndim != 2 or centroids_KD.shape[1] != width:
            raise TresseError(
                f"the centroids are {list(centroids_KD.shape)} and {hidden.source} has {width} features: train them on it"
            )
        self.hidden, self.collapse = hidden, collapse
        self.centroids = centroids_KD.double()
        self.sample_rate, self.frame_rate = hidden.sample_rate, hidden.frame_rate
        self.codebook_size = len(centroids_KD)

    @classmethod
    def load(cls, folder: Path) -> HubertUnitEncoder:
        """Read what `save` wrote: {"type": "hubert", "path": folder or hub id, "layer": int, "collapse": bool}."""
        values = read_config(folder, HubertUnits)
        try:
            centroids = load_file(str(regular(folder / CENTROIDS)))["centroids"]
            check_finite([centroids], folder / CENTROIDS)
        except Exception as error:  # safetensors raises its own kinds on damaged files
            raise TresseError(f"cannot read the {CENTROIDS} of the units in {folder}: restore it") from error
        return cls(HubertFeatures(locate(values.path, folder), values.layer), centroids, values.collapse)

    def save(self, folder: Path) -> None:
        """Write config.json and the centroids, and a copy of the model where it came from a folder."""
        values = {"type": "hubert", "layer": self.hidden.layer, "collapse": self.collapse}
        save_config(folder, values, self.hidden.source)
        save_file({"centroids": self.centroids.float().contiguous().cpu()}, str(folder / CENTROIDS))

    def to(self, device: torch.device | str) -> HubertUnitEncoder:
        """Move model and centroids; the units stay the same."""
        self.hidden.to(device)
        self.centroids = self.centroids.to(device)
        return self

    def encode(self, waveform: np.ndarray, sample_rate: int) -> Units:
        """float32 [samples] at any rate -> units. An empty waveform gives no units."""
        return self.encode_batch([resample(waveform, sample_rate, self.sample_rate)])[0]

    def encode_batch(self, waveforms: list[np.ndarray]) -> list[Units]:
        """Clips at the model's rate -> units, each as if encoded alone; clips of one length are computed together."""
        units = [Units.empty(self.frame_rate) for _ in waveforms]
        by_length: dict[int, list[int]] = {}
        for index, waveform in enumerate(waveforms):
            by_length.setdefault(len(waveform), []).append(index)
        for length, indices in by_length.items():
            for first in range(0, len(indices) if length else 0, BATCH):
                block = indices[first : first + BATCH]
                for index, row in zip(block, self._frames([waveforms[i] for i in block]), strict=True):
                    units[index] = Units.from_frames(row, self.frame_rate, self.collapse)
        return units

    def encode_exactly(self, waveform: np.ndarray) -> Units:
        """float32 [samples] at the model's rate -> units, in float64 alone: those of `encode`, later."""
        if len(waveform) == 0:
            return Units.empty(self.frame_rate)
        frames, _ = nearest(self.hidden(waveform[None]), self.centroids)
        return Units.from_frames(frames[0], self.frame_rate, self.collapse)

    def features(self, waveform: np.ndarray) -> np.ndarray:
        """float32 [samples] at the model's rate -> the layer's hidden states: float32 [T, D]."""
        if len(waveform) == 0:
            return np.zeros((0, self.centroids.shape[1]), np.float32)
        return self.hidden(waveform[None])[0].float().cpu().numpy()

    def stream(self) -> HubertStream:
        """A fresh stream for samples at the model's rate: everything leaves at `flush`."""
        return HubertStream(self)

    def _frames(self, waveforms: list[np.ndarray]) -> np.ndarray:
        """Clips of one length -> their units, int64 [B, T]."""
        batch_BS = np.stack(waveforms)

        def compute(precision: torch.dtype, rows: Sequence[int]) -> Tensor:
            return self.hidden(batch_BS[list(rows)], precision)

        return decided(compute, self.centroids, [-(-batch_BS.shape[1] // self.hidden.frame_samples)] * len(batch_BS))


class HubertStream:
    """Holds the samples until the end: HuBERT must hear all of an utterance to hear any of it."""

    def __init__(self, encoder: HubertUnitEncoder) -> None:
        self.encoder = encoder
        self._chunks: list[np.ndarray] = []

    def push(self, samples: np.ndarray) -> np.ndarray:
        """float32 [n] -> no frames yet: int64 [0]."""
        self._chunks.append(np.array(samples, dtype=np.float32))
        return np.zeros(0, np.int64)

    def flush(self) -> np.ndarray:
        """All frames: int64 [T]."""
        waveform = np.concatenate([np.zeros(0, np.float32), *self._chunks])
        self._chunks = []
        return self.encoder.encode_batch([waveform])[0].frames()


def _front_end(source: str) -> tuple[int, bool]:
    """Sample rate in Hz, and whether a waveform is brought to zero mean and unit variance, as the model was trained."""
    from transformers import Wav2Vec2FeatureExtractor

    try:
        extractor = Wav2Vec2FeatureExtractor.from_pretrained(source)
    except Exception as error:  # network, or no preprocessor_config.json
        raise TresseError(f"{source} lacks a preprocessor_config.json: add the model's own") from error
    return int(extractor.sampling_rate), bool(extractor.do_normalize)
