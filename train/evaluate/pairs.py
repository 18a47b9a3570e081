"""Pairs: how often the model finds the right one of two recordings likelier, for sWUGGY, sBLIMP, SALMon and the like.

A pair is {"right", "wrong", "group", "language", "id"}: right and wrong are audio paths, `{"audio": path}`, or
`{"text": "..."}` or `{"phonemes": "..."}` to be spoken; group (free text), language and id may be missing. A recording is
scored behind `<bos>` and its language's tag; where no language is named, behind the tag that makes both recordings together
likelier, which favours neither; a model without language tags is given none. Rules: log-likelihood per token (the headline)
and in all. Ties count one half; 95 % bootstrap intervals.

Shipped sets: `lexical` (`train.evaluate.lexical`), real words against nonwords one phoneme away; `grammar`
(`train.evaluate.syntax`), sentences against the same with a mistake of grammar. Each pair is spoken in a voice that no
training heard and in a training voice. Where a language has several groups, their mean counts each the same.
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
from train.evaluate.cloze.protocol import RECORDED
from train.evaluate.cloze.report import problems_section, shown
from train.evaluate.cloze.voice_groups import Speakers, panel_of, voice_groups
from train.evaluate.lexical import SHIPPED_SET
from train.evaluate.scorable import Scorable
from train.evaluate.spoken_items import SpokenUnits, is_recording
from train.evaluate.syntax import controls, controls_table, minimal_pairs
from train.speech.voices import Voices
from train.stories.grammar import read_lines, rng_for
from train.tools.checkpoints import atomic_path, write_json
from train.tools.progress import Progress
from train.tools.statistics import accuracy, mean_accuracy, outcomes

RULES = {"per_token": "log-likelihood per token", "total": "log-likelihood in all"}
HEADLINE = "per_token"
PARTS = ("right", "wrong")
LEXICAL, GRAMMAR = "lexical", "grammar"
"""The shipped sets."""
UNKNOWN = "language not named"
"""Key of the means over pairs that name no language."""


@dataclass(frozen=True)
class Pair:
    """Two entries (see `train.evaluate.spoken_items`), of which the first is right."""

    id: str
    group: str
    language: str | None
    right: Any
    wrong: Any


def shipped_pairs(name: str) -> list[Pair]:
    """The pairs of a shipped set, `lexical` or `grammar`. Raises TresseError for another name."""
    if name == LEXICAL:
        return read_pairs()[0]
    if name == GRAMMAR:
        return [Pair(pair.id, pair.group, pair.language, pair.right, pair.wrong) for pair in minimal_pairs()]
    raise TresseError(f"there is no set {name}: choose {LEXICAL} or {GRAMMAR}, or give --items FILE")


def read_pairs(path: Path | None = None) -> tuple[list[Pair], Path]:
    """Read pairs (the lexical set by default), and the folder that their audio paths are relative to.

    Raises TresseError naming the line that is wrong.
    """
    path = path or SHIPPED_SET
    pairs: list[Pair] = []
    for number, row in read_lines(path):
        entries = []
        for part in PARTS:
            if part not in row:
                raise TresseError(f'{path}, line {number}: add {part!r}: an audio path, or {{"text": "..."}}')
            entries.append(_entry(row[part], f"{path}, line {number}: {part!r}"))
        language = row.get("language")
        id = str(row.get("id", f"line {number}"))
        pairs.append(Pair(id, str(row.get("group", "all")), None if language is None else str(language), *entries))
    if not pairs:
        raise TresseError(f"{path} has no pairs: write one JSON object a line, with right and wrong")
    return pairs, path.parent


def _entry(given: Any, where: str) -> Any:
    """What a file says of a recording, as an entry: text is a sentence, and a bare string an audio path."""
    if isinstance(given, str):
        return {"audio": given}
    if isinstance(given, dict) and "text" in given:
        if not isinstance(given["text"], str) or not given["text"].strip():
            raise TresseError(f"{where}: the text is empty: write a sentence, or give an audio file")
        return given["text"]
    return given


@dataclass(frozen=True)
class _Asked:
    """A pair in one voice group: who speaks it, and its language where that is known."""

    pair: Pair
    group: str
    voice: str
    language: str | None


def evaluate_pairs(
    bundle: Scorable,
    pairs: Iterable[Pair],
    *,
    out: Path,
    language: str | None = None,
    voices: Mapping[str, str] | None = None,
    panel: Voices | None = None,
    cache: Path | None = None,
    audio_root: Path = Path("."),
    workers: int = 1,
) -> dict[str, Any]:
    """Score pairs; write results.json, pairs.md and scores.jsonl to `out` and return the results.

    language: of pairs that name none. voices: language -> the one voice that speaks it, instead of the groups. Results:
    {"groups": {group: {voices: {rule: {"accuracy", "ci95", "n"}, "left_out"}}}, "means": {language: {voices: {rule: the mean
    over its groups}}} where a language has several, "controls" (`syntax.controls`, of pairs of texts), "problems"}.
    Raises TresseError where nothing can be scored.
    """
    given = list(pairs)
    if panel is None:
        spelled = any(
            isinstance(entry, dict) and "phonemes" in entry for row in given for entry in (row.right, row.wrong)
        )
        named = Voices.of(bundle.info, bundle.languages, (voices or {}).values())  # only espeak-ng speaks phonemes
        panel = named if spelled else panel_of(bundle, voices)
    spoken = SpokenUnits(
        bundle.units,
        panel,
        cache=cache or out / "speech",
        encoder_files=bundle.path / "units",
        audio_root=audio_root,
        workers=workers,
    )
    usable, problems, left_out = _speak(bundle, _ask(bundle, given, language, panel, voices), spoken)
    if not usable:
        first = next(iter(problems), ("", "", "", "there are no pairs"))
        raise TresseError(f"no pair can be scored; the first problem: pair {first[0]}: {first[3]}")
    scored = _score(bundle, usable, spoken)
    results = _results(given, usable, scored, left_out)
    results["problems"] = [dict(zip(("id", "language", "entry", "problem"), row, strict=True)) for row in problems]
    with atomic_path(out / "scores.jsonl") as temporary:
        lines = [
            json.dumps(
                {
                    "id": row.pair.id,
                    "group": row.pair.group,
                    "voices": row.group,
                    "right": values[0],
                    "wrong": values[1],
                }
            )
            for row, values in zip(usable, scored, strict=True)
        ]
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with atomic_path(out / "pairs.md") as temporary:
        temporary.write_text(markdown_page(results), encoding="utf-8")
    write_json(out / "results.json", results)
    return results


def _ask(
    bundle: Scorable, pairs: list[Pair], language: str | None, panel: Voices, voices: Mapping[str, str] | None
) -> list[_Asked]:
    """Every pair in every voice group that it is spoken in; recordings in their own."""
    asked: list[_Asked] = []
    groups: dict[str, tuple[Speakers, ...]] | None = None
    for pair in pairs:
        known = pair.language or language
        if is_recording(pair.right) and is_recording(pair.wrong):
            asked.append(_Asked(pair, RECORDED, "", known))
            continue
        groups = voice_groups(bundle, panel, voices) if groups is None else groups
        for group, choices in groups.items():
            speakers = rng_for("pairs", pair.id).choice(choices)
            asked.append(_Asked(pair, group, speakers.get(known or bundle.languages[0], ""), known))
    return asked


Problems = dict[tuple[str, str, str, str], None]
"""(pair, language, entry, why), each once, in order."""


def _speak(
    bundle: Scorable, asked: list[_Asked], spoken: SpokenUnits
) -> tuple[list[_Asked], Problems, dict[tuple[str, str], int]]:
    """What can be scored, why the others cannot, and how many they are by (group, voices)."""
    failed = spoken.add(
        (getattr(row.pair, part), row.language or bundle.languages[0], row.voice) for row in asked for part in PARTS
    )
    problems: Problems = {}
    left_out: dict[tuple[str, str], int] = {}
    usable = []
    for number, row in enumerate(asked):
        wrong = {part: failed[2 * number + k] for k, part in enumerate(PARTS) if 2 * number + k in failed}
        if row.language is not None and row.language not in bundle.languages:
            wrong = {"language": f"this bundle speaks {', '.join(bundle.languages)}, not {row.language}"}
        for part, why in wrong.items():
            problems[row.pair.id, str(row.language), part, why] = None
        if wrong:
            cell = (row.pair.group, row.group)
            left_out[cell] = left_out.get(cell, 0) + 1
        else:
            usable.append(row)
    return usable, problems, left_out


Values = tuple[dict[str, float], dict[str, float]]


def _score(bundle: Scorable, asked: list[_Asked], spoken: SpokenUnits) -> list[Values]:
    """By rule, the values of right and wrong."""
    vocabulary = bundle.vocabulary
    items, tried = [], []
    for row in asked:
        known = row.language
        languages = [known or bundle.languages[0]] if known or not vocabulary.tags else list(bundle.languages)
        endings = []
        for language in languages:
            for part in PARTS:
                units = spoken.units(getattr(row.pair, part), known or bundle.languages[0], row.voice)
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
    asked: list[_Asked],
    scored: list[Values],
    left_out: Mapping[tuple[str, str], int],
) -> dict[str, Any]:
    scores = {
        rule: outcomes(*(np.asarray([both[k][rule] for both in scored], float) for k in (0, 1))) for rule in RULES
    }
    cell_of = [(row.pair.group, row.group) for row in asked]
    groups: dict[str, dict[str, Any]] = {}
    for cell in dict.fromkeys([*cell_of, *left_out]):
        chosen = np.asarray([own == cell for own in cell_of], bool)
        entry: dict[str, Any] = {"left_out": left_out.get(cell, 0)}
        groups.setdefault(cell[0], {})[cell[1]] = entry | {rule: accuracy(scores[rule][chosen]) for rule in RULES}
    means: dict[str, dict[str, Any]] = {}
    names = np.asarray([row.pair.group for row in asked])
    for language, voices in dict.fromkeys((row.language, row.group) for row in asked):
        chosen = np.asarray([(row.language, row.group) == (language, voices) for row in asked], bool)
        if len(set(names[chosen])) > 1:
            entry = {rule: mean_accuracy(scores[rule][chosen], names[chosen]) for rule in RULES}
            means.setdefault(language or UNKNOWN, {})[voices] = entry
    texts = [
        (pair.group, pair.language, pair.right, pair.wrong)
        for pair in pairs
        if pair.language is not None and isinstance(pair.right, str) and isinstance(pair.wrong, str)
    ]
    return {
        "pairs": len(pairs),
        "protocol": {"headline": HEADLINE, "rules": RULES, "ties": 0.5, "chance": 0.5, "interval": "bootstrap, 95 %"},
        "groups": groups,
        "means": means,
        "controls": controls(texts) if texts else {},
    }


def markdown_table(results: Mapping[str, Any]) -> str:
    """Accuracies in %: a row per group and voices, a column per rule; then the means over the groups of a language."""
    lines = ["| Group | Voices | " + " | ".join(RULES.values()) + " | left out |", "|---|---|---|---|---:|"]
    for group, voices in results["groups"].items():
        for name, entry in voices.items():
            cells = [shown(entry[rule]) for rule in RULES]
            lines.append(f"| {group} | {name} | " + " | ".join(cells) + f" | {entry['left_out']} |")
    for language, voices in results["means"].items():
        for name, entry in voices.items():
            cells = [shown(entry[rule]) for rule in RULES]
            of = f"{language}, mean of {entry[HEADLINE]['groups']} groups"
            lines.append(f"| {of} | {name} | " + " | ".join(cells) + " | |")
    return "\n".join(lines)


def markdown_page(results: Mapping[str, Any]) -> str:
    """The report."""
    page = [
        "# Pairs",
        "",
        f"{results['pairs']} pairs of a right recording and a wrong one: how often the right one is likelier, in %. Chance",
        "is 50 %; ties count one half; 95 % bootstrap intervals. The lexical set: words of the stories against nonwords one",
        "phoneme away. The grammar set: sentences against the same with a mistake of grammar. Both in voices that no",
        "training heard (unseen) and in training voices (seen). A mean counts every group the same; its interval is",
        "bootstrapped within groups.",
        "",
        markdown_table(results),
    ]
    if results["controls"]:
        page += [
            "",
            "## Without grammar",
            "",
            "The control: how often the right text is the longer one, or the one whose word bigrams are likelier in the",
            "written training stories, in %. Far from 50 % either way, a shortcut tells right from wrong.",
            "",
            controls_table(results["controls"]),
        ]
    if results["problems"]:
        page += ["", *problems_section(results["problems"])]
    return "\n".join(page) + "\n"
