"""`tresse bench train`: both ways run, and what it reports is what they did."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from accelerate.state import AcceleratorState

from tests.train.lm.tiny import SMALL, TRAINING, vocabulary, write_corpus
from train.bench.train import bench_train, table
from train.lm.corpus import TokenCorpus


def test_both_ways_are_timed_on_the_same_stories(tmp_path: Path) -> None:
    write_corpus(tmp_path, stories=60, longest=20)
    words = vocabulary()
    corpus = TokenCorpus.load(tmp_path, words)
    AcceleratorState._reset_state(True)
    try:
        result = bench_train(corpus, words, SMALL, replace(TRAINING, row_length=256), turns=1)
    finally:
        AcceleratorState._reset_state(True)
    assert result["useful_share"] >= 0.99
    assert 0.3 < result["plain"]["useful_share"] < 0.95  # stories of one to four sentences, padded to the longest
    ratio = result["units_per_second"] / result["plain"]["units_per_second"]
    assert result["speedup"]["plain transformers"] == ratio > 0
    assert result["loader_units_per_second"] > 0
    assert f"{result['stories']} stories" in table(result)
