"""A corpus mixed from sources by words, before there is any speech: an hour of speech is about 9,000 words.

The next row is always of the source that has given the least of its share, so every beginning of the mixture has the shares
that were asked for, and a larger corpus begins with a smaller one. A source that has no rows left drops out, and no other
fills its share: the corpus is then smaller than asked for, and the report says so. Rows that share eight words in a row
with a benchmark are left out (`train.stories.decontamination`). Everything is a pure function of (sources, files, seed);
making it anew takes less than speaking a thousandth of it, so a killed run just mixes again.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from slm.errors import TresseError
from train.stories.data import LANGUAGES
from train.stories.decontamination import GENERATED, Overlap, benchmarks
from train.stories.grammar import Cycles, Story, write_stories
from train.stories.held_out import StoriesSettings
from train.stories.sources import (
    GRAMMAR,
    SPARE,
    SPLITS,
    Origin,
    Rows,
    Source,
    Split,
    Unused,
    missing_files,
    read_source,
)
from train.tools.checkpoints import write_json

NAMED = 20
"""Rows that are named for each reason."""
WORDS_AN_HOUR = 9000
EXAMPLES = (1, 101, 201)
"""Rows of a source that are kept as examples."""


@dataclass
class Given:
    """What a source gave: rows, sentences and words by language, origins with their rows and credits, and by reason the
    rows and sentences that could not be used."""

    source: Source
    rows: int = 0
    sentences: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)
    origins: dict[tuple[str, str], int] = field(default_factory=dict)
    credits: dict[str, None] = field(default_factory=dict)
    rejected: dict[str, tuple[dict[str, None], int]] = field(default_factory=dict)
    overlaps: Counter[str] = field(default_factory=Counter)
    examples: list[Story] = field(default_factory=list)
    ended: bool = False

    @property
    def progress(self) -> float:
        """Words given, in units of the share asked for."""
        return self.words.total() / self.source.share

    def add(self, story: Story, origin: Origin) -> None:
        """Count a row."""
        self.rows += 1
        for language, texts in story.sentences.items():
            self.sentences[language] += len(texts)
            self.words[language] += sum(len(text.split()) for text in texts)
        key = (origin.source, origin.licence)
        self.origins[key] = self.origins.get(key, 0) + 1
        if origin.credit:
            self.credits[origin.credit] = None
        if self.rows in EXAMPLES:
            self.examples.append(story)

    def reject(self, unused: Unused) -> None:
        """Count what could not be used."""
        rows, sentences = self.rejected.get(unused.reason, ({}, 0))
        rows[unused.row] = None
        self.rejected[unused.reason] = rows, sentences + unused.sentences

    def summary(self, share: float) -> dict[str, Any]:
        """As it stands in sources.json. share: of the words of the whole corpus."""
        return {
            "file": self.source.file,
            "kind": self.source.kind,
            "share": round(share, 4),
            "rows": self.rows,
            "sentences": dict(self.sentences),
            "words": dict(self.words),
            "exhausted": self.ended,
            "origins": [
                {"source": source, "licence": licence, "rows": rows} for (source, licence), rows in self.origins.items()
            ],
            "credits": list(self.credits),
            "rejected": {
                reason: {"rows": len(rows), "sentences": sentences, "first": list(islice(rows, NAMED))}
                for reason, (rows, sentences) in sorted(self.rejected.items())
            },
            "overlapping": dict(self.overlaps),
        }


class Mixture:
    """The rows of a corpus. Iterated once; `given` counts along.

    words: of all languages together, at most. texts: the folder of the sources' files. cycles: of the grammar, whose stories
    stand in a row cycle by cycle; while other sources give rows, cycles begin where voices do, at multiples of their length.
    Raises TresseError for sources that cannot be mixed.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        languages: Sequence[str],
        texts: Path,
        *,
        words: int,
        seed: int,
        split: Split = "train",
        cycles: Cycles | None = None,
        overlap: Overlap | None = None,
    ) -> None:
        check_sources(sources, languages, texts)
        self.languages, self.texts, self.seed, self.split, self.limit = languages, texts, seed, split, words
        self.cycles = cycles or Cycles()
        self.overlap = benchmarks() if overlap is None else overlap
        self.given = [Given(source) for source in sources]
        self._rows = [self._usable(given) for given in self.given]

    def __iter__(self) -> Iterator[Story]:
        target = self.limit / max(1e-9, sum(given.source.share for given in self.given))
        position = 0
        while True:
            left = [k for k, given in enumerate(self.given) if not given.ended and given.progress < target]
            if not left:
                return
            aligned = position % self.cycles.stories == 0
            fitting = [k for k in left if aligned or self.given[k].source.file != GRAMMAR] or left
            chosen = min(fitting, key=lambda k: self.given[k].progress)
            block = self.cycles.stories if self.given[chosen].source.file == GRAMMAR else 1
            for story, origin in islice(self._rows[chosen], block):
                self.given[chosen].add(story, origin)
                position += 1
                yield story

    def _usable(self, given: Given) -> Iterator[tuple[Story, Origin]]:
        source = given.source
        drawn = SPARE * self.cycles.stories if self.cycles.stories > 1 else 1
        cycles = Cycles(drawn, self.cycles.values, self.cycles.wordings)
        rows = read_source(source, self.languages, self.texts, self.seed, self.split, cycles)
        yield from (
            _cycles(self._clean(rows, given), self.cycles.stories)
            if source.file == GRAMMAR
            else (row for row in self._clean(rows, given) if row is not None)
        )
        given.ended = True

    def _clean(self, rows: Rows, given: Given) -> Iterator[tuple[Story, Origin] | None]:
        """The rows that share nothing with the benchmarks; None in place of the others."""
        exempt = GENERATED if given.source.file == GRAMMAR else None
        for row in rows:
            if isinstance(row, Unused):
                given.reject(row)
                yield None
            elif shared := self.overlap.of(row[0].sentences, exempt):
                given.overlaps.update(shared.keys())
                size = max(map(len, row[0].sentences.values()))
                given.reject(Unused(row[0].id, "shares eight words in a row with a benchmark", size))
                yield None
            else:
                yield row

    def report(self) -> dict[str, Any]:
        """What sources.json says: words, hours of speech by rule of thumb, every source, and what is left in common with
        the benchmarks' runs of eight words (0 in every row that was yielded)."""
        words = sum(given.words.total() for given in self.given)
        return {
            "words": words,
            "asked": self.limit,
            "hours": round(words / WORDS_AN_HOUR, 1),
            "rejected_for_overlap": {
                name: sum(given.overlaps[name] for given in self.given) for name in self.overlap.names
            },
            "sources": {
                given.source.id: given.summary(given.words.total() / max(1, words))
                | {"sha256": _digest(self.texts / given.source.file) if not given.source.built_in else None}
                for given in self.given
            },
        }


def write_mixture(settings: StoriesSettings, languages: Sequence[str], seed: int, folder: Path) -> dict[str, Any]:
    """Write train.jsonl, sources.json (what it says is returned) and, from the sources that have stories of their own to
    validate on, validation.jsonl. Raises TresseError where no row can be used."""
    train, validation = (mixture_of(settings, languages, seed, split) for split in SPLITS)
    write_stories(folder / "validation.jsonl", islice(validation, settings.validation))
    write_stories(folder / "train.jsonl", train)
    report = train.report()
    if not report["words"]:
        raise TresseError("stories.sources: no row can be used: loosen the filters, or give other files")
    write_json(folder / "sources.json", report)
    return report


def mixture_of(
    settings: StoriesSettings,
    languages: Sequence[str],
    seed: int,
    split: Split = "train",
    overlap: Overlap | None = None,
) -> Mixture:
    """The mixture of a recipe's stories. Only kinds of sources that hold stories validate."""
    return Mixture(
        [source for source in settings.sources if split == "train" or source.kind == "stories"],
        languages,
        settings.texts_folder,
        words=settings.words,
        seed=seed,
        split=split,
        cycles=settings.cycles if split == "train" else None,
        overlap=overlap,
    )


def _cycles(rows: Iterator[tuple[Story, Origin] | None], stories: int) -> Iterator[tuple[Story, Origin]]:
    """Of every cycle that was drawn the first `stories` rows that can be used; none where there are fewer."""
    while drawn := list(islice(rows, SPARE * stories if stories > 1 else 1)):
        usable = [row for row in drawn if row is not None]
        if len(usable) >= stories:
            yield from usable[:stories]


def check_sources(sources: Sequence[Source], languages: Sequence[str], texts: Path) -> None:
    """Raises TresseError for sources that cannot be mixed, and for files that are not there."""
    ids = [source.id for source in sources]
    for source in sources:
        if source.share <= 0 or source.rounds < 1:
            raise TresseError(f"stories.sources: {source.id} needs a share above 0 and one round at least")
        if ids.count(source.id) > 1:
            raise TresseError(f"stories.sources: {source.id} is there twice: give one of them another file name")
        if source.kind == "pairs" and len(languages) < 2:
            raise TresseError(f"stories.sources: {source.id} needs two languages: leave out pairs")
        unknown = [language for language in languages if language not in LANGUAGES]
        if source.file == GRAMMAR and unknown and (not source.partial or len(unknown) == len(languages)):
            raise TresseError(
                f"stories.sources: the grammar tells nothing in {unknown[0]}: leave it out"
                + ("" if len(unknown) == len(languages) else ", or set its partial to true")
            )
        if source.built_in and source.kind != "stories":
            raise TresseError(f"stories.sources: {source.id} is of kind stories, not {source.kind}")
    if missing := missing_files(sources, texts):
        raise TresseError(
            f"stories.sources: {texts} lacks {', '.join(missing)}: set stories.texts, or TRESSE_TEXTS, to their folder"
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def texts_of(report: Path) -> dict[str, Any]:
    """`texts` of a bundle's provenance: by source its origins with their licences, words, and who is to be credited; {}
    where there is no sources.json, as for generated stories."""
    if not report.exists():
        return {}
    sources = json.loads(report.read_text(encoding="utf-8"))["sources"]
    shown = ("origins", "words", "credits")
    return {"texts": {name: {key: source[key] for key in shown} for name, source in sources.items() if source["rows"]}}


def describe(report: dict[str, Any]) -> str:
    """The report in a few lines: shares, hours, and what was rejected for its overlap with benchmarks."""
    lines = [
        f"{report['words']:,} words, about {report['hours']:g} h of speech a voice, of {report['asked']:,} asked for"
    ]
    for name, source in report["sources"].items():
        unused = sum(reason["rows"] for reason in source["rejected"].values())
        ended = ", all there is" if source["exhausted"] else ""
        lines.append(
            f"  {name}: {source['share']:.1%}, {source['rows']:,} rows{ended}; {unused:,} rejected in part or whole"
        )
    shared = ", ".join(f"{count} with {name}" for name, count in report["rejected_for_overlap"].items())
    return "\n".join([*lines, f"rejected for eight words in a row in common: {shared}"])
