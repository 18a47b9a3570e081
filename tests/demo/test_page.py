"""The page, driven in headless Chromium: what is asserted is the sound that reaches the loudspeaker.

A tap in front of the audio destination (`TAP`) keeps every block that is played, with its time on the audio clock. Tests of
exact timing use a stand-in for the bundle; two use the shipped bundle. What needs no browser is in test_conversation.py.
"""

from __future__ import annotations

import base64
import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile

from demo import archive
from demo.app import start
from demo.routes import WEB
from slm.audio import write_wav
from slm.bundle import Bundle
from tests import browser as browser_module
from tests.browser import chromium
from tests.conftest import spoken_beginning
from tests.fake_bundle import FakeBundle, buzz, loudest_frequency

MICROPHONE_PITCH = 170.0
LOUD = 0.01
"""Root mean square above which a block counts as sound."""
BLOCK = 512
"""Samples in a block of the tap."""

TAP = """
(() => {
  window.heard = [];  // [time on the audio clock in s, samples]
  window.tapped = null;
  const connect = AudioNode.prototype.connect;
  AudioNode.prototype.connect = function (target, ...rest) {
    if (target instanceof AudioDestinationNode && !window.tapped) {
      window.tapped = this.context;
      const tap = this.context.createScriptProcessor(512, 1, 1);
      tap.onaudioprocess = (e) => window.heard.push([e.playbackTime, e.inputBuffer.getChannelData(0).slice()]);
      connect.call(this, tap);
      connect.call(tap, target);
    }
    return connect.call(this, target, ...rest);
  };
})();
"""
HEARD = """() => window.heard.filter(([, samples]) => samples.some((s) => Math.abs(s) > 1e-4)).map(([time, samples]) => {
  const bytes = new Uint8Array(samples.buffer);
  return [time, btoa(String.fromCharCode(...bytes))];
})"""
CLICK_AND_TELL_TIME = """(selector) => {
  document.querySelector(selector).click();
  return window.tapped.currentTime;
}"""


class Visitor:
    """A browser tab on the page, and what comes out of its loudspeaker."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def upload(self, path: Path) -> None:
        """Begin with a file."""
        self.page.locator(".upload input").set_input_files(str(path))

    def target(self, value: str) -> None:
        """Choose the language of the reply, or same, both, braided."""
        self.page.locator(f"[name=target][value={value}]").check()

    def example(self, number: int = 0) -> None:
        """Let an example begin, or go on."""
        if not self.page.locator(".examples").is_visible():
            self.page.locator(".beginnings summary").click()
        self.page.locator(".example").nth(number).click()

    def hold(self, seconds: float) -> None:
        """Press the talk button, speak, let go."""
        self.page.locator(".press").hover()
        self.page.mouse.down()
        self.wait_for("recording")
        self.page.wait_for_timeout(1000 * seconds)
        self.page.mouse.up()

    def state(self, name: str = "state") -> str:
        """A data attribute of the page."""
        return str(self.page.locator(".talk").get_attribute(f"data-{name}"))

    def status(self) -> str:
        """The line that says what goes on."""
        return str(self.page.locator(".status").inner_text())

    def badge(self, language: str) -> Any:
        """The signs that say that somebody spoke this language."""
        return self.page.locator(".badge", has_text=language)

    def wait_for(self, *states: str, seconds: float = 60) -> None:
        """Wait until the page is in one of these states."""
        selector = ", ".join(f".talk[data-state={state}]" for state in states)
        self.page.locator(selector).wait_for(timeout=1000 * seconds)

    def wait_replies(self, count: int) -> None:
        """Wait until so many replies are complete, and all is silent."""
        self.page.wait_for_function(
            "n => document.querySelectorAll('.reply .play:enabled').length >= n", arg=count, timeout=60_000
        )
        self.wait_for("idle")

    def heard(self) -> tuple[np.ndarray, np.ndarray]:
        """Blocks that sounded: their times in s on the audio clock [n], and their samples [n, BLOCK]."""
        blocks = self.page.evaluate(HEARD)
        samples = [np.frombuffer(base64.b64decode(data), np.float32) for _, data in blocks]
        return np.array([at for at, _ in blocks]), np.stack(samples) if samples else np.zeros((0, BLOCK), np.float32)

    def forget_sound(self) -> None:
        """From here on only what sounds later counts."""
        self.page.evaluate("window.heard = []")

    def pitch(self) -> float:
        """Loudest frequency of what sounded, in Hz."""
        return loudest_frequency(self.heard()[1].reshape(-1), 16000)

    def download(self, selector: str, to: Path) -> str:
        """Save what a link gives; the name it suggests."""
        with self.page.expect_download() as download:
            self.page.locator(selector).last.click()
        download.value.save_as(to)
        return str(download.value.suggested_filename)

    def width_overflow(self) -> int:
        """CSS pixels by which the page is wider than the window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))


Visit = Callable[..., Visitor]


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


class visits:
    """See `visit`."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser
        self.contexts: list[Any] = []
        self.requests: list[str] = []
        self.failures: list[str] = []

    def __enter__(self) -> Visit:
        return self.open

    def open(
        self, url: str, width: int = 1200, scheme: str = "light", locale: str = "en-GB", **options: Any
    ) -> Visitor:
        permissions = options.pop("permissions", ["microphone"])
        context = self.browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
            locale=locale,
            permissions=permissions,
            accept_downloads=True,
            **options,
        )
        self.contexts.append(context)
        context.set_default_timeout(60_000)
        context.add_init_script(TAP)
        context.on("request", lambda request: self.requests.append(request.url))
        page = context.new_page()
        page.on("pageerror", lambda error: self.failures.append(str(error)))
        page.on("websocket", lambda socket: self.requests.append(socket.url))
        page.goto(url)
        page.locator(".talk[data-state=idle]").wait_for()
        return Visitor(page)

    def __exit__(self, kind: Any, *_: Any) -> None:
        for context in self.contexts:
            context.close()
        if kind is None:
            assert self.requests
            hosts = {urlsplit(url).hostname for url in self.requests if urlsplit(url).scheme not in ("data", "blob")}
            assert hosts == {"127.0.0.1"}
            assert not self.failures


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[tuple[FakeBundle, str]]:
    """The page on a stand-in bundle of known speed: the bundle, and the page's address."""
    bundle = FakeBundle(tmp_path / "bundle")
    page, url = start(bundle, "127.0.0.1", 0)  # type: ignore[arg-type]
    yield bundle, url
    page.close()


def sounding_seconds(waveform: np.ndarray, sample_rate: int) -> float:
    """s of a waveform in which there is sound, counted in blocks."""
    blocks = waveform[: len(waveform) // BLOCK * BLOCK].reshape(-1, BLOCK)
    return float((np.sqrt((blocks**2).mean(1)) > LOUD).sum()) * BLOCK / sample_rate


def loud_times(visitor: Visitor) -> np.ndarray:
    """Times in s at which there was sound."""
    times, blocks = visitor.heard()
    return times[np.sqrt((blocks**2).mean(1)) > LOUD]


@pytest.mark.browser
def test_reply_is_heard_as_it_is_made_and_complete(fake: tuple[FakeBundle, str], visit: Visit, tmp_path: Path) -> None:
    bundle, url = fake
    bundle.real_time_factor = 0.6
    visitor = visit(url)
    visitor.target("fr")
    visitor.example(1)
    visitor.wait_for("speaking")
    assert bundle.active == 1  # it sounds before it is finished
    visitor.wait_replies(1)
    assert visitor.state("gaps") == "0"
    name = visitor.download(".reply .download", tmp_path / "reply.wav")
    assert name == "tresse-1-reply-fr.wav"
    waveform, rate = soundfile.read(tmp_path / "reply.wav", dtype="float32")
    assert len(waveform) == bundle.reply_seconds * rate
    heard = visitor.heard()[1].reshape(-1)
    assert 0.9 < sounding_seconds(heard, rate) / sounding_seconds(waveform, rate) < 1.1
    assert abs(loudest_frequency(heard, rate) - loudest_frequency(waveform, rate)) < 8
    assert visitor.page.locator(".reply .badge").inner_text() == "French"
    facts = visitor.page.locator(".reply .facts").inner_text()
    assert re.search(r"3\.0 s · first sound after \d+ ms · real-time factor 0\.\d\d · seed \d+", facts)
    visitor.forget_sound()
    visitor.page.locator(".reply .play").click()  # again
    visitor.wait_for("speaking")
    visitor.wait_for("idle")
    assert sounding_seconds(visitor.heard()[1].reshape(-1), rate) == pytest.approx(
        sounding_seconds(waveform, rate), rel=0.1
    )


@pytest.mark.browser
def test_talking_in_turns_with_the_button_and_the_space_bar(
    fake: tuple[FakeBundle, str], visit: Visit, tmp_path: Path
) -> None:
    bundle, url = fake
    bundle.reply_seconds = 1.0
    visitor = visit(url)
    visitor.hold(1.5)
    visitor.wait_replies(1)
    assert visitor.pitch() == pytest.approx(MICROPHONE_PITCH, abs=10)
    assert visitor.page.locator(".strip").first.evaluate(
        "c => new Set(new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, 1).data.buffer)).size > 1"
    )
    visitor.target("fr")
    visitor.forget_sound()
    visitor.page.locator("h2, .turns").first.evaluate("() => document.activeElement.blur()")
    visitor.page.keyboard.down(" ")
    visitor.wait_for("recording")
    visitor.page.wait_for_timeout(1500)
    visitor.page.keyboard.up(" ")
    visitor.wait_replies(2)
    assert visitor.page.locator(".reply .badge").all_inner_texts() == ["English", "French"]
    assert visitor.pitch() == pytest.approx(MICROPHONE_PITCH, abs=10)
    assert "40 of" in visitor.page.locator(".context-text").inner_text()
    visitor.page.locator(".undo").click()
    visitor.page.wait_for_function("document.querySelectorAll('.turn').length === 1")
    visitor.download("[data-form=wav]", tmp_path / "story.wav")
    waveform, rate = soundfile.read(tmp_path / "story.wav")
    assert len(waveform) / rate > 1.0 + 1.0 + archive.GAP
    visitor.page.reload()  # the story is still there
    visitor.page.locator(".turn").wait_for()
    visitor.page.locator(".new").click()
    visitor.page.locator(".beginning").wait_for()


@pytest.mark.browser
@pytest.mark.parametrize("way", ["stop", "escape", "talk"])
def test_interrupting_silences_at_once_and_ends_the_generation(
    fake: tuple[FakeBundle, str], visit: Visit, way: str
) -> None:
    bundle, url = fake
    bundle.reply_seconds, bundle.real_time_factor = 12.0, 0.8
    visitor = visit(url)
    visitor.example()
    visitor.wait_for("speaking")
    visitor.page.wait_for_timeout(800)
    if way == "stop":
        pressed = visitor.page.evaluate(CLICK_AND_TELL_TIME, ".stop")
    else:
        key = {"escape": "Escape", "talk": " "}[way]
        visitor.page.evaluate("document.activeElement.blur()")
        visitor.page.evaluate(
            "addEventListener('keydown', () => (window.pressed = window.tapped.currentTime), {capture: true})"
        )
        visitor.page.keyboard.down(key)
        pressed = visitor.page.evaluate("window.pressed")
    visitor.page.wait_for_timeout(1000)
    loud = loud_times(visitor)
    assert loud[0] < pressed
    assert loud[-1] < pressed + 0.15
    assert bundle.closed == 1
    if way == "talk":
        assert visitor.state() == "recording"
        visitor.page.keyboard.up(" ")
        visitor.wait_for("speaking")
    else:
        assert "stopped early" in visitor.page.locator(".reply .facts").inner_text()
        assert visitor.state() == "idle"


@pytest.mark.browser
def test_both_sound_one_after_the_other_and_one_is_chosen(fake: tuple[FakeBundle, str], visit: Visit) -> None:
    bundle, url = fake
    bundle.reply_seconds = 1.0
    visitor = visit(url)
    visitor.target("both")
    visitor.example()
    visitor.wait_replies(2)
    assert visitor.page.locator(".reply .badge").all_inner_texts() == ["English", "French"]
    energy = float((visitor.heard()[1] ** 2).sum())
    assert energy == pytest.approx(2 * float((buzz(110, 1.0) ** 2).sum()), rel=0.1)
    left, right = (visitor.page.locator(".reply").nth(k).bounding_box() for k in (0, 1))
    assert left["y"] == pytest.approx(right["y"], abs=2)
    visitor.page.locator(".reply .choose").nth(1).click()
    assert visitor.page.locator(".reply .choose").nth(1).get_attribute("aria-pressed") == "true"
    visitor.target("braided")
    visitor.forget_sound()
    visitor.example()
    visitor.wait_replies(3)
    assert visitor.page.locator(".reply .badge").all_inner_texts()[2:] == ["French", "English"]
    assert float((visitor.heard()[1] ** 2).sum()) == pytest.approx(float((buzz(110, 1.0) ** 2).sum()), rel=0.1)
    visitor.page.locator(".turn").first.locator(".choose").first.wait_for(state="hidden")


@pytest.mark.browser
def test_closed_tab_frees_its_work(fake: tuple[FakeBundle, str], visit: Visit) -> None:
    bundle, url = fake
    bundle.reply_seconds, bundle.real_time_factor = 12.0, 1.0
    visitor = visit(url)
    visitor.example()
    visitor.wait_for("speaking")
    visitor.page.close()
    deadline = time.monotonic() + 2
    while bundle.active and time.monotonic() < deadline:
        time.sleep(0.02)
    assert bundle.closed == 1


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
    assert "too far from the voices" in hint.inner_text()
    assert "examples below" in hint.inner_text()
    assert visitor.page.locator(".example").first.is_visible()
    visitor.page.locator(".interface [lang=fr]").click()
    visitor.page.locator(".out-of-domain", has_text="trop loin des voix").wait_for()


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
            visitor.page.locator(".reply .play:enabled").first.wait_for()
            visitor.page.locator(".free").click()
            visitor.wait_for("idle")
            assert visitor.page.locator(".said .badge").first.inner_text() == "French"
            assert visitor.page.locator(".reply .badge").first.inner_text() == "English"
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
            assert visitor.download("[data-form=zip]", tmp_path / "story.zip") == "tresse-story.zip"
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
