"""The report of `tresse eval units`: held-out sentences measured (`train.evaluate.units`), tables and plots."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from slm.units.sequence import UnitEncoder
from train.evaluate.units import evaluate_units, fit_baseline
from train.speech.voices import Voices
from train.stories.grammar import distinct_sentences, generate_stories
from train.tools.checkpoints import atomic_path, write_json

BASELINE_SENTENCES = 200
"""Of each language, that the baseline is fitted to."""

PLOTS = {"voices.png": "Unit edit rate between voices", "changes.png": "Unit edit rate of changed recordings"}
MEASURED = ("encoder", "baseline")
LABELS = {"encoder": "this encoder", "baseline": "MFCC + k-means"}


def report_units(
    encoder: UnitEncoder,
    languages: Sequence[str],
    out: Path,
    *,
    count: int = 100,
    voices: Voices | None = None,
    seed: int = 0,
    **panel: Any,
) -> dict[str, Any]:
    """Measure an encoder on `count` sentences a language of validation stories; write the report to `out`.

    Sentences that also occur in the first 2,000 training stories are left out. out: receives results.json, units.md and
    its plots. Returns the results, see `evaluate_units`.
    """
    voices = voices or Voices.load()
    training = list(generate_stories(seed, 2000, "train"))
    validation = generate_stories(seed, 10 * count, "validation")
    held_out = distinct_sentences(validation, languages, count, without=training)
    baseline = fit_baseline(encoder, distinct_sentences(training, languages, BASELINE_SENTENCES), voices, seed)
    results = evaluate_units(encoder, baseline, held_out, voices, seed=seed, **panel)
    save_plots(results, out)
    with atomic_path(out / "units.md") as temporary:
        temporary.write_text(markdown_page(results), encoding="utf-8")
    write_json(out / "results.json", results)
    return results


def rows(results: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """(language, voice group, encoder or baseline, metrics) of every row."""
    for language, groups in results["rows"].items():
        for group, measured in groups.items():
            for name in MEASURED:
                if name in measured:
                    yield language, group, name, measured[name]


def markdown_page(results: dict[str, Any]) -> str:
    """The report: protocol, tables with the baseline under every row, plots."""
    encoder = results["encoder"]
    first = encoder["first_unit_seconds"]
    panels = "; ".join(f"{_plain(group)} voices {', '.join(names)}" for group, names in results["panel"].items())
    counts = ", ".join(f"{count} in {language}" for language, count in results["sentences"].items())
    page = [
        "# Units",
        "",
        f"{encoder['codebook_size']} units, {encoder['frame_rate']:g} frames a second. The first unit leaves "
        + (f"when {1000 * first:.0f} ms have been heard." if first is not None else "when the recording has ended."),
        f"Sentences: {counts}, of validation stories. Voices: {panels}.",
        "The baseline has the same codebook size and frame rate. Rates and errors in %.",
        "",
        "## Voices",
        "",
        "Levenshtein distance of collapsed units over the longer length: two voices that speak the same sentence (95 %",
        "bootstrap interval over sentences), and a voice and the reference voice.",
        "",
        *_table(results, ["two voices", "to the reference"], _voice_cells),
        "",
        f"![{PLOTS['voices.png']}](voices.png)",
        "",
        "## Changed recordings",
        "",
        "Between the units of a recording and of the same recording changed.",
        "",
        *_table(results, _changes(results), _change_cells),
        "",
        f"![{PLOTS['changes.png']}](changes.png)",
        "",
        "## Phones",
        "",
        "Purity and PNMI of frames against espeak-ng's phonemes, stress stripped; silence is a label, and is left out in",
        "the columns so named. ABX: triphones, DTW; chance is 50 %. Angular distance where features are compared.",
        "",
        *_table(results, PHONE_COLUMNS, _phone_cells),
        "",
        "## Codebook",
        "",
        "Units and bits (entropy of a unit, run lengths not counted) a second after collapse. Speed in batches of eight.",
        "",
        *_table(results, ["used", "perplexity", "units/s", "bits/s", "times real time"], _codebook_cells),
    ]
    return "\n".join(page) + "\n"


PHONE_COLUMNS = [
    "purity",
    "PNMI",
    "purity without silence",
    "PNMI without silence",
    "ABX units within",
    "ABX units across",
    "ABX features within",
    "ABX features across",
]


def summary_table(results: dict[str, Any]) -> str:
    """What one wants to see on a terminal: edit rates, PNMI and ABX, the baseline under every row."""
    columns = ["two voices", "worst change", "PNMI", "ABX across"]

    def cells(metrics: dict[str, Any]) -> list[str]:
        changed = [rate["mean"] for rate in metrics["edit_rate_changed"].values()]
        worst = _percent(max(changed) if changed else None)
        abx = _percent(metrics["abx"]["units"]["across"])
        return [_voice_cells(metrics)[0], worst, f"{metrics['pnmi']:.2f}", abx]

    return "\n".join(_table(results, columns, cells))


def _table(results: dict[str, Any], columns: list[str], cells: Callable[[dict[str, Any]], list[str]]) -> list[str]:
    lines = ["| Language | Voices | | " + " | ".join(columns) + " |", "|---|---|---|" + "---:|" * len(columns)]
    for language, group, name, metrics in rows(results):
        lines.append(f"| {language} | {_plain(group)} | {LABELS[name]} | " + " | ".join(cells(metrics)) + " |")
    return lines


def _voice_cells(metrics: dict[str, Any]) -> list[str]:
    rate = metrics["edit_rate"]
    low, high = rate["ci95"]
    return [
        f"{100 * rate['mean']:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
        _percent(metrics["edit_rate_to_reference"]["mean"]),
    ]


def _change_cells(metrics: dict[str, Any]) -> list[str]:
    return [_percent(rate["mean"]) for rate in metrics["edit_rate_changed"].values()]


def _phone_cells(metrics: dict[str, Any]) -> list[str]:
    features = metrics["abx"].get("features", {"within": None, "across": None})
    errors = [
        metrics["abx"]["units"]["within"],
        metrics["abx"]["units"]["across"],
        features["within"],
        features["across"],
    ]
    return [
        _percent(metrics["phone_purity"]),
        f"{metrics['pnmi']:.3f}",
        _percent(metrics["phone_purity_without_silence"]),
        f"{metrics['pnmi_without_silence']:.3f}",
        *map(_percent, errors),
    ]


def _codebook_cells(metrics: dict[str, Any]) -> list[str]:
    return [
        _percent(metrics["codebook_used"]),
        *(f"{metrics[key]:.1f}" for key in ("perplexity", "units_per_second", "bits_per_second")),
        f"{metrics['times_real_time']:.0f}",
    ]


def _changes(results: dict[str, Any]) -> list[str]:
    return next((list(metrics["edit_rate_changed"]) for *_, metrics in rows(results)), [])


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _plain(group: str) -> str:
    return group.replace("_", " ")


def save_plots(results: dict[str, Any], out: Path) -> None:
    """Write PLOTS: bars of the edit rates, a group a language and voice group, encoder and baseline side by side."""
    from matplotlib.figure import Figure

    groups = [(language, group) for language, measured in results["rows"].items() for group in measured]
    names = [name for name in MEASURED if any(name in results["rows"][lang][group] for lang, group in groups)]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.subplots()
    for offset, name in enumerate(names):
        rates = [results["rows"][language][group][name]["edit_rate"] for language, group in groups]
        means = [100 * rate["mean"] for rate in rates]
        reach = [[100 * abs(rate["ci95"][side] - rate["mean"]) for rate in rates] for side in (0, 1)]
        places = [index + 0.4 * offset for index in range(len(groups))]
        axes.bar(places, means, 0.38, yerr=reach, capsize=3, label=LABELS[name])
    axes.set_xticks([index + 0.2 * (len(names) - 1) for index in range(len(groups))])
    axes.set_xticklabels([f"{language}, {_plain(group)} voices" for language, group in groups])
    _finish(figure, axes, out / "voices.png")

    changes = _changes(results)
    figure = Figure(figsize=(11, 3.5), layout="constrained")
    axes = figure.subplots()
    lines = [row for row in rows(results) if changes]
    width = 0.8 / max(1, len(lines))
    for offset, (language, group, name, metrics) in enumerate(lines):
        means = [100 * metrics["edit_rate_changed"][change]["mean"] for change in changes]
        places = [index + width * offset for index in range(len(changes))]
        label = f"{language}, {_plain(group)}, {LABELS[name]}"
        colour = f"C{offset // len(names)}"
        axes.bar(places, means, width, color=colour, label=label, alpha=1.0 if name == "encoder" else 0.4)
    axes.set_xticks([index + 0.4 - width / 2 for index in range(len(changes))])
    axes.set_xticklabels([textwrap.fill(change, 12) for change in changes])
    _finish(figure, axes, out / "changes.png")


def _finish(figure: Any, axes: Any, path: Path) -> None:
    axes.set_ylabel("unit edit rate, %")
    axes.set_title(PLOTS[path.name])
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
