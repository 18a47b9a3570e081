"""Attention for packed rows: no document sees its neighbour, and little is computed that a mask would throw away.

Positions restart with each document; `attention_inputs` recovers from them what attention needs, and is the one place
that does. Masked attention over a row of L positions costs L^2 whatever the row holds. So:

- on a CPU documents of like lengths are laid out side by side, padded to the longest of their group, and attended to by
  three batched products a pass (`Documents`). For stories of 170 tokens in bfloat16 that is three times as fast as
  torch's fused kernel for CPUs, whose backward pass is slow where lengths are no multiple of its blocks. Price: the
  probabilities are kept for the backward pass, N^2 a head and document.
- on a GPU in half precision torch's kernel for variable lengths runs over the rows as they are (`Boundaries`).
- elsewhere a block-diagonal mask does it.

It plugs into every transformers model with an attention interface and is set for training only, never saved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slm.errors import TresseError

NAME = "tresse_documents"
GROUPS = 4
"""Layouts of a batch at most: more of them pad less and call more."""
CALL = 60_000
"""What one more group costs, in places of a head's N x N."""


def split_lengths(lengths: np.ndarray) -> list[int]:
    """Falling document lengths [M] -> ends of at most GROUPS groups, the last being M, such that the sum of count x
    longest^2 and a charge a group is least (exactly, by dynamic programming over the distinct lengths)."""
    firsts = np.flatnonzero(np.r_[True, lengths[1:] != lengths[:-1]])
    bounds = np.r_[firsts, len(lengths)]
    squares = lengths[firsts].astype(np.float64) ** 2
    count = len(firsts)
    best = np.full(count + 1, np.inf)
    best[0] = 0.0
    choices: list[np.ndarray] = []
    totals: list[float] = []
    for _ in range(min(GROUPS, count)):
        # group a..b-1 of distinct lengths is padded to length a
        cost = best[:-1, None] + (bounds[None, 1:] - bounds[:-1, None]) * squares[:, None] + CALL
        cost[np.tril_indices(count, -1)] = np.inf
        choices.append(cost.argmin(axis=0))
        best = np.r_[np.inf, cost.min(axis=0)]
        totals.append(float(best[-1]))
    ends, end = [], count
    for choice in choices[int(np.argmin(totals)) :: -1]:
        ends.append(int(bounds[end]))
        end = int(choice[end - 1])
    return ends[::-1]


@dataclass(frozen=True)
class Documents:
    """Where T positions lie, laid out in groups of M documents of up to N positions.

    groups: int64 [M, N] each, the flat position that each place shows, -1 for padding.
    """

    groups: tuple[Tensor, ...]
    total: int
    _known: dict[tuple[str, int, int], Tensor] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, positions: Tensor) -> Documents:
        """positions: int64 [B, L] on the CPU, restarting at 0 with each document; every row starts at 0."""
        flat = positions.flatten().numpy()
        starts = np.flatnonzero(flat == 0)
        lengths = np.diff(np.r_[starts, len(flat)])
        order = np.argsort(-lengths, kind="stable")
        groups = []
        first = 0
        for end in split_lengths(lengths[order]):
            members = order[first:end]
            column = np.arange(lengths[members].max())
            shown = starts[members][:, None] + column
            groups.append(torch.from_numpy(np.where(column < lengths[members][:, None], shown, -1)))
            first = end
        return cls(tuple(groups), len(flat))

    def rows(self, heads: int, of: int) -> Tensor:
        """For `heads` query heads that share `of` heads: int64 [sum M * heads * N], the row of a tensor [T * of, D] that
        each place of the layout [M, heads, N] shows; padding shows some row."""

        def make() -> Tensor:
            head = (torch.arange(heads) * of // heads)[None, :, None]
            return torch.cat([(shown.clamp_min(0)[:, None] * of + head).flatten() for shown in self.groups])

        return self._once("rows", heads, of, make)

    def padding(self, heads: int) -> Tensor:
        """int64: the places of the layout that show nothing."""

        def make() -> Tensor:
            empty = [(shown < 0)[:, None].expand(-1, heads, -1).flatten() for shown in self.groups]
            return torch.cat(empty).nonzero().flatten()

        return self._once("padding", heads, heads, make)

    def places(self, heads: int) -> Tensor:
        """int64 [T * heads]: where the layout shows each row."""

        def make() -> Tensor:
            rows = self.rows(heads, heads)
            shown = torch.ones(len(rows), dtype=torch.bool)
            shown[self.padding(heads)] = False
            places = torch.empty(self.total * heads, dtype=torch.int64)
            places[rows[shown]] = shown.nonzero().flatten()
            return places

        return self._once("places", heads, heads, make)

    def _once(self, what: str, heads: int, of: int, make: Callable[[], Tensor]) -> Tensor:
        if (what, heads, of) not in self._known:
            self._known[what, heads, of] = make()
        return self._known[what, heads, of]


@dataclass(frozen=True)
class Boundaries:
    """Where documents begin: int32 [documents + 1], the last entry the number of positions; and the longest possible."""

    starts: Tensor
    longest: int

    @classmethod
    def of(cls, positions: Tensor) -> Boundaries:
        """positions: int64 [B, L] on the CPU, restarting at 0 with each document; every row starts at 0."""
        starts = (positions.flatten() == 0).nonzero().flatten()
        ends = torch.cat([starts, torch.tensor([positions.numel()])])
        return cls(ends.to(torch.int32), positions.shape[1])


def attention_inputs(positions: Tensor, device: torch.device | str = "cpu", *, half: bool = False) -> dict[str, Any]:
    """What a model under `use_document_attention` needs so that no document sees its neighbour.

    positions: int64 [B, L] on the CPU, so that laying out costs no wait for the device. half: the model computes in
    half precision there. Returns the keyword arguments of the forward call, on `device`: position_ids [B, L], and
    documents (a CPU), boundaries (a GPU in half precision) or attention_mask (see `document_mask`).
    """
    device = torch.device(device)
    if device.type == "cpu":
        return {"position_ids": positions, "documents": Documents.of(positions)}
    if device.type == "cuda" and half:
        boundaries = Boundaries.of(positions)
        moved = boundaries.starts.pin_memory().to(device, non_blocking=True)
        return {"position_ids": to_device(positions, device), "boundaries": Boundaries(moved, boundaries.longest)}
    there = to_device(positions, device)
    return {"position_ids": there, "attention_mask": document_mask(there)}


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """Without waiting for the device: through pinned memory on the way to a GPU."""
    pinned = torch.device(device).type == "cuda" and x.device.type == "cpu"
    return (x.pin_memory() if pinned else x).to(device, non_blocking=True)


def document_mask(positions: Tensor) -> Tensor:
    """positions int64 [B, L] -> block-diagonal causal mask, bool [B, 1, L, L]: True where a position may attend."""
    document = (positions == 0).cumsum(dim=-1)
    length = positions.shape[-1]
    causal = torch.ones(length, length, dtype=torch.bool, device=positions.device).tril()
    return (document[:, None, :, None] == document[:, None, None, :]) & causal


@cache
def _causal(size: int, kind: torch.dtype) -> Tensor:
    """0 where a position may attend, -inf where not: [size, size]."""
    return torch.full((size, size), -torch.inf, dtype=kind).triu(1)


class _Attention(torch.autograd.Function):
    """query [B, L, H, D], key and value [B, L, G, D] -> [B, L, H, D], each document within itself."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, documents: Documents, scale: float) -> Tensor:
        heads, dims = query.shape[2:]
        laid = [x.reshape(-1, dims).index_select(0, documents.rows(heads, x.shape[2])) for x in (query, key, value)]
        out = torch.empty_like(laid[0])
        kept, first = [], 0
        for count, size in (shown.shape for shown in documents.groups):
            end = first + count * heads * size
            q, k, v = (x[first:end].view(-1, size, dims) for x in laid)
            scores = torch.baddbmm(_causal(size, q.dtype), q, k.transpose(1, 2), alpha=scale)
            kept.append(torch.softmax(scores, dim=-1))
            torch.bmm(kept[-1], v, out=out[first:end].view(-1, size, dims))
            first = end
        ctx.save_for_backward(*laid, *kept)
        ctx.documents, ctx.scale, ctx.shapes = documents, scale, (query.shape, key.shape)
        return out.index_select(0, documents.places(heads)).view(query.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        documents, scale = ctx.documents, ctx.scale
        query, key, value, *kept = ctx.saved_tensors
        shape, shared = ctx.shapes
        heads, dims = shape[2:]
        given = gradient.reshape(-1, dims).index_select(0, documents.rows(heads, heads))
        given.index_fill_(0, documents.padding(heads), 0)
        results = [torch.empty_like(query) for _ in range(3)]
        first = 0
        for (count, size), weights in zip((shown.shape for shown in documents.groups), kept, strict=True):
            end = first + count * heads * size
            q, k, v, g = (x[first:end].view(-1, size, dims) for x in (query, key, value, given))
            to_q, to_k, to_v = (x[first:end].view(-1, size, dims) for x in results)
            torch.bmm(weights.transpose(1, 2), g, out=to_v)
            to_weights = torch.bmm(g, v.transpose(1, 2))
            to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype).mul_(scale)
            torch.bmm(to_scores, k, out=to_q)
            torch.bmm(to_scores.transpose(1, 2), q, out=to_k)
            first = end
        places = documents.places(heads)
        to_query, to_key, to_value = (x.index_select(0, places).view(shape) for x in results)
        if shared != shape:  # each key and value served several queries
            split = (*shared[:3], -1, dims)
            to_key, to_value = (x.view(split).sum(dim=3) for x in (to_key, to_value))
        return to_query, to_key, to_value, None, None


def document_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    documents: Documents | None = None,
    boundaries: Boundaries | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface. query [B, H, L, D], key and value [B, G, L, D] -> [B, L, H, D].

    Raises TresseError for dropout of attention weights, where it is not to be had.
    """
    rows, heads, length, dims = query.shape
    scale = dims**-0.5 if scaling is None else scaling
    if documents is None and boundaries is None:
        out = torch.nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attention_mask,
            is_causal=attention_mask is None,
            dropout_p=dropout,
            scale=scale,
            enable_gqa=key.shape[1] != heads,
        )
        return out.transpose(1, 2).contiguous(), None
    if dropout:
        raise TresseError("packed rows train without dropout in attention: set attention_dropout to 0 in config.json")
    kind = value.dtype
    query, key, value = (x.to(kind).transpose(1, 2) for x in (query, key, value))
    if documents is not None:
        return _Attention.apply(query, key, value, documents, scale), None
    from torch.nn.attention.varlen import varlen_attn

    assert boundaries is not None
    flat = [x.reshape(rows * length, x.shape[2], dims) for x in (query, key, value)]
    flat = [x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1) for x in flat]
    starts, longest = boundaries.starts, boundaries.longest
    out = varlen_attn(*flat, starts, starts, longest, longest, scale=scale, window_size=(-1, 0))  # type: ignore[misc]
    return out.view(rows, length, heads, dims), None


def use_document_attention(model: Any) -> None:
    """Switch a transformers model to `document_attention`; forward calls then take `attention_inputs` (no cache)."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, document_attention)
    model.set_attn_implementation(NAME)
