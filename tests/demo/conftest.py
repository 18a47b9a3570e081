"""Fixtures of this room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.app import Served, start
from slm.audio import write_wav
from tests.browser import chromium
from tests.demo.pages import (
    MICROPHONE_PITCH,
    Visit,
    visits,
)
from tests.fake_bundle import FakeBundle, buzz
from tests.program import MANUAL, Program


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[FakeBundle, str]]:
    """A server with the stand-in bundle: the bundle and its address."""
    bundle = FakeBundle(tmp_path / "bundle", real_time_factor=0.05)
    page, url = start(bundle, "127.0.0.1", 0)  # type: ignore[arg-type]
    yield bundle, url
    page.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium with a microphone that hears a buzz."""
    microphone = tmp_path_factory.mktemp("microphone") / "buzz.wav"
    write_wav(microphone, buzz(MICROPHONE_PITCH, 4.0, 48000), 48000)
    with chromium(microphone) as running:
        yield running


@pytest.fixture
def visit(browser: Any) -> Iterator[Visit]:
    """Open a page in a browser session of its own; no request may leave the machine, no script may fail."""
    with visits(browser) as open_page:
        yield open_page


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[tuple[FakeBundle, str]]:
    """The page on a stand-in bundle of known speed: the bundle, and the page's address."""
    bundle = FakeBundle(tmp_path / "bundle")
    page, url = start(bundle, "127.0.0.1", 0)  # type: ignore[arg-type]
    yield bundle, url
    page.close()


@pytest.fixture(scope="module")
def socket_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeBundle, Served, str]]:
    bundle = FakeBundle(tmp_path_factory.mktemp("bundle") / "bundle", real_time_factor=0.02)
    page, url = start(bundle, "127.0.0.1", 0)  # type: ignore[arg-type]
    yield bundle, page, url
    page.close()


@pytest.fixture
def socket_url(socket_server: tuple[FakeBundle, Served, str]) -> str:
    """The address of a server of the socket whose replies are short and quick."""
    bundle, _, address = socket_server
    bundle.reply_seconds, bundle.real_time_factor = 0.6, 0.02
    return address


@pytest.fixture
def program(socket_url: str) -> Iterator[Program]:
    """A program that commits its prompts itself, at 16 kHz."""
    connected = Program(socket_url)
    connected.settings(**MANUAL)
    yield connected
    connected.close()
