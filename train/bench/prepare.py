"""How fast a corpus is prepared: hours of speech an hour and core for synthesis, encoding and writing.

One process, one thread: a preparation runs one such process a core. On a CPU the clock is the thread's own time, so that
what else the machine does hardly counts. Everything is timed on the same stories, told in several
wordings by one voice each, as a recipe would have them. The goal: encoding and writing of ready audio together at 100
times real time or better per core.

Of any unit encoder alone: hours of speech encoded an hour of one core, beside the plain way, which is float64 and one clip
at a time, in the same process.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from slm.audio import resample
from slm.errors import TresseError
from slm.units import UnitEncoder, Units, load_encoder
from train.corpus.encoding import batches, encode_all, speak_and_encode, speak_request
from train.corpus.preparation import write_rows
from train.corpus.work import Request, Shard, Work
from train.speech.vits import one_thread
from train.speech.voices import SAMPLE_RATE

GOAL = 100.0
"""Times real time, for encoding and writing of ready audio on one core."""

T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """Seconds of work and the seconds of speech that came of it."""

    work: float
    speech: float

    @property
    def rate(self) -> float:
        """Hours of speech an hour: times real time."""
        return self.speech / max(1e-9, self.work)


def bench_prepare(shard: Shard, work: Work, repeats: int = 2) -> dict[str, Any]:
    """Time the stages of a shard, each the best of `repeats`.

    Returns what `tresse bench prepare` prints as JSON: stages (hours_per_hour, share of the time), slowest, speedup.
    Raises TresseError where a voice or the encoder cannot be used.
    """
    encoder = load_encoder(work.encoder_folder).to(work.device)
    best = _timer(work.device)
    requests = work.requests(shard)
    distinct = list(dict.fromkeys(requests))
    with one_thread(), tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "shard-00000.parquet"
        speak_request(distinct[0], work)  # loads what is loaded once
        synthesis, spoken = best(repeats, lambda: {request: speak_request(request, work) for request in distinct})
        encode_all(dict(list(spoken.items())[:8]), encoder)
        encoding, units = best(repeats, lambda: encode_all(spoken, encoder))
        singly, _ = best(1, lambda: {r: encoder.encode(waveform, SAMPLE_RATE) for r, waveform in spoken.items()})
        unsorted, _ = best(1, lambda: _in_order_of_arrival(spoken, encoder))
        each = [replace(shard, first=shard.first + i, rows=[row]) for i, row in enumerate(shard.rows)]
        shared, _ = best(1, lambda: speak_and_encode(requests, work, encoder))
        plain, _ = best(1, lambda: [speak_and_encode(work.requests(story), work, encoder) for story in each])
        writing, counts = best(repeats, lambda: write_rows(replace(shard, path=path), work, units))
    unique = sum(part.seconds for part in units.values() if isinstance(part, Units))
    stages = {
        "synthesis": Stage(synthesis, unique),
        "encoding": Stage(encoding, unique),
        "writing": Stage(writing, counts.seconds),
    }
    # What a corpus needs of each, for one second of its speech: sentences met before cost synthesis and encoding nothing.
    cost = {
        "synthesis": synthesis / counts.seconds,
        "encoding": encoding / counts.seconds,
        "writing": writing / counts.seconds,
    }
    ready = 1.0 / (1.0 / stages["encoding"].rate + 1.0 / stages["writing"].rate)
    return {
        "stages": {
            name: {"hours_per_hour": round(stage.rate, 1), "share": round(cost[name] / sum(cost.values()), 3)}
            for name, stage in stages.items()
        },
        "slowest": max(cost, key=lambda name: cost[name]),
        "encoding_and_writing": round(ready, 1),
        "goal_met": ready >= GOAL,
        "hours_per_hour": round(1.0 / sum(cost.values()), 1),
        "real_time_factor": round(sum(cost.values()), 6),
        "speedup": {
            "sentence cache": round(plain / shared, 2),
            "batches by length against one by one": round(singly / encoding, 2),
            "batches by length against order of arrival": round(unsorted / encoding, 2),
        },
        "stories": counts.stories,
        "sentences": counts.sentences,
        "spoken": counts.spoken,
        "speech_seconds": round(counts.seconds, 1),
    }


def _in_order_of_arrival(spoken: dict[Request, Any], encoder: UnitEncoder) -> None:
    """As many clips a batch, but as they come, padded to the longest."""
    queue = list(spoken.values())
    for batch in batches(spoken, encoder):
        encoder.encode_batch(queue[: len(batch)])
        del queue[: len(batch)]


def _timer(device: str) -> Callable[..., tuple[float, Any]]:
    clock = time.thread_time if device == "cpu" else time.perf_counter

    def best(repeats: int, task: Callable[[], T]) -> tuple[float, T]:
        times = []
        for _ in range(repeats):
            began = clock()
            result = task()
            times.append(clock() - began)
        return min(times), result

    return best


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [f"{'stage':<24}{'hours of speech an hour':>26}{'share of the time':>20}"]
    for name, stage in result["stages"].items():
        mark = "  <- slowest" if name == result["slowest"] else ""
        lines.append(f"{name:<24}{stage['hours_per_hour']:>26,.0f}{stage['share']:>20.0%}{mark}")
    lines.append(f"{'all, as in a corpus':<24}{result['hours_per_hour']:>26,.0f}{'':>20}  per core")
    met = "met" if result["goal_met"] else "not met"
    lines.append(
        f"encoding and writing of ready audio: {result['encoding_and_writing']:.0f}x (goal {GOAL:.0f}x: {met})"
    )
    lines += [f"{name}: {times:.2f}x faster" for name, times in result["speedup"].items()]
    lines.append(f"{result['stories']} stories, {result['sentences']} sentences, {result['spoken']} of them distinct")
    return "\n".join(lines)


def bench_encoder(encoder: UnitEncoder, speech: list[np.ndarray], repeats: int = 2) -> dict[str, Any]:
    """Time an encoder on clips of speech, float32 [samples] at its own rate, by batches and the plain way; on one thread.

    Returns what `tresse bench prepare --units` prints as JSON; equal: clips that have the same units both ways, all of them
    where the encoder is right. Raises TresseError for an encoder that cannot compute in float64 alone.
    """
    exactly = getattr(encoder, "encode_exactly", None)
    if exactly is None:
        raise TresseError(
            "this encoder has no plain way to compare with: give one of type conv, attention, mimi or hubert"
        )
    clips = dict(enumerate(speech))
    groups = list(batches(clips, encoder))
    best = _timer(str(getattr(encoder, "device", "cpu")))

    def by_batches() -> dict[int, Units]:
        return {
            key: units
            for group in groups
            for key, units in zip(group, encoder.encode_batch([clips[key] for key in group]), strict=True)
        }

    with one_thread():
        encoder.encode_batch(speech[:1])  # loads what is loaded once
        exactly(speech[0])
        fast, units = best(repeats, by_batches)
        plain, expected = best(1, lambda: {key: exactly(clip) for key, clip in clips.items()})
    seconds = sum(map(len, speech)) / encoder.sample_rate
    ways = {"float32 first, in batches": Stage(fast, seconds), "float64, clip by clip": Stage(plain, seconds)}
    return {
        "hours_per_core_hour": {name: round(stage.rate, 2) for name, stage in ways.items()},
        "ratio": round(plain / max(1e-9, fast), 2),
        "equal": sum(np.array_equal(units[key].frames(), expected[key].frames()) for key in clips),
        "clips": len(clips),
        "speech_seconds": round(seconds, 1),
        "load": round(os.getloadavg()[0], 1),
    }


def encoder_table(result: dict[str, Any]) -> str:
    """The result of `bench_encoder` for people."""
    lines = [f"{'way':<28}{'hours of speech a core-hour':>30}"]
    lines += [f"{name:<28}{rate:>30,.2f}" for name, rate in result["hours_per_core_hour"].items()]
    lines += [
        f"{result['ratio']:.2f} times as fast; {result['equal']} of {result['clips']} clips have the same units",
        f"{result['speech_seconds']:.0f} s of speech, one thread, the machine's load {result['load']:g}",
    ]
    return "\n".join(lines)


def run_encoder_bench(folder: Path, seconds: float = 60.0) -> dict[str, Any]:
    """`bench_encoder` as the command line runs it: of the encoder in a folder, on s of generated stories, by all training
    voices in turn."""
    from train.speech.voices import Voices, speak
    from train.stories.grammar import generate_stories

    encoder, voices = load_encoder(folder), Voices.load()
    sentences = (
        (text, language)
        for story in generate_stories(0, 10_000)
        for language, texts in story.sentences.items()
        for text in texts
    )
    speech: list[np.ndarray] = []
    for (text, language), name in zip(sentences, cycle(voices.training), strict=False):
        waveform = speak(text, language, voices.speaker(name), voices)
        speech.append(resample(waveform, SAMPLE_RATE, encoder.sample_rate))
        if sum(map(len, speech)) >= seconds * encoder.sample_rate:
            break
    return bench_encoder(encoder, speech)


def run_bench(stories: int = 64, cycle: int = 64, encoder_folder: Path | None = None) -> dict[str, Any]:
    """The benchmark as the command line runs it: generated stories, all training voices, the units of `braid`."""
    from slm.model import BUNDLES
    from train.corpus.reader import Row
    from train.corpus.work import CorpusPreparation
    from train.speech.voices import Voices
    from train.stories.grammar import Cycles, generate_stories

    told = list(generate_stories(0, stories, cycles=Cycles(cycle)))
    rows = [Row(number, story.id, story.sentences) for number, story in enumerate(told, 1)]
    preparation = CorpusPreparation(stories_per_shard=stories, stories_per_voice=cycle)
    folder = encoder_folder or BUNDLES / "braid" / "units"
    work = Work(list(told[0].sentences), folder, preparation, Voices.load())
    return bench_prepare(Shard(Path(), 0, rows), work)
