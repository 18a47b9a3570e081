"""The model card of a bundle, written from its bundle.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from train.publish.figures import figures
from train.tools.checkpoints import atomic_path


def write_card(folder: Path) -> None:
    """Write README.md beside bundle.json."""
    info = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    made, metrics = info["provenance"], info["metrics"]
    minutes = sum(made["training_seconds"].values()) / 60
    lines = [
        f"# Tresse bundle `{info['name']}`",
        "",
        f"Speech in, speech out: {', '.join(info['languages'])}. Goes on with a spoken story in the language asked for, "
        "without text.",
        "",
        "| | |",
        "|---|---|",
        f"| Made by | `tresse recipe {made['recipe']}`, seed {made['seed']}, commit {made['commit']}, {made['made']} |",
        f"| Trained on | {_stories(made)} |",
        *_before(made.get("warm_start")),
        f"| Time | {minutes:.0f} minutes, all stages together |",
        f"| Units | {info['frame_rate']:g} Hz, {info['sample_rate']} Hz audio |",
        "",
        "## Measured",
        "",
        figures(metrics),
    ]
    lines += _texts(made.get("texts", {}))
    told = "short children's stories" if "texts" in made else "short children's stories from a small grammar"
    lines += [
        "",
        "## Limits",
        "",
        f"It was trained on synthetic voices and on {told}. Natural voices, noise and "
        "other subjects are out of domain: such prompts are dropped and reported.",
    ]
    with atomic_path(folder / "README.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _stories(made: dict[str, Any]) -> str:
    kind = "rows of the texts below" if "texts" in made else "generated parallel stories spoken by espeak-ng"
    return f"{made['stories']} {kind} (data {made['data']})"


def _texts(sources: dict[str, Any]) -> list[str]:
    """Sources of the training texts with their licences, words and those to be credited; [] for generated stories."""
    if not sources:
        return []
    lines = ["", "## Texts", "", "| Source | Licence | Words |", "|---|---|---:|"]
    for source in sources.values():
        names = "; ".join(dict.fromkeys(origin["source"] for origin in source["origins"]))
        licences = "; ".join(dict.fromkeys(origin["licence"] for origin in source["origins"]))
        lines.append(f"| {names} | {licences} | {sum(source['words'].values()):,} |")
    credited = [credit for source in sources.values() for credit in source["credits"]]
    return [*lines, *(["", "Titles and authors: " + "; ".join(credited) + "."] if credited else [])]


def _before(origin: dict[str, Any] | None) -> list[str]:
    """The line on the model that training started from, where it started from one."""
    if not origin:
        return []
    if "bundle" not in origin:
        return [f"| Began as | the text model {origin['model']} |"]
    of = f"{origin.get('stories')} stories, seed {origin.get('seed')}, commit {origin.get('commit')}"
    return [f"| Began as | the bundle {origin['bundle']} ({of}) |"]
