"""The page of `tresse eval continuation`: a table by language pair and temperature, a plot, and every transcript."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from train.tools.checkpoints import atomic_path

METRICS = {
    "language": "in the language asked for",
    "lexicon": "words in the lexicon",
    "confidence": "recogniser's confidence",
    "coherence": "coherence",
    "coherence_control": "coherence with another prompt",
    "auto_bleu_2": "auto-BLEU-2",
}


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
        "| Prompt > asked | Temperature | prompts in domain | in the language | in the lexicon | confidence | coherence "
        "| with another prompt | ceiling | facts | auto-BLEU-2 | self-BLEU-2 | s | silent |",
        "|---|---:|---:|---|---|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]

    def share(entry: Mapping[str, Any] | None, interval: bool = False) -> str:
        if entry is None or entry["mean"] is None:
            return "-"
        low, high = entry["ci95"]
        return f"{100 * entry['mean']:.0f}" + (f" [{100 * low:.0f}, {100 * high:.0f}]" if interval else "")

    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    for name, by_temperature in results["cells"].items():
        for temperature, one in by_temperature.items():
            cells = [
                share(one.get("in_domain", one.get("familiar"))),
                share(one.get("language"), True),
                share(one.get("lexicon"), True),
                number((one.get("confidence") or {}).get("mean"), 2),
                share(one.get("coherence"), True),
                share(one.get("coherence_control")),
                share(results["ceiling"][name]),
                number((one.get("facts") or {}).get("mean"), 1),
                number((one.get("auto_bleu_2") or {}).get("mean"), 2),
                number(one.get("self_bleu_2"), 2),
                number(one["seconds"]["mean"], 1),
                str(one["silent"]),
            ]
            lines.append(f"| {name} | {'greedy' if temperature == '0' else temperature} | " + " | ".join(cells) + " |")
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
        "another story's prompt (the control), and that of the story's own next sentences as written (the ceiling).",
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
    """Every share by temperature, a line for each language pair; the control dashed, the ceiling dotted."""
    from matplotlib.figure import Figure

    shown = [name for name in METRICS if name != "coherence_control"]
    figure = Figure(figsize=(15, 3.2), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(shown)), shown, strict=True):
        for colour, (name, by_temperature) in enumerate(results["cells"].items()):
            places = [float(temperature) for temperature in by_temperature]
            values = [one[metric]["mean"] for one in by_temperature.values()]
            axes.plot(places, [np.nan if v is None else v for v in values], f"C{colour}.-", label=name)
            if metric == "coherence":
                control = [one["coherence_control"]["mean"] for one in by_temperature.values()]
                axes.plot(places, [np.nan if v is None else v for v in control], f"C{colour}--")
                if (ceiling := results["ceiling"][name]["mean"]) is not None:
                    axes.axhline(ceiling, color=f"C{colour}", linestyle=":", linewidth=1)
        axes.set_title(METRICS[metric], fontsize=9)
        axes.set_xlabel("temperature")
        axes.set_ylim(-0.03, 1.03)
        if metric == shown[0]:
            axes.legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
