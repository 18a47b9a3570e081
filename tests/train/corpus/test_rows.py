"""Recording conditions, rows that cannot be used, and the benchmark of preparation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.errors import TresseError
from tests.train.corpus.tiny import (
    LANGUAGES,
    PREPARATION,
    contents,
    prepare,
    tell,
)
from train.corpus.preparation import prepare_corpus
from train.corpus.reader import Rejected, Row, read_rows
from train.corpus.shards import shard_counts
from train.corpus.work import CorpusPreparation, Shard, Work
from train.speech.augmentation import Augmentation
from train.speech.voices import Voices


def test_augmentation_changes_the_units_repeatably_and_once_a_run(encoder: Path, corpus: Path, tmp_path: Path) -> None:
    augmentation = Augmentation(noise=1.0, room=1.0)
    preparation = dataclasses.replace(PREPARATION, augmentation=augmentation, stories_per_voice=2)
    one, two = (prepare(encoder, tmp_path / name, 4, preparation).folder for name in "ab")
    assert contents(one) == contents(two)
    plain = prepare(encoder, tmp_path / "c", 4, dataclasses.replace(preparation, augmentation=None)).folder
    assert contents(one)["shard-00000.parquet"] != contents(plain)["shard-00000.parquet"]
    work = Work(LANGUAGES, encoder, preparation, Voices.load())
    recordings = [work.session(i)[1] for i in range(6)]
    assert recordings[::2] == recordings[1::2]
    assert len(set(recordings)) == 3


GOOD = {"id": "good", "sentences": {"en": ["The dog ran."], "fr": ["Le chien court."]}}


def _with(**changes: object) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


BAD: list[tuple[bytes, str]] = [
    (
        _with(id="b1", sentences={"en": ["One.", "Two."], "fr": ["Un."]}),
        "unequal numbers of sentences: 2 in en, 1 in fr",
    ),
    (_with(id="b2", sentences={"en": ["One."], "fr": [" "]}), "sentence 1 in fr is empty"),
    (_with(id="b3", sentences={"en": ["word " * 100], "fr": ["Un."]}), "499 characters"),
    (b'{"id": "b4", "sentences": {"en": ["caf\xe9"], "fr": ["caf\xe9"]}}', "not UTF-8: byte 39 of the row is 0xe9"),
    (b'{"id": "b5", "sentences": ', "not JSON"),
    (_with(id="b6", sentences={"en": ["One."], "fr": ["Un."], "de": ["Eins."]}), "unknown language 'de'"),
    (_with(id="b7", sentences={}), "no sentences in en or fr"),
    (_with(id="b15", kind="poem"), "unknown kind 'poem'"),
    (_with(id="b16", kind="pairs", sentences={"en": ["One."]}), "pairs need all languages"),
    (_with(id="good"), "an earlier row has the same id good"),
    (_with(id=""), "no id"),
    (b'["a list"]', "not a story"),
    (_with(id="b8", sentences={"en": [], "fr": []}), "no sentences"),
    (_with(id="b9", sentences={"en": ["?!"], "fr": ["Un."]}), "sentence 1 in en has no words"),
    (_with(id="b10", sentences={"en": "One.", "fr": ["Un."]}), "not a list of texts"),
    (b'{"id": "b11", "sentences": {"en": ["\\ud800 a"], "fr": ["Un."]}}', "not valid Unicode"),
    (_with(id="b12", sentences={"en": ["a\x00b"], "fr": ["Un."]}), "control characters"),
    (b"[" * 100_000, "not JSON"),
    (b" " * 1_000_001, "longer than"),
    (_with(id="b13", sentences={"en": ["word " * 30], "fr": ["Un."]}), "s when spoken: 4 s is the most"),
    (_with(id="b14", sentences={"en": ["\u0660\u200b"], "fr": ["Un."]}), "nothing to speak"),
]


def test_rows_that_cannot_be_used_are_named_and_all_others_survive(encoder: Path, tmp_path: Path) -> None:
    """A good row before, between and after the bad ones; the file ends without a line break and begins with a mark."""
    lines = [b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), b""]
    numbers = {}
    for i, (row, reason) in enumerate(BAD):
        numbers[len(lines) + 1] = reason
        lines += [row, _with(id=i)]
    source = tmp_path / "stories.jsonl"
    source.write_bytes(b"\n".join(lines))
    short = dataclasses.replace(PREPARATION, longest_seconds=4.0)
    made = prepare(encoder, tmp_path / "corpus", source=source, preparation=short)
    ids = [id for path in sorted(made.folder.glob("*.parquet")) for id in pq.read_table(path)["id"].to_pylist()]
    assert ids == ["good", *map(str, range(len(BAD)))]
    rejected = [json.loads(line) for line in (made.folder / "rejected.jsonl").read_text().splitlines()]
    assert [entry["row"] for entry in rejected] == list(numbers)
    for entry in rejected:
        assert numbers[entry["row"]] in entry["reason"], entry
        assert "\n" not in entry["reason"]
    assert made.rejected == len(BAD)
    assert made.counts.stories == json.loads((made.folder / "corpus.json").read_text())["stories"] == len(ids)
    before = contents(made.folder)
    assert prepare(encoder, made.folder, source=source, preparation=short) == made
    assert contents(made.folder) == before
    (made.folder / "shard-00001.parquet").unlink()
    (made.folder / "rejected.jsonl").unlink()
    prepare(encoder, made.folder, source=source, preparation=short)
    assert contents(made.folder) == before


def test_a_shard_without_a_usable_story_spoils_nothing(encoder: Path, tmp_path: Path) -> None:
    source = tmp_path / "stories.jsonl"
    unspeakable = [{"id": i, "sentences": {"en": ["\u0660\u200b"], "fr": ["Un."]}} for i in range(2)]
    source.write_text("".join(json.dumps(row) + "\n" for row in [*unspeakable, GOOD]))
    made = prepare(encoder, tmp_path / "corpus", source=source)
    assert shard_counts(made.folder / "shard-00000.parquet").stories == 0
    assert (made.counts.stories, made.rejected) == (1, 2)
    rows = datasets.load_dataset(
        "parquet", data_files=str(made.folder / "*.parquet"), split="train", cache_dir=str(tmp_path)
    )
    assert list(rows["id"]) == ["good"]
    before = contents(made.folder)
    assert prepare(encoder, made.folder, source=source) == made
    assert contents(made.folder) == before
    source.write_text("".join(json.dumps(row) + "\n" for row in unspeakable))
    with pytest.raises(TresseError, match=r"no story can be used \(row 1: nothing to speak"):
        prepare(encoder, tmp_path / "nothing", source=source)


def test_what_stops_a_preparation_is_said_before_the_work(encoder: Path, tmp_path: Path) -> None:
    source = tmp_path / "stories.jsonl"
    source.write_text("not a story\n")
    with pytest.raises(TresseError, match=r"no story can be used \(row 1: not JSON"):
        prepare(encoder, tmp_path / "a", source=source)
    with pytest.raises(TresseError, match=r"cannot read .*nowhere"):
        prepare(encoder, tmp_path / "a", source=tmp_path / "nowhere.jsonl")
    with pytest.raises(TresseError, match="unknown voice nobody"):
        prepare(encoder, tmp_path / "a", preparation=CorpusPreparation(speakers=("nobody",)))
    with pytest.raises(TresseError, match="'xx'"):
        prepare_corpus(tell(1), ["xx"], encoder, tmp_path / "a", PREPARATION, Voices.load(), 1)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "sentences", *LANGUAGES]), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    lines=st.lists(
        st.binary(max_size=20).map(lambda data: data.replace(b"\n", b""))
        | json_values.map(lambda v: json.dumps(v).encode())
    )
)
def test_no_file_makes_the_reader_fail(lines: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every non-blank line is either a usable row or a rejected one, in order, and the good one among them is found."""
    source = tmp_path_factory.mktemp("rows") / "stories.jsonl"
    source.write_bytes(b"\n".join([*lines, json.dumps({**GOOD, "id": "a long id"}).encode()]))
    rows = list(read_rows(source, LANGUAGES))
    numbers = [row.number if isinstance(row, Row) else row.row for row in rows]
    blank = {i for i, line in enumerate(lines, 1) if not line.removeprefix(b"\xef\xbb\xbf" if i == 1 else b"").strip()}
    assert [n for n in range(1, len(lines) + 2) if n not in blank] == numbers
    assert isinstance(rows[-1], Row)
    for row in rows:
        if isinstance(row, Rejected):
            assert json.loads(row.to_json())["reason"]


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    import tracemalloc

    def peak(count: int) -> int:
        source = tmp_path / f"{count}.jsonl"
        with source.open("w") as file:
            for i in range(count):
                file.write(json.dumps({**GOOD, "id": f"story-{i}"}) + "\n")
        tracemalloc.start()
        rows: Iterator[Row | Rejected] = read_rows(source, LANGUAGES)
        assert sum(isinstance(row, Row) for row in rows) == count
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak(20_000) < peak(2_000) + 50_000


def test_the_benchmark_says_how_fast_every_stage_is(encoder: Path) -> None:
    from train.bench.prepare import bench_prepare, table

    preparation = CorpusPreparation(speakers=("anouk", "bruno"), stories_per_voice=3)
    work = Work(LANGUAGES, encoder, preparation, Voices.load())
    rows = [Row(number, story.id, story.sentences) for number, story in enumerate(tell(6), 1)]
    result = json.loads(json.dumps(bench_prepare(Shard(Path(), 0, rows), work, repeats=1)))
    assert set(result["stages"]) == {"synthesis", "encoding", "writing"}
    assert all(stage["hours_per_hour"] > 0 for stage in result["stages"].values())
    assert sum(stage["share"] for stage in result["stages"].values()) == pytest.approx(1, abs=0.01)
    assert result["stages"][result["slowest"]]["share"] == max(stage["share"] for stage in result["stages"].values())
    slowest = min(result["stages"][name]["hours_per_hour"] for name in ("encoding", "writing"))
    assert result["encoding_and_writing"] <= slowest
    assert set(result["speedup"]) >= {"sentence cache"}
    assert (result["stories"], result["sentences"]) == (6, 48)
    assert result["spoken"] == len(set(work.requests(Shard(Path(), 0, rows))))
    assert f"{result['slowest']}" in next(line for line in table(result).splitlines() if "slowest" in line)
