"""The streaming player: a gr.HTML component (player.js) and the messages that feed it.

Sound travels through Gradio's own queue as base64 int16 in numbered chunks, and each message repeats the last few, so
that the page may skip messages without losing sound. Messages are at least 60 ms apart: a reply that is made faster than it
is spoken costs few, larger messages. The first chunk goes out at once.
"""

from __future__ import annotations

import base64
import time
from collections import deque
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from demo.texts import PlayerTexts

REPEATED_CHUNKS = 8
"""Chunks in one message, the new one included; more costs the browser time."""
REPEATED_SECONDS = 4.0
"""A message repeats no more sound than this (but always holds at least two chunks)."""
MESSAGE_INTERVAL = 0.06
"""s between two messages."""

SCRIPT = Path(__file__).with_name("player.js")
TEMPLATE = """
<div class="player" data-state="idle" role="group" aria-label="${texts.label}">
  <canvas class="player-braid" aria-hidden="true"></canvas>
  <div class="player-bar">
    <span class="player-dot" aria-hidden="true"></span>
    <span class="player-status" role="status" aria-live="polite">${texts.idle}</span>
    <span class="player-time" aria-hidden="true"></span>
    <button class="player-stop" type="button" disabled>${texts.stop}</button>
  </div>
</div>
"""
CLIENT_ASK = """(...inputs) => {
  const run = Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(16)).join("-");
  document.dispatchEvent(new CustomEvent("tresse:ask", {detail: {run}}));
  return [run, ...inputs.slice(1)];
}"""
"""Runs in the browser on "go on": names the run, tells the player, and puts the name in the place of the first input."""


def player(sample_rate: int, texts: PlayerTexts) -> gr.HTML:
    """The player. It triggers `stop` with `run` (the run to end) when its stop button is pressed."""
    return gr.HTML(
        value=None,
        html_template=TEMPLATE,
        js_on_load=SCRIPT.read_text(encoding="utf-8"),
        apply_default_css=False,
        elem_id="player",
        texts=texts.as_props(),
        rate=sample_rate,
    )


class Feed:
    """Messages of one run. `add` gives a message when one is due, `close` the last one."""

    def __init__(self, run: str, sample_rate: int) -> None:
        self.run = run
        self.sample_rate = sample_rate
        self._waiting: list[np.ndarray] = []
        self._recent: deque[tuple[int, str, float]] = deque(maxlen=REPEATED_CHUNKS)
        self._sent = 0
        self._last_message = -float("inf")

    def add(self, audio: np.ndarray) -> dict[str, Any] | None:
        """float32 [samples] -> a message, or None where the next one is not due yet."""
        if len(audio):
            self._waiting.append(audio)
        now = time.monotonic()
        if not self._waiting or now - self._last_message < MESSAGE_INTERVAL:
            return None
        self._last_message = now
        return self._message("playing")

    def close(self, state: str, text: str | None = None) -> dict[str, Any]:
        """The last message: what is left, and how the run ended ("finished", "stopped" or "error")."""
        return {**self._message(state), "total": self._sent, "text": text}

    def _message(self, state: str) -> dict[str, Any]:
        if self._waiting:
            audio = np.concatenate(self._waiting)
            self._waiting = []
            samples = np.round(np.clip(audio, -1, 1) * 32767).astype("<i2")
            self._recent.append(
                (self._sent, base64.b64encode(samples.tobytes()).decode(), len(audio) / self.sample_rate)
            )
            self._sent += 1
            while len(self._recent) > 2 and sum(seconds for *_, seconds in self._recent) > REPEATED_SECONDS:
                self._recent.popleft()
        chunks = [[number, data] for number, data, _ in self._recent]
        return {"run": self.run, "state": state, "chunks": chunks}
