"""The page where a browser denies storage, and where the line to the server dies without a word."""

from __future__ import annotations

import json
import time

import pytest

from tests.demo.pages import Visit, sounding_seconds
from tests.demo.proxy import proxy
from tests.fake_bundle import FakeBundle

DENIED = """
for (const name of NAMES) {
  Object.defineProperty(window, name, { get() { throw new DOMException("denied", "SecurityError"); } });
}"""
FULL = """
Storage.prototype.setItem = () => { throw new DOMException("full", "QuotaExceededError"); };"""
MISSING = """
for (const name of ["localStorage", "sessionStorage"]) Object.defineProperty(window, name, { value: null });"""


@pytest.mark.browser
@pytest.mark.parametrize(
    "script",
    [
        DENIED.replace("NAMES", '["localStorage", "sessionStorage"]'),
        DENIED.replace("NAMES", '["sessionStorage"]'),
        FULL,
        MISSING,
    ],
    ids=["denied", "session-denied", "full", "missing"],
)
def test_the_page_works_without_storage(fake: tuple[FakeBundle, str], visit: Visit, script: str) -> None:
    bundle, url = fake
    bundle.reply_seconds = 0.5
    visitor = visit(url, script=script)
    visitor.page.locator(".interface [lang=fr]").click()
    visitor.page.locator("#tab-talk", has_text="Parler").wait_for()
    visitor.target("fr")
    visitor.example()
    visitor.wait_replies(1)
    assert visitor.page.locator(".reply .badge").inner_text() == "Français"
    assert visitor.state("problem") == "false"


BROKEN = [
    "{",
    "null",
    "[1]",
    '"en"',
    "7",
    json.dumps(
        {
            "temperature": "hot",
            "patience": "hasty",
            "seed": "1e99",
            "speaker": "nobody",
            "target": 7,
            "max_seconds": 1e9,
            "top_p": None,
        }
    ),
    json.dumps({"temperature": -1, "seed": "x", "speaker": {}, "target": "xx", "max_seconds": "NaN", "top_p": [1]}),
    json.dumps({"seed": 1.5, "temperature": True, "toString": "x", "max_seconds": ""}),
]
SETTINGS = """() => Object.fromEntries([...document.querySelectorAll('.fields [name], [name=target]:checked')]
  .map((field) => [field.name, field.value]))"""


@pytest.mark.browser
def test_stored_values_that_are_broken_change_nothing(fake: tuple[FakeBundle, str], visit: Visit) -> None:
    _, url = fake
    visitor = visit(url)
    defaults = visitor.page.evaluate(SETTINGS)
    for stored in BROKEN:
        visitor.page.evaluate("text => localStorage.setItem('tresse-choices', text)", stored)
        visitor.page.evaluate("text => localStorage.setItem('tresse-language', text)", stored)
        visitor.page.evaluate("text => sessionStorage.setItem('tresse-session', text)", stored)
        visitor.page.reload()
        visitor.wait_for("idle")
        assert visitor.page.evaluate(SETTINGS) == defaults, stored
        visitor.page.wait_for_timeout(300)
        assert visitor.state("problem") == "false", visitor.status()
    kept = {"temperature": "0.35", "seed": "1e3", "speaker": "anouk", "target": "both"}
    visitor.page.evaluate("text => localStorage.setItem('tresse-choices', text)", json.dumps(kept | {"top_p": "x"}))
    visitor.page.reload()
    visitor.wait_for("idle")
    assert visitor.page.evaluate(SETTINGS) == defaults | kept  # what is sound of it is used
    visitor.page.wait_for_timeout(300)
    assert visitor.state("problem") == "false", visitor.status()


@pytest.mark.browser
def test_a_line_that_died_is_noticed_and_what_was_missed_is_heard(fake: tuple[FakeBundle, str], visit: Visit) -> None:
    bundle, url = fake
    bundle.reply_seconds, bundle.chunk_seconds, bundle.real_time_factor = 2.0, 1.0, 2.5
    with proxy(url) as line:
        visitor = visit(line.url)
        visitor.example()
        visitor.wait_for("thinking")
        visitor.page.locator(".said").wait_for()
        before = visitor.changes()
        line.kill_lines()
        died = time.monotonic()
        assert "Connecting again" in visitor.wait_passed("connecting", before)
        visitor.wait_for("thinking", "speaking", "idle")
        assert time.monotonic() - died < 15
        visitor.wait_replies(1)
        assert 0.9 < sounding_seconds(visitor.heard()[1].reshape(-1), 16000) / (0.73 * bundle.reply_seconds) < 1.2
        assert (visitor.state("problem"), bundle.closed) == ("false", 0)
        visitor.example(1)  # and the page works
        visitor.wait_replies(2)


@pytest.mark.browser
def test_who_speaks_while_the_line_dies_is_told(fake: tuple[FakeBundle, str], visit: Visit) -> None:
    bundle, url = fake
    bundle.reply_seconds = 0.5
    with proxy(url) as line:
        visitor = visit(line.url)
        visitor.page.locator(".press").click()  # a tap: it listens until the next one
        visitor.wait_for("recording")
        line.kill_lines()
        visitor.page.locator(".talk[data-problem=true] .status", has_text="say it again").wait_for(timeout=30_000)
        assert not visitor.page.locator(".strip.live").is_visible()
        visitor.hold(1.0)
        visitor.wait_replies(1)
        assert visitor.state("problem") == "false"


@pytest.mark.browser
def test_hands_free_goes_on_when_the_line_is_back(fake: tuple[FakeBundle, str], visit: Visit) -> None:
    _, url = fake
    with proxy(url) as line:
        visitor = visit(line.url)
        visitor.page.locator(".free").click()
        visitor.page.wait_for_timeout(500)
        before = visitor.changes()
        line.kill_lines()
        visitor.wait_passed("connecting", before)
        visitor.wait_for("idle")
        visitor.page.locator(".free[aria-pressed=true]").wait_for()
        assert visitor.state("free") == "true"
