"""How fast units become speech: offline, in chunks, and against the HiFi-GAN generator of the usual size.

One process, one thread, the same number of seconds of speech at the same sample rate for both. On a CPU the clock is the
process's own time, so that what else the machine does hardly counts. The HiFi-GAN generator (Kong, Kim and Bae 2020,
arXiv:2010.05646) is `SpeechT5HifiGan` of transformers with random weights, given random log-mels: its speed does not
depend on them. It speaks offline only, and what would make its log-mels from units is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from train.speech.vits import one_thread
from vocoder import Vocoder

CHUNKS = (0.02, 0.08, 0.32)
"""s of units that arrive at once."""
RUN = 0.04
"""s that a unit lasts, where chunks are long enough."""
GOALS = {"real_time_factor": 0.02, "speedup": 10.0}


def bench_vocoder(vocoder: Vocoder, seconds: float = 10.0, repeats: int = 3) -> dict[str, Any]:
    """Time a vocoder on `seconds` s of random units, each figure the best of `repeats`.

    Returns what `tresse bench vocoder` prints as JSON: real_time_factor (offline), streaming (by chunk length in ms:
    real_time_factor, first_audio_ms), hifigan, speedup, max_abs_diff (streamed against offline), goals_met.
    """
    config = vocoder.config
    clock = time.process_time if vocoder.device.type == "cpu" else time.perf_counter
    rng = np.random.default_rng(0)
    with one_thread(), torch.inference_mode():
        offline_ids, offline_lengths = _units(vocoder, seconds, CHUNKS[-1], rng)
        offline = _best(clock, repeats, lambda: vocoder.stream().push(offline_ids, offline_lengths, final=True))
        streaming, differences = {}, []
        for chunk in CHUNKS:
            ids, lengths = _units(vocoder, seconds, chunk, rng)
            size = max(1, round(chunk * config.frame_rate / lengths[0]))
            whole = vocoder.stream().push(ids, lengths, final=True)
            figures = []
            for _ in range(repeats):
                first, spent, audio = _stream(vocoder, ids, lengths, size, clock)
                figures.append((spent / seconds, first))
                differences.append(float(np.abs(audio - whole).max()))
            streaming[f"{1000 * chunk:g}"] = {
                "real_time_factor": round(min(factor for factor, _ in figures), 5),
                "first_audio_ms": round(1000 * min(first for _, first in figures), 1),
            }
        hifigan, generate = _hifigan(config.sample_rate, seconds)
        theirs = _best(clock, repeats, generate) / hifigan.pop("seconds")
    ours = offline / seconds
    return {
        "device": str(vocoder.device),
        "seconds": seconds,
        "parameters": sum(weight.numel() for weight in vocoder.parameters()),
        "lookahead_ms": round(1000 * vocoder.lookahead_seconds, 1),
        "real_time_factor": round(ours, 5),
        "first_audio_ms": next(iter(streaming.values()))["first_audio_ms"],
        "streaming": streaming,
        "hifigan": {**hifigan, "real_time_factor": round(theirs, 5)},
        "speedup": {"HiFi-GAN generator": round(theirs / ours, 1)},
        "max_abs_diff": max(differences),
        "goals_met": ours <= GOALS["real_time_factor"] and theirs / ours >= GOALS["speedup"],
    }


def _units(vocoder: Vocoder, seconds: float, chunk: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random units of equal run lengths that fill whole chunks: ids, run lengths [N]."""
    config = vocoder.config
    length = max(1, round(min(RUN, chunk) * config.frame_rate))
    count = max(1, round(seconds * config.frame_rate / length))
    return rng.integers(0, config.codebook_size, count), np.full(count, length)


def _best(clock: Callable[[], float], repeats: int, task: Callable[[], Any]) -> float:
    task()
    times = []
    for _ in range(repeats):
        began = clock()
        task()
        times.append(clock() - began)
    return min(times)


def _stream(
    vocoder: Vocoder, ids: np.ndarray, lengths: np.ndarray, size: int, clock: Callable[[], float]
) -> tuple[float, float, np.ndarray]:
    """s until the first sample is out (what has to arrive first, and the computation), s of computation, the audio."""
    began, first = clock(), None
    stream, parts = vocoder.stream(), []
    for start in range(0, len(ids), size):
        parts.append(stream.push(ids[start : start + size], lengths[start : start + size]))
        if first is None and len(parts[-1]):
            arrived = float(lengths[: start + size].sum()) / vocoder.config.frame_rate
            first = arrived + clock() - began
    parts.append(stream.flush())
    return first or 0.0, clock() - began, np.concatenate(parts)


def _hifigan(sample_rate: int, seconds: float) -> tuple[dict[str, Any], Callable[[], Any]]:
    """Its description with the s that it speaks, and the call that speaks them."""
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    config = SpeechT5HifiGanConfig(sampling_rate=sample_rate)
    generator = SpeechT5HifiGan(config).eval()
    hop = int(np.prod(config.upsample_rates))
    mels = torch.randn(round(seconds * sample_rate / hop), config.model_in_dim, generator=torch.manual_seed(0))
    parameters = sum(weight.numel() for weight in generator.parameters())
    return {"parameters": parameters, "seconds": len(mels) * hop / sample_rate}, lambda: generator(mels)


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [f"{'':<28}{'real-time factor':>18}{'first audio, ms':>18}"]
    lines.append(f"{'offline':<28}{result['real_time_factor']:>18.4f}{'':>18}")
    for chunk, figures in result["streaming"].items():
        name = f"streaming, {chunk} ms"
        lines.append(f"{name:<28}{figures['real_time_factor']:>18.4f}{figures['first_audio_ms']:>18.0f}")
    lines.append(f"{'HiFi-GAN generator':<28}{result['hifigan']['real_time_factor']:>18.4f}")
    times = result["speedup"]["HiFi-GAN generator"]
    met = "met" if result["goals_met"] else "not met"
    lines.append(
        f"{times:.0f} times as fast as the HiFi-GAN generator (goal {GOALS['speedup']:.0f}; real-time factor at most "
        f"{GOALS['real_time_factor']:g}: {met}); streamed against offline: at most {result['max_abs_diff']:.1e} apart"
    )
    return "\n".join(lines)
