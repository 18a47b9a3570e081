"""Units for a pretrained HuBERT or mHuBERT: k-means on the hidden states of any of its layers.

Trades away nothing of the model: it stays as it is. Costs one pass of the model over the speech (as much as encoding it) and
k-means of `frames` vectors: about a minute for 50,000 x 768 and 500 clusters on one core.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from slm.errors import TresseError
from slm.units.hubert import HubertFeatures, HubertUnitEncoder
from train.tools.kmeans import kmeans


def train_hubert_units(
    source: str,
    layer: int,
    waveforms: Iterable[np.ndarray],
    codebook_size: int,
    *,
    frames: int = 50_000,
    iterations: int = 30,
    seed: int = 0,
    device: str = "cpu",
    collapse: bool = True,
) -> HubertUnitEncoder:
    """An encoder with `codebook_size` clusters of layer `layer` (from 1) of the model `source` (folder or hub id).

    waveforms: float32 [samples] at the model's rate, heard until `frames` hidden states are gathered. Raises TresseError
    where they are fewer than the clusters.
    """
    hidden = HubertFeatures(source, layer).to(device)
    parts, count = [], 0
    for waveform in waveforms:
        if len(waveform):
            parts.append(hidden(waveform[None])[0].float().clone())
            count += len(parts[-1])
        if count >= frames:
            break
    if count < codebook_size:
        raise TresseError(f"{count} frames of speech are too few for {codebook_size} units: give more speech")
    centroids = kmeans(torch.cat(parts)[:frames], codebook_size, iterations=iterations, seed=seed)
    return HubertUnitEncoder(hidden, centroids, collapse).to(device)
