"""Interleaving: one copy of each sentence, the languages drawn as the method says, every draw repeatable."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.errors import TresseError
from slm.interleave import Mode, braid, draw_languages, sentence_tokens
from slm.units import UnitVocabulary

CODES = ["en", "fr", "de", "br"]


def vocabulary(languages: list[str]) -> UnitVocabulary:
    return UnitVocabulary.train([], codebook_size=10, languages=languages, vocab_size=None)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 4),
    mode=st.sampled_from(["interleaved", "mixed"]),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 2**30),
    first=st.integers(0, 40),
    stories=st.integers(1, 30),
    sentences=st.integers(1, 9),
)
def test_a_draw_depends_on_seed_epoch_story_and_sentence_alone(
    count: int, mode: str, seed: int, epoch: int, first: int, stories: int, sentences: int
) -> None:
    languages = CODES[:count]
    whole = draw_languages(
        mode, languages, seed=seed, epoch=epoch, stories=first + stories + 3, sentences=sentences + 2
    )
    part = draw_languages(mode, languages, seed=seed, epoch=epoch, stories=stories, sentences=sentences, first=first)
    assert np.array_equal(part, whole[first : first + stories, :sentences])
    assert part.min() >= 0
    assert part.max() < count


@pytest.mark.parametrize("count", [2, 3])
def test_interleaving_draws_uniformly_and_independently(count: int) -> None:
    drawn = draw_languages("interleaved", CODES[:count], seed=3, epoch=5, stories=20_000, sentences=5)
    shares = np.bincount(drawn.ravel(), minlength=count) / drawn.size
    assert np.abs(shares - 1 / count).max() < 0.01
    assert abs((drawn[:, 1:] == drawn[:, :-1]).mean() - 1 / count) < 0.01  # next sentence
    assert abs((drawn[1:] == drawn[:-1]).mean() - 1 / count) < 0.01  # next story
    again = draw_languages("interleaved", CODES[:count], seed=3, epoch=6, stories=20_000, sentences=5)
    assert abs((drawn == again).mean() - 1 / count) < 0.01  # next epoch


def test_mixed_tells_each_story_in_one_language_and_monolingual_all_in_the_same() -> None:
    mixed = draw_languages("mixed", ["en", "fr"], seed=0, epoch=0, stories=4000, sentences=5)
    assert (mixed == mixed[:, :1]).all()
    assert abs(mixed.mean() - 0.5) < 0.03
    alone = draw_languages("monolingual:fr", ["en", "fr"], seed=0, epoch=0, stories=10, sentences=5)
    assert (alone == 1).all()


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(2, 4),
    seed=st.integers(0, 2**40),
    first=st.integers(0, 40),
    sentences=st.integers(1, 9),
)
def test_a_translated_retelling_is_a_braid_and_then_every_sentence_in_another_language(
    count: int, seed: int, first: int, sentences: int
) -> None:
    told = {"seed": seed, "epoch": 1, "stories": 30, "sentences": sentences, "first": first}
    both = draw_languages("translated_retelling", CODES[:count], **told)
    assert both.shape == (30, 2 * sentences)
    assert np.array_equal(both[:, :sentences], draw_languages("interleaved", CODES[:count], **told))
    assert (both[:, :sentences] != both[:, sentences:]).all()
    assert both.min() >= 0
    assert both.max() < count
    more = draw_languages("translated_retelling", CODES[:count], **{**told, "first": 0, "stories": first + 33})
    assert np.array_equal(more[first : first + 30], both)


def test_retelling_draws_the_other_languages_uniformly_and_needs_some() -> None:
    drawn = draw_languages("translated_retelling", CODES[:3], seed=3, epoch=5, stories=20_000, sentences=2)
    for language in range(3):
        again = np.bincount(drawn[:, 2:][drawn[:, :2] == language], minlength=3) / (drawn[:, :2] == language).sum()
        assert np.abs(again - [0.5 * (k != language) for k in range(3)]).max() < 0.02
    with pytest.raises(TresseError, match="unknown mode 'translated_retelling': choose one of interleaved, mixed"):
        Mode.parse("translated_retelling", ["en"])


@pytest.mark.parametrize(
    "text", ["braided", "monolingual", "monolingual:de", "mixed:en", "translated_retelling:en", ""]
)
def test_an_unknown_mode_names_the_known_ones(text: str) -> None:
    with pytest.raises(TresseError, match="monolingual:fr"):
        Mode.parse(text, ["en", "fr"])


@pytest.mark.parametrize("text", ["interleaved", "translated_retelling", "mixed", "monolingual:fr"])
def test_a_mode_reads_what_it_writes(text: str) -> None:
    assert str(Mode.parse(text, ["en", "fr"])) == text


def test_the_old_name_of_a_mode_is_read() -> None:
    assert Mode.parse("retold", ["en", "fr"]) == Mode.parse("translated_retelling", ["en", "fr"])
    with pytest.raises(TresseError, match="unknown mode 'retold'"):
        Mode.parse("retold", ["en"])


@given(drawn=st.lists(st.integers(0, 2), min_size=1, max_size=6), tags=st.booleans(), end=st.booleans())
@settings(deadline=None)
def test_a_braid_has_each_sentence_once_in_its_language(drawn: list[int], tags: bool, end: bool) -> None:
    languages = CODES[:3]
    words = vocabulary(languages).with_tags(tags)
    # sentence i in language k is the unit i, k + 6 times over
    sentences = {
        language: [np.full(k + 6, i, np.int32) for i in range(len(drawn))] for k, language in enumerate(languages)
    }
    told = [languages[k] for k in drawn]
    tokens = braid(sentences, told, words, end=end)
    expected = [words.bos_id]
    for i, k in enumerate(drawn):
        expected += [words.tag_ids[languages[k]]] * tags + [i] * (k + 6)
    assert tokens.tolist() == expected + [words.eos_id] * end
    assert tokens.dtype == np.int32


def test_a_prompt_is_a_training_sequence_cut_at_a_sentence() -> None:
    words = vocabulary(["en", "fr"])
    sentences = {language: [np.array([1, 2]), np.array([3]), np.array([4, 5])] for language in ("en", "fr")}
    whole = braid(sentences, ["en", "fr", "en"], words, end=True)
    prompt = braid(sentences, ["en", "fr"], words)
    rest = sentence_tokens(sentences["en"][2], "en", words)
    assert whole.tolist() == [*prompt, *rest, words.eos_id]
