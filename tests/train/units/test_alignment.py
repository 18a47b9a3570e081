"""Forced alignment of known phones with posteriors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.units.alignment import PAUSE, align


def posteriors(seed: int, frames: int, phones: int) -> np.ndarray:
    """Log posteriors [frames, phones]."""
    raw = np.random.default_rng(seed).normal(size=(frames, phones))
    return raw - np.log(np.exp(raw).sum(1, keepdims=True))


def best_of_all(log_TK: np.ndarray, spoken: list[int], free: set[int]) -> float:
    """The score of the best path, by trying all. spoken: without silence (0); free: pauses before phone n that are."""
    frames, best = len(log_TK), -np.inf
    states = [state for n, phone in enumerate(spoken) for state in ((0, n), (phone, n))] + [(0, len(spoken))]
    for cuts in itertools.combinations_with_replacement(range(frames + 1), len(states) - 1):
        edges = [0, *cuts, frames]
        if any(edges[2 * n + 1] == edges[2 * n + 2] for n in range(len(spoken))):
            continue
        score = sum(
            log_TK[edges[i] : edges[i + 1], phone].sum()
            - (PAUSE if phone == 0 and edges[i] < edges[i + 1] and n not in free else 0.0)
            for i, (phone, n) in enumerate(states)
        )
        best = max(best, score)
    return best


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 3), min_size=1, max_size=4), st.integers(0, 3))
def test_the_path_is_the_best_of_all(seed: int, phones: list[int], more: int) -> None:
    spoken = [phone for phone in phones if phone]
    if not spoken:
        return
    log_TK = posteriors(seed, len(spoken) + more, 4)
    free, at = {0, len(spoken)}, 0
    for phone in phones:
        if phone == 0:
            free.add(at)
        else:
            at += 1
    path, mean = align(log_TK, phones)
    assert mean * len(log_TK) == pytest.approx(best_of_all(log_TK, spoken, free))
    heard = [phone for phone in path.tolist() if phone]
    assert [phone for phone, _ in itertools.groupby(heard)] == [phone for phone, _ in itertools.groupby(spoken)]


def test_more_phones_than_frames_are_refused() -> None:
    for phones in ([1, 2, 3], [], [0]):
        with pytest.raises(ValueError, match="cannot be aligned"):
            align(posteriors(0, 2, 4), phones)
