"""Corpora that stream: tokens are written once, and a run goes on where it was without reading what came before."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.interleave import draw_languages
from slm.units import UnitVocabulary
from tests.train.lm.tiny import TRAINING, UNITS, vocabulary, write_corpus
from train.lm import token_files
from train.lm.corpus import TokenCorpus
from train.lm.draws import languages_at, permuted
from train.lm.loader import Loader
from train.lm.packing import PackedBatch
from train.lm.schedule import SLMTraining, Stage, StagedStream
from train.lm.stream import PackedStream

LONG = replace(TRAINING, steps=400, row_length=64)


def same(first: PackedBatch, second: PackedBatch) -> bool:
    names = ("tokens", "targets", "positions", "languages")
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in names)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 2**26),
    stories=st.lists(st.integers(0, 900), min_size=1, max_size=20),
    weights=st.none() | st.lists(st.integers(0, 5), min_size=3, max_size=3).filter(any),
)
def test_languages_are_drawn_at_any_place_as_from_the_beginning(
    seed: int, epoch: int, stories: list[int], weights: list[int] | None
) -> None:
    drawn = draw_languages(
        "interleaved", ("a", "b", "c"), seed=seed, epoch=epoch, stories=901, sentences=5, weights=weights
    )
    shares = None if weights is None else np.asarray(weights) / sum(weights)
    for sentence in range(5):
        numbers = np.asarray(stories)
        at = languages_at(seed, np.full(len(numbers), epoch), np.full(len(numbers), sentence), numbers, 3, shares)
        assert np.array_equal(at, drawn[numbers, sentence])


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**31), epoch=st.integers(0, 2**40))
def test_every_number_goes_to_a_place_of_its_own(size: int, seed: int, epoch: int) -> None:
    numbers = np.arange(size)
    shuffled = permuted(numbers, size, seed, np.full(size, epoch))
    assert np.array_equal(np.sort(shuffled), numbers)
    if size > 40:
        assert not np.array_equal(shuffled, permuted(numbers, size, seed, np.full(size, epoch + 1)))
        assert abs(np.corrcoef(numbers, shuffled)[0, 1]) < 0.7


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The plans made, by their number in a lane."""
    made: list[int] = []
    make = PackedStream._make

    def counted(self: PackedStream, lane: int, number: int, *more: object) -> object:
        made.append(number)
        return make(self, lane, number, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(PackedStream, "_make", counted)
    return made


@pytest.mark.parametrize("step", [1, 37, 159, 160, 161, 399])
def test_a_run_goes_on_from_its_position_and_reads_nothing_before(
    corpus: TokenCorpus, step: int, plans: list[int]
) -> None:
    training = replace(
        LONG, stages=(Stage(("monolingual:en", "monolingual:fr"), share=0.4), Stage("interleaved", units=60_000))
    )
    whole = StagedStream(corpus, training)
    for number in range(step):
        whole.draw(number)
    position = json.loads(json.dumps(whole.position(step)))
    plans.clear()
    again = StagedStream(corpus, training, position)
    assert again.ends == whole.ends
    drawn = again.draw(step)
    assert len(plans) <= 2 * training.batch_rows
    counts = (whole.totals(step + 1)[0] - whole.totals(step)[0], whole.totals(step + 1)[1] - whole.totals(step)[1])
    assert np.array_equal(drawn[1][0], counts[0])
    assert drawn[1][1] == counts[1]
    for number in range(step, min(step + 6, whole.steps)):
        assert same(whole.batch(number), again.batch(number))


def test_a_loader_reads_ahead_and_its_position_is_that_of_the_step(corpus: TokenCorpus) -> None:
    plain = StagedStream(corpus, LONG)
    loader = Loader(StagedStream(corpus, LONG), 1, 2)
    for step in range(165):  # into the second stage
        assert same(loader.draw(step)[0], plain.batch(step, 1, 2))
        if step % 11 == 0 or step > 155:
            again = StagedStream(corpus, LONG, loader.position(step + 1))
            assert same(again.batch(step + 1, 1, 2), plain.batch(step + 1, 1, 2))
    loader.close()


def test_processes_plan_their_own_rows_only(corpus: TokenCorpus, plans: list[int]) -> None:
    stream = StagedStream(corpus, replace(LONG, batch_rows=24))
    for step in range(3):
        stream.draw(step, 6, 2)
    assert len(plans) == 2


@pytest.mark.parametrize("tags", [True, False])
@pytest.mark.parametrize("merges", [True, False])
def test_tokens_are_those_of_the_vocabulary_in_one_part_or_many(
    tmp_path: Path, tags: bool, merges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stories = write_corpus(tmp_path / "a", shards=3, longest=12)
    write_corpus(tmp_path / "b", shards=3, longest=12)
    words = vocabulary().with_tags(tags)
    if merges:
        spoken = [np.asarray(s) for story in stories.values() for told in story.values() for s in told]
        trained = UnitVocabulary.train(spoken, codebook_size=UNITS, languages=["en", "fr"], vocab_size=90)
        words = trained.with_tags(tags)
    single = TokenCorpus.load(tmp_path / "a", words)
    monkeypatch.setattr(token_files, "PART_BYTES", 1)
    many = TokenCorpus.load(tmp_path / "b", words)
    assert (len(single.files.parts), len(many.files.parts)) == (1, 3)
    assert single.ids.tolist() == many.ids.tolist()
    for number, name in enumerate(single.ids):
        sentences = stories[name]
        languages = np.arange(len(sentences["en"])) % 2
        expected = [words.bos_id]
        for k, language in enumerate(languages.tolist()):
            told = ("en", "fr")[language]
            expected += [*words.head(told), *words.encode(np.asarray(sentences[told][k]))]
        expected.append(words.eos_id)
        for corpus in (single, many):
            assert corpus.document(number, languages)[0].tolist() == expected
    streams = [PackedStream(corpus, "interleaved", row_length=64, seed=0, lanes=2) for corpus in (single, many)]
    assert same(streams[0].batch(0, 30), streams[1].batch(0, 30))


def test_tokens_are_written_once_and_what_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(tmp_path, shards=3)
    monkeypatch.setattr(token_files, "PART_BYTES", 1)
    read: list[str] = []
    tokenise = token_files.tokenise

    def stopped(shards: list[Path], *more: object) -> dict[str, np.ndarray]:
        if shards[0].name == "shard-00002.parquet" and not read.count(shards[0].name):
            read.append(shards[0].name)
            raise KeyboardInterrupt
        read.append(shards[0].name)
        return tokenise(shards, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(token_files, "tokenise", stopped)
    with pytest.raises(KeyboardInterrupt):
        TokenCorpus.load(tmp_path, vocabulary())
    for _ in range(2):
        assert len(TokenCorpus.load(tmp_path, vocabulary())) == 40
    assert read == [f"shard-0000{k}.parquet" for k in (0, 1, 2, 2)]
    TokenCorpus.load(tmp_path, vocabulary().with_tags(False))
    assert len(list(tmp_path.glob("tokens-*"))) == 2
    write_corpus(tmp_path, stories=80, shards=4)
    assert len(TokenCorpus.load(tmp_path, vocabulary())) == 80
    assert len(list(tmp_path.glob("tokens-*"))) == 2, "those of the corpus as it was are gone"


def test_a_story_of_600_sentences_costs_what_it_holds(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = pa.list_(pa.list_(pa.uint16()))
    sentences = [[[k % UNITS, k % 7] for k in range(600 if story == 5 else 2)] for story in range(300)]
    rows = {name: pa.array(sentences, numbers) for name in ("units_en", "units_fr")}
    pq.write_table(pa.table({"id": [str(k) for k in range(300)], **rows}), tmp_path / "shard-00000.parquet")
    info = {"languages": ["en", "fr"], "frame_rate": 50.0, "codebook_size": UNITS, "stories": 300}
    (tmp_path / "corpus.json").write_text(json.dumps(info))
    corpus = TokenCorpus.load(tmp_path, vocabulary())
    assert len(corpus.files.parts[0]["bounds"]) == 2 * (299 * 2 + 600) + 1
    stream = PackedStream(corpus, "interleaved", row_length=32, seed=0)
    targets = sum(int((batch.targets >= 0).sum()) for batch in stream.epoch())
    assert targets == 299 * (2 * 3 + 1) + 600 * 3 + 1


def test_steps_that_were_counted_are_not_counted_again(corpus: TokenCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    training = SLMTraining(stages=(Stage("mixed", units={"en": 3000, "fr": 2000}),), batch_rows=4, row_length=64)
    position = StagedStream(corpus, training).position(0)
    monkeypatch.setattr(PackedStream, "rows_for", None)
    assert StagedStream(corpus, training, position).turns[0].each == position["each"][0]
