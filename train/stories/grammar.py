"""Parallel children's stories, drawn from situations written as data.

A story is a situation (a causal line: cause, event, reaction, consequence), a value for each of its roles (its *facts*)
and, independently per language, a wording for each sentence. Everything is a pure function of (seed, split, number of
the story). Splits are a hash rule on the combination (situation, and the roles the situation names): a combination seen
in training never appears in validation or test, though every single fact does. Cost: about 0.2 ms a story on one core.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from math import prod
from pathlib import Path

from slm.errors import TresseError
from train.checkpoint import atomic_path
from train.stories.data import FINISH, LANGUAGES, RENDER, Lexicon, Situation, Template, read_lexicon, read_situation
from train.stories.words import Entry

HERE = Path(__file__).parent
# Out of a hundred combinations: test has the first ten, validation the next five, training the rest.
SPLITS = {"test": range(10), "validation": range(10, 15), "train": range(15, 100)}
Facts = Mapping[str, Entry]
_OPENERS = '"«'


@dataclass(frozen=True)
class Story:
    """`sentences[language][i]` is sentence i; sentence i of one language is sentence i of the other. `facts` are ids."""

    id: str
    sentences: dict[str, list[str]]
    facts: dict[str, str]

    def to_json(self) -> str:
        """One line of `stories.jsonl`."""
        return json.dumps(asdict(self), ensure_ascii=False)


@dataclass(frozen=True)
class Draft:
    """A story before it is put into words: its facts, and a number in [0, 1) that picks each wording."""

    situation: Situation
    facts: Facts
    wording: Mapping[str, tuple[float, ...]]


class Grammar:
    """The lexicon and the situations of a folder. Raises TresseError naming the file and key that need mending."""

    def __init__(self, folder: Path = HERE) -> None:
        self.lexicon: Lexicon = read_lexicon(folder / "lexicon.yaml")
        files = sorted((folder / "situations").glob("*.yaml"))
        if not files:
            raise TresseError(f"no situations in {folder / 'situations'}: add one .yaml file for each")
        self.situations = [read_situation(file, self.lexicon) for file in files]

    def draw(self, rng: random.Random, split: str) -> Draft:
        """Draw a situation, its facts (uniformly among the combinations of the split) and its wordings."""
        situation = rng.choice(self.situations)
        while True:
            facts: dict[str, Entry] = {}
            for name, role in situation.roles.items():
                taken = {facts[other].id for other in role.other_than}
                facts[name] = rng.choice([entry for entry in role.values if entry.id not in taken])
            if split_of(situation, facts) == split:
                return Draft(situation, facts, self.draw_wording(rng, situation))

    def draw_wording(self, rng: random.Random, situation: Situation) -> dict[str, tuple[float, ...]]:
        """Draw wordings for every sentence, for each language by itself."""
        return {language: tuple(rng.random() for _ in situation.slots) for language in LANGUAGES}

    def template(self, draft: Draft, language: str, i: int) -> Template:
        """The wording chosen for sentence `i`."""
        templates = draft.situation.slots[i].of(draft.facts)[language]
        return templates[int(draft.wording[language][i] * len(templates))]

    def sentence(self, draft: Draft, language: str, i: int) -> str:
        """Sentence `i` in words."""
        render, adjectives = RENDER[language], self.lexicon.adjectives[language]
        text = ""
        for part in self.template(draft, language, i).parts:
            words = part if isinstance(part, str) else render(part, draft.facts, adjectives)
            text += capitalise(words) if not text or text.rstrip()[-1] in ".!?«" or text.endswith(' "') else words
        return FINISH[language](capitalise(text))

    def story(self, draft: Draft, id: str) -> Story:
        """Put a draft into words."""
        count = range(len(draft.situation.slots))
        sentences = {language: [self.sentence(draft, language, i) for i in count] for language in LANGUAGES}
        return Story(id, sentences, fact_ids(draft))

    def count_stories(self) -> int:
        """How many distinct stories there are: facts times wordings, over the situations.

        Counts combinations of facts exactly as `draw` makes them (a `not` takes one value away) and, where a sentence
        depends on a fact, its least number of wordings: a lower bound.
        """
        total = 0
        for situation in self.situations:
            facts = prod(len(role.values) - len(role.other_than) for role in situation.roles.values())
            wordings = prod(
                min(
                    prod(len(templates) for templates in by_language.values()) for by_language in slot.wordings.values()
                )
                for slot in situation.slots
            )
            total += facts * wordings
        return total


def capitalise(text: str) -> str:
    """Capital at the beginning, quotation marks and spaces passed over."""
    for i, letter in enumerate(text):
        if letter not in _OPENERS + " ":
            return text[:i] + letter.upper() + text[i + 1 :]
    return text


def combination(situation: Situation, facts: Facts) -> str:
    """What the splits keep apart: the situation and the values of the roles it names under `combination`."""
    return "|".join([situation.name, *(f"{role}={facts[role].id}" for role in situation.combination)])


@cache
def _bucket(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big") % 100


def split_of(situation: Situation, facts: Facts) -> str:
    """The one split that a combination of facts belongs to."""
    bucket = _bucket(combination(situation, facts))
    return next(split for split, buckets in SPLITS.items() if bucket in buckets)


def fact_ids(draft: Draft) -> dict[str, str]:
    """Language-neutral facts: the situation, its problem, the kind of being, and a value for every role."""
    fixed = {
        "situation": draft.situation.name,
        "problem": draft.situation.problem,
        "kind": draft.facts["who"].kind,
    }
    return fixed | {role: entry.id for role, entry in draft.facts.items()}


@cache
def default_grammar() -> Grammar:
    """The grammar that is part of the package."""
    return Grammar()


def check_split(split: str) -> None:
    """Raise TresseError for a split that does not exist."""
    if split not in SPLITS:
        raise TresseError(f"no split {split!r}: choose one of {', '.join(SPLITS)}")


def rng_for(*key: object) -> random.Random:
    """A generator that depends on the key alone."""
    return random.Random("/".join(map(str, key)))


def generate_stories(seed: int, count: int, split: str = "train", grammar: Grammar | None = None) -> Iterator[Story]:
    """Yield `count` stories; story k depends on (seed, split, k) alone. Raises TresseError for an unknown split."""
    check_split(split)
    grammar = grammar or default_grammar()
    for k in range(count):
        yield grammar.story(grammar.draw(rng_for("story", split, seed, k), split), f"{split}-{seed}-{k}")


def write_stories(path: Path, stories: Iterable[Story]) -> None:
    """Write `stories.jsonl` atomically."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for story in stories:
            file.write(story.to_json() + "\n")


def read_stories(path: Path) -> Iterator[Story]:
    """Read `stories.jsonl`; `facts` may be missing. Raises TresseError naming the line that is wrong."""
    for number, row in read_lines(path):
        try:
            sentences = {str(la): [str(s) for s in row["sentences"][la]] for la in row["sentences"]}
            if len({len(s) for s in sentences.values()}) != 1:
                raise ValueError("unequal numbers of sentences")
            yield Story(str(row["id"]), sentences, dict(row.get("facts") or {}))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TresseError(f"{path}, line {number}: not a story ({error}): give id and sentences") from None


def read_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """The JSON objects of a JSONL file with their line numbers. Raises TresseError for a line that is none."""
    if not path.exists():
        raise TresseError(f"{path} does not exist: give a .jsonl file")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise TresseError(f"{path}, line {number}: write one JSON object a line")
            yield number, row
