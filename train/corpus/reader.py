"""Anyone's parallel stories, row by row: what can be used goes on, what cannot is named with its row and the reason.

`stories.jsonl` holds one `{"id", "sentences": {"en": [...], "fr": [...]}}` a line; a row may be told in one of the languages
only, and `"kind": "pairs"` says that its sentences have only their translations in common. Nothing is held in memory but
the row at hand: ids that occurred already are kept in a temporary file.
"""

from __future__ import annotations

import gzip
import json
import sqlite3
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

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


class Segment(NamedTuple):
    """A stretch of a recording: the line that names it, and s from the beginning; end None: that of the recording."""

    row: int
    start: float
    end: float | None


@dataclass(frozen=True)
class Recorded:
    """Segments of one recording, in the order of time, and the size of its file in bytes."""

    audio: Path
    bytes: int
    language: str
    speaker: str
    segments: tuple[Segment, ...]

    def seconds(self, unknown: float) -> float:
        """s of all segments; unknown: s of those whose end is not known."""
        return sum(unknown if part.end is None else part.end - part.start for part in self.segments)


@dataclass(frozen=True)
class Row:
    """A usable row: its number (from 1), and a story with one list of sentences for each language that it is told in.

    kind: `pairs` where the sentences have only their translations in common (train.stories.grammar). recorded: what is
    encoded instead of sentences."""

    number: int
    id: str
    sentences: dict[str, list[str]]
    kind: str = STORY
    recorded: Recorded | None = None


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
    with Seen() as seen:
        for number, content in _contents(stories, languages):
            id = None
            try:
                story = json.loads(content.decode("utf-8")) if isinstance(content, bytes) else content
                id, kind, sentences = _check(story, languages, longest)
                if not seen.add(id):
                    raise Unusable(f"an earlier row has the same id {id}")
            except Unusable as error:
                yield Rejected(number, id, str(error))
            except UnicodeDecodeError as error:
                yield Rejected(
                    number, None, f"not UTF-8: byte {error.start + 1} of the row is {error.object[error.start]:#x}"
                )
            except (ValueError, RecursionError) as error:
                yield Rejected(number, None, f"not JSON: {error}")
            else:
                yield Row(number, id, sentences, kind)


class Unusable(Exception):
    """Why a row is rejected."""


def raw_lines(path: Path, mend: str) -> Iterator[tuple[int, bytes | None]]:
    """(number from 1, bytes) of the lines of a file, or of a .gz, that are not blank; None for one that is too long.

    Raises TresseError, which ends with `mend`, where the file cannot be read.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
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
    except (OSError, EOFError, zlib.error) as error:
        raise TresseError(f"cannot read {path} ({getattr(error, 'strerror', None) or error}): {mend}") from error


def _contents(stories: Path | Iterable[AnyStory], languages: list[str]) -> Iterator[tuple[int, Any]]:
    """(number, bytes of a line | None where it is too long | decoded story)."""
    if not isinstance(stories, Path):
        for number, story in enumerate(stories, 1):
            told = {language: story.sentences[language] for language in languages if language in story.sentences}
            yield number, {"id": story.id, "sentences": told, "kind": getattr(story, "kind", STORY)}
        return
    yield from raw_lines(stories, "give a .jsonl file of stories")


def _check(story: Any, languages: list[str], longest: int) -> tuple[str, str, dict[str, list[str]]]:
    """The id, the kind and the cleaned sentences of a row. Raises Unusable."""
    if story is None:
        raise Unusable(f"longer than {LONGEST_ROW} bytes")
    if not isinstance(story, dict) or not isinstance(story.get("sentences"), dict):
        raise Unusable('not a story: give {"id", "sentences": {language: [...]}}')
    id = story.get("id")
    if not isinstance(id, str | int) or isinstance(id, bool) or not str(id).strip():
        raise Unusable("no id")
    sentences = story["sentences"]
    for language in sentences:
        if language not in languages:
            raise Unusable(f"unknown language {language!r}: known are {', '.join(languages)}")
    told = [language for language in languages if language in sentences]
    kind = story.get("kind") or STORY
    if kind not in (STORY, PAIRS):
        raise Unusable(f"unknown kind {kind!r}: known are {STORY} and {PAIRS}")
    if not told:
        raise Unusable(f"no sentences in {' or '.join(languages)}")
    if kind == PAIRS and (len(told) < len(languages) or len(told) < 2):
        raise Unusable("pairs need all languages of the corpus, and two at least")
    for language in told:
        if not isinstance(sentences[language], list) or not all(isinstance(text, str) for text in sentences[language]):
            raise Unusable(f"the sentences in {language} are not a list of texts")
    counts = {language: len(sentences[language]) for language in told}
    if len(set(counts.values())) != 1:
        shown = ", ".join(f"{count} in {language}" for language, count in counts.items())
        raise Unusable(f"unequal numbers of sentences: {shown}")
    if not counts[told[0]]:
        raise Unusable("no sentences")
    cleaned = {
        language: [
            _clean(text, f"sentence {i} in {language}", longest) for i, text in enumerate(sentences[language], 1)
        ]
        for language in told
    }
    return valid_unicode(str(id), "the id"), kind, cleaned


def _clean(text: str, where: str, longest: int) -> str:
    text = " ".join(plain(valid_unicode(text, where)).split())
    if not text:
        raise Unusable(f"{where} is empty")
    if not any(letter.isalnum() for letter in text):
        raise Unusable(f"{where} has no words")
    if len(text) > longest:
        raise Unusable(f"{where} has {len(text)} characters: {longest} is the most")
    if any(unicodedata.category(letter) == "Cc" for letter in text):
        raise Unusable(f"{where} has control characters")
    return text


def valid_unicode(text: str, where: str) -> str:
    """The text. Raises Unusable where it cannot be written."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # half a surrogate pair, which JSON can write
        raise Unusable(f"{where} is not valid Unicode")
    return text


class Seen:
    """A set of strings in a temporary file, which the system removes."""

    def __enter__(self) -> Seen:
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
