"""WebSockets, the page's (`demo.page`) and that of programs (`demo.realtime`): frames in, frames out, both bounded.

A frame is dealt with before the next is read. What the other side does not read is kept up to MAX_UNREAD bytes; then the
connection is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

Frame = str | bytes
"""Text, or bytes of sound."""

TALK, REALTIME = "/tresse/talk", "/v1/realtime"
"""Where they are: the page's, that of programs."""
MAX_UNREAD = 8_000_000
"""Bytes: about two minutes of speech."""
NORMAL, GOING, TEXT_ONLY, TOO_SLOW = 1000, 1001, 1003, 1008
"""Why a connection is closed."""
CLOSE_SECONDS = 5.0
PING_SECONDS = 120.0
"""s without the answer to a ping after which the other side is gone: it may lie behind sound that was not dealt with yet."""


class Outbox:
    """Frames that wait to be sent; any thread may put them. beat: what is sent when nothing else was for `beat_seconds`."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, beat: str | None = None, beat_seconds: float | None = None
    ) -> None:
        self._loop, self._beat, self._beat_seconds = loop, beat, beat_seconds
        self._queue: asyncio.Queue[Frame] = asyncio.Queue()
        self._unread = 0
        self._ended = asyncio.Event()
        self.end = (NORMAL, "")
        """Code and reason with which the connection is closed."""

    def put(self, *frames: Frame) -> None:
        """Further frames; nothing comes between them."""
        self._soon(self._add, frames)

    def close(self, code: int, reason: str) -> None:
        """Close the connection; what waits is not sent any more."""
        self._soon(self._close, code, reason)

    def _soon(self, call: Callable[..., None], *arguments: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *arguments)

    def _add(self, frames: tuple[Frame, ...]) -> None:
        self._unread += sum(map(len, frames))
        if self._unread > MAX_UNREAD:
            self._close(TOO_SLOW, "events are read too slowly")
            return
        for frame in frames:
            self._queue.put_nowait(frame)

    def _close(self, code: int, reason: str) -> None:
        if not self._ended.is_set():
            self.end = (code, reason)
            self._ended.set()

    async def ended(self) -> None:
        """Until the connection is to be closed."""
        await self._ended.wait()

    async def send(self, websocket: WebSocket) -> None:
        """Send what comes."""
        while True:
            try:
                frame = await asyncio.wait_for(self._queue.get(), self._beat_seconds)
            except TimeoutError:
                await websocket.send_text(str(self._beat))
                continue
            await (websocket.send_text(frame) if isinstance(frame, str) else websocket.send_bytes(frame))
            self._unread -= len(frame)


async def converse(websocket: WebSocket, outbox: Outbox, take: Callable[[Frame], Awaitable[None]]) -> None:
    """Send what is put into the outbox and take what comes, until either side ends the connection."""
    await _until_one_ends(outbox.ended(), outbox.send(websocket), _receive(websocket, take))
    with suppress(RuntimeError, WebSocketDisconnect, TimeoutError):  # it was closed meanwhile, or nobody reads
        await asyncio.wait_for(websocket.close(*outbox.end), CLOSE_SECONDS)


async def _receive(websocket: WebSocket, take: Callable[[Frame], Awaitable[None]]) -> None:
    """Take what comes, one frame after the other, until the other side goes."""
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return
        text = message.get("text")
        await take(message["bytes"] if text is None else text)


async def _until_one_ends(*works: Coroutine[Any, Any, None]) -> None:
    """Run all until one ends; the others are cancelled."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    for problem in ends:
        if isinstance(problem, Exception) and not isinstance(problem, RuntimeError | WebSocketDisconnect):
            raise problem
