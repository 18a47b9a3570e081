"""A prompt that is still being spoken: its units are made as it arrives, so that little is left to do when it ends.

The same samples in chunks of any size give the sentences that `slm.continuation.hear` gives for all of them at once.
"""

from __future__ import annotations

import math

import numpy as np

from slm.audio import check_waveform, resample
from slm.continuation import cut
from slm.errors import TresseError
from slm.units import UnitEncoder, Units

MARGIN = 0.02
"""s on either side of a piece that resampling looks at."""


class ResampleStream:
    """`slm.audio.resample` for chunks of any size: the same samples, held back by `MARGIN` s."""

    def __init__(self, rate: int, new_rate: int) -> None:
        divisor = math.gcd(rate, new_rate)
        self._rate, self._new_rate = rate, new_rate
        self._step, self._new_step = rate // divisor, new_rate // divisor
        self._margin = math.ceil(MARGIN * rate / self._step)
        """In steps: the shortest pieces whose lengths are whole numbers of samples at both rates."""
        self._held = np.zeros(0, np.float32)
        self._left = 0
        """Steps at the beginning of what is held that were given out before."""

    def push(self, samples: np.ndarray) -> np.ndarray:
        """float32 [n] -> float32 [k] that no later sample can change."""
        if self._rate == self._new_rate:
            return samples
        self._held = np.concatenate([self._held, samples])
        certain = len(self._held) // self._step - self._margin
        if certain <= self._left:
            return np.zeros(0, np.float32)
        out = resample(self._held, self._rate, self._new_rate)[self._left * self._new_step : certain * self._new_step]
        dropped = max(0, certain - self._margin)
        self._held, self._left = self._held[dropped * self._step :], certain - dropped
        return out

    def flush(self) -> np.ndarray:
        """The rest: nothing follows."""
        if self._rate == self._new_rate:
            return np.zeros(0, np.float32)
        out = resample(self._held, self._rate, self._new_rate)[self._left * self._new_step :]
        self._held, self._left = self._held[:0], 0
        return out


class PromptStream:
    """Push float32 [n] at `sample_rate` Hz as they come, then `finish`. `frames` units are certain already."""

    def __init__(self, encoder: UnitEncoder, sample_rate: int, max_seconds: float) -> None:
        self.encoder, self.sample_rate, self.max_seconds = encoder, sample_rate, max_seconds
        self._resample = ResampleStream(sample_rate, encoder.sample_rate)
        self._stream = encoder.stream()
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
        self._frames.append(self._stream.push(self._resample.push(self._parts[-1])))
        return self._frames[-1]

    def finish(self) -> tuple[list[Units], float]:
        """Its sentences as units and its length in s. Raises TresseError as `hear` does."""
        waveform = check_waveform(self.waveform, self.sample_rate, self.max_seconds)
        self._frames += [self._stream.push(self._resample.flush()), self._stream.flush()]
        return cut(waveform, self.sample_rate, np.concatenate(self._frames), self.encoder), self.seconds
