"""Training in processes that have a part of the model each: the same model, and checkpoints that survive any kill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.train.lm.shared_out import BETWEEN, DURING, MARKED, train
from tests.train.lm.tiny import SMALL, TRAINING, vocabulary
from train.lm.state import Checkpoints


@pytest.fixture(scope="module")
def one(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process that nobody stopped."""
    out = tmp_path_factory.mktemp("runs") / "one"
    train(folder, out)
    return out


@pytest.fixture(scope="module")
def two(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes with a part of the model each that nobody stopped."""
    out = tmp_path_factory.mktemp("runs") / "two"
    train(folder, out, 2, shared=True)
    return out


@pytest.fixture(scope="module")
def stopped(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, killed between two saves."""
    out = tmp_path_factory.mktemp("runs") / "stopped"
    train(folder, out, 2, shared=True, killed=BETWEEN)
    return out


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The model of the newest checkpoint, whichever kind it is."""
    checkpoints = Checkpoints(run)
    state = checkpoints.newest()
    assert state is not None
    if "model" in state:
        return state["model"]
    model = SMALL.build(vocabulary()).state_dict()
    named = {f"model.{name}": tensor for name, tensor in model.items() if name != "lm_head.weight"}  # it is tied
    checkpoints.sharded.load(state["shards"], named)
    return model


def log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def assert_trained_alike(one: Path, other: Path, went_on_at: int = 0) -> None:
    """The same losses in the logs but for the line after `went_on_at`, which then begins there; the same weights."""
    for a, b in zip(log(one), log(other), strict=True):
        assert a["step"] == b["step"]
        if "loss" in a:
            assert (b["units"], b["tokens"]) == (a["units"], a["tokens"])
            if not 0 < a["step"] - went_on_at <= TRAINING.log_every or not went_on_at:
                assert b["loss"] == pytest.approx(a["loss"], abs=1e-5)
                assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], abs=1e-4)
        else:
            assert b["validation"]["mixed"] == pytest.approx(a["validation"]["mixed"], abs=1e-5)
    others = weights(other)
    for name, value in weights(one).items():
        assert torch.allclose(value, others[name], atol=1e-5), name


def saved(run: Path) -> list[str]:
    """What the folder of a run has of checkpoints."""
    files = [*run.glob("checkpoint*.pt"), *run.glob("checkpoint/*/complete.json")]
    return sorted(str(file.relative_to(run)) for file in files)


def test_processes_that_have_a_part_of_the_model_each_train_like_one(one: Path, two: Path) -> None:
    assert_trained_alike(one, two)
    models = [load_file(run / "slm" / "model.safetensors") for run in (one, two)]
    assert set(models[0]) == set(models[1])
    assert all(models[0][name].shape == models[1][name].shape for name in models[0])
    assert saved(two) == ["checkpoint/step-00000010/complete.json", "checkpoint/step-00000012/complete.json"]
    shards = [file.stat().st_size for file in (two / "checkpoint" / "step-00000012").glob("*.safetensors")]
    assert len(shards) == 2
    assert max(shards) < 0.6 * sum(shards)


def test_killed_between_saves_and_in_one_it_ends_bit_for_bit_alike(
    folder: Path, two: Path, stopped: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    assert saved(run) == [MARKED]
    again = train(folder, run, 2, shared=True, killed=DURING)
    assert "going on from step 5" in again
    assert saved(run) == [MARKED]
    assert len(list((run / "checkpoint" / "step-00000010").glob("*.safetensors"))) == 2
    assert "going on from step 5" in train(folder, run, 2, shared=True)
    assert (run / "slm" / "model.safetensors").read_bytes() == (two / "slm" / "model.safetensors").read_bytes()
    trained, expected = weights(run), weights(two)
    assert all(torch.equal(trained[name], expected[name]) for name in expected)
    assert [entry["step"] for entry in log(run)] == [entry["step"] for entry in log(two)]


def test_one_process_goes_on_where_two_were_killed(folder: Path, one: Path, stopped: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    assert "going on from step 5" in train(folder, run)
    assert_trained_alike(one, run, went_on_at=5)
    assert saved(run) == ["checkpoint.previous.pt", "checkpoint.pt"]


def test_two_processes_share_out_what_one_trained(folder: Path, one: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(folder, run, killed=BETWEEN)
    assert saved(run) == ["checkpoint.pt"]
    assert "going on from step 5" in train(folder, run, 2, shared=True)
    assert_trained_alike(one, run, went_on_at=5)
    assert saved(run) == ["checkpoint/step-00000010/complete.json", "checkpoint/step-00000012/complete.json"]


def test_two_processes_go_on_where_five_were_killed(folder: Path, one: Path, tmp_path: Path) -> None:
    """Five leave one of them without any of the 16 rows of a matrix, and one without rows of a batch."""
    run = tmp_path / "run"
    train(folder, run, 5, shared=True, killed=BETWEEN)
    assert saved(run) == [MARKED]
    assert "going on from step 5" in train(folder, run, 2, shared=True)
    assert_trained_alike(one, run, went_on_at=5)
