"""Accuracies of two-way choices with their intervals, and the comparison of two systems on the same choices.

Items often come in mirrored pairs (what is right in one is wrong in the other): the two outcomes of a pair hang together,
and an interval that took them for independent would be wrong. So bootstraps resample clusters of items, not items.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import binomtest

RESAMPLES = 10_000


def outcomes(right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Scores [N] of the right and the wrong choice -> 1 where right is higher, 0 where wrong is, one half for ties."""
    return 0.5 * (np.sign(np.asarray(right, float) - np.asarray(wrong, float)) + 1)


def bootstrap(values: np.ndarray, clusters: np.ndarray | None = None, seed: int = 0) -> tuple[float, list[float]]:
    """Mean of values [N] and its 95 % interval, resampling clusters (int [N]; every value its own where None).

    Clusters that have the same sum and size are alike, so that resampling all of them is one multinomial draw.
    """
    values = np.asarray(values, float)
    group = np.arange(len(values)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    sums = np.bincount(group, weights=values)
    table = np.stack([np.round(sums, 9), np.bincount(group)], axis=1)
    kinds, counts = np.unique(table, axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(table), counts / len(table), size=RESAMPLES)
    low, high = np.percentile((drawn @ kinds[:, 0]) / (drawn @ kinds[:, 1]), [2.5, 97.5])
    return float(np.mean(values)), [float(low), float(high)]


def accuracy(results: np.ndarray, clusters: np.ndarray | None = None, seed: int = 0) -> dict[str, Any]:
    """Outcomes [N] in {0, 1/2, 1} -> {"accuracy", "ci95": [low, high], "n"} with a 95 % bootstrap interval over clusters.

    No items: accuracy and bounds are None.
    """
    if len(results) == 0:
        return {"accuracy": None, "ci95": [None, None], "n": 0}
    mean, interval = bootstrap(results, clusters, seed)
    return {"accuracy": mean, "ci95": interval, "n": len(results)}


def mean_accuracy(results: np.ndarray, groups: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Outcomes [N] of items in groups [N] -> the mean of the groups' accuracies, each group counting the same.

    Returns {"accuracy", "ci95", "n" (items), "groups"}; the 95 % interval is bootstrapped within each group: the groups are
    given, their items drawn. No items: accuracy and bounds are None.
    """
    if len(results) == 0:
        return {"accuracy": None, "ci95": [None, None], "n": 0, "groups": 0}
    rng, means, drawn = np.random.default_rng(seed), [], np.zeros(RESAMPLES)
    for group in np.unique(groups):
        values, counts = np.unique(np.asarray(results, float)[groups == group], return_counts=True)
        size = int(counts.sum())
        means.append(float(values @ counts) / size)
        drawn += rng.multinomial(size, counts / size, size=RESAMPLES) @ values / size
    low, high = np.percentile(drawn / len(means), [2.5, 97.5])
    interval = [float(low), float(high)]
    return {"accuracy": float(np.mean(means)), "ci95": interval, "n": len(results), "groups": len(means)}


def compare(first: np.ndarray, second: np.ndarray, clusters: np.ndarray | None = None, seed: int = 0) -> dict[str, Any]:
    """Two systems' outcomes [N] on the same items: accuracies, their difference, and McNemar's exact test.

    Returns {"first", "second", "difference" (second - first), "ci95" of the difference over clusters, "first_only" and
    "second_only" (items on which one does better), "p" (two-sided, exact binomial), "n"}; no items: n = 0 and None.
    """
    if len(first) == 0:
        return dict.fromkeys(("first", "second", "difference", "p")) | {"ci95": [None, None], "n": 0}
    difference, interval = bootstrap(second - first, clusters, seed)
    first_only, second_only = int(np.sum(first > second)), int(np.sum(second > first))
    return {
        "first": float(np.mean(first)),
        "second": float(np.mean(second)),
        "difference": difference,
        "ci95": interval,
        "first_only": first_only,
        "second_only": second_only,
        "p": mcnemar(first_only, second_only),
        "n": len(first),
    }


def mcnemar(first_only: int, second_only: int) -> float:
    """Two-sided exact p of McNemar's test: how likely so uneven a split of the discordant items is by fair coins."""
    total = first_only + second_only
    return float(binomtest(first_only, total).pvalue) if total else 1.0
