"""What the recogniser hears, as faster-whisper computes it: log-mel features."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np

from train.speech.voices import SAMPLE_RATE

FLOOR = -10.0
"""log10 of the power that digital silence counts as (faster-whisper's)."""


@dataclass(frozen=True)
class MelFeatures:
    """faster-whisper's log-mel features. hop_length, n_fft: samples at 16 kHz; chunk_length: s of an encoder input."""

    feature_size: int = 64
    hop_length: int = 320
    n_fft: int = 512
    chunk_length: int = 8

    @property
    def frames(self) -> int:
        """Mel frames of a whole chunk."""
        return self.chunk_length * SAMPLE_RATE // self.hop_length

    @cached_property
    def _extractor(self):  # type: ignore[no-untyped-def]
        from faster_whisper.feature_extractor import FeatureExtractor

        return FeatureExtractor(sampling_rate=SAMPLE_RATE, **asdict(self))

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """float32 [samples] at 16 kHz -> log10 mel power float32 [T, feature_size], at most 80 dB under its maximum."""
        return 4.0 * self._extractor(waveform, padding=0).T - 4.0
