"""A story is given a title, downloaded, shared, and opened without the server that it came from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

from demo.app import start
from demo.transcripts import Transcripts
from tests.demo.pages import Visit, Visitor
from tests.demo.test_first_minute import violations
from tests.demo.test_stories_kept import StandInTranscriber
from tests.fake_bundle import FakeBundle

SHARES = """
window.shared = [];
navigator.canShare = ({ files }) => files[0].type === "text/html";
navigator.share = async ({ files, title }) => window.shared.push([files[0].name, title, await files[0].text()]);
"""
TITLE = "Où est le chat ?"


def saved(visitor: Visitor, folder: Path) -> Path:
    """The page to keep, as it is downloaded."""
    name = visitor.download("[data-form=html]", folder / "page.html")
    return (folder / "page.html").rename(folder / name)


@pytest.mark.browser
def test_a_story_is_named_shared_and_kept(
    visit: Visit, browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle: Any = FakeBundle(tmp_path / "bundle", reply_seconds=1.0, real_time_factor=0.05)
    transcripts = Transcripts(StandInTranscriber(bundle.languages))  # type: ignore[arg-type]
    monkeypatch.setattr("demo.app.Transcripts", SimpleNamespace(open=lambda *_: transcripts))
    server, url = start(bundle, "127.0.0.1", 0)
    try:
        visitor = visit(url, script=SHARES)
        page, field = visitor.page, visitor.page.locator(".story-title")
        assert not field.is_visible()
        visitor.example()
        visitor.wait_replies(1)
        page.locator(".reply .words", has_text="1.0").wait_for()
        assert field.input_value() == "2.0"  # what the stand-in for a recogniser understood first
        assert saved(visitor, tmp_path).name == "tresse-2-0.html"
        field.fill(TITLE)
        field.press("Enter")
        page.reload()  # it is kept with the story
        visitor.wait_for("idle")
        assert field.input_value() == TITLE
        assert visitor.download("[data-form=flac]", tmp_path / "story.flac") == "tresse-ou-est-le-chat.flac"
        kept = saved(visitor, tmp_path)
        page.locator(".share").click()
        page.wait_for_function("window.shared.length === 1")
        assert page.evaluate("window.shared[0]") == [kept.name, TITLE, kept.read_text(encoding="utf-8")]
        page.evaluate("() => { navigator.share = () => Promise.reject(new DOMException('', 'NotAllowedError')); }")
        page.locator(".share").click()
        page.locator(".status", has_text="would not share").wait_for()
        page.locator(".new").click()
        page.locator(".example").first.wait_for()
        visitor.example()
        visitor.wait_replies(1)
        page.wait_for_function("document.querySelector('.story-title').value === '2.0'")
    finally:
        server.close()
    for scheme in ("light", "dark"):  # the server is gone
        look_into(browser, kept, scheme)


def look_into(browser: Any, kept: Path, scheme: str) -> None:
    """Open the file: everybody can use it, it sounds, it prints without what only a screen needs, and it fetches nothing."""
    context = browser.new_context(color_scheme=scheme, viewport={"width": 390, "height": 844})
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    context.add_init_script("window.print = () => (window.printed = true);")
    page = context.new_page()
    page.goto(kept.as_uri())
    assert page.title() == page.locator("h1").inner_text() == TITLE
    assert violations(Visitor(page)) == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.locator("button").click()
    assert page.evaluate("window.printed")
    first = page.locator("audio").first
    box = first.bounding_box()
    first.click(position={"x": 24, "y": box["height"] / 2})
    for _ in range(200):  # not wait_for_function, whose eval the file's policy forbids
        if page.evaluate("document.querySelectorAll('audio')[1].currentTime > 0.3"):  # one part after the other
            break
        page.wait_for_timeout(100)
    else:
        pytest.fail("the second part does not sound")
    assert first.evaluate("part => part.ended")
    page.emulate_media(media="print")
    assert not page.locator("button").is_visible()
    assert not first.is_visible()
    assert page.locator("h1").is_visible()
    assert {urlsplit(url).scheme for url in asked} <= {"file", "data"}
    context.close()


@pytest.mark.browser
def test_where_a_device_cannot_share_files_there_is_no_button(fake: tuple[FakeBundle, str], visit: Visit) -> None:
    fake[0].reply_seconds = 0.5
    visitor = visit(fake[1], script="navigator.canShare = () => false;")
    visitor.example()
    visitor.wait_replies(1)
    assert visitor.page.locator(".story-title").get_attribute("placeholder") == "A story told in turn"
    assert visitor.page.locator(".downloads").is_visible()
    assert not visitor.page.locator(".share").is_visible()
