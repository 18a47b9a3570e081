"""How many people can talk to a server at once: simulated talkers over the WebSocket /v1/realtime.

A talker says the beginning of a story no faster than people speak, commits it, plays the reply as it comes, pauses, and says
the next prompt of the same story. A number of talkers passes where no reply had a gap, every talker got one, and no prompt
was refused. The number is doubled until one does not pass; then the distance to the largest that did is halved. One gap
decides, so that a trial is as strict as it is long, and nothing else should be running.

All times are taken where the talkers are. They run in one process, and the server in another, on the same cores: `late_ms`
says by how much talkers sent their sound too late.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from slm.audio import resample
from slm.errors import TresseError
from slm.voice_activity import RATE
from train.bench.latency import SECONDS, Playback, quantiles, spoken_prompts
from train.tools.progress import Progress

PATH = "/v1/realtime"
PIECE = 0.1
"""s of sound in an event."""
PAUSES = (0.5, 1.5)
"""s between the end of a reply and the next prompt, evenly spread."""
BEGINNING = 3.0
"""s within which the talkers of a trial begin."""
ANSWER_SECONDS = 60.0
"""s after which a reply, or its next event, is not waited for any more."""
NOTICED_LATE = 100.0
"""ms of lateness that the table mentions."""
PROMPTS = 12

Memory = Callable[[], int | None]
"""Bytes that the server takes; None where that is not known."""


@dataclass(frozen=True)
class Heard:
    """A reply. first: s from the end of the prompt to the first sound; gaps and the s of silence in them; waited: whether
    the talker was told a position in the line."""

    first: float
    gaps: int
    silent: float
    waited: bool


@dataclass
class Talker:
    """What became of one talker. problems: why prompts got no reply; late: s by which its sound was sent too late, at
    most."""

    replies: list[Heard] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    late: float = 0.0


@dataclass(frozen=True)
class Trial:
    """So many talkers at once. memory: bytes that the server took, at most; None where that is not known."""

    talkers: list[Talker]
    memory: int | None

    @property
    def passed(self) -> bool:
        """See the module."""
        return all(
            talker.replies and not talker.problems and not any(reply.gaps for reply in talker.replies)
            for talker in self.talkers
        )


# ---- a talker --------------------------------------------------------------------------------------------------------


async def talk(url: str, prompts: Sequence[np.ndarray], seconds: float, seed: int) -> Talker:
    """Talk for so many s, and until the last reply has ended. url: ws://...; prompts: each float32 [samples] at 16 kHz."""
    rng, talker = np.random.default_rng(seed), Talker()
    ends = time.perf_counter() + seconds
    pieces = [_pieces(prompt) for prompt in prompts]
    if seconds:
        await asyncio.sleep(rng.uniform(0, min(BEGINNING, seconds)))
    try:
        async with connect(url, max_size=None, open_timeout=ANSWER_SECONDS) as socket:
            settings = {"turn_detection": None, "input_audio_rate": RATE, "output_audio_rate": RATE}
            await _say(socket, "session.update", session={**settings, "max_seconds": SECONDS, "seed": seed})
            for number in range(seed, seed + 1_000_000):
                talker.late = max(talker.late, await _speak(socket, pieces[number % len(pieces)]))
                await _listen(socket, talker)
                if time.perf_counter() >= ends:
                    break
                await asyncio.sleep(rng.uniform(*PAUSES))
    except (OSError, TimeoutError, WebSocketException) as error:
        talker.problems.append(str(error) or "no answer came in time")
    return talker


def _pieces(prompt: np.ndarray) -> list[str]:
    data = np.round(np.clip(prompt, -1, 1) * 32767).astype("<i2")
    size = round(PIECE * RATE)
    return [base64.b64encode(data[start : start + size].tobytes()).decode() for start in range(0, len(data), size)]


async def _say(socket: ClientConnection, kind: str, **values: Any) -> None:
    await socket.send(json.dumps({"type": kind, **values}))


async def _speak(socket: ClientConnection, pieces: Sequence[str]) -> float:
    """Send each piece when it would have been spoken, and ask for a reply; by how many s a piece was late, at most."""
    began, late = time.perf_counter(), 0.0
    for number, piece in enumerate(pieces, 1):
        due = began + number * PIECE
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        late = max(late, time.perf_counter() - due)
        await _say(socket, "input_audio_buffer.append", audio=piece)
    await _say(socket, "input_audio_buffer.commit")
    await _say(socket, "response.create")
    return late


async def _listen(socket: ClientConnection, talker: Talker) -> None:
    """Play the reply to its end. One that does not come is a problem of the talker's."""
    asked, playback, waited, first = time.perf_counter(), Playback(), False, None
    while True:
        event = json.loads(await asyncio.wait_for(socket.recv(), ANSWER_SECONDS))
        now = time.perf_counter()
        if event["type"] == "response.audio.delta":
            first = now - asked if first is None else first
            playback.add(now, len(base64.b64decode(event["delta"])) / 2 / RATE)
        elif event["type"] == "tresse.queued":
            waited = True
        elif event["type"] == "error":
            talker.problems.append(event["error"]["message"])
            return
        elif event["type"] == "response.done":
            break
    if first is None or playback.ends is None:
        talker.problems.append(f"a response without sound: {event['response']['status']}")
        return
    talker.replies.append(Heard(first, playback.gaps, playback.silent, waited))
    await asyncio.sleep(max(0.0, playback.ends - time.perf_counter()))


# ---- trials ----------------------------------------------------------------------------------------------------------


async def _trial(url: str, prompts: Sequence[np.ndarray], count: int, seconds: float, memory: Memory) -> Trial:
    taken: list[int] = []

    async def watch() -> None:
        while True:
            if (now := memory()) is not None:
                taken.append(now)
            await asyncio.sleep(0.25)

    watching = asyncio.create_task(watch())
    talkers = await asyncio.gather(*(talk(url, prompts, seconds, seed) for seed in range(count)))
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    return Trial(list(talkers), max(taken, default=None))


def largest(passes: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to `most` that passes, 0 where none does, if all below one that passes do too."""
    good, bad = 0, most + 1
    while good < most:
        tried = min(most, max(1, 2 * good)) if bad > most else (good + bad) // 2
        if tried in (good, bad):
            break
        if passes(tried):
            good = tried
        else:
            bad = tried
    return good


def bench_serve(
    url: str, languages: Sequence[str], memory: Memory, most: int = 64, seconds: float = 20.0, a_minute: int = 120
) -> dict[str, Any]:
    """Find the largest number of talkers, `most` at most; returns what is printed as JSON. url: http://... of the server;
    languages: those of its bundle; seconds: of a trial; a_minute: connections that the server takes of one address.

    Raises TresseError where not even one talker gets a reply.
    """
    address = url.rstrip("/").replace("http", "ws", 1) + PATH
    prompts = [resample(waveform, rate, RATE) for waveform, rate, *_ in spoken_prompts(languages, PROMPTS)]
    opened: deque[float] = deque()
    trials: dict[int, Trial] = {}
    progress = Progress("trials", 2 * most.bit_length(), unit="trials")

    def trial(count: int, seconds: float) -> Trial:
        while opened and len(opened) + count > a_minute:
            time.sleep(max(0.0, opened.popleft() + 61.0 - time.monotonic()))
        done = asyncio.run(_trial(address, prompts, count, seconds, memory))
        opened.extend([time.monotonic()] * count)
        return done

    warm = trial(1, 0.0)
    if not warm.talkers[0].replies:
        raise TresseError(f"{url} gives no reply: {warm.talkers[0].problems[0]}")

    def passes(count: int) -> bool:
        trials[count] = trial(count, seconds)
        progress.update(len(trials), talkers=str(count))
        return trials[count].passed

    good = largest(passes, most)
    rows = [_row(count, trials[count]) for count in sorted(trials)]
    return {
        "largest": good,
        "more_not_tried": good == most,
        "session_mb": session_megabytes(trials),
        "first_audio_ms": next((row["first_audio_ms"] for row in rows if row["talkers"] == good), None),
        "trials": rows,
        "seconds": seconds,
    }


def session_megabytes(trials: dict[int, Trial]) -> float | None:
    """MB by which the server grows with each talker: a line through the trials, in their order, that had more talkers than
    all before, since memory that was taken is not always given back. None where fewer than two say."""
    known: list[tuple[int, int]] = []
    for count, trial in trials.items():
        if trial.memory is not None and count > max((before for before, _ in known), default=0):
            known.append((count, trial.memory))
    if len(known) < 2:
        return None
    counts, bytes_taken = np.array(known, float).T
    return round(float(np.polyfit(counts, bytes_taken, 1)[0]) / 1e6, 2)


def _row(count: int, trial: Trial) -> dict[str, Any]:
    """One trial. by_talker: of the talkers' own medians, and of the gaps that each had, the least, median and most."""
    replies = [reply for talker in trial.talkers for reply in talker.replies]
    problems = [problem for talker in trial.talkers for problem in talker.problems]
    medians = [
        float(np.median([1000 * reply.first for reply in each.replies])) for each in trial.talkers if each.replies
    ]
    gaps = [sum(reply.gaps for reply in talker.replies) for talker in trial.talkers]
    firsts = [1000 * reply.first for reply in replies]
    return {
        "talkers": count,
        "passed": trial.passed,
        "replies": len(replies),
        "waited": sum(reply.waited for reply in replies),
        "gaps": sum(gaps),
        "silent_ms": round(1000 * sum(reply.silent for reply in replies), 1),
        "first_audio_ms": quantiles(firsts) if firsts else None,
        "by_talker": {"first_audio_ms": _range(medians), "gaps": _range(gaps)},
        "problems": len(problems),
        "problem": problems[0] if problems else None,
        "late_ms": round(1000 * max(talker.late for talker in trial.talkers), 1),
        "memory_mb": None if trial.memory is None else round(trial.memory / 1e6, 1),
    }


def _range(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {name: round(float(of(values)), 1) for name, of in (("least", min), ("median", np.median), ("most", max))}


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [
        f"{'talkers':>7}{'replies':>9}{'waited':>8}{'gaps':>6}{'first sound, ms':>22}{'by talker, ms':>20}"
        f"{'gaps by talker':>16}{'server, MB':>12}"
    ]
    for row in result["trials"]:
        first, each = row["first_audio_ms"], row["by_talker"]
        median = f"{first['median']:.0f} (95 %: {first['p95']:.0f})" if first else "-"
        memory = "-" if row["memory_mb"] is None else f"{row['memory_mb']:.0f}"
        lines.append(
            f"{row['talkers']:>7}{row['replies']:>9}{row['waited']:>8}{row['gaps']:>6}{median:>22}"
            f"{_span(each['first_audio_ms']):>20}{_span(each['gaps']):>16}{memory:>12}"
        )
        if row["problem"]:
            lines.append(f"        {row['problems']} prompts got no reply: {row['problem']}")
        if row["late_ms"] > NOTICED_LATE:
            lines.append(
                f"        talkers sent their sound up to {row['late_ms']:.0f} ms too late: the machine was busy"
            )
    lines.append("waited: replies before which a position in the line was told; by talker: the least to the most")
    more = ", and more were not tried" if result["more_not_tried"] else ""
    lines.append(f"largest number of talkers without a gap: {result['largest']}{more}")
    if result["session_mb"] is not None:
        lines.append(f"memory of a session: {result['session_mb']:.1f} MB")
    return "\n".join(lines)


def _span(values: dict[str, float] | None) -> str:
    return "-" if values is None else f"{values['least']:.0f} to {values['most']:.0f}"
