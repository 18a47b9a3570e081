"""Cloze items: a context of four sentences, the right ending and a wrong one, in every language.

*story*: the wrong ending is fluent, on topic and contradicts exactly one fact of the context. *topic*: it is the right
ending of a story of another situation. Items come in pairs: what is right in item 2k is wrong in item 2k+1 and the
other way round, so that whoever sees only the endings is right in exactly half of the items, whatever they know.
Contexts of a pair are worded independently; the endings of a story pair share their wording and differ in the fact.
The kinds of facts that are contradicted (who, place, outcome ...) come about equally often, whatever the number of
situations whose endings state them. Optional sentences are left out: a context has four sentences.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from random import Random

from slm.errors import TresseError
from train.stories.data import Situation
from train.stories.grammar import (
    Draft,
    Grammar,
    Story,
    check_split,
    default_grammar,
    read_lines,
    rng_for,
    split_of,
)
from train.stories.words import Entry
from train.tools.checkpoints import atomic_path

KINDS = ("story", "topic")
BENCHMARK_ITEMS = 1871
"""Items of each kind and split in the benchmark: as many stories as the StoryCloze test set of 2016 has, which the spoken
StoryCloze and TopicCloze of Hassid et al. (TWIST, 2023) speak."""
FACT_KINDS = ("who", "family", "object", "colour", "food", "place", "time", "feeling", "outcome")
OTHER = "other"  # any kind of fact that a situation has to itself
_TRIES = 100


@dataclass(frozen=True)
class ClozeItem:
    """`context[language]` are all sentences but the last; `right[language]`, `wrong[language]` are endings."""

    id: str
    kind: str
    context: dict[str, list[str]]
    right: dict[str, str]
    wrong: dict[str, str]

    def to_json(self) -> str:
        """One line of `items.jsonl`."""
        return json.dumps(asdict(self), ensure_ascii=False)


def _alternatives(draft: Draft, role: str, split: str) -> list[Entry]:
    """Other values of `role` that change one fact only and keep the story in its split."""
    situation, facts, now = draft.situation, draft.facts, draft.facts[role]
    taken = {facts[other].id for other in situation.roles[role].other_than}
    taken |= {facts[name].id for name, other in situation.roles.items() if role in other.other_than}
    return [
        entry
        for entry in situation.roles[role].values
        if entry.id != now.id
        and entry.id not in taken
        # Another being of the same kind and gender: kind is a fact of its own.
        and (entry.type != "person" or (entry.kind, entry.gender) == (now.kind, now.gender))
        and split_of(situation, {**facts, role: entry}) == split
    ]


@cache
def contradictions(grammar: Grammar, split: str) -> dict[str, list[tuple[Situation, str]]]:
    """By kind of fact, the roles of each situation of the split that an ending can contradict."""
    by_kind: dict[str, list[tuple[Situation, str]]] = {}
    for situation in grammar.situations_of(split):
        for role in sorted(situation.checkable):
            by_kind.setdefault(fact_kind(situation, role), []).append((situation, role))
    return by_kind


def fact_kind(situation: Situation, role: str) -> str:
    """One of FACT_KINDS, or OTHER."""
    kind = situation.roles[role].kind
    return kind if kind in FACT_KINDS else OTHER


def draw_pair(grammar: Grammar, rng: Random, split: str) -> tuple[Draft, Draft, str]:
    """Two drafts that differ in exactly one fact, which every ending and every context of theirs states; its role.

    The kind of the fact is drawn first, uniformly, then a situation and role, then the other facts.
    """
    by_kind = contradictions(grammar, split)
    while True:
        situation, role = rng.choice(by_kind[rng.choice(sorted(by_kind))])
        for _ in range(_TRIES):  # a role of the combination may have no other value in this split
            first = grammar.draw_facts(rng, split, situation)
            if choices := _alternatives(first, role, split):
                second = replace(first, facts={**first.facts, role: rng.choice(choices)})
                first, second = (grammar.retell(rng, draft, extras=False) for draft in (first, second))
                return first, replace(second, wording=(*second.wording[:-1], first.wording[-1])), role


def story_pair(seed: int, k: int, split: str, grammar: Grammar | None = None) -> tuple[Story, Story, str]:
    """The two stories behind the story items 2k and 2k+1, and the one fact in which they differ."""
    grammar = grammar or default_grammar()
    first, second, role = draw_pair(grammar, rng_for("cloze-story", split, seed, k), split)
    return grammar.story(first, f"{split}-{seed}-{2 * k}"), grammar.story(second, f"{split}-{seed}-{2 * k + 1}"), role


def topic_pair(seed: int, k: int, split: str, grammar: Grammar | None = None) -> tuple[Story, Story]:
    """The two stories, of different situations, behind the topic items 2k and 2k+1."""
    grammar = grammar or default_grammar()
    rng = rng_for("cloze-topic", split, seed, k)
    situations = grammar.situations_of(split)
    if len(situations) < 2:
        raise TresseError(f"topic items need two situations of the split {split!r} at least: add one")
    first, second = (
        grammar.retell(rng, grammar.draw_facts(rng, split, situation), extras=False)
        for situation in rng.sample(situations, 2)
    )
    return grammar.story(first, f"{split}-{seed}-{2 * k}"), grammar.story(second, f"{split}-{seed}-{2 * k + 1}")


def _item(kind: str, story: Story, wrong: Story) -> ClozeItem:
    return ClozeItem(
        id=f"{kind}-{story.id}",
        kind=kind,
        context={language: sentences[:-1] for language, sentences in story.sentences.items()},
        right={language: sentences[-1] for language, sentences in story.sentences.items()},
        wrong={language: sentences[-1] for language, sentences in wrong.sentences.items()},
    )


def make_items(seed: int, count: int, split: str = "test", grammar: Grammar | None = None) -> list[ClozeItem]:
    """`count` items of each kind. Item k depends on (seed, split, k) alone. Raises TresseError for an unknown split."""
    check_split(split)
    items: dict[str, list[ClozeItem]] = {kind: [] for kind in KINDS}
    for k in range((count + 1) // 2):
        first, second, role = story_pair(seed, k, split, grammar)
        for item in (_item("story", first, second), _item("story", second, first)):
            items["story"].append(replace(item, id=f"{item.id}-{role}"))
        first, second = topic_pair(seed, k, split, grammar)
        items["topic"] += [_item("topic", first, second), _item("topic", second, first)]
    return [item for kind in KINDS for item in items[kind][:count]]


def write_items(path: Path, items: Iterable[ClozeItem]) -> None:
    """Write `items.jsonl` atomically."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for item in items:
            file.write(item.to_json() + "\n")


def read_items(path: Path) -> Iterator[ClozeItem]:
    """Read `items.jsonl`. Raises TresseError naming the line that is wrong."""
    for number, row in read_lines(path):
        try:
            yield ClozeItem(str(row["id"]), row["kind"], row["context"], row["right"], row["wrong"])
        except KeyError as error:
            raise TresseError(f"{path}, line {number}: add {error} to the item") from None


def read_handwritten() -> list[ClozeItem]:
    """The 200 story items written by hand, in mirrored pairs: words of the lexicon, none of the grammar's sentences."""
    return list(read_items(Path(__file__).with_name("handwritten.jsonl")))


def handwritten_topics() -> list[ClozeItem]:
    """Topic items of the hand-written stories: the wrong ending is the right one of a story half the set away.

    As every ending is right in one item and wrong in another, endings alone give nothing away here either.
    """
    items = read_handwritten()
    others = items[len(items) // 2 :] + items[: len(items) // 2]
    return [
        replace(item, id=f"topic-{item.id}", kind="topic", wrong=other.right)
        for item, other in zip(items, others, strict=True)
    ]
