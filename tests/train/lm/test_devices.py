"""What a GPU trains on is what a CPU trains on: attention by a kernel for variable lengths, bfloat16, compiled models.

Attention and bfloat16 are tested on the CPU too, where the kernel is played in plain torch.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.train.lm.tiny import SMALL, TRAINING, vocabulary
from train.lm.attention import Boundaries, document_attention, document_mask, use_document_attention
from train.lm.corpus import TokenCorpus
from train.lm.packing import IGNORE, PackedBatch
from train.lm.step import PackedStep, optimisers_of
from train.lm.stream import PackedStream

HEADS, SHARED, DIMS = 4, 2, 16


def played_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    key_starts: Tensor,
    longest: int,
    key_longest: int,
    *,
    scale: float,
    window_size: tuple[int, int],
) -> Tensor:
    """torch.nn.attention.varlen.varlen_attn in plain torch: query, key, value [T, H, D], each document within itself."""
    assert window_size == (-1, 0), "causal"
    assert torch.equal(starts, key_starts)
    assert int(starts.diff().max()) <= min(longest, key_longest)
    documents = []
    for first, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        q, k, v = (x[first:end].transpose(0, 1)[None] for x in (query, key, value))
        documents.append(torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale))
    return torch.cat(documents, dim=2)[0].transpose(0, 1)


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(scope="module")
def batch(corpus: TokenCorpus) -> PackedBatch:
    return PackedStream(corpus, "interleaved", row_length=96, seed=2).batch(0, 4)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=6), min_size=1, max_size=3),
    seed=st.integers(0, 2**31),
)
def test_attention_by_boundaries_equals_the_masked_one(device: torch.device, rows: list[list[int]], seed: int) -> None:
    """Outputs and gradients, with keys and values that several heads share."""
    length = max(map(sum, rows))
    rows = [[*sizes, *[1] * (length - sum(sizes))] for sizes in rows]
    positions = torch.stack([torch.cat([torch.arange(size) for size in sizes]) for sizes in rows])
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(len(rows), heads, length, DIMS, generator=generator) for heads in (HEADS, SHARED, SHARED)]
    pull = torch.randn(len(rows), length, HEADS, DIMS, generator=generator)
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    bounds = Boundaries.of(positions)
    ways: list[dict[str, Any]] = [
        {"attention_mask": document_mask(positions.to(device))},
        {"attention_mask": None, "boundaries": Boundaries(bounds.starts.to(device), bounds.longest)},
    ]
    results = []
    with pytest.MonkeyPatch.context() as patch:
        if device.type == "cpu":
            patch.setattr("torch.nn.attention.varlen.varlen_attn", played_kernel)
        for inputs in ways:
            own = [part.to(device, kind).requires_grad_() for part in parts]
            out = document_attention(torch.nn.Module(), *own, **inputs)[0]
            out.backward(pull.to(device, kind))
            results.append([out.detach(), *(part.grad for part in own)])
    for masked, kernel in zip(*results, strict=True):
        assert masked is not None
        assert kernel is not None
        tolerance = 1e-5 if kind == torch.float32 else 0.03
        assert torch.allclose(masked, kernel, atol=tolerance, rtol=tolerance)


def a_step(batch: PackedBatch, device: torch.device, *, half: bool, compiled: bool = False) -> tuple[float, Tensor]:
    """Loss, and all gradients in a row, of one step of a new model."""
    torch.manual_seed(0)
    model = replace(SMALL, hidden_size=64).build(vocabulary()).to(device)
    use_document_attention(model)
    training = replace(TRAINING, micro_rows=2)
    step = PackedStep(model, optimisers_of(model, training, device), training, device, half=half)
    if compiled:
        model.compile()
    loss = step.gradients(batch, int((batch.targets != IGNORE).sum()))
    gradients = torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
    before = deepcopy(model.state_dict())
    norm = step.updates.apply(1.0)
    assert torch.isfinite(norm)
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    return float(loss), gradients.cpu()


def alike(a: Tensor, b: Tensor, share: float) -> bool:
    """Whether two vectors differ by a share of their length at most."""
    return bool(torch.isfinite(a).all() and (a - b).norm() <= share * b.norm())


def test_a_step_in_bfloat16_is_close_to_one_in_float32(device: torch.device, batch: PackedBatch) -> None:
    """Both against the CPU's in float32."""
    expected, gradients = a_step(batch, torch.device("cpu"), half=False)
    for half, loss_share, share in ((False, 1e-4, 1e-2), (True, 1e-2, 0.1)):
        loss, own = a_step(batch, device, half=half)
        assert loss == pytest.approx(expected, rel=loss_share)
        assert alike(own, gradients, share)


@pytest.mark.gpu
@pytest.mark.parametrize("half", [False, True])
def test_a_compiled_step_is_close_to_a_plain_one(batch: PackedBatch, half: bool) -> None:
    device = torch.device("cuda")
    expected, gradients = a_step(batch, device, half=half)
    loss, own = a_step(batch, device, half=half, compiled=True)
    assert loss == pytest.approx(expected, rel=1e-2 if half else 1e-4)
    assert alike(own, gradients, 0.1 if half else 1e-2)
