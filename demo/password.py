"""One user and password for everything that is served (`tresse demo --auth`), by HTTP Basic authentication.

Browsers ask for it and remember it; programs send it with every request. It is readable on the line: end TLS in front.
Wrong ones are counted by address (`demo.guesses`). WebKit sends none when it opens a WebSocket
(https://bugs.webkit.org/show_bug.cgi?id=80362): the page asks for a ticket first, and opens its socket with that.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from demo.guesses import Guesses
from demo.sockets import TALK
from slm.errors import TresseError

OPEN = ("/gradio_api/startup-events",)
"""What Gradio asks itself for when it starts. It says nothing and does nothing afterwards."""
LONGEST_FILE = 10_000
TICKET_SECONDS = 30.0


class Tickets:
    """Numbers that nobody else can make up, each good for TICKET_SECONDS. clock: the time in s, which never goes back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._key = clock, secrets.token_bytes(32)

    def draw(self) -> str:
        """A new one."""
        return self._signed(f"{self._clock() + TICKET_SECONDS:.3f}")

    def good(self, ticket: str) -> bool:
        """Whether it was drawn here, and lately."""
        until = ticket.partition("-")[0]
        return hmac.compare_digest(self._signed(until).encode(), ticket.encode()) and float(until) >= self._clock()

    def _signed(self, until: str) -> str:
        return f"{until}-{hmac.new(self._key, until.encode(), hashlib.sha256).hexdigest()}"


class Password:
    """ASGI middleware. account: user and password. guesses: what counts the wrong ones. tickets: what opens the page's
    socket without them."""

    def __init__(
        self,
        app: ASGIApp,
        account: tuple[str, str],
        guesses: Guesses | None = None,
        tickets: Tickets | None = None,
    ) -> None:
        self.app, self.guesses = app, Guesses() if guesses is None else guesses
        self._tickets = Tickets() if tickets is None else tickets
        self._expected = ":".join(account).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 to whoever does not know the password, and 429 to addresses that guessed too often."""
        refusal = None
        if scope["type"] in ("http", "websocket") and scope["path"] not in OPEN and not self._has_ticket(scope):
            client = scope.get("client")
            refusal = self._refusal(Headers(scope=scope).get("authorization", ""), client[0] if client else "")
        await (refusal or self.app)(scope, receive, send)

    def _has_ticket(self, scope: Scope) -> bool:
        if scope["type"] != "websocket" or not scope["path"].endswith(TALK):
            return False
        asked = parse_qs(scope["query_string"].decode("latin-1"))
        return self._tickets.good(asked.get("ticket", [""])[0])

    def _refusal(self, header: str, address: str) -> JSONResponse | None:
        """The answer to a request without the password; None: it has it."""
        if header and (seconds := self.guesses.wait(address)):  # the right one as well: a guess learns nothing
            minutes = math.ceil(seconds / 60)
            problem = f"too many wrong passwords came from your address: try again in {minutes} min"
            return JSONResponse({"problem": problem}, 429, {"Retry-After": str(math.ceil(seconds))})
        said = _said(header)
        if said is not None:
            if secrets.compare_digest(said, self._expected):
                return None
            self.guesses.wrong(address, said)
        ask = {"WWW-Authenticate": 'Basic realm="Tresse", charset="UTF-8"'}
        return JSONResponse({"problem": "this page asks for a user and a password"}, 401, ask)


def _said(header: str) -> bytes | None:
    """User and password of an Authorization header; None where it holds none."""
    scheme, _, given = header.partition(" ")
    try:
        return base64.b64decode(given.strip(), validate=True) if scheme.lower() == "basic" else None
    except (binascii.Error, ValueError):
        return None


def account(given: str) -> tuple[str, str]:
    """User and password of `USER:PASSWORD`, or of a file's first line where it is `@FILE`.

    Raises TresseError where there is no such file, or it holds no user and password.
    """
    text = given
    if given.startswith("@"):
        try:
            with Path(given[1:]).open(encoding="utf-8") as file:
                text = file.readline(LONGEST_FILE).rstrip("\r\n")
        except (OSError, ValueError) as error:
            raise TresseError(f"cannot read the password in {given[1:]}: give --auth @FILE, a text file") from error
    user, _, password = text.partition(":")
    if not user or not password or not text.isprintable():
        raise TresseError("--auth takes USER:PASSWORD, neither empty, or @FILE with these on its first line")
    return user, password
