"""Sources compared by a text model: rows are told as the speech model hears them, and every model reads as much."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from slm.errors import TresseError
from train.evaluate.text_mixtures import measure, table, telling, tellings
from train.evaluate.text_model import TextTraining
from train.stories.grammar import PAIRS, Story, generate_stories
from train.stories.held_out import StoriesSettings
from train.stories.sources import Source
from train.stories.written_cloze import written_items


def test_rows_are_told_as_training_tells_them() -> None:
    sentences = {"en": [f"Sentence {k}." for k in range(40)], "fr": [f"Phrase {k}." for k in range(40)]}
    rng = random.Random(0)
    story = telling(Story("s", sentences), rng)
    assert [text.split()[1] for text in story] == [f"{k}." for k in range(40)]
    assert {text.split()[0] for text in story} == {"Sentence", "Phrase"}
    pairs = telling(Story("p", sentences, kind=PAIRS), rng)
    assert sorted(pairs) == sorted(text for texts in sentences.values() for text in texts)
    assert all(a.split()[1] == b.split()[1] for a, b in list(pairwise(pairs))[::2])
    assert {text.split()[0] for text in pairs[::2]} == {"Sentence", "Phrase"}
    assert telling(Story("t", {"fr": sentences["fr"]}), rng) == sentences["fr"]


def test_every_model_reads_so_many_words() -> None:
    told = tellings(generate_stories(0, 200), 1000, 0)
    words = sum(len(text.split()) for texts in told for text in texts)
    assert 1000 <= words < 1000 + sum(len(text.split()) for text in told[-1])
    with pytest.raises(TresseError, match="ask for fewer"):
        tellings(generate_stories(0, 3), 1000, 0)


def test_a_mixture_is_measured_in_both_languages() -> None:
    settings = StoriesSettings(sources=(Source("grammar", 1),), words=10**6)
    result = measure(
        "grammar", settings, 2000, written_items()[:4] + written_items()[-4:], TextTraining(width=16, heads=2)
    )
    assert set(result.cells) == {(language, kind) for language in ("en", "fr") for kind in ("story", "topic")}
    assert all(0 <= cell["accuracy"] <= 1 for cell in result.cells.values())
    assert table([result]).count("\n") == 2
