"""The nearest entries of a codebook, where float32 computes first and float64 decides.

The vectors of float32 are wrong by a little, and a unit by that only where a vector lies about as near to a border between
entries. A clip with a frame that is less than DOUBT from one is computed again in float64.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

DOUBT = 2e-5
"""From the nearest border between entries, the least distance at which float32 decides, as a share of the largest norm of
the clip's vectors: more than 10 times the error of float32 with networks of the true size (`slm.units.mimi`,
`slm.units.hubert`), and 4 times or more with small random ones (tested)."""
NEXT = 8
"""Entries, by distance, whose borders are computed; of all others it is known how far they are at least."""
_LOCK = threading.RLock()

Compute = Callable[[torch.dtype, Sequence[int]], Tensor]
"""A precision and rows of a batch [B, ...] -> the vectors that are quantised, [rows, T, D]."""


def decided(compute: Compute, entries_KD: Tensor, counts: Sequence[int]) -> np.ndarray:
    """The units of float64, which computes the rows that float32 leaves open: int64 [B, T].

    compute: see `Compute`; entries_KD: float64; counts: of each row, the frames that matter, B of them.
    """
    with full_float32(entries_KD.device):
        vectors_BTD = compute(torch.float32, range(len(counts))).double()
    units, leads = nearest(vectors_BTD, entries_KD)
    least = (DOUBT * vectors_BTD.norm(dim=-1).amax(-1)).cpu().numpy()
    # not >=, so that what is no number counts as open
    doubtful = [row for row, count in enumerate(counts) if not (leads[row, :count] >= least[row]).all()]
    if doubtful:
        units[doubtful] = nearest(compute(torch.float64, doubtful), entries_KD)[0]
    return units


def nearest(vectors_BTD: Tensor, entries_KD: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The nearest entry of each vector, int64 [B, T], and how far the vector can move at least until another one is nearer,
    float64 [B, T].

    With distances d to the nearest entry and e to another, the plane between them is (e^2 - d^2) / 2 over their distance
    from each other away, and so (e - d) / 2 at least.
    """
    flat, shape = vectors_BTD.flatten(0, 1), vectors_BTD.shape[:2]
    distances_NK = torch.cdist(flat, entries_KD, compute_mode="donot_use_mm_for_euclid_dist")
    near = distances_NK.topk(min(NEXT, len(entries_KD)), largest=False)
    first, others = near.values[:, :1], near.values[:, 1:]
    apart = (entries_KD[near.indices[:, 1:]] - entries_KD[near.indices[:, :1]]).norm(dim=-1)
    borders = [(others.square() - first.square()) / (2 * apart)]  # no number for two entries that are the same
    if len(entries_KD) > NEXT:
        borders.append((others[:, -1:] - first) / 2)
    leads = torch.cat([torch.full_like(first, torch.inf), *borders], 1).amin(1)
    units = distances_NK.argmin(-1)
    return units.unflatten(0, shape).cpu().numpy(), leads.unflatten(0, shape).cpu().numpy()


class Precisions:
    """A model in float64, and in float32 once that is asked for. Made anew where the model moves."""

    def __init__(self, model: Any) -> None:
        self._exact = model
        self._single: Any = None

    def __call__(self, precision: torch.dtype) -> Any:
        """The model in torch.float64 or torch.float32."""
        if precision == torch.float64:
            return self._exact
        if self._single is None:
            self._single = copy.deepcopy(self._exact).float()
        return self._single


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """float32 in all its bits: convolutions on a GPU have TensorFloat-32 otherwise, with 10 bits of 23."""
    if device.type != "cuda":
        yield
        return
    with _LOCK:
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cudnn.allow_tf32 = before
