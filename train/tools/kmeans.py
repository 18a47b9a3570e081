"""k-means in torch: Lloyd's algorithm from k-means++ seeds, on CPU or GPU."""

from __future__ import annotations

import torch
from torch import Tensor


def kmeans(points_ND: Tensor, clusters: int, *, iterations: int = 30, seed: int = 0) -> Tensor:
    """[N, D] -> centroids [clusters, D]. Empty clusters are reseeded with far points. Needs N >= clusters."""
    if len(points_ND) < clusters:
        raise ValueError(f"{clusters} clusters need at least as many points, not {len(points_ND)}")
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(points_ND), (1,), generator=generator))]
    sample = points_ND[torch.randperm(len(points_ND), generator=generator)[:50_000]]
    nearest = (sample - points_ND[chosen[0]]).square().sum(1)
    centroids = [points_ND[chosen[0]]]
    for _ in range(clusters - 1):  # k-means++ (Arthur and Vassilvitskii, 2007)
        pick = int(torch.multinomial(nearest.cpu().clamp_min(1e-12), 1, generator=generator))
        centroids.append(sample[pick])
        nearest = torch.minimum(nearest, (sample - sample[pick]).square().sum(1))
    table = torch.stack(centroids)
    for _ in range(iterations):
        labels = assign(points_ND, table)
        counts = torch.bincount(labels, minlength=clusters)
        sums = torch.zeros_like(table).index_add_(0, labels, points_ND)
        table = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), table)
        empty = (counts == 0).nonzero()[:, 0]
        if len(empty):
            far = (points_ND - table[labels]).square().sum(1).topk(len(empty)).indices
            table[empty] = points_ND[far]
    return table


def assign(points_ND: Tensor, centroids_KD: Tensor, block: int = 65536) -> Tensor:
    """Nearest centroid of each point: int64 [N]."""
    return torch.cat([torch.cdist(part, centroids_KD).argmin(1) for part in points_ND.split(block)])
