"""Cloze items: a context of four sentences, the right ending and a wrong one, in every language.

*story*: the wrong ending is fluent, on topic and contradicts exactly one fact of the context. *topic*: it is the right
ending of a story of another situation. Items come in pairs: what is right in item 2k is wrong in item 2k+1 and the
other way round, so that whoever sees only the endings is right in exactly half of the items, whatever they know.
Contexts of a pair are worded independently; the endings of a story pair share their wording and differ in the fact.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random

from slm.errors import TresseError
from train.checkpoint import atomic_path
from train.stories.data import LANGUAGES
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

KINDS = ("story", "topic")


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


def draw_pair(grammar: Grammar, rng: Random, split: str) -> tuple[Draft, Draft, str]:
    """Two drafts that differ in exactly one fact, which every ending and every context of theirs states; its role."""
    while True:
        draft = grammar.draw(rng, split)
        last = len(draft.situation.slots) - 1
        stated = frozenset.intersection(*(grammar.template(draft, language, last).roles for language in LANGUAGES))
        candidates = sorted(stated & draft.situation.checkable)
        choices = {role: entries for role in candidates if (entries := _alternatives(draft, role, split))}
        if not choices:
            continue
        role = rng.choice(sorted(choices))
        wording = grammar.draw_wording(rng, draft.situation)
        wording = {language: (*wording[language][:-1], draft.wording[language][-1]) for language in LANGUAGES}
        other = Draft(draft.situation, {**draft.facts, role: rng.choice(choices[role])}, wording)
        return draft, other, role


def story_pair(seed: int, k: int, split: str, grammar: Grammar | None = None) -> tuple[Story, Story, str]:
    """The two stories behind the story items 2k and 2k+1, and the one fact in which they differ."""
    grammar = grammar or default_grammar()
    first, second, role = draw_pair(grammar, rng_for("cloze-story", split, seed, k), split)
    return grammar.story(first, f"{split}-{seed}-{2 * k}"), grammar.story(second, f"{split}-{seed}-{2 * k + 1}"), role


def topic_pair(seed: int, k: int, split: str, grammar: Grammar | None = None) -> tuple[Story, Story]:
    """The two stories, of different situations, behind the topic items 2k and 2k+1."""
    grammar = grammar or default_grammar()
    rng = rng_for("cloze-topic", split, seed, k)
    first = second = grammar.draw(rng, split)
    if len(grammar.situations) < 2:
        raise TresseError("topic items need two situations at least: add one")
    while second.situation.name == first.situation.name:
        second = grammar.draw(rng, split)
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
