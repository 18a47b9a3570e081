"""How soon and how fast a spoken story goes on: the bundle's way against the plain way, in one process.

The plain way is what one writes first: encode the whole prompt, transformers `generate` in float32 to the end, vocode all
units at once; its first audio is its last. Both ways reply to the same prompts with as many tokens, and every figure is the
median (and 95th percentile) over all prompts. Time is the wall clock's: this is about what somebody waits for, on a machine
that does nothing else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from slm.continuation import Prompt, Step, continue_prompt, prompt_tokens
from slm.engines import CTranslate2Engine, Engine, Sampling, TorchEngine
from slm.settings import ReplySettings
from slm.units import Units

if TYPE_CHECKING:
    from slm.bundle import Bundle

FIRST_AUDIO_GOAL, DECODE_GOAL, REAL_TIME_GOAL = 10.0, 5.0, 0.1
"""Times sooner, times faster, real-time factor at most."""
PIECE = 0.1
"""s of prompt that arrive at once while somebody speaks."""
SECONDS = 8.0
"""Longest reply."""
LEAD = 0.03
"""s between the arrival of a reply's first piece and its sound, as on the page."""


@dataclass(frozen=True)
class Timing:
    """One reply. first: s from the last prompt sample to the first sound; whole: s of work; sound: s of speech."""

    first: float
    whole: float
    sound: float
    tokens: int


class Playback:
    """A reply that is played while its pieces come. ends: time.perf_counter() at which what came so far has been played;
    gaps and the s of silence in them: where a piece came after the one before had been played."""

    def __init__(self) -> None:
        self.ends: float | None = None
        self.gaps, self.silent = 0, 0.0

    def add(self, now: float, seconds: float) -> None:
        """A piece of so many s comes."""
        if self.ends is None:
            self.ends = now + LEAD
        elif now > self.ends:
            self.gaps, self.silent = self.gaps + 1, self.silent + now - self.ends
            self.ends = now
        self.ends += seconds


def bench_continue(bundle: Bundle, prompts: int = 50, plain_prompts: int = 5, decoded: int = 200) -> dict[str, Any]:
    """Time all ways on spoken prompts in every language pair; returns what is printed as JSON.

    plain_prompts: how many of them the plain way answers, which is slow; decoded: tokens for the engines' speed.
    """
    spoken = list(spoken_prompts(bundle.languages, prompts))
    bundle.warm_up()
    ways = {"streamed": streamed_reply, "whole": whole_reply}
    timings: dict[str, list[Timing]] = {name: [] for name in ways}
    for prompt in spoken:  # by turns, so that whatever else the machine does meets all ways alike
        for name, reply in ways.items():
            timings[name].append(reply(bundle, *prompt))
    _generate(bundle, prompt_ids(bundle, bundle.prompt(spoken[0][0], spoken[0][1]), spoken[0][2]), 4)
    fair = [
        plain_reply(bundle, *prompt, tokens=timing.tokens)
        for prompt, timing in list(zip(spoken, timings["whole"], strict=True))[:plain_prompts]
    ]
    speeds = decoding_speeds(bundle, bundle.prompt(*spoken[0][:2]), decoded)
    first = {name: quantiles([1000 * timing.first for timing in some]) for name, some in timings.items()}
    first["plain"] = quantiles([1000 * timing.first for timing in fair])
    factor = float(np.median([timing.whole / timing.sound for timing in timings["whole"] if timing.sound]))
    plain_factor = float(np.median([timing.whole / timing.sound for timing in fair if timing.sound]))
    default = "ctranslate2" if "ctranslate2" in speeds else "torch"
    speedup = {
        "first audio against the plain way, prompt streamed": first["plain"]["median"] / first["streamed"]["median"],
        "first audio against the plain way": first["plain"]["median"] / first["whole"]["median"],
        "decoding against generate": speeds[default] / speeds["generate"],
        "whole reply against the plain way": plain_factor / factor,
    }
    return {
        "speedup": {name: round(times, 2) for name, times in speedup.items()},
        "first_audio_ms": first,
        "real_time_factor": round(factor, 4),
        "tokens_per_second": {name: round(speed, 1) for name, speed in speeds.items()},
        "at_once": at_once(bundle, spoken[:4]),
        "prompts": len(spoken),
        "plain_prompts": len(fair),
        "goal_met": {
            "first audio": speedup["first audio against the plain way, prompt streamed"] >= FIRST_AUDIO_GOAL,
            "decoding": speedup["decoding against generate"] >= DECODE_GOAL,
            "real-time factor": factor <= REAL_TIME_GOAL,
        },
    }


def spoken_prompts(languages: Sequence[str], count: int) -> Iterator[tuple[np.ndarray, int, str, int]]:
    """Beginnings of test stories in every pair of languages: (float32 [samples], rate, language of the reply, seed)."""
    from train.speech.voices import SAMPLE_RATE, Voices, speak
    from train.stories.grammar import generate_stories

    voices = Voices.load()
    pause = np.zeros(int(0.45 * SAMPLE_RATE), np.float32)
    pairs = [(said, other) for said in languages for other in languages]
    names = [name for name in (*voices.training, *voices.held_out) if voices.can_speak(name, *languages)]
    for number, story in enumerate(generate_stories(1, count, "test")):
        language, to = pairs[number % len(pairs)]
        name = names[number % len(names)]
        first, second = (speak(text, language, voices.speaker(name), voices) for text in story.told_in(language)[:2])
        yield np.concatenate([first, pause, second]), SAMPLE_RATE, to, number


def whole_reply(bundle: Bundle, waveform: np.ndarray, rate: int, to: str, seed: int) -> Timing:
    """The prompt is given at once."""
    began = time.perf_counter()
    return _timed(bundle, bundle.prompt(waveform, rate), to, seed, began)


def streamed_reply(bundle: Bundle, waveform: np.ndarray, rate: int, to: str, seed: int) -> Timing:
    """The prompt arrives in pieces while it is spoken; what counts begins with the last one."""
    stream = bundle.prompt_stream(rate)
    pieces = np.array_split(waveform, max(1, round(len(waveform) / rate / PIECE)))
    for piece in pieces[:-1]:
        stream.push(piece)
    began = time.perf_counter()
    stream.push(pieces[-1])
    return _timed(bundle, stream.finish(), to, seed, began)


def plain_reply(bundle: Bundle, waveform: np.ndarray, rate: int, to: str, seed: int, *, tokens: int) -> Timing:
    """Encode, generate, vocode, one after the other."""
    began = time.perf_counter()
    prompt = bundle.prompt(waveform, rate)
    drawn = _generate(bundle, prompt_ids(bundle, prompt, to), tokens)
    ids = bundle.vocabulary.decode(drawn)
    sound = bundle.vocoder.synthesise(Units(ids, np.full(len(ids), 2), bundle.units.frame_rate), language=to)
    took = time.perf_counter() - began
    return Timing(took, took, len(sound) / bundle.sample_rate, len(drawn))


def prompt_ids(bundle: Bundle, prompt: Prompt, to: str) -> list[int]:
    """The tokens that every way continues."""
    return prompt_tokens(prompt, to, bundle.vocabulary, bundle.context // 2)


def decoding_speeds(bundle: Bundle, prompt: Prompt, tokens: int) -> dict[str, float]:
    """Tokens a second of every engine and of transformers' `generate`, after a prompt of the usual length. Of PyTorch with
    CUDA graphs and without them, where the bundle is on a GPU."""
    to = bundle.languages[0]
    sampling = Sampling(max_tokens=tokens, min_tokens=tokens)
    engines: dict[str, Engine] = {"torch": TorchEngine(bundle.language_model, bundle.vocabulary)}
    if isinstance(bundle.engine, CTranslate2Engine):
        engines = {"ctranslate2": bundle.engine, **engines}
    if bundle.device != "cpu":
        engines["torch without graphs"] = TorchEngine(bundle.language_model, bundle.vocabulary, static=False)
    speeds = {}
    for name, engine in engines.items():

        def steps(engine: Engine = engine) -> Iterator[Step]:
            return continue_prompt(prompt, to, engine, bundle.vocabulary, sampling, bundle.context)

        with closing(cast(Generator, steps())) as first:  # of the same shapes, so that what is captured is captured
            list(islice(first, 8))
        began = time.perf_counter()
        made = len(list(steps()))
        speeds[name] = made / (time.perf_counter() - began)
    ids = prompt_ids(bundle, prompt, to)
    began = time.perf_counter()
    speeds["generate"] = len(_generate(bundle, ids, tokens)) / (time.perf_counter() - began)
    return speeds


def at_once(bundle: Bundle, prompts: list[tuple[np.ndarray, int, str, int]]) -> dict[str, Any]:
    """Replies to several people at the same time, a core each, played as they come: how many gaps they hear."""
    import torch

    cores = torch.get_num_threads()
    gaps = [0] * len(prompts)
    first = [0.0] * len(prompts)

    def listen(number: int) -> None:
        waveform, rate, to, seed = prompts[number]
        began, playback = time.perf_counter(), Playback()
        for chunk in bundle.reply(bundle.prompt(waveform, rate), ReplySettings((to,), seed, max_seconds=SECONDS)):
            now = time.perf_counter()
            first[number] = first[number] or now - began
            playback.add(now, len(chunk.audio) / bundle.sample_rate)
        gaps[number] = playback.gaps

    threads = [threading.Thread(target=listen, args=(number,)) for number in range(len(prompts))]
    torch.set_num_threads(1)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.set_num_threads(cores)
    return {"people": len(prompts), "gaps": sum(gaps), "slowest_first_audio_ms": round(1000 * max(first), 1)}


def _timed(bundle: Bundle, prompt: Prompt, to: str, seed: int, began: float) -> Timing:
    first, samples, tokens = 0.0, 0, 0
    for chunk in bundle.reply(prompt, ReplySettings((to,), seed, max_seconds=SECONDS)):
        first = first or time.perf_counter() - began
        samples, tokens = samples + len(chunk.audio), chunk.tokens
    whole = time.perf_counter() - began
    return Timing(first or whole, whole, samples / bundle.sample_rate, tokens)


def _generate(bundle: Bundle, ids: list[int], tokens: int) -> list[int]:
    """Exactly so many tokens by transformers' `generate`, drawn as the engines draw."""
    import torch

    model = bundle.language_model
    start = torch.tensor([ids], device=next(model.parameters()).device)
    with torch.inference_mode():
        out = model.generate(
            start,
            attention_mask=torch.ones_like(start),
            do_sample=True,
            temperature=Sampling.temperature,
            top_p=Sampling.top_p,
            top_k=Sampling.top_k,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            pad_token_id=bundle.vocabulary.eos_id,
        )
    return [int(token) for token in out[0, len(ids) :]]


def quantiles(values: list[float]) -> dict[str, float]:
    """Median and 95th percentile of values, rounded to tenths."""
    return {"median": round(float(np.median(values)), 1), "p95": round(float(np.quantile(values, 0.95)), 1)}


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    names = {"streamed": "prompt streamed", "whole": "prompt at once", "plain": "plain way"}
    lines = [f"{'first audio after the prompt':<34}{'median':>12}{'95th percentile':>18}"]
    lines += [
        f"{names[name]:<34}{some['median']:>9.0f} ms{some['p95']:>15.0f} ms"
        for name, some in result["first_audio_ms"].items()
    ]
    lines += [f"{name + ', tokens a second':<34}{speed:>9.0f}" for name, speed in result["tokens_per_second"].items()]
    lines.append(f"real-time factor of a whole reply: {result['real_time_factor']:.3f} (goal {REAL_TIME_GOAL:g})")
    together = result["at_once"]
    lines.append(
        f"{together['people']} people at once: {together['gaps']} gaps, first audio after "
        f"{together['slowest_first_audio_ms']:.0f} ms at the latest"
    )
    lines += [f"{name}: {times:.1f}x" for name, times in result["speedup"].items()]
    lines += [f"goal for {name}: {'met' if met else 'not met'}" for name, met in result["goal_met"].items()]
    return "\n".join(lines)
