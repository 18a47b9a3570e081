"""The grammar set: minimal pairs of sentences in English and French, of which one breaks a rule of grammar.

`syntax.jsonl` holds {"id", "language", "phenomenon", "right", "wrong"}, 12 phenomena a language, at least 70 pairs each. The
sentences are texts, for any voice to speak; right and wrong ones sound different.

The control is what somebody would score who knows no grammar: who prefers the longer sentence, in words or in letters, or
the one whose word bigrams are likelier in the written training stories. `python -m train.evaluate.syntax` prints it. Length
is at chance in every phenomenon; bigrams are not, since many rules bind neighbouring words (*with she*, *le maison*). Read a
phenomenon's accuracy beside its row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from slm.errors import TresseError, say
from train.evaluate.metrics import ACCURACY
from train.stories.endings_only import Bigrams
from train.stories.grammar import read_lines
from train.stories.written import written_stories
from train.stories.written_cloze import TEST_LIST, VALIDATION_LIST
from train.tools.statistics import accuracy, mean_accuracy, outcomes

SHIPPED_SET = Path(__file__).with_name("syntax.jsonl")
SHORTCUTS = {
    "words": "longer in words",
    "letters": "longer in letters",
    "bigrams": "likelier word bigrams",
}
"""What a listener without grammar goes by."""


@dataclass(frozen=True)
class MinimalPair:
    """Two sentences, of which the first is right."""

    id: str
    language: str
    phenomenon: str
    right: str
    wrong: str

    @property
    def group(self) -> str:
        """The row that it counts in."""
        return f"{self.language}, {self.phenomenon}"


def minimal_pairs() -> list[MinimalPair]:
    """The shipped set, in the order of the file. Raises TresseError where it is damaged."""
    try:
        return [MinimalPair(**row) for _, row in read_lines(SHIPPED_SET)]
    except TypeError as error:
        raise TresseError(f"{SHIPPED_SET} is damaged: restore the project's file") from error


@cache
def training_bigrams(language: str) -> Bigrams:
    """Word bigrams of the written stories that are neither in the test set nor validate."""
    kept_out = {id for path in (TEST_LIST, VALIDATION_LIST) for id in path.read_text(encoding="utf-8").split()}
    stories = (story for story in written_stories() if story.id not in kept_out)
    return Bigrams(text for story in stories for text in story.sentences.get(language, []))


def preferred(texts: Iterable[tuple[str, str]], language: str) -> dict[str, np.ndarray]:
    """Right and wrong sentences -> by shortcut, 1 where it prefers the right one, 0 the wrong one, 1/2 for a tie [N].

    bigrams: mean log-likelihood a word, marks included.
    """
    scorers: dict[str, Callable[[str], float]] = {
        "words": lambda text: len(text.split()),
        "letters": lambda text: sum(map(str.isalpha, text)),
        "bigrams": training_bigrams(language).score,
    }
    both = list(texts)
    return {
        name: outcomes(*(np.array([score(pair[k]) for pair in both], float) for k in (0, 1)))
        for name, score in scorers.items()
    }


def controls(rows: Sequence[tuple[str, str, str, str]]) -> dict[str, dict[str, Any]]:
    """(group, language, right, wrong) -> what the shortcuts score: {group: {shortcut: `statistics.accuracy`}}.

    Further rows are the means over a language's groups, where it has several: {"en, mean": {shortcut: `mean_accuracy`}}.
    """
    results: dict[str, dict[str, Any]] = {}
    for language in dict.fromkeys(row[1] for row in rows):
        own = [row for row in rows if row[1] == language]
        groups = np.array([row[0] for row in own])
        scored = preferred((row[2:] for row in own), language)
        for group in dict.fromkeys(groups.tolist()):
            results[group] = {name: accuracy(values[groups == group]) for name, values in scored.items()}
        if len(set(groups.tolist())) > 1:
            results[f"{language}, mean"] = {name: mean_accuracy(values, groups) for name, values in scored.items()}
    return results


def controls_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Accuracies of the shortcuts in %: a row per group."""
    lines = ["| Group | " + " | ".join(SHORTCUTS.values()) + " | n |", "|---|" + "---|" * len(SHORTCUTS) + "---:|"]
    for group, entry in results.items():
        cells = [ACCURACY.cell(entry[name]) for name in SHORTCUTS]
        lines.append(f"| {group} | " + " | ".join(cells) + f" | {entry['words']['n']} |")
    return "\n".join(lines)


def main() -> None:
    """Print what the shortcuts score on the shipped set."""
    say(controls_table(controls([(pair.group, pair.language, pair.right, pair.wrong) for pair in minimal_pairs()])))


if __name__ == "__main__":
    main()
