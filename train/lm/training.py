"""Training the language model on interleaved units: one loop for a CPU, a GPU, or many (`accelerate launch`).

Sync points: the device is waited for only where a line is logged, or the model validated or saved. State is weights +
optimiser + step; a killed run goes on bit for bit. Cost: see `SLMTraining`; two cores with bfloat16 instructions train
the default model at about 8,000 tokens (32,000 units, 17 minutes of speech) a second.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slm.errors import TresseError
from slm.interleave import OLD_NAMES, Mode
from slm.model import ModelConfig, parameter_count, save_model, training_flops
from slm.units.vocabulary import UnitVocabulary
from train.lm.attention import use_document_attention
from train.lm.corpus import TokenCorpus
from train.lm.log import LossMeter, RunLog, by_language
from train.lm.packing import PackedBatch, evaluation_batches
from train.lm.schedule import SLMTraining, StagedStream
from train.lm.step import PackedStep, optimisers_of, token_losses
from train.tools.checkpoints import load_checkpoint, save_checkpoint, write_json
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
    validation: Path | None = None,
    progress: Say | None = print,
) -> Any:
    """Train a language model and return it (float32, evaluation mode).

    corpus_folder: Parquet shards and corpus.json. folder: receives checkpoint.pt, log.jsonl, tensorboard/, summary.json
    and, when done, slm/ (model and tokenizer). Called again it goes on where it stopped; when all steps are done it only
    loads. corpus: the loaded corpus, if at hand. validation: folder of a corpus of stories to validate on; without it some
    of the training corpus are held out (honest only where stories have little in common). progress: takes one line of text
    at a time. Under `accelerate launch` every process calls it alike. Raises TresseError.
    """
    from accelerate import Accelerator

    bf16 = training.precision == "bf16" or (training.precision == "auto" and bf16_pays())
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no")
    say: Say = progress if progress is not None and accelerator.is_main_process else lambda line: None
    vocabulary = vocabulary.with_tags(training.tags)  # and it is saved so: whoever uses the model puts none in either
    if corpus is None:
        corpus = TokenCorpus.load(corpus_folder, vocabulary, progress=say)
    if bool(np.isin(corpus.tokens[corpus.starts[0, 0]], list(vocabulary.tag_ids.values())).all()) != vocabulary.tags:
        raise TresseError(
            f"the corpus was tokenised {'without' if vocabulary.tags else 'with'} language tags: load it anew"
        )
    if corpus.left_out:
        say(f"{corpus.left_out} stories left out: a sentence of theirs has no units")
    training.check(corpus.languages, accelerator.num_processes)
    others = None if validation is None else TokenCorpus.load(validation, vocabulary)
    stories = _Stories.of(corpus, others, training, accelerator.num_processes)
    if untold := stories.stream.untold(stories.training):
        say(f"{untold} rows are told by no stage: those in one language need mixed or monolingual, pairs interleaved")
    run = _Run(model_config, training, vocabulary, stories, Path(folder), accelerator, bf16, say)
    actions = [
        (training.log_every, run.report),
        *([(training.validate_every, run.validate)] if stories.checks else []),
        (training.checkpoint_every, run.save),
    ]
    train(run.step, run.schedule, actions, start=run.start, reduce=accelerator.reduce)
    return run.finish()


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
    def of(cls, corpus: TokenCorpus, others: TokenCorpus | None, training: SLMTraining, processes: int) -> _Stories:
        """others: stories to validate on; None: hold some of the corpus out."""
        stories, validation = corpus.split(training.held_out, training.seed) if others is None else (corpus, others)
        settings = {"row_length": training.row_length, "seed": training.seed, "rows": training.rows_a_pass(processes)}
        modes = ("interleaved", "mixed") if len(corpus.languages) > 1 else ("mixed",)
        stream = StagedStream(stories, training)
        told = [mode for mode in modes if len(validation.served(Mode.parse(mode, corpus.languages)))]
        checks = {mode: evaluation_batches(validation, mode, **settings) for mode in told}
        held_out = sorted(set(validation.ids.tolist())) if others is None else []
        return cls(stories, held_out, len(validation), stream, checks)


class _Run:
    """The state of a run: the model, its optimisers, and what has been counted since the last log line."""

    def __init__(
        self,
        model_config: ModelConfig,
        training: SLMTraining,
        vocabulary: UnitVocabulary,
        stories: _Stories,
        folder: Path,
        accelerator: Any,
        bf16: bool,
        say: Say,
    ) -> None:
        self.model_config, self.training, self.vocabulary = model_config, training, vocabulary
        self.stories, self.stream, self.languages = stories, stories.stream, stories.training.languages
        self.folder, self.accelerator, self.bf16, self.say = folder, accelerator, bf16, say
        self.processes = accelerator.num_processes
        self.rows = training.batch_rows // self.processes
        self.first_row = accelerator.process_index * self.rows
        self.schedule = Schedule(self.stream.steps, training.warmup_steps(self.stream.steps), training.floor)
        settings = {"model": asdict(model_config), "training": training.lasting()}
        self.settings = json.loads(json.dumps(settings))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            model = model_config.build(vocabulary)
        self.peak = peak_flops(accelerator.device, bf16)
        self._introduce(model)
        self._prepare(model)
        self.log = RunLog(folder, self.start) if accelerator.is_main_process else None
        self.meter = LossMeter(self.languages, accelerator)
        self.norm = torch.zeros(())
        self.attended = 0
        """Pairs of positions that attention compared since the last log line, in this process."""
        self.logged, self.logged_at = self.start, time.perf_counter()
        self.logged_totals = self.stream.totals(self.start)

    def _introduce(self, model: nn.Module) -> None:
        self.say(
            f"{parameter_count(model) / 1e6:.1f}M parameters, {len(self.stories.training):,} stories in "
            f"{', '.join(self.languages)}, {self.stories.held_out_count} held out, {self.stream.steps:,} steps x "
            f"{self.training.positions:,} tokens, {'bfloat16' if self.bf16 else 'float32'} on {self.processes} x "
            f"{self.accelerator.device}"
        )

    def _prepare(self, model: Any) -> None:
        """Load what there is, and give model and optimisers to the processes."""
        training, device = self.training, self.accelerator.device
        state = load_checkpoint(self.folder / "checkpoint.pt")
        if state is not None:
            _check_same(state["settings"], self.settings, self.folder)
            model.load_state_dict(state["model"])
        optimisers = optimisers_of(model, training, device)
        self.kernel = model.config._attn_implementation
        use_document_attention(model)
        if training.compile == "yes" or (training.compile == "auto" and device.type == "cuda"):
            model.compile()
        self.plain = model
        self.model, *prepared = self.accelerator.prepare(model.train(), *optimisers)
        self.weights = _Weights(self.accelerator, self.model, prepared)
        if self.weights.sharded and training.optimiser == "muon":
            raise TresseError("muon needs whole matrices: with FSDP train with slm.optimiser=adamw")
        if state is not None:
            self.weights.load_optimisers(state["optimiser"])
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
        # every process knows how many targets the whole step has: no communication for the mean
        targets = self.stream.totals(number + 1)[1] - self.stream.totals(number)[1]
        batch = self.stream.batch(number, self.first_row, self.rows)
        self.attended += int(batch.positions.sum()) + batch.positions.numel()
        loss = self.packed_step.gradients(batch, targets, self.meter.add)
        self.norm = self.packed_step.updates.apply(factor)
        return loss + self.norm

    def report(self, done: int) -> None:
        """A line of text and one of the log, on the steps since the last."""
        loss, training = self.meter.read(), self.training  # waits for the device
        now, since = time.perf_counter(), done - self.logged
        seconds, positions = now - self.logged_at, since * training.positions
        totals = (units, tokens), targets = self.stream.totals(done)
        (units_before, _), targets_before = self.logged_totals
        computed = training_flops(self.plain, positions, self.attended * self.processes)
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
        self.accelerator.wait_for_everyone()
        state = {"step": done, "settings": self.settings, **self.weights.state()}
        if self.accelerator.is_main_process:
            save_checkpoint(self.folder / "checkpoint.pt", state)

    def finish(self) -> Any:
        """The trained model, whole; the first process writes summary.json and slm/."""
        if self.weights.sharded:  # a whole model again
            self.accelerator.wait_for_everyone()
            trained: Any = self.model_config.build(self.vocabulary).eval()
            final = load_checkpoint(self.folder / "checkpoint.pt")
            if final is not None:
                trained.load_state_dict(final["model"])
        else:
            trained = self.accelerator.unwrap_model(self.model).eval()
            trained.set_attn_implementation(self.kernel)
        if self.accelerator.is_main_process:
            write_json(self.folder / "summary.json", self._summary(trained))
            save_model(trained, self.vocabulary, self.folder / "slm")
        return trained

    def _summary(self, trained: Any) -> dict[str, Any]:
        stream = self.stream
        units, tokens = stream.totals(stream.steps)[0]
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


class _Weights:
    """Model and optimisers as a checkpoint holds them, whole, also where processes hold a part each (FSDP)."""

    def __init__(self, accelerator: Any, model: nn.Module, optimisers: list[Any]) -> None:
        self.accelerator, self.model, self.optimisers = accelerator, model, optimisers
        self.sharded = str(accelerator.distributed_type).endswith("FSDP")

    def state(self) -> dict[str, Any]:
        """Every process must ask; what the first one gets is whole."""
        if self.sharded:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            model, optimiser = get_state_dict(self.model, [o.optimizer for o in self.optimisers], options=options)
            return {"model": model, "optimiser": optimiser}
        model = self.accelerator.unwrap_model(self.model).state_dict()
        return {"model": model, "optimiser": [optimiser.state_dict() for optimiser in self.optimisers]}

    def load_optimisers(self, state: Any) -> None:
        """`state()["optimiser"]`; the weights are loaded before they are given to the processes."""
        if self.sharded:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

            options = StateDictOptions(full_state_dict=True)
            plain = [o.optimizer for o in self.optimisers]
            set_optimizer_state_dict(self.model, plain, optim_state_dict=state, options=options)
        else:
            for optimiser, own in zip(self.optimisers, state, strict=True):
                optimiser.load_state_dict(own)


def _check_same(before: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    before, wanted = _in_new_words(before), _in_new_words(wanted)
    for part in wanted:
        for name, value in wanted[part].items():
            if before[part].get(name) != value:
                raise TresseError(
                    f"the run in {folder} was started with {part} {name}={before[part].get(name)}, not {value}: "
                    "use another folder, or delete its checkpoint.pt"
                )


def _in_new_words(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the names that modes have now."""
    text = json.dumps(settings)
    for old, new in OLD_NAMES.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    return json.loads(text)
