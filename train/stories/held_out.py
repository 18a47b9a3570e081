"""What stories a recipe tells, and sentences that none of a bundle's training stories has."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from slm.errors import TresseError
from train.stories.data import LANGUAGES
from train.stories.grammar import Cycles, Story, distinct_sentences, generate_stories
from train.stories.sources import SPARE, Source
from train.stories.written_cloze import splits

RECIPES = Path(__file__).parents[1] / "recipes"
WORDS_A_STORY = 84
"""Words of a row of the mixture `open`, its languages together."""


@dataclass(frozen=True)
class StoriesSettings:
    """How many stories of each split. file: a stories.jsonl to train on instead of generated ones. cycle: how many
    stories in a row combine the same few facts and wordings (with corpus.stories_per_voice the same number, they share a
    voice and most of their speech); values: of each role in a cycle; wordings: of each sentence.

    sources: what to mix the training stories from (train.stories.mixture) instead; then `words` says how many, of all
    languages together, and `train` says nothing. texts: the folder of the sources' files; null: the environment variable
    TRESSE_TEXTS, or the folder where the command is run."""

    train: int = 8000
    validation: int = 125
    cycle: int = 1
    values: int = 3
    wordings: int = 3
    file: str | None = None
    sources: tuple[Source, ...] = ()
    words: int = 900_000
    texts: str | None = None

    def __post_init__(self) -> None:
        if self.file is not None and self.sources:
            raise TresseError("stories has a file and sources: leave out one of them (a file can be a source)")

    @property
    def cycles(self) -> Cycles:
        """How the training stories are told."""
        return Cycles(self.cycle, self.values, self.wordings)

    @property
    def texts_folder(self) -> Path:
        """Where the files of sources are."""
        return Path(self.texts or os.environ.get("TRESSE_TEXTS") or ".").expanduser()

    @property
    def about(self) -> int:
        """Training stories, estimated where they are mixed by words."""
        return self.words // WORDS_A_STORY if self.sources else self.train


def held_out_sentences(info: Mapping[str, Any], languages: Sequence[str], count: int) -> list[tuple[str, str]]:
    """(language, text) of test stories, `count` a language, none of them in the stories that a bundle was trained on.

    info: of the bundle; where its recipe is not one of the project's, the first 2,000 training stories are avoided. In
    languages that the grammar lacks they are of the written test stories. Raises TresseError for a language of neither.
    """
    generated = [language for language in languages if language in LANGUAGES]
    seen = _training_stories(info.get("provenance", {})) if generated else ()
    stories = generate_stories(0, 30 * count, "test") if generated else ()
    sentences = distinct_sentences(stories, generated, count, without=seen)
    for language in (language for language in languages if language not in LANGUAGES):
        told = [text for story in splits()["test"] for text in story.sentences.get(language, ())]
        if not told:
            raise TresseError(f"no test story is told in {language}: translate written stories into it")
        sentences += [(language, text) for text in dict.fromkeys(told)][:count]
    return sentences


def _training_stories(made: Mapping[str, Any]) -> Iterator[Story]:
    """The stories of a provenance, those included that its model was trained on before."""
    path = RECIPES / f"{made.get('recipe')}.yaml"
    if path.exists():
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        settings = StoriesSettings(**recipe.get("stories", {}))
        seed, count = made.get("seed", recipe.get("seed", 0)), int(made.get("stories", settings.about))
        cycles = settings.cycles
        if settings.sources and cycles.stories > 1:  # the mixture draws more than it uses
            count, cycles = count * SPARE, Cycles(cycles.stories * SPARE, cycles.values, cycles.wordings)
        yield from generate_stories(int(seed), count, cycles=cycles)
    else:
        yield from generate_stories(0, 2000)
    if "recipe" in made.get("warm_start", {}):
        yield from _training_stories(made["warm_start"])
