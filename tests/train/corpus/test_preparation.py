"""Preparing the corpus: readable by datasets, killed at any moment it ends with the same bytes, and bad rows are named."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.errors import TresseError
from slm.units import Units, load_encoder
from slm.units.conv import ConvEncoderConfig, ConvUnitEncoder, UnitNetwork
from train.corpus.preparation import prepare_corpus, read_units, shard_counts
from train.corpus.reader import Rejected, Row, read_rows
from train.corpus.work import CorpusPreparation, Prepared, Request, Shard, Work
from train.speech.augmentation import Augmentation
from train.speech.voices import SAMPLE_RATE, Voices, speak

LANGUAGES = ["en", "fr"]
PREPARATION = CorpusPreparation(stories_per_shard=2, speakers=("anouk", "bruno"))
SCRIPT = """
import sys
from pathlib import Path
from tests.train.corpus.test_preparation import prepare
prepare(Path(sys.argv[1]), Path(sys.argv[2]), workers=int(sys.argv[3]))
"""


@dataclasses.dataclass
class Told:
    id: str
    sentences: dict[str, list[str]]


def tell(count: int) -> list[Told]:
    """Stories of four sentences that have some sentences in common."""
    who = [("dog", "chien"), ("cat", "chat"), ("bird", "petit oiseau")]
    numbers = [("one", "un"), ("two", "deux"), ("three", "trois"), ("four", "quatre"), ("five", "cinq")]
    stories = []
    for i in range(count):
        (en, fr), (number, nombre) = who[i % 3], numbers[i % 5]
        english = [f"The {en} ran away.", f"It saw {number} balls.", f"The {en} came home {number} times.", "It slept."]
        french = [f"Le {fr} est parti.", f"Il a vu {nombre} ballons.", f"Le {fr} est rentré {nombre} fois.", "Il dort."]
        stories.append(Told(f"story-{i}", {"en": english, "fr": french}))
    return stories


def prepare(
    encoder: Path,
    folder: Path,
    stories: int = 12,
    preparation: CorpusPreparation = PREPARATION,
    workers: int = 1,
    source: Path | None = None,
) -> Prepared:
    given = source or tell(stories)
    return prepare_corpus(given, LANGUAGES, encoder, folder, preparation, Voices.load(), workers)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"), seed=0)


def make_encoder(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    ConvUnitEncoder(UnitNetwork(ConvEncoderConfig(codebook_size=50, width=16))).save(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(encoder, tmp_path_factory.mktemp("corpus")).folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def alone(encoder: Path, speaker: str, language: str, text: str) -> Units:
    """The units of one sentence that is encoded by itself."""
    voices = Voices.load()
    return load_encoder(encoder).encode(speak(text, language, voices.speaker(speaker), voices), SAMPLE_RATE)


def test_datasets_reads_it_and_rows_are_the_stories(corpus: Path, encoder: Path, tmp_path: Path) -> None:
    rows = datasets.load_dataset(
        "parquet", data_files=str(corpus / "*.parquet"), split="train", cache_dir=str(tmp_path)
    )
    stories = {story.id: story for story in tell(12)}
    assert list(rows["id"]) == list(stories)
    assert set(rows["speaker"]) == {"anouk", "bruno"}
    for row in (rows[0], rows[5]):
        for language in LANGUAGES:
            texts = stories[row["id"]].sentences[language]
            assert len(row[f"units_{language}"]) == len(row[f"run_lengths_{language}"]) == len(texts)
            for i in (0, len(texts) - 1):
                units = alone(encoder, row["speaker"], language, texts[i])
                assert row[f"units_{language}"][i] == units.ids.tolist()
                assert row[f"run_lengths_{language}"][i] == units.run_lengths.tolist()
    assert "uint16" in str(rows.features["units_en"])
    sentences = sum(len(texts) for story in stories.values() for texts in story.sentences.values())
    assert sum(1 for _ in read_units(corpus, LANGUAGES)) == sentences
    description = json.loads((corpus / "corpus.json").read_text())
    assert description["stories"] == 12
    assert description["sentences"] == sentences
    assert description["languages"] == LANGUAGES


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_run_again_it_ends_with_the_same_bytes(
    corpus: Path, encoder: Path, tmp_path: Path, workers: int
) -> None:
    folder = tmp_path / "killed"
    kills, lost = 0, []
    for _ in range(2 if workers == 1 else 1):
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(encoder), str(folder), str(workers)], stderr=subprocess.DEVNULL
        )
        finished = len(list(folder.glob("shard-*.parquet")))
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(folder.glob("shard-*.parquet"))) > finished:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        process.wait()
        _until_free(folder)
        lost += [path for path in folder.glob(".*.tmp")]
    assert kills
    assert len(lost) <= kills * workers  # work on at most one shard a worker
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*.parquet")}
    prepare(encoder, folder)
    assert contents(folder) == contents(corpus)  # and nothing half written is left
    for name, moment in before.items():  # finished shards were not made again
        assert (folder / name).stat().st_mtime_ns == moment


def _until_free(folder: Path) -> None:
    """Workers outlive a killed parent by a moment, and may finish what they were writing."""
    seen: dict[str, int] = {}
    while True:
        now = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.exists()}
        if now == seen:
            return
        seen = now
        time.sleep(0.5)


def test_all_workers_make_the_bytes_that_one_makes(corpus: Path, encoder: Path, tmp_path: Path) -> None:
    assert contents(prepare(encoder, tmp_path, workers=2).folder) == contents(corpus)


def test_a_finished_corpus_is_left_as_it_is(corpus: Path, encoder: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in corpus.glob("shard-*")}
    assert prepare(encoder, corpus).counts.stories == 12
    assert {path.name: path.stat().st_mtime_ns for path in corpus.glob("shard-*")} == before


def test_another_corpus_in_the_same_folder_is_refused(corpus: Path, encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(TresseError, match="other stories"):
        prepare(encoder, corpus, stories=10)
    with pytest.raises(TresseError, match="other stories"):
        prepare(encoder, corpus, preparation=dataclasses.replace(PREPARATION, stories_per_voice=3))
    with pytest.raises(TresseError, match="other stories"):
        prepare(make_encoder(tmp_path / "other", seed=1), corpus)


def test_an_encoder_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    made = []
    for seed in (0, 1):
        prepare(make_encoder(tmp_path / "encoder", seed), tmp_path / str(seed), stories=2)
        made.append(np.concatenate(list(read_units(tmp_path / str(seed), LANGUAGES))).tolist())
    assert made[0] != made[1]


def test_a_damaged_shard_and_a_second_process_are_named(corpus: Path, encoder: Path, tmp_path: Path) -> None:
    import fcntl

    folder = prepare(encoder, tmp_path / "corpus", stories=4).folder
    (folder / "shard-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(TresseError, match=r"shard-00001\.parquet is damaged"):
        prepare(encoder, folder, stories=4)
    handle = os.open(corpus, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(TresseError, match="another process"):
            prepare(encoder, corpus)
    finally:
        os.close(handle)


def test_a_sentence_met_before_in_a_voice_is_not_spoken_again(encoder: Path, tmp_path: Path) -> None:
    """Against the count of distinct (shard, voice, language, text)."""
    source = tmp_path / "stories.jsonl"
    texts = ["The dog ran.", "The cat slept.", "The sun shone."]
    rows = [
        {"id": f"{i}", "sentences": {"en": [texts[i % 3], texts[0]], "fr": ["Le chien dort.", texts[i % 2]]}}
        for i in range(8)
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spoken = {}
    for run in (1, 2, 4):
        preparation = CorpusPreparation(stories_per_shard=4, speakers=("anouk", "bruno"), stories_per_voice=run)
        made = prepare(encoder, tmp_path / str(run), preparation=preparation, source=source)
        work = Work(LANGUAGES, encoder, preparation, Voices.load())
        expected = {
            (i // 4, Request(*work.session(i), language, text))
            for i, row in enumerate(rows)
            for language in LANGUAGES
            for text in row["sentences"][language]
        }
        assert made.counts.sentences == 8 * 4
        assert made.counts.spoken == len(expected)
        spoken[run] = made.counts.spoken
    assert spoken[4] < spoken[1]


@settings(max_examples=30, deadline=None)
@given(run=st.integers(1, 7), seed=st.integers(0, 99), voices=st.integers(1, 5))
def test_runs_of_stories_share_a_voice_and_all_voices_speak_alike(run: int, seed: int, voices: int) -> None:
    names = tuple(list(Voices.load().training)[:voices])
    work = Work(LANGUAGES, Path(), CorpusPreparation(stories_per_voice=run, speakers=names, seed=seed), Voices.load())
    told = [work.session(i)[0] for i in range(3 * voices * run)]
    for start in range(0, len(told), run):
        assert len(set(told[start : start + run])) == 1
    for cycle in range(3):
        assert set(told[cycle * voices * run : (cycle + 1) * voices * run]) == set(names)


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
    (_with(id="b7", sentences={"en": ["One."]}), "no sentences in fr"),
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
