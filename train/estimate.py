"""What a recipe would cost here, before it is run: `tresse recipe NAME --dry-run`.

Steps and units are counted where the corpus is there and estimated from the number of stories where it is not. Time is
extrapolated from training steps of the same width, heads and vocabulary with one and with two layers, measured on this
machine on one row: what a layer costs, and what all layers share. Memory is arithmetic. Good to a factor of 1.5.

For a number of processes that is given, each is taken to be as fast as this machine's GPU, or one core of its CPU; beside
it stands what so many H100 would take at 40 % of their peak. What processes say to each other is not counted.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from slm.errors import TresseError
from slm.model import ModelConfig, parameter_count, training_flops
from slm.schema import UnitsKind, parse, read_json
from train.lm.attention import use_document_attention
from train.lm.packing import PackedBatch
from train.lm.schedule import STORIES, SLMTraining
from train.lm.step import PackedStep, optimisers_of
from train.recipe import Recipe
from train.tools.hardware import PEAKS, bf16_pays, peak_flops
from train.tools.progress import clock

SENTENCES, SECONDS_A_SENTENCE = 5.8, 3.1
"""Of a generated story: sentences, and s each of them lasts."""
COLLAPSED_UNITS, UNITS_A_TOKEN = 15.0, 2.4
"""A second of speech at 50 Hz has so many units; byte-pair encoding makes so many one token (the shipped encoder, 2,048)."""
MEASURED_POSITIONS = 1024
GPU, GPU_SHARE = "H100", 0.4
"""What is computed, not measured: a GPU, and the share of its peak that training reaches."""


class _Tokens:
    """As much of a vocabulary as building a model needs."""

    bos_id, eos_id = 0, 1

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


@dataclass(frozen=True)
class Run:
    """One training run of a recipe: its name and settings, and what it consumes."""

    name: str
    training: SLMTraining
    steps: int
    units: int


def estimate(recipe: Recipe, out: Path, *, measure: bool = True, processes: int | None = None) -> dict[str, Any]:
    """Parameters, vocabulary, stories, document_tokens, runs (name, steps, tokens, units, flops, seconds), memory_bytes,
    sharded_bytes, processes, rows and passes of the busiest process, gpu (name, seconds, and the data that all processes
    need: tokens_per_second, units_per_second), measured (device, tokens_per_second, mfu) and seconds in all.

    processes: None: those that this machine would train in. memory_bytes, sharded_bytes: of a process, with a whole model
    each (DDP) and with parameters, gradients and optimiser states shared out (FSDP). seconds: of training language models;
    the other stages are not estimated. Without `measure` no time is. Raises TresseError for no process.
    """
    if processes is not None and processes < 1:
        raise TresseError("--processes must be 1 or more")
    training = recipe.slm
    units_a_token = UNITS_A_TOKEN if recipe.vocabulary.size is not None else 1.0
    rate = _unit_rate(recipe)
    document = round(SENTENCES * (SECONDS_A_SENTENCE * rate / units_a_token + training.tags)) + 1
    stories = recipe.stories.about
    corpus = out / "corpus" / "corpus.json"
    if corpus.exists():
        made = json.loads(corpus.read_text(encoding="utf-8"))
        stories = made["stories"]
        if "seconds" in made:
            spoken = made["seconds"] / max(1, stories) / len(made["languages"])
            document = round(spoken * rate / units_a_token + SENTENCES * training.tags) + 1
    vocabulary = recipe.held_vocabulary()
    size = len(vocabulary) if vocabulary else (recipe.vocabulary.size or _codebook(recipe)) + 2 + len(recipe.languages)
    config = recipe.model.shape()
    with torch.device("meta"):
        model = config.build(_Tokens(size))  # type: ignore[arg-type]
    parameters = parameter_count(model)
    runs = []
    for run in _runs(recipe, units_a_token):
        tokens = run.steps * run.training.positions
        within = min(document, run.training.row_length)
        flops = training_flops(model, tokens, tokens * (within + 1) // 2)
        runs.append({"name": run.name, "steps": run.steps, "tokens": tokens, "units": run.units, "flops": flops})
    result: dict[str, Any] = {
        "recipe": recipe.name,
        "parameters": parameters,
        "vocabulary": size,
        "stories": stories,
        "document_tokens": document,
        "runs": runs,
        **_parallel(recipe, parameters, size, processes),
        "gpu": _on_gpus(recipe, runs, units_a_token, processes or 1),
        "seconds": None,
    }
    if measure:
        result["measured"] = _measure(config, training, size, document, processes)
        for run_ in runs:
            run_["seconds"] = run_["tokens"] / result["measured"]["tokens_per_second"]
        result["seconds"] = sum(run_["seconds"] for run_ in runs)
    return result


def _runs(recipe: Recipe, units_a_token: float) -> list[Run]:
    recipe.check_corpora()
    if recipe.ablation is None:
        schedules = [("language model", recipe.slm)]
    else:
        schedules = [
            (f"{row.name}, seed {seed}", replace(recipe.slm, stages=row.stages, seed=seed))
            for row in recipe.ablation.rows.values()
            for seed in row.seeds
        ]
    runs = []
    for name, training in schedules:
        training.check(recipe.languages, (STORIES, *recipe.corpora))
        a_step = training.positions * units_a_token
        steps = training.shared_steps if any(stage.share is not None for stage in training.stages) else 0
        for stage in training.stages:
            budget = sum(stage.units.values()) if isinstance(stage.units, dict) else stage.units
            steps += stage.steps or (-(-budget // round(a_step)) if budget else 0)
        runs.append(Run(name, training, steps, round(steps * a_step)))
    return runs


def _unit_rate(recipe: Recipe) -> float:
    """Units a second of speech."""
    settings = _encoder_settings(recipe)
    if settings.get("type") == "mimi":
        return 12.5
    return COLLAPSED_UNITS if settings.get("collapse", True) else 50.0


def _codebook(recipe: Recipe) -> int:
    settings = _encoder_settings(recipe)
    return int(settings.get("codebook_size", 2048 if settings.get("type") == "mimi" else 100))


def _encoder_settings(recipe: Recipe) -> dict[str, Any]:
    """config.json of the encoder, as far as it can be known: a part that is not there yet is taken for what it is called."""
    source = recipe.parts.units
    if source is None:
        return {"type": "conv", "codebook_size": recipe.units.encoder.codebook_size}
    kind = Path(source).name
    with contextlib.suppress(TresseError):
        folder = recipe.parts.find("units")
        assert folder is not None
        path = folder / "config.json"
        return parse(UnitsKind, read_json(path), path).model_dump(
            include=set(UnitsKind.model_fields), exclude_none=True
        )
    return {"type": kind, "collapse": False} if kind in ("mimi", "hubert") else {}


def _parallel(recipe: Recipe, parameters: int, size: int, processes: int | None) -> dict[str, Any]:
    """What each process does and needs. Bytes: weights, gradients and Adam's two moments in float32, DDP's copy of the
    gradients where there are several, and what one forward pass keeps for the backward one; sharded, a layer and the
    tables are whole for a while."""
    model, training, count = recipe.model, recipe.slm, processes or 1
    positions = training.rows_a_pass(count) * training.row_length
    kept = positions * (model.layers * (30 * model.hidden_size + 8 * model.intermediate_size) + 10 * size)
    whole = parameters / max(1, model.layers) + 2 * size * model.hidden_size
    return {
        "processes": processes,
        "rows": training.rows_of(0, count)[1],
        "passes": training.passes(count),
        "memory_bytes": (16 if count == 1 else 20) * parameters + kept,
        "sharded_bytes": round(16 * parameters / count + 8 * whole) + kept,
    }


def _on_gpus(recipe: Recipe, runs: list[dict[str, Any]], units_a_token: float, processes: int) -> dict[str, Any]:
    """Computed: s on so many GPUs of a kind, and what their loaders must deliver in all."""
    training = recipe.slm
    busy = training.rows_of(0, processes)[1] * processes / training.batch_rows  # all wait for the busiest
    seconds = sum(run["flops"] for run in runs) * busy / (PEAKS[GPU] * GPU_SHARE * processes)
    tokens = sum(run["tokens"] for run in runs) / seconds
    return {
        "name": GPU,
        "seconds": seconds,
        "tokens_per_second": tokens,
        "units_per_second": tokens * units_a_token,
    }


def _measure(
    config: ModelConfig, training: SLMTraining, size: int, document: int, wanted: int | None
) -> dict[str, Any]:
    """Speed of a training step with all layers and all processes (None: of this machine), from steps with one and two
    layers."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = training.precision == "bf16" or (training.precision == "auto" and bf16_pays(device))
    length = min(training.row_length, MEASURED_POSITIONS)
    positions = (torch.arange(length) % min(document, length))[None]
    tokens = torch.zeros_like(positions)
    batch = PackedBatch(tokens, tokens, positions, tokens)
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)  # processes of one thread train
    spent, updates = [], []
    try:
        for layers in (1, 2):
            model = replace(config, layers=layers).build(_Tokens(size)).to(device).train()  # type: ignore[arg-type]
            use_document_attention(model)
            step = PackedStep(model, optimisers_of(model, training, device), training, device, half=bf16)
            passes, update = _time_step(step, batch)
            spent.append(passes)
            updates.append(update)
        peak = peak_flops(device, bf16)
    finally:
        torch.set_num_threads(threads)

    def all_layers(times: list[float]) -> float:
        return times[0] + max(0.0, times[1] - times[0]) * (config.layers - 1)

    processes = wanted or ((os.cpu_count() or 1) if device.type == "cpu" else 1)
    rows = training.rows_of(0, processes)[1] if wanted else training.batch_rows / processes
    a_step = all_layers(spent) * rows * training.row_length / length + all_layers(updates)
    rate = training.positions / a_step
    with torch.device("meta"):
        whole = config.build(_Tokens(size))  # type: ignore[arg-type]
    attended = int((positions + 1).sum())
    flops = training_flops(whole, length, attended) / length * rate
    return {
        "device": (torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu")
        + (f" x {processes}" if device.type == "cpu" or processes > 1 else ""),
        "tokens_per_second": rate,
        "mfu": None if peak is None else flops / (peak * processes),
    }


def _time_step(step: PackedStep, batch: PackedBatch, repeats: int = 3) -> tuple[float, float]:
    """s of a step's forward and backward passes, and of its update: each the least of a few."""
    times = []
    for _ in range(repeats + 1):
        marks = [time.perf_counter()]
        for work in (lambda: step.gradients(batch, batch.targets.numel()), lambda: step.updates.apply(1.0)):
            work()
            if step.device.type == "cuda":
                torch.cuda.synchronize(step.device)
            marks.append(time.perf_counter())
        times.append((marks[1] - marks[0], marks[2] - marks[1]))
    passes, updates = zip(*times[1:], strict=True)  # the first lays out what is used once
    return min(passes), min(updates)


def _processes(result: dict[str, Any]) -> list[str]:
    """Memory, and of a number of processes that is given rows, data and time."""
    whole, sharded = (f"{result[name] / 2**30:.1f} GiB" for name in ("memory_bytes", "sharded_bytes"))
    if result["processes"] is None:
        return [f"memory of training: about {whole} (not sharded)"]
    gpu, count = result["gpu"], result["processes"]
    tokens, units = gpu["tokens_per_second"], gpu["units_per_second"]
    return [
        f"{count:,} processes: at most {result['rows']:,} rows a step each, in passes: {result['passes']:,}",
        f"memory a process: about {whole}; {sharded} with parameters, gradients and optimiser states shared out",
        f"computed for {count:,} x {gpu['name']} at {GPU_SHARE:.0%} of their peak: {gpu['seconds'] / 3600:,.1f} hours; data "
        f"needed: {tokens:,.0f} tokens/s ({units:,.0f} units/s), {tokens / count:,.0f} tokens/s a process",
    ]


def describe(result: dict[str, Any]) -> str:
    """The estimate for people."""
    lines = [
        f"recipe {result['recipe']}: {result['parameters'] / 1e6:.1f}M parameters, {result['vocabulary']:,} tokens in the "
        f"vocabulary, {result['stories']:,} stories of about {result['document_tokens']:,} tokens a language",
        *_processes(result),
        f"{'run':<36}{'steps':>10}{'tokens':>16}{'units':>18}{'FLOPs':>10}{'time':>15}",
    ]
    for run in result["runs"]:
        spent = clock(run["seconds"]) if "seconds" in run else "-"
        lines.append(
            f"{run['name']:<36}{run['steps']:>10,}{run['tokens']:>16,}{run['units']:>18,}{run['flops']:>10.2g}{spent:>15}"
        )
    if "measured" in result:
        measured = result["measured"]
        mfu = "" if measured["mfu"] is None else f", {measured['mfu']:.0%} of what it can multiply"
        lines.append(
            f"measured on {measured['device']}: {measured['tokens_per_second']:,.0f} tokens/s{mfu}; training takes about "
            f"{clock(result['seconds'])}"
        )
    return "\n".join(lines)
