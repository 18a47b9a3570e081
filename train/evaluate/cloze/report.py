"""The pages of `tresse eval cloze`: tables of accuracies, of voices, of contradicted facts, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from train.evaluate.cloze.protocol import CHOSEN, CONTROL, DIFFERENT, HEADLINE, RECORDED, RULES, SAME, SEEN, UNSEEN
from train.evaluate.metrics import ACCURACY

GROUPS = {
    CHOSEN: "chosen voices",
    UNSEEN: "unseen voices",
    SEEN: "training voices",
    RECORDED: "recordings",
}
PAIRINGS = {SAME: "endings in the prompt's voice", DIFFERENT: "endings in another voice"}
SHOWN_PROBLEMS = 200


def shown(cell: Mapping[str, Any] | None) -> str:
    """`56.2 [54.0, 58.4] (n=1871)`, in %; a dash where there is nothing."""
    if cell is None or cell["n"] == 0:
        return "-"
    return f"{ACCURACY.cell(cell)} (n={cell['n']})"


def kinds_of(cells: Mapping[str, Any]) -> list[str]:
    """The kinds of items in a table: story, topic, then others."""
    kinds = {kind for cell in cells.values() for kind in cell}
    return sorted(kinds, key=lambda kind: ({"story": 0, "topic": 1}.get(kind, 2), kind))


def markdown_table(results: Mapping[str, Any], rule: str = HEADLINE) -> str:
    """Accuracies in % with 95 % intervals: a row per cell, a column per kind, and the control without context."""
    cells = results["rules"][rule]["cells"]
    control = results["controls"][CONTROL]["cells"]
    kinds = kinds_of(cells)
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


def voices_table(results: Mapping[str, Any]) -> str:
    """The headline rule by voice group and pairing: a row each, a column per cell and kind."""
    cells = results["cells"]
    columns = [(name, kind) for kind in kinds_of(cells) for name in cells if kind in cells[name]]
    lines = [
        "| Voices | Endings | " + " | ".join(f"{name} {kind}" for name, kind in columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for group, pairings in results["groups"].items():
        for pairing, entry in pairings.items():
            in_voices = entry["rules"][HEADLINE]["cells"]
            row = [shown(in_voices.get(name, {}).get(kind)) for name, kind in columns]
            lines.append(f"| {GROUPS[group]} | {PAIRINGS[pairing]} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def facts_table(results: Mapping[str, Any]) -> str:
    """Story items by the fact that the wrong ending contradicts, under the headline rule."""
    names = list(results["cells"])
    lines = ["| Contradicted fact | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for fact, cells in results["facts"].items():
        lines.append(f"| {fact} | " + " | ".join(shown(cells.get(name)) for name in names) + " |")
    return "\n".join(lines)


def markdown_page(results: Mapping[str, Any]) -> str:
    """The report: protocol, a table per rule, voices, facts, and what was left out."""
    headline = GROUPS[results["protocol"]["headline_voices"]]
    given = "The model is given each sentence's language tag; tags are not scored, and"
    if not results["protocol"].get("tags", True):
        given = "Language tags, which the model was not trained with, are not given, and"
    page = [
        "# Cloze",
        "",
        f"{results['items']} items. {_voices(results['voices'])}{_trained(results['protocol'])} Chance is 50 %.",
        "",
        "An item is a story's context and two endings, spoken sentence by sentence; a cell names the language of the",
        f"context and that of the endings. {given}",
        "neither is the end of the story. Accuracy in %: how often the right ending scores higher; ties count one",
        "half; 95 % bootstrap intervals over pairs of mirrored items. The rows without context are the control: the",
        f"endings alone. Unless a table says otherwise: {headline}, {PAIRINGS[SAME]}.",
    ]
    for rule, meaning in RULES.items():
        page += ["", f"## {rule.replace('_', ' ').capitalize()}", "", f"{meaning.capitalize()}.", ""]
        page.append(markdown_table(results, rule))
    page += ["", "## Voices", "", f"{RULES[HEADLINE].capitalize()}.", "", voices_table(results)]
    if results["facts"]:
        page += [
            "",
            "## Contradicted facts",
            "",
            "Story items by the fact that the wrong ending contradicts.",
            "",
            facts_table(results),
        ]
    if results["problems"]:
        page += ["", *problems_section(results["problems"])]
    return "\n".join(page) + "\n"


def problems_section(problems: list[dict[str, str]]) -> list[str]:
    """What could not be used, entry by entry; all of it is in results.json."""
    lines = [f"## Left out ({len(problems)})", "", "| Item | Entry | Language | Problem |", "|---|---|---|---|"]
    lines += [
        f"| {problem['id']} | {problem['entry']} | {problem['language']} | {problem['problem']} |"
        for problem in problems[:SHOWN_PROBLEMS]
    ]
    if len(problems) > SHOWN_PROBLEMS:
        lines.append(f"| ... | | | {len(problems) - SHOWN_PROBLEMS} more in results.json |")
    return lines


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """Two systems on the same items: accuracies, difference with interval, McNemar's p."""
    lines = [
        f"| Cell | {comparison['first']} | {comparison['second']} | difference | only the first | only the second | p |",
        "|---|---:|---:|---|---:|---:|---:|",
    ]
    for name, kinds in comparison["cells"].items():
        for kind, entry in kinds.items():
            low, high = entry["ci95"]
            lines.append(
                f"| {name} {kind} (n={entry['n']}) | {100 * entry['first']:.1f} | {100 * entry['second']:.1f} "
                f"| {100 * entry['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] "
                f"| {entry['first_only']} | {entry['second_only']} | {entry['p']:.2g} |"
            )
    return "\n".join(lines)


def comparison_page(comparison: Mapping[str, Any]) -> str:
    """The page of `--compare`."""
    page = [
        "# Cloze, two systems",
        "",
        f"{comparison['first']} and {comparison['second']} on the same items. {RULES[HEADLINE].capitalize()}.",
        "Difference: second minus first, in points, with a 95 % bootstrap interval over pairs of mirrored items. p:",
        "McNemar's exact test on the items that only one of them gets right.",
        "",
        comparison_table(comparison),
    ]
    if comparison["unmatched"]:
        page += [
            "",
            f"{comparison['unmatched']} scores of one system have no counterpart in the other and are left out.",
        ]
    return "\n".join(page) + "\n"


def _trained(protocol: Mapping[str, Any]) -> str:
    """What is to be known of unseen voices that are training voices."""
    names = ", ".join(protocol.get("trained", []))
    return f" Of the unseen voices the unit encoder has heard {names}; the language model has not." if names else ""


def _voices(voices: Mapping[str, Any]) -> str:
    parts = []
    for group, names in voices.items():
        listed = (
            ", ".join(f"{name} ({language})" for language, name in names.items())
            if isinstance(names, Mapping)
            else ", ".join(names)
        )
        parts.append(f"{GROUPS[group].capitalize()}: {listed}.")
    return " ".join(parts)
