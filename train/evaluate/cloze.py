"""Cloze: how often the model finds the right ending of a story likelier than a wrong one.

Protocol. An item is four context sentences and two endings. Sentences are spoken one by one, encoded and tokenised; the
prompt is `<bos>`, then each context sentence behind its language's tag; an ending stands behind the tag of its
language, without `<eos>`. Tags are given to the model, never scored. Every ordered pair of languages is a cell
(context > ending). Three rules, each a mean over tokens: the ending given the prompt (the headline), prompt and
ending together, and the ending given the prompt minus the ending alone. Ties count one half; 95 % intervals are
bootstrapped over items. The control scores endings alone, without any context: it must stand at chance, 50 %.

Cost: speaking and encoding about 7 ms a distinct sentence, once; scoring about 30 items a second and core with the
shipped model (four cells of an item at once).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slm.errors import TresseError
from slm.interleave import braid, sentence_tokens
from slm.likelihood import EndingScore, ScoredItem, score_endings
from train.checkpoint import atomic_path, write_json
from train.evaluate.speech import SpokenUnits
from train.evaluate.statistics import accuracy, outcomes
from train.progress import Progress

RULES = {
    "ending_given_prompt": "log-likelihood per token of the ending, given the prompt",
    "whole_file": "log-likelihood per token of prompt and ending together",
    "ending_minus_unconditional": "log-likelihood per token of the ending given the prompt, minus that of it alone",
}
HEADLINE = "ending_given_prompt"
CONTROL = "without_context"
KINDS = ("story", "topic")
PARTS = ("right", "wrong")


@dataclass(frozen=True)
class _Choice:
    """One item in one cell, scored."""

    item: str
    kind: str
    context: str
    ending: str
    right: EndingScore
    wrong: EndingScore


def evaluate_cloze(
    bundle: Any,
    items: Iterable[Any],
    *,
    out: Path,
    voices: Mapping[str, str] | None = None,
    cache: Path | None = None,
    audio_root: Path = Path("."),
) -> dict[str, Any]:
    """Score cloze items with a bundle's encoder, vocabulary and language model; write and return the results.

    items: mappings or dataclasses of the form {"id", "kind", "context": {lang: [sentences]}, "right": {lang: sentence},
    "wrong": ...}; any sentence may be {"audio": path} (relative to `audio_root`). voices: language -> voice name; the
    reference voice where none is given. out: receives results.json, cloze.md and scores.jsonl. cache: file of the
    spoken units (default: out/units.npz). What cannot be used is listed in results["problems"] and left out of the
    cells concerned only, whose "left_out" counts it. Raises TresseError where nothing can be scored.
    """
    held = [_plain(item, number) for number, item in enumerate(items, start=1)]
    if not held:
        raise TresseError("there are no cloze items: give a file with at least one")
    speakers = _voices(bundle.languages, voices or {})
    spoken = SpokenUnits(
        bundle.units,
        speakers,
        cache=cache or out / "units.npz",
        encoder_files=getattr(bundle, "path", None) and bundle.path / "units",
        audio_root=audio_root,
    )
    entries, problems = _entries(held, bundle.languages)
    failed = spoken.add((entry, language) for _, language, _, entry in entries)
    problems += [
        {"id": held[item]["id"], "language": language, "entry": place, "problem": failed[number]}
        for number, (item, language, place, _) in enumerate(entries)
        if number in failed
    ]
    broken = {(problem["id"], problem["language"], problem["entry"].split("[")[0]) for problem in problems}
    choices, left_out = _score(bundle, held, spoken, broken, problems)
    if not choices:
        first = problems[0]
        raise TresseError(f"no cloze item can be scored; the first problem: item {first['id']}: {first['problem']}")
    results = {
        "items": len(held),
        "languages": list(bundle.languages),
        "voices": speakers,
        "protocol": {"headline": HEADLINE, "rules": RULES, "ties": 0.5, "chance": 0.5, "interval": "bootstrap, 95 %"},
        "cells": _cells(choices, left_out, HEADLINE),
        "rules": {rule: {"cells": _cells(choices, left_out, rule)} for rule in RULES},
        "controls": {CONTROL: {"cells": _cells(choices, left_out, CONTROL)}},
        "problems": problems,
    }
    with atomic_path(out / "scores.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(asdict(choice)) + "\n" for choice in choices), encoding="utf-8")
    with atomic_path(out / "cloze.md") as temporary:
        temporary.write_text(markdown_page(results), encoding="utf-8")
    write_json(out / "results.json", results)
    return results


def _plain(item: Any, number: int) -> dict[str, Any]:
    plain = asdict(item) if is_dataclass(item) and not isinstance(item, type) else dict(item)
    missing = [name for name in ("id", "kind", "context", "right", "wrong") if name not in plain]
    if missing:
        raise TresseError(f"cloze item {number} has no '{missing[0]}': add it to the file")
    return plain


def _voices(languages: list[str], chosen: Mapping[str, str]) -> dict[str, str]:
    from train.speech import Voices

    unknown = [language for language in chosen if language not in languages]
    if unknown:
        raise TresseError(f"unknown language {unknown[0]!r} for a voice: this bundle speaks {', '.join(languages)}")
    reference = Voices.load().reference
    return {language: chosen.get(language, reference) for language in languages}


def _entries(
    items: list[dict[str, Any]], languages: list[str]
) -> tuple[list[tuple[int, str, str, Any]], list[dict[str, str]]]:
    """All (item, language, place, entry) to be spoken, and what the items lack."""
    entries: list[tuple[int, str, str, Any]] = []
    problems: list[dict[str, str]] = []
    for number, item in enumerate(items):
        for language in languages:
            for part in ("context", "right", "wrong"):
                value = item[part].get(language)
                if value is None or (part == "context" and not (isinstance(value, list) and value)):
                    why = f"the item has no {part} in {language}"
                    problems.append({"id": item["id"], "language": language, "entry": part, "problem": why})
                elif part == "context":
                    entries += [(number, language, f"context[{k}]", entry) for k, entry in enumerate(value)]
                else:
                    entries.append((number, language, part, value))
    return entries, problems


def _score(
    bundle: Any,
    items: list[dict[str, Any]],
    spoken: SpokenUnits,
    broken: set[tuple[str, str, str]],
    problems: list[dict[str, str]],
) -> tuple[list[_Choice], dict[tuple[str, str, str], int]]:
    """Every usable (item, context language, ending language), and how many were not, by (context, ending, kind).

    Adds to `problems` the items that are too long for the model's context.
    """
    limit = getattr(bundle.language_model.config, "max_position_embeddings", None) or 1 << 30
    vocabulary, languages = bundle.vocabulary, bundle.languages
    known: dict[str, np.ndarray] = {}

    def tokens(entry: Any, language: str) -> np.ndarray:
        key = spoken.key(entry, language)
        if key not in known:
            known[key] = np.asarray(vocabulary.encode(spoken.units(entry, language).ids), dtype=np.int32)
        return known[key]

    rows: list[ScoredItem] = []
    owners: list[tuple[dict[str, Any], str, list[str]]] = []
    left_out: dict[tuple[str, str, str], int] = {}
    for item in items:
        usable = [
            language
            for language in languages
            if not {(item["id"], language, "right"), (item["id"], language, "wrong")} & broken
        ]
        endings = {
            ending: [sentence_tokens(tokens(item[part][ending], ending), ending, vocabulary) for part in PARTS]
            for ending in usable
        }
        for context in languages:
            fitting: list[str] = []
            if (item["id"], context, "context") not in broken:
                sentences = [tokens(entry, context) for entry in item["context"][context]]
                prompt = braid({context: sentences}, [context] * len(sentences), vocabulary)
                for ending in usable:
                    longest = len(prompt) + max(map(len, endings[ending]))
                    if longest <= limit:
                        fitting.append(ending)
                    else:
                        why = f"{context}>{ending} has {longest} tokens and the model's context {limit}: shorten it"
                        problems.append({"id": item["id"], "language": context, "entry": "context", "problem": why})
            for ending in languages:
                if ending not in fitting:
                    cell = (context, ending, item["kind"])
                    left_out[cell] = left_out.get(cell, 0) + 1
            if fitting:
                asked = [choice.tolist() for ending in fitting for choice in endings[ending]]
                rows.append(ScoredItem(prompt.tolist(), asked))
                owners.append((item, context, fitting))
    if not rows:
        return [], left_out
    shown: list[Progress] = []

    def progress(done: int, total: int) -> None:
        if not shown:
            shown.append(Progress("scoring", total, unit="rows"))
        shown[0].update(done)

    scores = score_endings(
        bundle.language_model,
        rows,
        unconditional_prompt=[vocabulary.bos_id],
        unscored=vocabulary.tag_ids.values(),
        progress=progress,
    )
    choices = [
        _Choice(item["id"], item["kind"], context, ending, scored[2 * place], scored[2 * place + 1])
        for (item, context, fitting), scored in zip(owners, scores, strict=True)
        for place, ending in enumerate(fitting)
    ]
    return choices, left_out


def _value(score: EndingScore, rule: str) -> float:
    """An ending's score under a rule, in nats a token."""
    if rule == "whole_file":
        return score.whole / score.whole_tokens
    if rule == "ending_minus_unconditional":
        return (score.given - score.unconditional) / score.tokens
    return (score.unconditional if rule == CONTROL else score.given) / score.tokens


def _cells(
    choices: list[_Choice], left_out: dict[tuple[str, str, str], int], rule: str
) -> dict[str, dict[str, dict[str, Any]]]:
    """{"en>fr": {"story": {"accuracy", "ci95", "n", "left_out"}}} under one rule."""
    groups: dict[tuple[str, str, str], list[tuple[float, float]]] = {cell: [] for cell in left_out}
    for choice in choices:
        pair = (_value(choice.right, rule), _value(choice.wrong, rule))
        groups.setdefault((choice.context, choice.ending, choice.kind), []).append(pair)
    cells: dict[str, dict[str, dict[str, Any]]] = {}
    for (context, ending, kind), pairs in sorted(groups.items(), key=lambda group: _order(group[0])):
        values = np.asarray(pairs, dtype=float).reshape(-1, 2)
        cells.setdefault(f"{context}>{ending}", {})[kind] = {
            **accuracy(outcomes(values[:, 0], values[:, 1])),
            "left_out": left_out.get((context, ending, kind), 0),
        }
    return cells


def _order(cell: tuple[str, str, str]) -> tuple[bool, str, str, int]:
    """Cells within a language first; story before topic."""
    context, ending, kind = cell
    return context != ending, context, ending, KINDS.index(kind) if kind in KINDS else len(KINDS)


def markdown_table(results: dict[str, Any], rule: str = HEADLINE) -> str:
    """Accuracies in % with 95 % intervals: a row per cell, a column per kind, and the control without context."""
    cells = results["rules"][rule]["cells"]
    control = results["controls"][CONTROL]["cells"]
    kinds = sorted({kind for cell in cells.values() for kind in cell}, key=lambda kind: _order(("", "", kind)))

    def shown(cell: dict[str, Any] | None) -> str:
        if cell is None or cell["n"] == 0:
            return "-"
        low, high = cell["ci95"]
        return f"{100 * cell['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}] (n={cell['n']})"

    lines = [
        "| Context > ending | " + " | ".join(kinds) + " |",
        "|---|" + "---|" * len(kinds),
        *(f"| {name} | " + " | ".join(shown(cell.get(kind)) for kind in kinds) + " |" for name, cell in cells.items()),
    ]
    lines += [
        f"| no context > {name.split('>')[1]} | " + " | ".join(shown(cell.get(kind)) for kind in kinds) + " |"
        for name, cell in control.items()
        if name.split(">")[0] == name.split(">")[1]
    ]
    return "\n".join(lines)


def markdown_page(results: dict[str, Any]) -> str:
    """The report: protocol, a table per rule, and what was left out."""
    speakers = ", ".join(f"{name} ({language})" for language, name in results["voices"].items())
    page = [
        "# Cloze",
        "",
        f"{results['items']} items; voices: {speakers}. Chance is 50 %.",
        "",
        "An item is a story's context and two endings, spoken sentence by sentence; a cell names the language of the",
        "context and that of the endings. The model is given each sentence's language tag; tags are not scored, and",
        "neither is the end of the story. Accuracy in %: how often the right ending scores higher; ties count one",
        "half; 95 % bootstrap intervals over items. The rows without context are the control: the endings alone.",
    ]
    for rule, meaning in RULES.items():
        page += ["", f"## {rule.replace('_', ' ').capitalize()}", "", f"{meaning.capitalize()}.", ""]
        page.append(markdown_table(results, rule))
    if results["problems"]:
        page += [
            "",
            f"## Left out ({len(results['problems'])})",
            "",
            "| Item | Entry | Language | Problem |",
            "|---|---|---|---|",
        ]
        page += [
            f"| {problem['id']} | {problem['entry']} | {problem['language']} | {problem['problem']} |"
            for problem in results["problems"]
        ]
    return "\n".join(page) + "\n"
