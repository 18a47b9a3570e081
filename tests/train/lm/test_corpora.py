"""Several corpora a training: their shares are kept in every step, and a run goes on exactly, however it is divided."""

from __future__ import annotations

import json
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
from tests.train.lm.tiny import SMALL, TRAINING, UNITS, vocabulary, write_corpus
from train.lm.corpus import TokenCorpus
from train.lm.packing import IGNORE, PackedBatch
from train.lm.schedule import Stage, StagedStream
from train.lm.training import train_slm

SPLIT = UNITS // 2
"""The stories of `english` have the units from here on, those of `high` too; the others' stories those below."""
MIXED = Stage("monolingual:en", share=0.5, corpora={"stories": 1.0, "english": 2.0})
STAGES = (MIXED, Stage(("interleaved", "monolingual:fr"), share=0.3), Stage("mixed", share=0.2, corpora="english"))


def write_part(folder: Path, units: range, languages: list[str], stories: int) -> Path:
    """A corpus of English and French, told in some of the languages, of some of the units."""
    rng = np.random.default_rng(units.start)
    counts = rng.integers(1, 4, stories)
    rows: dict[str, Any] = {"id": [f"{units.start}-{number}" for number in range(stories)]}
    numbers = pa.list_(pa.list_(pa.uint16()))
    for language in ("en", "fr"):
        told = [[rng.choice(units, rng.integers(1, 9)).tolist() for _ in range(n)] for n in counts]
        rows[f"units_{language}"] = pa.array(told if language in languages else [[]] * stories, numbers)
    folder.mkdir()
    pq.write_table(pa.table(rows), folder / "shard-00000.parquet")
    info = {"languages": ["en", "fr"], "frame_rate": 50.0, "codebook_size": UNITS, "stories": stories}
    (folder / "corpus.json").write_text(json.dumps(info))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("corpora")
    return {
        "stories": write_part(folder / "stories", range(SPLIT), ["en", "fr"], 30),
        "english": write_part(folder / "english", range(SPLIT, UNITS), ["en"], 50),
    }


@pytest.fixture(scope="module")
def corpora(folders: dict[str, Path]) -> dict[str, TokenCorpus]:
    return {name: TokenCorpus.load(folder, vocabulary()) for name, folder in folders.items()}


def stream_of(corpora: dict[str, TokenCorpus], position: dict | None = None, **changes: Any) -> StagedStream:
    training = replace(TRAINING, **{"stages": STAGES, "steps": 40, "batch_rows": 6, "row_length": 64, **changes})
    return StagedStream(corpora["stories"], training, position, {"english": corpora["english"]})


def from_english(batch: PackedBatch, corpus: TokenCorpus) -> list[bool]:
    """Of each row: whether all its units are of the corpus `english`; a row that mixes them fails."""
    rows = []
    units = vocabulary()
    high = {units.encode([unit])[0] for unit in range(SPLIT, UNITS)}
    low = {units.encode([unit])[0] for unit in range(SPLIT)}
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        seen = {token for token, target in zip(tokens, targets, strict=True) if target != IGNORE}
        assert not (seen & high and seen & low)
        rows.append(bool(seen & high))
    return rows


@settings(max_examples=100, deadline=None)
@given(shares=st.lists(st.floats(0.01, 100), min_size=1, max_size=6), rows=st.integers(6, 300))
def test_rows_are_divided_as_near_to_the_shares_as_they_can_be(shares: list[float], rows: int) -> None:
    stage = Stage("interleaved", share=1.0, corpora={str(k): share for k, share in enumerate(shares)})
    filled = list(stage.rows(rows).values())
    assert sum(filled) == rows
    assert min(filled) >= 1
    wanted = [share * rows / sum(shares) for share in shares]
    if min(wanted) >= 1:
        assert all(abs(given - exact) < 1 for given, exact in zip(filled, wanted, strict=True))


def test_every_step_has_its_share_of_each_corpus(corpora: dict[str, TokenCorpus]) -> None:
    stream = stream_of(corpora)
    shares = [sum(from_english(stream.batch(step), corpora["english"])) for step in range(stream.steps)]
    assert shares == [4] * 20 + [0] * 12 + [6] * 8
    assert (stream.untold("stories"), stream.untold("english")) == (0, 0)
    assert stream_of(corpora, stages=STAGES[1:2]).untold("english") == 50


@settings(max_examples=10, deadline=None)
@given(step=st.integers(0, 39), processes=st.integers(1, 8))
def test_it_goes_on_exactly_with_any_number_of_processes(
    corpora: dict[str, TokenCorpus], step: int, processes: int
) -> None:
    whole = stream_of(corpora)
    training = replace(TRAINING, batch_rows=6)
    lanes, position, counted = [], {}, np.zeros((2, 2), np.int64)
    for process in range(processes):
        mine = stream_of(corpora)
        for number in range(max(0, step - 1), step):
            mine.draw(number, *training.rows_of(process, processes))
        position = json.loads(json.dumps(mine.position(step)))
        lanes += position["lanes"]
    for number in range(step):
        counted += whole.draw(number)[1][0]
    assert np.array_equal(whole.totals(step)[0], counted)
    again = stream_of(corpora, {**position, "lanes": lanes})
    for number in range(step, min(step + 3, 40)):
        parts = [again.batch(number, *training.rows_of(process, processes)) for process in range(processes)]
        assert torch.equal(PackedBatch.joined(parts).tokens, whole.batch(number).tokens)
        assert torch.equal(PackedBatch.joined(parts).targets, whole.batch(number).targets)


def test_a_training_that_was_stopped_ends_with_the_same_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    training = replace(TRAINING, stages=STAGES, steps=7, checkpoint_every=2, log_every=1)
    others = {"english": folders["english"]}

    def run(folder: Path, stop: int | None = None) -> Any:
        def say(line: str) -> None:
            if stop is not None and line.startswith(f"step {stop}/"):
                raise KeyboardInterrupt

        return train_slm(SMALL, training, vocabulary(), folders["stories"], folder, corpora=others, progress=say)

    whole = run(tmp_path / "whole").state_dict()
    for stop in (3, 6):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", stop)
    again = run(tmp_path / "stopped").state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "stopped")]
    assert summaries[0] == summaries[1]
    with pytest.raises(TresseError, match="was started with training stages"):
        train_slm(
            SMALL,
            replace(training, stages=(MIXED, *STAGES[1:2])),
            vocabulary(),
            folders["stories"],
            tmp_path / "whole",
            corpora=others,
            progress=None,
        )


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (Stage("mixed", share=1.0, corpora="german"), "reads the corpus german: known are stories, english"),
        (Stage("mixed", share=1.0, corpora={"english": 0.0}), "with a share above 0 each"),
        (Stage("mixed", share=1.0, corpora={}), "must read a corpus"),
        (Stage("mixed", units=9, corpora={"english": 1.0, "stories": 1.0}), "a share or steps instead of units"),
        (Stage("mixed", steps=9, corpora={"english": 1.0, "stories": 1.0}), "2 corpora in 1 rows"),
    ],
)
def test_stages_that_cannot_be_are_refused(stage: Stage, message: str) -> None:
    with pytest.raises(TresseError, match=message):
        replace(TRAINING, stages=(stage,), batch_rows=1).check(("en", "fr"), ("stories", "english"))


def test_a_corpus_of_other_languages_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    write_corpus(tmp_path / "other", languages=("en",))
    training = replace(TRAINING, stages=(replace(MIXED, corpora="other"),))
    with pytest.raises(TresseError, match="the corpus other has en at 50 units/s, the stories en, fr"):
        train_slm(
            SMALL,
            training,
            vocabulary(),
            folders["stories"],
            tmp_path / "run",
            corpora={"other": tmp_path / "other"},
            progress=None,
        )
