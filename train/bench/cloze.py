"""How fast cloze items are scored: shared beginnings in batches against one item at a time.

Same process, same thread, same items and model: four cells of test items in one voice. The plain way is what the protocol
says, word by word: for every cell and ending one pass over prompt and ending, and one over the ending alone. On a CPU the
clock is the thread's own time, so that what else the machine does hardly counts.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from slm.likelihood import EndingScore, ScoredItem, score_endings
from train.evaluate.cloze.protocol import CONTROL, RULES, value_of
from train.evaluate.scorable import Scorable

GOAL = 3.0
"""Times faster than the plain way, at least."""
TOLERANCE = 1e-4
"""nats a token that a score may differ by, under any rule."""


def score_plainly(
    model: nn.Module, items: Sequence[ScoredItem], unconditional_prompt: Sequence[int], unscored: Iterable[int] = ()
) -> list[list[EndingScore]]:
    """What `score_endings` gives, one sequence and one pass after the other."""
    import torch

    free = set(unscored)
    device = next(model.parameters()).device

    @torch.inference_mode()
    def sums(start: Sequence[int], ending: Sequence[int]) -> tuple[float, float, int, int]:
        tokens = torch.tensor([[*start, *ending]], device=device)
        logs = model(input_ids=tokens, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        values = logs.gather(1, tokens[0, 1:, None])[:, 0].double().cpu().numpy()
        counted = np.asarray([int(token) not in free for token in tokens[0, 1:]])
        last = len(start) - 1
        return (
            float(values[last:][counted[last:]].sum()),
            float(values[counted].sum()),
            int(counted[last:].sum()),
            int(counted.sum()),
        )

    results = []
    for item in items:
        scores = []
        for ending in item.endings:
            given, whole, tokens, whole_tokens = sums(item.prompt, ending)
            alone = sums(unconditional_prompt, ending)[0]
            scores.append(EndingScore(given, whole, alone, tokens, whole_tokens))
        results.append(scores)
    return results


def bench_cloze(bundle: Scorable, count: int = 50, repeats: int = 2, cache: Path | None = None) -> dict[str, Any]:
    """Time both ways on `count` items of each kind, each the best of `repeats`; returns what is printed as JSON.

    Raises TresseError where the bundle or the stories cannot be used.
    """
    import torch

    from train.evaluate.cloze.evaluation import conditions, scored_items
    from train.speech.voices import Voices
    from train.stories.cloze_items import make_items

    items = make_items(1, count, "test")
    rows = scored_items(bundle, items, Voices.load().reference, cache)
    model, asked = bundle.language_model, conditions(bundle.vocabulary)
    on_cpu = next(model.parameters()).device.type == "cpu"
    threads = torch.get_num_threads()
    if on_cpu:
        torch.set_num_threads(1)
    try:
        score_endings(model, rows[:2], **asked)
        score_plainly(model, rows[:1], **asked)
        fast_seconds, fast = _best(repeats, on_cpu, lambda: score_endings(model, rows, **asked))
        plain_seconds, plain = _best(repeats, on_cpu, lambda: score_plainly(model, rows, **asked))
    finally:
        torch.set_num_threads(threads)
    difference = max(
        abs(value_of(a, rule) - value_of(b, rule))
        for mine, other in zip(fast, plain, strict=True)
        for a, b in zip(mine, other, strict=True)
        for rule in (*RULES, CONTROL)
    )
    tokens = sum(2 * len(ending) + len(item.prompt) + 1 for item in rows for ending in item.endings)
    return {
        "speedup": {"shared beginnings in batches against one item at a time": round(plain_seconds / fast_seconds, 2)},
        "goal_met": plain_seconds / fast_seconds >= GOAL and difference <= TOLERANCE,
        "max_abs_diff": float(f"{difference:.3g}"),
        "items": len(items),
        "cells": len(bundle.languages) ** 2,
        "items_per_second": {
            "plain": round(len(items) / plain_seconds, 1),
            "shared": round(len(items) / fast_seconds, 1),
        },
        "plain_tokens": tokens,
    }


def _best(repeats: int, on_cpu: bool, task: Any) -> tuple[float, Any]:
    clock = time.thread_time if on_cpu else time.perf_counter
    times = []
    for _ in range(repeats):
        began = clock()
        result = task()
        times.append(clock() - began)
    return min(times), result


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    rates = result["items_per_second"]
    lines = [f"{'way':<44}{'items a second, all cells':>26}"]
    lines += [f"{'one item at a time':<44}{rates['plain']:>26,.1f}"]
    lines += [f"{'shared beginnings, batches by length':<44}{rates['shared']:>26,.1f}"]
    lines += [f"{times:.2f}x faster (goal {GOAL:g}x)" for times in result["speedup"].values()]
    lines.append(f"largest difference of a score: {result['max_abs_diff']:.1e} nats a token (at most {TOLERANCE:g})")
    return "\n".join(lines)
