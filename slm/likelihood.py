"""Log-likelihoods of endings given prompts, in batches, each prompt computed once.

An item is a prompt and any number of endings. It becomes one row: the prompt, then all endings side by side, each of
which attends to the prompt and to itself and takes its positions right after the prompt. One forward pass so gives what
one pass per (prompt, ending) pair would give, with no cache to copy and with any model that takes a 4-D mask. Items
with equal prompts share a row; rows are sorted by length, so that batches hold little padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from slm.errors import TresseError

MAX_TOKENS = {"cpu": 1024, "cuda": 16384}
"""Positions of a batch, by device: caches are small, GPUs are wide (8 MB and 134 MB of logits at 2,048 tokens)."""


@dataclass(frozen=True)
class ScoredItem:
    """Token ids of a prompt (at least one, `<bos>`) and of its endings (at least one each)."""

    prompt: Sequence[int]
    endings: Sequence[Sequence[int]]


@dataclass(frozen=True)
class EndingScore:
    """Log-likelihoods in nats, summed over the tokens that count, and how many those are.

    given: the ending given the prompt. whole: prompt and ending (the first token is given). unconditional: the ending
    given only the unconditional prompt. tokens: of the ending; whole_tokens: of prompt and ending.
    """

    given: float
    whole: float
    unconditional: float
    tokens: int
    whole_tokens: int


@dataclass(frozen=True)
class _Row:
    """A prompt with the distinct endings asked for after it; arrays over the row's positions."""

    tokens: np.ndarray
    positions: np.ndarray
    segments: np.ndarray  # 0: prompt, k: the k-th ending
    predictors: np.ndarray  # the position whose output predicts this token

    @classmethod
    def of(cls, prompt: Sequence[int], endings: Sequence[Sequence[int]]) -> _Row:
        start = len(prompt)
        tokens, positions = [np.asarray(prompt)], [np.arange(start)]
        segments, predictors = [np.zeros(start, np.int64)], [np.r_[0, np.arange(start - 1)]]
        place = start
        for number, ending in enumerate(endings, start=1):
            tokens.append(np.asarray(ending))
            positions.append(start + np.arange(len(ending)))
            segments.append(np.full(len(ending), number))
            predictors.append(np.r_[start - 1, place + np.arange(len(ending) - 1)])
            place += len(ending)
        return cls(*(np.concatenate(parts).astype(np.int64) for parts in (tokens, positions, segments, predictors)))


def score_endings(
    model: Any,
    items: Sequence[ScoredItem],
    *,
    unconditional_prompt: Sequence[int] | None = None,
    unscored: Iterable[int] = (),
    max_tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[EndingScore]]:
    """Score every ending of every item: a list per item, in the order given.

    model: a transformers causal LM; its device and dtype are used. unconditional_prompt: what stands before an ending
    without its prompt; the prompt's first token by default. unscored: token ids that are fed but never counted
    (language tags). max_tokens: positions of a batch; by the device where None. progress: called with
    (rows done, rows). Raises TresseError for an item that exceeds the context.
    """
    if max_tokens is None:
        max_tokens = MAX_TOKENS.get(next(model.parameters()).device.type, MAX_TOKENS["cpu"])
    wanted: dict[tuple[int, ...], dict[tuple[int, ...], int]] = {}
    for item in items:
        if not len(item.prompt) or not item.endings or not all(map(len, item.endings)):
            raise ValueError("an item needs a prompt and endings of at least one token")
        prompt = tuple(map(int, item.prompt))
        alone = prompt[:1] if unconditional_prompt is None else tuple(map(int, unconditional_prompt))
        for start in (prompt, alone):
            held = wanted.setdefault(start, {})
            for ending in item.endings:
                held.setdefault(tuple(map(int, ending)), len(held))
    free = np.asarray(sorted(set(unscored)), dtype=np.int64)
    rows: list[tuple[tuple[int, ...], list[tuple[int, ...]]]] = []
    for start, distinct in wanted.items():
        rows += [(start, part) for part in _portions(start, list(distinct), max_tokens)]
    rows.sort(key=lambda row: len(row[0]) + sum(map(len, row[1])))
    limit = getattr(model.config, "max_position_embeddings", None)
    longest = max((len(start) + max(map(len, endings)) for start, endings in rows), default=0)
    if limit is not None and longest > limit:
        raise TresseError(f"an item has {longest} tokens and the model's context {limit}: shorten the item")

    scores: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[float, int]] = {}
    heads: dict[tuple[int, ...], tuple[float, int]] = {}
    first = 0
    while first < len(rows):
        built: list[_Row] = []
        while first + len(built) < len(rows):
            row = _Row.of(*rows[first + len(built)])
            if built and (len(built) + 1) * len(row.tokens) > max_tokens:  # rows only grow longer
                break
            built.append(row)
        for (start, endings), row, values in zip(rows[first:], built, _log_likelihoods(model, built), strict=False):
            counted = ~np.isin(row.tokens, free)
            counted[0] = False
            sums = np.bincount(row.segments, weights=values * counted, minlength=len(endings) + 1)
            counts = np.bincount(row.segments, weights=counted, minlength=len(endings) + 1).astype(int)
            heads[start] = (float(sums[0]), int(counts[0]))
            for number, ending in enumerate(endings, start=1):
                scores[start, ending] = (float(sums[number]), int(counts[number]))
        first += len(built)
        if progress is not None:
            progress(first, len(rows))

    results = []
    for item in items:
        prompt = tuple(map(int, item.prompt))
        alone = prompt[:1] if unconditional_prompt is None else tuple(map(int, unconditional_prompt))
        whole, whole_tokens = heads[prompt]
        held_scores = []
        for ending in (tuple(map(int, ending)) for ending in item.endings):
            given, tokens = scores[prompt, ending]
            held_scores.append(
                EndingScore(given, whole + given, scores[alone, ending][0], tokens, whole_tokens + tokens)
            )
        results.append(held_scores)
    return results


def _portions(start: tuple[int, ...], endings: list[tuple[int, ...]], max_tokens: int) -> list[list[tuple[int, ...]]]:
    """Split the endings of one prompt, so that a row stays near twice its prompt (at least 256) and in the batch."""
    budget = min(max_tokens, max(256, 2 * len(start))) - len(start)
    parts: list[list[tuple[int, ...]]] = []
    room = 0
    for ending in endings:
        if not parts or len(ending) > room:
            parts.append([])
            room = budget
        parts[-1].append(ending)
        room -= len(ending)
    return parts


@torch.inference_mode()
def _log_likelihoods(model: Any, rows: Sequence[_Row]) -> list[np.ndarray]:
    """log p of each token of each row given what it attends to: float64 arrays; that of a row's first token is void."""
    device = next(model.parameters()).device
    length = max(len(row.tokens) for row in rows)

    def batch(name: str, fill: int) -> torch.Tensor:
        values = np.full((len(rows), length), fill, dtype=np.int64)
        for place, row in enumerate(rows):
            values[place, : len(row.tokens)] = getattr(row, name)
        return torch.from_numpy(values).to(device)

    tokens, positions, predictors = batch("tokens", 0), batch("positions", 0), batch("predictors", 0)
    segments = batch("segments", -1)  # padding attends to itself alone, and to nothing real
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    keys, queries = segments[:, None, :], segments[:, :, None]
    mask = (((keys == 0) & (queries >= 0)) | (keys == queries)) & causal
    attention: torch.Tensor = mask[:, None]
    if getattr(model.config, "_attn_implementation", "sdpa") != "sdpa":  # others add the mask to the scores
        dtype = next(model.parameters()).dtype
        attention = torch.zeros(attention.shape, dtype=dtype, device=device).masked_fill(
            ~attention, torch.finfo(dtype).min
        )
    logits = model(input_ids=tokens, position_ids=positions, attention_mask=attention, use_cache=False).logits.float()
    normaliser = logits.logsumexp(dim=-1).gather(1, predictors)
    places = torch.arange(len(rows), device=device)[:, None]
    values = (logits[places, predictors, tokens] - normaliser).double().cpu().numpy()
    return [values[place, : len(row.tokens)] for place, row in enumerate(rows)]
