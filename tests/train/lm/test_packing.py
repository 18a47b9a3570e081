"""Packing: rows without padding, every story once an epoch, draws that depend on seed and epoch alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.errors import TresseError
from slm.interleave import braid, draw_languages
from slm.units import UnitVocabulary
from tests.train.lm.tiny import (
    TRAINING,
    UNITS,
    vocabulary,
    write_corpus,
)
from train.lm.attention import document_mask
from train.lm.corpus import TokenCorpus
from train.lm.packing import IGNORE, PackedBatch, pack
from train.lm.schedule import StagedStream
from train.lm.step import token_losses
from train.lm.stream import PackedStream


def documents_of(batch: PackedBatch) -> list[list[int]]:
    """The documents of a batch, as token lists with their last target."""
    found: list[list[int]] = []
    for row in range(len(batch.tokens)):
        for place in range(batch.tokens.shape[1]):
            if batch.targets[row, place] == IGNORE:
                break
            if batch.positions[row, place] == 0:
                found.append([int(batch.tokens[row, place])])
            assert int(batch.tokens[row, place]) == found[-1][-1]
            found[-1].append(int(batch.targets[row, place]))
    return found


# --- packing ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data(), row_length=st.integers(1, 200))
def test_every_piece_is_packed_once_and_no_row_overflows(data: st.DataObject, row_length: int) -> None:
    sizes = data.draw(st.lists(st.integers(1, row_length), max_size=150))
    rows = pack(np.asarray(sizes, dtype=np.int64), row_length)
    assert sorted(piece for row in rows for piece in row) == list(range(len(sizes)))
    assert all(0 < sum(sizes[piece] for piece in row) <= row_length for row in rows)


@pytest.mark.parametrize(
    ("mean", "deviation", "row_length"), [(45, 4, 512), (85, 20, 512), (90, 15, 1024), (20, 9, 128)]
)
def test_rows_are_full_to_ninety_nine_percent(mean: float, deviation: float, row_length: int) -> None:
    sizes = np.random.default_rng(0).normal(mean, deviation, 5000).round().clip(4, row_length).astype(np.int64)
    assert sizes.sum() / (len(pack(sizes, row_length)) * row_length) >= 0.99


def test_pieces_longer_than_a_row_are_refused() -> None:
    with pytest.raises(ValueError, match="positions"):
        pack(np.array([3, 9]), 8)


# --- the corpus ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tags", [True, False])
@pytest.mark.parametrize("mode", ["interleaved", "translated_retelling"])
def test_an_epoch_tells_every_story_once_as_the_braid_of_its_sentences(tmp_path: Path, mode: str, tags: bool) -> None:
    languages = ("en", "fr", "de")
    words = vocabulary(languages).with_tags(tags)
    stories = write_corpus(tmp_path, stories=30, languages=languages)
    corpus = TokenCorpus.load(tmp_path, words)

    def expected(epochs: range) -> Counter[tuple[int, ...]]:
        documents: Counter[tuple[int, ...]] = Counter()
        for epoch in epochs:
            drawn = draw_languages(mode, languages, seed=5, epoch=epoch, stories=30, sentences=4)
            for number, name in enumerate(corpus.ids):
                sentences = {k: [words.encode(np.asarray(s)) for s in spoken] for k, spoken in stories[name].items()}
                document = []
                for telling in drawn[number].reshape(-1, 4):
                    told = [languages[k] for k in telling[: len(stories[name]["en"])]]
                    document += braid(sentences, told, words, end=True).tolist()
                documents[tuple(document)] += 1
        return documents

    stream = PackedStream(corpus, mode, row_length=512, seed=5, first_epoch=3, lanes=3)
    assert Counter(map(tuple, documents_of(PackedBatch.joined(stream.epoch())))) == expected(range(3, 4))
    read = Counter(map(tuple, documents_of(stream.batch(0, 60))))
    assert expected(range(3, 10)) <= read <= expected(range(3, 150))


def test_a_long_document_is_cut_into_rows_and_loses_nothing(tmp_path: Path) -> None:
    stories = write_corpus(tmp_path, stories=6, longest=60)
    words = vocabulary()
    corpus = TokenCorpus.load(tmp_path, words)
    stream = PackedStream(corpus, "monolingual:fr", row_length=16, seed=0)
    found = documents_of(PackedBatch.joined(stream.epoch()))
    sizes = [
        len(braid({"fr": [words.encode(np.asarray(s)) for s in story["fr"]]}, ["fr"] * len(story["fr"]), words))
        for story in stories.values()
    ]
    assert max(sizes) > 16
    assert sum(len(document) - 1 for document in found) == sum(sizes)
    whole = sum(size <= 16 for size in sizes)  # one that fits is never cut
    complete = sum(doc[0] == words.bos_id and doc[-1] == words.eos_id for doc in found)
    assert complete == whole


def test_batches_do_not_depend_on_who_asked_before(corpus: TokenCorpus) -> None:
    training = replace(TRAINING, steps=400, row_length=64)
    onward, other = StagedStream(corpus, training), StagedStream(corpus, training)
    assert onward.ends == [160, 400]
    for step in (399, 0, 159, 160, 399):
        a, b = onward.batch(step), other.batch(step)
        halves = [other.batch(step, 0, 2), other.batch(step, 2, 2)]
        for name in ("tokens", "targets", "positions", "languages"):
            assert torch.equal(getattr(a, name), getattr(b, name))
            assert torch.equal(getattr(a, name), torch.cat([getattr(half, name) for half in halves]))
    english = [step for step in range(0, 400, 40) if not onward.batch(step).languages.any()]
    assert english == [0, 40, 80, 120]


@pytest.mark.parametrize(("mode", "row_length"), [("interleaved", 96), ("translated_retelling", 192)])
def test_units_tokens_and_targets_are_counted_by_language(corpus: TokenCorpus, mode: str, row_length: int) -> None:
    words = vocabulary()
    stream = PackedStream(corpus, mode, row_length=row_length, seed=1, lanes=2)
    for count in (40, 83):  # within the first plans, and into the next ones
        batch = stream.batch(0, count)
        (units, tokens), targets = stream.totals(count)
        real = batch.targets != IGNORE
        assert targets == int(real.sum())
        for k in range(2):
            here = batch.targets[real & (batch.languages == k)]
            spoken = int((here < UNITS).sum())
            assert units[k] == spoken
            assert tokens[k] == spoken + int((here == words.tag_ids[corpus.languages[k]]).sum())
    assert stream.totals(0)[1] == 0


def test_held_out_stories_are_never_trained_on(corpus: TokenCorpus) -> None:
    train, held = corpus.split(6, seed=0)
    assert len(set(held.ids)) == 6
    assert not set(held.ids) & set(train.ids)
    assert len(train) + len(held) == len(corpus)
    again = PackedStream(train, "interleaved", row_length=96, seed=0)
    assert set(again.corpus.ids) == set(train.ids)
    with pytest.raises(TresseError, match="hold out fewer"):
        corpus.split(40, seed=0)


def test_corpora_that_cannot_be_used_name_the_mend(tmp_path: Path) -> None:
    words = vocabulary()
    with pytest.raises(TresseError, match="tresse prepare"):
        TokenCorpus.load(tmp_path, words)
    write_corpus(tmp_path / "a")
    with pytest.raises(TresseError, match="no tag for fr"):
        TokenCorpus.load(tmp_path / "a", vocabulary(("en",)))
    with pytest.raises(TresseError, match="40 units"):
        TokenCorpus.load(
            tmp_path / "a",
            UnitVocabulary.train([], codebook_size=9, languages=["en"], vocab_size=None).add_languages(["fr"]),
        )
    (tmp_path / "a" / "shard-00001.parquet").unlink()
    with pytest.raises(TresseError, match="not finished"):
        TokenCorpus.load(tmp_path / "a", words)
    write_corpus(tmp_path / "b")
    (tmp_path / "b" / "shard-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(TresseError, match="delete it"):
        TokenCorpus.load(tmp_path / "b", words)


@pytest.mark.parametrize("what", ["missing sentence", "empty sentence"])
def test_stories_that_do_not_align_are_refused_and_empty_ones_counted(tmp_path: Path, what: str) -> None:
    write_corpus(tmp_path, stories=8, shards=1)
    path = tmp_path / "shard-00000.parquet"
    rows = pq.read_table(path).to_pylist()
    if what == "missing sentence":
        rows[2]["units_fr"].append([1, 2])
    else:
        rows[2]["units_fr"][0] = []
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    if what == "missing sentence":
        with pytest.raises(TresseError, match=r"story-2 .* do not align"):
            TokenCorpus.load(tmp_path, vocabulary())
    else:
        corpus = TokenCorpus.load(tmp_path, vocabulary())
        assert corpus.left_out == 1
        assert "story-2" not in set(corpus.ids)


@pytest.mark.parametrize("how", ["documents", "mask"])
def test_packed_losses_and_gradients_equal_those_of_each_document_alone(
    model: Any, corpus: TokenCorpus, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "mask":
        monkeypatch.setattr(
            "train.lm.step.attention_inputs",
            lambda positions, *_, **__: {"position_ids": positions, "attention_mask": document_mask(positions)},
        )
    batch = PackedStream(corpus, "interleaved", row_length=96, seed=2).batch(0, 3)
    model.zero_grad()
    losses = token_losses(model, batch)
    losses.sum().backward()
    packed = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    alone = []
    for document in documents_of(batch):
        logits = model(input_ids=torch.tensor([document[:-1]]), use_cache=False).logits
        alone.append(torch.nn.functional.cross_entropy(logits[0], torch.tensor(document[1:]), reduction="none"))
    torch.cat(alone).sum().backward()
    assert torch.allclose(losses[batch.targets != IGNORE], torch.cat(alone), atol=1e-5)
    for gradient, parameter in zip(packed, model.parameters(), strict=True):
        assert torch.allclose(gradient, parameter.grad, atol=1e-4)
