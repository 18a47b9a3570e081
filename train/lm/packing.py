"""From a unit corpus to packed batches: stories interleaved anew each epoch, documents packed into rows without padding.

Legend: B rows of L positions. Inputs are a document's (train.lm.corpus) tokens but the last and targets its tokens but
the first, so every position of a document carries a real target. Documents are packed by filling each row exactly from a
pool of the next 64 (a subset-sum over bit sets, about 30 us a row); one that is longer than a row is cut into rows, no
other ever. Positions restart with each document; what attention needs is recovered from them in one function
(train.lm.attention).

Everything is a pure function of (corpus, seed, row number): nothing here has a state to save. One core feeds tens of
millions of units a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from slm.errors import TresseError
from slm.interleave import MIXED, RETELLING, Mode, draw_languages
from train.lm.attention import to_device
from train.lm.corpus import TokenCorpus

IGNORE = -100
"""Target of a position that carries none (torch's `ignore_index`)."""
POOL = 64
MINIMUM_DOCUMENTS = 4096
"""A small corpus is packed several epochs at a time, so that the last row's fill does not count."""


def pack(lengths: np.ndarray, row_length: int) -> list[list[int]]:
    """Pack pieces of 1 .. row_length positions into rows, roughly in order: a list of piece numbers per row.

    Each row takes the oldest waiting piece and, of the next 64, the subset that fills it best (the older ones first).
    """
    sizes = [int(length) for length in lengths]
    if sizes and not 1 <= min(sizes) <= max(sizes) <= row_length:
        raise ValueError(f"pieces must have 1..{row_length} positions")
    rows: list[list[int]] = []
    pool: list[int] = []
    upcoming = 0
    while pool or upcoming < len(sizes):
        while len(pool) < POOL and upcoming < len(sizes):
            pool.append(upcoming)
            upcoming += 1
        # bit t of reach[k]: the oldest piece and some of the next k sum to t
        mask = (1 << (row_length + 1)) - 1
        reach = [1 << sizes[pool[0]]]
        for piece in pool[1:]:
            reach.append(reach[-1] | (reach[-1] << sizes[piece] & mask))
            if reach[-1] >> row_length:
                break
        target = reach[-1].bit_length() - 1
        row = [0]
        for k in range(len(reach) - 1, 0, -1):
            if not reach[k - 1] >> target & 1:
                row.append(k)
                target -= sizes[pool[k]]
        rows.append(sorted(pool[k] for k in row))
        taken = set(row)
        pool = [piece for k, piece in enumerate(pool) if k not in taken]
    return rows


@dataclass(frozen=True)
class PackedBatch:
    """B rows of L positions. Arrays int64 [B, L].

    targets: the next token, or IGNORE where a row could not be filled. positions: restart at 0 with each document.
    languages: the language (its number) that the target belongs to.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    languages: torch.Tensor

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch elsewhere, without waiting for the device."""
        return PackedBatch(*(to_device(getattr(self, name), device) for name in self.__dataclass_fields__))

    def rows(self, part: slice) -> PackedBatch:
        """Only these rows."""
        return PackedBatch(*(getattr(self, name)[part] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class _Plan:
    """The packing of a few epochs: which pieces of which documents make up each row."""

    stories: np.ndarray  # [documents]
    drawn: np.ndarray  # [documents, tellings, sentences] languages
    sentences: np.ndarray  # [documents]
    pieces: list[tuple[int, int, int]]  # (document, first position, positions)
    rows: list[list[int]]
    consumed: np.ndarray  # [rows + 1, 2, languages]: units and tokens before each row
    targets: np.ndarray  # [rows + 1]: targets before each row


class PackedStream:
    """The endless rows of one mode: row r is the same whoever asks, and whenever.

    mode, weights: see slm.interleave. first_epoch: the number of the first epoch drawn.
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
    ) -> None:
        self.mode = Mode.parse(mode, corpus.languages) if isinstance(mode, str) else mode
        corpus = corpus.served(self.mode, weights)
        if not len(corpus):
            raise TresseError(f"there is no story that the mode {self.mode} tells: prepare a larger corpus")
        self.corpus, self.row_length, self.seed, self.first_epoch = corpus, row_length, seed, first_epoch
        self.weights = weights
        self.epochs_per_plan = max(1, -(-MINIMUM_DOCUMENTS // len(corpus)))
        self._starts = [0]  # first row of each plan made so far, and the end of the last
        self._ends: list[tuple[np.ndarray, int]] = []  # what each whole plan consumes
        self._plans: dict[int, _Plan] = {}  # the last two asked for: a step may lie across two plans

    @cached_property
    def _sentences(self) -> np.ndarray:
        return self.corpus.sentences

    def _languages(self, epoch: int) -> np.ndarray:
        """The language of every sentence of every story in one epoch, int16 [stories, tellings * sentences].

        As `draw_languages` says, but that pairs are told side by side, the language that comes first being drawn, and that
        a story whose language is drawn for it as a whole is told in one that it has.
        """
        corpus, most = self.corpus, self.corpus.units.shape[1]

        def draw(mode: Mode, sentences: int) -> np.ndarray:
            drawn = draw_languages(
                mode,
                corpus.languages,
                seed=self.seed,
                epoch=epoch,
                stories=int(corpus.index.max()) + 1,
                sentences=sentences,
                weights=self.weights,
            )
            return drawn[corpus.index]

        languages = draw(self.mode, most)
        if corpus.paired.any():
            twice = draw(Mode(RETELLING), (most + 1) // 2).reshape(len(corpus), 2, -1)
            beside = twice.swapaxes(1, 2).reshape(len(corpus), -1)[:, :most]
            languages = np.where(corpus.paired[:, None], beside, languages)
        if self.mode.name == MIXED:
            every = np.arange(len(corpus.languages))
            told = corpus.told if self.weights is None else corpus.told & (np.asarray(self.weights) > 0)
            drawn_first = (languages[:, :1] + every) % len(every)  # the drawn language, then those after it
            choice = np.take_along_axis(told, drawn_first, axis=1).argmax(axis=1)
            languages = np.repeat(drawn_first[np.arange(len(corpus)), choice][:, None], most, axis=1)
        return languages.astype(np.int16)

    def _plan(self, number: int) -> _Plan:
        if number in self._plans:
            return self._plans[number]
        corpus = self.corpus
        first = self.first_epoch + number * self.epochs_per_plan
        most = corpus.units.shape[1]
        stories, drawn = [], []
        for epoch in range(first, first + self.epochs_per_plan):
            order = np.random.default_rng([self.seed, epoch, 2]).permutation(len(corpus))
            stories.append(order)
            drawn.append(self._languages(epoch)[order])
        plan = self._pack(np.concatenate(stories), np.concatenate(drawn).reshape(-1, self.mode.tellings, most))
        self._plans = dict([*self._plans.items(), (number, plan)][-2:])
        if number + 1 == len(self._starts):
            self._starts.append(self._starts[-1] + len(plan.rows))
            self._ends.append((plan.consumed[-1], int(plan.targets[-1])))
        return plan

    def _pack(self, stories: np.ndarray, drawn: np.ndarray) -> _Plan:
        corpus, length = self.corpus, self.row_length
        chosen = drawn[..., None].astype(np.int64)
        tokens = np.take_along_axis(corpus.lengths[stories][:, None], chosen, axis=3)[..., 0]
        units = np.take_along_axis(corpus.units[stories][:, None], chosen, axis=3)[..., 0]
        # each telling's <bos>, sentences and <eos>; the last <eos> is only a target
        inputs = tokens.sum(axis=(1, 2), dtype=np.int64) + 2 * drawn.shape[1] - 1
        per_document = -(-inputs // length)
        document = np.repeat(np.arange(len(inputs)), per_document)
        part = np.arange(len(document)) - np.repeat(np.cumsum(per_document) - per_document, per_document)
        sizes = np.minimum(inputs[document] - part * length, length)
        rows = pack(sizes, length)
        consumed = np.zeros((len(rows) + 1, 2, len(corpus.languages)), dtype=np.int64)
        row_of = np.zeros(len(document), dtype=np.int64)
        row_of[np.concatenate([np.asarray(row) for row in rows])] = np.repeat(
            np.arange(len(rows)), list(map(len, rows))
        )
        opening = row_of[part == 0]  # a cut document counts where it opens
        for language in range(len(corpus.languages)):
            here = drawn == language
            np.add.at(consumed[1:, 0, language], opening, (units * here).sum(axis=(1, 2)))
            np.add.at(consumed[1:, 1, language], opening, (tokens * here).sum(axis=(1, 2)))
        targets = np.r_[0, np.bincount(row_of, weights=sizes, minlength=len(rows)).astype(np.int64)]
        return _Plan(
            stories=stories,
            drawn=drawn,
            sentences=self._sentences[stories],
            pieces=list(zip(document.tolist(), (part * length).tolist(), sizes.tolist(), strict=True)),
            rows=rows,
            consumed=consumed.cumsum(axis=0),
            targets=targets.cumsum(),
        )

    def _locate(self, row: int) -> tuple[int, int]:
        """Row of the stream -> (plan, row in the plan). Plans before it are made where they are not known yet."""
        while row >= self._starts[-1]:
            self._plan(len(self._starts) - 1)
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return number, row - self._starts[number]

    def rows_for(self, units: np.ndarray | int) -> int:
        """Rows until so many units are consumed: of each language (int [languages]), or in all.

        Raises TresseError where the mode never tells a language that is asked for.
        """
        each = np.ndim(units) > 0
        wanted, number = np.atleast_1d(np.asarray(units, dtype=np.int64)), 0
        before = np.zeros_like(wanted)
        while True:
            consumed = self._plan(number).consumed[:, 0]
            total = before + (consumed if each else consumed.sum(axis=1, keepdims=True))
            silent = (wanted > 0) & (total[-1] == 0)
            if silent.any():
                language = self.corpus.languages[int(silent.argmax())]
                raise TresseError(f"the mode {self.mode} never tells {language}: give it no units there")
            if (total[-1] >= wanted).all():
                return self._starts[number] + int((total >= wanted).all(axis=1).argmax())
            before, number = total[-1], number + 1

    def rows_per_epoch(self) -> float:
        """Rows that one reading of the corpus makes, on average over the first plan."""
        return len(self._plan(0).rows) / self.epochs_per_plan

    def batch(self, first: int, count: int) -> PackedBatch:
        """Rows first .. first + count - 1 of the stream."""
        shape = (count, self.row_length)
        tokens = np.full(shape, self.corpus.eos_id, dtype=np.int64)
        targets = np.full(shape, IGNORE, dtype=np.int64)
        languages = np.zeros(shape, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        counter = np.arange(self.row_length)
        for k in range(count):
            number, row = self._locate(first + k)
            plan = self._plan(number)
            column = 0
            for piece in plan.rows[row]:
                document, start, size = plan.pieces[piece]
                drawn = plan.drawn[document, :, : plan.sentences[document]].astype(np.int64)
                text, spoken = self.corpus.document(plan.stories[document], drawn)
                end = column + size
                tokens[k, column:end] = text[start : start + size]
                targets[k, column:end] = text[start + 1 : start + 1 + size]
                languages[k, column:end] = spoken[start : start + size]
                positions[k, column:end] = counter[:size]
                column = end
            positions[k, column:] = counter[: self.row_length - column]
        return PackedBatch(*map(torch.from_numpy, (tokens, targets, positions, languages)))

    def totals(self, rows: int) -> tuple[np.ndarray, int]:
        """What the first `rows` rows hold: (int64 [2, languages]: units and tokens, number of targets)."""
        if rows == 0:
            return np.zeros((2, len(self.corpus.languages)), np.int64), 0
        number, row = self._locate(rows - 1)
        plan = self._plan(number)
        consumed = sum((end[0] for end in self._ends[:number]), np.zeros_like(plan.consumed[0]))
        targets = sum(end[1] for end in self._ends[:number])
        return consumed + plan.consumed[row + 1], targets + int(plan.targets[row + 1])


def evaluation_batches(corpus: TokenCorpus, mode: str, *, row_length: int, seed: int, rows: int) -> list[PackedBatch]:
    """About one epoch of a small corpus, always the same one, in batches of `rows` rows."""
    stream = PackedStream(corpus, mode, row_length=row_length, seed=seed)
    wanted = max(1, round(stream.rows_per_epoch()))
    return [stream.batch(first, min(rows, wanted - first)) for first in range(0, wanted, rows)]
