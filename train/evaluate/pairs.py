"""Pairs: how often the model finds the right one of two recordings likelier, for sWUGGY, sBLIMP, SALMon and the like.

A pair is {"right", "wrong", "group", "language", "id"}: right and wrong are audio paths, `{"audio": path}`, or
`{"phonemes": "..."}` to be spoken; group (free text), language and id may be missing. A recording is scored behind `<bos>`
and its language's tag; where no language is named, behind the tag that makes both recordings together likelier, which
favours neither; a model without language tags is given none. Rules: log-likelihood per token (the headline) and in all.
Ties count one half; 95 % bootstrap intervals.

The shipped set (`train.evaluate.lexical`): real words against nonwords one phoneme away, each pair in a voice that no
training heard and in a training voice.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slm.errors import TresseError
from slm.interleave import sentence_tokens
from slm.likelihood import EndingScore, ScoredItem, score_endings
from train.evaluate.cloze.evaluation import conditions
from train.evaluate.cloze.protocol import RECORDED, SEEN, UNSEEN
from train.evaluate.cloze.report import problems_section, shown
from train.evaluate.lexical import SHIPPED_SET
from train.evaluate.scorable import Scorable
from train.evaluate.spoken_items import SpokenUnits, heard_voices, is_recording
from train.speech.voices import Voices
from train.stories.grammar import read_lines, rng_for
from train.tools.checkpoints import atomic_path, write_json
from train.tools.progress import Progress
from train.tools.statistics import accuracy, outcomes

RULES = {"per_token": "log-likelihood per token", "total": "log-likelihood in all"}
HEADLINE = "per_token"
PARTS = ("right", "wrong")


@dataclass(frozen=True)
class Pair:
    """Two entries (see `train.evaluate.spoken_items`), of which the first is right."""

    id: str
    group: str
    language: str | None
    right: Any
    wrong: Any


def read_pairs(path: Path | None = None) -> tuple[list[Pair], Path]:
    """Read pairs (the shipped set by default), and the folder that their audio paths are relative to.

    Raises TresseError naming the line that is wrong.
    """
    path = path or SHIPPED_SET
    pairs: list[Pair] = []
    for number, row in read_lines(path):
        entries = []
        for part in PARTS:
            if part not in row:
                raise TresseError(f"{path}, line {number}: add {part!r}: an audio path")
            entries.append({"audio": row[part]} if isinstance(row[part], str) else row[part])
        language = row.get("language")
        id = str(row.get("id", f"line {number}"))
        pairs.append(Pair(id, str(row.get("group", "all")), None if language is None else str(language), *entries))
    if not pairs:
        raise TresseError(f"{path} has no pairs: write one JSON object a line, with right and wrong")
    return pairs, path.parent


def evaluate_pairs(
    bundle: Scorable,
    pairs: Iterable[Pair],
    *,
    out: Path,
    language: str | None = None,
    panel: Voices | None = None,
    cache: Path | None = None,
    audio_root: Path = Path("."),
    workers: int = 1,
) -> dict[str, Any]:
    """Score pairs; write results.json, pairs.md and scores.jsonl to `out` and return the results.

    language: of pairs that name none. Results: {"groups": {group: {voices: {rule: {"accuracy", "ci95", "n"}, "left_out"}}},
    "problems"}.
    Raises TresseError where nothing can be scored.
    """
    given = list(pairs)
    panel = panel or Voices.of(bundle.info, bundle.languages)
    spoken = SpokenUnits(
        bundle.units,
        panel,
        cache=cache or out / "speech",
        encoder_files=bundle.path / "units",
        audio_root=audio_root,
        workers=workers,
    )
    asked: list[tuple[Pair, str, str, str | None]] = []  # pair, voice group, voice, language
    for pair in given:
        known = pair.language or language
        if is_recording(pair.right) and is_recording(pair.wrong):
            asked.append((pair, RECORDED, "", known))
            continue
        for group, names in ((UNSEEN, panel.held_out), (SEEN, heard_voices(bundle, panel))):
            if names:
                asked.append((pair, group, rng_for("pairs", pair.id).choice(list(names)), known))
    failed = spoken.add(
        (getattr(pair, part), known or bundle.languages[0], voice) for pair, _, voice, known in asked for part in PARTS
    )
    problems: dict[tuple[str, str, str, str], None] = {}
    left_out: dict[tuple[str, str], int] = {}
    usable = []
    for number, row in enumerate(asked):
        pair, group, _, known = row
        wrong = {part: failed[2 * number + k] for k, part in enumerate(PARTS) if 2 * number + k in failed}
        if known is not None and known not in bundle.languages:
            wrong = {"language": f"this bundle speaks {', '.join(bundle.languages)}, not {known}"}
        for part, why in wrong.items():
            problems[pair.id, str(known), part, why] = None
        if wrong:
            left_out[pair.group, group] = left_out.get((pair.group, group), 0) + 1
        else:
            usable.append(row)
    if not usable:
        first = next(iter(problems), ("", "", "", "there are no pairs"))
        raise TresseError(f"no pair can be scored; the first problem: pair {first[0]}: {first[3]}")
    scored = _score(bundle, usable, spoken)
    results = _results(given, usable, scored, left_out)
    results["problems"] = [dict(zip(("id", "language", "entry", "problem"), row, strict=True)) for row in problems]
    with atomic_path(out / "scores.jsonl") as temporary:
        lines = [
            json.dumps({"id": pair.id, "group": pair.group, "voices": group, "right": values[0], "wrong": values[1]})
            for (pair, group, _, _), values in zip(usable, scored, strict=True)
        ]
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with atomic_path(out / "pairs.md") as temporary:
        temporary.write_text(markdown_page(results), encoding="utf-8")
    write_json(out / "results.json", results)
    return results


Values = tuple[dict[str, float], dict[str, float]]


def _score(bundle: Scorable, asked: list[tuple[Pair, str, str, str | None]], spoken: SpokenUnits) -> list[Values]:
    """By rule, the values of right and wrong."""
    vocabulary = bundle.vocabulary
    items, tried = [], []
    for pair, _, voice, known in asked:
        languages = [known or bundle.languages[0]] if known or not vocabulary.tags else list(bundle.languages)
        endings = []
        for language in languages:
            for part in PARTS:
                units = spoken.units(getattr(pair, part), known or bundle.languages[0], voice)
                endings.append(sentence_tokens(vocabulary.encode(units.ids), language, vocabulary).tolist())
        items.append(ScoredItem([vocabulary.bos_id], endings))
        tried.append(len(languages))
    progress = Progress("scoring", 1, unit="rows")

    def show(done: int, total: int) -> None:
        progress.total = total
        progress.update(done)

    scores = score_endings(bundle.language_model, items, **conditions(vocabulary), progress=show)
    values: list[Values] = []
    for count, endings_scored in zip(tried, scores, strict=True):
        best = max(range(count), key=lambda k: endings_scored[2 * k].given + endings_scored[2 * k + 1].given)
        values.append((_values(endings_scored[2 * best]), _values(endings_scored[2 * best + 1])))
    return values


def _values(score: EndingScore) -> dict[str, float]:
    return {"per_token": score.given / score.tokens, "total": score.given}


def _results(
    pairs: list[Pair],
    asked: list[tuple[Pair, str, str, str | None]],
    scored: list[Values],
    left_out: Mapping[tuple[str, str], int],
) -> dict[str, Any]:
    groups: dict[str, dict[str, Any]] = {}
    cells = dict.fromkeys([*((pair.group, group) for pair, group, _, _ in asked), *left_out])
    for cell in cells:
        values = [both for (pair, group, _, _), both in zip(asked, scored, strict=True) if (pair.group, group) == cell]
        entry: dict[str, Any] = {"left_out": left_out.get(cell, 0)}
        for rule in RULES:
            right, wrong = (np.asarray([both[k][rule] for both in values], float) for k in (0, 1))
            entry[rule] = accuracy(outcomes(right, wrong))
        groups.setdefault(cell[0], {})[cell[1]] = entry
    return {
        "pairs": len(pairs),
        "protocol": {"headline": HEADLINE, "rules": RULES, "ties": 0.5, "chance": 0.5, "interval": "bootstrap, 95 %"},
        "groups": groups,
    }


def markdown_table(results: Mapping[str, Any]) -> str:
    """Accuracies in %: a row per group and voices, a column per rule."""
    lines = ["| Group | Voices | " + " | ".join(RULES.values()) + " | left out |", "|---|---|---|---|---:|"]
    for group, voices in results["groups"].items():
        for name, entry in voices.items():
            cells = [shown(entry[rule]) for rule in RULES]
            lines.append(f"| {group} | {name} | " + " | ".join(cells) + f" | {entry['left_out']} |")
    return "\n".join(lines)


def markdown_page(results: Mapping[str, Any]) -> str:
    """The report."""
    page = [
        "# Pairs",
        "",
        f"{results['pairs']} pairs of a right recording and a wrong one: how often the right one is likelier, in %. Chance",
        "is 50 %; ties count one half; 95 % bootstrap intervals. The lexical set: words of the stories against nonwords one",
        "phoneme away, in voices that no training heard (unseen) and in training voices (seen).",
        "",
        markdown_table(results),
    ]
    if results["problems"]:
        page += ["", *problems_section(results["problems"])]
    return "\n".join(page) + "\n"
