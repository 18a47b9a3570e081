"""Schedules: budgets of units by language are met and no more, turns alternate, three languages work."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.errors import TresseError
from slm.interleave import draw_languages
from tests.train.lm.tiny import TRAINING, vocabulary, write_corpus
from train.lm.attention import CALL, GROUPS, Documents, split_lengths
from train.lm.corpus import TokenCorpus
from train.lm.packing import IGNORE
from train.lm.schedule import SLMTraining, Stage, StagedStream

LANGUAGES = ("en", "fr", "de")
A_STEP = TRAINING.batch_rows * TRAINING.row_length
"""No step holds more units."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TokenCorpus:
    folder = tmp_path_factory.mktemp("three")
    write_corpus(folder, stories=60, languages=LANGUAGES, longest=12)
    return TokenCorpus.load(folder, vocabulary(LANGUAGES))


def schedule(*stages: Stage) -> SLMTraining:
    return replace(TRAINING, stages=stages)


def languages_of(stream: StagedStream, step: int) -> set[str]:
    batch = stream.batch(step)
    return {LANGUAGES[k] for k in batch.languages[batch.targets != IGNORE].unique().tolist()}


@settings(max_examples=12, deadline=None)
@given(
    mode=st.sampled_from(["interleaved", "mixed"]),
    budget=st.lists(st.integers(3, 9), min_size=3, max_size=3),
    seed=st.integers(0, 99),
)
def test_a_budget_by_language_is_met_by_all_together(
    corpus: TokenCorpus, mode: str, budget: list[int], seed: int
) -> None:
    wanted = np.asarray(budget) * 10_000
    training = replace(schedule(Stage(mode, units=dict(zip(LANGUAGES, wanted.tolist(), strict=True)))), seed=seed)
    stream = StagedStream(corpus, training)
    consumed = stream.totals(stream.steps)[0][0]
    assert (consumed >= wanted).all()
    assert (consumed <= wanted * 1.12 + A_STEP).all()  # drawn at random: not to the unit
    assert (stream.totals(stream.steps - 1)[0][0] < wanted).any()


def test_a_language_without_a_budget_is_not_told(corpus: TokenCorpus) -> None:
    stream = StagedStream(corpus, schedule(Stage("interleaved", units={"en": 5_000, "de": 5_000})))
    assert set().union(*(languages_of(stream, step) for step in range(stream.steps))) == {"en", "de"}
    for mode in ("translated_retelling", "retold"):
        with pytest.raises(TresseError, match=f"{mode} tells all languages"):
            schedule(Stage(mode, units={"en": 5_000})).check(LANGUAGES)
    with pytest.raises(TresseError, match="never tells fr"):
        StagedStream(corpus, schedule(Stage("monolingual:en", units={"fr": 100})))


def test_the_papers_schedule_counts_what_its_stages_hold(corpus: TokenCorpus) -> None:
    turns = ("monolingual:en", "monolingual:fr")
    stages = (Stage("monolingual:en", steps=5), Stage("interleaved", steps=4), Stage(turns, steps=6))
    stream = StagedStream(corpus, schedule(*stages))
    assert stream.ends == [5, 9, 15]
    told = [languages_of(stream, step) for step in range(15)]
    assert told[:5] == [{"en"}] * 5
    assert told[5:9] == [set(LANGUAGES)] * 4
    assert told[9:] == [{"en"}, {"fr"}] * 3
    counted = np.zeros(3, np.int64)
    for step in range(15):
        batch = stream.batch(step)
        spoken = (batch.targets != IGNORE) & (batch.targets < corpus.bos_id)
        counted += np.bincount(batch.languages[spoken].numpy(), minlength=3)
        assert np.array_equal(stream.totals(step + 1)[0][0], counted)


def test_turns_with_unequal_budgets_are_spread_evenly(corpus: TokenCorpus) -> None:
    turns = ("monolingual:en", "monolingual:fr")
    stream = StagedStream(corpus, schedule(Stage(turns, units={"en": 9_000, "fr": 3_000})))
    consumed = stream.totals(stream.steps)[0][0]
    assert consumed[0] >= 9_000 > consumed[0] - A_STEP
    assert consumed[1] >= 3_000 > consumed[1] - A_STEP
    french = [step for step in range(stream.steps) if languages_of(stream, step) == {"fr"}]
    assert max(b - a for a, b in pairwise(french)) <= 2 * stream.steps / len(french)


def test_shares_divide_the_steps_that_budgets_do_not_take(corpus: TokenCorpus) -> None:
    stages = (Stage("mixed", share=3.0), Stage("interleaved", steps=7), Stage("monolingual:de", share=1.0))
    assert StagedStream(corpus, replace(schedule(*stages), steps=20)).ends == [15, 22, 27]


def test_weights_change_how_often_a_language_is_drawn_and_nothing_else() -> None:
    settings_ = {"seed": 1, "epoch": 2, "stories": 20_000, "sentences": 4}
    drawn = draw_languages("interleaved", LANGUAGES, **settings_, weights=(1.0, 2.0, 5.0))
    shares = np.bincount(drawn.ravel(), minlength=3) / drawn.size
    assert shares == pytest.approx([0.125, 0.25, 0.625], abs=0.01)
    part = draw_languages("interleaved", LANGUAGES, **{**settings_, "stories": 9}, first=50, weights=(2.0, 4.0, 10.0))
    assert np.array_equal(part, drawn[50:59])
    with pytest.raises(ValueError, match="a weight for each"):
        draw_languages("mixed", LANGUAGES, **settings_, weights=(1.0, 2.0))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 700), min_size=1, max_size=8))
def test_documents_are_grouped_at_the_least_cost(sizes: list[int]) -> None:
    lengths = np.sort(np.asarray(sizes))[::-1]

    def cost(ends: list[int]) -> float:
        return sum((end - first) * float(lengths[first]) ** 2 + CALL for first, end in pairwise([0, *ends]))

    ends = split_lengths(lengths)
    assert ends[-1] == len(lengths)
    cuts = (c for k in range(GROUPS) for c in combinations(range(1, len(lengths)), k))
    assert cost(ends) == min(cost([*cut, len(lengths)]) for cut in cuts)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.sampled_from([1, 2, 4]))
def test_a_layout_shows_every_position_once(sizes: list[int], heads: int) -> None:
    documents = Documents.of(torch.cat([torch.arange(size) for size in sizes])[None])
    rows, places = documents.rows(heads, heads), documents.places(heads)
    assert torch.equal(rows[places], torch.arange(sum(sizes) * heads))
    assert len(documents.padding(heads)) == len(rows) - len(places)
    assert not set(documents.padding(heads).tolist()) & set(places.tolist())
