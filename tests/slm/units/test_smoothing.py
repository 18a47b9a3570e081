"""Units in runs: the cheapest path's end, the same however the logits arrive."""

from __future__ import annotations

from itertools import pairwise, product

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.units.smoothing import Smoothing


def logits_of(frames: int, units: int, seed: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, frames, units, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(2, 3), st.floats(0.01, 3), st.integers(0, 2**16))
def test_a_unit_is_the_end_of_the_cheapest_path(frames: int, units: int, switch_cost: float, seed: int) -> None:
    logits = logits_of(frames, units, seed)

    def price(path: tuple[int, ...]) -> float:
        changes = sum(a != b for a, b in pairwise(path))
        return switch_cost * changes - float(sum(logits[0, t, unit] for t, unit in enumerate(path)))

    named, leads = Smoothing(switch_cost).push(logits)
    for t in range(frames):
        paths = list(product(range(units), repeat=t + 1))
        by_end = [min(price(path) for path in paths if path[-1] == unit) for unit in range(units)]
        first, second = sorted(by_end)[:2]
        assert by_end[int(named[0, t])] - first < 1e-9
        assert abs(float(leads[0, t]) - (second - first)) < 1e-9


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=8), st.floats(0, 3), st.integers(0, 2**16))
def test_chunks_and_batches_change_nothing(chunks: list[int], switch_cost: float, seed: int) -> None:
    logits = logits_of(sum(chunks), 5, seed, batch=3)
    whole = Smoothing(switch_cost).push(logits)[0]
    stream = Smoothing(switch_cost)
    parts = [stream.push(part)[0] for part in logits.split(chunks, dim=1)] if chunks else [whole]
    assert torch.equal(torch.cat(parts, dim=1), whole)
    for row in range(3):
        assert torch.equal(Smoothing(switch_cost).push(logits[row : row + 1])[0][0], whole[row])


def test_runs_grow_with_the_price_and_no_price_is_the_likeliest() -> None:
    logits = logits_of(300, 8, 0)
    assert torch.equal(Smoothing(0.0).push(logits)[0], logits.argmax(-1))
    changes = [int((Smoothing(cost).push(logits)[0].diff() != 0).sum()) for cost in (0.0, 0.5, 2.0, 20.0)]
    assert changes == sorted(changes, reverse=True)
    assert changes[0] > changes[1] > changes[2] > changes[3]
