"""Who may ask: the page itself and programs; no page of another site, under whatever name."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from demo.app import start
from demo.guard import Guard
from tests.fake_bundle import FakeBundle

SESSION = "0" * 32


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    bundle = FakeBundle(tmp_path_factory.mktemp("bundle") / "bundle")
    folder = tmp_path_factory.mktemp("kept")
    page, address = start(bundle, "127.0.0.1", 0, folder, hosts=["stories.example"])  # type: ignore[arg-type]
    yield address
    page.close()


REQUESTS = [
    ("GET", "tresse/health"),
    ("GET", f"tresse/story?session={SESSION}"),
    ("GET", "tresse/recordings"),
    ("GET", "tresse/ticket"),
    ("POST", f"tresse/upload?session={SESSION}&name=a.wav"),
    ("GET", "config"),
    ("POST", "gradio_api/upload"),
    ("GET", ""),
]


@pytest.mark.parametrize(("method", "path"), REQUESTS)
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:7860"},
        {"Host": "localhost.evil.example"},
        {"Host": ""},
        {"Origin": "https://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://localhost.evil.example"},
        {"Origin": "null"},
        {"Origin": "http://[broken"},
    ],
    ids=lambda headers: "-".join(f"{name}={value}" for name, value in headers.items()),
)
def test_another_site_is_refused_in_one_line(url: str, method: str, path: str, headers: dict[str, str]) -> None:
    answer = httpx.request(method, url + path, headers=headers)
    assert answer.status_code == 403
    assert "\n" not in answer.json()["problem"]
    assert answer.headers.get("access-control-allow-origin") in (None, "null") or "evil" not in answer.headers.get(
        "access-control-allow-origin", ""
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "192.168.1.7:7860", "stories.example"])
def test_the_page_and_programs_are_answered(url: str, host: str) -> None:
    assert httpx.get(url + "tresse/health", headers={"Host": host}).json()["status"] == "ok"
    same = {"Host": host, "Origin": f"http://{host}"}
    answer = httpx.post(url + f"tresse/upload?session={SESSION}", headers=same)
    assert (answer.status_code, answer.json()["problem"]) == (400, "the page has lost its session: reload it")


@pytest.mark.parametrize("path", ["tresse/talk?page=a", "v1/realtime"])
@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("", "https://evil.example"),
        ("", "http://127.0.0.1:1"),
        ("", "null"),
        ("evil.example", None),
        ("evil.example", "http://evil.example"),
    ],
)
def test_another_site_opens_no_socket(url: str, path: str, host: str, origin: str | None) -> None:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 0)) as line:
        with pytest.raises(InvalidStatus) as refused:
            connect(f"ws://{host or parts.netloc}/{path}", sock=line, origin=origin, open_timeout=60)  # type: ignore
        assert refused.value.response.status_code == 403


@pytest.mark.parametrize("path", ["tresse/talk?page=a", "v1/realtime"])
def test_the_own_page_and_programs_open_sockets(url: str, path: str) -> None:
    for origin in (None, url.rstrip("/")):
        connect(f"{url.replace('http', 'ws', 1)}{path}", origin=origin, open_timeout=60).close()  # type: ignore


@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("stories.example", "https://stories.example", True),
        ("stories.example:7860", "https://stories.example", True),  # a proxy in front ends TLS
        ("stories.example:7860", "http://stories.example", False),
        ("stories.example", "https://other.example", False),
        ("STORIES.example", "https://stories.EXAMPLE", True),
    ],
)
def test_names_that_the_server_is_told(host: str, origin: str, allowed: bool) -> None:
    guard = Guard(None, ["stories.example"])  # type: ignore[arg-type]
    assert (guard.problem(host, origin) is None) == allowed


def test_serving_to_others_says_what_that_means(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    from demo.app import Served, serve

    monkeypatch.setattr(Served, "wait", lambda served: None)
    for host, account, line in (
        ("0.0.0.0", None, "It has no password: give --auth"),
        ("0.0.0.0", ("ada", "secret"), "readable on the line without TLS"),
        ("127.0.0.1", None, ""),
    ):
        serve(FakeBundle(tmp_path / host), host, 0, account=account)  # type: ignore[arg-type]
        said = capsys.readouterr().out
        assert line in said
        assert ("password" in said) == bool(line)
        assert "secret" not in said
