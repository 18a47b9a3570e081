"""Units of Mimi's first codebook, the semantic one (Défossez et al., "Moshi", arXiv:2410.00037): 12.5 a second, 2,048.

Mimi is causal: a unit is certain with the last sample of its own 80 ms, and streaming keeps the convolutions' padding and
the transformer's keys and values. float64 decides, so that the units are the same whatever the chunking, the batching, the
number of threads or the device: the rounding differences stay far below the decision margins. Of whole clips float32
computes first, and float64 again those with a close decision (`slm.units.precision`); streams compute in float64.

Measured on 62 s of synthetic speech in 20 clips, with random weights of Mimi's size and a codebook of 2,048 latents of other
speech (some of them nearly the same): float32 left 16 of 783 frames open, so that 8 of the 20 clips were computed again. Its
largest error was 9e-7 of a clip's largest norm, and no unit was wrong. What trained weights leave open was not
measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slm.audio import resample
from slm.errors import TresseError
from slm.units.hub import load_pretrained, locate, read_config, save_config
from slm.units.precision import Precisions, decided, nearest
from slm.units.sequence import Units

CACHES = ("encoder_cache", "encoder_past_key_values", "padding_cache")
"""What `MimiModel.encode` hands on from chunk to chunk: keys and values (the first name since transformers 5.24, the second
before), and the padding of the convolutions."""


class _Latents(nn.Module):
    """Stands in Mimi's place of the quantiser: hands on what the first codebook quantises, instead of its choice."""

    def __init__(self, quantizer: Any) -> None:
        super().__init__()
        semantic = quantizer.semantic_residual_vector_quantizer
        self.input_proj = semantic.input_proj or nn.Identity()
        codebook = semantic.layers[0].codebook
        usage = codebook.cluster_usage.double().clamp(min=codebook.epsilon)
        self.register_buffer("centroids", codebook.embed_sum.double() / usage[:, None])

    def encode(self, embeddings_BDT: Tensor, num_quantizers: float | None = None) -> Tensor:
        """[B, D, T] -> [1, B, C, T], C the codebook's dimension."""
        return self.input_proj(embeddings_BDT)[None]


class MimiUnitEncoder:
    """See `slm.units.UnitEncoder`. model: a transformers MimiModel; source: the folder or hub id it came from."""

    def __init__(self, model: Any, source: str, collapse: bool = True) -> None:
        self.model = model
        self.model.quantizer = _Latents(model.quantizer)
        self.model.double().eval().requires_grad_(False)
        self.source, self.collapse = source, collapse
        self.sample_rate = int(model.config.sampling_rate)
        self.frame_rate = float(model.config.frame_rate)
        self.codebook_size = len(self.model.quantizer.centroids)
        self.frame_samples = round(self.sample_rate / self.frame_rate)
        self.device = torch.device("cpu")
        self._model = Precisions(self.model)

    @classmethod
    def from_pretrained(cls, source: str, collapse: bool = True) -> MimiUnitEncoder:
        """The first codebook of a Mimi in a folder or on the hub. Raises TresseError where it cannot be loaded."""
        from transformers import MimiModel

        model = load_pretrained(MimiModel, source)
        codebook = model.quantizer.semantic_residual_vector_quantizer.layers[0].codebook
        if not codebook.embed_sum.any():
            raise TresseError(f"the first codebook of {source} is empty: give a trained Mimi")
        return cls(model, source, collapse)

    @classmethod
    def load(cls, folder: Path) -> MimiUnitEncoder:
        """Read what `save` wrote: {"type": "mimi", "path": folder or hub id, "collapse": bool}."""
        values = read_config(folder)
        return cls.from_pretrained(locate(values.path, folder), values.collapse)

    def save(self, folder: Path) -> None:
        """Write config.json, and a copy of the model where it came from a folder."""
        save_config(folder, {"type": "mimi", "collapse": self.collapse}, self.source)

    def to(self, device: torch.device | str) -> MimiUnitEncoder:
        """Move the model; the units stay the same."""
        self.device = torch.device(device)
        self.model.to(self.device)
        self._model = Precisions(self.model)
        return self

    def encode(self, waveform: np.ndarray, sample_rate: int) -> Units:
        """float32 [samples] at any rate -> units. An empty waveform gives no units."""
        return self.encode_batch([resample(waveform, sample_rate, self.sample_rate)])[0]

    def encode_batch(self, waveforms: list[np.ndarray]) -> list[Units]:
        """Clips at the model's rate -> units, each as if encoded alone (shorter clips are followed by silence)."""
        counts = [-(-len(waveform) // self.frame_samples) for waveform in waveforms]
        if not any(counts):
            return [Units.empty(self.frame_rate) for _ in waveforms]
        longest = max(counts) * self.frame_samples
        batch_BS = np.stack([np.pad(wave, (0, longest - len(wave))) for wave in waveforms])

        def compute(precision: torch.dtype, rows: Sequence[int]) -> Tensor:
            return self._latents(batch_BS[list(rows)], {}, precision)[0]

        frames = decided(compute, self.model.quantizer.centroids, counts)
        return [
            Units.from_frames(row[:count], self.frame_rate, self.collapse)
            for row, count in zip(frames, counts, strict=True)
        ]

    def encode_exactly(self, waveform: np.ndarray) -> Units:
        """float32 [samples] at the model's rate -> units, in float64 alone: those of `encode`, later."""
        if len(waveform) == 0:
            return Units.empty(self.frame_rate)
        frames, _ = nearest(self._exact(waveform), self.model.quantizer.centroids)
        return Units.from_frames(frames[0], self.frame_rate, self.collapse)

    def features(self, waveform: np.ndarray) -> np.ndarray:
        """float32 [samples] at the model's rate -> the vectors that are quantised: float32 [T, C]."""
        if len(waveform) == 0:
            return np.zeros((0, self.model.quantizer.centroids.shape[1]), np.float32)
        return self._exact(waveform)[0].float().cpu().numpy()

    def _exact(self, waveform: np.ndarray) -> Tensor:
        """float32 [samples], one at least -> latents in float64 [1, T, C]."""
        return self._latents(np.pad(waveform, (0, -len(waveform) % self.frame_samples))[None], {})[0]

    def stream(self) -> MimiStream:
        """A fresh streaming state for samples at the model's rate."""
        return MimiStream(self)

    @torch.inference_mode()
    def _latents(
        self, samples_BS: np.ndarray, state: dict[str, Any], precision: torch.dtype = torch.float64
    ) -> tuple[Tensor, Any]:
        """Whole frames of samples [B, S] and keywords of MimiModel.encode -> latents [B, T, C] and its output."""
        samples = torch.from_numpy(np.ascontiguousarray(samples_BS)).to(self.device, precision)
        output = self._model(precision).encode(samples[:, None], return_dict=True, **state)
        return output.audio_codes[:, 0].transpose(1, 2), output


class MimiStream:
    """State of one encoding: samples that do not fill a frame yet, and the model's caches."""

    def __init__(self, encoder: MimiUnitEncoder) -> None:
        self.encoder = encoder
        self._samples = np.zeros(0, np.float32)
        self._caches: dict[str, Any] = {}

    def push(self, samples: np.ndarray) -> np.ndarray:
        """float32 [n] -> int64 [k]: the frames that are complete."""
        self._samples = np.concatenate([self._samples, samples])
        whole = len(self._samples) // self.encoder.frame_samples * self.encoder.frame_samples
        if whole == 0:
            return np.zeros(0, np.int64)
        used, self._samples = self._samples[:whole], self._samples[whole:]
        latents_BTC, output = self.encoder._latents(used[None], {"use_streaming": True, **self._caches})
        self._caches = {name: output[name] for name in CACHES if name in output}
        return nearest(latents_BTC, self.encoder.model.quantizer.centroids)[0][0]

    def flush(self) -> np.ndarray:
        """The last frame, filled up with silence: int64 [0 or 1]."""
        return self.push(np.zeros(-len(self._samples) % self.encoder.frame_samples, np.float32))
