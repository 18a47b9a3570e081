"""Segments of clips for a unit encoder's training, drawn with a rate of their own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

UNHEARD = 10
"""Frames at the start of a segment that teach nothing unless a clip begins there: they lack their history."""


@dataclass(frozen=True)
class Crops:
    """frames: where a segment's frames of 20 ms lie [B, T]; halves: those of its mels, 10 ms each [B, 2T]; mask: float32
    [B, T], 0 where a frame teaches nothing."""

    frames: Tensor
    halves: Tensor
    mask: Tensor


def draw_crops(rng: np.random.Generator, starts: np.ndarray, lengths: np.ndarray, segment_frames: int) -> Crops:
    """A segment of each clip, its rate varied by up to 18 %. starts, lengths: int [B], of the clips, in frames of 20 ms.

    One in five begins where its clip does. What lies behind a clip's end is its last frame.
    """
    size = len(starts)
    rate = rng.uniform(0.85, 1.18, size)
    spare = np.maximum(1, lengths - segment_frames * rate)
    first = np.floor(rng.uniform(0, 1, size) * spare) * (rng.random(size) > 0.2)
    steps = np.arange(2 * segment_frames)
    frame = np.minimum(first[:, None] + steps[:segment_frames] * rate[:, None], lengths[:, None] - 1)
    half = np.minimum(2 * first[:, None] + steps * rate[:, None], 2 * lengths[:, None] - 1)
    mask = torch.ones(size, segment_frames)
    mask[torch.from_numpy(first > 0), :UNHEARD] = 0.0
    return Crops(
        torch.from_numpy(starts[:, None] + frame.astype(np.int64)),
        torch.from_numpy(2 * starts[:, None] + half.astype(np.int64)),
        mask,
    )
