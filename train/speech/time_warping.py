"""Dynamic time warping of two utterances of one sentence, batched, and the MFCCs that they are compared by.

Sakoe and Chiba, "Dynamic programming algorithm optimization for spoken word recognition", 1978. The table is filled along
its anti-diagonals, all pairs of a batch at once: N + M vector operations instead of N x M scalar ones.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor

from slm.units.causal import FRAME
from train.speech.voices import SAMPLE_RATE


def dtw_batch(sources: list[Tensor], targets: list[Tensor]) -> list[Tensor]:
    """For every frame of source [N, D], the index of the frame of target [M, D] it is aligned with: int64 [N].

    Ends are aligned with ends. Distance: Euclidean. Of several target frames aligned with one, the last is given.
    """
    count = len(sources)
    n = torch.tensor([len(source) for source in sources])
    m = torch.tensor([len(target) for target in targets])
    rows, columns = int(n.max()), int(m.max())
    infinity = torch.inf
    # skewed[b, k, i] = distance of source frame i and target frame k - i
    skewed = torch.full((count, rows + columns - 1, rows), infinity)
    for b, (source, target) in enumerate(zip(sources, targets, strict=True)):
        distance = torch.cdist(source[None].float(), target[None].float())[0]
        i = torch.arange(len(source))[:, None].expand_as(distance)
        skewed[b, i + torch.arange(len(target))[None], i] = distance
    steps = torch.zeros(count, rows + columns - 1, rows, dtype=torch.int8)
    before = torch.full((count, rows + 1), infinity)  # diagonal k - 1, shifted by one
    before2 = torch.full((count, rows + 1), infinity)
    before2[:, 0] = 0.0  # the empty alignment
    for k in range(rows + columns - 1):
        # 0: both advance, 1: the source advances, 2: the target advances
        best, steps[:, k] = _min3(before2[:, :-1], before[:, :-1], before[:, 1:])
        now = torch.full((count, rows + 1), infinity)
        now[:, 1:] = best + skewed[:, k]
        before2, before = before, now
    paths = [torch.zeros(int(length), dtype=torch.int64) for length in n]
    filled = [int(length) for length in n]
    table = steps.numpy()
    for b in range(count):
        i, j, path = int(n[b]) - 1, int(m[b]) - 1, paths[b]
        while i >= 0 and j >= 0:
            if i < filled[b]:
                path[i], filled[b] = j, i
            step = table[b, i + j, i]
            i, j = i - (step != 2), j - (step != 1)
    return paths


def _min3(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    best, which = torch.stack([a, b, c]).min(dim=0)
    return best, which.to(torch.int8)


def mfcc(waveform: np.ndarray) -> Tensor:
    """float32 [samples] at 16 kHz -> MFCCs [T, 39] at 50 Hz with deltas, mean and variance normalised.

    Frame t is centred on the middle of the 20 ms that unit t stands for.
    """
    frames = -(-len(waveform) // FRAME)
    centred = F.pad(torch.from_numpy(waveform[FRAME // 2 :]), (0, FRAME))
    coefficients = _mfcc_transform()(centred)[:, :frames]
    delta = torchaudio.functional.compute_deltas(coefficients[None])[0]
    delta2 = torchaudio.functional.compute_deltas(delta[None])[0]
    features = torch.cat([coefficients, delta, delta2]).T
    return (features - features.mean(0)) / (features.std(0, correction=0) + 1e-3)


_TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {}


def _mfcc_transform() -> Callable[[Tensor], Tensor]:
    if "mfcc" not in _TRANSFORMS:
        options = {"n_fft": 512, "win_length": 400, "hop_length": FRAME, "n_mels": 40}
        _TRANSFORMS["mfcc"] = torchaudio.transforms.MFCC(SAMPLE_RATE, n_mfcc=13, melkwargs=options)
    return _TRANSFORMS["mfcc"]
