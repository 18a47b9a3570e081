"""Reading the lexicon and the situations, and saying exactly what is wrong with them.

A situation is a file: its `problem`, its `roles` (words of the lexicon, chosen by category, `tag` and `only`, or `values`
of its own), the roles whose `combination` tells the splits apart, `split: unseen` if it is held out, and its
`sentences`: five, and up to two more under `extra`, which a story tells or not. A sentence is a block of lines for each
language, line k of one the translation of line k of the other, or such blocks for each value of a role.

Everything a writer can get wrong (a missing form, an unknown role, a sentence in one language only, an ending that states
nothing the context stated, a French `de` before a tag that begins with a vowel) is found at load and named by file and
key: `TresseError`. Reading the whole folder takes about a second with PyYAML's C loader.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from slm.errors import TresseError
from train.stories import english, french
from train.stories.words import Entry, Tag, parse_tag

Render = Callable[[Tag, Mapping[str, Entry], frozenset[str]], str]
# A third language is a module with `render`, `finish` and `check_before`, and its wordings in the data.
RENDER: dict[str, Render] = {english.LANGUAGE: english.render, french.LANGUAGE: french.render}
FINISH: dict[str, Callable[[str], str]] = {english.LANGUAGE: english.finish, french.LANGUAGE: french.finish}
CHECK_BEFORE: dict[str, Callable[[str, str], None]] = {
    english.LANGUAGE: english.check_before,
    french.LANGUAGE: french.check_before,
}
KEYWORDS: dict[str, set[str]] = {english.LANGUAGE: english.KEYWORDS, french.LANGUAGE: french.KEYWORDS}
LANGUAGES = list(RENDER)
ENTRY_TYPES = ("noun", "person", "place", "adjective", "phrase")
UNSEEN = "unseen"  # the split of the situations that no other split has
CORE = 5  # sentences that every story tells
EXTRAS = 2  # sentences, at most, that a story tells or not
WORDINGS = 4  # of each sentence, at least
ENDING = 2  # facts, at least, that the ending states and the context stated
_TAG = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Template:
    """One wording: text and tags by turns; `roles` are the facts that it states (not those it merely agrees with)."""

    parts: tuple[str | Tag, ...]
    roles: frozenset[str]


Wording = Mapping[str, Template]  # by language: translations of each other


@dataclass(frozen=True)
class Slot:
    """One sentence of a situation: wordings, or wordings for each value of the fact `by`. Stories may skip optional ones."""

    by: str | None
    wordings: Mapping[str, tuple[Wording, ...]]  # by value of `by`; under "" where it depends on nothing
    optional: bool = False

    def of(self, facts: Mapping[str, Entry]) -> tuple[Wording, ...]:
        """The wordings for a story's facts."""
        return self.wordings[facts[self.by].id if self.by else ""]


@dataclass(frozen=True)
class Role:
    """What may fill a role: entries of the lexicon or of the situation, other than the value of the roles `other_than`."""

    values: tuple[Entry, ...]
    other_than: tuple[str, ...] = ()
    kind: str = ""  # the category of the lexicon that the values come from, else the name of the role
    left: int = 0  # of the values, at least, once those roles have taken theirs


@dataclass(frozen=True)
class Situation:
    """One causal line, as data. `checkable`: roles every context and every ending state, so that one may contradict them.

    `unseen`: held out altogether, for the split of that name.
    """

    name: str
    problem: str
    roles: Mapping[str, Role]
    combination: tuple[str, ...]
    slots: tuple[Slot, ...]
    checkable: frozenset[str] = frozenset()
    unseen: bool = False

    @property
    def core(self) -> tuple[int, ...]:
        """The slots that every story tells."""
        return tuple(i for i, slot in enumerate(self.slots) if not slot.optional)


@dataclass(frozen=True)
class Lexicon:
    """Entries by category, and the adjectives of each language."""

    categories: Mapping[str, tuple[Entry, ...]]
    adjectives: Mapping[str, frozenset[str]] = field(default_factory=dict)


class _Node:
    """A piece of YAML that knows where it comes from, so that complaints can say it."""

    def __init__(self, value: Any, file: Path, key: str = "") -> None:
        self.value, self.file, self.key = value, file, key

    def error(self, message: str) -> TresseError:
        return TresseError(f"{self.file.name}: {self.key or 'top level'}: {message}")

    def mapping(self) -> dict[str, _Node]:
        if not isinstance(self.value, dict) or not self.value:
            raise self.error("write a mapping (key: value) here")
        return {str(k): _Node(v, self.file, f"{self.key}.{k}" if self.key else str(k)) for k, v in self.value.items()}

    def get(self, key: str) -> _Node:
        nodes = self.mapping()
        if key not in nodes:
            raise self.error(f"add the key {key!r}")
        return nodes[key]

    def known(self, *keys: str) -> None:
        for key in self.mapping():
            if key not in keys:
                raise self.error(f"remove or rename the key {key!r} (known: {', '.join(keys)})")

    def text(self) -> str:
        if not isinstance(self.value, str) or not self.value.strip():
            raise self.error("write text here (quote words that YAML reads otherwise, such as 'yes' or 'no')")
        return self.value.strip()

    def lines(self) -> list[str]:
        """Wordings: the lines of a block (`|`), which needs no quotes around braces and apostrophes."""
        lines = [line.strip() for line in self.text().splitlines() if line.strip()]
        if len(set(lines)) != len(lines):
            raise self.error("the same line stands here twice: remove one")
        return lines

    def strings(self) -> list[str]:
        if not isinstance(self.value, list) or not all(isinstance(v, str) and v.strip() for v in self.value):
            raise self.error("write a list of texts here")
        return [v.strip() for v in self.value]


def _read(file: Path) -> _Node:
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        return _Node(yaml.load(file.read_text(encoding="utf-8"), Loader=loader), file)
    except FileNotFoundError:
        raise TresseError(f"{file} is missing: restore it") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TresseError(f"{file.name}: not valid YAML in UTF-8: {' '.join(str(error).split())}") from None


def _entry(node: _Node, name: str, kind_of: str, kinds: Mapping[str, Mapping[str, str]]) -> Entry:
    node.known(*LANGUAGES, "gender", "plural", "name", "kind", "preposition", "invariable", "tags")
    raw = node.mapping()
    text = {language: node.get(language).text() for language in LANGUAGES}
    gender = raw["gender"].text() if "gender" in raw else "m"
    if gender not in ("m", "f"):
        raise raw["gender"].error("write m or f")
    if kind_of in ("noun", "person", "place") and "gender" not in raw:
        raise node.error("add gender: m or f")
    flags = {}
    for flag in ("plural", "name", "invariable"):
        flags[flag] = raw[flag].value if flag in raw else False
        if not isinstance(flags[flag], bool):
            raise raw[flag].error("write true or false")
    kind = raw["kind"].text() if "kind" in raw else ""
    if kind_of == "person" and not kind:
        raise node.error("add kind")
    if flags["name"] and kind not in kinds:
        raise node.error(f"a name needs its kind ({kind!r}) under `kinds`")
    preposition = {language: node.get("preposition").get(language).text() for language in LANGUAGES} if (
        kind_of == "place"
    ) else {}  # fmt: skip
    tags = frozenset(raw["tags"].strings()) if "tags" in raw else frozenset()
    return Entry(name, kind_of, text, gender, kind=kind, kind_text=kinds.get(kind, {}), preposition=preposition,
                 tags=tags, **flags)  # fmt: skip


def read_lexicon(file: Path) -> Lexicon:
    """Read `lexicon.yaml`. Raises TresseError naming file and key."""
    top = _read(file)
    nodes = top.mapping()
    kinds: dict[str, dict[str, str]] = {}
    if "kinds" in nodes:
        for kind, node in nodes["kinds"].mapping().items():
            kinds[kind] = {language: node.get(language).text() for language in LANGUAGES}
    adjectives = {la: frozenset(top.get("adjectives").get(la).strings()) for la in LANGUAGES}
    categories = {}
    for name, node in nodes.items():
        if name in ("kinds", "adjectives"):
            continue
        node.known("type", "words")
        kind_of = node.get("type").text()
        if kind_of not in ENTRY_TYPES:
            raise node.get("type").error(f"write one of {', '.join(ENTRY_TYPES)}")
        words = node.get("words").mapping()
        categories[name] = tuple(_entry(word, id, kind_of, kinds) for id, word in words.items())
    return Lexicon(categories, adjectives)


def _role(node: _Node, name: str, lexicon: Lexicon, earlier: Mapping[str, Role]) -> Role:
    if node.value is None:
        node = _Node({"from": name}, node.file, node.key)
    node.known("from", "tag", "only", "not", "values")
    raw = node.mapping()
    values: tuple[Entry, ...]
    category = name
    if "values" in raw:
        entries = []
        for id, value in raw["values"].mapping().items():
            # With a gender it is a noun, which takes determiners; without, a phrase that stands as it is.
            entries.append(_entry(value, id, "noun" if "gender" in value.mapping() else "phrase", {}))
        values = tuple(entries)
    else:
        category = raw["from"].text() if "from" in raw else name
        if category not in lexicon.categories:
            raise node.error(f"no category {category!r} in the lexicon: write one of {', '.join(lexicon.categories)}")
        values = lexicon.categories[category]
        if "tag" in raw:
            values = tuple(entry for entry in values if raw["tag"].text() in entry.tags)
        if "only" in raw:
            wanted = raw["only"].strings()
            for id in wanted:
                if id not in {entry.id for entry in values}:
                    raise raw["only"].error(f"no {id!r} among the words of {category}")
            values = tuple(entry for entry in values if entry.id in wanted)
    other_than: tuple[str, ...] = ()
    if "not" in raw:
        other_than = (raw["not"].text(),) if isinstance(raw["not"].value, str) else tuple(raw["not"].strings())
        for other in other_than:
            if other not in earlier:
                raise raw["not"].error(f"no role {other!r} above this one")
    # Nothing appears twice in a story: no hedgehog hears a hedgehog in the night.
    ids = {entry.id for entry in values if entry.is_noun}
    shared = {other: ids & {entry.id for entry in role.values if entry.is_noun} for other, role in earlier.items()}
    other_than += tuple(other for other in earlier if shared[other] and other not in other_than)
    taken = {entry.id for entry in values} & {entry.id for other in other_than for entry in earlier[other].values}
    left = len(values) - min(len(other_than), len(taken))
    if left < 2:
        raise node.error("a role needs at least two values to choose from: add words or tags")
    return Role(values, other_than, category, left)


def _template(node: _Node, source: str, roles: Mapping[str, Role]) -> Template:
    parts: list[str | Tag] = []
    stated = set()
    for i, part in enumerate(_TAG.split(source)):
        if i % 2 == 0:
            if "{" in part or "}" in part:
                raise node.error(f"close the brace in {source!r}")
            if part:
                parts.append(part)
            continue
        try:
            tag = parse_tag(part)
        except ValueError as error:
            raise node.error(str(error)) from None
        for role in {name for word in tag for name in (word.role or "").split("+") if name}:
            if role not in roles:
                raise node.error(f"no role {role!r} in {{{part}}}: declare it under `roles`")
        stated |= {word.text for word in tag if word.text in roles}
        parts.append(tag)
    return Template(tuple(parts), frozenset(stated))


def _wordings(node: _Node, roles: Mapping[str, Role], by: str | None) -> tuple[Wording, ...]:
    node.known(*LANGUAGES)
    by_language = []
    for language in LANGUAGES:
        texts = node.get(language)
        templates = [_template(texts, source, roles) for source in texts.lines()]
        by_language.append([Template(t.parts, t.roles | {by}) for t in templates] if by else templates)
    counts = [len(templates) for templates in by_language]
    if len(set(counts)) > 1:
        given = ", ".join(f"{count} in {language}" for language, count in zip(LANGUAGES, counts, strict=True))
        raise node.error(f"line k of every language is the same wording: write equally many lines (now {given})")
    if counts[0] < WORDINGS:
        raise node.error(f"write {WORDINGS} wordings at least (now {counts[0]})")
    return tuple(dict(zip(LANGUAGES, wording, strict=True)) for wording in zip(*by_language, strict=True))


def _slot(node: _Node, roles: Mapping[str, Role], optional: bool = False) -> Slot:
    raw = node.mapping()
    if not optional and set(raw) == {"extra"}:
        return _slot(raw["extra"], roles, optional=True)
    if len(raw) == 1 and next(iter(raw)) in roles:
        by, branches = next(iter(raw.items()))
        known = {entry.id for entry in roles[by].values}
        given = branches.mapping()
        if set(given) != known:
            raise branches.error(f"write wordings for each value of {by}: {', '.join(sorted(known))}")
        return Slot(by, {value: _wordings(branch, roles, by) for value, branch in given.items()}, optional)
    return Slot(None, {"": _wordings(node, roles, None)}, optional)


def _always_stated(slot: Slot) -> set[str]:
    """Roles that every wording of a slot states, in every language and for every value of what it depends on."""
    stated = [t.roles for wordings in slot.wordings.values() for wording in wordings for t in wording.values()]
    return set(frozenset.intersection(*stated))


def _try_all(node: _Node, situation: Situation, lexicon: Lexicon) -> None:
    """Render every tag with every value of every role that it uses, so that no story can fail later."""
    sample = {name: role.values[0] for name, role in situation.roles.items()}
    done = set()
    for i, slot in enumerate(situation.slots):
        for language, template in ((la, t) for ws in slot.wordings.values() for w in ws for la, t in w.items()):
            for before, tag in pairwise(("", *template.parts)):
                if isinstance(tag, str) or (language, before, tag) in done:
                    continue
                done.add((language, before, tag))
                used = {name for w in tag for name in (w.role or w.text).split("+")} & set(situation.roles)
                for name in used or {next(iter(sample))}:
                    for entry in situation.roles[name].values:
                        try:
                            words = RENDER[language](tag, {**sample, name: entry}, lexicon.adjectives[language])
                            CHECK_BEFORE[language](before if isinstance(before, str) else "", words)
                        except (ValueError, KeyError) as error:
                            source = " ".join(f"{w.text}@{w.role}" if w.role else w.text for w in tag)
                            where = _Node(None, node.file, f"sentences.{i + 1}.{language}")
                            raise where.error(f"{{{source}}}: {error}") from None


def read_situation(file: Path, lexicon: Lexicon) -> Situation:
    """Read one situation. Raises TresseError naming file and key."""
    top = _read(file)
    top.known("problem", "split", "roles", "combination", "sentences")
    unseen = "split" in top.mapping()
    if unseen and top.get("split").text() != UNSEEN:
        raise top.get("split").error(f"write {UNSEEN!r}, or leave the key out")
    roles: dict[str, Role] = {}
    keywords = set().union(*KEYWORDS.values())
    for name, node in top.get("roles").mapping().items():
        if name in keywords or name in ("situation", "problem", "kind"):
            raise node.error("this word means something else already: name the role otherwise")
        roles[name] = _role(node, name, lexicon, roles)
    if "who" not in roles:
        raise top.get("roles").error("add the role who")
    combination = tuple(top.get("combination").strings())
    for role in combination:
        if role not in roles:
            raise top.get("combination").error(f"no role {role!r} here")
    sentences = top.get("sentences")
    if not isinstance(sentences.value, list) or not sentences.value:
        raise sentences.error("write a list of sentences")
    nodes = [_Node(value, file, f"sentences.{i + 1}") for i, value in enumerate(sentences.value)]
    slots = tuple(_slot(node, roles) for node in nodes)
    extras = sum(slot.optional for slot in slots)
    if len(slots) - extras != CORE or extras > EXTRAS or slots[0].optional or slots[-1].optional:
        raise sentences.error(f"write {CORE} sentences, and between them up to {EXTRAS} more under `extra`")
    context = set().union(*(_always_stated(slot) for slot in slots[:-1] if not slot.optional))
    ending = _always_stated(slots[-1])
    for role in roles:
        if role not in context | ending:
            raise sentences.error(f"state {role!r} in every wording of some sentence: a fact must be told to be true")
    if len(context & ending) < ENDING:
        raise nodes[-1].error(
            f"let every wording of the ending state {ENDING} facts that the context always states "
            f"(now {', '.join(sorted(context & ending)) or 'none'})"
        )
    name = file.stem
    situation = Situation(
        name, top.get("problem").text(), roles, combination, slots, frozenset(context & ending), unseen
    )
    _try_all(top, situation, lexicon)
    return situation
