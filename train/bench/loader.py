"""`tresse bench loader`: what reading a large corpus costs each process of a training on many GPUs.

Tokens of invented stories are written as `train.lm.token_files` keeps them, as many units as asked for. New processes then
open them with the paper's batches (300 rows of 2,048) and its schedule: one that reads all rows, and one of so many that
share them. Measured of each: s until the first batch, the peak of its memory, beside what Python and PyTorch take, and s
until the first batch of a run that goes on. All processes of the run are then played one after the other in one, each for a
few steps: the slowest decides how many tokens a second they all read. Not measured: a disk or network that is slower than
this machine's, since what was just written is in memory.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from slm.units.vocabulary import UnitVocabulary
from train.lm.corpus import TokenCorpus
from train.lm.schedule import SLMTraining, Stage, StagedStream
from train.lm.token_files import TokenFiles, write_index, write_part
from train.lm.tokenise import story_names

LANGUAGES, CODEBOOK = ("en", "fr"), 2048
TOKENS_A_SENTENCE, UNITS_A_TOKEN, SENTENCES = 19, 2.4, 5.8
"""Of a generated story, on average (train.estimate)."""
STORIES_A_PART = 100_000
STEPS = 3
"""Steps that each process is played for."""
SETTINGS = SLMTraining(
    stages=(
        Stage("monolingual:en", share=0.5),
        Stage("interleaved", share=0.2),
        Stage(("monolingual:en", "monolingual:fr"), share=0.3),
    ),
    steps=100_000,
    batch_rows=300,
    row_length=2048,
)


def write_tokens(folder: Path, units: int, seed: int = 0) -> int:
    """Token files of about so many units, of stories of chance; returns the number of stories."""
    a_story = SENTENCES * len(LANGUAGES) * TOKENS_A_SENTENCE * UNITS_A_TOKEN
    stories, names = max(100, round(units / a_story)), []
    for number, first in enumerate(range(0, stories, STORIES_A_PART)):
        rng = np.random.default_rng([seed, number])
        count = min(STORIES_A_PART, stories - first)
        sentences = rng.poisson(SENTENCES - 1, count) + 1
        if number == 0:
            sentences[0] = 600
        lengths = rng.poisson(TOKENS_A_SENTENCE - 1, (int(sentences.sum()), len(LANGUAGES))) + 1
        name = f"part-{number:05d}.safetensors"
        arrays = {
            "tokens": rng.integers(0, CODEBOOK, int(lengths.sum()), dtype=np.uint16),
            "bounds": np.r_[0, lengths.ravel().cumsum()],
            "units": (lengths * UNITS_A_TOKEN).astype(np.int32).ravel(),
            "first": np.r_[0, sentences.cumsum()],
            "masks": np.full(count, 3, np.uint32),
            **story_names([f"{first + k}" for k in range(count)]),
        }
        write_part(folder / name, arrays)
        names.append(name)
    write_index(folder, names, len(LANGUAGES), {})
    return stories


def bench_loader(units: int, processes: int, folder: Path) -> dict[str, Any]:
    """See the module. folder: where the tokens go. Returns what `tresse bench loader` prints as JSON."""
    began = time.perf_counter()
    stories = write_tokens(folder, units)
    written = time.perf_counter() - began
    context = multiprocessing.get_context("spawn")
    readings = {}
    for count in (1, processes):
        position = None
        for what in ("start", "resume"):
            with context.Pool(1) as pool:
                reading = pool.apply(_open, (str(folder), count - 1, count, position))
            position = reading.pop("position")
            readings[f"{what}, {count}"] = reading
    with context.Pool(1) as pool:
        played = pool.apply(_play, (str(folder), processes))
    return {
        "units": units,
        "stories": stories,
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "written_seconds": written,
        "processes": processes,
        "readings": readings,
        **played,
    }


def _stream(folder: str, position: dict[str, Any] | None = None) -> StagedStream:
    words = UnitVocabulary.train([], codebook_size=CODEBOOK, languages=LANGUAGES, vocab_size=None)
    corpus = TokenCorpus.of(TokenFiles(Path(folder)), LANGUAGES, words, 50.0)
    training, _ = corpus.split(min(500, len(corpus) // 10), SETTINGS.seed)
    return StagedStream(training, SETTINGS, position)


def _open(folder: str, process: int, processes: int, position: dict[str, Any] | None) -> dict[str, Any]:
    """Open the corpus as a process of some, and read the first batch, or the one at a position; s and bytes."""
    before = _peak()
    began, spent = time.perf_counter(), time.process_time()
    stream = _stream(folder, position)
    first, count = SETTINGS.rows_of(process, processes)
    step = 0 if position is None else position["step"]
    stream.draw(step, first, count)
    seconds, cpu = time.perf_counter() - began, time.process_time() - spent
    for number in range(step + 1, step + 1 + STEPS * max(1, processes // 8)):
        stream.draw(number, first, count)
    done = step + STEPS * max(1, processes // 8) + 1
    peak = _peak()
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_bytes": peak,
        "loader_bytes": peak - before,
        "position": json.loads(json.dumps(stream.position(done))) | {"step": done},
    }


def _play(folder: str, processes: int) -> dict[str, Any]:
    """Every process in turn: tokens a second of CPU that each reads, of the interleaved stage, once it has begun."""
    stream = _stream(folder)
    start, rates = stream.starts[1], []
    for process in range(processes):
        first, count = SETTINGS.rows_of(process, processes)
        for turns in stream.turns:
            for each in turns.streams:
                each.forget()
        stream.draw(start, first, count)
        began, tokens = time.process_time(), 0
        for step in range(start + 1, start + 1 + STEPS * max(1, processes // 8)):
            tokens += stream.draw(step, first, count)[1][1]
        rates.append(tokens / (time.process_time() - began))
    return {
        "tokens_per_second": {"slowest": min(rates), "mean": float(np.mean(rates)), "all": min(rates) * processes},
    }


def _peak() -> int:
    """Largest resident memory of this process so far, bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # where it begins with this program; getrusage counts what its parent had
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run_bench(units: int, processes: int, gpu: dict[str, Any]) -> dict[str, Any]:
    """The benchmark as the command line runs it. gpu: what so many would need in all (`gpu` of train.estimate)."""
    with tempfile.TemporaryDirectory() as scratch:
        result = bench_loader(units, processes, Path(scratch))
    return result | {"needed": {"gpu": gpu["name"], "tokens_per_second": gpu["tokens_per_second"] / processes}}


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [
        f"{result['units']:,} units, {result['stories']:,} stories, {result['bytes'] / 1e9:.2f} GB of tokens",
        f"{'first batch of process':<28}{'s':>8}{'CPU s':>8}{'peak MB':>10}{'of loader':>11}",
    ]
    for name, reading in result["readings"].items():
        what, count = name.split(", ")
        lines.append(
            f"{f'{what}, one of {int(count):,}':<28}{reading['seconds']:>8.1f}{reading['cpu_seconds']:>8.1f}"
            f"{reading['peak_bytes'] / 1e6:>10,.0f}{reading['loader_bytes'] / 1e6:>11,.0f}"
        )
    rates, needed = result["tokens_per_second"], result["needed"]
    lines.append(
        f"{result['processes']} processes read {rates['slowest']:,.0f} tokens/s each at least, on a core each; "
        f"{needed['gpu']} GPUs training paper-360m would need {needed['tokens_per_second']:,.0f} (computed)"
    )
    return "\n".join(lines)
