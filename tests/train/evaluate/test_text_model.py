"""The text model behind the benchmark's ceiling: it learns what a story repeats, and choices are counted right."""

from __future__ import annotations

import random

import numpy as np
import pytest

from train.evaluate.text_model import TextModel, TextTraining
from train.stories.cloze_items import ClozeItem

COLOURS = ["red", "blue", "green", "white"]


def toy(colour: str) -> list[str]:
    return [f"A {colour} hat.", f"It was {colour}."]


def items() -> list[ClozeItem]:
    """Mirrored pairs: what is right in one is wrong in the next."""
    pairs = [(one, other) for one in COLOURS for other in COLOURS if one < other]
    return [
        ClozeItem(f"{right}-{wrong}", "story", {"en": toy(right)[:1]}, {"en": toy(right)[1]}, {"en": toy(wrong)[1]})
        for one, other in pairs
        for right, wrong in ((one, other), (other, one))
    ]


@pytest.fixture(scope="module")
def told() -> list[list[str]]:
    rng = random.Random(0)
    return [toy(rng.choice(COLOURS)) for _ in range(4800)]


def test_what_a_story_repeats_is_learnt(told: list[list[str]]) -> None:
    training = TextTraining(batch=32, learning_rate=1e-2, warmup=10, width=64, layers=2, heads=2)
    model = TextModel(told, training)
    losses = [loss for _, loss in model.train()]
    assert len(losses) == 150
    assert losses[-1] < 0.5 * losses[0]
    assert model.choices(items(), "en").mean() == 1.0
    # what was right is wrong now
    mirrored = [ClozeItem(one.id, one.kind, one.context, one.wrong, one.right) for one in items()]
    assert model.choices(mirrored, "en").mean() == 0.0


def test_the_same_seed_trains_the_same_model(told: list[list[str]]) -> None:
    training = TextTraining(batch=16, warmup=2, width=32, layers=1, heads=2)
    runs = [list(TextModel(told[:160], training).train()) for _ in range(2)]
    assert runs[0] == runs[1]


def test_words_it_never_read_are_one_word(told: list[list[str]]) -> None:
    model = TextModel(told, TextTraining(width=32, layers=1, heads=2))
    assert model.encode(["A purple hat."]) == model.encode(["A golden hat."]) != model.encode(["A red hat."])
    unheard = ClozeItem("x", "story", {"en": toy("purple")[:1]}, {"en": "It was golden."}, {"en": "It was grey."})
    assert np.array_equal(model.choices([unheard], "en"), [0.5])
