"""How a language model is trained: its settings, and the schedule of stages as an endless-looking stream of batches.

A stage names a mode (slm.interleave) and how long it lasts: a share of the run's tokens, a number of steps, or a budget
of units by language. Budgets are met by counting: what every row holds is known from the packing plan before a single
batch is made, so a run's length, and its learning rates, are known before it starts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from slm.errors import TresseError
from slm.interleave import MONOLINGUAL, RETELLING, Mode
from train.lm.corpus import TokenCorpus
from train.lm.packing import PackedBatch, PackedStream

EPOCHS_PER_STAGE = 1 << 24
"""Stages draw from disjoint ranges of epochs,"""
EPOCHS_PER_MODE = 1 << 18
"""and so do the modes that a stage takes in turn."""


@dataclass(frozen=True)
class Stage:
    """A stretch of training. Exactly one of share, steps and units says how long it is.

    mode: `interleaved`, `translated_retelling`, `mixed` or `monolingual:LANG`; several of them are taken in turn, a step
    each. share: of the run's `steps` or `tokens`, relative to the other stages with a share. units: in all, or by
    language: then languages are drawn (or take their turns) so often that they meet their budgets together, and one
    without a budget is not used.
    """

    mode: str | tuple[str, ...]
    share: float | None = None
    steps: int | None = None
    units: int | dict[str, int] | None = None

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes taken in turn."""
        return (self.mode,) if isinstance(self.mode, str) else tuple(self.mode)

    def __str__(self) -> str:
        return " / ".join(self.modes)

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
    batch_rows x row_length: positions a step; micro_rows: rows a forward pass (None: all).
    optimiser: `adamw`, or `muon` for the matrices of the body (the rest stays with AdamW, at the same rates).
    warmup: steps, or below 1 a share of them. floor: last learning rate as a share of the peak. clip: of the gradient's
    norm. held_out: training stories kept for validation, where there are no others for it. precision: `auto` (bfloat16
    where the hardware multiplies it), `bf16` or `no`. compile: `auto` (on a GPU), `yes` or `no`.
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

    def check(self, languages: tuple[str, ...], processes: int = 1) -> None:
        """Raises TresseError for settings that cannot work."""
        if not self.stages:
            raise TresseError("training needs one stage at least")
        for stage in self.stages:
            stage.check(languages)
        if self.batch_rows % processes or (self.batch_rows // processes) % self.rows_a_pass(processes):
            raise TresseError(
                f"batch_rows {self.batch_rows} must be a multiple of processes ({processes}) x micro_rows "
                f"({self.micro_rows})"
            )
        for name, choices in (
            ("precision", ("auto", "bf16", "no")),
            ("compile", ("auto", "yes", "no")),
            ("optimiser", ("adamw", "muon")),
        ):
            if getattr(self, name) not in choices:
                raise TresseError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)}")

    def rows_a_pass(self, processes: int) -> int:
        """Rows of one forward pass of one process."""
        return self.micro_rows or self.batch_rows // processes

    def lasting(self) -> dict[str, Any]:
        """What a run must keep when it is resumed; how often it reports and in what portions it computes may change."""
        plain = SLMTraining()
        free = ("log_every", "validate_every", "checkpoint_every", "micro_rows", "compile")
        return asdict(replace(self, **{name: getattr(plain, name) for name in free}, tokens=0, steps=self.shared_steps))


class _Turns:
    """The batches of one stage: its streams and whose turn each step is."""

    def __init__(
        self, stage: Stage, corpus: TokenCorpus, training: SLMTraining, number: int, steps: int | None
    ) -> None:
        languages, budget = list(corpus.languages), stage.units
        weights = None
        if isinstance(budget, dict):
            served = corpus.served(Mode.parse(stage.modes[0], languages)) if len(stage.modes) == 1 else corpus
            spoken = served.units.sum(axis=(0, 1), dtype=np.int64)
            weights = tuple(budget.get(language, 0) / max(1, spoken[k]) for k, language in enumerate(languages))
        self.streams = [
            PackedStream(
                corpus,
                mode,
                row_length=training.row_length,
                seed=training.seed,
                first_epoch=number * EPOCHS_PER_STAGE + turn * EPOCHS_PER_MODE,
                weights=weights,
            )
            for turn, mode in enumerate(stage.modes)
        ]
        count, rows = len(self.streams), training.batch_rows
        if steps is not None:
            each = [(steps + count - 1 - turn) // count for turn in range(count)]
        elif isinstance(budget, dict):
            each = []
            for stream in self.streams:
                only = stream.mode.language
                wanted = [budget.get(name, 0) if count == 1 or name == only else 0 for name in languages]
                each.append(-(-stream.rows_for(np.asarray(wanted)) // rows))
        else:
            assert budget is not None
            each = [-(-stream.rows_for(-(-budget // count)) // rows) for stream in self.streams]
        self.steps = sum(each)
        # turn k of n comes at (i + 1/2) / n: turns are spread evenly, whatever their numbers
        times = np.concatenate([(np.arange(n) + 0.5) / max(1, n) for n in each])
        owners = np.repeat(np.arange(count), each)
        self.owner = owners[np.argsort(times, kind="stable")]
        self.before = np.zeros((self.steps + 1, count), dtype=np.int64)  # steps of each stream before a step
        np.cumsum(self.owner[:, None] == np.arange(count), axis=0, out=self.before[1:])


class StagedStream:
    """The batches of a schedule of stages: step s is the same whoever asks, and whenever."""

    def __init__(self, corpus: TokenCorpus, training: SLMTraining) -> None:
        self.rows = training.batch_rows
        shares = np.cumsum([stage.share or 0.0 for stage in training.stages])
        ends = np.rint(training.shared_steps * shares / (shares[-1] or 1.0)).astype(int)
        shared = np.diff(np.r_[0, ends])
        self.turns = [
            _Turns(stage, corpus, training, number, int(shared[number]) if stage.share is not None else stage.steps)
            for number, stage in enumerate(training.stages)
        ]
        self.ends = np.cumsum([turns.steps for turns in self.turns]).tolist()
        self.starts = [0, *self.ends[:-1]]

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return int(self.ends[-1])

    def untold(self, corpus: TokenCorpus) -> int:
        """Rows of the corpus that no stage tells."""
        told = [stream.corpus.index for turns in self.turns for stream in turns.streams]
        return int((~np.isin(corpus.index, np.concatenate(told))).sum())

    def stage(self, step: int) -> int:
        """The stage that a step belongs to."""
        return int(np.searchsorted(self.ends, step, side="right"))

    def batch(self, step: int, first: int = 0, count: int | None = None) -> PackedBatch:
        """Rows first .. first + count - 1 of a step's batch (all by default)."""
        stage = self.stage(step)
        turns, own_step = self.turns[stage], step - self.starts[stage]
        owner = int(turns.owner[own_step])
        row = int(turns.before[own_step, owner]) * self.rows
        return turns.streams[owner].batch(row + first, self.rows if count is None else count)

    def totals(self, steps: int) -> tuple[np.ndarray, int]:
        """Units and tokens by language (int64 [2, languages]) and targets of the first `steps` steps."""
        consumed, targets = self.turns[0].streams[0].totals(0)
        for turns, start, end in zip(self.turns, self.starts, self.ends, strict=True):
            if steps > start:
                for stream, own in zip(turns.streams, turns.before[min(steps, end) - start], strict=True):
                    more, further = stream.totals(int(own) * self.rows)
                    consumed, targets = consumed + more, targets + further
        return consumed, targets
