"""Which sources help, before anything is spoken: a small text model (train.evaluate.text_model) for every mixture.

Every model reads as many words, once, told as the speech model would hear them: stories in a language drawn anew for every
sentence, pairs side by side, texts in their language. It is asked the story and topic items of the written benchmark. To a
model of words nothing is lost in speaking and hearing, so a source that does not help here will not help there.
`python -m train.evaluate.text_mixtures` writes measured/mixtures.md.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from slm.errors import TresseError
from train.evaluate.text_model import TextModel, TextTraining
from train.stories.cloze_items import KINDS, ClozeItem
from train.stories.corpus_page import read_settings
from train.stories.data import LANGUAGES
from train.stories.grammar import PAIRS, Story, rng_for
from train.stories.held_out import RECIPES, StoriesSettings
from train.stories.mixture import mixture_of
from train.stories.sources import GRAMMAR, WRITTEN, Source
from train.stories.written_cloze import written_items
from train.tools.checkpoints import atomic_path
from train.tools.statistics import accuracy

PAGE = Path(__file__).parents[2] / "measured" / "mixtures.md"


@dataclass(frozen=True)
class Measured:
    """A mixture's name, the rows and words that its model read, seconds, the last loss (nats a word), and by (language,
    kind) the accuracy as `train.tools.statistics.accuracy` gives it."""

    name: str
    rows: int
    words: int
    seconds: float
    loss: float
    cells: dict[tuple[str, str], dict]


def mixtures(settings: StoriesSettings) -> dict[str, StoriesSettings]:
    """What is compared: the grammar alone, the project's own stories, and all sources of the recipe."""
    own = (Source(WRITTEN, 0.6, rounds=8), Source(GRAMMAR, 0.4))
    chosen = {"grammar": own[1:], "written and grammar": own, "all sources": settings.sources}
    return {name: replace(settings, sources=sources, words=10**9) for name, sources in chosen.items()}


def telling(row: Story, rng: random.Random) -> list[str]:
    """A row's sentences as they are told once."""
    languages = list(row.sentences)
    aligned = zip(*row.sentences.values(), strict=True)
    if row.kind == PAIRS:
        return [text for pair in aligned for text in rng.sample(pair, len(languages))]
    return [rng.choice(unit) for unit in aligned]


def tellings(rows: Iterator[Story], words: int, seed: int) -> list[list[str]]:
    """Rows told until they have so many words. Raises TresseError where there are fewer."""
    told: list[list[str]] = []
    left = words
    for row in rows:
        told.append(telling(row, rng_for("telling", seed, row.id)))
        left -= sum(len(text.split()) for text in told[-1])
        if left <= 0:
            return told
    raise TresseError(f"the sources give {words - left:,} words: ask for fewer with --words")


def measure(
    name: str, settings: StoriesSettings, words: int, items: Sequence[ClozeItem], training: TextTraining
) -> Measured:
    """Train a model on a mixture, and ask it the items."""
    began = time.process_time()
    told = tellings(iter(mixture_of(settings, LANGUAGES, training.seed)), words, training.seed)
    model = TextModel(told, training)
    losses = [loss for _, loss in model.train()]
    cells = {}
    for language in LANGUAGES:
        choices = model.choices(items, language)
        for kind in KINDS:
            asked = np.array([item.kind == kind for item in items])
            cells[language, kind] = accuracy(choices[asked], np.arange(int(asked.sum())))
    read = sum(len(text.split()) for texts in told for text in texts)
    return Measured(name, len(told), read, time.process_time() - began, float(np.mean(losses[-20:])), cells)


def table(results: Sequence[Measured]) -> str:
    """Markdown, one mixture a row; accuracies in % with their 95 % intervals."""
    names = [(language, kind) for language in LANGUAGES for kind in KINDS]
    lines = [
        "| Mixture | Rows | Words | Loss, nats a word | "
        + " | ".join(f"{kind} {la}" for la, kind in names)
        + " | CPU s |",
        "|---|" + "---:|" * (len(names) + 4),
    ]
    for result in results:
        shown = [
            f"{100 * cell['accuracy']:.1f} [{100 * cell['ci95'][0]:.1f}, {100 * cell['ci95'][1]:.1f}]"
            for cell in (result.cells[name] for name in names)
        ]
        lines.append(
            f"| {result.name} | {result.rows:,} | {result.words:,} | {result.loss:.2f} | {' | '.join(shown)} | "
            f"{result.seconds:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(prog="python -m train.evaluate.text_mixtures", description="Sources, compared.")
    parser.add_argument("--recipe", default="open", help="whose sources are compared")
    parser.add_argument("--words", type=int, default=200_000, help="that every model reads")
    parser.add_argument("--items", type=int, default=600, help="of each kind of the written benchmark")
    asked = parser.parse_args()
    training = TextTraining(batch=16)
    own = written_items()
    items = [item for kind in KINDS for item in [item for item in own if item.kind == kind][: asked.items]]
    try:
        settings, _ = read_settings(RECIPES / f"{asked.recipe}.yaml")
        results = []
        for name, mixture in mixtures(settings).items():
            results.append(measure(name, mixture, asked.words, items, training))
            print(table(results[-1:]).splitlines()[-1], flush=True)
    except TresseError as error:
        sys.exit(str(error))
    lines = [
        "# Mixtures of sources, by a text model",
        "",
        f"Accuracy in % (chance is 50) on {asked.items} story and {asked.items} topic items a language of the written "
        f"benchmark. Every model has {training.layers} layers of {training.width} and reads as many words once. Written by "
        f"`python -m train.evaluate.text_mixtures --words {asked.words} --items {asked.items}`.",
        "",
        table(results),
        "",
    ]
    with atomic_path(PAGE) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
