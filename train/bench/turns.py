"""When a turn is over: how soon that is judged, and how many turns are cut off, by plain silence and by `slm.turn_ends`.

Each recording is one turn: it is cut off where a pause in it is taken for its end. What is spoken is heard as a microphone
hears it, window by window, with silence after it. The judgement's weights were fitted on half of the speakers; the other
half is reported. Where a group has few speakers, halves are of its recordings.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slm.audio import read_audio, resample
from slm.errors import TresseError
from slm.settings import ReplySettings
from slm.turn_ends import PATIENCES, PAUSE, OwnPauses, Pause, PlainSilence, Rule, TurnEnds, Weights, rule_of, signs
from slm.turn_taking import TurnTaking
from slm.voice_activity import RATE, WINDOW, Change
from train.corpus.recordings import Recording, read_recordings
from train.tools.progress import Progress

if TYPE_CHECKING:
    from slm.bundle import Bundle
    from slm.prompt_stream import PromptStream

AFTER = 2.2
"""s of silence after a turn: longer than anybody waits."""
GOAL_MS, GOAL_CUT = 400.0, 0.05
PLAIN = "0.7 s of silence"
STORIES = "stories"
"""The group of what the project's voices speak."""
WITHIN, BETWEEN, SPREAD = 0.3, 0.45, 0.45
"""Median s of the pauses of stories, within and between sentences, and the standard deviation of their logarithm."""


@dataclass(frozen=True)
class Said:
    """A turn: float32 [samples] at 16 kHz, without the silence after it; its group; which half it belongs to."""

    group: str
    tuning: bool
    samples: np.ndarray


@dataclass(frozen=True)
class Heard:
    """A turn as it was heard. pauses: each with the s after which speech went on, infinite for the last; lag: s from the end
    of speech until silence was noticed; ready: s from the last pause until the first sound of a reply was computed."""

    group: str
    tuning: bool
    pauses: tuple[tuple[Pause, float], ...]
    lag: float
    ready: float


@dataclass(frozen=True)
class Outcome:
    """decided, sounded: s from the end of speech until the turn was over, and until the first sound; cut: before that."""

    decided: float
    sounded: float
    cut: bool


# ---- what is said ----------------------------------------------------------------------------------------------------


def human_turns(folder: Path, count: int) -> Iterator[Said]:
    """Up to `count` recordings of each sub-folder of a folder (see `train.corpus.recordings`), evenly chosen. Those that
    cannot be read, or hold nothing, are left out."""
    groups: dict[str, list[Recording]] = {}
    for recording in read_recordings(folder):
        parts = recording.path.relative_to(folder).parts if recording.path.is_relative_to(folder) else ()
        groups.setdefault(parts[0] if len(parts) > 1 else folder.name, []).append(recording)
    for group, recordings in groups.items():
        speakers = {recording.speaker for recording in recordings}
        for number in np.unique(np.linspace(0, len(recordings) - 1, min(count, len(recordings))).round().astype(int)):
            recording = recordings[number]
            key = recording.speaker if len(speakers) >= 8 else recording.path.name
            try:
                waveform, rate = read_audio(recording.path, 60.0)
            except TresseError:
                continue
            yield Said(group, _tuning(key), resample(waveform, rate, RATE))


def story_turns(languages: Sequence[str], count: int) -> Iterator[Said]:
    """Beginnings of stories of two or three sentences, by all voices in turn, with pauses between and within sentences."""
    from train.speech.voices import SAMPLE_RATE, Voices, speak
    from train.stories.grammar import generate_stories

    voices, rng = Voices.load(), np.random.default_rng(0)
    names = [name for name in (*voices.training, *voices.held_out) if voices.can_speak(name, *languages)]
    for number, story in enumerate(generate_stories(1, count, "test")):
        language, name = languages[number % len(languages)], names[number % len(names)]
        parts: list[np.ndarray] = []
        for sentence in story.told_in(language)[: 2 + number % 2]:
            words = sentence.split()
            cut = len(words) // 2 if rng.random() < 0.5 and len(words) > 5 else 0
            for text, median in ((" ".join(words[:cut]), WITHIN), (" ".join(words[cut:]), BETWEEN)):
                if text:
                    pause = np.clip(median * np.exp(SPREAD * rng.standard_normal()), 0.15, 1.5)
                    parts += [speak(text, language, voices.speaker(name), voices), np.zeros(int(pause * SAMPLE_RATE))]
        yield Said(STORIES, _tuning(name), np.concatenate(parts[:-1]).astype(np.float32))


def _tuning(key: str) -> bool:
    return zlib.crc32(key.encode()) % 2 == 0


# ---- how it is heard -------------------------------------------------------------------------------------------------


class _Endless:
    """A rule by which no turn ends; keeps the latest pause."""

    latest: Pause

    def silence(self, pause: Pause, own: OwnPauses) -> float:
        """See `slm.turn_ends.Rule`."""
        self.latest = pause
        return 10 * AFTER


def hear(bundle: Bundle, said: Said) -> Heard | None:
    """A turn as a microphone hears it; None where no speech is noticed in it, or none at its end."""
    rule = _Endless()
    taking, stream = TurnTaking(rule), bundle.prompt_stream(RATE)
    pauses: list[tuple[Pause, float]] = []
    before = np.zeros(RATE // 2, np.float32)
    sound = np.concatenate([before, said.samples, _room(said.samples)])
    ready = 0.0
    for part in taking.push(sound):
        if stream.seconds + len(part.samples) / RATE > bundle.max_prompt_seconds:
            return None
        stream.push(part.samples)
        if part.change is Change.PAUSED:
            started = time.perf_counter()
            taking.ending = _reply(bundle, stream)
            ready = time.perf_counter() - started
        elif part.change is Change.RESUMED:
            pauses.append((rule.latest, taking.silence))
    if not ready or not taking.speaking or taking.silence < AFTER / 2:
        return None
    windows = len(sound) // WINDOW * WINDOW / RATE
    lag = max(0.0, windows - taking.silence - (len(before) + _end(said.samples)) / RATE)
    return Heard(said.group, said.tuning, (*pauses, (rule.latest, math.inf)), lag, ready)


def _reply(bundle: Bundle, stream: PromptStream) -> float | None:
    """What happens in a pause: the prompt is understood, and the first sound of a reply computed."""
    try:
        prompt = stream.fork().finish()
    except TresseError:
        return None
    ending = bundle.ending(prompt)
    for _ in bundle.reply(prompt, ReplySettings((bundle.languages[0],), max_seconds=1.0)):
        break
    return ending


def _room(samples: np.ndarray) -> np.ndarray:
    """AFTER s of the noise that a recording has where it is quietest."""
    level = float(np.sqrt((np.sort(np.abs(samples))[: max(1, len(samples) // 10)] ** 2).mean()))
    noise = np.random.default_rng(0).standard_normal(round(AFTER * RATE))
    return (max(1.5 * level, 1e-5) * noise).astype(np.float32)


def _end(samples: np.ndarray) -> int:
    """Samples up to the last frame of 10 ms within 35 dB of the loudest."""
    frames = samples[: len(samples) // 160 * 160].reshape(-1, 160)
    level = 10 * np.log10((frames**2).mean(1) + 1e-10)
    return 160 * (int(np.flatnonzero(level > level.max() - 35)[-1]) + 1)


def outcome(heard: Heard, rule: Rule) -> Outcome:
    """What a rule makes of a turn, as `slm.turn_taking` would. Plain silence anticipates nothing."""
    own = OwnPauses()
    for pause, lasted in heard.pauses:
        silence = math.ceil(rule.silence(pause, own) * RATE / WINDOW - 1e-6) * WINDOW / RATE
        if lasted == math.inf:
            noticed = math.ceil(PAUSE * RATE / WINDOW) * WINDOW / RATE
            first = silence if isinstance(rule, PlainSilence) else noticed
            return Outcome(heard.lag + silence, heard.lag + max(silence, first + heard.ready), False)
        if lasted >= silence:
            return Outcome(0.0, 0.0, True)
        own.add(lasted)
    raise ValueError("a turn has a last pause")


# ---- what comes of it ------------------------------------------------------------------------------------------------


def bench_turns(bundle: Bundle, folder: Path | None, count: int, stories: int, fitting: bool = False) -> dict[str, Any]:
    """Hear recordings (`count` of each sub-folder) and stories; what is printed as JSON. fitting: also fit the weights anew,
    and judge by these."""
    bundle.warm_up()
    said = [*(human_turns(folder, count) if folder else ()), *story_turns(bundle.languages, stories)]
    heard, progress = [], Progress("turns", len(said), unit="turns")
    for number, each in enumerate(said, 1):
        if (turn := hear(bundle, each)) is not None:
            heard.append(turn)
        progress.update(number)
    tuning, others = [turn for turn in heard if turn.tuning], [turn for turn in heard if not turn.tuning]
    rules: dict[str, Rule] = {PLAIN: PlainSilence(), **{name: rule_of(name) for name in PATIENCES}}
    result: dict[str, Any] = {}
    if fitting:
        weights = fit(tuning)
        rules.update({name: TurnEnds(patience, weights) for name, patience in PATIENCES.items()})
        result["fitted"] = {name: round(value, 4) for name, value in asdict(weights).items()}
    result["turns"] = _figures(others, rules)
    result["tuning"] = _figures(tuning, rules)
    together = {name: groups["all"] for name, groups in result["turns"].items()}
    medians = {name: each["sounded_ms"]["median"] for name, each in together.items() if each["sounded_ms"]}
    result["speedup"] = {
        name: round(medians[PLAIN] / medians[name], 2) for name in PATIENCES if {name, PLAIN} <= {*medians}
    }
    result["goal_met"] = {
        name: {"first sound": medians[name] <= GOAL_MS, "cut off": together[name]["cut"] <= GOAL_CUT}
        for name in medians
    }
    result["ready_ms"] = _spread([1000 * turn.ready for turn in heard])
    return result


def _figures(heard: list[Heard], rules: dict[str, Rule]) -> dict[str, Any]:
    """For each rule and group: turns, the share cut off, and ms until the others were over and answered."""
    groups = {"all": heard} | {name: [turn for turn in heard if turn.group == name] for name in _names(heard)}
    return {
        name: {group: _summary([outcome(turn, rule) for turn in turns]) for group, turns in groups.items()}
        for name, rule in rules.items()
    }


def _names(heard: list[Heard]) -> list[str]:
    return sorted({turn.group for turn in heard})


def _summary(outcomes: list[Outcome]) -> dict[str, Any]:
    over = [each for each in outcomes if not each.cut]
    return {
        "turns": len(outcomes),
        "cut": round(1 - len(over) / len(outcomes), 4) if outcomes else None,
        "decided_ms": _spread([1000 * each.decided for each in over]),
        "sounded_ms": _spread([1000 * each.sounded for each in over]),
    }


def _spread(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    low, median, high = np.quantile(values, [0.1, 0.5, 0.9])
    return {"p10": round(float(low)), "median": round(float(median)), "p90": round(float(high))}


def fit(heard: list[Heard], ridge: float = 1.0) -> Weights:
    """Logistic regression of ends against pauses within turns: all groups weigh alike, and so do ends and pauses."""
    rows, ends, groups = [], [], []
    for turn in heard:
        for pause, lasted in turn.pauses:
            rows.append(list(signs(pause).values()))
            ends.append(lasted == math.inf)
            groups.append(f"{turn.group} {ends[-1]}")
    if len(set(ends)) < 2:
        raise TresseError("there are no pauses to fit to: give more recordings")
    x, y = np.array(rows), np.array(ends, float)
    names, members = np.unique(groups, return_inverse=True)
    weight = (len(y) / len(names) / np.bincount(members))[members]
    scale = np.maximum(x.std(0), 1e-6)
    scale[0] = 1.0  # the bias
    x, fitted = x / scale, np.zeros(x.shape[1])
    for _ in range(50):  # Newton's method
        p = 1 / (1 + np.exp(-x @ fitted))
        penalty = np.r_[0.0, np.full(len(fitted) - 1, ridge)]
        curvature = (x * (weight * p * (1 - p))[:, None]).T @ x + np.diag(penalty + 1e-9)
        fitted = fitted - np.linalg.solve(curvature, x.T @ (weight * (p - y)) + penalty * fitted)
    return Weights(*(fitted / scale))


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [f"{'':<20}{'':<18}{'turns':>6}{'cut off':>9}{'over after, ms':>22}{'first sound, ms':>22}"]
    for name, groups in result["turns"].items():
        for group, each in groups.items():
            if each["turns"]:
                times = "".join(f"{_times(each[kind]):>22}" for kind in ("decided_ms", "sounded_ms"))
                lines.append(f"{name:<20}{group:<18}{each['turns']:>6}{100 * each['cut']:>7.1f} %{times}")
    if not result["goal_met"]:
        lines.append("no turn was heard to its end: give more recordings")
    lines.append(
        "medians, and between which the middle 80 % lie; the speakers reported are others than those fitted to"
    )
    lines.append(f"goals: first sound after {GOAL_MS:.0f} ms in the median, at most {100 * GOAL_CUT:.0f} % cut off")
    for name, met in result["goal_met"].items():
        lines.append(f"{name}: " + ", ".join(f"{goal} {'met' if yes else 'not met'}" for goal, yes in met.items()))
    if "fitted" in result:
        lines.append("Weights(" + ", ".join(f"{name}={value}" for name, value in result["fitted"].items()) + ")")
    return "\n".join(lines)


def _times(spread: dict[str, float] | None) -> str:
    return "-" if spread is None else f"{spread['median']:.0f} ({spread['p10']:.0f} to {spread['p90']:.0f})"
