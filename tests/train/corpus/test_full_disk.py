"""A preparation whose disk is full stops in one line, and goes on to the same bytes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from slm.errors import MachineError
from tests.train.corpus.tiny import contents, prepare

DISK = 256 * 1024


@pytest.mark.parametrize(("workers", "room"), [(1, 0), (1, 12 * 1024), (2, 12 * 1024)])
def test_a_full_disk_stops_it_and_it_goes_on(
    corpus: Path, encoder: Path, small_disk: Path, workers: int, room: int
) -> None:
    folder = small_disk / "corpus"
    (small_disk / "filler").write_bytes(bytes(DISK - room))
    with pytest.raises(MachineError, match=r"No space left on device\): free some space"):
        prepare(encoder, folder, workers=workers)
    assert not list(folder.glob(".*"))
    finished = {name for name in contents(folder) if name.endswith(".parquet")}
    assert len(finished) < 6
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    prepare(encoder, folder, workers=workers)
    assert contents(folder) == contents(corpus)
