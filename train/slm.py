"""Training the language model on interleaved units: one loop for a CPU, a GPU, or many (`accelerate launch`).

Trades: the loss is summed over targets and divided by their number in the whole step, which every process knows from
the packing plan, so that gradient accumulation and data parallelism change nothing but the time. Sync points: the
device is waited for only where a line is logged. State is weights + optimiser + step; a killed run goes on bit for bit.
Cost: see `SLMTraining`; two cores with bfloat16 instructions train the default model at about 8,000 tokens (32,000
units, 17 minutes of speech) a second.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from slm.errors import TresseError
from slm.interleave import Mode
from slm.model import ModelConfig, parameter_count, save_model
from slm.units.vocabulary import UnitVocabulary
from train.attention import attention_inputs, use_document_attention
from train.checkpoint import atomic_path, linear_schedule, load_checkpoint, save_checkpoint, write_json
from train.packing import IGNORE, PackedBatch, PackedStream, TokenCorpus, evaluation_batches
from train.precision import bf16_pays
from train.progress import clock

EPOCHS_PER_STAGE = 1 << 24
"""Stages draw from disjoint ranges of epochs."""


@dataclass(frozen=True)
class SLMTraining:
    """How a language model is trained. The defaults suit the default ModelConfig on two CPU cores.

    stages: (mode, share of the steps), in order; modes as in slm.interleave. tokens: the budget; `steps`, if given,
    overrides it. batch_rows x row_length: positions a step; micro_rows: rows a forward pass (None: all).
    warmup: steps. floor: last learning rate as a share of the peak. held_out: stories kept for validation.
    precision: `auto` (bfloat16 where the hardware multiplies it), `bf16` or `no`.
    """

    stages: tuple[tuple[str, float], ...] = (("interleaved", 1.0),)
    tokens: int = 12_000_000
    steps: int | None = None
    batch_rows: int = 8
    row_length: int = 1024
    micro_rows: int | None = 2
    learning_rate: float = 1.5e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    warmup: int = 50
    floor: float = 0.05
    clip: float = 1.0
    seed: int = 0
    tags: bool = True
    held_out: int = 64
    log_every: int = 20
    validate_every: int = 200
    checkpoint_every: int = 200
    precision: str = "auto"

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.steps if self.steps is not None else max(1, self.tokens // (self.batch_rows * self.row_length))

    def stage_ends(self) -> list[int]:
        """The step at which each stage ends (exclusive)."""
        shares = np.cumsum([share for _, share in self.stages])
        return [round(self.total_steps * float(share / shares[-1])) for share in shares]

    def check(self, languages: tuple[str, ...], processes: int = 1) -> None:
        """Raises TresseError for settings that cannot work."""
        if not self.stages or any(share <= 0 for _, share in self.stages):
            raise TresseError("every training stage needs a share above 0")
        for mode, _ in self.stages:
            Mode.parse(mode, languages)
        if self.batch_rows % processes or (self.batch_rows // processes) % self.rows_a_pass(processes):
            raise TresseError(
                f"batch_rows {self.batch_rows} must be a multiple of processes ({processes}) x micro_rows "
                f"({self.micro_rows})"
            )
        if self.precision not in ("auto", "bf16", "no"):
            raise TresseError(f"precision must be auto, bf16 or no, not {self.precision}")

    def rows_a_pass(self, processes: int) -> int:
        """Rows of one forward pass of one process."""
        return self.micro_rows or self.batch_rows // processes


class StagedStream:
    """The batches of a schedule of stages: step s is the same whoever asks, and whenever."""

    def __init__(self, corpus: TokenCorpus, training: SLMTraining) -> None:
        self.rows = training.batch_rows
        self.ends = training.stage_ends()
        self.starts = [0, *self.ends[:-1]]
        self.streams = [
            PackedStream(
                corpus, mode, row_length=training.row_length, seed=training.seed, first_epoch=stage * EPOCHS_PER_STAGE
            )
            for stage, (mode, _) in enumerate(training.stages)
        ]

    def stage(self, step: int) -> int:
        """The stage that a step belongs to."""
        return int(np.searchsorted(self.ends, step, side="right"))

    def batch(self, step: int, first: int = 0, count: int | None = None) -> PackedBatch:
        """Rows first .. first + count - 1 of a step's batch (all by default)."""
        stage = self.stage(step)
        row = (step - self.starts[stage]) * self.rows
        return self.streams[stage].batch(row + first, self.rows if count is None else count)

    def totals(self, steps: int) -> tuple[np.ndarray, int]:
        """Units and tokens by language (int64 [2, languages]) and targets of the first `steps` steps."""
        held = [
            stream.totals((min(steps, end) - start) * self.rows)
            for stream, start, end in zip(self.streams, self.starts, self.ends, strict=True)
            if steps > start
        ]
        if not held:
            return self.streams[0].totals(0)
        return np.sum([units for units, _ in held], axis=0), sum(targets for _, targets in held)


def token_losses(model: nn.Module, batch: PackedBatch, device: torch.device | str = "cpu") -> torch.Tensor:
    """Negative log-likelihood of every target in nats: float32 [B, L] on `device`, 0 where there is none.

    batch: on the CPU. model: on `device`, under `use_document_attention`.
    """
    moved = batch.to(device)
    logits = model(input_ids=moved.tokens, use_cache=False, **attention_inputs(batch.positions, device)).logits
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), moved.targets.flatten(), ignore_index=IGNORE, reduction="none"
    )
    return losses.view_as(moved.targets)


class _Meter:
    """Sums of loss and number of targets by language, kept on the device until somebody reads them."""

    def __init__(self, languages: int, device: torch.device) -> None:
        self.sums = torch.zeros(2, languages, dtype=torch.float64, device=device)

    def add(self, losses: torch.Tensor, batch: PackedBatch) -> None:
        real = (batch.targets != IGNORE).flatten().to(losses.device, torch.float64, non_blocking=True)
        values = torch.stack([losses.detach().flatten().double(), real])
        self.sums.index_add_(1, batch.languages.flatten().to(losses.device, non_blocking=True), values)

    def read(self, accelerator: Any, languages: tuple[str, ...]) -> dict[str, float]:
        """{"all": mean loss, LANG: ...} over all processes, and start again. Waits for the device."""
        total, count = accelerator.reduce(self.sums, reduction="sum").cpu()
        self.sums.zero_()
        each = {name: float(total[k] / count[k]) for k, name in enumerate(languages) if count[k]}
        return {"all": float(total.sum() / count.sum()), **each}


@torch.no_grad()
def validate(model: nn.Module, batches: list[PackedBatch], accelerator: Any, languages: tuple[str, ...]) -> dict:
    """Mean loss on held-out batches: {"all": ..., LANG: ...}, in nats a token.

    Every process computes all of them: they are few, and sharded models need all processes in every forward pass.
    """
    model.eval()
    meter = _Meter(len(languages), accelerator.device)
    for batch in batches:
        meter.add(token_losses(model, batch, accelerator.device), batch)
    model.train()
    return meter.read(accelerator, languages)


def _optimiser(model: nn.Module, training: SLMTraining, device: torch.device) -> torch.optim.AdamW:
    """AdamW; matrices and tables decay, norms and biases do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=training.learning_rate, betas=training.betas, fused=device.type == "cuda" or None
    )


class _Log:
    """log.jsonl: one object a line. Lines past the step that a run resumes from are dropped first."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        kept = []
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if json.loads(line)["step"] <= step]
        with atomic_path(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def write(self, entry: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def _by_language(losses: dict[str, float]) -> str:
    each = ", ".join(f"{name} {value:.3f}" for name, value in losses.items() if name != "all")
    return f"{losses['all']:.4f} ({each})"


def train_slm(
    model_config: ModelConfig,
    training: SLMTraining,
    vocabulary: UnitVocabulary,
    corpus_folder: Path,
    folder: Path,
    *,
    corpus: TokenCorpus | None = None,
    progress: Callable[[str], None] | None = print,
) -> Any:
    """Train a language model and return it (float32, evaluation mode).

    corpus_folder: Parquet shards and corpus.json. folder: receives checkpoint.pt, log.jsonl, summary.json and, when
    done, slm/ (model and tokenizer). Called again it goes on where it stopped; when all steps are done it only loads.
    corpus: the loaded corpus, if at hand. progress: takes one line of text at a time. Raises TresseError.
    """
    from accelerate import Accelerator

    folder = Path(folder)
    bf16 = training.precision == "bf16" or (training.precision == "auto" and bf16_pays())
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no")
    main, device = accelerator.is_main_process, accelerator.device
    say = progress if progress is not None and main else lambda line: None

    if corpus is None:
        corpus = TokenCorpus.load(corpus_folder, vocabulary, tags=training.tags, progress=say)
    if corpus.left_out:
        say(f"{corpus.left_out} stories left out: a sentence of theirs has no units")
    languages = corpus.languages
    training.check(languages, accelerator.num_processes)
    stories, held = corpus.split(training.held_out, training.seed)
    stream = StagedStream(stories, training)
    steps = training.total_steps
    local = training.batch_rows // accelerator.num_processes
    first = accelerator.process_index * local
    micro = training.rows_a_pass(accelerator.num_processes)
    validation = {
        mode: evaluation_batches(held, mode, row_length=training.row_length, seed=training.seed, rows=micro)
        for mode in (("interleaved", "mixed") if len(languages) > 1 else ("mixed",))
        if len(held)
    }

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        model = model_config.build(vocabulary)
    say(
        f"{parameter_count(model) / 1e6:.1f}M parameters, {len(stories):,} stories in {', '.join(languages)}, "
        f"{len(held)} held out, {steps:,} steps x {training.batch_rows * training.row_length:,} tokens, "
        f"{'bfloat16' if bf16 else 'float32'} on {accelerator.num_processes} x {device}"
    )
    settings = json.loads(json.dumps({"model": asdict(model_config), "training": _lasting(training)}))
    state = load_checkpoint(folder / "checkpoint.pt")
    if state is not None:
        _check_same(state["settings"], settings, folder)
        model.load_state_dict(state["model"])
    optimiser = _optimiser(model, training, device)
    kernel = model.config._attn_implementation
    use_document_attention(model)
    model, optimiser = accelerator.prepare(model.train(), optimiser)
    if state is not None:
        optimiser.load_state_dict(state["optimiser"])
    start = 0 if state is None else int(state["step"])
    del state
    if start:
        say(f"going on from step {start:,}")
    factor = linear_schedule(steps, training.warmup, training.floor)
    log = _Log(folder / "log.jsonl", start) if main else None
    meter = _Meter(len(languages), device)
    seconds, began, since, targets_before = 0.0, time.perf_counter(), start, stream.totals(start)[1]

    def checkpoint(step: int) -> None:
        accelerator.wait_for_everyone()
        if main:
            held_state = {
                "step": step,
                "settings": settings,
                "model": accelerator.unwrap_model(model).state_dict(),
                "optimiser": optimiser.state_dict(),
            }
            save_checkpoint(folder / "checkpoint.pt", held_state)

    for step in range(start, steps):
        rate = training.learning_rate * factor(step)
        for group in optimiser.param_groups:
            group["lr"] = rate
        # every process knows how many targets the whole step has: no communication for the mean
        targets = stream.totals(step + 1)[1] - stream.totals(step)[1]
        batch = stream.batch(step, first, local)
        for row in range(0, local, micro):
            part = batch.rows(slice(row, row + micro))
            last = row + micro >= local
            with nullcontext() if last else accelerator.no_sync(model):
                losses = token_losses(model, part, device)
                accelerator.backward(losses.sum() * (accelerator.num_processes / targets))
            meter.add(losses, part)
        norm = accelerator.clip_grad_norm_(model.parameters(), training.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        done = step + 1
        if done % training.log_every == 0 or done == steps:
            loss = meter.read(accelerator, languages)  # waits for the device
            now = time.perf_counter()
            seconds = now - began
            (units, tokens), targets_now = stream.totals(done)
            units_before = stream.totals(since)[0][0]
            positions = (done - since) * training.batch_rows * training.row_length
            entry = {
                "step": done,
                "mode": training.stages[stream.stage(step)][0],
                "loss": loss,
                "learning_rate": rate,
                "gradient_norm": float(norm),
                "tokens_per_second": round(positions / seconds),
                "units_per_second": round(float((units - units_before).sum()) / seconds),
                "useful_share": round((targets_now - targets_before) / positions, 5),
                "units": dict(zip(languages, units.tolist(), strict=True)),
                "tokens": dict(zip(languages, tokens.tolist(), strict=True)),
            }
            say(
                f"step {done:,}/{steps:,} {entry['mode']} loss {_by_language(loss)} lr {rate:.2e} "
                f"norm {float(norm):.2f} {entry['tokens_per_second']:,} tokens/s {entry['units_per_second']:,} units/s "
                f"useful {entry['useful_share']:.1%} ETA {clock((steps - done) * seconds / (done - since))}"
            )
            if not np.isfinite(loss["all"]):
                raise TresseError(f"the loss is not finite at step {done}: lower the learning rate")
            if log is not None:
                log.write(entry)
            began, since, targets_before = now, done, targets_now
        if validation and (done % training.validate_every == 0 or done == steps):
            held_losses = {
                mode: validate(model, batches, accelerator, languages) for mode, batches in validation.items()
            }
            say("  validation " + "; ".join(f"{mode} {_by_language(loss)}" for mode, loss in held_losses.items()))
            if log is not None:
                log.write({"step": done, "validation": held_losses})
        if done % training.checkpoint_every == 0 or done == steps:
            checkpoint(done)

    trained = accelerator.unwrap_model(model).eval()
    trained.set_attn_implementation(kernel)
    if main:
        units, tokens = stream.totals(steps)[0]
        summary = {
            "steps": steps,
            "parameters": parameter_count(trained),
            "units": dict(zip(languages, units.tolist(), strict=True)),
            "tokens": dict(zip(languages, tokens.tolist(), strict=True)),
            "stories": len(stories),
            "held_out": sorted(set(held.ids.tolist())),
            "settings": settings,
        }
        write_json(folder / "summary.json", summary)
        save_model(trained, vocabulary, folder / "slm")
    return trained


def _lasting(training: SLMTraining) -> dict[str, Any]:
    """The settings that a run must keep when it is resumed; how often it reports may change."""
    plain = SLMTraining()
    same = {name: getattr(plain, name) for name in ("log_every", "validate_every", "checkpoint_every", "micro_rows")}
    return asdict(replace(training, **same, tokens=0, steps=training.total_steps))


def _check_same(held: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    for part in wanted:
        for name, value in wanted[part].items():
            if held[part].get(name) != value:
                raise TresseError(
                    f"the run in {folder} was started with {part} {name}={held[part].get(name)}, not {value}: "
                    "use another folder, or delete its checkpoint.pt"
                )
