"""The figures that a bundle carries: picked from the results of its evaluation, and as tables for pages.

What is picked and how it is printed stands in `train.evaluate.metrics`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from slm.errors import TresseError
from slm.settings import TEMPERATURE
from train.evaluate import pairs
from train.evaluate.cloze.items import learnt_written
from train.evaluate.cloze.protocol import CONTROL, HEADLINE, SAME, SEEN, UNSEEN
from train.evaluate.cloze.report import kinds_of, shown
from train.evaluate.metrics import (
    ACCURACY,
    ALIGNMENT,
    CONTINUATION,
    RECOGNISER,
    RESYNTHESIS,
    UNIT_EDIT_RATE,
    Metric,
    named,
    published,
)

REPORTED = f"{TEMPERATURE:g}"
"""Temperature of the continuations that are reported: the default."""
SETS = {
    "training_voices": "test stories, training voices",
    "unseen_voices": "test stories, unseen voices",
    "unseen_situations": "unseen situations, unseen voices",
    "hand_written": "hand-written, unseen voices",
    "written": "written stories, unseen voices",
}
FURTHER = {"cloze-unseen": "unseen_situations", "cloze-handwritten": "hand_written", "cloze-written": "written"}
"""Parts of the evaluation beside `cloze`, and the names of their figures."""
Metrics = dict[str, Any]


def digest(results: Mapping[str, Any], units: Mapping[str, float] | None = None) -> Metrics:
    """The results of `evaluate_all` -> the figures that a bundle carries. units: its unit edit rates, kept."""
    parts = results["parts"]
    metrics: Metrics = {"unit_edit_rate": dict(units)} if units else {}
    if cloze := _all_cloze(parts, results.get("bundle", {}).get("provenance", {})):
        metrics["cloze"] = cloze
    if "alignment" in parts:
        metrics["alignment"] = _alignment(parts["alignment"])
    if "resynthesis" in parts:
        metrics["resynthesis"] = _resynthesis(parts["resynthesis"])
    if "recogniser" in parts:
        metrics["recogniser"] = parts["recogniser"]
    if "continuation" in parts:
        metrics["continuation"] = _continuation(parts["continuation"])
    if "pairs" in parts:
        metrics["pairs"] = {
            f"{name}, {voices}": {key: entry[pairs.HEADLINE][key] for key in ("accuracy", "n")}
            for name, groups in sorted(parts["pairs"]["groups"].items())
            for voices, entry in groups.items()
        }
    if "grammar" in parts:
        metrics["grammar"] = {
            f"{language}, {voices}": {key: entry[pairs.HEADLINE][key] for key in ("accuracy", "ci95", "n", "groups")}
            for language, groups in sorted(parts["grammar"]["means"].items())
            for voices, entry in groups.items()
        }
    return metrics


def _all_cloze(parts: Mapping[str, Any], provenance: Mapping[str, Any]) -> Metrics:
    """The figures of all cloze parts, and the control of the first: written stories, where the bundle learnt from such."""
    cloze = cloze_figures(parts["cloze"]) if "cloze" in parts else {}
    for part, name in FURTHER.items():
        own = cloze_figures(parts[part]) if part in parts else {}
        if "unseen_voices" not in own:
            continue
        cloze[name] = own["unseen_voices"]
        cloze.setdefault("without_context", own["without_context"])
        if name == "written" and learnt_written(provenance):
            cloze = {name: cloze.pop(name), **cloze, "without_context": own["without_context"]}
    return cloze


def cloze_figures(results: Mapping[str, Any]) -> Metrics:
    """Accuracies of a cloze evaluation by voices, under the headline rule, and the control without context."""
    by_voices: Metrics = {}
    for group, name in ((SEEN, "training_voices"), (UNSEEN, "unseen_voices")):
        if SAME in results["groups"].get(group, {}):
            entry = results["groups"][group][SAME]
            by_voices[name] = {"cells": entry["rules"][HEADLINE]["cells"]}
            by_voices["without_context"] = {"cells": entry["controls"][CONTROL]["cells"]}
    return by_voices


def cloze_table(cloze: Mapping[str, Any]) -> str:
    """Accuracy in % with intervals: a row for each cell and kind, a column for each set of items, in the bundle's order."""
    sets = {name: SETS[name] for name in cloze if name in SETS}
    cells = next(iter(cloze.values()))["cells"]
    lines = ["| | " + " | ".join(sets.values()) + " |", "|---|" + "---|" * len(sets)]
    for kind in kinds_of(cells):
        for name in cells:
            row = [shown(cloze[column]["cells"].get(name, {}).get(kind)) for column in sets]
            lines.append(f"| {kind} {name} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def control_line(cloze: Mapping[str, Any]) -> str:
    """The control without context: lowest and highest accuracy of its cells."""
    values = [ACCURACY.value(entry) for cell in cloze["without_context"]["cells"].values() for entry in cell.values()]
    low, high = (ACCURACY.number(bound(value for value in values if value is not None)) for bound in (min, max))
    return f"Endings without their context: {low} to {high} %."


def further_table(metrics: Mapping[str, Any]) -> str:
    """The figures beside cloze, a row each."""
    rows: list[tuple[str, str]] = []
    if rates := metrics.get("unit_edit_rate"):
        rows.append(
            ("Units: edit rate against the reference voice, held-out sentences", _listed(UNIT_EDIT_RATE, rates))
        )
    for language, groups in metrics.get("resynthesis", {}).items():
        rows += [(f"Speech -> units -> speech, {language}, {group}", _kept(row)) for group, row in groups.items()]
    if recogniser := metrics.get("recogniser"):
        for group, errors in recogniser["word_error"].items():
            right = named(RECOGNISER, "language").text(recogniser["language"][group])
            said = f"{_listed(named(RECOGNISER, 'word_error'), errors)}; language recognised in {right}"
            rows.append((f"Recogniser: word error, {group.replace('_', '-')} voices", said))
    for name, row in metrics.get("continuation", {}).items():
        drawn = [row["drawn"]] if "drawn" in row else []
        rows.append((", ".join(["Continuation " + name, *drawn]), ", ".join(_stated(CONTINUATION, row))))
    if alignment := metrics.get("alignment"):
        forward, back, cosine, mismatched = (metric.text(alignment[metric.field]) for metric in ALIGNMENT[:4])
        said = (
            f"layer {alignment['layer']}: translation found among {alignment['sentences']} in {forward} and {back}; "
            f"cosine {cosine}, of mismatched pairs {mismatched}"
        )
        rows.append(("Alignment of sentences and their translations", said))
    for name, row in metrics.get("pairs", {}).items():
        rows.append((f"Words against nonwords, {name}", f"{ACCURACY.text(row['accuracy'])} of {row['n']}"))
    for name, row in metrics.get("grammar", {}).items():
        rows.append((f"Grammar, mean of {row['groups']} phenomena, {name}", shown(row)))
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {said} |" for name, said in rows)])


def figures(metrics: Mapping[str, Any]) -> str:
    """All tables."""
    parts = [cloze_table(metrics["cloze"]), control_line(metrics["cloze"])] if "cloze" in metrics else []
    return "\n\n".join([*parts, further_table(metrics)])


def _listed(metric: Metric, values: Mapping[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {metric.text(value)}" for name, value in values.items())


def _stated(metrics: Iterable[Metric], row: Mapping[str, Any]) -> list[str]:
    """`title value` of every metric that a row of published figures has."""
    values = [(metric, metric.value(row)) for metric in metrics]
    return [f"{metric.title} {metric.text(value)}" for metric, value in values if value is not None]


def _kept(row: Mapping[str, Any]) -> str:
    """What is kept of speech in one group of voices."""
    texts = {metric.field: metric.text(row[metric.field]) for metric in RESYNTHESIS if metric.field in row}
    parts = [f"loudness within {texts['level_spread']}"]
    if "f0_correlation" in texts:
        parts.insert(0, f"melody {texts['f0_correlation']}")
    if "word_error" in texts:
        parts.insert(0, f"word error {texts['original_word_error']} -> {texts['word_error']}")
    return ", ".join(parts)


def _alignment(results: Mapping[str, Any]) -> Metrics:
    measured = next(iter(results["bundles"].values()))
    pair = next(iter(measured["pairs"].values()))
    layer = pair["layers"][pair["best_layer"]]
    return {"layer": pair["best_layer"], "sentences": measured["sentences"], **published(ALIGNMENT, layer)}


def _resynthesis(results: Mapping[str, Any]) -> Metrics:
    return {
        language: {group: published(RESYNTHESIS, row) for group, row in groups.items()}
        for language, groups in results["rows"].items()
    }


def _continuation(results: Mapping[str, Any]) -> Metrics:
    figures: Metrics = {}
    for name, by_temperature in results["cells"].items():
        if REPORTED not in by_temperature:
            raise TresseError(
                f"the continuations were not drawn at {REPORTED}: run tresse eval all into another folder"
            )
        row = by_temperature[REPORTED] | {"ceiling": results["ceiling"][name]}
        drawn = f"temperature {REPORTED}, top-p {results['settings']['top_p']:g}"
        figures[name] = published(CONTINUATION, row) | {"n": row["n"], "drawn": drawn}
    return figures
