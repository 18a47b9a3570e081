"""The plain baseline that stands beside every unit encoder: MFCCs and k-means, nothing learnt about voices."""

from __future__ import annotations

import numpy as np
import torch
import torchaudio
from torch import Tensor

from slm.units.sequence import Units
from train.speech.voices import SAMPLE_RATE, Voices, speak
from train.tools.kmeans import assign, kmeans


class MfccEncoder:
    """Thirteen MFCCs with first and second differences, mean and variance normalised over the utterance; k-means units.

    One unit every 1 / frame_rate s. Windows of 25 ms, or of a unit's length and a quarter where that is longer.
    """

    def __init__(self, centroids_KD: Tensor, frame_rate: float) -> None:
        self.centroids = centroids_KD
        self.sample_rate, self.frame_rate, self.codebook_size = SAMPLE_RATE, frame_rate, len(centroids_KD)

    @classmethod
    def fit(
        cls, sentences: list[tuple[str, str]], voices: Voices, codebook_size: int, frame_rate: float, seed: int = 0
    ) -> MfccEncoder:
        """Cluster (language, text) sentences spoken by the training voices in turn."""
        speakers = list(voices.training.values())
        spoken = [
            speak(text, language, speakers[index % len(speakers)], voices)
            for index, (language, text) in enumerate(sentences)
        ]
        empty = cls(torch.zeros(codebook_size, 39), frame_rate)
        points = torch.cat([torch.from_numpy(empty.features(waveform)) for waveform in spoken])
        return cls(kmeans(points, codebook_size, seed=seed), frame_rate)

    def features(self, waveform: np.ndarray) -> np.ndarray:
        """float32 [samples] at 16 kHz -> float32 [T, 39], T = ceil(samples / samples a unit)."""
        hop = round(self.sample_rate / self.frame_rate)
        window = max(400, hop * 5 // 4)
        options = {"n_fft": 1 << (window - 1).bit_length(), "win_length": window, "hop_length": hop, "n_mels": 40}
        transform = torchaudio.transforms.MFCC(self.sample_rate, n_mfcc=13, melkwargs=options)
        frames = -(-len(waveform) // hop)
        middle = np.pad(waveform, (0, options["n_fft"]))[hop // 2 :]  # windows stand on the middle of each unit
        coefficients = transform(torch.from_numpy(middle))[:, :frames]
        delta = torchaudio.functional.compute_deltas(coefficients[None])[0]
        delta2 = torchaudio.functional.compute_deltas(delta[None])[0]
        features = torch.cat([coefficients, delta, delta2]).T
        return ((features - features.mean(0)) / (features.std(0, correction=0) + 1e-3)).numpy()

    def encode_batch(self, waveforms: list[np.ndarray]) -> list[Units]:
        """Clips at 16 kHz -> units, each by itself."""
        return [
            Units.from_frames(
                assign(torch.from_numpy(self.features(waveform)), self.centroids).numpy(), self.frame_rate
            )
            for waveform in waveforms
        ]
