"""Checkpoints of shards: what is read is what was saved, whatever changed, was cut off or was damaged since."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as distributed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slm.errors import MachineError, TresseError
from train.tools import sharded
from train.tools.sharded import MARK, ShardedCheckpoints

SHAPES = st.lists(st.integers(0, 5), max_size=3)
KINDS = st.sampled_from([torch.float32, torch.bfloat16, torch.int64])


@pytest.fixture(autouse=True, scope="module")
def _group() -> Iterator[None]:
    """torch.distributed with one process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def tensors(step: int) -> dict[str, Any]:
    return {"weights": torch.full((1000,), float(step)), "step": torch.tensor(float(step))}


def save(checkpoints: ShardedCheckpoints, step: int) -> Path:
    checkpoints.save(step, tensors(step), {"lanes": [step, [step]]})
    checkpoints.wait()
    return checkpoints.folder / f"step-{step:08d}"


def newest(folder: Path) -> int | None:
    """The step of the newest checkpoint, whose contents are looked at."""
    checkpoints = ShardedCheckpoints(folder)
    checkpoint = checkpoints.newest()
    if checkpoint is None:
        return None
    read = tensors(0)
    checkpoints.load(checkpoint, read)
    assert checkpoint.facts == {"lanes": [checkpoint.step, [checkpoint.step]]}
    assert all(torch.equal(value, read[name]) for name, value in tensors(checkpoint.step).items())
    return checkpoint.step


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shapes=st.lists(st.tuples(SHAPES, KINDS), min_size=1, max_size=4), data=st.data())
def test_what_is_read_is_what_was_there_when_the_save_began(
    tmp_path: Path, shapes: list[tuple[list[int], torch.dtype]], data: st.DataObject
) -> None:
    seed = data.draw(st.integers(0, 1000))
    torch.manual_seed(seed)
    saved = {f"tensor.{k}": torch.randint(-99, 99, shape).to(kind) for k, (shape, kind) in enumerate(shapes)}
    expected = {name: tensor.clone() for name, tensor in saved.items()}
    checkpoints = ShardedCheckpoints(tmp_path / str(seed))
    checkpoints.save(1, saved, {})
    for tensor in saved.values():
        tensor.zero_()
    checkpoints.wait()
    checkpoint = checkpoints.newest()
    assert checkpoint is not None
    checkpoints.load(checkpoint, saved)
    assert all(torch.equal(saved[name], tensor) for name, tensor in expected.items())


def shard(path: Path) -> Path:
    (file,) = path.glob("*.safetensors")
    return file


def flip(path: Path) -> None:
    """One byte in the middle, among the weights."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: shard(path).write_bytes(shard(path).read_bytes()[:700]),
    "missing": lambda path: shard(path).unlink(),
    "flipped": lambda path: flip(shard(path)),
    "mark": lambda path: (path / MARK).write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_newest_falls_back_to_the_one_before(
    tmp_path: Path, damage: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert newest(tmp_path) is None
    checkpoints = ShardedCheckpoints(tmp_path)
    paths = [save(checkpoints, step) for step in (1, 2, 3)]
    assert sorted(tmp_path.iterdir()) == paths[1:]
    assert newest(tmp_path) == 3
    assert capsys.readouterr().err == ""
    damage(paths[2])
    again = ShardedCheckpoints(tmp_path)
    assert again.newest() is not None
    assert "step-00000003 is damaged: going on from step-00000002" in capsys.readouterr().err
    save(again, 3)
    assert (newest(tmp_path), sorted(tmp_path.iterdir())) == (3, paths[1:])
    for path in paths[1:]:
        damage(path)
    with pytest.raises(TresseError, match=f"delete {tmp_path} to begin this training again"):
        newest(tmp_path)


def test_a_save_that_was_cut_off_is_never_read_and_leaves_nothing(tmp_path: Path) -> None:
    """Its shards are those of more processes than go on."""
    checkpoints = ShardedCheckpoints(tmp_path)
    first = save(checkpoints, 1)
    second = save(checkpoints, 2)
    (second / MARK).unlink()
    leftover = second / shard(second).name.replace("00001", "00002", 1)
    shard(second).rename(leftover)
    again = ShardedCheckpoints(tmp_path)
    assert newest(tmp_path) == 1
    again.newest()
    save(again, 2)
    assert not leftover.exists()
    assert newest(tmp_path) == 2
    assert sorted(tmp_path.iterdir()) == [first, second]


def test_a_save_waits_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints, written, may_end = ShardedCheckpoints(tmp_path), threading.Event(), threading.Event()
    finish = sharded._Writer.finish

    def slow(writer: Any, **arguments: Any) -> None:
        written.set()
        assert may_end.wait(60)
        finish(writer, **arguments)

    monkeypatch.setattr(sharded._Writer, "finish", slow)
    checkpoints.save(1, tensors(1), {"lanes": [1, [1]]})
    assert written.wait(60)
    assert newest(tmp_path) is None
    threading.Timer(0.2, may_end.set).start()
    checkpoints.save(2, tensors(2), {"lanes": [2, [2]]})
    assert may_end.is_set()
    assert (tmp_path / "step-00000001" / MARK).exists()
    checkpoints.wait()
    assert newest(tmp_path) == 2


def test_a_full_disk_is_said_in_one_line_and_the_one_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoints = ShardedCheckpoints(tmp_path)
    save(checkpoints, 1)
    with monkeypatch.context() as patch:
        patch.setattr(sharded._Writer, "write_data", full)
        checkpoints.save(2, tensors(2), {"lanes": [2, [2]]})
        with pytest.raises(MachineError, match=r"step-00000002.*free some space"):
            checkpoints.wait()
    assert newest(tmp_path) == 1


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    checkpoints = ShardedCheckpoints(tmp_path)
    save(checkpoints, 1)
    checkpoint = checkpoints.newest()
    assert checkpoint is not None
    for other in ({"another": torch.zeros(3)}, {"weights": torch.zeros(999)}):
        with pytest.raises(TresseError, match="it is of another model"):
            checkpoints.load(checkpoint, other)
