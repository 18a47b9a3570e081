"""Parallel children's stories, drawn from situations written as data.

A story is a situation (a causal line: cause, event, reaction, consequence), a value for each of its roles (its *facts*),
a choice of its optional sentences and a wording for each sentence, the same in every language. Everything is a pure
function of (seed, split, number of the story). Splits are a hash rule on the combination (situation, and the roles the
situation names): a combination seen in training never appears in validation or test, though every single fact does.
The split `unseen` has situations of its own. Cost: about 0.2 ms a story on one core.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import product
from math import prod
from pathlib import Path

from slm.errors import TresseError
from train.stories.data import (
    FINISH,
    LANGUAGES,
    RENDER,
    UNSEEN,
    Lexicon,
    Situation,
    Template,
    read_lexicon,
    read_situation,
)
from train.stories.words import Entry
from train.tools.checkpoints import atomic_path
from train.tools.texts import plain

HERE = Path(__file__).parent
# Out of a hundred combinations: test has the first ten, validation the next five, training the rest.
_BUCKETS = {"test": range(10), "validation": range(10, 15), "train": range(15, 100)}
SPLITS = (*_BUCKETS, UNSEEN)
STORY, PAIRS = "story", "pairs"
"""Kinds of rows: sentences that go on from each other, and sentences that only have their translations."""
Facts = Mapping[str, Entry]
_OPENERS = '"«'


@dataclass(frozen=True)
class Story:
    """`sentences[language][i]` is sentence i; sentence i of one language is sentence i of the other. `facts` are ids.

    A story may be told in some of the languages only. kind: `story` or `pairs`. source: where its text is from."""

    id: str
    sentences: dict[str, list[str]]
    facts: dict[str, str] = field(default_factory=dict)
    kind: str = STORY
    source: str = ""

    def told_in(self, language: str) -> list[str]:
        """Its sentences in a language. Raises TresseError where it is not told in it."""
        if language not in self.sentences:
            known = ", ".join(self.sentences)
            raise TresseError(
                f"the story {self.id} is told in {known}, not in {language}: give stories in all the languages"
            )
        return self.sentences[language]

    def only_in(self, languages: Iterable[str]) -> Story:
        """The same in these languages only. Raises TresseError where it is not told in one of them."""
        return replace(self, sentences={language: self.told_in(language) for language in languages})

    def to_json(self) -> str:
        """One line of `stories.jsonl`; of a generated story its facts, of a row of a source its kind and source."""
        row = asdict(self)
        for name, usual in (("kind", STORY), ("source", "")):
            if row[name] == usual:
                del row[name]
        return json.dumps(row, ensure_ascii=False)


@dataclass(frozen=True)
class Draft:
    """A story before it is put into words: its facts, the slots it tells, and for each slot a number in [0, 1) that
    picks the wording, the same in every language."""

    situation: Situation
    facts: Facts
    told: tuple[int, ...]
    wording: tuple[float, ...]


@dataclass(frozen=True)
class Cycles:
    """Stories told in cycles: `stories` in a row are of one small world, with so many values for each role and wordings
    for each sentence, at most. Raises TresseError for sizes below 1."""

    stories: int = 1
    values: int = 3
    wordings: int = 3

    def __post_init__(self) -> None:
        if min(self.stories, self.values, self.wordings) < 1:
            raise TresseError("cycle, values and wordings must be 1 at least")


@dataclass(frozen=True)
class World:
    """What the stories of a cycle are told of: a situation, few values for each role and wordings for each slot."""

    situation: Situation
    values: Mapping[str, Sequence[Entry]]
    wordings: Sequence[Sequence[float]]


class Grammar:
    """The lexicon and the situations of a folder. Raises TresseError naming the file and key that need mending."""

    def __init__(self, folder: Path = HERE) -> None:
        self.lexicon: Lexicon = read_lexicon(folder / "lexicon.yaml")
        files = sorted((folder / "situations").glob("*.yaml"))
        if not files:
            raise TresseError(f"no situations in {folder / 'situations'}: add one .yaml file for each")
        self.situations = [read_situation(file, self.lexicon) for file in files]
        for situation in self.situations:
            if not has_all_splits(situation):
                raise TresseError(f"{situation.name}.yaml: combination: too few values to fill every split: name more")

    def draw(self, rng: random.Random, split: str) -> Draft:
        """Draw a situation, its facts, what is told and its wordings."""
        return self.retell(rng, self.draw_facts(rng, split))

    def draw_facts(
        self,
        rng: random.Random,
        split: str,
        situation: Situation | None = None,
        values: Mapping[str, Sequence[Entry]] | None = None,
    ) -> Draft:
        """Draw facts, uniformly among the combinations of the split, of `situation` or of one drawn here.

        values: what each role may be, if not anything; some combination of them must be of the split. The draft tells
        the core alone, in its first wordings. Raises TresseError for a split without situations.
        """
        if situation is None:
            situation = rng.choice(self.situations_of(split))
        while True:
            facts: dict[str, Entry] = {}
            for name, role in situation.roles.items():
                taken = {facts[other].id for other in role.other_than}
                among = role.values if values is None else values[name]
                if not (left := [entry for entry in among if entry.id not in taken]):
                    break
                facts[name] = rng.choice(left)
            else:
                if split_of(situation, facts) == split:
                    return Draft(situation, facts, situation.core, (0.0,) * len(situation.slots))

    def draw_world(self, rng: random.Random, split: str, cycles: Cycles) -> World:
        """Draw a situation, values for each role (one combination, at least, of the split) and wordings."""
        first = self.draw_facts(rng, split)
        values = {}
        for name, role in first.situation.roles.items():
            others = [entry for entry in role.values if entry.id != first.facts[name].id]
            values[name] = [first.facts[name], *rng.sample(others, min(cycles.values - 1, len(others)))]
        wordings = [[rng.random() for _ in range(cycles.wordings)] for _ in first.situation.slots]
        return World(first.situation, values, wordings)

    def situations_of(self, split: str) -> list[Situation]:
        """The situations of a split: those held out, or all others. Raises TresseError where there are none."""
        chosen = [situation for situation in self.situations if situation.unseen == (split == UNSEEN)]
        if not chosen:
            raise TresseError(f"no situation for the split {split!r}: add one")
        return chosen

    def retell(
        self, rng: random.Random, draft: Draft, extras: bool = True, wordings: Sequence[Sequence[float]] | None = None
    ) -> Draft:
        """The same facts with other wordings (of these, for each slot); a coin decides on optional sentences."""
        slots = draft.situation.slots
        told = tuple(i for i, slot in enumerate(slots) if not slot.optional or (extras and rng.random() < 0.5))
        wording = (rng.random() for _ in slots) if wordings is None else map(rng.choice, wordings)
        return replace(draft, told=told, wording=tuple(wording))

    def template(self, draft: Draft, language: str, i: int) -> Template:
        """The wording chosen for slot `i`."""
        wordings = draft.situation.slots[i].of(draft.facts)
        return wordings[int(draft.wording[i] * len(wordings))][language]

    def sentence(self, draft: Draft, language: str, i: int) -> str:
        """Slot `i` in words."""
        render, adjectives = RENDER[language], self.lexicon.adjectives[language]
        text = ""
        for part in self.template(draft, language, i).parts:
            words = part if isinstance(part, str) else render(part, draft.facts, adjectives)
            text += capitalise(words) if not text or text.rstrip()[-1] in ".!?«" or text.endswith(' "') else words
        return FINISH[language](capitalise(text))

    def story(self, draft: Draft, id: str) -> Story:
        """Put a draft into words."""
        sentences = {language: [self.sentence(draft, language, i) for i in draft.told] for language in LANGUAGES}
        return Story(id, sentences, fact_ids(draft))

    def count_stories(self) -> int:
        """How many distinct stories there are: facts times wordings, over the situations.

        Counts combinations of facts as `draw_facts` makes them (a `not` takes one value away); an optional sentence
        has one wording more, silence; where a sentence depends on a fact, its least number of wordings: a lower bound.
        """
        total = 0
        for situation in self.situations:
            facts = prod(role.left for role in situation.roles.values())
            wordings = prod(min(map(len, slot.wordings.values())) + slot.optional for slot in situation.slots)
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
    if situation.unseen:
        return UNSEEN
    bucket = _bucket(combination(situation, facts))
    return next(split for split, buckets in _BUCKETS.items() if bucket in buckets)


def has_all_splits(situation: Situation) -> bool:
    """Whether the combinations of a situation that is not held out fill train, validation and test."""
    missing = set() if situation.unseen else set(_BUCKETS)
    values = (situation.roles[role].values for role in situation.combination)
    for entries in product(*values):
        if not missing:
            break
        missing.discard(split_of(situation, dict(zip(situation.combination, entries, strict=True))))
    return not missing


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


def generate_stories(
    seed: int, count: int, split: str = "train", grammar: Grammar | None = None, cycles: Cycles | None = None
) -> Iterator[Story]:
    """Yield `count` stories; story k depends on (seed, split, k, cycles) alone.

    The stories of a cycle combine the same few values: where they share a voice, most of their sentences are the same, and
    need to be spoken and encoded once; who hears them can learn neither the combinations nor the order of sentences by
    heart. Raises TresseError for an unknown split.
    """
    check_split(split)
    cycles = cycles or Cycles()
    grammar = grammar or default_grammar()
    world = None
    for k in range(count):
        if cycles.stories > 1 and k % cycles.stories == 0:
            world = grammar.draw_world(rng_for("cycle", split, seed, k // cycles.stories), split, cycles)
        rngs = rng_for("story", split, seed, k), rng_for("wording", split, seed, k)
        if world is None:
            draft = grammar.retell(rngs[1], grammar.draw_facts(rngs[0], split))
        else:
            draft = grammar.draw_facts(rngs[0], split, world.situation, world.values)
            draft = grammar.retell(rngs[1], draft, wordings=world.wordings)
        yield grammar.story(draft, f"{split}-{seed}-{k}")


def distinct_sentences(
    stories: Iterable[Story], languages: Sequence[str], count: int, without: Iterable[Story] = ()
) -> list[tuple[str, str]]:
    """The first `count` distinct sentences of each language, (language, text), over all stories; none of `without`."""
    stories = list(stories)
    seen = {(language, text) for story in without for language in languages for text in story.told_in(language)}
    picked: list[tuple[str, str]] = []
    for language in languages:
        told = [story for story in stories if language in story.sentences] or stories  # some are told in others only
        turns = max((len(story.told_in(language)) for story in told), default=0)
        texts = dict.fromkeys(
            spoken[(index + turn) % len(spoken)]
            for turn in range(turns)
            for index, story in enumerate(told)
            for spoken in [story.told_in(language)]
        )
        picked += [(language, text) for text in texts if (language, text) not in seen][:count]
    return picked


def write_stories(path: Path, stories: Iterable[Story]) -> None:
    """Write `stories.jsonl` atomically."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for story in stories:
            file.write(story.to_json() + "\n")


def read_stories(path: Path) -> Iterator[Story]:
    """Read `stories.jsonl`; only id and sentences must be there. Raises TresseError naming the line that is wrong."""
    for number, row in read_lines(path):
        try:
            sentences = {str(la): [plain(str(s)) for s in row["sentences"][la]] for la in row["sentences"]}
            if len({len(s) for s in sentences.values()}) != 1:
                raise ValueError("unequal numbers of sentences")
            kind, source = str(row.get("kind") or STORY), str(row.get("source") or "")
            yield Story(str(row["id"]), sentences, dict(row.get("facts") or {}), kind, source)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TresseError(f"{path}, line {number}: not a story ({error}): give id and sentences") from None


def read_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """The JSON objects of a JSONL file with their line numbers; a byte order mark and blank lines are nothing.

    Raises TresseError for a file that cannot be read, and for a line that is no object or not UTF-8.
    """
    if not path.exists():
        raise TresseError(f"{path} does not exist: give a .jsonl file")
    try:
        file = path.open("rb")
    except OSError as error:
        raise TresseError(f"cannot read {path} ({error.strerror}): give a .jsonl file") from error
    with file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if not text.strip():
                    continue
                row = json.loads(text)
            except UnicodeDecodeError:
                raise TresseError(f"{path}, line {number}: not UTF-8: save the file in this encoding") from None
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise TresseError(f"{path}, line {number}: write one JSON object a line")
            yield number, row
