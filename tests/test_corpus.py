"""Preparing the corpus: readable by datasets, killed at any moment it ends with the same bytes, and is not mixed up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from slm.errors import TresseError
from slm.units.conv import ConvEncoderConfig, ConvUnitEncoder, UnitNetwork
from train.corpus import CorpusPreparation, encode_sentences, prepare_corpus, read_units
from train.speech import Voices
from train.stories.grammar import generate_stories

PREPARATION = CorpusPreparation(stories_per_shard=2, speakers=("anouk", "bruno"))
SCRIPT = """
import sys
from pathlib import Path
from tests.test_corpus import prepare
prepare(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def prepare(encoder: Path, folder: Path, stories: int = 12) -> Path:
    return prepare_corpus(
        list(generate_stories(3, stories)), ["en", "fr"], encoder, folder, PREPARATION, Voices.load(), workers=1
    )


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    ConvUnitEncoder(UnitNetwork(ConvEncoderConfig(codebook_size=50, width=16))).save(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(encoder, tmp_path_factory.mktemp("corpus"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_datasets_reads_it_and_rows_are_the_stories(corpus: Path, encoder: Path, tmp_path: Path) -> None:
    rows = datasets.load_dataset(
        "parquet", data_files=str(corpus / "*.parquet"), split="train", cache_dir=str(tmp_path)
    )
    stories = {story.id: story for story in generate_stories(3, 12)}
    assert sorted(rows["id"]) == sorted(stories)
    assert set(rows["speaker"]) == {"anouk", "bruno"}
    row = rows[5]
    story, loaded = stories[row["id"]], ConvUnitEncoder.load(encoder)
    for language in ("en", "fr"):
        texts = [(language, text) for text in story.sentences[language]]
        alone = encode_sentences(texts[:1], row["speaker"], loaded, Voices.load())[texts[0]]
        assert row[f"units_{language}"][0] == alone.ids.tolist()
        assert row[f"run_lengths_{language}"][0] == alone.run_lengths.tolist()
        assert len(row[f"units_{language}"]) == len(texts)
    assert sum(1 for _ in read_units(corpus, ["en", "fr"])) == 12 * 10


def test_killed_and_run_again_it_ends_with_the_same_bytes(corpus: Path, encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    kills = 0
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(encoder), str(folder)], stderr=subprocess.DEVNULL, env=os.environ
        )
        finished = len(list(folder.glob("shard-*.parquet")))
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(folder.glob("shard-*.parquet"))) > finished:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        process.wait()
    assert kills
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*.parquet")}
    prepare(encoder, folder)
    assert {name: data for name, data in contents(folder).items() if not name.startswith(".")} == contents(corpus)
    for name, moment in before.items():  # finished shards were not made again
        assert (folder / name).stat().st_mtime_ns == moment


def test_another_corpus_in_the_same_folder_is_refused(corpus: Path, encoder: Path) -> None:
    with pytest.raises(TresseError, match="other stories"):
        prepare(encoder, corpus, stories=10)


def test_units_are_small_numbers_of_the_codebook(corpus: Path) -> None:
    ids = np.concatenate(list(read_units(corpus, ["en", "fr"])))
    assert ids.min() >= 0
    assert ids.max() < 50
