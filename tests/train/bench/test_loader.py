"""The benchmark of the loader: what it writes can be read as a corpus, and what it measures is there."""

from __future__ import annotations

from pathlib import Path

from train.bench.loader import SETTINGS, _open, _play, table, write_tokens


def test_an_invented_corpus_is_read_by_processes_that_share_a_step(tmp_path: Path) -> None:
    stories = write_tokens(tmp_path, 400_000)
    started = _open(str(tmp_path), 3, 64, None)
    position = started["position"]
    assert position["step"] > 1
    assert {lane for _, _, lanes in position["lanes"] for lane, *_ in lanes} == set(range(15, 20))  # its rows of 300
    resumed = _open(str(tmp_path), 3, 64, position)
    assert resumed["position"]["step"] > position["step"]
    played = _play(str(tmp_path), 2)
    assert played["tokens_per_second"]["slowest"] > 0
    result = {
        "units": 400_000,
        "stories": stories,
        "bytes": 1,
        "processes": 64,
        "readings": {"start, 64": started, "resume, 64": resumed},
        "needed": {"gpu": "H100", "tokens_per_second": 1.0},
        **played,
    }
    assert f"{stories:,} stories" in table(result)
    assert SETTINGS.rows_of(3, 64) == (15, 5)
