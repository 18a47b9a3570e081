"""Training the language model on interleaved units: one loop for a CPU, a GPU, or many (`accelerate launch`).

Sync points: the device is waited for only where a line is logged, or the model validated or saved. State is weights +
optimiser + step; a killed run goes on bit for bit. Cost: see `SLMTraining`; two cores with bfloat16 instructions train
the default model at about 8,000 tokens (32,000 units, 17 minutes of speech) a second.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slm.errors import TresseError
from slm.interleave import Mode
from slm.model import ModelConfig, parameter_count, save_model, training_flops
from slm.topics import Topics
from slm.units.vocabulary import UnitVocabulary
from train.lm.attention import use_document_attention
from train.lm.corpus import TokenCorpus
from train.lm.dropout import add_dropout
from train.lm.loader import Loader
from train.lm.log import LossMeter, RunLog, by_language
from train.lm.packing import PackedBatch
from train.lm.schedule import STORIES, SLMTraining, StagedStream
from train.lm.state import Checkpoints, Weights, check_same
from train.lm.step import PackedStep, optimisers_of, token_losses
from train.lm.stream import ORDER, Counts, evaluation_batches
from train.tools.checkpoints import write_json
from train.tools.hardware import bf16_pays, peak_flops
from train.tools.progress import clock
from train.tools.trainer import Schedule, train

Say = Callable[[str], None]
"""Takes one line of text."""


def train_slm(
    model_config: ModelConfig,
    training: SLMTraining,
    vocabulary: UnitVocabulary,
    corpus_folder: Path,
    folder: Path,
    *,
    corpus: TokenCorpus | None = None,
    corpora: Mapping[str, Path] | None = None,
    validation: Path | None = None,
    topics: Topics | None = None,
    progress: Say | None = print,
) -> Any:
    """Train a language model and return it (float32, evaluation mode); under FSDP in the first process, None in the others.

    corpus_folder: Parquet shards and corpus.json. folder: receives checkpoints (train.lm.state), log.jsonl, tensorboard/,
    summary.json and, when done, slm/ (model and tokenizer). Called again it goes on where it stopped; when all steps are
    done it only loads. corpus: the loaded corpus, if at hand. corpora: folders of further ones, by the names that stages
    have for them. validation: folder of a corpus of stories to validate on; without it some of the training corpus are held
    out (honest only where stories have little in common). topics: what a new model's embeddings begin with. progress: takes
    one line of text at a time. Under `accelerate launch` every process calls it alike. Raises TresseError.
    """
    from accelerate import Accelerator

    bf16 = training.precision == "bf16" or (training.precision == "auto" and bf16_pays())
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no")
    say: Say = progress if progress is not None and accelerator.is_main_process else lambda line: None
    vocabulary = vocabulary.with_tags(training.tags)  # and it is saved so: whoever uses the model puts none in either
    if corpus is None:
        corpus = TokenCorpus.load(corpus_folder, vocabulary, progress=say)
    if corpus.tags != vocabulary.tags:
        raise TresseError(
            f"the corpus was tokenised {'without' if vocabulary.tags else 'with'} language tags: load it anew"
        )
    if corpus.left_out:
        say(f"{corpus.left_out} stories left out: a sentence of theirs has no units")
    training.check(corpus.languages, (STORIES, *(corpora or {})))
    further = {name: _further(name, path, corpus, vocabulary, say) for name, path in (corpora or {}).items()}
    others = None if validation is None else TokenCorpus.load(validation, vocabulary)
    checkpoints = Checkpoints(Path(folder))
    state = checkpoints.newest()
    position = None if state is None else _position(state)
    if state is not None and position is None:
        say(
            "the checkpoint is of a version that read stories in another order: from here on they are read in the new one"
        )
    stories = _Stories.of(corpus, others, training, accelerator.num_processes, position, further)
    for name in stories.stream.corpora:
        if untold := stories.stream.untold(name):
            say(
                f"{untold} rows of {name} are told by no stage: those in one language need mixed or monolingual, pairs "
                "interleaved"
            )
    build = partial(model_config.build, vocabulary, topics)
    run = _Run(
        model_config, build, training, vocabulary, stories, Path(folder), accelerator, bf16, say, checkpoints, state
    )
    actions = [
        (training.log_every, run.report),
        *([(training.validate_every, run.validate)] if stories.checks else []),
        (training.checkpoint_every, run.save),
    ]
    try:
        train(run.step, run.schedule, actions, start=run.start, reduce=accelerator.reduce)
    finally:
        run.close()
    return run.finish()


def _further(name: str, folder: Path, stories: TokenCorpus, vocabulary: UnitVocabulary, say: Say) -> TokenCorpus:
    """A corpus beside that of the stories. Raises TresseError where its units or languages are others."""
    corpus = TokenCorpus.load(folder, vocabulary, progress=say)
    if (corpus.languages, corpus.frame_rate) != (stories.languages, stories.frame_rate):
        raise TresseError(
            f"the corpus {name} has {', '.join(corpus.languages)} at {corpus.frame_rate:g} units/s, the stories "
            f"{', '.join(stories.languages)} at {stories.frame_rate:g}: prepare it with the same languages and units"
        )
    return corpus


def _position(state: dict[str, Any]) -> dict[str, Any] | None:
    """Where a checkpoint is in the stream of batches; None where its version read stories in another order."""
    position = state.get("stream")
    return position if position is not None and position["order"] == ORDER else None


@torch.no_grad()
def validate(
    model: nn.Module, batches: list[PackedBatch], accelerator: Any, languages: tuple[str, ...], *, half: bool = False
) -> dict[str, float]:
    """Mean loss on held-out batches: {"all": ..., LANG: ...}, in nats a token.

    Every process computes all of them: they are few, and sharded models need all processes in every forward pass.
    """
    model.eval()
    meter = LossMeter(languages, accelerator)
    for batch in batches:
        meter.add(token_losses(model, batch, accelerator.device, half=half), batch)
    model.train()
    return meter.read()


@dataclass(frozen=True)
class _Stories:
    """What a run trains and validates on. checks: batches of held-out stories, by mode."""

    training: TokenCorpus
    held_out: list[str]
    held_out_count: int
    stream: StagedStream
    checks: dict[str, list[PackedBatch]]

    @classmethod
    def of(
        cls,
        corpus: TokenCorpus,
        others: TokenCorpus | None,
        training: SLMTraining,
        processes: int,
        position: dict[str, Any] | None,
        further: Mapping[str, TokenCorpus],
    ) -> _Stories:
        """others: stories to validate on; None: hold some of the corpus out. position: where a run goes on in the stream.
        further: corpora beside it."""
        stories, validation = corpus.split(training.held_out, training.seed) if others is None else (corpus, others)
        settings = {"row_length": training.row_length, "seed": training.seed, "rows": training.rows_a_pass(processes)}
        modes = ("interleaved", "mixed") if len(corpus.languages) > 1 else ("mixed",)
        stream = StagedStream(stories, training, position, further)
        told = [mode for mode in modes if len(validation.served(Mode.parse(mode, corpus.languages)))]
        checks = {mode: evaluation_batches(validation, mode, **settings) for mode in told}
        held_out = sorted(set(validation.ids.tolist())) if others is None else []
        return cls(stories, held_out, len(validation), stream, checks)


class _Run:
    """The state of a run: the model, its optimisers, and what has been counted since the last log line."""

    def __init__(
        self,
        model_config: ModelConfig,
        build: Callable[[], Any],
        training: SLMTraining,
        vocabulary: UnitVocabulary,
        stories: _Stories,
        folder: Path,
        accelerator: Any,
        bf16: bool,
        say: Say,
        checkpoints: Checkpoints,
        state: dict[str, Any] | None,
    ) -> None:
        """build: makes the model. state: the checkpoint that the run goes on from."""
        self.build, self.training, self.vocabulary = build, training, vocabulary
        self.stories, self.stream, self.languages = stories, stories.stream, stories.training.languages
        self.folder, self.accelerator, self.bf16, self.say = folder, accelerator, bf16, say
        self.checkpoints = checkpoints
        self.processes = accelerator.num_processes
        self.first_row, self.rows = training.rows_of(accelerator.process_index, self.processes)
        self.schedule = Schedule(self.stream.steps, training.warmup_steps(self.stream.steps), training.floor)
        settings = {"model": asdict(model_config), "training": training.lasting()}
        self.settings = json.loads(json.dumps(settings))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            model = build()
        self.peak = peak_flops(accelerator.device, bf16)
        self._introduce(model)
        self._prepare(model, state)
        self.log = RunLog(folder, self.start) if accelerator.is_main_process else None
        self.meter = LossMeter(self.languages, accelerator)
        self.norm = torch.zeros(())
        self.attended = 0
        """Pairs of positions that attention compared since the last log line, in this process."""
        self.logged, self.logged_at = self.start, time.perf_counter()
        self.loader = Loader(self.stream, self.first_row, self.rows)
        known = None if state is None else _position(state)
        self.before: Counts = (
            self.stream.totals(self.start) if known is None else (np.asarray(known["consumed"]), known["targets"])
        )
        self.logged_totals = self.before
        """`before`: what all processes have read when they were last counted; `consumed`: this one, since then."""
        self.consumed: Counts = self.stream.totals(0)

    def _introduce(self, model: nn.Module) -> None:
        self.say(
            f"{parameter_count(model) / 1e6:.1f}M parameters, {len(self.stories.training):,} stories in "
            f"{', '.join(self.languages)}, {self.stories.held_out_count} held out, {self.stream.steps:,} steps x "
            f"{self.training.positions:,} tokens, {'bfloat16' if self.bf16 else 'float32'} on {self.processes} x "
            f"{self.accelerator.device}"
        )

    def _prepare(self, model: Any, state: dict[str, Any] | None) -> None:
        """Load what there is, and give model and optimisers to the processes."""
        training, device = self.training, self.accelerator.device
        if state is not None:
            check_same(state["settings"], self.settings, self.folder)
        optimisers = optimisers_of(model, training, device)
        self.weights = Weights(self.accelerator, model, optimisers)
        if self.weights.sharded and training.optimiser == "muon":
            raise TresseError("muon needs whole matrices: with FSDP train with slm.optimiser=adamw")
        if state is not None and "model" in state:
            self.weights.load_model(state)
        self.kernel = model.config._attn_implementation
        use_document_attention(model)
        add_dropout(model, training.dropout)
        if training.compile == "yes" or (training.compile == "auto" and device.type == "cuda"):
            model.compile()
        self.plain = model
        self.model, *prepared = self.accelerator.prepare(model.train(), *optimisers)
        self.weights.prepared(self.model, prepared)
        if state is not None and "model" in state:
            self.weights.load_optimisers(state)
        elif state is not None:
            self.weights.load_shards(self.checkpoints.sharded, state["shards"])
        self.packed_step = PackedStep(
            self.model, prepared, training, device, half=self.bf16, accelerator=self.accelerator
        )
        self.start = 0 if state is None else int(state["step"])
        if self.start:
            self.say(f"going on from step {self.start:,}")

    def step(self, number: int, factor: float) -> Tensor:
        """One step (train.tools.trainer): this process's share of the loss, and the gradients' norm."""
        # dropout, where a model has any, is a function of the step too
        sequence = np.random.SeedSequence([self.training.seed, number, self.first_row])
        torch.manual_seed(int(sequence.generate_state(1)[0]))
        batch, counts = self.loader.draw(number)
        self.consumed = _sum(self.consumed, counts)
        self.attended += int(batch.positions.sum()) + batch.positions.numel()
        loss = self.packed_step.gradients(batch, self._in_all(counts[1]), self.meter.add)
        self.norm = self.packed_step.updates.apply(factor)
        return loss + self.norm

    def _in_all(self, targets: int) -> int | Tensor:
        """A number summed over all processes: on the device, without waiting for it."""
        if self.processes == 1:
            return targets
        return self.accelerator.reduce(torch.tensor(targets, device=self.accelerator.device), reduction="sum")

    def totals(self) -> Counts:
        """What all processes have consumed, from the first step on. Every process must ask."""
        (consumed, targets), device = self.consumed, self.accelerator.device
        mine = torch.tensor([*consumed.ravel().tolist(), targets], device=device)
        all_ = self.accelerator.reduce(mine, reduction="sum").tolist()
        self.before = _sum(self.before, (np.asarray(all_[:-1]).reshape(consumed.shape), all_[-1]))
        self.consumed = np.zeros_like(consumed), 0
        return self.before

    def report(self, done: int) -> None:
        """A line of text and one of the log, on the steps since the last."""
        loss, training = self.meter.read(), self.training  # waits for the device
        now, since = time.perf_counter(), done - self.logged
        seconds, positions = now - self.logged_at, since * training.positions
        (units_before, _), targets_before = self.logged_totals
        totals = (units, tokens), targets = self.totals()
        computed = training_flops(self.plain, positions, self.attended * training.batch_rows // max(1, self.rows))
        entry = {
            "step": done,
            "mode": str(training.stages[self.stream.stage(done - 1)]),
            "loss": loss,
            "learning_rate": training.learning_rate * self.schedule.factor(done - 1),
            "gradient_norm": float(self.norm),
            "tokens_per_second": round(positions / seconds),
            "units_per_second": round(float((units - units_before).sum()) / seconds),
            "useful_share": round((targets - targets_before) / positions, 5),
            "mfu": None if self.peak is None else round(computed / seconds / (self.peak * self.processes), 4),
            "units": dict(zip(self.languages, units.tolist(), strict=True)),
            "tokens": dict(zip(self.languages, tokens.tolist(), strict=True)),
        }
        self.say(
            f"step {done:,}/{self.stream.steps:,} {entry['mode']} loss {by_language(loss)} "
            f"lr {entry['learning_rate']:.2e} norm {entry['gradient_norm']:.2f} "
            f"{entry['tokens_per_second']:,} tokens/s {entry['units_per_second']:,} units/s "
            f"useful {entry['useful_share']:.1%} "
            + ("" if self.peak is None else f"MFU {entry['mfu']:.1%} ")
            + f"ETA {clock((self.stream.steps - done) * seconds / since)}"
        )
        if self.log is not None:
            self.log.write(entry)
        self.logged, self.logged_at, self.logged_totals, self.attended = done, now, totals, 0

    def validate(self, done: int) -> None:
        """A line of text and one of the log, on held-out stories."""
        losses = {
            mode: validate(self.model, batches, self.accelerator, self.languages, half=self.bf16)
            for mode, batches in self.stories.checks.items()
        }
        self.say("  validation " + "; ".join(f"{mode} {by_language(loss)}" for mode, loss in losses.items()))
        if self.log is not None:
            self.log.write({"step": done, "validation": losses})

    def save(self, done: int) -> None:
        """Write the checkpoint. Every process must call it."""
        from accelerate.utils import gather_object

        self.accelerator.wait_for_everyone()
        consumed, targets = self.totals()
        stream = self.loader.position(done)
        stream["lanes"] = gather_object(stream["lanes"]) if self.processes > 1 else stream["lanes"]
        stream |= {"consumed": consumed.tolist(), "targets": targets}
        self.checkpoints.save(done, self.weights, {"settings": self.settings, "stream": stream})

    def close(self) -> None:
        """End the threads: that of the loader, and that which writes a checkpoint when it is complete."""
        self.loader.close()
        self.checkpoints.wait()

    def finish(self) -> Any:
        """The trained model, whole; the first process writes summary.json and slm/."""
        if self.weights.sharded:  # a whole model again
            full = self.weights.full_model()
            if not self.accelerator.is_main_process:
                return None
            trained: Any = self.build().eval()
            trained.load_state_dict(full)
        else:
            trained = self.accelerator.unwrap_model(self.model).eval()
            trained.set_attn_implementation(self.kernel)
        if self.accelerator.is_main_process:
            write_json(self.folder / "summary.json", self._summary(trained))
            save_model(trained, self.vocabulary, self.folder / "slm")
        return trained

    def _summary(self, trained: Any) -> dict[str, Any]:
        stream = self.stream
        units, tokens = self.before[0]
        return {
            "steps": stream.steps,
            "parameters": parameter_count(trained),
            "units": dict(zip(self.languages, units.tolist(), strict=True)),
            "tokens": dict(zip(self.languages, tokens.tolist(), strict=True)),
            "stages": [
                {"mode": str(stage), "steps": end - begin}
                for stage, begin, end in zip(self.training.stages, stream.starts, stream.ends, strict=True)
            ],
            "stories": len(self.stories.training),
            "held_out": self.stories.held_out,
            "settings": self.settings,
        }


def _sum(some: Counts, more: Counts) -> Counts:
    return some[0] + more[0], some[1] + more[1]
