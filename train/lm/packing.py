"""Packing: documents fill rows without padding.

Legend: B rows of L positions. Inputs are a document's (train.lm.corpus) tokens but the last and targets its tokens but
the first, so every position of a document carries a real target. Documents are packed by filling each row exactly from a
pool of the next 64 (a subset-sum over bit sets, about 30 us a row); one that is longer than a row is cut into rows, no
other ever. Positions restart with each document; what attention needs is recovered from them in one function
(train.lm.attention).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from train.lm.attention import to_device

IGNORE = -100
"""Target of a position that carries none (torch's `ignore_index`)."""
POOL = 64


def pack(lengths: np.ndarray, row_length: int) -> list[list[int]]:
    """Pack pieces of 1 .. row_length positions into rows, roughly in order: a list of piece numbers per row.

    Each row takes the oldest waiting piece and, of the next 64, the subset that fills it best (the older ones first).
    """
    sizes = [int(length) for length in lengths]
    if sizes and not 1 <= min(sizes) <= max(sizes) <= row_length:
        raise ValueError(f"pieces must have 1..{row_length} positions")
    rows: list[list[int]] = []
    pool: list[int] = []
    upcoming = 0
    while pool or upcoming < len(sizes):
        while len(pool) < POOL and upcoming < len(sizes):
            pool.append(upcoming)
            upcoming += 1
        # bit t of reach[k]: the oldest piece and some of the next k sum to t
        mask = (1 << (row_length + 1)) - 1
        reach = [1 << sizes[pool[0]]]
        for piece in pool[1:]:
            reach.append(reach[-1] | (reach[-1] << sizes[piece] & mask))
            if reach[-1] >> row_length:
                break
        target = reach[-1].bit_length() - 1
        row = [0]
        for k in range(len(reach) - 1, 0, -1):
            if not reach[k - 1] >> target & 1:
                row.append(k)
                target -= sizes[pool[k]]
        rows.append(sorted(pool[k] for k in row))
        taken = set(row)
        pool = [piece for k, piece in enumerate(pool) if k not in taken]
    return rows


@dataclass(frozen=True)
class PackedBatch:
    """B rows of L positions. Arrays int64 [B, L].

    targets: the next token, or IGNORE where a row could not be filled. positions: restart at 0 with each document.
    languages: the language (its number) that the target belongs to.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    languages: torch.Tensor

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch elsewhere, without waiting for the device."""
        return PackedBatch(*(to_device(getattr(self, name), device) for name in self.__dataclass_fields__))

    def rows(self, part: slice) -> PackedBatch:
        """Only these rows."""
        return PackedBatch(*(getattr(self, name)[part] for name in self.__dataclass_fields__))

    @classmethod
    def joined(cls, batches: Sequence[PackedBatch]) -> PackedBatch:
        """The rows of several batches, one after the other."""
        names = cls.__dataclass_fields__
        return cls(*(torch.cat([getattr(batch, name) for batch in batches]) for name in names))

    def portions(self, count: int) -> list[PackedBatch]:
        """The rows in so many portions, as even as they can be; where there are fewer rows, a row without targets each."""
        sizes = [len(self.tokens) // count + (k < len(self.tokens) % count) for k in range(count)]
        first = np.cumsum([0, *sizes])
        return [
            self.rows(slice(a, a + size)) if size else self._nothing() for a, size in zip(first, sizes, strict=False)
        ]

    def _nothing(self) -> PackedBatch:
        zeros = torch.zeros(1, self.tokens.shape[1], dtype=torch.int64)
        return PackedBatch(zeros, torch.full_like(zeros, IGNORE), torch.arange(zeros.shape[1])[None], zeros)
