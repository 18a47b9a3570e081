"""A Python stand-in for a browser tab: speaks the page's protocol (demo/page.py) over its WebSocket."""

from __future__ import annotations

import itertools
import json
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import httpx
import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

WAIT = 60.0


class Talker:
    """An open page. `messages`: all that the server said, with the s since the page was opened under "at". more: for the
    connection."""

    def __init__(self, url: str, session: str | None = None, received: int = 0, page: str = "", **more: Any) -> None:
        self.url = f"{url.rstrip('/')}/tresse/"
        self.session, self.page = session or "", page or secrets.token_hex(4)
        self.messages: list[dict[str, Any]] = []
        self.sound: dict[tuple[int, int], list[tuple[float, np.ndarray]]] = {}
        self.answers: dict[int | None, dict[str, Any]] = {}
        self.taken = 0
        """Frames of sound that the server has dealt with."""
        self.closed: tuple[int, str] | None = None
        """Code and reason, once the server has closed the connection."""
        self._changed = threading.Condition()
        self._client = httpx.Client(timeout=WAIT)
        self._numbers = itertools.count()
        self._began = time.monotonic()
        self._client.get(f"{self.url}health")  # as a browser does, it has a cookie before it connects
        if self._client.cookies:
            cookies = "; ".join(f"{name}={value}" for name, value in self._client.cookies.items())
            more.setdefault("additional_headers", {})["Cookie"] = cookies
        asked = urlencode(self._params(page=self.page, received=received))
        self.socket = connect(
            f"{self.url.replace('http', 'ws', 1)}talk?{asked}",
            open_timeout=WAIT,
            ping_interval=None,
            max_size=None,
            **more,
        )
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self.wait("hello")

    def _params(self, **values: Any) -> dict[str, Any]:
        return {"session": self.session, **values}

    def _listen(self) -> None:
        audio: dict[str, Any] = {}
        try:
            for frame in self.socket:
                if isinstance(frame, bytes):
                    self._take(audio, frame)
                elif (message := json.loads(frame))["type"] == "audio":
                    audio = message
                else:
                    self._take(message)
        except ConnectionClosed:
            pass
        with self._changed:
            self.closed = (self.socket.close_code or 0, self.socket.close_reason or "")
            self._changed.notify_all()

    def _take(self, message: dict[str, Any], sound: bytes = b"") -> None:
        with self._changed:
            message["at"] = time.monotonic() - self._began
            if message["type"] == "hello":
                self.session = message["session"]
            if message["type"] == "answer":
                self.answers[message["id"]] = message
            elif message["type"] == "taken":
                self.taken += 1
            elif message["type"] != "beat":
                self.messages.append(message)
            if message["type"] == "audio":
                samples = np.frombuffer(sound, "<i2").astype(np.float32) / 32767
                self.sound.setdefault((message["turn"], message["part"]), []).append((message["at"], samples))
            self._changed.notify_all()

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The messages of one type."""
        return [message for message in list(self.messages) if message["type"] == kind]

    def wait(self, kind: str, count: int = 1, seconds: float = 30) -> dict[str, Any]:
        """Wait for the count-th message of a type."""
        self.until(lambda: len(self.of(kind)) >= count, seconds)
        return self.of(kind)[count - 1]

    def until(self, true: Callable[[], bool], seconds: float = 30) -> None:
        """Wait until a message makes something so."""
        with self._changed:
            if not self._changed.wait_for(true, seconds):
                raise TimeoutError(f"{[message['type'] for message in self.messages]}, {self.closed}")

    def eventually(self, true: Callable[[], bool], seconds: float = 20) -> None:
        """Wait until something is so: messages come a moment after the answer to a command."""

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

    def upload(self, body: Any, **params: Any) -> httpx.Response:
        """Send a file."""
        return self._client.post(f"{self.url}upload", content=body, params=self._params(**params))

    def get(self, path: str, **params: Any) -> httpx.Response:
        return self._client.get(f"{self.url}{path}", params=self._params(**params))

    def do(self, command: str, **values: Any) -> dict[str, Any]:
        """The answer to a command."""
        number = next(self._numbers)
        self.socket.send(json.dumps({"id": number, "do": command, "values": values}))
        self.until(lambda: number in self.answers or self.closed is not None, WAIT)
        return self.answers[number]

    def problem(self, command: str, **values: Any) -> str | None:
        """Why a command is not done; None: it is."""
        problem: str | None = self.do(command, **values)["problem"]
        assert problem is None or (problem and problem.isprintable())
        return problem

    def sounds(self, waveform: np.ndarray, rate: int = 16000, piece: float = 0.1) -> None:
        """What an open microphone hears, float32 [samples], in frames of so many s; the server has taken it afterwards."""
        data = np.round(np.clip(waveform, -1, 1) * 32767).astype("<i2")
        step, taken = round(piece * rate), self.taken
        starts = range(0, len(data), step)
        for start in starts:
            self.socket.send(data[start : start + step].tobytes())
        self.until(lambda: self.taken >= taken + len(starts) or self.closed is not None, 5 * WAIT)

    def say(self, waveform: np.ndarray, rate: int = 16000, piece: float = 0.1) -> dict[str, Any]:
        """Hold the button, speak, let go: the answer."""
        self.do("microphone", rate=rate)
        self.sounds(waveform, rate, piece)
        return self.do("finish")

    def listen(self, rate: int = 16000) -> None:
        """Open a microphone hands-free."""
        assert self.problem("microphone", rate=rate, use="free") is None

    def close(self) -> None:
        """Close the page as a browser does."""
        self.socket.close()
        self._thread.join(10)
        self._client.close()
