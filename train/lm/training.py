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
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from slm.errors import TresseError
from slm.model import ModelConfig, parameter_count, save_model, training_flops
from slm.units.vocabulary import UnitVocabulary
from train.lm.attention import attention_inputs, use_document_attention
from train.lm.packing import IGNORE, PackedBatch, TokenCorpus, evaluation_batches
from train.lm.schedule import SLMTraining, StagedStream
from train.tools.checkpoints import linear_schedule, load_checkpoint, save_checkpoint, write_json
from train.tools.hardware import bf16_pays, peak_flops
from train.tools.progress import Log, clock


def token_losses(
    model: nn.Module, batch: PackedBatch, device: torch.device | str = "cpu", *, half: bool = False
) -> torch.Tensor:
    """Negative log-likelihood of every target in nats: float32 [B, L] on `device`, 0 where there is none.

    batch: on the CPU. model: on `device`, under `use_document_attention`; half: it computes in half precision.
    """
    moved = batch.to(device)
    inputs = attention_inputs(batch.positions, device, half=half)
    logits = model(input_ids=moved.tokens, use_cache=False, **inputs).logits
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
def validate(
    model: nn.Module, batches: list[PackedBatch], accelerator: Any, languages: tuple[str, ...], *, half: bool = False
) -> dict[str, float]:
    """Mean loss on held-out batches: {"all": ..., LANG: ...}, in nats a token.

    Every process computes all of them: they are few, and sharded models need all processes in every forward pass.
    """
    model.eval()
    meter = _Meter(len(languages), accelerator.device)
    for batch in batches:
        meter.add(token_losses(model, batch, accelerator.device, half=half), batch)
    model.train()
    return meter.read(accelerator, languages)


def optimisers_of(model: nn.Module, training: SLMTraining, device: torch.device) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the body's matrices if asked for; matrices and tables decay, norms and biases do not.

    Muon (Jordan 2024; scaled as in Liu et al., arXiv 2502.16982, so that it takes AdamW's learning rate and decay).
    """
    held = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is not None:
        tables.add(id(head.weight))
    decayed = [p for p in held.values() if p.ndim >= 2]
    body = [p for p in decayed if p.ndim == 2 and id(p) not in tables] if training.optimiser == "muon" else []
    taken = {id(p) for p in body}
    groups = [
        {"params": [p for p in decayed if id(p) not in taken], "weight_decay": training.weight_decay},
        {"params": [p for p in held.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = device.type in ("cpu", "cuda") or None
    made: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=training.learning_rate, betas=training.betas, fused=fused)
    ]
    if body:
        settings = {"lr": training.learning_rate, "weight_decay": training.weight_decay}
        made.append(torch.optim.Muon(body, **settings, adjust_lr_fn="match_rms_adamw"))
    return made


class _Log(Log):
    """log.jsonl, and the same in tensorboard/."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(folder / "log.jsonl", step)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, entry: dict[str, Any]) -> None:
        super().write(entry)
        for name, value in _numbers(entry):
            if name != "step":
                self.board.add_scalar(name, value, entry["step"])
        self.board.flush()


def _numbers(entry: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in entry.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield prefix + name, value


def _by_language(losses: dict[str, float]) -> str:
    each = ", ".join(f"{name} {value:.3f}" for name, value in losses.items() if name != "all")
    return f"{losses['all']:.4f} ({each})"


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
            held = [o.optimizer for o in self.optimisers]
            set_optimizer_state_dict(self.model, held, optim_state_dict=state, options=options)
        else:
            for optimiser, held in zip(self.optimisers, state, strict=True):
                optimiser.load_state_dict(held)


def train_slm(
    model_config: ModelConfig,
    training: SLMTraining,
    vocabulary: UnitVocabulary,
    corpus_folder: Path,
    folder: Path,
    *,
    corpus: TokenCorpus | None = None,
    validation: Path | None = None,
    progress: Callable[[str], None] | None = print,
) -> Any:
    """Train a language model and return it (float32, evaluation mode).

    corpus_folder: Parquet shards and corpus.json. folder: receives checkpoint.pt, log.jsonl, tensorboard/, summary.json
    and, when done, slm/ (model and tokenizer). Called again it goes on where it stopped; when all steps are done it only
    loads. corpus: the loaded corpus, if at hand. validation: folder of a corpus of stories to validate on; without it some
    of the training corpus are held out (honest only where stories have little in common). progress: takes one line of text
    at a time. Under `accelerate launch` every process calls it alike. Raises TresseError.
    """
    from accelerate import Accelerator

    folder = Path(folder)
    bf16 = training.precision == "bf16" or (training.precision == "auto" and bf16_pays())
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no")
    main, device, processes = accelerator.is_main_process, accelerator.device, accelerator.num_processes
    say = progress if progress is not None and main else lambda line: None

    if corpus is None:
        corpus = TokenCorpus.load(corpus_folder, vocabulary, tags=training.tags, progress=say)
    if corpus.left_out:
        say(f"{corpus.left_out} stories left out: a sentence of theirs has no units")
    languages = corpus.languages
    training.check(languages, processes)
    if validation is None:
        stories, held = corpus.split(training.held_out, training.seed)
    else:
        stories, held = corpus, TokenCorpus.load(validation, vocabulary, tags=training.tags)
    stream = StagedStream(stories, training)
    steps = stream.steps
    local = training.batch_rows // processes
    first = accelerator.process_index * local
    micro = training.rows_a_pass(processes)
    checks = {
        mode: evaluation_batches(held, mode, row_length=training.row_length, seed=training.seed, rows=micro)
        for mode in (("interleaved", "mixed") if len(languages) > 1 else ("mixed",))
        if len(held)
    }

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        model = model_config.build(vocabulary)
    peak = peak_flops(device, bf16)
    say(
        f"{parameter_count(model) / 1e6:.1f}M parameters, {len(stories):,} stories in {', '.join(languages)}, "
        f"{len(held)} held out, {steps:,} steps x {training.positions:,} tokens, "
        f"{'bfloat16' if bf16 else 'float32'} on {processes} x {device}"
    )
    settings = json.loads(json.dumps({"model": asdict(model_config), "training": training.lasting()}))
    state = load_checkpoint(folder / "checkpoint.pt")
    if state is not None:
        _check_same(state["settings"], settings, folder)
        model.load_state_dict(state["model"])
    optimisers = optimisers_of(model, training, device)
    kernel = model.config._attn_implementation
    use_document_attention(model)
    if training.compile == "yes" or (training.compile == "auto" and device.type == "cuda"):
        model.compile()
    plain = model
    model, *optimisers = accelerator.prepare(model.train(), *optimisers)
    weights = _Weights(accelerator, model, optimisers)
    if weights.sharded and training.optimiser == "muon":
        raise TresseError("muon needs whole matrices: with FSDP train with slm.optimiser=adamw")
    if state is not None:
        weights.load_optimisers(state["optimiser"])
    start = 0 if state is None else int(state["step"])
    del state
    if start:
        say(f"going on from step {start:,}")
    factor = linear_schedule(steps, training.warmup_steps(steps), training.floor)
    log = _Log(folder, start) if main else None
    meter = _Meter(len(languages), device)
    began, since, attended = time.perf_counter(), start, 0
    consumed, counted = stream.totals(start)

    for step in range(start, steps):
        rate = training.learning_rate * factor(step)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
        # dropout, where a model has any, is a function of the step too
        torch.manual_seed(int(np.random.SeedSequence([training.seed, step, first]).generate_state(1)[0]))
        # every process knows how many targets the whole step has: no communication for the mean
        targets = stream.totals(step + 1)[1] - stream.totals(step)[1]
        batch = stream.batch(step, first, local)
        attended += int(batch.positions.sum()) + batch.positions.numel()
        for row in range(0, local, micro):
            part = batch.rows(slice(row, row + micro))
            last = row + micro >= local
            with nullcontext() if last else accelerator.no_sync(model):
                losses = token_losses(model, part, device, half=bf16)
                accelerator.backward(losses.sum() * (processes / targets))
            meter.add(losses, part)
        norm = accelerator.clip_grad_norm_(model.parameters(), training.clip)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        done = step + 1
        if done % training.log_every == 0 or done == steps:
            loss = meter.read(accelerator, languages)  # waits for the device
            now = time.perf_counter()
            seconds, positions = now - began, (done - since) * training.positions
            (units, tokens), targets_now = stream.totals(done)
            computed = training_flops(plain, positions, attended * processes)
            gradient = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
            entry = {
                "step": done,
                "mode": str(training.stages[stream.stage(step)]),
                "loss": loss,
                "learning_rate": rate,
                "gradient_norm": gradient,
                "tokens_per_second": round(positions / seconds),
                "units_per_second": round(float((units - consumed[0]).sum()) / seconds),
                "useful_share": round((targets_now - counted) / positions, 5),
                "mfu": None if peak is None else round(computed / seconds / (peak * processes), 4),
                "units": dict(zip(languages, units.tolist(), strict=True)),
                "tokens": dict(zip(languages, tokens.tolist(), strict=True)),
            }
            say(
                f"step {done:,}/{steps:,} {entry['mode']} loss {_by_language(loss)} lr {rate:.2e} norm {gradient:.2f} "
                f"{entry['tokens_per_second']:,} tokens/s {entry['units_per_second']:,} units/s "
                f"useful {entry['useful_share']:.1%} "
                + ("" if peak is None else f"MFU {entry['mfu']:.1%} ")
                + f"ETA {clock((steps - done) * seconds / (done - since))}"
            )
            if not np.isfinite(loss["all"]):
                raise TresseError(f"the loss is not finite at step {done}: lower the learning rate")
            if log is not None:
                log.write(entry)
            began, since, attended, consumed, counted = now, done, 0, np.stack([units, tokens]), targets_now
        if checks and (done % training.validate_every == 0 or done == steps):
            held_losses = {
                mode: validate(model, batches, accelerator, languages, half=bf16) for mode, batches in checks.items()
            }
            say("  validation " + "; ".join(f"{mode} {_by_language(loss)}" for mode, loss in held_losses.items()))
            if log is not None:
                log.write({"step": done, "validation": held_losses})
        if done % training.checkpoint_every == 0 or done == steps:
            accelerator.wait_for_everyone()
            held_state = {"step": done, "settings": settings, **weights.state()}
            if main:
                save_checkpoint(folder / "checkpoint.pt", held_state)

    if weights.sharded:  # a whole model again
        accelerator.wait_for_everyone()
        trained = model_config.build(vocabulary).eval()
        final = load_checkpoint(folder / "checkpoint.pt")
        if final is not None:
            trained.load_state_dict(final["model"])
    else:
        trained = accelerator.unwrap_model(model).eval()
        trained.set_attn_implementation(kernel)
    if main:
        units, tokens = stream.totals(steps)[0]
        summary = {
            "steps": steps,
            "parameters": parameter_count(trained),
            "units": dict(zip(languages, units.tolist(), strict=True)),
            "tokens": dict(zip(languages, tokens.tolist(), strict=True)),
            "stages": [
                {"mode": str(stage), "steps": end - begin}
                for stage, begin, end in zip(training.stages, stream.starts, stream.ends, strict=True)
            ],
            "stories": len(stories),
            "held_out": sorted(set(held.ids.tolist())) if validation is None else [],
            "settings": settings,
        }
        write_json(folder / "summary.json", summary)
        save_model(trained, vocabulary, folder / "slm")
    return trained


def _check_same(held: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    for part in wanted:
        for name, value in wanted[part].items():
            if held[part].get(name) != value:
                raise TresseError(
                    f"the run in {folder} was started with {part} {name}={held[part].get(name)}, not {value}: "
                    "use another folder, or delete its checkpoint.pt"
                )
