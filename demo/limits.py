"""What a server takes in: how much of each request, of all of them together, how slowly, and in which form.

Bodies are counted as they come and never collected beyond their limit; a sender that stalls is let go. Of Gradio's own
addresses only those answer that programs need.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demo.requests import Call, Cancel, Refused, Reset, function_number, read, read_call
from demo.sockets import REALTIME, TALK

log = logging.getLogger(__name__)

MAX_UPLOAD = 50_000_000
"""Bytes of a recording."""
MAX_FORM = 100_000
"""Bytes of any other request."""
AROUND_A_FILE = 10_000
"""Bytes that a form adds to the file in it."""
MAX_TOGETHER = 400_000_000
"""Bytes of all requests that are on their way."""
MAX_KEPT, KEPT_SECONDS = 4_000_000_000, 7200.0
"""Bytes that programs may upload in so many s: Gradio deletes them later."""
MAX_EVENT = 2_000_000
"""Characters or bytes of one frame of a socket: half a minute of sound."""
MAX_SOCKETS = 200
"""Programs that are connected; of pages there are as many as sessions."""
IDLE_SECONDS = 900.0
"""s without an event after which a program's socket is closed."""
TOO_LARGE, TOO_BUSY, IDLE = 1009, 1013, 1001
"""Why a socket is closed."""
LONGEST_PATH = 4000
STALLED_SECONDS = 30.0
"""s without a byte after which a sender is let go."""
OURS = re.compile(r"/tresse/(.*)$")
GRADIOS = re.compile(r"/gradio_api/(.*?)/?$")
CLOSED = re.compile(r"/(gradio_api/)?(proxy=|monitoring|vibe|dev/|profiling|deep_link|run-history|component_server)")
"""Addresses of Gradio that nobody here needs."""


class Limits:
    """ASGI middleware. See the module."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.together = 0
        """Bytes of the requests that are on their way."""
        self.sockets = 0
        """Sockets of programs that are open."""
        self._kept: deque[tuple[float, int]] = deque()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 4xx with one line to what is too much, too slow or unreadable."""
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send)
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False
        body = _Body(self, receive, _most(scope["path"]))

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start" and not body.complete:  # what is still to come is not read
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        try:
            if CLOSED.match(scope["path"]) or len(scope["path"]) > LONGEST_PATH:
                raise Refused("there is nothing at this address", 404)
            if scope["method"] in ("GET", "HEAD", "OPTIONS"):
                body.complete = True
                await self.app(scope, receive, sending)
            else:
                body.announced(Headers(scope=scope).get("content-length"))
                await self.app(scope, await self._checked(scope, body), sending)
        except Refused as refused:
            if begun:
                raise
            await JSONResponse({"problem": str(refused)}, refused.status)(scope, receive, sending)
        finally:
            self.together -= body.taken

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A socket, where there is one at this address and not too many are open; it is closed when it is too much."""
        if not scope["path"].endswith((TALK, REALTIME)):
            await JSONResponse({"problem": "there is nothing at this address"}, 404)(scope, receive, send)
            return
        program = scope["path"].endswith(REALTIME)
        if program and self.sockets >= MAX_SOCKETS:
            problem = "too many programs are here: please try again in a minute"
            await JSONResponse({"problem": problem}, 503)(scope, receive, send)
            return
        size = 0

        async def receiving() -> Message:
            nonlocal size
            self.together, size = self.together - size, 0  # the event before was dealt with
            try:
                message = await asyncio.wait_for(receive(), IDLE_SECONDS if program else None)
            except TimeoutError:
                return await _close(send, IDLE, f"nothing came for {IDLE_SECONDS:.0f} s")
            size = len(message.get("text") or message.get("bytes") or "")
            self.together += size
            if size > MAX_EVENT:
                return await _close(send, TOO_LARGE, f"an event is larger than {MAX_EVENT / 1e6:.3g} MB")
            if self.together > MAX_TOGETHER:
                return await _close(send, TOO_BUSY, "too much is on its way: try again in a minute")
            return message

        self.sockets += program
        try:
            await self.app(scope, receiving, send)
        finally:
            self.sockets -= program
            self.together -= size

    async def _checked(self, scope: Scope, body: _Body) -> Receive:
        """Where the application reads the body from, after its form was looked at where it is small."""
        if OURS.search(scope["path"]):
            return body.receive
        named = GRADIOS.search(scope["path"])
        name = named[1] if named else ""
        if name == "upload":
            self._keep(body)
            return body.receive
        checks: dict[str, Callable[[bytes], Any]] = {
            "queue/join": lambda data: read_call(Call, data, _name(scope, function_number(data))),
            "cancel": lambda data: read(Cancel, data),
            "reset": lambda data: read(Reset, data),
        }
        if name.startswith("call/"):
            checks[name] = lambda data: read_call(Call, data, name.removeprefix("call/"))
        if name not in checks:
            raise Refused("there is nothing at this address", 404)
        data = await body.whole()
        checks[name](data)
        return body.again(data)

    def _keep(self, body: _Body) -> None:
        """Count what programs upload. Raises Refused where it is too much."""
        now = time.monotonic()
        while self._kept and now - self._kept[0][0] > KEPT_SECONDS:
            self._kept.popleft()
        if sum(size for _, size in self._kept) + body.most > MAX_KEPT:
            raise Refused("too much was uploaded in the last hours: please try again later", 503)
        body.when_done = lambda size: self._kept.append((now, size))


class _Body:
    """The body of one request as it comes."""

    def __init__(self, limits: Limits, receive: Receive, most: int) -> None:
        self.limits, self._receive, self.most = limits, receive, most
        self.taken = 0
        self.complete = False
        self.when_done: Callable[[int], None] = lambda size: None

    def announced(self, length: str | None) -> None:
        """Raises Refused where the request says that it is too large."""
        if length is not None and (not length.isdecimal() or len(length) > 15 or int(length) > self.most):
            raise self._too_large()

    def _too_large(self) -> Refused:
        megabytes = self.most / 1e6
        return Refused(f"this is larger than {megabytes:.3g} MB: give a shorter recording, or reload the page", 413)

    async def receive(self) -> Message:
        """The next message. Raises Refused where it is too much, or too slow."""
        if self.complete:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), STALLED_SECONDS)
        except TimeoutError as error:
            raise Refused(f"nothing came for {STALLED_SECONDS:.0f} s: send it again", 408) from error
        size = len(message.get("body", b""))
        self.taken += size
        self.limits.together += size
        if self.taken > self.most:
            raise self._too_large()
        if self.limits.together > MAX_TOGETHER:
            raise Refused("many recordings are on their way: please try again in a minute", 503)
        if not message.get("more_body"):
            self.complete = True
            self.when_done(self.taken)
        return message

    async def whole(self) -> bytes:
        """All of it."""
        parts = []
        while not self.complete:
            parts.append((await self.receive()).get("body", b""))
        return b"".join(parts)

    def again(self, data: bytes) -> Receive:
        """The body once more, for the application."""
        given = False

        async def receive() -> Message:
            nonlocal given
            if given:
                return await self._receive()
            given = True
            return {"type": "http.request", "body": data, "more_body": False}

        return receive


async def _close(send: Send, code: int, reason: str) -> Message:
    """Close a socket; what the application is told."""
    await send({"type": "websocket.close", "code": code, "reason": reason})
    return {"type": "websocket.disconnect", "code": code, "reason": reason}


def _most(path: str) -> int:
    """Bytes that a request to this address may have."""
    ours = OURS.search(path)
    if ours and ours[1] == "upload":
        return MAX_UPLOAD
    named = GRADIOS.search(path)
    return MAX_UPLOAD + AROUND_A_FILE if named and named[1] == "upload" else MAX_FORM


def _name(scope: Scope, number: int | None) -> str | None:
    """The name of a function that Gradio knows by this number."""
    function = scope["app"].get_blocks().fns.get(number)
    return function.api_name if function is not None else None
