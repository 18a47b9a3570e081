"""`tresse bench train`: this training loop against the plain transformers way, on the same model and stories.

The plain way is what one writes first: a story a row, padded to the longest of its batch by the default collator
(`DataCollatorForLanguageModeling`), batches in random order, and `transformers.Trainer`'s own training step, with its
default attention. Both have the same weights, precision, optimiser and threads, and about the same tokens a step; they take
turns in this process, and each counts its best turn. Useful are units that a target stands for: padding is not.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slm.model import ModelConfig, training_flops
from slm.units.vocabulary import UnitVocabulary
from train.lm.attention import use_document_attention
from train.lm.corpus import TokenCorpus
from train.lm.packing import IGNORE
from train.lm.schedule import SLMTraining
from train.lm.step import PackedStep, optimisers_of
from train.lm.stream import PackedStream
from train.tools.hardware import bf16_pays, peak_flops

LOADER_SECONDS = 0.5
PLAIN_ROWS = 8
"""Stories a forward pass of the plain way: Trainer's default."""


def bench_train(
    corpus: TokenCorpus, vocabulary: UnitVocabulary, config: ModelConfig, training: SLMTraining, turns: int = 3
) -> dict[str, Any]:
    """Time `turns` steps of each way. Returns what `tresse bench train` prints as JSON."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = training.precision == "bf16" or (training.precision == "auto" and bf16_pays(device))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        model = config.build(vocabulary)
    stream = PackedStream(corpus, "interleaved", row_length=training.row_length, seed=training.seed)
    ours = _Ours(deepcopy(model), stream, training, device, bf16)
    with tempfile.TemporaryDirectory() as scratch:
        plain = _Plain(model, vocabulary, corpus, training, device, bf16, Path(scratch))
        ours.step()  # what is loaded and laid out once
        plain.step()
        times: dict[str, list[tuple[float, int, int]]] = {"packed": [], "plain": []}
        for _ in range(turns):
            for name, step in (("packed", ours.step), ("plain", plain.step)):
                times[name].append(_timed(step, device))
    best = {name: max(units / seconds for seconds, units, _ in steps) for name, steps in times.items()}
    useful = {
        "packed": ours.targets / max(1, ours.positions),
        "plain": plain.targets / max(1, plain.positions),
    }
    seconds, _, attended = max(times["packed"], key=lambda timed: timed[1] / timed[0])
    peak = peak_flops(device, bf16)
    flops = training_flops(ours.model, training.positions, attended) / seconds
    return {
        "speedup": {"plain transformers": best["packed"] / best["plain"]},
        "units_per_second": best["packed"],
        "useful_share": useful["packed"],
        "mfu": None if peak is None else flops / peak,
        "plain": {"units_per_second": best["plain"], "useful_share": useful["plain"]},
        "loader_units_per_second": loader_rate(stream, training.batch_rows),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "precision": "bf16" if bf16 else "float32",
        "stories": len(corpus),
        "tokens_a_step": training.positions,
    }


def loader_rate(stream: PackedStream, rows: int) -> float:
    """Units a second of one core that makes batches and does nothing else, planning included."""
    fresh = PackedStream(stream.corpus, stream.mode, row_length=stream.row_length, seed=stream.seed + 1)
    began, row, units = time.process_time(), 0, 0
    while time.process_time() - began < LOADER_SECONDS:
        units += int(fresh.draw(row, rows)[1][0][0].sum())
        row += rows
    return units / (time.process_time() - began)


def _timed(step: Callable[[], tuple[int, int]], device: torch.device) -> tuple[float, int, int]:
    """(s, units, positions attended to) of a step."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    units, attended = step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, units, attended


class _Ours:
    """Packed rows, by the step that `train.lm.training` trains with."""

    def __init__(
        self, model: Any, stream: PackedStream, training: SLMTraining, device: torch.device, bf16: bool
    ) -> None:
        use_document_attention(model)
        self.model, self.stream, self.training = model.to(device).train(), stream, training
        optimisers = optimisers_of(self.model, training, device)
        self.packed_step = PackedStep(self.model, optimisers, training, device, half=bf16)
        self.done = self.targets = self.positions = 0

    def step(self) -> tuple[int, int]:
        """(units, positions attended to)."""
        rows = self.training.batch_rows
        batch, ((units, _), targets) = self.stream.draw(self.done * rows, rows)
        self.packed_step.gradients(batch, targets)
        self.packed_step.updates.apply(1.0)
        self.done += 1
        self.targets += int((batch.targets != IGNORE).sum())
        self.positions += batch.targets.numel()
        return int(units.sum()), int((batch.positions + 1).sum())


class _Plain:
    """Padded rows of one story each, through transformers' Trainer."""

    def __init__(
        self,
        model: Any,
        vocabulary: UnitVocabulary,
        corpus: TokenCorpus,
        training: SLMTraining,
        device: torch.device,
        bf16: bool,
        scratch: Path,
    ) -> None:
        from transformers import AutoTokenizer, DataCollatorForLanguageModeling, Trainer, TrainingArguments

        vocabulary.save(scratch)
        tokenizer = AutoTokenizer.from_pretrained(str(scratch), local_files_only=True)
        tokenizer.pad_token = tokenizer.eos_token
        rng = np.random.default_rng([training.seed, 3])
        self.units: list[int] = []
        documents = []
        for story in range(len(corpus)):
            units = corpus.files.passages(corpus.on_disk(np.asarray([story]))).units
            drawn = rng.integers(len(corpus.languages), size=len(units))
            documents.append(corpus.document(story, drawn)[0].astype(np.int64))
            self.units.append(int(units[np.arange(len(units)), drawn].sum()))
        rows = [{"input_ids": document.tolist(), "number": number} for number, document in enumerate(documents)]
        mean = sum(map(len, documents)) / len(documents)
        self.passes = max(1, round(training.positions / mean / PLAIN_ROWS))
        collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)

        def collator(examples: list[dict[str, Any]]) -> dict[str, Any]:
            batch = collate([{"input_ids": example["input_ids"]} for example in examples])
            self.numbers = [example["number"] for example in examples]
            return batch

        arguments = TrainingArguments(
            output_dir=str(scratch),
            per_device_train_batch_size=PLAIN_ROWS,
            gradient_accumulation_steps=self.passes,
            learning_rate=training.learning_rate,
            weight_decay=training.weight_decay,
            max_grad_norm=training.clip,
            bf16=bf16,
            use_cpu=device.type == "cpu",
            report_to="none",
            remove_unused_columns=False,
            dataloader_drop_last=True,
            seed=training.seed,
        )
        self.trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator)
        self.trainer.create_optimizer_and_scheduler(1000)
        self.trainer.current_gradient_accumulation_steps = self.passes
        self.model, self.trainer.optimizer = self.trainer.accelerator.prepare(
            self.trainer.model, self.trainer.optimizer
        )
        self.model.train()
        self.loader = self._endless()
        self.targets = self.positions = 0

    def _endless(self) -> Any:
        while True:
            yield from self.trainer.get_train_dataloader()

    def step(self) -> tuple[int, int]:
        """(units, 0)."""
        trainer, units = self.trainer, 0
        for _ in range(self.passes):
            batch = next(self.loader)
            units += sum(self.units[number] for number in self.numbers)
            self.positions += batch["input_ids"].numel()
            self.targets += int(batch["attention_mask"].sum()) - len(batch["input_ids"])
            trainer.training_step(self.model, batch)
        trainer.accelerator.clip_grad_norm_(self.model.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        self.model.zero_grad()
        return units, 0


def run_bench(stories: int = 64, turns: int = 3, bundle: Path | None = None) -> dict[str, Any]:
    """The benchmark as the command line runs it: generated stories in the units and the model size of a bundle."""
    from slm.model import BUNDLES
    from train.corpus.preparation import prepare_corpus
    from train.corpus.work import CorpusPreparation
    from train.speech.voices import Voices
    from train.stories.grammar import Cycles, generate_stories

    folder = bundle or BUNDLES / "braid"
    vocabulary = UnitVocabulary.load(folder / "slm")
    config = replace(ModelConfig(warm_start=str(folder)).shape(), tie_embeddings=True)
    texts = list(generate_stories(0, stories, cycles=Cycles(4)))
    with tempfile.TemporaryDirectory() as scratch:
        spoken = Path(scratch) / "corpus"
        preparation = CorpusPreparation(stories_per_shard=stories, stories_per_voice=4)
        prepare_corpus(texts, vocabulary.languages, folder / "units", spoken, preparation, Voices.load(), workers=1)
        corpus = TokenCorpus.load(spoken, vocabulary)
    return bench_train(corpus, vocabulary, config, SLMTraining(), turns)


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [f"{'':<24}{'useful units/s':>16}{'useful share':>14}"]
    for name, figures in (("packed, this loop", result), ("padded, plain way", result["plain"])):
        lines.append(f"{name:<24}{figures['units_per_second']:>16,.0f}{figures['useful_share']:>14.1%}")
    mfu = "" if result["mfu"] is None else f"; MFU {result['mfu']:.0%}"
    lines.append(f"{result['speedup']['plain transformers']:.2f} times the plain way{mfu}")
    lines.append(f"the loader alone: {result['loader_units_per_second'] / 1e6:.1f} million units/s on one core")
    lines.append(
        f"{result['stories']} stories, {result['precision']}, {result['threads']} threads on {result['device']}"
    )
    return "\n".join(lines)
