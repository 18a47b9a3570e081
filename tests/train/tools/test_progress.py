"""Progress: one plain line where nobody watches, a bar on a terminal, and logs that resume."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from train.tools.progress import Log, Progress, clock


def test_a_plain_line_has_what_is_done_how_fast_and_how_long_still(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("speech", 4, start=2, unit="sentences", every=0.0)
    progress.update(3, loss=1.23456)
    progress.update(4, loss=1.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("speech  3/4  loss 1.235  ")
    assert "sentences/s  ETA " in lines[0]
    assert lines[1].endswith("ETA 0:00")


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = Progress("speech", 2, unit="sentences")
    progress.update(2)
    assert "2/2" in capsys.readouterr().err


def test_a_clock_shows_hours_where_there_are_some() -> None:
    assert [clock(seconds) for seconds in (5, 65, 3725, float("inf"))] == ["0:05", "1:05", "1:02:05", "?"]


def test_a_log_drops_what_lies_behind_the_step_that_a_run_resumes_from(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl", 0)
    for step in (1, 2, 3):
        log.write({"step": step})
    Log(tmp_path / "log.jsonl", 2).write({"step": 3, "again": True})
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]
