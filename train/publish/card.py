"""The model card of a bundle, written from its bundle.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slm.errors import TresseError
from slm.schema import read_info
from train.publish.figures import figures
from train.tools.checkpoints import atomic_path


def write_card(folder: Path) -> None:
    """Write README.md beside bundle.json. Raises TresseError where that is damaged."""
    info = read_info(folder)
    made, metrics = info.get("provenance", {}), info.get("metrics", {})
    minutes = sum(made.get("training_seconds", {}).values()) / 60
    try:
        measured = figures(metrics)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise TresseError(
            f"the metrics in {folder / 'bundle.json'} are damaged: restore them, or remove them"
        ) from error
    rates = [f"{info['frame_rate']:g} Hz"] if info.get("frame_rate") else []
    rates += [f"{info['sample_rate']:g} Hz audio"] if info.get("sample_rate") else []
    lines = [
        f"# Tresse bundle `{info.get('name', folder.name)}`",
        "",
        f"Speech in, speech out: {', '.join(info['languages'])}. Goes on with a spoken story in the language asked for, "
        "without text.",
        "",
        "| | |",
        "|---|---|",
        f"| Made by | `tresse recipe {made.get('recipe')}`, seed {made.get('seed')}, commit {made.get('commit')}, "
        f"{made.get('made')} |",
        f"| Trained on | {_stories(made)} |",
        *_before(made.get("warm_start")),
        *_speakers(made),
        f"| Time | {minutes:.0f} minutes, all stages together |",
        f"| Units | {', '.join(rates)} |",
        "",
        "## Measured",
        "",
        measured,
    ]
    lines += _texts(made.get("texts", {}))
    lines += ["", "## Limits", "", _limits(made)]
    with atomic_path(folder / "README.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_recogniser_card(folder: Path, texts: dict[str, Any]) -> None:
    """Write README.md beside a lexicon's config.json. texts: what `train.stories.mixture.texts_of` says of its sources."""
    lines = [
        "# The recogniser",
        "",
        "Words, pronunciations and n-grams of the texts below, decoded with the probabilities of the bundle's own units "
        "(`slm/lexicon.py`). It writes transcripts; the language model never sees them.",
        *_texts(texts.get("texts", {})),
    ]
    with atomic_path(folder / "README.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _stories(made: dict[str, Any]) -> str:
    told = "told in units, without being spoken" if "unspoken" in made else "spoken by synthetic voices"
    kind = f"rows of the texts below, {told}"
    if "texts" not in made:
        kind = f"generated stories, {told}" if "unspoken" in made else "generated parallel stories spoken by espeak-ng"
    return f"{made.get('stories', 0)} {kind} (data {made.get('data')})"


def _speakers(made: dict[str, Any]) -> list[str]:
    """The line on who speaks the replies, where that is known."""
    named = ", ".join(f"{name} ({family})" for name, family in made.get("speakers", {}).items())
    return [f"| Speakers | {named}, learnt by the vocoder |"] if named else []


def _limits(made: dict[str, Any]) -> str:
    told = "short children's stories" if "texts" in made else "short children's stories from a small grammar"
    if "unspoken" in made:
        return (
            f"It learnt from {told}. Its units are phones, heard by an encoder that was taught them (units/README.md "
            "says by whom): noise and strong accents cost words, other languages are out of domain. Other subjects end "
            "in children's stories. Prompts that are out of domain are dropped and reported."
        )
    return (
        f"It was trained on synthetic voices and on {told}. Natural voices, noise and other subjects are out of "
        "domain: such prompts are dropped and reported."
    )


def _texts(sources: dict[str, Any]) -> list[str]:
    """Sources of the training texts with their licences, words and those to be credited; [] for generated stories."""
    if not sources:
        return []
    lines = ["", "## Texts", "", "| Source | Licence | Words |", "|---|---|---:|"]
    for source in sources.values():
        names = "; ".join(dict.fromkeys(origin["source"] for origin in source["origins"]))
        licences = "; ".join(dict.fromkeys(origin["licence"] for origin in source["origins"]))
        lines.append(f"| {names} | {licences} | {sum(source['words'].values()):,} |")
    credited = [credit for source in sources.values() for credit in source.get("credits", [])]
    return [*lines, *(["", "Titles and authors: " + "; ".join(credited) + "."] if credited else [])]


def _before(origin: dict[str, Any] | None) -> list[str]:
    """The line on the model that training started from, where it started from one."""
    if not origin:
        return []
    if "bundle" not in origin:
        return [f"| Began as | the text model {origin.get('model')} |"]
    of = f"{origin.get('stories')} stories, seed {origin.get('seed')}, commit {origin.get('commit')}"
    return [f"| Began as | the bundle {origin['bundle']} ({of}) |"]
