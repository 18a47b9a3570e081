"""Scored choices, their files, and the figures made from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slm.errors import TresseError
from slm.likelihood import EndingScore
from train.evaluate.cloze.items import KINDS, Item
from train.evaluate.cloze.protocol import CHOSEN, CONTROL, HEADLINE, RECORDED, RULES, SAME, SEEN, UNSEEN, value_of
from train.tools.statistics import accuracy, outcomes

FEW = 8
"""Items of a fact below which it has no row of its own."""


@dataclass(frozen=True)
class Choice:
    """One item in one cell, scored. pair: the same for mirrored items; fact: what the wrong ending contradicts."""

    item: str
    kind: str
    pair: str
    fact: str | None
    group: str
    pairing: str
    context: str
    ending: str
    right: EndingScore
    wrong: EndingScore


def read_scores(path: Path) -> list[Choice]:
    """Read the scores.jsonl of an evaluation. Raises TresseError where it is missing or none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        return [
            Choice(**{**row, "right": EndingScore(**row["right"]), "wrong": EndingScore(**row["wrong"])})
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TresseError(f"cannot read the scores in {path}: run tresse eval cloze again") from error


Cell = tuple[str, str, str, str, str]
"""Voice group, pairing, language of the context, language of the endings, kind."""


def results_of(
    items: list[Item],
    languages: Sequence[str],
    speakers: Mapping[str, Any],
    choices: list[Choice],
    left_out: dict[Cell, int],
) -> dict[str, Any]:
    """All figures of an evaluation, as results.json holds them. left_out: by cell, the items that could not be scored."""
    by_cell: dict[Cell, list[Choice]] = {cell: [] for cell in left_out}
    for choice in choices:
        by_cell.setdefault((choice.group, choice.pairing, choice.context, choice.ending, choice.kind), []).append(
            choice
        )
    order = [CHOSEN, UNSEEN, SEEN, RECORDED]
    groups: dict[str, dict[str, Any]] = {}
    for group, pairing in sorted({cell[:2] for cell in by_cell}, key=lambda one: (order.index(one[0]), one[1] != SAME)):
        own: dict[tuple[str, ...], list[Choice]] = {
            cell[2:]: members for cell, members in by_cell.items() if cell[:2] == (group, pairing)
        }
        missing: dict[tuple[str, ...], int] = {
            cell[2:]: count for cell, count in left_out.items() if cell[:2] == (group, pairing)
        }
        groups.setdefault(group, {})[pairing] = {
            "rules": {rule: {"cells": _cells(own, missing, rule)} for rule in RULES},
            "controls": {CONTROL: {"cells": _cells(own, missing, CONTROL)}},
            "facts": _facts(own),
        }
    first = next((group for group in groups if any(choice.group == group for choice in choices)), next(iter(groups)))
    headline = groups[first][SAME]
    return {
        "items": len(items),
        "languages": list(languages),
        "voices": dict(speakers),
        "protocol": {
            "headline": HEADLINE,
            "headline_voices": first,
            "rules": RULES,
            "ties": 0.5,
            "chance": 0.5,
            "interval": "bootstrap over pairs of mirrored items, 95 %",
        },
        "cells": headline["rules"][HEADLINE]["cells"],
        "rules": headline["rules"],
        "controls": headline["controls"],
        "facts": headline["facts"],
        "groups": groups,
    }


def _entry(choices: list[Choice], rule: str) -> dict[str, Any]:
    right = np.asarray([value_of(choice.right, rule) for choice in choices], float)
    wrong = np.asarray([value_of(choice.wrong, rule) for choice in choices], float)
    return accuracy(outcomes(right, wrong), np.asarray([choice.pair for choice in choices]))


def _cells(
    by_cell: Mapping[tuple[str, ...], list[Choice]], left_out: Mapping[tuple[str, ...], int], rule: str
) -> dict[str, dict[str, dict[str, Any]]]:
    """{"en>fr": {"story": {"accuracy", "ci95", "n", "left_out"}}} under one rule; cells within a language first."""
    cells: dict[str, dict[str, dict[str, Any]]] = {}
    for cell in sorted(by_cell, key=_order):
        context, ending, kind = cell
        entry = _entry(by_cell[cell], rule) | {"left_out": left_out.get(cell, 0)}
        cells.setdefault(f"{context}>{ending}", {})[kind] = entry
    return cells


def _facts(by_cell: Mapping[tuple[str, ...], list[Choice]]) -> dict[str, dict[str, dict[str, Any]]]:
    """{fact: {"en>fr": {"accuracy", "ci95", "n"}}} under the headline rule, the commonest fact first."""
    by_fact: dict[str, dict[str, list[Choice]]] = {}
    for cell in sorted(by_cell, key=_order):
        for choice in by_cell[cell]:
            if choice.fact is not None:
                by_fact.setdefault(choice.fact, {}).setdefault(f"{cell[0]}>{cell[1]}", []).append(choice)
    named: dict[str, dict[str, list[Choice]]] = {}
    for fact in sorted(by_fact, key=lambda fact: -sum(map(len, by_fact[fact].values()))):
        common = max(map(len, by_fact[fact].values())) >= FEW
        for cell_name, choices in by_fact[fact].items():
            named.setdefault(fact if common else "other facts", {}).setdefault(cell_name, []).extend(choices)
    return {fact: {name: _entry(choices, HEADLINE) for name, choices in cells.items()} for fact, cells in named.items()}


def _order(cell: tuple[str, ...]) -> tuple[bool, str, str, int]:
    """Cells within a language first; story before topic."""
    context, ending, kind = cell
    return context != ending, context, ending, KINDS.index(kind) if kind in KINDS else len(KINDS)
