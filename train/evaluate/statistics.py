"""Accuracies of two-way choices with their intervals."""

from __future__ import annotations

from typing import Any

import numpy as np

RESAMPLES = 10_000


def outcomes(right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Scores [N] of the right and the wrong choice -> 1 where right is higher, 0 where wrong is, one half for ties."""
    return 0.5 * (np.sign(np.asarray(right, float) - np.asarray(wrong, float)) + 1)


def accuracy(results: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Outcomes [N] in {0, 1/2, 1} -> {"accuracy", "ci95": [low, high], "n"} with a 95 % bootstrap interval.

    Resampling N outcomes of three kinds is one multinomial draw. No items: accuracy and bounds are None.
    """
    count = len(results)
    if count == 0:
        return {"accuracy": None, "ci95": [None, None], "n": 0}
    values = np.array([0.0, 0.5, 1.0])
    shares = np.array([np.mean(results == value) for value in values])
    drawn = np.random.default_rng(seed).multinomial(count, shares, size=RESAMPLES) @ values / count
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"accuracy": float(np.mean(results)), "ci95": [float(low), float(high)], "n": count}
