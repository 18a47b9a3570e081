"""The WebSocket at /v1/realtime: events in, events out, both bounded.

An event is dealt with before the next is read. What the program does not read is kept up to MAX_UNREAD bytes; then the
connection is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from starlette.responses import JSONResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from demo.messages import GOODBYE
from demo.realtime.talk import Talk
from demo.realtime.told import Event
from demo.service import Service
from slm.errors import TresseError

PATH = "/v1/realtime"
MAX_UNREAD = 8_000_000
"""Bytes: about two minutes of speech."""
NORMAL, TEXT_ONLY, TOO_SLOW, GOING = 1000, 1003, 1008, 1001
"""Why a connection is closed."""
CLOSE_SECONDS = 5.0


class Outbox:
    """Events that wait to be sent; any thread may put them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._unread = 0
        self._ended = asyncio.Event()
        self.end = (NORMAL, "")
        """Code and reason with which the connection is closed."""

    def put(self, event: Event) -> None:
        """One event more."""
        self._soon(self._add, event.model_dump_json())

    def close(self, code: int, reason: str) -> None:
        """Close the connection; what waits is not sent any more."""
        self._soon(self._close, code, reason)

    def _soon(self, call: Callable[..., None], *arguments: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *arguments)

    def _add(self, text: str) -> None:
        self._unread += len(text)
        if self._unread > MAX_UNREAD:
            self._close(TOO_SLOW, "events are read too slowly")
        else:
            self._queue.put_nowait(text)

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
            text = await self._queue.get()
            await websocket.send_text(text)
            self._unread -= len(text)


class Realtime:
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def connect(self, websocket: WebSocket) -> None:
        """One connection, from its beginning to its end."""
        try:
            session = self.service.open_session("", websocket.client.host if websocket.client else "")
        except TresseError as error:
            await websocket.send_denial_response(JSONResponse({"problem": str(error)}, 503))
            return
        outbox = Outbox(asyncio.get_running_loop())
        talk = Talk(session, outbox.put)

        def take(message: bytes) -> None:
            if message == GOODBYE:
                outbox.close(GOING, "the server is stopping")
            else:
                talk.replies.take(message)

        try:
            offered = websocket.scope.get("subprotocols", [])
            await websocket.accept("realtime" if "realtime" in offered else None)
            talk.begin()
            await asyncio.to_thread(session.attach, take, "")
            await _until_one_ends(outbox.ended(), outbox.send(websocket), _receive(websocket, talk, outbox))
            with suppress(RuntimeError, WebSocketDisconnect, TimeoutError):  # it was closed meanwhile, or nobody reads
                await asyncio.wait_for(websocket.close(*outbox.end), CLOSE_SECONDS)
        finally:
            session.detach(take)
            self.service.drop(session)


async def _receive(websocket: WebSocket, talk: Talk, outbox: Outbox) -> None:
    """Take what comes, one event after the other, until the program goes."""
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return
        if (text := message.get("text")) is None:
            outbox.close(TEXT_ONLY, "send events as JSON text")
        else:
            await talk.take(text)


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
