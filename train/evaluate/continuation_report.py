"""The page of `tresse eval continuation`: a table by language pair and temperature, a plot, and every transcript."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from train.evaluate.metrics import CONTINUATION, Metric, named
from train.tools.checkpoints import atomic_path

PLOTTED = ("language", "lexicon", "confidence", "coherence", "auto_bleu_2")


@dataclass(frozen=True)
class Continuation:
    """One continuation. audio: file beside the table; language: share of the speech in the language asked for; in_domain:
    whether the prompt was (None: the model said nothing)."""

    id: str
    story: int
    told: str
    asked: str
    temperature: float
    voice: str
    prompt: str
    audio: str
    seconds: float
    tokens: int
    transcript: str | None
    language: float | None
    confidence: float | None
    in_domain: bool | None = None


def markdown_table(results: Mapping[str, Any]) -> str:
    """A row for each language pair and temperature."""
    lines = [
        f"| Prompt > asked | Temperature | {' | '.join(metric.title for metric in CONTINUATION)} |",
        "|---|---:|" + "---:|" * len(CONTINUATION),
    ]
    for name, by_temperature in results["cells"].items():
        for temperature, cell in by_temperature.items():
            row = cell | {"ceiling": results["ceiling"][name]}
            drawn = "greedy" if temperature == "0" else temperature
            lines.append(f"| {name} | {drawn} | {' | '.join(metric.cell(row) for metric in CONTINUATION)} |")
    return "\n".join(lines)


def markdown_page(results: Mapping[str, Any], rows: Sequence[Continuation]) -> str:
    """The report: protocol, table, plot, and every transcript with its audio."""
    settings = results["settings"]
    page = [
        "# Continuation",
        "",
        f"{settings['prompts']} {settings['split']} stories, spoken to sentence {settings['sentences']} by voices that no",
        f"training heard ({', '.join(settings['voices'])}), continued for {settings['max_seconds']:g} s at most,",
        f"top-p {settings['top_p']:g}. Shares in % with 95 % bootstrap intervals over stories. Coherence: of the facts",
        "that a continuation names and whose kind the prompt names too, the share that agree; beside it the same against",
        "another story's prompt (the control), and that of the story's own next sentences as written (the upper bound).",
        "auto-BLEU-2: repetition within a continuation; self-BLEU-2: likeness of the continuations to each other.",
        "" if settings["transcribed"] else "\nWithout a recogniser (--asr) only lengths are measured.\n",
        markdown_table(results),
        "",
    ]
    if settings["transcribed"]:
        page += ["![Continuations by temperature](continuation.png)", ""]
    page += [
        "## Transcripts",
        "",
        "| Prompt | Prompt > asked | Temperature | Transcript | Audio |",
        "|---|---|---:|---|---|",
    ]
    for row in rows:
        said = (row.transcript or "-").replace("|", "/")
        prompt = row.prompt.replace("|", "/")
        page.append(f"| {prompt} | {row.told}>{row.asked} | {row.temperature:g} | {said} | [listen]({row.audio}) |")
    if results["problems"]:
        from train.evaluate.cloze.report import problems_section

        page += ["", *problems_section(results["problems"])]
    return "\n".join(page) + "\n"


def save_plot(results: Mapping[str, Any], path: Path) -> None:
    """Every share by temperature, a line for each language pair; the control dashed, the upper bound dotted."""
    from matplotlib.figure import Figure

    metrics = [named(CONTINUATION, field) for field in PLOTTED]
    control = named(CONTINUATION, "coherence_control")
    figure = Figure(figsize=(15, 3.2), layout="constrained")
    panels = figure.subplots(1, len(metrics))
    for axes, metric in zip(panels, metrics, strict=True):
        for colour, (name, cells) in enumerate(results["cells"].items()):
            temperatures = [float(temperature) for temperature in cells]
            axes.plot(temperatures, _values(metric, cells), f"C{colour}.-", label=name)
            if metric.field == "coherence":
                axes.plot(temperatures, _values(control, cells), f"C{colour}--")
                if (ceiling := results["ceiling"][name]["mean"]) is not None:
                    axes.axhline(ceiling, color=f"C{colour}", linestyle=":", linewidth=1)
        axes.set_title(metric.title, fontsize=9)
        axes.set_xlabel("temperature")
        axes.set_ylim(-0.03, 1.03)
    panels[0].legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _values(metric: Metric, cells: Mapping[str, Any]) -> list[float]:
    """A metric by temperature; NaN where it was not measured."""
    values = (metric.value(cell) for cell in cells.values())
    return [np.nan if value is None else value for value in values]
