"""What tokens are about: learnt from stories in two languages, kept in a byte a value, the same whatever the order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.errors import TresseError
from slm.model import ModelConfig
from slm.topics import FILE, Topics
from slm.units.vocabulary import UnitVocabulary
from train.lm.topics import learn_topics

WORDS = 12
"""Tokens of a subject: six of one language, six of the other."""
COMMON = 3 * WORDS
"""A token that every story has."""


def stories(count: int = 120) -> list[np.ndarray]:
    """Of three subjects; a story has tokens of its subject, in both languages, and the common one."""
    rng = np.random.default_rng(0)
    told = []
    for number in range(count):
        first = WORDS * (number % 3)
        told.append(np.concatenate([rng.integers(first, first + WORDS, 8), [COMMON] * 5]))
    return told


@pytest.fixture(scope="module")
def topics() -> Topics:
    return learn_topics(stories(), COMMON + 4, 3)


def test_a_sentence_is_near_a_story_in_the_other_language(topics: Topics) -> None:
    for subject in range(3):
        own = range(WORDS * subject, WORDS * subject + 6)
        other = range(WORDS * subject + 6, WORDS * subject + 12)
        likeness = [topics.likeness(list(own), [WORDS * k + 6 + n for n in range(6)]) for k in range(3)]
        assert int(np.argmax(likeness)) == subject
        assert topics.likeness(list(own), list(other)) > 0.9
    assert topics.rarity[COMMON] == 0
    assert topics.likeness([COMMON], [0, 1]) == 0.0
    assert topics.likeness([], [0, 1]) == 0.0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, COMMON + 3), max_size=20), st.randoms(use_true_random=False))
def test_order_and_tokens_that_tell_nothing_change_nothing(topics: Topics, tokens: list[int], rng) -> None:  # type: ignore[no-untyped-def]
    shuffled = [*tokens, COMMON, COMMON + 3]
    rng.shuffle(shuffled)
    assert np.allclose(topics.of(shuffled), topics.of(tokens), atol=1e-6)
    length = np.linalg.norm(topics.of(tokens))
    assert length == pytest.approx(1.0, abs=1e-5) or length == 0.0
    assert topics.likeness(tokens, tokens) == pytest.approx(length**2, abs=1e-5)


def test_what_is_kept_is_nearly_the_same(topics: Topics, tmp_path: Path) -> None:
    assert Topics.load(tmp_path, COMMON + 4) is None
    topics.save(tmp_path / "slm")
    loaded = Topics.load(tmp_path / "slm", COMMON + 4)
    assert loaded is not None
    assert np.allclose(loaded.vectors, topics.vectors, atol=np.abs(topics.vectors).max() / 200)
    assert np.array_equal(loaded.rarity, topics.rarity)
    with pytest.raises(TresseError, match="restore the bundle's files"):
        Topics.load(tmp_path / "slm", COMMON)
    (tmp_path / "slm" / FILE).write_bytes(b"no")
    with pytest.raises(TresseError, match="restore the bundle's files"):
        Topics.load(tmp_path / "slm", COMMON + 4)


def test_it_is_learnt_from_three_stories_or_more() -> None:
    with pytest.raises(TresseError, match="three stories"):
        learn_topics(stories(2), COMMON + 4, 3)


def test_a_new_model_begins_with_it(topics: Topics) -> None:
    import torch

    vocabulary = UnitVocabulary.train([], codebook_size=COMMON, languages=["en", "fr"], vocab_size=None)
    assert len(vocabulary) == len(topics.vectors)
    config = ModelConfig(hidden_size=16, layers=1, heads=2, intermediate_size=16, max_position=64, topics=3)
    torch.manual_seed(0)
    embeddings = config.build(vocabulary, topics).get_input_embeddings().weight.detach().numpy()
    torch.manual_seed(0)
    plain = config.build(vocabulary).get_input_embeddings().weight.detach().numpy()
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    directions = topics.vectors[:COMMON] / np.linalg.norm(topics.vectors[:COMMON], axis=1, keepdims=True)
    assert np.allclose(units[:COMMON] @ units[:COMMON].T, directions @ directions.T, atol=1e-4)
    assert np.linalg.norm(embeddings[:COMMON], axis=1) == pytest.approx(0.02 * 4, rel=1e-4)
    silent = np.linalg.norm(topics.vectors, axis=1) == 0
    assert np.array_equal(embeddings[silent], plain[silent])
    with pytest.raises(TresseError, match=r"model\.topics 3 must be at most"):
        ModelConfig(hidden_size=2, layers=1, heads=1, intermediate_size=16, max_position=64).build(vocabulary, topics)
