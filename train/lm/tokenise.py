"""Parquet shards of a unit corpus -> the arrays of a part of its token files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from slm.errors import TresseError
from slm.units.vocabulary import UnitVocabulary
from train.stories.grammar import PAIRS, STORY

SENTENCES_AT_ONCE = 50_000
PAIRED, UNUSABLE = 1 << 30, 1 << 31
"""Bits of a story's mask, above one for each language it is told in."""


def tokenise(shards: Sequence[Path], languages: tuple[str, ...], vocabulary: UnitVocabulary) -> dict[str, np.ndarray]:
    """The arrays of a part, sentences in the order of story, sentence, language, each behind its language's `head`.

    tokens [T]; bounds int64 [sentences * languages + 1], where each begins in `tokens`; units int32 [sentences * languages],
    0 where a story is not told in a language; first int64 [stories + 1], the first sentence of each story; masks uint32
    [stories]; names uint8 and name_bounds int64 [stories + 1], ids in UTF-8; keys uint64 [stories], hashes of ids. Raises
    TresseError for a shard that cannot be read, and stories whose sentences do not align.
    """
    table = _Table(vocabulary)
    pieces = [_shard(shard, languages, table) for shard in shards]
    names = [name for piece in pieces for name in piece["ids"]]
    joined = {name: np.concatenate([piece[name] for piece in pieces]) for name in ("tokens", "units", "masks")}
    lengths, counts = (np.concatenate([piece[name] for piece in pieces]) for name in ("lengths", "counts"))
    return joined | {
        "bounds": np.r_[0, lengths.cumsum(dtype=np.int64)],
        "first": np.r_[0, counts.cumsum(dtype=np.int64)],
        **story_names(names),
    }


def story_names(ids: Sequence[str]) -> dict[str, np.ndarray]:
    """names, name_bounds and keys of a part."""
    encoded = [name.encode("utf-8") for name in ids]
    hashes = b"".join(hashlib.blake2b(name, digest_size=8).digest() for name in encoded)
    return {
        "names": np.frombuffer(b"".join(encoded), np.uint8),
        "name_bounds": np.r_[0, np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))],
        "keys": np.frombuffer(hashes, np.uint64),
    }


class _Table:
    """Units -> tokens; without merges by a table, which is many times as fast."""

    def __init__(self, vocabulary: UnitVocabulary) -> None:
        self.vocabulary = vocabulary
        self.kind = np.uint16 if len(vocabulary) <= 1 << 16 else np.int32
        merges = len(vocabulary) - vocabulary.codebook_size - 2 - len(vocabulary.languages)
        units = range(vocabulary.codebook_size)
        self.of_unit = np.asarray([vocabulary.encode([unit])[0] for unit in units], self.kind) if merges <= 0 else None

    def encode(self, values: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Units [N] of sentences that lie between bounds [S + 1] -> (tokens [M], tokens of each sentence int64 [S])."""
        if self.of_unit is not None:
            lengths = np.diff(bounds)
            units = values[bounds[0] : bounds[-1]]
            if len(units) and int(units.max()) >= len(self.of_unit):
                raise ValueError(f"unit ids must lie in 0..{len(self.of_unit) - 1}")
            return self.of_unit[units], lengths
        flat, counts = [np.zeros(0, self.kind)], [np.zeros(0, np.int64)]
        for first in range(0, len(bounds) - 1, SENTENCES_AT_ONCE):
            part = bounds[first : first + SENTENCES_AT_ONCE + 1]
            encoded = self.vocabulary.encode_batch([values[a:b] for a, b in pairwise(part)])
            counts.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
            flat.append(np.concatenate(encoded).astype(self.kind))
        return np.concatenate(flat), np.concatenate(counts)


def _shard(shard: Path, languages: tuple[str, ...], table: _Table) -> dict[str, Any]:
    """ids, tokens, lengths and units [sentences * languages], counts of sentences and masks [stories] of one shard."""
    import pyarrow.parquet as parquet

    try:
        known = ["kind"] if "kind" in parquet.read_schema(shard).names else []  # corpora of earlier versions
        rows = parquet.read_table(shard, columns=["id", *known, *(f"units_{name}" for name in languages)])
    except Exception as error:  # pyarrow raises many kinds
        raise TresseError(f"cannot read {shard}: delete it and prepare the corpus again") from error
    ids = rows.column("id").to_pylist()
    paired = np.asarray([kind == PAIRS for kind in (rows.column("kind").to_pylist() if known else [STORY] * len(ids))])
    columns = [rows.column(f"units_{name}").combine_chunks() for name in languages]
    outer = [column.offsets.to_numpy().astype(np.int64) for column in columns]
    each = np.stack([np.diff(offsets) for offsets in outer])  # [languages, stories]
    counts = each.max(axis=0, initial=0)
    odd = np.flatnonzero(((each != counts) & (each > 0)).any(axis=0))
    if len(odd):
        shown = ", ".join(f"{n} in {language}" for n, language in zip(each[:, odd[0]], languages, strict=True))
        raise TresseError(f"story {ids[odd[0]]} has sentences that do not align ({shown}): prepare the corpus again")
    first = np.r_[0, counts.cumsum()]
    units = np.zeros((first[-1], len(languages)), np.int32)
    lengths = np.zeros(units.shape, np.int64)
    encoded, cells = [], []
    for k, (column, offsets) in enumerate(zip(columns, outer, strict=True)):
        inner = column.values
        bounds = inner.offsets.to_numpy().astype(np.int64)[offsets[0] : offsets[-1] + 1]
        story = np.repeat(np.arange(len(ids)), each[k])
        rows_of = first[story] + np.arange(len(story)) - np.repeat(offsets[:-1] - offsets[0], each[k])
        flat, tokens = table.encode(inner.values.to_numpy(), bounds)
        units[rows_of, k] = np.diff(bounds)
        lengths[rows_of, k] = tokens + len(table.vocabulary.head(languages[k]))
        encoded.append((flat, tokens))
        cells.append(rows_of * len(languages) + k)
    starts = lengths.ravel().cumsum() - lengths.ravel()
    made = np.zeros(int(lengths.sum()), table.kind)
    for language, (flat, tokens), at in zip(languages, encoded, cells, strict=True):
        head = table.vocabulary.head(language)
        for k, token in enumerate(head):
            made[starts[at] + k] = token
        made[np.arange(len(flat)) + np.repeat(starts[at] + len(head) - (tokens.cumsum() - tokens), tokens)] = flat
    told = each > 0
    masks = (told.astype(np.uint32) << np.arange(len(languages), dtype=np.uint32)[:, None]).sum(axis=0, dtype=np.uint32)
    of = np.repeat(np.arange(len(ids)), counts)
    empty = np.zeros(len(ids), bool)
    empty[of[((units == 0) & told.T[of]).any(axis=1)]] = True
    masks |= np.where(paired, np.uint32(PAIRED), np.uint32(0)) | np.where(
        empty | (counts == 0), np.uint32(UNUSABLE), np.uint32(0)
    )
    return {
        "ids": ids,
        "tokens": made,
        "lengths": lengths.ravel(),
        "units": units.ravel(),
        "counts": counts,
        "masks": masks,
    }
