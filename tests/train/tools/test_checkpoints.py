"""Checkpoints: two generations on the disk, and a damaged newest one costs no more than the steps since the one before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from slm.errors import TresseError
from train.tools.checkpoints import load_checkpoint, previous_generation, save_checkpoint


def state(step: int) -> dict:
    return {"step": step, "weights": torch.full((1000,), float(step))}


def step_of(path: Path) -> int:
    loaded = load_checkpoint(path)
    assert loaded is not None
    assert torch.equal(loaded["weights"], state(loaded["step"])["weights"])
    return loaded["step"]


def flip(path: Path) -> None:
    """One byte in the middle, among the weights."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:700]),
    "other": lambda path: path.write_text("no checkpoint"),
    "flipped": flip,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_newest_falls_back_to_the_one_before(
    tmp_path: Path, damage: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "checkpoint.pt"
    assert load_checkpoint(path) is None
    for step in (1, 2, 3):
        save_checkpoint(path, state(step))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint.previous.pt", "checkpoint.pt"]
    assert (step_of(path), step_of(previous_generation(path))) == (3, 2)
    assert capsys.readouterr().err == ""
    damage(path)
    assert step_of(path) == 2
    assert "is damaged: going on from checkpoint.previous.pt" in capsys.readouterr().err
    save_checkpoint(path, state(4))
    assert step_of(path) == 4


def test_what_is_damaged_does_not_replace_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    for step in (1, 2):
        save_checkpoint(path, state(step))
    path.write_bytes(b"")
    save_checkpoint(path, state(3))
    assert (step_of(path), step_of(previous_generation(path))) == (3, 1)


def test_without_a_sound_one_the_mend_is_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"")
    with pytest.raises(TresseError, match="delete it to begin this training again"):
        load_checkpoint(path)


def test_a_deleted_checkpoint_begins_a_new_run(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    for step in (1, 2):
        save_checkpoint(path, state(step))
    path.unlink()
    assert load_checkpoint(path) is None
    save_checkpoint(path, state(1))
    assert not previous_generation(path).exists()
