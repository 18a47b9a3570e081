"""Recordings of any length as rows of a corpus: a manifest names their segments, one a line.

    {"audio": "chapter-1.flac", "start": 3.2, "end": 9.9, "language": "en", "speaker": "anna"}

Segments that follow each other in the manifest, of one recording, language and speaker, are a row of the corpus, each as a
sentence. Without start and end the whole file is a segment; without a speaker the file is its own. Cuts of lhotse (JSONL,
also .gz) are read too: each supervision is a segment. A line that cannot be used is left out and named.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm.audio import MIN_SECONDS
from train.corpus.reader import Recorded, Rejected, Row, Seen, Segment, Unusable, raw_lines, valid_unicode

ROUNDING = 1e-6
"""s by which the difference of two times may be off: 3.3 - 3.0 is less than 0.3."""


@dataclass(frozen=True)
class Manifest:
    """A manifest. Paths of recordings count from its folder, else from where the command is run.

    language: of all segments, whatever its lines say. longest: s of a segment. hours: of speech a shard, about.
    """

    path: Path
    language: str | None = None
    longest: float = 60.0
    hours: float = 2.0

    def rows(self, languages: list[str]) -> Iterator[Row | Rejected]:
        """Rows in the order of the manifest, and lines that cannot be used. Nothing is decoded.

        Raises TresseError where the manifest cannot be read at all.
        """
        groups = _Groups(self)
        with Seen() as seen:
            for number, line in raw_lines(self.path, "give a .jsonl file of segments"):
                try:
                    for told in self._told(line, languages):
                        if not seen.add(f"{told.audio} {told.start:.3f}"):
                            raise Unusable("an earlier line has a segment of this recording that begins there")
                        yield from groups.add(number, told)
                except Unusable as error:
                    yield Rejected(number, None, str(error))
                except UnicodeDecodeError:
                    yield Rejected(number, None, "not UTF-8")
                except (ValueError, RecursionError) as error:
                    yield Rejected(number, None, f"not JSON: {error}")
        yield from groups.rest()

    def _told(self, line: bytes | None, languages: list[str]) -> list[_Told]:
        """The segments of a line, checked. Raises Unusable."""
        if line is None:
            raise Unusable("the line is too long")
        row = json.loads(line.decode("utf-8"))
        if not isinstance(row, dict):
            raise Unusable('not a segment: give {"audio", "start", "end", "language", "speaker"}')
        told = []
        for part in _supervisions(row) if "recording" in row else [row]:
            audio, language, speaker = part.get("audio"), self.language or part.get("language"), part.get("speaker")
            if not isinstance(audio, str) or not audio:
                raise Unusable("no audio: give the path of the recording")
            if language not in languages:
                raise Unusable(f"unknown language {language!r}: known are {', '.join(languages)}")
            start, end = _seconds(part, "start") or 0.0, _seconds(part, "end")
            if end is not None and end - start < MIN_SECONDS - ROUNDING:
                raise Unusable(f"from {start:g} to {end:g} s: a segment lasts {MIN_SECONDS} s or more")
            if end is not None and end - start > self.longest + ROUNDING:
                raise Unusable(f"lasts {end - start:.0f} s: {self.longest:g} s is the most, give shorter segments")
            speaker = valid_unicode(str(speaker or Path(audio).stem), "the speaker")
            told.append(_Told(valid_unicode(audio, "the path"), start, end, str(language), speaker))
        return told

    def find(self, audio: str) -> Path:
        """The file of a recording, which need not be there."""
        beside = self.path.parent / audio
        return beside if beside.exists() else Path(audio)


@dataclass(frozen=True)
class _Told:
    """A segment as a line tells it."""

    audio: str
    start: float
    end: float | None
    language: str
    speaker: str


class _Groups:
    """Segments that follow each other as rows."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._of: _Told | None = None
        """The last segment."""
        self._path, self._bytes = Path(), 0
        self._segments: list[Segment] = []

    def add(self, number: int, told: _Told) -> Iterator[Row]:
        """Take a segment; the row before it where it begins another. Raises Unusable where there is no such recording."""
        last = self._of
        if last is None or told.audio != last.audio:
            path = self.manifest.find(told.audio)
            try:
                size = path.stat().st_size
            except (OSError, ValueError):
                raise Unusable(f"no such file: {told.audio}") from None
        else:
            path, size = self._path, self._bytes
        same = last is not None and (told.audio, told.language, told.speaker) == (
            last.audio,
            last.language,
            last.speaker,
        )
        if not (same and last is not None and told.start >= last.start):
            yield from self.rest()
        self._of, self._path, self._bytes = told, path, size
        self._segments.append(Segment(number, told.start, told.end))

    def rest(self) -> Iterator[Row]:
        """The last row."""
        if self._of is not None and self._segments:
            first, told = self._segments[0], self._of
            recorded = Recorded(self._path, self._bytes, told.language, told.speaker, tuple(self._segments))
            yield Row(first.row, f"{told.audio}@{first.start:.3f}", {}, recorded=recorded)
        self._segments = []


def _seconds(row: dict[str, Any], name: str) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise Unusable(f"{name} is {value!r}: give seconds from the beginning of the recording")
    return float(value)


def _supervisions(cut: dict[str, Any]) -> list[dict[str, Any]]:
    """The segments of a lhotse cut: its supervisions, or, without any, itself. Raises Unusable for what is no MonoCut."""
    try:
        sources = [source["source"] for source in cut["recording"]["sources"] if source["type"] == "file"]
        if cut.get("type", "MonoCut") != "MonoCut" or len(sources) != 1:
            raise Unusable("give cuts of one recording (MonoCut) that is one file")
        parts = cut.get("supervisions") or [{"start": 0.0, "duration": cut["duration"]}]
        begin, end = float(cut["start"]), float(cut["start"]) + float(cut["duration"])
        return [
            {
                "audio": sources[0],
                "start": max(begin, begin + float(part["start"])),
                "end": min(end, begin + float(part["start"]) + float(part["duration"])),
                "language": part.get("language"),
                "speaker": part.get("speaker"),
            }
            for part in parts
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unusable(f"not a cut of lhotse ({error})") from error
