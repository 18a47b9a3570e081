"""The figures that a bundle carries: picked from the results of its evaluation, and as tables for pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slm.errors import TresseError
from slm.settings import TEMPERATURE
from train.evaluate import pairs
from train.evaluate.cloze.protocol import CONTROL, HEADLINE, SAME, SEEN, UNSEEN
from train.evaluate.cloze.report import kinds_of, shown

REPORTED = f"{TEMPERATURE:g}"
"""Temperature of the continuations that are reported: the default."""
SETS = {
    "training_voices": "test stories, training voices",
    "unseen_voices": "test stories, unseen voices",
    "unseen_situations": "unseen situations, unseen voices",
    "hand_written": "hand-written, unseen voices",
}
CONTINUATION = {
    "in_domain": "prompts in domain",
    "language": "in the language asked for",
    "lexicon": "words of the lexicon",
    "confidence": "recogniser's confidence",
    "coherence": "facts that agree with the prompt",
    "coherence_control": "with another prompt",
    "ceiling": "of the story itself",
}
Metrics = dict[str, Any]


def digest(results: Mapping[str, Any], units: Mapping[str, float] | None = None) -> Metrics:
    """The results of `evaluate_all` -> the figures that a bundle carries. units: its unit edit rates, kept."""
    parts = results["parts"]
    metrics: Metrics = {"unit_edit_rate": dict(units)} if units else {}
    cloze: Metrics = {}
    if "cloze" in parts:
        cloze = cloze_figures(parts["cloze"])
    for part, name in (("cloze-unseen", "unseen_situations"), ("cloze-handwritten", "hand_written")):
        if part in parts and (found := cloze_figures(parts[part]).get("unseen_voices")):
            cloze[name] = found
    if cloze:
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
            f"{name}, {voices}": {key: one[pairs.HEADLINE][key] for key in ("accuracy", "n")}
            for name, groups in sorted(parts["pairs"]["groups"].items())
            for voices, one in groups.items()
        }
    return metrics


def cloze_figures(results: Mapping[str, Any]) -> Metrics:
    """Accuracies of a cloze evaluation by voices, under the headline rule, and the control without context."""
    found: Metrics = {}
    for group, name in ((SEEN, "training_voices"), (UNSEEN, "unseen_voices")):
        if SAME in results["groups"].get(group, {}):
            entry = results["groups"][group][SAME]
            found[name] = {"cells": entry["rules"][HEADLINE]["cells"]}
            found["without_context"] = {"cells": entry["controls"][CONTROL]["cells"]}
    return found


def cloze_table(cloze: Mapping[str, Any]) -> str:
    """Accuracy in % with intervals: a row for each cell and kind, a column for each set of items."""
    sets = {name: title for name, title in SETS.items() if name in cloze}
    cells = next(iter(cloze.values()))["cells"]
    lines = ["| | " + " | ".join(sets.values()) + " |", "|---|" + "---|" * len(sets)]
    for kind in kinds_of(cells):
        lines += [
            f"| {kind} {name} | " + " | ".join(shown(cloze[one]["cells"][name].get(kind)) for one in sets) + " |"
            for name in cells
        ]
    return "\n".join(lines)


def control_line(cloze: Mapping[str, Any]) -> str:
    """The control without context: lowest and highest accuracy of its cells."""
    values = [one["accuracy"] for cell in cloze["without_context"]["cells"].values() for one in cell.values()]
    return f"Endings without their context: {100 * min(values):.1f} to {100 * max(values):.1f} %."


def further_table(metrics: Mapping[str, Any]) -> str:
    """The figures beside cloze, a row each."""
    rows = []
    if rates := metrics.get("unit_edit_rate"):
        rows.append(("Units: edit rate against the reference voice, held-out sentences", _listed(rates)))
    for language, groups in metrics.get("resynthesis", {}).items():
        for group, one in groups.items():
            said = f"loudness within {one['level_spread']:.1f} dB"
            if "f0_correlation" in one:
                said = f"melody {one['f0_correlation']:.2f}, {said}"
            if "word_error" in one:
                said = f"word error {one['original_word_error']:.1%} -> {one['word_error']:.1%}, {said}"
            rows.append((f"Speech -> units -> speech, {language}, {group}", said))
    if ears := metrics.get("recogniser"):
        for group, errors in ears["word_error"].items():
            said = ", ".join(f"{language} {rate:.1%}" for language, rate in errors.items())
            told = f"{said}; language told right in {ears['language'][group]:.1%}"
            rows.append((f"Recogniser: word error, {group.replace('_', '-')} voices", told))
    for name, one in metrics.get("continuation", {}).items():
        if "familiar" in one:  # the field's name in bundles of format 1
            one = {**one, "in_domain": one["familiar"]}
        said = ", ".join(f"{title} {one[key]:.0%}" for key, title in CONTINUATION.items() if one.get(key) is not None)
        rows.append((", ".join(["Continuation " + name, *([one["drawn"]] if "drawn" in one else [])]), said))
    if one := metrics.get("alignment"):
        said = (
            f"layer {one['layer']}: translation found among {one['sentences']} in {one['retrieval']:.0%} and "
            f"{one['retrieval_back']:.0%}; cosine {one['cosine']:.2f}, of mismatched pairs {one['cosine_mismatched']:.2f}"
        )
        rows.append(("Alignment of sentences and their translations", said))
    for name, one in metrics.get("pairs", {}).items():
        rows.append((f"Words against nonwords, {name}", f"{one['accuracy']:.1%} of {one['n']}"))
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {said} |" for name, said in rows)])


def figures(metrics: Mapping[str, Any]) -> str:
    """All tables."""
    parts = [cloze_table(metrics["cloze"]), control_line(metrics["cloze"])] if "cloze" in metrics else []
    return "\n\n".join([*parts, further_table(metrics)])


def _listed(rates: Mapping[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {rate:.1%}" for name, rate in rates.items())


def _alignment(results: Mapping[str, Any]) -> Metrics:
    held = next(iter(results["bundles"].values()))
    pair = next(iter(held["pairs"].values()))
    layer = pair["layers"][pair["best_layer"]]
    return {
        "layer": pair["best_layer"],
        "sentences": held["sentences"],
        "retrieval": layer["retrieval"]["mean"],
        "retrieval_back": layer["retrieval_back"]["mean"],
        "cosine": layer["cosine"]["mean"],
        "cosine_mismatched": layer["cosine_mismatched"],
    }


def _resynthesis(results: Mapping[str, Any]) -> Metrics:
    found: Metrics = {}
    for language, groups in results["rows"].items():
        for group, row in groups.items():
            one = {key: row[key] for key in ("f0_correlation", "level_spread", "mel_distance") if key in row}
            if "word_error" in row:
                rates = row["word_error"]
                one |= {"original_word_error": rates["original"], "word_error": rates["resynthesis"]}
            found.setdefault(language, {})[group] = one
    return found


def _continuation(results: Mapping[str, Any]) -> Metrics:
    found: Metrics = {}
    for name, by_temperature in results["cells"].items():
        if REPORTED not in by_temperature:
            raise TresseError(
                f"the continuations were not drawn at {REPORTED}: run tresse eval all into another folder"
            )
        one = by_temperature[REPORTED]
        means = {key: one[key]["mean"] for key in CONTINUATION if key in one}
        drawn = f"temperature {REPORTED}, top-p {results['settings']['top_p']:g}"
        found[name] = means | {"ceiling": results["ceiling"][name]["mean"], "n": one["n"], "drawn": drawn}
    return found
