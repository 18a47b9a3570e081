"""Muon in float32: torch's own optimiser, but for rounding."""

from __future__ import annotations

import pytest
import torch

from train.lm.muon import Float32Muon, orthogonal


@pytest.mark.parametrize("rule", ["match_rms_adamw", "original"])
def test_it_takes_the_steps_of_torchs_own(rule: str) -> None:
    generator = torch.Generator().manual_seed(0)
    begun = [torch.randn(shape, generator=generator) for shape in ((24, 8), (8, 24), (16, 16))]
    gradients = [[torch.randn(p.shape, generator=generator) for p in begun] for _ in range(5)]
    ends = []
    for kind in (torch.optim.Muon, Float32Muon):
        parameters = [torch.nn.Parameter(p.clone()) for p in begun]
        optimiser = kind(parameters, lr=0.02, weight_decay=0.1, adjust_lr_fn=rule)
        for step in gradients:
            for parameter, gradient in zip(parameters, step, strict=True):
                parameter.grad = gradient.clone()
            optimiser.step()
        ends.append([p.detach() for p in parameters])
    for theirs, ours, before in zip(*ends, begun, strict=True):
        assert (ours - theirs).norm() < 0.03 * (theirs - before).norm()  # bfloat16 has 8 bits


def test_rows_become_nearly_orthonormal() -> None:
    matrix = torch.randn(6, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values = torch.linalg.svdvals(orthogonal(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7))
    assert values.min() > 0.5
    assert values.max() < 1.5
    assert orthogonal(matrix.T, (3.4445, -4.7750, 2.0315), 5, 1e-7).shape == (20, 6)
