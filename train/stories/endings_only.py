"""The shortcut control: what somebody who hears only the endings of the cloze items would score.

A benchmark whose wrong endings are rarer words, or longer, can be solved without listening to the story. Bigrams of
the training stories, bigrams of their endings alone, and the length choose the likelier ending here without any context:
all must stand at chance.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np

from train.stories.cloze_items import ClozeItem
from train.stories.grammar import Story
from train.tools.statistics import outcomes


def words(sentence: str) -> list[str]:
    """Lower-case words and marks."""
    return re.findall(r"\w+|[^\w\s]", sentence.lower())


class Bigrams:
    """Word bigrams with add-one smoothing."""

    def __init__(self, sentences: Iterable[str]) -> None:
        self.pairs: Counter[tuple[str, str]] = Counter()
        self.words: Counter[str] = Counter()
        for sentence in sentences:
            framed = self._frame(sentence)
            self.pairs.update(pairwise(framed))
            self.words.update(framed[:-1])

    @staticmethod
    def _frame(sentence: str) -> list[str]:
        return ["<s>", *words(sentence), "</s>"]

    def score(self, sentence: str) -> float:
        """Mean log-likelihood a word."""
        pairs = list(pairwise(self._frame(sentence)))
        total = sum(math.log((self.pairs[p] + 1) / (self.words[p[0]] + len(self.words))) for p in pairs)
        return total / len(pairs)


def shortcut_scorers(stories: Sequence[Story], language: str) -> dict[str, Callable[[str], float]]:
    """The scorers that see an ending alone, by name; the bigrams are counted in `stories`."""
    return {
        "bigrams of the stories": Bigrams(s for story in stories for s in story.sentences[language]).score,
        "bigrams of the endings": Bigrams(story.sentences[language][-1] for story in stories).score,
        "length": lambda sentence: float(len(sentence)),
    }


def correct_choices(items: Iterable[ClozeItem], language: str, score: Callable[[str], float]) -> list[float]:
    """For every item 1 where the right ending scores higher, 0 where the wrong one does, 1/2 for a tie."""
    scores = np.array([[score(side[language]) for side in (item.right, item.wrong)] for item in items]).reshape(-1, 2)
    return outcomes(*scores.T).tolist()
