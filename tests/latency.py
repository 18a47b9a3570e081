"""How soon the page answers: `python -m tests.latency [--turns 50]` prints a table and, last, one JSON line.

Chromium's fake microphone plays stories of the test split without end, in both languages; the talk button is pressed
for some seconds of it. What the page says is the time from letting go to the moment that the first sample is scheduled
for; beside it the first block at the loudspeaker that is not silence (in blocks of 32 ms, and later by the tap's own
buffer). Uses the shipped bundle, or `--bundle`; nothing else should be running.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from demo.app import share_cores, start
from slm.audio import write_wav
from slm.bundle import Bundle
from tests.browser import chromium
from tests.demo.pages import LOUD, visits
from train.bench.latency import spoken_prompts

GOAL = 250.0
"""ms, median."""
RELEASED = """() => {
  window.released = [];
  const note = () => window.tapped && window.released.push(window.tapped.currentTime);
  document.addEventListener("pointerup", note, { capture: true });
}"""


def measure(bundle: Bundle, turns: int, stories: int = 8) -> list[dict[str, float]]:
    """Talk `turns` times: for each reply, ms from the end of the prompt to the first sound, `heard` and as the page says."""
    spoken = [waveform for waveform, *_ in spoken_prompts(bundle.languages, stories)]
    rate = next(spoken_prompts(bundle.languages, 1))[1]
    share_cores()
    bundle.warm_up()
    server, url = start(bundle, "127.0.0.1", 0)
    timings: list[dict[str, float]] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            microphone = Path(folder) / "stories.wav"
            write_wav(microphone, np.concatenate(spoken), rate)
            with chromium(microphone) as browser, visits(browser) as visit:
                visitor = visit(url)
                visitor.page.locator(".settings summary").click()
                visitor.page.locator("[name=max_seconds]").fill("2")
                visitor.page.locator(".settings summary").click()
                visitor.page.evaluate(RELEASED)
                for turn in range(turns):
                    visitor.target(bundle.languages[turn % len(bundle.languages)])
                    visitor.forget_sound()
                    visitor.hold(2.0 + 0.37 * (turn % 8))
                    visitor.wait_replies(1)
                    timings.append(_turn(visitor))
                    visitor.page.locator(".new").click()
                    visitor.page.locator(".beginning").wait_for()
    finally:
        server.close(verbose=False)
    return timings


def _turn(visitor: Any) -> dict[str, float]:
    times, blocks = visitor.heard()
    released = float(visitor.page.evaluate("window.released.at(-1)"))
    loud = np.sqrt((blocks**2).mean(1)) > LOUD / 10
    said = visitor.page.locator(".reply").last.get_attribute("data-first-sound-ms")
    return {"heard": 1000 * float(times[loud & (times > released)][0] - released), "page": float(said)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=50)
    parser.add_argument("--bundle", type=Path)
    options = parser.parse_args()
    timings = measure(Bundle.load(options.bundle), options.turns)
    result: dict[str, Any] = {"turns": len(timings)}
    print(f"{'first sound after the prompt':<30}{'median':>10}{'95th percentile':>18}")
    for name, title in (("heard", "at the loudspeaker"), ("page", "as the page says")):
        values = [turn[name] for turn in timings]
        result[name] = {"median": round(float(np.median(values)), 1), "p95": round(float(np.quantile(values, 0.95)), 1)}
        print(f"{title:<30}{result[name]['median']:>7.0f} ms{result[name]['p95']:>15.0f} ms")
    result["goal_met"] = result["page"]["median"] <= GOAL
    print(f"goal of {GOAL:.0f} ms: {'met' if result['goal_met'] else 'not met'}")
    print(json.dumps({"browser_first_sound_ms": result}))


if __name__ == "__main__":
    main()
