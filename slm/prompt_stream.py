"""A prompt that is still being spoken: its units are made as it arrives, so that little is left to do when it ends.

The same samples in chunks of any size give the sentences that `slm.continuation.hear` gives for all of them at once.
"""

from __future__ import annotations

import numpy as np

from slm.audio import ResampleStream, check_waveform
from slm.continuation import cut
from slm.errors import TresseError
from slm.units import UnitEncoder, Units
from slm.voice_activity import SpeechStream


class PromptStream:
    """Push float32 [n] at `sample_rate` Hz as they come, then `finish`. `frames` units are certain already."""

    def __init__(self, encoder: UnitEncoder, sample_rate: int, max_seconds: float) -> None:
        self.encoder, self.sample_rate, self.max_seconds = encoder, sample_rate, max_seconds
        self._resample = ResampleStream(sample_rate, encoder.sample_rate)
        self._stream = encoder.stream()
        self._speech = SpeechStream(encoder.sample_rate)
        self._parts: list[np.ndarray] = []
        self._frames: list[np.ndarray] = []
        self._samples = 0

    @property
    def waveform(self) -> np.ndarray:
        """All that was pushed: float32 [samples]."""
        return np.concatenate(self._parts) if self._parts else np.zeros(0, np.float32)

    @property
    def seconds(self) -> float:
        """Its length in s."""
        return self._samples / self.sample_rate

    def push(self, samples: np.ndarray) -> np.ndarray:
        """More of the prompt -> the frames int64 [k] that are now certain. Raises TresseError where it gets too long."""
        self._parts.append(np.asarray(samples, np.float32))
        self._samples += len(samples)
        if self.seconds > self.max_seconds:
            raise TresseError(f"the prompt is longer than {self.max_seconds:.0f} s: say less at once")
        return self._hear(self._resample.push(self._parts[-1]))

    def finish(self) -> tuple[list[Units], float]:
        """Its sentences as units and its length in s. Raises TresseError as `hear` does."""
        check_waveform(self.waveform, self.sample_rate, self.max_seconds)
        self._hear(self._resample.flush())
        self._frames.append(self._stream.flush())
        return cut(self._speech.finish(), np.concatenate(self._frames), self.encoder), self.seconds

    def _hear(self, resampled: np.ndarray) -> np.ndarray:
        """Samples at the encoder's rate -> the frames that are now certain."""
        self._speech.push(resampled)
        self._frames.append(self._stream.push(resampled))
        return self._frames[-1]
