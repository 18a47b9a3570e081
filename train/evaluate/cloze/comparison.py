"""Two systems on the same cloze items: what `tresse eval cloze --compare OTHER` adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slm.errors import TresseError
from train.evaluate.cloze.protocol import HEADLINE, value_of
from train.evaluate.cloze.report import comparison_page
from train.evaluate.cloze.results import Choice, read_scores
from train.tools.checkpoints import atomic_path, write_json
from train.tools.statistics import compare, outcomes


def compare_scores(
    first: Sequence[Choice],
    second: Sequence[Choice],
    names: tuple[str, str] = ("first", "second"),
    rule: str = HEADLINE,
) -> dict[str, Any]:
    """Paired comparison of two systems' choices, matched by item, voice group, pairing and cell.

    Returns {"first", "second" (names), "rule", "unmatched", "cells": {"en>fr": {"story": `statistics.compare`}},
    "groups": the same by voice group and pairing}; "cells" are those of the first group, same voice. Raises TresseError
    where no score of one has a counterpart.
    """

    def keyed(choices: Sequence[Choice]) -> dict[tuple[str, ...], Choice]:
        return {
            (choice.group, choice.pairing, f"{choice.context}>{choice.ending}", choice.kind, choice.item): choice
            for choice in choices
        }

    ours, theirs = keyed(first), keyed(second)
    shared = [key for key in ours if key in theirs]
    if not shared:
        raise TresseError("the two evaluations have no item in common: evaluate both on the same items and voices")
    groups: dict[str, dict[str, Any]] = {}
    for group, pairing, cell, kind in dict.fromkeys(key[:4] for key in shared):
        keys = [key for key in shared if key[:4] == (group, pairing, cell, kind)]
        scored = [
            outcomes(
                np.asarray([value_of(side[key].right, rule) for key in keys]),
                np.asarray([value_of(side[key].wrong, rule) for key in keys]),
            )
            for side in (ours, theirs)
        ]
        entry = compare(scored[0], scored[1], np.asarray([ours[key].pair for key in keys]))
        groups.setdefault(f"{group}, {pairing}", {}).setdefault(cell, {})[kind] = entry
    return {
        "first": names[0],
        "second": names[1],
        "rule": rule,
        "unmatched": len(ours) + len(theirs) - 2 * len(shared),
        "cells": next(iter(groups.values())),
        "groups": groups,
    }


def compare_cloze(
    out: Path, other: str | Path, evaluate: Callable[[Any, Path], object], device: str = "auto", name: str = "this"
) -> dict[str, Any]:
    """Compare the evaluation in `out` with another one: the folder of an evaluation, or a bundle, which is evaluated first.

    evaluate: (bundle, folder) -> evaluates that bundle on the same items into the folder. Writes compare.json and compare.md
    to `out`. Differences are this one minus the other. Raises TresseError where `other` is neither.
    """
    folder = Path(other)
    if not (folder / "scores.jsonl").exists():
        from slm.bundle import Bundle

        folder = out / "other"
        evaluate(Bundle.load(other, device), folder)
    comparison = compare_scores(
        read_scores(folder / "scores.jsonl"), read_scores(out / "scores.jsonl"), (Path(other).name or str(other), name)
    )
    with atomic_path(out / "compare.md") as temporary:
        temporary.write_text(comparison_page(comparison), encoding="utf-8")
    write_json(out / "compare.json", comparison)
    return comparison
