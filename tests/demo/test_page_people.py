"""The page with broken files, several people, narrow screens, and the shipped bundle."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from demo import archive
from demo.app import start
from demo.exports import file_name
from demo.routes import WEB
from slm.audio import write_wav
from slm.bundle import Bundle
from tests import browser as browser_module
from tests.conftest import spoken_beginning
from tests.demo.pages import (
    Visit,
    sounding_seconds,
    visits,
)
from tests.fake_bundle import FakeBundle, buzz


@pytest.mark.browser
def test_broken_files_get_a_kind_line_in_the_language_of_the_page(
    fake: tuple[FakeBundle, str], visit: Visit, tmp_path: Path
) -> None:
    _, url = fake
    visitor = visit(url, locale="fr-FR")
    assert visitor.page.locator("#tab-talk").inner_text() == "Parler"
    (tmp_path / "broken.wav").write_text("this is not a recording")
    visitor.upload(tmp_path / "broken.wav")
    visitor.page.locator(".talk[data-problem=true] .status", has_text="broken.wav").wait_for()
    assert "n’est pas un son" in visitor.status()
    visitor.page.locator(".interface [lang=en]").click()
    visitor.page.locator("#tab-talk", has_text="Talk").wait_for()
    assert "not audio" in visitor.status()
    write_wav(tmp_path / "good.wav", buzz(200, 2), 16000)
    visitor.upload(tmp_path / "good.wav")
    visitor.wait_replies(1)
    assert sounding_seconds(visitor.heard()[1].reshape(-1), 16000) > 1


@pytest.mark.browser
def test_the_page_says_in_both_languages_that_a_prompt_is_out_of_domain(
    fake: tuple[FakeBundle, str], visit: Visit, tmp_path: Path
) -> None:
    _, url = fake
    visitor = visit(url)
    for pitch in (200, 700):
        write_wav(tmp_path / f"{pitch}.wav", buzz(pitch, 2), 16000)
        visitor.upload(tmp_path / f"{pitch}.wav")
        visitor.wait_replies(1 if pitch == 200 else 2)
    assert visitor.page.locator(".said").count() == 2
    (hint,) = visitor.page.locator(".out-of-domain").all()
    assert "was not understood" in hint.inner_text()
    assert "1 of 2 understood" in visitor.page.locator(".said .facts").last.inner_text()
    assert "a child, a dog" in hint.inner_text()  # what to try
    assert hint.locator("xpath=../article[contains(@class, 'reply')]").count() == 1  # beside the reply
    assert "was not understood" in visitor.status()
    assert "examples below" in hint.inner_text()
    assert visitor.page.locator(".example").first.is_visible()
    visitor.page.locator(".interface [lang=fr]").click()
    visitor.page.locator(".out-of-domain", has_text="n’a pas été compris").wait_for()


@pytest.mark.browser
def test_two_people_each_hear_their_own_reply(fake: tuple[FakeBundle, str], visit: Visit, tmp_path: Path) -> None:
    _, url = fake
    pitches = (150.0, 230.0)
    visitors = [visit(url) for _ in pitches]
    for visitor, pitch in zip(visitors, pitches, strict=True):
        write_wav(tmp_path / "prompt.wav", buzz(pitch, 2), 16000)
        visitor.upload(tmp_path / "prompt.wav")
    for visitor, pitch in zip(visitors, pitches, strict=True):
        visitor.wait_replies(1)
        assert visitor.pitch() == pytest.approx(pitch, abs=10)


@pytest.mark.browser
def test_a_refused_microphone_is_explained_and_the_rest_works(fake: tuple[FakeBundle, str], visit: Visit) -> None:
    _, url = fake
    visitor = visit(url)
    visitor.page.evaluate(
        """() => {
          navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException("no", "NotAllowedError"));
        }"""
    )
    visitor.page.locator(".press").click()
    visitor.page.locator(".talk[data-problem=true] .status", has_text="does not let this page").wait_for()
    visitor.example()
    visitor.wait_replies(1)
    assert sounding_seconds(visitor.heard()[1].reshape(-1), 16000) > 1


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (390, "dark")])
def test_phone_width_never_scrolls_sideways(
    fake: tuple[FakeBundle, str], visit: Visit, width: int, scheme: str
) -> None:
    _, url = fake
    visitor = visit(url, width=width, scheme=scheme)
    assert visitor.width_overflow() <= 0
    visitor.page.locator(".settings summary").click()
    visitor.target("both")
    visitor.example()
    visitor.wait_replies(2)
    assert visitor.width_overflow() <= 0
    right_edges = visitor.page.evaluate(
        "[...document.querySelectorAll('.stop, .press, .fields input, .reply, .pills label')]"
        ".map((e) => e.getBoundingClientRect().right)"
    )
    assert max(right_edges) <= width
    assert (visitor.page.locator("body.dark").count() == 1) == (scheme == "dark")


@pytest.mark.browser
def test_past_recordings_can_be_heard_on_their_page(visit: Visit, tmp_path: Path) -> None:
    bundle, folder = FakeBundle(tmp_path / "bundle", reply_seconds=1.0), tmp_path / "kept"
    page, url = start(bundle, "127.0.0.1", 0, recordings=folder)  # type: ignore[arg-type]
    try:
        visitor = visit(url)
        assert str(folder) in visitor.page.locator(".note").inner_text()
        visitor.example()
        visitor.wait_replies(1)
        visitor.page.locator("#tab-recordings").click()
        visitor.page.locator("#panel-recordings .recording-part").nth(1).wait_for()
        visitor.forget_sound()
        visitor.page.locator("#panel-recordings .play").nth(1).click()
        visitor.wait_for("speaking")
        visitor.wait_for("idle")
        assert sounding_seconds(visitor.heard()[1].reshape(-1), 16000) > 0.4
        visitor.page.locator("#panel-recordings select").select_option("fr")
        visitor.page.locator("#panel-recordings", has_text="Nothing has been recorded").wait_for()
    finally:
        page.close()


@pytest.mark.browser
def test_talking_with_the_shipped_bundle(browser: Any, bundle: Bundle, tmp_path: Path) -> None:
    """A fake microphone tells a French story beginning over and over; the page answers by itself in English, and then, to
    the button, in French."""
    bundle.warm_up()
    microphone = tmp_path / "story.wav"
    silence = np.zeros(16000 * 5, np.float32)
    write_wav(microphone, np.concatenate([silence[:8000], spoken_beginning("fr"), silence]), 16000)
    page, url = start(bundle, "127.0.0.1", 0)
    try:
        path, arguments = browser.browser_type.executable_path, browser_module.flags(microphone)
        path = browser_module.chromium_path() if not Path(path).exists() else path
        running = browser.browser_type.launch(executable_path=path, headless=True, args=arguments)
        with contextlib.closing(running), visits(running) as visit:
            visitor = visit(url)
            visitor.target("en")
            visitor.page.locator(".free").click()
            # a busy browser's microphone stutters: a telling that nobody would understand is followed by another
            said = visitor.page.locator(".said", has=visitor.badge("French"))
            told = visitor.page.locator(".turn", has=said).first
            told.locator(".reply .play:enabled").first.wait_for()
            visitor.page.locator(".free").click()
            visitor.wait_for("idle")
            assert told.locator(".reply .badge").first.inner_text() == "English"
            assert sounding_seconds(visitor.heard()[1].reshape(-1), bundle.sample_rate) > 0.3
            visitor.target("fr")
            visitor.forget_sound()
            visitor.hold(8.0)  # longer than the silence between two tellings: the next turn, in the other language
            reply = visitor.page.locator(".turn").last.locator(".reply", has=visitor.badge("French"))
            reply.locator(".play:enabled").wait_for()
            visitor.wait_for("idle")
            assert sounding_seconds(visitor.heard()[1].reshape(-1), bundle.sample_rate) > 0.3
            visitor.page.locator("#tab-results").click()
            assert visitor.page.locator("#panel-results tr").count() > 4
            visitor.page.locator("#tab-talk").click()
            title = visitor.page.locator(".story-title").input_value()
            assert visitor.download("[data-form=zip]", tmp_path / "story.zip") == f"{file_name(title)}.zip"
            visitor.download(".reply .download", tmp_path / "reply.wav")
            turns = visitor.page.locator(".turn").count()
            again = archive.reproduce(bundle, tmp_path / "story.zip", turns).waveform
            heard = soundfile.read(tmp_path / "reply.wav", dtype="float32")[0]
            assert len(again) == len(heard)
            assert np.abs(again - heard).max() < 1e-4  # 16 bits
    finally:
        page.close()


# ---- the parts that need no browser ---------------------------------------------------------------------------------


def test_every_interface_language_has_all_words() -> None:
    import json

    texts = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in WEB.glob("texts.*.json")}
    english = texts.pop("texts.en.json")
    used = set(re.findall(r"data-t(?:-\w+)?=\"([\w.]+)\"", (WEB / "page.html").read_text(encoding="utf-8")))
    for script in WEB.glob("*.js"):
        used |= set(re.findall(r"\bt\(\"([\w.]+)\"", script.read_text(encoding="utf-8")))
    assert used <= set(english)
    assert texts
    for words in texts.values():
        assert set(words) == set(english)
        for key in set(english) - {"problems"}:
            assert sorted(re.findall(r"\{\w+\}", words[key])) == sorted(re.findall(r"\{\w+\}", english[key])), key
        assert {pattern for pattern, _ in english["problems"]} <= {pattern for pattern, _ in words["problems"]}


def test_where_no_browser_can_be_installed_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = []
    monkeypatch.setattr(browser_module, "chromium_path", lambda: None)
    monkeypatch.setattr(
        browser_module.subprocess, "run", lambda command, **_: commands.append(command) or SimpleNamespace(returncode=1)
    )
    assert browser_module.main() == 1
    assert commands
    assert capsys.readouterr().err.count("\n") == 1
