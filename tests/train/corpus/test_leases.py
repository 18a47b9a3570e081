"""Processes that share a folder: no two write the same file, a killed one's work is taken over, the bytes are the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.corpus.tiny import contents, prepare
from train.corpus import leases
from train.corpus.leases import Leases

SCRIPT = """
import sys
from pathlib import Path
from tests.train.corpus.tiny import prepare
prepare(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@settings(max_examples=10, deadline=None)
@given(workers=st.integers(2, 5), files=st.integers(1, 6))
def test_every_file_is_written_once(workers: int, files: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("folder")
    paths = [folder / str(number) for number in range(files)]
    written: list[Path] = []

    def work() -> None:
        with Leases(folder) as mine:
            missing = set(paths)
            while missing:
                for path in paths:
                    if not path.exists() and mine.take(path):
                        if not path.exists():
                            written.append(path)
                            path.touch()
                        mine.give_back(path)
                missing = {path for path in missing if not path.exists()}
                mine.wait(missing, Path.exists)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(written) == sorted(paths)
    assert sorted(folder.iterdir()) == sorted(paths)


def test_what_another_machine_touches_is_its_own_and_what_it_leaves_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, half = tmp_path / "shard", tmp_path / ".shard.1-ab.tmp"
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(leases, "_machine", lambda: "another")
        other = Leases(tmp_path)
        assert other.take(path)
    half.touch()
    with Leases(tmp_path, patience=1.5) as mine:
        until = time.monotonic() + 4
        while time.monotonic() < until:
            os.utime(tmp_path / ".shard.lease")
            assert not mine.take(path)
            mine.tidy()
            time.sleep(0.1)
        assert half.exists()
        mine.wait([path], Path.exists)
        assert time.monotonic() > until + 1
        assert mine.take(path)
        assert not half.exists()
        other.give_back(path)  # it comes back too late: what it had is not its own any more
        assert (tmp_path / ".shard.lease").exists()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_of_this_machine_had_is_lost_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = json.dumps({"machine": leases._machine(), "process": process.pid, "token": ""})
    (tmp_path / ".shard.lease").write_text(owner)
    with Leases(tmp_path) as mine:
        assert not mine.take(tmp_path / "shard")
        process.kill()
        process.wait()
        assert mine.take(tmp_path / "shard")


def test_processes_divide_a_corpus_and_go_on_where_one_was_killed(corpus: Path, encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    command = [sys.executable, "-c", SCRIPT, str(encoder), str(folder)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]

    def has_a_shard(process: subprocess.Popen) -> bool:
        for path in folder.glob(".shard-*.lease"):
            with suppress(FileNotFoundError):
                if f'"process": {process.pid},' in path.read_text():
                    return True
        return False

    deadline = time.monotonic() + 200
    while not (working := list(filter(has_a_shard, running))) and time.monotonic() < deadline:
        time.sleep(0.002)
    killed = working[0]
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    (other,) = (process for process in running if process is not killed)
    _, said = other.communicate(timeout=200)
    assert (killed.returncode, other.returncode) == (-signal.SIGKILL, 0), said.decode()
    assert contents(folder) == contents(corpus)
    prepare(encoder, folder)
    assert contents(folder) == contents(corpus)
