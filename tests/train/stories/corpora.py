"""What the tests of this room share."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

from train.stories.cloze_items import (
    BENCHMARK_ITEMS,
    ClozeItem,
    make_items,
)
from train.stories.data import UNSEEN
from train.stories.grammar import (
    Story,
    generate_stories,
)

BENCHMARK_SPLITS = ("test", UNSEEN)


@cache
def benchmark(split: str) -> list[ClozeItem]:
    """The items of the benchmark in one split."""
    return make_items(1, BENCHMARK_ITEMS, split)


@cache
def training_stories() -> list[Story]:
    return list(generate_stories(0, 6000))


def words_of(stories: list[Story], language: str) -> Counter[str]:
    """Word types and how often each occurs."""
    words: Counter[str] = Counter()
    for story in stories:
        for sentence in story.sentences[language]:
            words.update(re.findall(r"[^\W\d_]+", sentence.lower()))
    return words
