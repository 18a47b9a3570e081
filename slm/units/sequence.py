"""Units: what speech is for the language model, and what every unit encoder must offer.

An encoder emits one unit per frame (`frame_rate` Hz). Neighbouring equal frames are collapsed into one unit with a
run length, because the language model and the vocoder's duration predictor both work on collapsed units. An encoder whose
`collapse` is false leaves every frame a unit of run length one, as the paper's raw Mimi units are: the corpus, the language
model and the vocoder then work on frames without knowing it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch


@dataclass(frozen=True)
class Units:
    """Units and how long they last, run-length-collapsed unless their encoder does not collapse.

    ids: int64 [N], codebook entries. run_lengths: int64 [N], frames each unit lasts. frame_rate: Hz.
    """

    ids: np.ndarray
    run_lengths: np.ndarray
    frame_rate: float

    def __post_init__(self) -> None:
        if self.ids.shape != self.run_lengths.shape or self.ids.ndim != 1:
            raise ValueError(f"ids {self.ids.shape} and run_lengths {self.run_lengths.shape} must be equal and 1-D")

    @classmethod
    def from_frames(cls, frames: np.ndarray, frame_rate: float, collapse: bool = True) -> Units:
        """Collapse runs of equal frames; without `collapse` every frame is a unit. frames: int [T]."""
        frames = np.asarray(frames, dtype=np.int64)
        if len(frames) == 0:
            return cls.empty(frame_rate)
        if not collapse:
            return cls(frames, np.ones_like(frames), frame_rate)
        starts = np.flatnonzero(np.r_[True, frames[1:] != frames[:-1]])
        return cls(frames[starts], np.diff(np.r_[starts, len(frames)]), frame_rate)

    @classmethod
    def empty(cls, frame_rate: float) -> Units:
        """No units at all."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), frame_rate)

    @classmethod
    def concatenate(cls, parts: Iterable[Units]) -> Units:
        """Join sequences of one frame rate; a run that goes on across a joint stays two units."""
        parts = list(parts)
        rates = {part.frame_rate for part in parts}
        if len(rates) != 1:
            raise ValueError(f"cannot join units of frame rates {sorted(rates)}")
        return cls(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.run_lengths for part in parts]),
            rates.pop(),
        )

    def collapsed(self) -> Units:
        """The same speech with every run of equal units as one unit."""
        return Units.from_frames(self.frames(), self.frame_rate)

    def frames(self) -> np.ndarray:
        """The units before collapsing: int64 [sum(run_lengths)]."""
        return np.repeat(self.ids, self.run_lengths)

    @property
    def seconds(self) -> float:
        """Length of the speech in s."""
        return float(self.run_lengths.sum()) / self.frame_rate

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> Units:
        return Units(self.ids[part], self.run_lengths[part], self.frame_rate)


class UnitStream(Protocol):
    """Streaming side of an encoder: chunks of any size in, the same frames out as offline, bit for bit."""

    def push(self, samples: np.ndarray) -> np.ndarray:
        """float32 [n] at the encoder's sample rate -> int64 [k]: the frames whose look-ahead is now covered."""
        ...

    def flush(self) -> np.ndarray:
        """The frames still held back, as if silence followed. The stream is finished afterwards."""
        ...


@runtime_checkable
class UnitEncoder(Protocol):
    """Waveform -> units. Every encoder (default, HuBERT, Mimi) offers this.

    An encoder may also have `collapse` (bool, see `collapses`); `features(waveform) -> float32 [T, D]`: what its units
    are a decision on, a row a frame, for float32 [samples] at its own rate; and `encode_exactly(waveform) -> Units`, where
    `encode` computes in float32 first: the same units, in float64 alone.
    """

    sample_rate: int
    frame_rate: float
    codebook_size: int

    def encode(self, waveform: np.ndarray, sample_rate: int) -> Units:
        """float32 [samples] of any rate -> units, ceil(samples / samples a frame) frames of them."""
        ...

    def encode_batch(self, waveforms: list[np.ndarray]) -> list[Units]:
        """Clips at the encoder's rate -> units; each clip's units are those of `encode` on it alone."""
        ...

    def stream(self) -> UnitStream:
        """A fresh streaming state."""
        ...

    def to(self, device: torch.device | str) -> UnitEncoder:
        """Move to a device; the units stay the same."""
        ...

    def save(self, folder: Path) -> None:
        """Write what `slm.units.load_encoder` reads."""
        ...


def collapses(encoder: UnitEncoder) -> bool:
    """Whether an encoder collapses runs of equal frames: yes, unless its `collapse` says no."""
    return bool(getattr(encoder, "collapse", True))
