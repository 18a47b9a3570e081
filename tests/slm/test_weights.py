"""Weights as they are saved: what was rounded comes back exactly, and what cannot be true is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from slm.weights import STEP, build, narrow, rounded, widen


def network(seed: int, size: float) -> nn.Module:
    """Matrices, a convolution and a norm with random weights of a size."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(7, 5), nn.Conv1d(5, 3, 2), nn.LayerNorm(3))
    for parameter in module.parameters():
        parameter.data *= size
    return module


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e2), st.sampled_from([torch.int8, torch.float16]))
def test_what_was_rounded_comes_back_exactly(seed: int, size: float, matrices: torch.dtype) -> None:
    before = {name: tensor.clone() for name, tensor in network(seed, size).state_dict().items()}
    module = rounded(network(seed, size), matrices)
    stored = narrow(module.state_dict(), matrices)
    back = widen(stored)
    for name, tensor in module.state_dict().items():
        assert torch.equal(back[name].float(), tensor), name
        kind = matrices if tensor.dim() > 1 else torch.float16
        assert stored[name].dtype == kind
        step = before[name].abs().max() / (127 if kind == torch.int8 else 1024)
        assert (before[name] - tensor).abs().max() <= 0.51 * step + 1e-3 * before[name].abs().max()
    again = rounded(copy.deepcopy(module), matrices).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in module.state_dict().items())


def test_rows_of_zeros_stay_zero() -> None:
    module = nn.Linear(4, 3)
    nn.init.zeros_(module.weight)
    assert torch.equal(widen(narrow(rounded(module, torch.int8).state_dict(), torch.int8))["weight"], torch.zeros(3, 4))


def test_int8_without_its_steps_or_of_another_shape_is_refused(tmp_path: Path) -> None:
    module = rounded(network(0, 1.0), torch.int8)
    whole = narrow(module.state_dict(), torch.int8)
    path = tmp_path / "model.safetensors"
    save_file(whole, str(path))
    assert torch.equal(build(lambda: network(1, 1.0), path).state_dict()["0.weight"], module.state_dict()["0.weight"])
    for damage in (
        {"0.weight" + STEP: None},
        {"0.weight" + STEP: torch.ones(5)},
        {"0.weight" + STEP: torch.full((5, 1), torch.nan)},
        {"0.weight": torch.zeros(5, 8, dtype=torch.int8)},
    ):
        damaged = {name: tensor for name, tensor in (whole | damage).items() if tensor is not None}
        save_file(damaged, str(path))
        with pytest.raises(ValueError, match=r"int8|fit|finite"):
            build(lambda: network(1, 1.0), path)
