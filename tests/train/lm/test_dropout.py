"""Dropout in models that come without: while they train, and only then."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from slm.errors import TresseError
from slm.model import ModelConfig
from tests.train.lm.tiny import SMALL, TRAINING, vocabulary
from train.lm.dropout import add_dropout
from train.lm.training import train_slm


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return ModelConfig(hidden_size=32, layers=2, heads=2, intermediate_size=48, max_position=64).build(vocabulary())


def logits(model: nn.Module, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(input_ids=torch.arange(20)[None]).logits


def test_it_acts_in_training_and_nowhere_else(model: nn.Module) -> None:
    before = logits(model.eval(), 0)
    dropped = copy.deepcopy(model)
    add_dropout(dropped, 0.3)
    assert torch.equal(logits(dropped.eval(), 0), before)
    dropped.train()
    assert torch.equal(logits(dropped, 1), logits(dropped, 1))
    assert not torch.equal(logits(dropped, 1), logits(dropped, 2))
    assert dropped.state_dict().keys() == model.state_dict().keys()
    untouched = copy.deepcopy(model).train()
    add_dropout(untouched, 0.0)
    assert torch.equal(logits(untouched, 0), before)


def test_it_drops_the_share_that_was_asked_for(model: nn.Module) -> None:
    dropped = copy.deepcopy(model).train()
    add_dropout(dropped, 0.25)
    outputs: list[torch.Tensor] = []
    matrix = dropped.get_submodule("model.layers.0.mlp.down_proj")
    matrix.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    for seed in range(20):
        logits(dropped, seed)
    zeros = torch.cat(outputs).eq(0).float().mean()
    assert zeros == pytest.approx(0.25, abs=0.02)


def test_models_of_other_families_are_refused() -> None:
    with pytest.raises(TresseError, match=r"slm\.dropout is for models of the Llama family"):
        add_dropout(nn.Sequential(nn.Linear(4, 4)), 0.1)
    with pytest.raises(TresseError, match="dropout must be from 0 to below 1"):
        replace(TRAINING, dropout=1.0).check(("en", "fr"))


def test_a_training_with_dropout_that_was_stopped_ends_the_same(folder: Path, tmp_path: Path) -> None:
    training = replace(TRAINING, steps=6, checkpoint_every=2, log_every=1, dropout=0.2)

    def run(name: str, stop: int | None = None, **changes: Any) -> dict[str, torch.Tensor]:
        def say(line: str) -> None:
            if stop is not None and line.startswith(f"step {stop}/"):
                raise KeyboardInterrupt

        settings = replace(training, **changes)
        return train_slm(SMALL, settings, vocabulary(), folder, tmp_path / name, progress=say).state_dict()

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("stopped", 5)
    again = run("stopped")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    plain = run("plain", dropout=0.0)
    assert not all(torch.equal(whole[name], plain[name]) for name in whole)
    assert "dropout" not in json.dumps(torch.load(tmp_path / "plain" / "checkpoint.pt", weights_only=True)["settings"])
