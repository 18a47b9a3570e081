"""Who may ask: requests whose Host is this server, and whose Origin, where a browser names one, is this page.

A page of another site that is open in the same browser could otherwise upload, listen and list recordings: directly, or by
a name of its own that it makes resolve to this machine (DNS rebinding). Addresses written as numbers cannot be made to
resolve elsewhere; names are those of this machine, and those that the server is told (`--allow-host`).
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LOCAL = ("localhost",)


class Guard:
    """ASGI middleware. hosts: names beside this machine's own."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str] = ()) -> None:
        self.app = app
        self.hosts = {host.lower() for host in (*LOCAL, *_own_names(), *hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403 with one line to whoever may not ask."""
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            problem = self.problem(headers.get("host", ""), headers.get("origin"))
            if problem is not None:
                await JSONResponse({"problem": problem}, 403)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def problem(self, host: str, origin: str | None) -> str | None:
        """Why a request with this Host and Origin (None: a program's, or the page's own) is refused; None: it is not."""
        name = _name(host)
        if not self._is_known(name):
            return f"this server does not answer to the name {name[:80]!r}: start it with --allow-host NAME"
        scheme, netloc = _split(origin or "")
        same = netloc.lower() == host.lower()
        proxied = scheme == "https" and _name(netloc) == name  # a proxy in front ends TLS: only the port differs
        if origin is None or (netloc and (same or proxied)):
            return None
        return "a page of another site asked for this: open this page by itself"

    def _is_known(self, name: str) -> bool:
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.hosts
        return True


def _name(netloc: str) -> str:
    """The host of `host`, `host:port` or `[address]:port`, in lower case."""
    try:
        return (urlsplit(f"//{netloc}").hostname or "").lower()
    except ValueError:
        return ""


def _split(origin: str) -> tuple[str, str]:
    """Scheme and netloc of an Origin; empty where it is none."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return "", ""
    return parts.scheme, parts.netloc


def _own_names() -> set[str]:
    name = socket.gethostname()
    return {name, f"{name}.local"} if name else set()
