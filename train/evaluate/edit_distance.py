"""Levenshtein distances of unit sequences, by rapidfuzz."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein

Pair = tuple[np.ndarray, np.ndarray]


def edit_distances(pairs: Sequence[Pair]) -> np.ndarray:
    """Pairs of int [N], int [M] -> insertions, deletions and substitutions between them: int64 [pairs]."""
    return np.array([Levenshtein.distance(a.tolist(), b.tolist()) for a, b in pairs], np.int64)


def edit_rates(pairs: Sequence[Pair]) -> np.ndarray:
    """Edit distance over the longer sequence's length, 0 (equal) .. 1: float64 [pairs]; two empty ones are equal."""
    longer = np.array([max(1, len(a), len(b)) for a, b in pairs], dtype=np.float64)
    return edit_distances(pairs) / longer
