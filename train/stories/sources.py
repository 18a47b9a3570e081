"""Sources of a corpus: files of stories, sentence pairs or running text, the written stories and the grammar, as rows.

A row is a `Story`: of stories a passage of five to eight sentences in all languages; of pairs three or four pairs, which
training tells side by side, each in both orders (six or eight sentences); of text a passage in its language. Text is
normalised here, once (`train.stories.normalise`). Rows come in a seeded order, and a row depends on nothing but the file and
the seed. What cannot be used is yielded too, with the reason. A file is read into lines by their offsets: what stays in
memory is 8 bytes a line, whatever its size (a compressed file is unpacked into a temporary one).

Rows of files, one JSON object a line, `.jsonl` or `.jsonl.gz`:
stories `{"sentences": {LANG: [...], ...}, "unit_scores": [...]?}`, pairs `{LANG: text, ...}`, text `{"lang": LANG, "text"}`.
"""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count, pairwise
from pathlib import Path
from typing import IO, Literal

import numpy as np

from slm.errors import TresseError
from train.stories.grammar import PAIRS, Cycles, Story, generate_stories, rng_for
from train.stories.names import vary_names
from train.stories.normalise import normalise, split_sentences, unspoken
from train.stories.sense import nonsense
from train.stories.written import SENTENCES, WrittenStory
from train.stories.written_cloze import splits

WRITTEN, GRAMMAR = "written", "grammar"
"""Names that stand for the project's own stories instead of a file."""
VALIDATION_SHARE = 20
"""Row k of a file of stories validates where k is a multiple of this."""
SPARE = 2
"""A cycle of the grammar draws so many times its stories, so that rejected ones can be replaced."""
LEFT_OVER = "fewer than 5 sentences in a row that can be used"
Split = Literal["train", "validation"]
SPLITS: tuple[Split, Split] = ("train", "validation")


@dataclass(frozen=True)
class Filters:
    """What is left out. score: units of parallel stories with a lower score (those without a score stay). vocabulary: rows
    of whose words the written stories know a smaller share. length: sentences with fewer or more words."""

    score: float | None = None
    vocabulary: float | None = None
    length: tuple[int, int] = (1, 40)


@dataclass(frozen=True)
class Source:
    """Where rows come from: `written`, `grammar`, or a file (relative to `stories.texts`), and what is in it.

    share: of the words of the corpus, relative to the other sources. rounds: how often a row may be used, in other voices.
    partial: stories that are told in some of the corpus' languages only stay, for modes that do not interleave. licence,
    name: for the model card, where the rows of the file do not say themselves.
    """

    file: str
    share: float
    kind: Literal["stories", "pairs", "text"] = "stories"
    filters: Filters = field(default_factory=Filters)
    rounds: int = 1
    partial: bool = False
    licence: str | None = None
    name: str | None = None

    @property
    def id(self) -> str:
        """The file's name without its endings: rows' ids begin with it."""
        return Path(self.file).name.partition(".")[0]

    @property
    def built_in(self) -> bool:
        """Whether it is the project's own."""
        return self.file in (WRITTEN, GRAMMAR)


@dataclass(frozen=True)
class Unused:
    """What a source's row could not give: the row's number or id, the reason, and how many sentences (of one language)."""

    row: str
    reason: str
    sentences: int = 1


@dataclass(frozen=True)
class Origin:
    """Who is to be named for a row: source, licence and, where the row says so, title and authors."""

    source: str
    licence: str
    credit: str = ""


Rows = Iterator[tuple[Story, Origin] | Unused]


def missing_files(sources: Sequence[Source], texts: Path) -> list[str]:
    """The files of sources that are not there."""
    return [source.file for source in sources if not source.built_in and not (texts / source.file).is_file()]


def read_source(
    source: Source,
    languages: Sequence[str],
    texts: Path,
    seed: int,
    split: Split = "train",
    cycles: Cycles | None = None,
) -> Rows:
    """The rows of a source in one split, in seeded order, round after round; of the grammar without end.

    cycles: of the grammar. Raises TresseError for a file that holds something else than its kind.
    """
    if source.file == GRAMMAR:
        own = Origin("Tresse, generated stories", "Apache-2.0")
        for story in generate_stories(seed, 10**9, split, cycles=cycles):
            if why := nonsense(story):
                yield Unused(story.id, f"makes no sense: {why}", len(story.told_in("en")))
            else:
                yield from _told([replace(story, source=source.id)], own, source, languages, story.id)
        return
    number_of = zlib.crc32(source.id.encode())
    with tempfile.TemporaryFile() as temporary:
        lines = _Lines(source, texts, temporary) if not source.built_in else None
        written = splits()[split] if lines is None else ()
        for turn in range(source.rounds):
            order = np.random.default_rng([seed, number_of, turn]).permutation(len(written) or len(lines or ()))
            again = f"-round{turn + 1}" if turn else ""
            if lines is None:
                rows = _written((written[number] for number in order), source, languages)
            elif source.kind == "pairs":
                rows = _pairs(source, lines, order if split == "train" else order[:0], languages, seed)
            else:
                rows = _passages(source, lines, [int(k) for k in order if _in_split(source, int(k), split)], languages)
            for row in rows:
                yield row if isinstance(row, Unused) else (replace(row[0], id=row[0].id + again), row[1])


def _in_split(source: Source, number: int, split: Split) -> bool:
    if source.kind != "stories":
        return split == "train"
    return (number % VALIDATION_SHARE == 0) == (split == "validation")


class _Lines:
    """The rows of a file by number, read where they lie."""

    def __init__(self, source: Source, texts: Path, temporary: IO[bytes]) -> None:
        self.path = texts / source.file
        try:
            with gzip.open(self.path) if self.path.suffix == ".gz" else self.path.open("rb") as lines:
                shutil.copyfileobj(lines, temporary)
        except (OSError, EOFError, zlib.error) as error:
            raise TresseError(f"cannot read {self.path} ({error}): give a .jsonl or .jsonl.gz file") from error
        temporary.seek(0)
        self._file = temporary
        lengths = np.fromiter(map(len, temporary), np.int64)
        self._starts = np.cumsum(lengths) - lengths

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> dict:
        self._file.seek(int(self._starts[number]))
        try:
            row = json.loads(self._file.readline())
            if not isinstance(row, dict):
                raise ValueError
            return row
        except ValueError:
            raise TresseError(f"{self.path}, line {number + 1}: write one JSON object a line") from None


def _written(stories: Iterator[WrittenStory], source: Source, languages: Sequence[str]) -> Rows:
    own = Origin("Tresse, written stories", "Apache-2.0")
    for story in stories:
        row = Story(f"written-{story.id}", dict(story.sentences), source=source.id)
        yield from _told([row], own, source, languages, story.id)


def _told(rows: Sequence[Story], origin: Origin, source: Source, languages: Sequence[str], number: str) -> Rows:
    """Rows in the corpus' languages that pass the filters on whole rows and on the sentences of the project's own."""
    for row in rows:
        sentences = {language: row.sentences[language] for language in languages if language in row.sentences}
        missing = [language for language in languages if language not in sentences]
        size = max(map(len, row.sentences.values()))
        if (missing and source.kind != "text" and not source.partial) or not sentences:
            yield Unused(number, f"not told in {missing[0]}", size)
        elif row.kind != PAIRS and (fault := _strange(sentences, source.filters)):
            yield Unused(number, fault, size)
        else:
            yield replace(row, sentences=sentences), origin


def _fault(texts: Mapping[str, str], filters: Filters) -> str | None:
    """Why an aligned unit of normalised texts, by language, cannot be used."""
    for text in texts.values():
        if (sign := unspoken(text)) is not None:
            return f"a character that is not spoken: {sign}"
        if not filters.length[0] <= len(text.split()) <= filters.length[1]:
            return f"not {filters.length[0]} to {filters.length[1]} words in a sentence"
    return None


def _pairs(source: Source, lines: _Lines, order: np.ndarray, languages: Sequence[str], seed: int) -> Rows:
    """Three or four pairs a row, their names varied."""
    waiting: list[dict[str, str]] = []
    origin, first, wanted = Origin(source.name or source.id, source.licence or "not named"), 0, 0
    for number in map(int, order):
        row = lines[number]
        missing = [language for language in languages if not isinstance(row.get(language), str)]
        if missing:
            yield Unused(str(number + 1), f"not told in {missing[0]}")
            continue
        pair = {language: normalise(row[language], language) for language in languages}
        fault = _fault(pair, source.filters)
        if fault or (fault := _strange({language: [text] for language, text in pair.items()}, source.filters)):
            yield Unused(str(number + 1), fault)
            continue
        rng = rng_for("pairs", seed, source.id, number)
        if not waiting:
            first, wanted, origin = number + 1, rng.choice([3, 4]), _origin(row, source)
        waiting.append(vary_names(pair, rng))
        if len(waiting) == wanted:
            sentences = {language: [pair[language] for pair in waiting] for language in languages}
            together = Story(f"{source.id}-{first}", sentences, kind=PAIRS, source=source.id)
            yield from _told([together], origin, source, languages, str(first))
            waiting = []
    if waiting:
        yield Unused(str(first), "too few pairs left for a row", len(waiting))


def _passages(source: Source, lines: _Lines, order: Sequence[int], languages: Sequence[str]) -> Rows:
    """Passages of stories in several languages, or of text in one."""
    for number in order:
        row = lines[number]
        name = str(number + 1)
        units, scores = _units(source, row, languages, f"{lines.path}, line {name}")
        if not units:
            yield Unused(
                name,
                "not told in all languages"
                if source.kind == "stories" and not source.partial
                else "in no language of the corpus",
            )
            continue
        runs: list[list[dict[str, str]]] = [[]]
        for unit, score in zip(units, scores, strict=True):
            fault = _fault(unit, source.filters)
            if score is not None and source.filters.score is not None and score < source.filters.score:
                fault = f"a score below {source.filters.score:g}"
            if fault is None:
                runs[-1].append(unit)
            else:
                yield Unused(name, fault)
                runs.append([])
        numbers = count(1)
        for run in runs:
            passages = cut(run)
            if left := len(run) - sum(map(len, passages)):
                yield Unused(name, LEFT_OVER, left)
            rows = [
                Story(
                    f"{source.id}-{name}-{next(numbers)}",
                    {language: [unit[language] for unit in passage] for language in passage[0]},
                    source=source.id,
                )
                for passage in passages
            ]
            yield from _told(rows, _origin(row, source), source, languages, name)


def _units(
    source: Source, row: dict, languages: Sequence[str], where: str
) -> tuple[list[dict[str, str]], Sequence[float | None]]:
    """The normalised aligned units of a row, by language, and their scores; none where it has no language of the corpus."""
    if source.kind == "text":
        language = row.get("lang") or row.get("language")
        if not isinstance(row.get("text"), str) or not isinstance(language, str):
            raise TresseError(f'{where}: not a text: give {{"lang", "text"}}, or another kind of source')
        if language not in languages:
            return [], []
        units = [{language: text} for text in split_sentences(normalise(row["text"], language))]
        return units, [None] * len(units)
    told = row.get("sentences")
    if not isinstance(told, dict) or len({len(texts) for texts in told.values()}) != 1:
        raise TresseError(f"{where}: not a story: give sentences, as many in each language, or another kind of source")
    if not source.partial and any(language not in told for language in languages):
        return [], []
    languages = [language for language in languages if language in told]
    if not languages:
        return [], []
    aligned = zip(*(told[language] for language in languages), strict=True)
    units = [
        {language: normalise(text, language) for language, text in zip(languages, unit, strict=True)}
        for unit in aligned
    ]
    scores = row.get("unit_scores") or [None] * len(units)
    if len(scores) != len(units):
        raise TresseError(f"{where}: {len(scores)} unit_scores for {len(units)} sentences: give as many")
    return units, scores


def _origin(row: dict, source: Source) -> Origin:
    title = row.get("title")
    title = next(iter(title.values()), "") if isinstance(title, dict) else title or ""
    # of stories `text` and `translation` are their authors
    authors = [row.get("text"), row.get("translation")] if source.kind == "stories" else []
    credit = ", ".join(str(part) for part in (title, *authors) if part)
    return Origin(
        str(row.get("source") or source.name or source.id),
        str(row.get("licence") or source.licence or "not named"),
        credit,
    )


def cut(units: Sequence[dict[str, str]]) -> list[Sequence[dict[str, str]]]:
    """Passages of five to eight of them in a row, of about equal size; what does not fill one more is left out."""
    least, most = SENTENCES[0], SENTENCES[-1]
    passages = -(-len(units) // most)
    if passages * least > len(units):  # nine are eight and one left over; four are none
        passages -= 1
    size = min(len(units), passages * most)
    bounds = [size * k // passages for k in range(passages + 1)] if passages else [0]
    return [units[start:end] for start, end in pairwise(bounds)]


@cache
def _vocabulary(language: str) -> frozenset[str]:
    """The words of the written training stories."""
    return frozenset(
        word for story in splits()["train"] for text in story.sentences.get(language, ()) for word in _plain(text)
    )


def _plain(text: str) -> list[str]:
    return [word for word in "".join(c if c.isalnum() else " " for c in text.lower()).split() if word]


def _strange(sentences: Mapping[str, Sequence[str]], filters: Filters) -> str | None:
    """Why a row's words keep it out: in one of its languages the written stories know too few of them."""
    if filters.vocabulary is None:
        return None
    for language, texts in sentences.items():
        words, known = _plain(" ".join(texts)), _vocabulary(language)
        if sum(word in known for word in words) < filters.vocabulary * len(words):
            return f"fewer than {filters.vocabulary:.0%} of its words are known"
    return None
