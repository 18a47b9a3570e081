"""Cloze items for evaluation: the benchmark's splits, the hand-written set, or anyone's file; and what their ids tell.

Mirrored items (what is right in one is wrong in the other) are found by their endings, in anyone's file too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from slm.errors import TresseError
from train.evaluate.spoken_items import is_recording
from train.stories.cloze_items import BENCHMARK_ITEMS, handwritten_topics, make_items, read_handwritten, read_items
from train.stories.data import LANGUAGES
from train.stories.grammar import rng_for
from train.stories.written_cloze import written_items
from train.tools.texts import plain_entry

PARTS = ("context", "right", "wrong")
HANDWRITTEN, WRITTEN = "handwritten", "written"
SPLITS = ("test", "unseen", "validation", HANDWRITTEN, WRITTEN)
BENCHMARK_SEED = 1
KINDS = ("story", "topic")
Drawn = TypeVar("Drawn")
_FACT = re.compile(r"story-[a-z]+-\d+-\d+-(\w+)")


@dataclass(frozen=True)
class Item:
    """A cloze item as it is evaluated.

    context, right, wrong: by language, as in the file. pair: the same for mirrored items. fact: the role that the wrong
    ending contradicts, where the id tells it. recorded: all of its entries are audio files.
    """

    id: str
    kind: str
    context: Mapping[str, Any]
    right: Mapping[str, Any]
    wrong: Mapping[str, Any]
    pair: str
    fact: str | None
    recorded: bool

    @classmethod
    def of(cls, given: Any, number: int) -> Item:
        """A mapping or a dataclass with these keys -> an item. Raises TresseError naming the number of one that is none."""
        row = asdict(given) if is_dataclass(given) and not isinstance(given, type) else dict(given)
        for name in ("id", "kind", *PARTS):
            if name not in row:
                raise TresseError(f"cloze item {number} has no '{name}': add it to the file")
        for name in PARTS:
            if not isinstance(row[name], Mapping):
                raise TresseError(f"cloze item {number}: '{name}' must be an object with a key for each language")
        endings = sorted(
            json.dumps(_one_form(row[name]), sort_keys=True, ensure_ascii=False) for name in ("right", "wrong")
        )
        digest = hashlib.sha256("\n".join([str(row["kind"]), *endings]).encode()).hexdigest()[:16]
        entries = [entry for name in PARTS for value in row[name].values() for entry in _list(value)]
        match = _FACT.fullmatch(str(row["id"]))
        return cls(
            str(row["id"]),
            str(row["kind"]),
            row["context"],
            row["right"],
            row["wrong"],
            pair=digest,
            fact=match[1] if match else None,
            recorded=bool(entries) and all(map(is_recording, entries)),
        )

    def draw(self, choices: Sequence[Drawn], shift: int = 0, seed: int = 0) -> Drawn:
        """One of the choices, the same for mirrored items and a seed, whatever other items there are."""
        number = rng_for("voices", seed, self.pair).getrandbits(64) if seed else int(self.pair, 16)
        return choices[(number + shift) % len(choices)]


def _one_form(by_language: Mapping[str, Any]) -> dict[str, Any]:
    return {str(language): plain_entry(entry) for language, entry in by_language.items()}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def to_items(given: Iterable[Any]) -> list[Item]:
    """Items with ids of their own. Raises TresseError where there are none, or two of a kind share an id."""
    items = [Item.of(row, number) for number, row in enumerate(given, start=1)]
    if not items:
        raise TresseError("there are no cloze items: give a file with at least one")
    known: set[tuple[str, str]] = set()
    for item in items:
        if (item.kind, item.id) in known:
            raise TresseError(f"two {item.kind} items are called {item.id}: give every item an id of its own")
        known.add((item.kind, item.id))
    return items


def load_items(
    source: str | Path = "test",
    count: int = BENCHMARK_ITEMS,
    seed: int = BENCHMARK_SEED,
    languages: Sequence[str] = tuple(LANGUAGES),
) -> tuple[list[Any], Path]:
    """A split (test, unseen, validation, written: `count` items of each kind; handwritten: all of them) or a .jsonl file.

    languages: that the written stories must all be told in. Returns the items and the folder that their audio paths are
    relative to. Raises TresseError naming the line that is wrong, or the splits there are.
    """
    if str(source) == WRITTEN:
        if items := written_items("test", languages, count):
            return [*items], Path(".")
        raise TresseError(f"no written story is told in all of {', '.join(languages)}: translate some, or give a file")
    if str(source) == HANDWRITTEN:
        return [*read_handwritten(), *handwritten_topics()], Path(".")
    if str(source) in SPLITS:
        return list(make_items(seed, count, str(source))), Path(".")
    path = Path(source)
    if not path.exists():
        raise TresseError(f"there are no items at {path}: give a .jsonl file or one of {', '.join(SPLITS)}")
    return list(read_items(path)), path.parent


def learnt_written(provenance: Mapping[str, Any]) -> bool:
    """Whether a bundle's provenance names written stories among the texts that its language model was trained on."""
    return WRITTEN in provenance.get("texts", {})


def items_for(languages: Sequence[str], count: int, seed: int = BENCHMARK_SEED) -> list[Any]:
    """What a bundle of these languages is asked: `count` items of each kind, of the grammar where it has all of them.

    Else of the written stories that are told in all of them; where there are none, of the grammar, in those languages that
    it has, or nothing.
    """
    unknown = [language for language in languages if language not in LANGUAGES]
    written = written_items("test", languages, count) if unknown else []
    return written or (list(make_items(seed, count, "test")) if len(unknown) < len(languages) else [])
