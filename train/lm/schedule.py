"""How a language model is trained: its settings, and the schedule of stages as an endless-looking stream of batches.

A stage names a mode (slm.interleave) and how long it lasts: a share of the run's tokens, a number of steps, or a budget
of units by language. Budgets are met by counting: what every row holds is known from the packing plan before a single
batch is made, so a run's length, and its learning rates, are known before it starts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from slm.errors import TresseError
from slm.interleave import MONOLINGUAL, RETELLING, Mode
from train.lm.corpus import TokenCorpus
from train.lm.packing import PackedBatch
from train.lm.stream import ORDER, Counts, PackedStream

EPOCHS_PER_STAGE = 1 << 24
"""Stages draw from disjoint ranges of epochs,"""
EPOCHS_PER_MODE = 1 << 18
"""and so do the modes that a stage takes in turn."""

STORIES = "stories"
"""The corpus of a recipe's stories, among its corpora."""


@dataclass(frozen=True)
class Stage:
    """A stretch of training. Exactly one of share, steps and units says how long it is.

    mode: `interleaved`, `translated_retelling`, `mixed` or `monolingual:LANG`; several of them are taken in turn, a step
    each. share: of the run's `steps` or `tokens`, relative to the other stages with a share. units: in all, or by
    language: then languages are drawn (or take their turns) so often that they meet their budgets together, and one
    without a budget is not used. corpora: the name of the corpus that is read, or of several, each with its share of the
    rows of every step, relative to the others; None: that of the stories.
    """

    mode: str | tuple[str, ...]
    share: float | None = None
    steps: int | None = None
    units: int | dict[str, int] | None = None
    corpora: str | dict[str, float] | None = None

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes taken in turn."""
        return (self.mode,) if isinstance(self.mode, str) else tuple(self.mode)

    @property
    def shares(self) -> dict[str, float]:
        """The corpora that are read, with their shares."""
        return self.corpora if isinstance(self.corpora, dict) else {self.corpora or STORIES: 1.0}

    def rows(self, batch_rows: int) -> dict[str, int]:
        """How many rows of each step every corpus fills, as near to its share as whole rows can be, and one at least.

        Raises TresseError where there are fewer rows than corpora.
        """
        shares = self.shares
        if len(shares) > batch_rows:
            raise TresseError(
                f"the stage {self} reads {len(shares)} corpora in {batch_rows} rows: raise slm.batch_rows"
            )
        wanted = {name: share * batch_rows / sum(shares.values()) for name, share in shares.items()}
        rows = {name: max(1, int(most)) for name, most in wanted.items()}
        while (rest := batch_rows - sum(rows.values())) != 0:
            movable = [name for name in rows if rest > 0 or rows[name] > 1]
            rows[max(movable, key=lambda name: rest * (wanted[name] - rows[name]))] += 1 if rest > 0 else -1
        return rows

    def __str__(self) -> str:
        return " / ".join(self.modes)

    def check_corpora(self, known: Collection[str], batch_rows: int) -> None:
        """Raises TresseError for corpora that are not among those that are `known`, and shares that cannot be."""
        unknown = [name for name in self.shares if name not in known]
        if unknown:
            raise TresseError(f"the stage {self} reads the corpus {unknown[0]}: known are {', '.join(known)}")
        if min(self.shares.values(), default=0) <= 0:
            raise TresseError(f"the stage {self} must read a corpus, with a share above 0 each")
        if len(self.shares) > 1 and self.units is not None:
            raise TresseError(f"the stage {self} reads several corpora: give it a share or steps instead of units")
        self.rows(batch_rows)

    def check(self, languages: tuple[str, ...]) -> None:
        """Raises TresseError for a stage that cannot be."""
        lengths = [length for length in (self.share, self.steps, self.units) if length is not None]
        if len(lengths) != 1:
            raise TresseError(f"the stage {self} needs one of share, steps and units")
        parts = self.units.values() if isinstance(self.units, dict) else (self.share or self.steps or self.units or 0,)
        if not self.modes or min(parts, default=0) <= 0:
            raise TresseError(f"the stage {self} must have a mode and a length above 0")
        modes = [Mode.parse(mode, languages) for mode in self.modes]
        if isinstance(self.units, dict):
            unknown = [language for language in self.units if language not in languages]
            if unknown:
                raise TresseError(f"the stage {self} has units for {unknown[0]}: known are {', '.join(languages)}")
            for written, mode in zip(self.modes, modes, strict=True):
                if mode.name == RETELLING:
                    raise TresseError(
                        f"{written} tells all languages: give the stage {self} a share, steps or units in all"
                    )
            own = [mode.language for mode in modes]
            if len(modes) > 1 and (None in own or set(own) != set(self.units) or len(set(own)) < len(own)):
                raise TresseError(f"in turns, units by language need one {MONOLINGUAL}:LANG mode for each of them")


@dataclass(frozen=True)
class SLMTraining:
    """How a language model is trained. The defaults suit the default ModelConfig on two CPU cores.

    stages: in order. tokens: what the stages with a share divide among them; `steps`, if given, overrides it.
    batch_rows x row_length: positions a step, whatever the number of processes; micro_rows: rows of a process in a forward
    pass, at most (None: all): gradients are accumulated over as many passes as that takes.
    optimiser: `adamw`, or `muon` for the matrices of the body (the rest stays with AdamW, at the same rates).
    warmup: steps, or below 1 a share of them. floor: last learning rate as a share of the peak. clip: of the gradient's
    norm. dropout: share of what each layer adds that is dropped (`train.lm.dropout`). held_out: training stories kept for
    validation, where there are no others for it. precision: `auto` (bfloat16 where the hardware multiplies it), `bf16` or
    `no`. compile: `auto` (on a GPU), `yes` or `no`.
    """

    stages: tuple[Stage, ...] = (Stage("interleaved", share=1.0),)
    tokens: int = 12_000_000
    steps: int | None = None
    batch_rows: int = 8
    row_length: int = 1024
    micro_rows: int | None = 2
    optimiser: str = "adamw"
    learning_rate: float = 1.5e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    dropout: float = 0.0
    warmup: float = 50
    floor: float = 0.05
    clip: float = 1.0
    seed: int = 0
    tags: bool = True
    held_out: int = 64
    log_every: int = 20
    validate_every: int = 200
    checkpoint_every: int = 200
    precision: str = "auto"
    compile: str = "auto"

    @property
    def positions(self) -> int:
        """Positions of a step."""
        return self.batch_rows * self.row_length

    @property
    def shared_steps(self) -> int:
        """Steps that the stages with a share divide among them."""
        return self.steps if self.steps is not None else max(1, self.tokens // self.positions)

    def warmup_steps(self, steps: int) -> int:
        """Steps of warm-up in a run of so many."""
        return round(self.warmup * steps) if self.warmup < 1 else round(self.warmup)

    def check(self, languages: tuple[str, ...], corpora: Collection[str] = (STORIES,)) -> None:
        """Raises TresseError for settings that cannot work with these languages and corpora."""
        if not self.stages:
            raise TresseError("training needs one stage at least")
        for name in ("batch_rows", "row_length", *(["micro_rows"] if self.micro_rows is not None else [])):
            if getattr(self, name) < 1:
                raise TresseError(f"{name} must be 1 or more, not {getattr(self, name)}")
        if not 0.0 <= self.dropout < 1.0:
            raise TresseError(f"dropout must be from 0 to below 1, not {self.dropout}")
        for stage in self.stages:
            stage.check(languages)
            stage.check_corpora(corpora, self.batch_rows)
        for name, choices in (
            ("precision", ("auto", "bf16", "no")),
            ("compile", ("auto", "yes", "no")),
            ("optimiser", ("adamw", "muon")),
        ):
            if getattr(self, name) not in choices:
                raise TresseError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)}")

    def rows_of(self, process: int, processes: int) -> tuple[int, int]:
        """(first row, number of rows) that a process takes of each step's batch; the first ones take what remains."""
        each, rest = divmod(self.batch_rows, processes)
        return process * each + min(process, rest), each + (process < rest)

    def passes(self, processes: int) -> int:
        """Forward passes of a step, the same in every process, each of at most `micro_rows` rows."""
        most = self.rows_of(0, processes)[1]
        return -(-most // (self.micro_rows or most))

    def rows_a_pass(self, processes: int) -> int:
        """Rows of one forward pass of one process, at most."""
        return -(-self.rows_of(0, processes)[1] // self.passes(processes))

    def lasting(self) -> dict[str, Any]:
        """What a run must keep when it is resumed; how often it reports and in what portions it computes may change."""
        plain = SLMTraining()
        free = ("log_every", "validate_every", "checkpoint_every", "micro_rows", "compile")
        kept = replace(self, **{name: getattr(plain, name) for name in free}, tokens=0, steps=self.shared_steps)
        return asdict(kept, dict_factory=settings_dict)


def settings_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """What `asdict` makes of settings; without `corpora` and `dropout` where there are none, as before."""
    return {name: value for name, value in pairs if name not in ("corpora", "dropout") or value}


class _Turns:
    """The batches of one stage: whose turn each step is among its modes, and a stream for each mode and corpus."""

    def __init__(
        self,
        stage: Stage,
        corpora: Mapping[str, TokenCorpus],
        training: SLMTraining,
        number: int,
        steps: int | None,
        counted: list[int] | None,
    ) -> None:
        """steps: of the stage; None: as many as its budget takes, or, where that was `counted`, those of each mode."""
        filled = stage.rows(training.batch_rows)
        languages, budget = list(corpora[next(iter(filled))].languages), stage.units
        weights = None
        if isinstance(budget, dict):
            (corpus,) = (corpora[name] for name in filled)
            modes = [Mode.parse(mode, languages) for mode in stage.modes]
            spoken = np.max([corpus.sums(mode)[1] for mode in modes], axis=0)
            weights = tuple(budget.get(language, 0) / max(1, spoken[k]) for k, language in enumerate(languages))
        self.corpora, self.rows = list(filled), list(filled.values())
        """Names of the corpora, and the rows of a step that each fills, one corpus after the other."""
        self.streams = [
            PackedStream(
                corpora[name],
                mode,
                row_length=training.row_length,
                seed=training.seed,
                first_epoch=number * EPOCHS_PER_STAGE + turn * EPOCHS_PER_MODE,
                weights=weights,
                lanes=lanes,
            )
            for turn, mode in enumerate(stage.modes)
            for name, lanes in filled.items()
        ]
        count, rows = len(stage.modes), training.batch_rows
        if steps is not None:
            each = [(steps + count - 1 - turn) // count for turn in range(count)]
        elif counted is not None:
            each = counted
        elif isinstance(budget, dict):
            each = []
            for stream in self.streams:
                only = stream.mode.language
                wanted = [budget.get(name, 0) if count == 1 or name == only else 0 for name in languages]
                each.append(-(-stream.rows_for(np.asarray(wanted)) // rows))
        else:
            assert budget is not None
            each = [-(-stream.rows_for(-(-budget // count)) // rows) for stream in self.streams]
        self.each, self.steps = each, sum(each)
        # turn k of n comes at (i + 1/2) / n: turns are spread evenly, whatever their numbers
        times = np.concatenate([(np.arange(n) + 0.5) / max(1, n) for n in each])
        owners = np.repeat(np.arange(count), each)
        self.owner = owners[np.argsort(times, kind="stable")]
        self.before = np.zeros((self.steps + 1, count), dtype=np.int64)  # steps of each stream before a step
        np.cumsum(self.owner[:, None] == np.arange(count), axis=0, out=self.before[1:])

    def draw(self, step: int, first: int, count: int) -> tuple[PackedBatch, Counts]:
        """Rows first .. first + count - 1 of a step of the stage, and what they hold."""
        turn = int(self.owner[step])
        streams = self.streams[turn * len(self.rows) : (turn + 1) * len(self.rows)]
        before, begin, drawn = int(self.before[step, turn]), 0, []
        for stream, rows in zip(streams, self.rows, strict=True):
            low, high = max(first, begin), min(first + count, begin + rows)
            if low < high:
                drawn.append(stream.draw(before * rows + low - begin, high - low))
            begin += rows
        if len(drawn) == 1:
            return drawn[0]
        if not drawn:
            return streams[0].draw(0, 0)
        consumed, targets = zip(*(counts for _, counts in drawn), strict=True)
        return PackedBatch.joined([batch for batch, _ in drawn]), (np.sum(consumed, axis=0), sum(targets))

    def totals(self, steps: int) -> Counts:
        """What the first `steps` steps of the stage hold, counted anew."""
        consumed, targets = self.streams[0].totals(0)
        for number, stream in enumerate(self.streams):
            turn, part = divmod(number, len(self.rows))
            more, further = stream.totals(int(self.before[steps, turn]) * self.rows[part])
            consumed, targets = consumed + more, targets + further
        return consumed, targets


class StagedStream:
    """The batches of a schedule of stages: step s is the same whoever asks, and whenever. For one thread at a time."""

    def __init__(
        self,
        corpus: TokenCorpus,
        training: SLMTraining,
        position: dict[str, Any] | None = None,
        others: Mapping[str, TokenCorpus] | None = None,
    ) -> None:
        """corpus: of the stories; others: further ones by name, of the same languages. position: where a run goes on, as
        `position` gave it; what it says is not counted or walked to again."""
        self.rows, self.corpora = training.batch_rows, {STORIES: corpus, **(others or {})}
        shares = np.cumsum([stage.share or 0.0 for stage in training.stages])
        ends = np.rint(training.shared_steps * shares / (shares[-1] or 1.0)).astype(int)
        shared = np.diff(np.r_[0, ends])
        counted = [None] * len(training.stages) if position is None else position["each"]
        self.turns = [
            _Turns(
                stage,
                self.corpora,
                training,
                number,
                int(shared[number]) if stage.share is not None else stage.steps,
                counted[number],
            )
            for number, stage in enumerate(training.stages)
        ]
        self.ends = np.cumsum([turns.steps for turns in self.turns]).tolist()
        self.starts = [0, *self.ends[:-1]]
        self._stage = 0
        for number, stream, lanes in [] if position is None else position["lanes"]:
            self.turns[number].streams[stream].go_to(lanes)

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return int(self.ends[-1])

    def position(self, step: int) -> dict[str, Any]:
        """What a run needs to go on at a step without walking there, in plain lists: the order's version, the steps of each
        mode of each stage, and the lanes of the stage: those whose rows were asked for here. The step, or the one before,
        must be what was asked for last."""
        number = self.stage(step)
        streams = self.turns[number].streams if step < self.steps else []
        lanes = [[number, which, stream.positions] for which, stream in enumerate(streams)]
        return {"order": ORDER, "each": [turns.each for turns in self.turns], "lanes": lanes}

    def untold(self, name: str = STORIES) -> int:
        """Rows of a corpus that no stage tells."""
        corpus = self.corpora[name]
        kinds = corpus.kinds
        told = np.zeros(len(kinds), bool)
        for turns in self.turns:
            for number, stream in enumerate(turns.streams):
                if turns.corpora[number % len(turns.corpora)] == name:
                    told |= corpus.serves(kinds, stream.mode, stream.weights)
        return corpus.count(kinds[~told])

    def stage(self, step: int) -> int:
        """The stage that a step belongs to."""
        return int(np.searchsorted(self.ends, step, side="right"))

    def draw(self, step: int, first: int = 0, count: int | None = None) -> tuple[PackedBatch, Counts]:
        """Rows first .. first + count - 1 of a step's batch (all by default), and what they hold."""
        stage = self.stage(step)
        if stage != self._stage:
            for stream in self.turns[self._stage].streams:
                stream.forget()
            self._stage = stage
        return self.turns[stage].draw(step - self.starts[stage], first, self.rows if count is None else count)

    def batch(self, step: int, first: int = 0, count: int | None = None) -> PackedBatch:
        """Rows first .. first + count - 1 of a step's batch (all by default)."""
        return self.draw(step, first, count)[0]

    def totals(self, steps: int) -> Counts:
        """Units and tokens by language (int64 [2, languages]) and targets of the first `steps` steps, counted anew."""
        consumed, targets = self.turns[0].streams[0].totals(0)
        for turns, start, end in zip(self.turns, self.starts, self.ends, strict=True):
            if steps > start:
                more, further = turns.totals(min(steps, end) - start)
                consumed, targets = consumed + more, targets + further
        return consumed, targets
