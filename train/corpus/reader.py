"""Anyone's parallel stories, row by row: what can be used goes on, what cannot is named with its row and the reason.

`stories.jsonl` holds one `{"id", "sentences": {"en": [...], "fr": [...]}}` a line; a row may be told in one of the languages
only, and `"kind": "pairs"` says that its sentences have only their translations in common. Nothing is held in memory but
the row at hand: ids that occurred already are kept in a temporary file.
"""

from __future__ import annotations

import json
import sqlite3
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from slm.errors import TresseError
from train.stories.grammar import PAIRS, STORY
from train.tools.texts import plain

LONGEST_ROW = 1_000_000
"""Bytes of a line."""


class AnyStory(Protocol):
    """What is needed of a story (`train.stories.grammar.Story` is one)."""

    @property
    def id(self) -> str:
        """Its name, unique in a corpus."""
        ...

    @property
    def sentences(self) -> dict[str, list[str]]:
        """By language, its aligned sentences."""
        ...


@dataclass(frozen=True)
class Row:
    """A usable row: its number (from 1), and a story with one list of sentences for each language that it is told in.

    kind: `pairs` where the sentences have only their translations in common (train.stories.grammar)."""

    number: int
    id: str
    sentences: dict[str, list[str]]
    kind: str = STORY


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be used, and why. id: None where the row does not tell."""

    row: int
    id: str | None
    reason: str

    def to_json(self) -> str:
        """One line of `rejected.jsonl`."""
        return json.dumps({"row": self.row, "id": self.id, "reason": self.reason})


def read_rows(stories: Path | Iterable[AnyStory], languages: list[str], longest: int = 300) -> Iterator[Row | Rejected]:
    """Every row of a `stories.jsonl` (blank lines are none) or of stories in memory. longest: characters of a sentence.

    Raises TresseError where the file cannot be read at all.
    """
    with _Seen() as seen:
        for number, content in _contents(stories, languages):
            id = None
            try:
                story = json.loads(content.decode("utf-8")) if isinstance(content, bytes) else content
                id, kind, sentences = _check(story, languages, longest)
                if not seen.add(id):
                    raise _Unusable(f"an earlier row has the same id {id}")
            except _Unusable as error:
                yield Rejected(number, id, str(error))
            except UnicodeDecodeError as error:
                yield Rejected(
                    number, None, f"not UTF-8: byte {error.start + 1} of the row is {error.object[error.start]:#x}"
                )
            except (ValueError, RecursionError) as error:
                yield Rejected(number, None, f"not JSON: {error}")
            else:
                yield Row(number, id, sentences, kind)


class _Unusable(Exception):
    """Why a row is rejected."""


def _contents(stories: Path | Iterable[AnyStory], languages: list[str]) -> Iterator[tuple[int, Any]]:
    """(number, bytes of a line | None where it is too long | decoded story)."""
    if not isinstance(stories, Path):
        for number, story in enumerate(stories, 1):
            told = {language: story.sentences[language] for language in languages if language in story.sentences}
            yield number, {"id": story.id, "sentences": told, "kind": getattr(story, "kind", STORY)}
        return
    try:
        with stories.open("rb") as file:
            number = 0
            while line := file.readline(LONGEST_ROW + 1):
                number += 1
                if len(line) > LONGEST_ROW:
                    while line and not line.endswith(b"\n"):
                        line = file.readline(LONGEST_ROW)
                    yield number, None
                    continue
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield number, line
    except OSError as error:
        raise TresseError(f"cannot read {stories} ({error.strerror}): give a .jsonl file of stories") from error


def _check(story: Any, languages: list[str], longest: int) -> tuple[str, str, dict[str, list[str]]]:
    """The id, the kind and the cleaned sentences of a row. Raises _Unusable."""
    if story is None:
        raise _Unusable(f"longer than {LONGEST_ROW} bytes")
    if not isinstance(story, dict) or not isinstance(story.get("sentences"), dict):
        raise _Unusable('not a story: give {"id", "sentences": {language: [...]}}')
    id = story.get("id")
    if not isinstance(id, str | int) or isinstance(id, bool) or not str(id).strip():
        raise _Unusable("no id")
    sentences = story["sentences"]
    for language in sentences:
        if language not in languages:
            raise _Unusable(f"unknown language {language!r}: known are {', '.join(languages)}")
    told = [language for language in languages if language in sentences]
    kind = story.get("kind") or STORY
    if kind not in (STORY, PAIRS):
        raise _Unusable(f"unknown kind {kind!r}: known are {STORY} and {PAIRS}")
    if not told:
        raise _Unusable(f"no sentences in {' or '.join(languages)}")
    if kind == PAIRS and (len(told) < len(languages) or len(told) < 2):
        raise _Unusable("pairs need all languages of the corpus, and two at least")
    for language in told:
        if not isinstance(sentences[language], list) or not all(isinstance(text, str) for text in sentences[language]):
            raise _Unusable(f"the sentences in {language} are not a list of texts")
    counts = {language: len(sentences[language]) for language in told}
    if len(set(counts.values())) != 1:
        shown = ", ".join(f"{count} in {language}" for language, count in counts.items())
        raise _Unusable(f"unequal numbers of sentences: {shown}")
    if not counts[told[0]]:
        raise _Unusable("no sentences")
    cleaned = {
        language: [
            _clean(text, f"sentence {i} in {language}", longest) for i, text in enumerate(sentences[language], 1)
        ]
        for language in told
    }
    return _unicode(str(id), "the id"), kind, cleaned


def _clean(text: str, where: str, longest: int) -> str:
    text = " ".join(plain(_unicode(text, where)).split())
    if not text:
        raise _Unusable(f"{where} is empty")
    if not any(letter.isalnum() for letter in text):
        raise _Unusable(f"{where} has no words")
    if len(text) > longest:
        raise _Unusable(f"{where} has {len(text)} characters: {longest} is the most")
    if any(unicodedata.category(letter) == "Cc" for letter in text):
        raise _Unusable(f"{where} has control characters")
    return text


def _unicode(text: str, where: str) -> str:
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # half a surrogate pair, which JSON can write
        raise _Unusable(f"{where} is not valid Unicode")
    return text


class _Seen:
    """A set of strings in a temporary file, which the system removes."""

    def __enter__(self) -> _Seen:
        self._table = sqlite3.connect("", isolation_level=None)
        self._table.execute("PRAGMA synchronous = OFF")
        self._table.execute("BEGIN")
        self._table.execute("CREATE TABLE ids (id TEXT PRIMARY KEY) WITHOUT ROWID")
        return self

    def __exit__(self, *_: object) -> None:
        self._table.close()

    def add(self, id: str) -> bool:
        """Whether it was not there yet."""
        return self._table.execute("INSERT OR IGNORE INTO ids VALUES (?)", (id,)).rowcount == 1
