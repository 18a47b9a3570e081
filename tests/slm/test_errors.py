"""One line is one line, and a full disk is said to be one, whichever library noticed it."""

from __future__ import annotations

import errno
import os
import subprocess
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from slm.audio import write_wav
from slm.errors import (
    ESCAPED,
    MachineError,
    TresseError,
    cannot_read,
    complain,
    machine_fault,
    one_line,
    say,
    writing,
)
from train.tools.checkpoints import atomic_path, load_checkpoint, save_checkpoint, write_json

WEIGHTS = {"weights": torch.randn(200_000)}


@given(st.text() | st.text(alphabet="\n\r\t\x1b\x07\x85\u2028\u2029\u202e\u200b\ud800\udce9é’ a"))
def test_any_text_is_one_line_that_no_terminal_obeys(text: str) -> None:
    line = one_line(text)
    assert len(line.splitlines()) <= 1
    assert not any(unicodedata.category(char) in ESCAPED for char in line)
    line.encode()  # no lone surrogate
    assert one_line(line) == line
    assert str(TresseError(text)) == line


def test_what_is_plain_stays_as_it_is() -> None:
    assert one_line("no such file: “Été — 1 200 €”.wav") == "no such file: “Été — 1 200 €”.wav"
    assert one_line(os.fsdecode(b"caf\xe9\n\x1b[31m.wav")) == r"caf\xe9\n\x1b[31m.wav"


def test_lines_on_both_outputs_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    complain("a\nb\x1b[2J")
    say("| a\x1b[2J |\n| b |")
    printed = capsys.readouterr()
    assert printed.err == "a\\nb\\x1b[2J\n"
    assert printed.out == "| a\\x1b[2J |\n| b |\n"


def with_torch(path: Path) -> None:
    with atomic_path(path) as temporary:
        torch.save(WEIGHTS, temporary)


def with_safetensors(path: Path) -> None:
    with atomic_path(path) as temporary:
        save_file(WEIGHTS, temporary)


def with_parquet(path: Path) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(pa.table({"x": np.random.default_rng(0).normal(size=100_000)}), temporary)


def with_numpy(path: Path) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.zeros(200_000))


WRITERS: dict[str, Callable[[Path], None]] = {
    "checkpoint": lambda path: save_checkpoint(path, WEIGHTS),
    "torch": with_torch,
    "safetensors": with_safetensors,
    "parquet": with_parquet,
    "numpy": with_numpy,
    "json": lambda path: write_json(path, list(range(100_000))),
    "wav": lambda path: write_wav(path, np.zeros(200_000, np.float32), 16000),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_is_one_line_and_leaves_nothing(small_disk: Path, write: Callable[[Path], None]) -> None:
    with pytest.raises(MachineError, match=r"No space left on device\): free some space") as caught:
        write(small_disk / "file")
    assert str(small_disk / "file") in str(caught.value)
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_read_only_disk_does_not_ask_for_space(small_disk: Path, write: Callable[[Path], None]) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(MachineError, match=r"Read-only file system\): choose a place that can be written to"):
        write(small_disk / "file")


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(small_disk: Path) -> None:
    path = small_disk / "checkpoint.pt"
    save_checkpoint(path, {"step": 1})
    with pytest.raises(MachineError):
        save_checkpoint(path, {"step": 2, **WEIGHTS})
    assert load_checkpoint(path) == {"step": 1}


def test_a_checkpoint_that_may_be_sound_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1})
    for number in (errno.EACCES, errno.EIO, errno.EMFILE):

        def refuse(*_: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr("train.tools.checkpoints.zipfile.ZipFile", refuse)
            with pytest.raises(TresseError, match="cannot read") as caught:
                load_checkpoint(path)
        assert "delete" not in str(caught.value)


@pytest.mark.parametrize(
    ("number", "machine", "words"),
    [
        (errno.ENOSPC, True, "free some space"),
        (errno.EDQUOT, True, "free some space"),
        (errno.EROFS, True, "can be written to"),
        (errno.EACCES, True, "permissions"),
        (errno.EMFILE, True, "ulimit -n"),
        (errno.EIO, True, "check the disk"),
        (errno.ENAMETOOLONG, False, "shorter name"),
        (errno.EISDIR, False, "a folder is in the way"),
        (errno.ENOTDIR, False, "a file is in the way"),
    ],
)
def test_each_fault_names_its_own_mend(tmp_path: Path, number: int, machine: bool, words: str) -> None:
    with pytest.raises(TresseError, match=words) as caught, writing(tmp_path / "x"):
        raise OSError(number, os.strerror(number))
    assert isinstance(caught.value, MachineError) == machine


def test_faults_of_ours_are_not_laid_to_the_machine(tmp_path: Path) -> None:
    for fault in (RuntimeError("no"), KeyError("x"), OSError("no number")):
        with pytest.raises(type(fault)) as caught, writing(tmp_path / "x"):
            raise fault
        assert caught.value is fault
        assert machine_fault(fault) is None
    with pytest.raises(FileNotFoundError), writing(tmp_path / "x"):
        (Path(__file__).parent / "nothing").read_text()  # what was being read meanwhile
    behind = RuntimeError("the next attempt failed")
    behind.__context__ = FileNotFoundError(errno.ENOENT, "No such file")  # which had been dealt with
    assert machine_fault(behind) is None
    behind.__context__ = OSError(errno.ENOSPC, "No space left on device")
    assert isinstance(machine_fault(behind), MachineError)


def test_an_unreadable_file_is_its_own_fault_unless_none_could_be_read(tmp_path: Path) -> None:
    assert not isinstance(cannot_read("x", PermissionError(errno.EACCES, "Permission denied")), MachineError)
    assert "is a folder" in str(cannot_read("x", IsADirectoryError(errno.EISDIR, "Is a directory")))
    assert isinstance(cannot_read("x", OSError(errno.EMFILE, "Too many open files")), MachineError)


def test_memory_that_runs_out_is_the_machine() -> None:
    assert "close other programs" in str(machine_fault(MemoryError()))
