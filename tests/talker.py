"""A Python stand-in for a browser tab: speaks the page's protocol (demo/sessions.py, demo/routes.py) over HTTP."""

from __future__ import annotations

import json
import secrets
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np


class Talker:
    """An open page. `messages`: all that the server said, with the s since the page was opened under "at"."""

    def __init__(self, url: str, session: str | None = None) -> None:
        self.url = f"{url.rstrip('/')}/tresse/"
        self.session, self.page = session or "", secrets.token_hex(4)
        self.messages: list[dict[str, Any]] = []
        self.sound: dict[tuple[int, int], list[tuple[float, np.ndarray]]] = {}
        self._changed = threading.Condition()
        self._client = httpx.Client(timeout=60)
        self._began = time.monotonic()
        self._leaving = False
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self.wait("hello")

    def _params(self, **values: Any) -> dict[str, Any]:
        return {"session": self.session, **values}

    def _listen(self) -> None:
        received = b""
        with self._client.stream("GET", f"{self.url}listen", params=self._params(page=self.page)) as response:
            for part in response.iter_raw():
                received += part
                while len(received) >= 8:
                    text, sound = struct.unpack("<II", received[:8])
                    if len(received) < 8 + text + sound:
                        break
                    if text:
                        self._take(json.loads(received[8 : 8 + text]), received[8 + text : 8 + text + sound])
                    received = received[8 + text + sound :]
                if self._leaving:
                    return

    def _take(self, message: dict[str, Any], sound: bytes) -> None:
        with self._changed:
            if message["type"] == "hello":
                self.session = message["session"]
            message["at"] = time.monotonic() - self._began
            if message["type"] == "audio":
                samples = np.frombuffer(sound, "<i2").astype(np.float32) / 32767
                self.sound.setdefault((message["turn"], message["part"]), []).append((message["at"], samples))
            self.messages.append(message)
            self._changed.notify_all()

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The messages of one type."""
        return [message for message in list(self.messages) if message["type"] == kind]

    def wait(self, kind: str, count: int = 1, seconds: float = 30) -> dict[str, Any]:
        """Wait for the count-th message of a type."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while len(self.of(kind)) < count:
                if not self._changed.wait(deadline - time.monotonic()):
                    raise TimeoutError(f"no {kind} among {[message['type'] for message in self.messages]}")
        return self.of(kind)[count - 1]

    def eventually(self, true: Callable[[], bool], seconds: float = 20) -> None:
        """Wait until something is so: messages come a moment after the answer to a request."""

        def so() -> bool:
            try:
                return true()
            except IndexError:  # the last message of a kind of which none has come yet
                return False

        deadline = time.monotonic() + seconds
        while not so():
            assert time.monotonic() < deadline, [message["type"] for message in self.messages]
            time.sleep(0.01)

    def used(self) -> int:
        """Tokens of the context in use, as last reported."""
        return int(self.of("context")[-1]["used"])

    def turn(self, action: Callable[[], Any]) -> None:
        """Do something that is answered by a turn, and wait for its end."""
        idle = len(self.of("idle"))
        action()
        self.wait("idle", idle + 1)

    def audio(self, turn: int, part: int = 0) -> np.ndarray:
        """What came of a reply: float32 [samples]."""
        return np.concatenate([samples for _, samples in self.sound[(turn, part)]])

    def post(self, path: str, body: bytes = b"", **params: Any) -> httpx.Response:
        return self._client.post(f"{self.url}{path}", content=body, params=self._params(**params))

    def get(self, path: str, **params: Any) -> httpx.Response:
        return self._client.get(f"{self.url}{path}", params=self._params(**params))

    def do(self, action: str, **values: Any) -> httpx.Response:
        return self.post(f"do/{action}", json.dumps(values).encode())

    def say(self, waveform: np.ndarray, rate: int = 16000, piece: float = 0.1, **flags: Any) -> None:
        """Speak float32 [samples] in pieces of so many s; flags: free, last."""
        data = np.round(np.clip(waveform, -1, 1) * 32767).astype("<i2")
        step = round(piece * rate)
        for start in range(0, len(data), step):
            first = {"first": 1} if start == 0 and "more" not in flags else {}
            last = {"last": 1} if start + step >= len(data) and "free" not in flags else {}
            free = {"free": 1} if "free" in flags else {}
            response = self.post("hear", data[start : start + step].tobytes(), rate=rate, **first, **last, **free)
            assert response.status_code == 204, response.text

    def close(self) -> None:
        """Close the page as a browser does: the line is cut."""
        self._leaving = True
        self._thread.join(10)
        self._client.close()
