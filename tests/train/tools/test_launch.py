"""Processes of this machine train together, and what is wrong in them is said in one line here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from slm.errors import TresseError
from tests.train.lm.tiny import SMALL, TRAINING, vocabulary, write_corpus
from train.stages import train_language_model
from train.tools.launch import on_processes


def test_workers_share_the_training(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    vocabulary().save(tmp_path / "vocabulary")
    training = replace(TRAINING, steps=6, held_out=0, precision="no")
    for workers in (2, 3):  # three do not divide four rows: two do the work
        out = tmp_path / str(workers)
        train_language_model(SMALL, training, tmp_path, out, workers)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("2", "3")]
    losses = [[json.loads(line)["loss"] for line in lines] for lines in logs]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2


def _fail(message: str) -> None:
    raise TresseError(message)


def test_an_error_of_a_process_is_an_error_here() -> None:
    with pytest.raises(TresseError, match="make room"):
        on_processes(2, _fail, "make room")
