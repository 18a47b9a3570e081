"""Intervals and tests of cloze accuracies, and the items that can be had."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.errors import TresseError
from tests.tiny_evaluation import make_item, mirrored
from train.evaluate.cloze.items import load_items, to_items
from train.tools.statistics import bootstrap, compare, mcnemar


def test_mcnemar_is_the_sign_test_of_what_differs() -> None:
    assert mcnemar(2, 8) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert mcnemar(0, 0) == mcnemar(5, 5) == 1
    assert mcnemar(0, 2000) < 1e-300 or mcnemar(0, 2000) == 0
    assert mcnemar(930, 930) == 1


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=40))
def test_exchanging_two_systems_turns_the_comparison_round(values: list[float]) -> None:
    first, second = np.array(values), np.array(values[::-1])
    there, back = compare(first, second), compare(second, first)
    assert there["difference"] == pytest.approx(-back["difference"])
    assert there["p"] == back["p"] <= 1
    assert (there["first_only"], there["second_only"]) == (back["second_only"], back["first_only"])


def test_an_interval_over_pairs_knows_that_their_items_hang_together() -> None:
    rng = np.random.default_rng(0)
    coins = (rng.random(200) < 0.6).astype(float)
    twice, pairs = np.repeat(coins, 2), np.repeat(np.arange(200), 2)
    mean, (low, high) = bootstrap(twice, pairs)
    alone = bootstrap(coins)
    assert mean == alone[0]
    assert (low, high) == pytest.approx(tuple(alone[1]), abs=0.01)
    assert high - low > 1.3 * np.subtract(*bootstrap(twice)[1][::-1])


def test_mirrored_items_are_pairs_and_ids_are_their_own() -> None:
    items = to_items([make_item(0), mirrored(make_item(0), id="other"), make_item(1)])
    assert items[0].pair == items[1].pair != items[2].pair
    with pytest.raises(TresseError, match="two story items are called story-0"):
        to_items([make_item(0), make_item(0)])
    with pytest.raises(TresseError, match="'right' must be an object"):
        to_items([{**make_item(0), "right": "text"}])


def test_splits_files_and_the_handwritten_set_can_be_had(tmp_path: Path) -> None:
    shipped, root = load_items("handwritten")
    pairs = [item.pair for item in to_items(shipped)]
    assert len(shipped) == 400
    assert all(pairs.count(pair) == 2 for pair in pairs)
    for split in ("test", "unseen", "validation"):
        assert len(to_items(load_items(split, 4)[0])) == 8
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(make_item(3)) + "\n")
    mine, root = load_items(path)
    assert (len(mine), root) == (1, tmp_path)
    with pytest.raises(TresseError, match="handwritten"):
        load_items(tmp_path / "none.jsonl")
