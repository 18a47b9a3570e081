"""One user and password for everything that is served (`tresse demo --auth`), by HTTP Basic authentication.

Browsers ask for it and remember it; programs send it with every request. It is readable on the line: end TLS in front.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from slm.errors import TresseError

OPEN = ("/gradio_api/startup-events",)
"""What Gradio asks itself for when it starts. It says nothing and does nothing afterwards."""
LONGEST_FILE = 10_000


class Password:
    """ASGI middleware. account: user and password."""

    def __init__(self, app: ASGIApp, account: tuple[str, str]) -> None:
        self.app = app
        self._expected = ":".join(account).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 to whoever does not know the password."""
        asks = scope["type"] in ("http", "websocket") and scope["path"] not in OPEN
        if asks and not self._knows(Headers(scope=scope).get("authorization", "")):
            ask = {"WWW-Authenticate": 'Basic realm="Tresse", charset="UTF-8"'}
            answer = JSONResponse({"problem": "this page asks for a user and a password"}, 401, ask)
            await answer(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _knows(self, header: str) -> bool:
        scheme, _, given = header.partition(" ")
        try:
            said = base64.b64decode(given.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        return scheme.lower() == "basic" and secrets.compare_digest(said, self._expected)


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
