"""The page is served whatever proxies the environment names, and under any name or address of this machine."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from demo import app
from demo.app import start
from slm.errors import TresseError
from tests.fake_bundle import FakeBundle

NOWHERE = "127.0.0.1:9"


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as here:
            here.bind(("::1", 0))
    except OSError:
        return False
    return True


def answers(tmp_path: Path, host: str, asked: str | None = None) -> str:
    """Serve and ask for its health, without the environment; returns the address."""
    page, url = start(FakeBundle(tmp_path / "bundle"), host, 0)  # type: ignore[arg-type]
    try:
        with httpx.Client(trust_env=False) as client:
            assert client.get(
                f"{asked or url}tresse/health".replace("PORT", url.rsplit(":", 1)[1].strip("/"))
            ).is_success
    finally:
        page.close()
    return url


@pytest.mark.parametrize(
    "proxies",
    [
        {"http_proxy": f"http://{NOWHERE}", "HTTP_PROXY": f"http://{NOWHERE}"},
        {"all_proxy": f"socks5://{NOWHERE}"},
        {"ALL_PROXY": f"http://{NOWHERE}", "no_proxy": "example.org"},
        {"HTTPS_PROXY": "nonsense://here", "http_proxy": "nonsense://there", "NO_PROXY": ""},
    ],
    ids=lambda proxies: "-".join(proxies),
)
def test_proxies_of_the_environment_are_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxies: dict[str, str]
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in proxies.items():
        monkeypatch.setenv(name, value)
    answers(tmp_path, "127.0.0.1")
    left = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    assert left == proxies  # what the user set stays


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_addresses_of_ipv6(tmp_path: Path, host: str) -> None:
    assert answers(tmp_path, host).startswith("http://[::1]:")
    assert app._is_local(host)


def test_it_answers_to_the_name_that_it_is_served_under(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that resolves to this machine, of which the machine does not know that it is its own."""
    real = socket.getaddrinfo

    def resolve(host: Any, *arguments: Any, **keywords: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        return real("127.0.0.1" if name == "stories.example" else host, *arguments, **keywords)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert answers(tmp_path, "stories.example").startswith("http://stories.example:")


@pytest.mark.parametrize("host", ["nowhere.invalid", "203.0.113.7", "::dead"])
def test_an_address_of_another_machine_is_one_line(tmp_path: Path, host: str) -> None:
    with pytest.raises(TresseError, match="cannot serve on") as caught:
        start(FakeBundle(tmp_path / "bundle"), host, 7999)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
