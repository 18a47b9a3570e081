"""What the language modules share: the entry of the lexicon, and the tag that asks for one of its forms.

A template is plain text with tags in braces. A tag is a short noun phrase (or a single agreeing word) whose words are

- a role (`object`, `who`, ...), which becomes the noun, adjective or phrase drawn for it;
- a keyword of the language (determiner, preposition, conjunction), which agrees, contracts or elides;
- an adjective listed under `adjectives` in the lexicon, which agrees with the noun of the tag;
- `word@role`, any word that agrees with the role from afar: `{she@who}`, `{perdu@object}`, `{was|were@object}`,
  or with several roles together: `{il@who+friend}` is *ils* or *elles*.

Only what stands in a tag ever changes, so that plain text such as `de le voir` stays as it was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# A word that elides or not according to the text after its tag carries this mark until the sentence is whole.
JOINT = "\x1f"


@dataclass(frozen=True)
class Entry:
    """One value of a role. `text`, and `preposition` for places, are given by language."""

    id: str
    type: str  # noun, person, place, adjective or phrase
    text: Mapping[str, str]
    gender: str = "m"  # m or f: of the French noun, and of the being in both languages
    plural: bool = False
    name: bool = False  # a proper name takes no article
    kind: str = ""
    kind_text: Mapping[str, str] = field(default_factory=dict)
    preposition: Mapping[str, str] = field(default_factory=dict)
    invariable: bool = False
    tags: frozenset[str] = frozenset()

    @property
    def is_noun(self) -> bool:
        """Whether words can agree with it."""
        return self.type in ("noun", "person", "place")


@dataclass(frozen=True)
class Word:
    """One word of a tag: `text` alone, or `text` agreeing with `role`."""

    text: str
    role: str | None = None


Tag = tuple[Word, ...]


def parse_tag(source: str) -> Tag:
    """`her@who colour object` -> its words. Raises ValueError for an empty tag or word."""
    words = []
    for part in source.split():
        text, at, role = part.partition("@")
        if not text or (at and not role):
            raise ValueError(f"bad word {part!r} in the tag {{{source}}}")
        words.append(Word(text, role if at else None))
    if not words:
        raise ValueError("empty tag {}")
    return tuple(words)


def entry_of(role: str, entries: Mapping[str, Entry]) -> Entry:
    """The entry of a role, or of several at once: `who+friend` is plural, and feminine if all of them are."""
    if "+" not in role:
        return entries[role]
    group = [entries[name] for name in role.split("+")]
    return Entry(role, "person", {}, "f" if all(e.gender == "f" for e in group) else "m", plural=True)


def head_of(tag: Tag, entries: Mapping[str, Entry]) -> Entry | None:
    """The noun that the determiner and the adjectives of the tag agree with."""
    for word in tag:
        if word.role is None and word.text in entries and entries[word.text].is_noun:
            return entries[word.text]
    for word in reversed(tag):
        if word.role is not None:
            return entry_of(word.role, entries)
    return None


def by_number(text: str, entry: Entry) -> str:
    """`was|were` -> the half that fits the number of `entry`."""
    singular, plural = text.split("|")
    return plural if entry.plural else singular
