"""A program that talks through the WebSocket at /v1/realtime (demo/realtime)."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

WAIT = 120.0
MANUAL = {"turn_detection": None, "input_audio_rate": 16000, "output_audio_rate": 16000}
"""Settings of a program that commits its prompts itself, at 16 kHz."""


class Program:
    """A connection. `events`: all that the server said."""

    def __init__(self, url: str, **more: Any) -> None:
        self.socket = connect(f"{url.rstrip('/').replace('http', 'ws', 1)}/v1/realtime", open_timeout=WAIT, **more)
        self.events: list[dict[str, Any]] = []
        self.closed: tuple[int, str] | None = None
        """Code and reason, once the server has closed it."""
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self.wait("session.created")

    def _listen(self) -> None:
        try:
            for message in self.socket:
                with self._changed:
                    self.events.append(json.loads(message))
                    self._changed.notify_all()
        except ConnectionClosed:
            pass
        with self._changed:
            self.closed = (self.socket.close_code or 0, self.socket.close_reason or "")
            self._changed.notify_all()

    def say(self, kind: str, **values: Any) -> None:
        """Send an event."""
        self.socket.send(json.dumps({"type": kind, **values}))

    def append(self, waveform: np.ndarray, piece: int = 2400) -> None:
        """Send float32 [samples], so many at once."""
        data = np.round(np.clip(waveform, -1, 1) * 32767).astype("<i2")
        for start in range(0, len(data), piece):
            sound = base64.b64encode(data[start : start + piece].tobytes()).decode()
            self.say("input_audio_buffer.append", audio=sound)

    def turn(self, waveform: np.ndarray, **response: Any) -> dict[str, Any]:
        """A prompt, committed by hand, and the response to it."""
        done = len(self.of("response.done"))
        self.append(waveform)
        self.say("input_audio_buffer.commit")
        self.say("response.create", **({"response": response} if response else {}))
        return self.wait("response.done", done + 1)["response"]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of a type."""
        return [event for event in list(self.events) if event["type"] == kind]

    def kinds(self) -> list[str]:
        """The types of all events, those that repeat once."""
        names = [event["type"] for event in list(self.events)]
        return [name for number, name in enumerate(names) if number == 0 or names[number - 1] != name]

    def until(self, true: Callable[[], bool]) -> None:
        """Wait until something is so."""
        with self._changed:
            assert self._changed.wait_for(true, WAIT), (self.kinds(), self.closed)

    def wait(self, kind: str, count: int = 1) -> dict[str, Any]:
        """Wait for the count-th event of a type."""
        self.until(lambda: len(self.of(kind)) >= count or self.closed is not None)
        return self.of(kind)[count - 1]

    def refusal(self, kind: str, **values: Any) -> dict[str, Any]:
        """Send an event that is refused: the error."""
        before = len(self.of("error"))
        self.say(kind, **values)
        return self.wait("error", before + 1)["error"]

    def settings(self, **session: Any) -> dict[str, Any]:
        """Change the settings: the session as it is now."""
        before = len(self.of("session.updated"))
        self.say("session.update", session=session)
        return self.wait("session.updated", before + 1)["session"]

    def audio(self, item: str) -> np.ndarray:
        """What came of a reply: float32 [samples]."""
        deltas = [event["delta"] for event in self.of("response.audio.delta") if event["item_id"] == item]
        return np.frombuffer(b"".join(map(base64.b64decode, deltas)), "<i2").astype(np.float32) / 32767

    def close(self) -> None:
        self.socket.close()
        self._thread.join(10)


def eventually(true: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
