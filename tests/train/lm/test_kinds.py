"""Other rows than stories in all languages: pairs are told side by side, rows in one language where a stage tells them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slm.errors import TresseError
from slm.interleave import Mode
from tests.train.lm.test_packing import documents_of
from tests.train.lm.tiny import TRAINING, UNITS, vocabulary
from train.lm.corpus import TokenCorpus
from train.lm.schedule import SLMTraining, Stage, StagedStream
from train.lm.stream import PackedStream
from train.stories.grammar import PAIRS, STORY

LANGUAGES = ("en", "fr")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TokenCorpus:
    """Rows 0, 4, 8 ... are stories, 1, 5 ... pairs, 2, 6 ... English and 3, 7 ... French: sentence i of row r says i, r."""
    folder: Path = tmp_path_factory.mktemp("kinds")
    rows: dict[str, list] = {"id": [str(r) for r in range(24)], "kind": [], "units_en": [], "units_fr": []}
    for r in range(24):
        rows["kind"].append(PAIRS if r % 4 == 1 else STORY)
        sentences = [[i, 10 + r] for i in range(3 + r % 2)]
        rows["units_en"].append(sentences if r % 4 != 3 else [])
        rows["units_fr"].append(sentences if r % 4 != 2 else [])
    numbers = pa.list_(pa.list_(pa.uint16()))
    types = {"id": pa.string(), "kind": pa.string()}
    pq.write_table(
        pa.table({name: pa.array(v, types.get(name, numbers)) for name, v in rows.items()}),
        folder / "shard-00000.parquet",
    )
    info = {"languages": LANGUAGES, "frame_rate": 50.0, "codebook_size": UNITS, "stories": 24}
    (folder / "corpus.json").write_text(json.dumps(info))
    return TokenCorpus.load(folder, vocabulary())


def told(corpus: TokenCorpus, mode: str) -> dict[int, list[list[tuple[int, str]]]]:
    """By row, its documents as (sentence, language)."""
    words = vocabulary()
    languages = {tag: language for language, tag in words.tag_ids.items()}
    stream = PackedStream(corpus, mode, row_length=64, seed=3)
    documents: dict[int, list[list[tuple[int, str]]]] = {}
    for document in documents_of(stream.batch(0, 600)):
        sentences = np.asarray(document[1:-1]).reshape(-1, 3)  # tag, sentence, row
        documents.setdefault(int(sentences[0, 2]) - 10, []).append(
            [(int(i), languages[int(t)]) for t, i, _ in sentences]
        )
    return documents


def test_interleaved_tells_stories_and_pairs_and_pairs_side_by_side_in_both_orders(corpus: TokenCorpus) -> None:
    documents = told(corpus, "interleaved")
    assert set(documents) == {r for r in range(24) if r % 4 < 2}
    orders = set()
    for r, tellings in documents.items():
        for telling in tellings:
            if r % 4 == 0:
                assert [i for i, _ in telling] == [0, 1, 2]
            else:
                assert [i for i, _ in telling] == [0, 0, 1, 1, 2, 2, 3, 3]
                assert all({a[1], b[1]} == set(LANGUAGES) for a, b in zip(telling[::2], telling[1::2], strict=True))
                orders.add(tuple(language for _, language in telling[::2]))
    assert len(orders) == 16, "every pair in both orders, whatever its neighbours"


def test_mixed_and_monolingual_tell_the_rows_they_can(corpus: TokenCorpus) -> None:
    mixed = told(corpus, "mixed")
    assert set(mixed) == {r for r in range(24) if r % 4 != 1}
    spoken = {r: {language for telling in tellings for _, language in telling} for r, tellings in mixed.items()}
    assert all(spoken[r] == {2: {"en"}, 3: {"fr"}}.get(r % 4, set(LANGUAGES)) for r in mixed)
    assert all(len({language for _, language in telling}) == 1 for tellings in mixed.values() for telling in tellings)
    assert set(told(corpus, "monolingual:fr")) == {r for r in range(24) if r % 4 in (0, 3)}
    retold = PackedStream(corpus, "translated_retelling", row_length=64, seed=3).corpus.ids
    assert set(map(int, retold)) == {r for r in range(24) if r % 4 == 0}
    assert len(corpus.served(Mode.parse("mixed", LANGUAGES), weights=(1.0, 0.0))) == 12


def test_rows_that_no_stage_tells_are_counted(corpus: TokenCorpus) -> None:
    def untold(*modes: str) -> int:
        stages = tuple(Stage(mode, share=1.0) for mode in modes)
        return StagedStream(corpus, SLMTraining(stages=stages, steps=TRAINING.steps, row_length=64)).untold()

    assert untold("interleaved") == 12
    assert untold("interleaved", "monolingual:en") == 6
    assert untold("interleaved", "mixed") == 0
    only = corpus.select(np.flatnonzero(corpus.told[:, 0] & ~corpus.told[:, 1]))
    with pytest.raises(TresseError, match="no story that the mode interleaved tells"):
        PackedStream(only, "interleaved", row_length=64, seed=0)


def test_a_budget_by_language_is_met_with_pairs_and_rows_in_one_language(corpus: TokenCorpus) -> None:
    for mode in ("interleaved", "mixed"):
        stages = (Stage(mode, units={"en": 3000, "fr": 1500}),)
        stream = StagedStream(corpus, SLMTraining(stages=stages, batch_rows=4, row_length=64))
        (units, _), _ = stream.totals(stream.steps)
        assert (units >= [3000, 1500]).all()
        assert units[0] < 3000 * 1.6
