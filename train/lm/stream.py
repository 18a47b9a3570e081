"""From a unit corpus to packed batches: an endless stream of rows, stories shuffled and interleaved anew each epoch.

Row r of a stream belongs to lane r % lanes, and every lane packs documents of its own: of all documents of all epochs, in
the order of a shuffle by seed and epoch, lane k of n has each n-th. With as many lanes as a step has rows, a process plans
the rows that it trains on and no others, and the batch of a step does not depend on how many processes there are. A lane
reads a few hundred documents at a time (a *plan* of about 32 rows); pieces that do not fill its last row begin the next.

Everything is a pure function of (corpus, settings, row number). Where a plan begins depends on those before it, so that a
row is reached by walking there, or from a *position* that was saved: (lane, number of the plan, its first row, the pieces
that it begins with). Cost: a few ms a plan, which holds about 100 KB; one core feeds some million units a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from slm.errors import TresseError
from slm.interleave import MAX_SENTENCES, MIXED, MONOLINGUAL, RETELLING, Mode
from train.lm.corpus import TokenCorpus
from train.lm.draws import languages_at, permuted
from train.lm.packing import IGNORE, PackedBatch, pack
from train.lm.tokenise import PAIRED

PLAN_ROWS, PLAN_DOCUMENTS = 32, (16, 4096)
"""A plan reads documents for about so many rows; at least and at most so many."""
ORDER = 2
"""Version of what is drawn: a checkpoint of another goes on with other rows than it would have had."""
Counts = tuple[np.ndarray, int]
"""What rows hold: (int64 [2, languages]: units and tokens, number of targets). A document counts where it opens."""


@dataclass(frozen=True)
class _Documents:
    """Documents of a plan, D of them. parts int64 [D]; first int64 [D + 1], where each begins among the sentences;
    languages int64 [tellings, sentences]; places int64 [tellings, sentences, 2]; inputs int64 [D], their positions; counts
    int64 [D, 2, languages]."""

    parts: np.ndarray
    first: np.ndarray
    languages: np.ndarray
    places: np.ndarray
    inputs: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class _Plan:
    """Rows `first` and on of a lane. began, left: pieces (number of the document, first position) taken over from the plan
    before, and left to the next. pieces int64 [pieces, 3]: document of the plan, first position, positions."""

    number: int
    first: int
    began: list[tuple[int, int]]
    documents: _Documents
    pieces: np.ndarray
    rows: list[list[int]]
    left: list[tuple[int, int]]
    counts: np.ndarray  # [rows, 2, languages]
    targets: np.ndarray  # [rows]

    @property
    def end(self) -> int:
        return self.first + len(self.rows)


def _cut(inputs: np.ndarray, length: int, first: int = 0, begun: Sequence[tuple[int, int]] = ()) -> np.ndarray:
    """Pieces of at most `length` positions (document, first position, positions), int64 [pieces, 3]: those that are begun,
    and all of the documents from `first` on. inputs: positions of each document."""
    counts = -(-inputs[first:] // length)
    of = np.repeat(np.arange(len(counts)), counts)
    part = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
    pieces = np.r_[np.asarray(begun, np.int64).reshape(-1, 2), np.c_[of + first, part * length]]
    return np.c_[pieces, np.minimum(inputs[pieces[:, 0]] - pieces[:, 1], length)]


class PackedStream:
    """The endless rows of one mode: row r is the same whoever asks, and whenever.

    mode, weights: see slm.interleave. first_epoch: the number of the first epoch drawn. lanes: rows that follow each other
    come from so many independent packings. Not for several threads at once.
    """

    def __init__(
        self,
        corpus: TokenCorpus,
        mode: Mode | str,
        *,
        row_length: int,
        seed: int,
        first_epoch: int = 0,
        weights: tuple[float, ...] | None = None,
        lanes: int = 1,
    ) -> None:
        """Raises TresseError where the mode tells no story of the corpus."""
        self.mode = Mode.parse(mode, corpus.languages) if isinstance(mode, str) else mode
        stories, _, tokens = corpus.sums(self.mode, weights)
        corpus = corpus.served(self.mode, weights)
        if not len(corpus):
            raise TresseError(f"there is no story that the mode {self.mode} tells: prepare a larger corpus")
        self.corpus, self.row_length, self.seed, self.first_epoch = corpus, row_length, seed, first_epoch
        self.weights, self.lanes = weights, lanes
        self._shares = None if weights is None else np.asarray(weights, dtype=float) / sum(weights)
        self._mean = self.mode.tellings * (int(tokens.sum()) / max(1, stories * len(corpus.languages)) + 2)
        self.documents_per_plan = int(np.clip(PLAN_ROWS * row_length / self._mean, *PLAN_DOCUMENTS))
        self._plans: dict[int, _Plan] = {}  # the last of each lane
        self._positions: dict[int, tuple[int, int, list[tuple[int, int]]]] = {}

    def _languages(self, numbers: np.ndarray, epochs: np.ndarray, masks: np.ndarray, first: np.ndarray) -> np.ndarray:
        """The language of every sentence of stories, int64 [tellings, sentences].

        As `draw_languages` says, but that pairs are told side by side, the language that comes first being drawn, and that
        a story whose language is drawn for it as a whole is told in one that it has.
        """
        count, sizes = len(self.corpus.languages), np.diff(first)
        if self.mode.name == MONOLINGUAL:
            language = self.corpus.languages.index(str(self.mode.language))
            return np.full((1, first[-1]), language, np.int64)
        if self.mode.name == MIXED:
            drawn = languages_at(self.seed, epochs, np.zeros_like(epochs), numbers, count, self._shares)
            told = masks[:, None] >> np.arange(count, dtype=np.uint32) & 1 > 0
            if self.weights is not None:
                told &= np.asarray(self.weights) > 0
            each = (drawn[:, None] + np.arange(count)) % count  # the drawn language, then those after it
            choice = np.take_along_axis(told, each, axis=1).argmax(axis=1)
            return np.repeat(each[np.arange(len(each)), choice], sizes)[None]
        story, epoch = np.repeat(numbers, sizes), np.repeat(epochs, sizes)
        paired = np.repeat(masks & PAIRED > 0, sizes)
        position = np.arange(first[-1]) - np.repeat(first[:-1], sizes)
        position = np.where(paired, position // 2, position)
        drawn = languages_at(self.seed, epoch, position, story, count, self._shares)
        second = paired & ((np.arange(first[-1]) - np.repeat(first[:-1], sizes)) % 2 > 0)
        again = second if self.mode.name != RETELLING else np.ones(len(drawn), bool)
        other = drawn.copy()  # up to all but one language further on: never the first telling's
        other[again] += 1 + languages_at(
            self.seed, epoch[again], MAX_SENTENCES + position[again], story[again], count - 1
        )
        other %= count
        return np.stack([drawn, other]) if self.mode.name == RETELLING else other[None]

    def _read(self, numbers: np.ndarray) -> _Documents:
        """Documents (int64 [D], numbered through all epochs)."""
        size = len(self.corpus)
        epochs = self.first_epoch + numbers // size
        stories = self.corpus.on_disk(permuted(numbers % size, size, self.seed, epochs))
        passages = self.corpus.files.passages(stories)
        first, count = passages.first, len(self.corpus.languages)
        languages = self._languages(stories, epochs, passages.masks, first)
        every = np.arange(first[-1])
        places, units = passages.places[every, languages], passages.units[every, languages]
        lengths = places[..., 1] - places[..., 0]
        document = np.tile(np.repeat(np.arange(len(numbers)), np.diff(first)), len(languages))
        cell = document * count + languages.ravel()
        counts = [np.bincount(cell, values.ravel(), len(numbers) * count) for values in (units, lengths)]
        # each telling's <bos>, sentences and <eos>; the last <eos> is only a target
        inputs = np.bincount(document, lengths.ravel(), len(numbers)).astype(np.int64) + 2 * len(languages) - 1
        sums = np.stack(counts).astype(np.int64).reshape(2, len(numbers), count).swapaxes(0, 1)
        return _Documents(passages.parts, first, languages, places, inputs, sums)

    def _make(self, lane: int, number: int, first: int, began: list[tuple[int, int]]) -> _Plan:
        """Plan `number` of a lane, whose first row is `first`, beginning with pieces left by the one before."""
        count = self.documents_per_plan
        fresh = (np.arange(number * count, (number + 1) * count)) * self.lanes + lane
        older = sorted({document for document, _ in began})
        at = {document: k for k, document in enumerate(older)}
        numbers = np.r_[np.asarray(older, dtype=np.int64), fresh]
        documents, length = self._read(numbers), self.row_length
        begun = [(at[document], start) for document, start in began]
        pieces = _cut(documents.inputs, length, len(older), begun)
        rows = pack(pieces[:, 2], length)
        targets = [int(pieces[row, 2].sum()) for row in rows]
        left: list[tuple[int, int]] = []
        if targets[-1] < length:
            left = [(int(numbers[document]), int(start)) for document, start, _ in pieces[rows.pop()]]
            targets.pop()
        counts = np.zeros((len(rows), 2, len(self.corpus.languages)), np.int64)
        for k, row in enumerate(rows):
            opening = pieces[row]
            counts[k] = documents.counts[opening[opening[:, 1] == 0, 0]].sum(axis=0)
        return _Plan(number, first, began, documents, pieces, rows, left, counts, np.asarray(targets, np.int64))

    def _after(self, lane: int, plan: _Plan) -> _Plan:
        return self._make(lane, plan.number + 1, plan.end, plan.left)

    def _plan(self, lane: int, row: int) -> _Plan:
        """The plan that holds a row of a lane."""
        plan = self._plans.get(lane)
        if plan is None or row < plan.first:
            number, first, began = self._positions.get(lane, (0, 0, []))
            plan = self._make(lane, number, first, began) if row >= first else self._make(lane, 0, 0, [])
        while row >= plan.end:
            plan = self._after(lane, plan)
        self._plans[lane] = plan
        return plan

    @property
    def positions(self) -> list[list[Any]]:
        """Where every lane is whose rows were asked for last: [lane, plan, first row, [[document, first position], ...]]."""
        return [[lane, p.number, p.first, [list(piece) for piece in p.began]] for lane, p in self._plans.items()]

    def go_to(self, positions: list[list[Any]]) -> None:
        """Begin where these `positions` are; those of other lanes stay."""
        self._positions |= {
            lane: (number, first, [(d, s) for d, s in began]) for lane, number, first, began in positions
        }

    def forget(self) -> None:
        """Free the memory of a stream that is not read any further."""
        self._plans = {}

    def draw(self, first: int, count: int) -> tuple[PackedBatch, Counts]:
        """Rows first .. first + count - 1 of the stream, and what they hold."""
        where = [
            (self._plan(row % self.lanes, row // self.lanes), row // self.lanes) for row in range(first, first + count)
        ]
        drawn = [(plan, row - plan.first) for plan, row in where]
        counts = np.zeros((2, len(self.corpus.languages)), np.int64)
        counts += sum((plan.counts[row] for plan, row in drawn), np.zeros_like(counts))
        return self._fill(drawn), (counts, int(sum(plan.targets[row] for plan, row in drawn)))

    def batch(self, first: int, count: int) -> PackedBatch:
        """Rows first .. first + count - 1 of the stream."""
        return self.draw(first, count)[0]

    def _fill(self, drawn: list[tuple[_Plan, int]]) -> PackedBatch:
        shape = (len(drawn), self.row_length)
        tokens = np.full(shape, self.corpus.eos_id, dtype=np.int64)
        targets = np.full(shape, IGNORE, dtype=np.int64)
        languages, positions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        counter = np.arange(self.row_length)
        for k, (plan, row) in enumerate(drawn):
            column, documents = 0, plan.documents
            for document, start, size in plan.pieces[plan.rows[row]].tolist():
                told = slice(documents.first[document], documents.first[document + 1])
                text, spoken = self.corpus.assemble(
                    int(documents.parts[document]), documents.places[:, told], documents.languages[:, told]
                )
                end = column + size
                tokens[k, column:end] = text[start : start + size]
                targets[k, column:end] = text[start + 1 : start + 1 + size]
                languages[k, column:end] = spoken[start : start + size]
                positions[k, column:end] = counter[:size]
                column = end
            positions[k, column:] = counter[: self.row_length - column]
        return PackedBatch(*map(torch.from_numpy, (tokens, targets, positions, languages)))

    def _walk(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What all rows hold, from the first on: (int64 [rows, 2, languages], targets int64 [rows]), some rows at a time."""
        plans = [self._make(lane, 0, 0, []) for lane in range(self.lanes)]
        row = 0
        while True:
            for lane in range(self.lanes):
                while plans[lane].end <= row:
                    plans[lane] = self._after(lane, plans[lane])
            end = min(plan.end for plan in plans)
            parts = [slice(row - plan.first, end - plan.first) for plan in plans]
            counts = np.stack([plan.counts[part] for plan, part in zip(plans, parts, strict=True)], axis=1)
            targets = np.stack([plan.targets[part] for plan, part in zip(plans, parts, strict=True)], axis=1)
            yield counts.reshape(-1, *counts.shape[2:]), targets.ravel()
            row = end

    def rows_for(self, units: np.ndarray | int) -> int:
        """Rows until so many units are consumed: of each language (int [languages]), or in all. They are counted.

        Raises TresseError where the mode never tells a language that is asked for.
        """
        each = np.ndim(units) > 0
        wanted = np.atleast_1d(np.asarray(units, dtype=np.int64))
        if each:
            able = self.corpus.sums(self.mode, self.weights)[2] > 0
            if self.mode.language is not None:
                able &= np.asarray(self.corpus.languages) == self.mode.language
            silent = (wanted > 0) & ~(able & (np.asarray(self.weights or np.ones(len(able))) > 0))
            if silent.any():
                language = self.corpus.languages[int(silent.argmax())]
                raise TresseError(f"the mode {self.mode} never tells {language}: give it no units there")
        before, rows = np.zeros_like(wanted), 0
        for counts, _ in self._walk():
            consumed = counts[:, 0] if each else counts[:, 0].sum(axis=1, keepdims=True)
            total = before + consumed.cumsum(axis=0)
            if (total[-1] >= wanted).all():
                return rows + int((total >= wanted).all(axis=1).argmax()) + 1
            before, rows = total[-1], rows + len(total)
        raise AssertionError("the stream has no end")

    def totals(self, rows: int) -> Counts:
        """What the first `rows` rows hold, counted from the first on."""
        sums, targets = np.zeros((2, len(self.corpus.languages)), np.int64), 0
        if rows > 0:
            for counts, real in self._walk():
                sums, targets = sums + counts[:rows].sum(axis=0), targets + int(real[:rows].sum())
                rows -= len(real)
                if rows <= 0:
                    break
        return sums, targets

    def epoch(self) -> list[PackedBatch]:
        """The first epoch alone and whole, a row each: of a small corpus."""
        documents = self._read(np.arange(len(self.corpus)))
        pieces = _cut(documents.inputs, self.row_length)
        rows = pack(pieces[:, 2], self.row_length)
        nothing = np.zeros((len(rows), 2, len(self.corpus.languages)), np.int64)
        plan = _Plan(0, 0, [], documents, pieces, rows, [], nothing, nothing[:, 0, 0])
        return [self._fill([(plan, row)]) for row in range(len(rows))]


def evaluation_batches(corpus: TokenCorpus, mode: str, *, row_length: int, seed: int, rows: int) -> list[PackedBatch]:
    """One epoch of a small corpus, always the same one, in batches of `rows` rows."""
    epoch = PackedStream(corpus, mode, row_length=row_length, seed=seed).epoch()
    return [PackedBatch.joined(epoch[first : first + rows]) for first in range(0, len(epoch), rows)]
