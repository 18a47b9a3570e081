"""The nearest entries of a codebook, where float32 computes first and float64 decides.

The vectors of float32 are wrong by a little, and a unit by that only where two entries are about equally near: by the
triangle inequality a vector that is wrong by e has the same nearest entry wherever the next one is more than
2 e further away. A clip with a frame in which it is less than DOUBT further is computed again in float64.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

DOUBT = 4e-5
"""Of the distances to the two nearest entries, the least difference that float32 decides, as a share of the largest norm of
the clip's vectors: more than 10 times what float32 was wrong in it with networks of the true size (`slm.units.mimi`,
`slm.units.hubert`), and 4 times or more with small random ones (tested)."""
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
    """The nearest entry of each vector, int64 [B, T], and how much further the next one is, float64 [B, T]."""
    flat, shape = vectors_BTD.flatten(0, 1), vectors_BTD.shape[:2]
    distances = torch.cdist(flat, entries_KD, compute_mode="donot_use_mm_for_euclid_dist")
    units = distances.argmin(-1)
    if len(entries_KD) == 1:
        leads = torch.full_like(distances[:, 0], torch.inf)
    else:
        two = distances.topk(2, largest=False).values
        leads = two[:, 1] - two[:, 0]
    return units.unflatten(0, shape).cpu().numpy(), leads.unflatten(0, shape).cpu().numpy()


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
