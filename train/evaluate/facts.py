"""Facts named in a text: what a transcript says about who, what, where and how, in the words of the stories' lexicon.

Every word of the lexicon, and every value that a situation has of its own, is looked for in all of its forms (agreed in
gender and number); the longest form wins (*teddy bear* is no bear). A fact is (kind, id): the category of the lexicon, or
situation.role, and the language-neutral id of the value: facts of an English prompt and of a French continuation compare.
The parser knows words, not grammar: *bear* as a verb counts as an animal. Two continuations are judged by the same rule, and
every coherence has a control beside it: the same continuation against another prompt.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from train.stories.data import RENDER
from train.stories.grammar import Grammar, default_grammar, generate_stories
from train.stories.words import Entry, Word

Fact = tuple[str, str]
LEXICON_STORIES = 2000
"""Stories whose words are the lexicon that transcripts are measured with: they hold all but a few of the rarest."""


def words_of(text: str) -> list[str]:
    """Lower-case words without accents; apostrophes and hyphens part words."""
    plain = unicodedata.normalize("NFKD", text.lower().replace("œ", "oe").replace("æ", "ae"))
    return re.findall(r"[^\W_]+", "".join(letter for letter in plain if not unicodedata.combining(letter)))


@dataclass(frozen=True)
class Coherence:
    """Facts of a continuation whose kind the prompt names too: how many there are, and how many agree with the prompt."""

    named: int
    agreeing: int

    @property
    def share(self) -> float | None:
        """None where nothing can be compared."""
        return self.agreeing / self.named if self.named else None


class FactParser:
    """Text of one language -> facts. Raises KeyError for a language that the grammar does not have."""

    def __init__(self, language: str, grammar: Grammar | None = None) -> None:
        grammar = grammar or default_grammar()
        self.language = language
        self._adjectives = grammar.lexicon.adjectives[language]
        self._forms: dict[tuple[str, ...], set[Fact]] = {}
        for category, entries in grammar.lexicon.categories.items():
            self._add(category, entries)
        for situation in grammar.situations:
            for name, role in situation.roles.items():
                if role.kind not in grammar.lexicon.categories:
                    self._add(f"{situation.name}.{name}", role.values)
        self._longest = max(map(len, self._forms))

    def _add(self, kind: str, entries: Iterable[Entry]) -> None:
        for entry in entries:
            for form in self.forms(entry):
                if words := tuple(words_of(form)):
                    self._forms.setdefault(words, set()).add((kind, entry.id))

    def forms(self, entry: Entry) -> set[str]:
        """A value in all its forms: an adjective agrees with nouns of either gender and number, others stand as they are."""
        if entry.type != "adjective":
            return {entry.text[self.language]}
        forms = set()
        for gender in ("m", "f"):
            for plural in (False, True):
                noun = Entry("noun", "noun", {self.language: "0"}, gender, plural)
                said = RENDER[self.language](
                    (Word("noun"), Word("value")), {"noun": noun, "value": entry}, self._adjectives
                )
                forms.add(said.replace("0", "").strip())
        return forms

    def facts(self, text: str) -> list[Fact]:
        """The facts that a text names, each once, in order; a form that stands for several values gives all of them."""
        words = words_of(text)
        facts: dict[Fact, None] = {}
        start = 0
        while start < len(words):
            for length in range(min(self._longest, len(words) - start), 0, -1):
                if named := self._forms.get(tuple(words[start : start + length])):
                    facts.update(dict.fromkeys(sorted(named)))
                    start += length
                    break
            else:
                start += 1
        return list(facts)


def coherence(prompt: Iterable[Fact], continuation: Iterable[Fact]) -> Coherence:
    """Compare facts of kinds that the prompt names: a continuation's fact agrees if the prompt names it too."""
    told: dict[str, set[str]] = {}
    for kind, value in prompt:
        told.setdefault(kind, set()).add(value)
    comparable = [(kind, value) for kind, value in continuation if kind in told]
    return Coherence(len(comparable), sum(value in told[kind] for kind, value in comparable))


@cache
def parser(language: str) -> FactParser:
    """The parser of the project's own grammar."""
    return FactParser(language)


def lexicon(language: str) -> frozenset[str]:
    """All words of the stories in a language, as `words_of` writes them."""
    return frozenset(_lexicons()[language])


@cache
def _lexicons() -> dict[str, set[str]]:
    words: dict[str, set[str]] = {}
    for story in generate_stories(0, LEXICON_STORIES, "train"):
        for language, sentences in story.sentences.items():
            words.setdefault(language, set()).update(words_of(" ".join(sentences)))
    return words
