"""Preparing the corpus: readable by datasets, killed at any moment it ends with the same bytes, and bad rows are named."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.errors import TresseError
from slm.units import Units, load_encoder
from tests.train.corpus.tiny import (
    LANGUAGES,
    PREPARATION,
    contents,
    make_encoder,
    prepare,
    tell,
)
from train.corpus.shards import read_units
from train.corpus.work import CorpusPreparation, Request, Work
from train.speech.voices import SAMPLE_RATE, Voices, speak

SCRIPT = """
import sys
from pathlib import Path
from tests.train.corpus.tiny import prepare
prepare(Path(sys.argv[1]), Path(sys.argv[2]), workers=int(sys.argv[3]))
"""


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
    assert sum(1 for _ in read_units([corpus], LANGUAGES)) == sentences
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
        made.append(np.concatenate(list(read_units([tmp_path / str(seed)], LANGUAGES))).tolist())
    assert made[0] != made[1]


def test_a_damaged_shard_is_named(encoder: Path, tmp_path: Path) -> None:
    folder = prepare(encoder, tmp_path / "corpus", stories=4).folder
    (folder / "shard-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(TresseError, match=r"shard-00001\.parquet is damaged"):
        prepare(encoder, folder, stories=4)


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
