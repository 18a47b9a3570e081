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

from slm.weights import MOST, STEP, build, narrow, rounded, widen


def network(seed: int, size: float) -> nn.Module:
    """Matrices, a convolution and a norm with random weights of a size."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(7, 5), nn.Conv1d(5, 3, 2), nn.LayerNorm(3), nn.Linear(12, 2), nn.Conv1d(4, 2, 3))
    for parameter in module.parameters():
        parameter.data *= size
    return module


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of a module's weights."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e2), st.sampled_from([torch.int8, torch.uint8, torch.float16]))
def test_what_was_rounded_comes_back_exactly(seed: int, size: float, matrices: torch.dtype) -> None:
    before = {name: tensor.clone() for name, tensor in network(seed, size).state_dict().items()}
    module = rounded(network(seed, size), matrices)
    stored = narrow(module.state_dict(), matrices)
    back = widen(stored, shapes_of(module))
    for name, tensor in module.state_dict().items():
        assert torch.equal(back[name].float(), tensor), name
        kind = matrices if tensor.dim() > 1 else torch.float16
        if kind == torch.uint8 and tensor[0].numel() % 4:
            kind = torch.int8
        assert stored[name].dtype == kind
        step = before[name].abs().max() / MOST.get(kind, 1024)
        assert (before[name] - tensor).abs().max() <= 0.51 * step + 1e-3 * before[name].abs().max()
        if kind == torch.uint8:
            assert stored[name].numel() == tensor.numel() * 3 // 4
    again = rounded(copy.deepcopy(module), matrices).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in module.state_dict().items())


def test_rows_of_zeros_stay_zero() -> None:
    module = nn.Linear(4, 3)
    nn.init.zeros_(module.weight)
    for kind in MOST:
        stored = narrow(rounded(module, kind).state_dict(), kind)
        assert torch.equal(widen(stored, shapes_of(module))["weight"], torch.zeros(3, 4))


@pytest.mark.parametrize("kind", list(MOST))
def test_numbers_without_their_steps_or_of_another_shape_are_refused(kind: torch.dtype, tmp_path: Path) -> None:
    module = rounded(network(0, 1.0), kind)
    whole = narrow(module.state_dict(), kind)
    path = tmp_path / "model.safetensors"
    save_file(whole, str(path))
    for name, tensor in build(lambda: network(1, 1.0), path).state_dict().items():
        assert torch.equal(tensor, module.state_dict()[name]), name
    for damage in (
        {"3.weight" + STEP: None},
        {"3.weight" + STEP: torch.ones(2)},
        {"3.weight" + STEP: torch.full((2, 1), torch.nan)},
        {"3.weight": torch.zeros(2, 16, dtype=kind)},
        {"3.weight": torch.zeros(2, 9)},
        {"0.weight": torch.zeros(5, 5, dtype=torch.int8)},
    ):
        damaged = {name: tensor for name, tensor in (whole | damage).items() if tensor is not None}
        save_file(damaged, str(path))
        with pytest.raises(ValueError, match=r"int8|fit|finite"):
            build(lambda: network(1, 1.0), path)
