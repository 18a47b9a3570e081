"""The page, driven in headless Chromium: what is asserted is the sound that reaches the loudspeaker.

A tap in front of the audio destination (`TAP`) keeps every block that is played, with its time on the audio clock. Tests of
exact timing use a stand-in for the bundle; the last one uses the shipped bundle.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from demo import player as player_module
from demo import recordings
from demo.app import start
from demo.player import Feed
from demo.turn import Reply, Runs, Settings, Turn
from slm.audio import read_audio, write_wav
from slm.bundle import Bundle
from slm.errors import TresseError
from tests import browser as browser_module
from tests.browser import chromium
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


class Visitor:
    """A browser tab on the page, and what comes out of its loudspeaker."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def upload(self, path: Path) -> None:
        """Replace the prompt by a file."""
        if self.page.locator("#prompt [aria-label='Clear']").count():
            self.page.locator("#prompt [aria-label='Clear']").first.click()
        self.page.locator("#prompt [aria-label='Upload file']").click()
        self.page.locator("#prompt input[type=file]").set_input_files(str(path))
        self.page.locator("#prompt input[type=file]").wait_for(state="detached")

    def go(self, language: str | None = None) -> None:
        """Ask for a continuation."""
        if language:
            self.page.locator("#language label", has_text=language).click()
        self.page.locator("#go").click()

    def state(self, name: str) -> str:
        """A data attribute of the player."""
        return str(self.page.locator(".player").get_attribute(f"data-{name}"))

    def wait_for(self, *states: str, seconds: float = 40) -> None:
        """Wait until the player is in one of these states."""
        selector = ", ".join(f".player[data-state={state}]" for state in states)
        self.page.locator(selector).wait_for(timeout=1000 * seconds)

    def wait_played(self, seconds: float) -> None:
        """Wait until so many s of the reply have sounded."""
        script = "s => Number(document.querySelector('.player').dataset.played) > s"
        self.page.wait_for_function(script, arg=seconds, timeout=40_000)

    def heard(self) -> tuple[np.ndarray, np.ndarray]:
        """Blocks that sounded: their times in s on the audio clock [n], and their samples [n, BLOCK]."""
        blocks = self.page.evaluate(HEARD)
        samples = [np.frombuffer(base64.b64decode(data), np.float32) for _, data in blocks]
        return np.array([at for at, _ in blocks]), np.stack(samples) if samples else np.zeros((0, BLOCK), np.float32)

    def download(self, to: Path) -> tuple[np.ndarray, int]:
        """The finished reply, through the download button."""
        self.page.locator("#reply [aria-label='Download'], #reply a[download]").first.wait_for()
        with self.page.expect_download() as download:
            self.page.locator("#reply a[download]").first.click()
        download.value.save_as(to)
        assert re.fullmatch(r"tresse-[a-z]+-\d+\.wav", download.value.suggested_filename)
        return soundfile.read(to, dtype="float32")

    def width_overflow(self) -> int:
        """CSS pixels by which the page is wider than the window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium with a microphone that hears a buzz."""
    microphone = tmp_path_factory.mktemp("microphone") / "buzz.wav"
    write_wav(microphone, buzz(MICROPHONE_PITCH, 4.0, 48000), 48000)
    with chromium(microphone) as running:
        yield running


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Visitor]]:
    """Open a page in a browser session of its own; no request may leave the machine, no script may fail."""
    contexts, requests, failures = [], [], []

    def open_page(url: str, width: int = 1200, scheme: str = "light") -> Visitor:
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
            permissions=["microphone"],
            accept_downloads=True,
        )
        contexts.append(context)
        context.add_init_script(TAP)
        context.on("request", lambda request: requests.append(request.url))
        page = context.new_page()
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(url)
        page.locator("#go").wait_for()
        page.locator(".player[data-state=idle]").wait_for()
        return Visitor(page)

    yield open_page
    for context in contexts:
        context.close()
    assert requests
    hosts = {urlsplit(url).hostname for url in requests if urlsplit(url).scheme not in ("data", "blob")}
    assert hosts == {"127.0.0.1"}
    assert not [failure for failure in failures if "decode" not in failure]  # the browser's word on a broken file


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


@pytest.mark.browser
def test_reply_is_heard_as_it_is_made_and_complete(
    fake: tuple[FakeBundle, str], visit: Callable[..., Visitor], tmp_path: Path
) -> None:
    bundle, url = fake
    bundle.real_time_factor = 0.6
    visitor = visit(url)
    visitor.page.locator("#examples .example").nth(2).click()
    visitor.page.locator("#prompt [aria-label='Play']").wait_for()
    visitor.go("French")
    visitor.wait_played(0.3)
    assert float(visitor.state("received")) < bundle.reply_seconds  # it sounds before it is finished
    visitor.wait_for("finished")
    assert (visitor.state("lost"), visitor.state("gaps")) == ("0", "0")
    waveform, rate = visitor.download(tmp_path / "reply.wav")
    assert rate == bundle.sample_rate
    assert len(waveform) == bundle.reply_seconds * rate
    _, heard = visitor.heard()
    ratio = sounding_seconds(heard.reshape(-1), rate) / sounding_seconds(waveform, rate)
    assert 0.9 < ratio < 1.1
    spectrum_gap = loudest_frequency(heard.reshape(-1), rate) - loudest_frequency(waveform, rate)
    assert abs(spectrum_gap) < 8
    facts = visitor.page.locator("#facts").inner_text()
    assert "French" in facts
    assert "3.0 s" in facts
    assert re.search(r"First sound after\s+0\.\d\d s", facts)
    assert re.search(r"Real-time factor\s+0\.\d\d", facts)
    assert re.search(r"Seed\s+\d+", facts)


@pytest.mark.browser
def test_stop_silences_at_once_and_ends_the_generation(
    fake: tuple[FakeBundle, str], visit: Callable[..., Visitor], tmp_path: Path
) -> None:
    bundle, url = fake
    bundle.reply_seconds, bundle.real_time_factor = 12.0, 0.5
    visitor = visit(url)
    visitor.page.locator("#examples .example").first.click()
    visitor.page.locator("#prompt [aria-label='Play']").wait_for()
    visitor.go()
    visitor.wait_played(0.8)
    pressed = visitor.page.evaluate(
        "() => { document.querySelector('.player-stop').click(); return window.tapped.currentTime; }"
    )
    visitor.page.wait_for_timeout(1000)
    assert visitor.state("state") == "stopped"
    times, blocks = visitor.heard()
    loud = times[np.sqrt((blocks**2).mean(1)) > LOUD]
    assert loud[0] < pressed
    assert loud[-1] < pressed + 0.15
    assert bundle.closed == 1
    assert "Stopped early" in visitor.page.locator("#facts").inner_text()
    waveform, rate = visitor.download(tmp_path / "part.wav")
    assert 0.5 < len(waveform) / rate < 6
    visitor.go()  # and it can be asked again
    visitor.wait_for("playing")


@pytest.mark.browser
def test_asking_again_replaces_the_reply(fake: tuple[FakeBundle, str], visit: Callable[..., Visitor]) -> None:
    bundle, url = fake
    bundle.reply_seconds, bundle.real_time_factor = 3.0, 0.5
    visitor = visit(url)
    visitor.page.locator("#examples .example").first.click()
    visitor.page.locator("#prompt [aria-label='Play']").wait_for()
    visitor.go()
    visitor.wait_played(0.5)
    visitor.go()
    visitor.wait_for("waiting", "playing")
    visitor.wait_for("finished")
    assert float(visitor.state("played")) == pytest.approx(3.0, abs=0.1)
    assert bundle.closed == 1


@pytest.mark.browser
def test_closed_tab_frees_its_work(fake: tuple[FakeBundle, str], visit: Callable[..., Visitor]) -> None:
    bundle, url = fake
    bundle.reply_seconds, bundle.real_time_factor = 12.0, 1.0
    visitor = visit(url)
    visitor.page.locator("#examples .example").first.click()
    visitor.page.locator("#prompt [aria-label='Play']").wait_for()
    visitor.go()
    visitor.wait_played(0.3)
    visitor.page.close()
    deadline = time.monotonic() + 4
    while not bundle.closed and time.monotonic() < deadline:
        time.sleep(0.05)
    assert bundle.closed == 1


@pytest.mark.browser
def test_broken_files_get_a_kind_line_and_the_page_goes_on(
    fake: tuple[FakeBundle, str], visit: Callable[..., Visitor], tmp_path: Path
) -> None:
    _, url = fake
    visitor = visit(url)
    visitor.go()
    visitor.wait_for("error")
    assert "take one of the examples" in visitor.page.locator(".player-status").inner_text()
    (tmp_path / "broken.wav").write_text("this is not a recording")
    write_wav(tmp_path / "silent.wav", np.zeros(32000, np.float32), 16000)
    for name, word in (("broken.wav", "not audio"), ("silent.wav", "silent")):
        visitor.upload(tmp_path / name)
        visitor.go()
        visitor.page.locator(".player[data-state=error] .player-status", has_text=word).wait_for()
        line = visitor.page.locator(".player-status").inner_text()
        assert name in line
        assert "/" not in line
        assert "Traceback" not in visitor.page.locator("body").inner_text()
    visitor.upload(_write(tmp_path / "good.wav", buzz(200, 2)))
    visitor.go()
    visitor.wait_for("finished")
    assert sounding_seconds(visitor.heard()[1].reshape(-1), 16000) > 1


@pytest.mark.browser
def test_two_sessions_each_hear_their_own_reply(
    fake: tuple[FakeBundle, str], visit: Callable[..., Visitor], tmp_path: Path
) -> None:
    _, url = fake
    pitches = (150.0, 230.0)
    visitors = [visit(url) for _ in pitches]
    for visitor, pitch in zip(visitors, pitches, strict=True):
        visitor.upload(_write(tmp_path / f"{pitch}.wav", buzz(pitch, 2)))
    for visitor in visitors:
        visitor.go()
    for visitor, pitch in zip(visitors, pitches, strict=True):
        visitor.wait_for("finished")
        _, heard = visitor.heard()
        assert loudest_frequency(heard.reshape(-1), 16000) == pytest.approx(pitch, abs=10)
        waveform, rate = visitor.download(tmp_path / "reply.wav")
        assert loudest_frequency(waveform, rate) == pytest.approx(pitch, abs=5)


@pytest.mark.browser
def test_microphone_prompt_is_answered(fake: tuple[FakeBundle, str], visit: Callable[..., Visitor]) -> None:
    _, url = fake
    visitor = visit(url)
    visitor.page.locator("#prompt button", has_text="Record").click()
    visitor.page.wait_for_timeout(2500)
    visitor.page.locator("#prompt button", has_text="Stop").first.click()
    visitor.page.locator("#prompt [aria-label='Play']").wait_for()
    visitor.go()
    visitor.wait_for("finished")
    _, heard = visitor.heard()
    assert loudest_frequency(heard.reshape(-1), 16000) == pytest.approx(MICROPHONE_PITCH, abs=10)


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (390, "dark")])
def test_phone_width_never_scrolls_sideways(
    fake: tuple[FakeBundle, str], visit: Callable[..., Visitor], width: int, scheme: str
) -> None:
    _, url = fake
    visitor = visit(url, width=width, scheme=scheme)
    assert visitor.width_overflow() <= 0
    visitor.page.locator("#examples .example").first.click()
    visitor.page.locator("#prompt [aria-label='Play']").wait_for()
    visitor.page.locator("#settings button").first.click()
    visitor.go()
    visitor.wait_for("finished")
    visitor.page.locator("#reply a[download]").first.wait_for()
    assert visitor.width_overflow() <= 0
    right_edges = visitor.page.evaluate(
        "[...document.querySelectorAll('.player-stop, #go, #seed, #facts, .example')]"
        ".map((e) => e.getBoundingClientRect().right)"
    )
    assert max(right_edges) <= width
    assert (visitor.page.locator("body.dark").count() == 1) == (scheme == "dark")


@pytest.mark.browser
def test_recordings_are_kept_only_where_asked_and_said_so(visit: Callable[..., Visitor], tmp_path: Path) -> None:
    bundle, folder = FakeBundle(tmp_path / "bundle", reply_seconds=1.0), tmp_path / "kept"
    page, url = start(bundle, "127.0.0.1", 0, recordings=folder)  # type: ignore[arg-type]
    try:
        visitor = visit(url)
        assert str(folder) in visitor.page.locator("#note").inner_text()
        visitor.page.locator("#examples .example").first.click()
        visitor.page.locator("#prompt [aria-label='Play']").wait_for()
        visitor.go("French")
        visitor.page.locator("#facts .kept").wait_for()
        (kept,) = folder.iterdir()
        assert kept.name in visitor.page.locator("#facts").inner_text()
        assert sorted(path.name for path in kept.iterdir()) == ["prompt.wav", "reply.json", "reply.wav"]
        description = json.loads((kept / "reply.json").read_text())
        assert description["language"] == "fr"
        assert str(description["seed"]) in visitor.page.locator("#facts").inner_text()
        assert len(read_audio(kept / "reply.wav")[0]) == 16000
    finally:
        page.close()


@pytest.mark.browser
def test_shipped_bundle_answers_a_french_prompt_in_english(
    bundle: Bundle, visit: Callable[..., Visitor], tmp_path: Path
) -> None:
    bundle.warm_up()
    prompt = next(example for example in bundle.examples if example.language == "fr")
    page, url = start(bundle, "127.0.0.1", 0)
    try:
        visitor = visit(url)
        visitor.upload(prompt.path)
        visitor.go("English")
        visitor.wait_for("playing")
        assert visitor.page.evaluate("window.tapped.state") == "running"
        before = visitor.page.evaluate("window.tapped.currentTime")
        visitor.wait_for("finished")
        assert visitor.page.evaluate("window.tapped.currentTime") > before + 0.5
        waveform, rate = visitor.download(tmp_path / "reply.wav")
        assert rate == bundle.sample_rate
        assert len(waveform) > rate
        spoken = sounding_seconds(waveform, rate)
        assert spoken > 0.5
        assert visitor.state("lost") == "0"
        assert float(visitor.state("played")) == pytest.approx(len(waveform) / rate, abs=0.05)
        assert sounding_seconds(visitor.heard()[1].reshape(-1), rate) > 0.7 * spoken
        assert "English" in visitor.page.locator("#facts").inner_text()
    finally:
        page.close()


def _write(path: Path, waveform: np.ndarray) -> Path:
    write_wav(path, waveform, 16000)
    return path


# ---- the parts that need no browser ---------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(0, 9000), min_size=1, max_size=40),
    st.lists(st.integers(0, 200), min_size=40, max_size=40),
)
def test_messages_carry_every_sample_once_in_order(lengths: list[int], waits: list[int]) -> None:
    clock = [0.0]
    feed = Feed("run", 16000)
    rng = np.random.default_rng(0)
    messages, parts = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(player_module.time, "monotonic", lambda: clock[0])
        for length, wait in zip(lengths, waits, strict=False):
            clock[0] += wait / 1000
            parts.append(rng.uniform(-1, 1, length).astype(np.float32))
            if message := feed.add(parts[-1]):
                messages.append(message)
        messages.append(feed.close("finished"))
    chunks: dict[int, str] = {}
    for message in messages:
        assert len(message["chunks"]) <= player_module.REPEATED_CHUNKS
        for number, data in message["chunks"]:
            assert chunks.setdefault(number, data) == data
    assert sorted(chunks) == list(range(messages[-1]["total"]))
    sent = b"".join(base64.b64decode(chunks[number]) for number in sorted(chunks))
    expected = np.round(np.concatenate(parts) * 32767).astype("<i2")
    assert sent == expected.tobytes()


def test_a_skipped_message_loses_nothing() -> None:
    feed = Feed("run", 16000)
    messages = []
    for _ in range(6):
        feed._last_message = -1.0
        messages.append(feed.add(np.ones(1600, np.float32)))
    kept = {number for message in messages[::2] for number, _ in message["chunks"]}
    kept |= {number for number, _ in feed.close("finished")["chunks"]}
    assert kept == set(range(6))


def test_a_turn_stopped_before_it_began_makes_no_sound(tmp_path: Path) -> None:
    bundle, runs = FakeBundle(tmp_path), Runs()
    runs.stop("queued")
    with runs.begin("queued") as stopped:
        turn = Turn(bundle, buzz(200, 1), 16000, Settings("en", seed=0), stopped)  # type: ignore[arg-type]
        assert list(turn) == []
    assert turn.reply is None
    assert bundle.closed == 1
    with runs.begin("queued") as stopped:  # a name is forgotten with its turn
        assert not stopped.is_set()


def test_closing_a_turn_closes_the_generation(tmp_path: Path) -> None:
    bundle = FakeBundle(tmp_path)
    turn = iter(Turn(bundle, buzz(200, 1), 16000, Settings("en", seed=0), threading.Event()))  # type: ignore[arg-type]
    next(turn)
    turn.close()  # type: ignore[attr-defined]
    assert bundle.closed == 1


def test_a_recording_appears_complete_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reply = Reply(buzz(200, 1), 16000, Settings("fr", seed=7), 0.1, 0.5, 3, "en", stopped=False)
    kept = recordings.save(tmp_path, buzz(150, 1), 16000, reply, {"format": 1})
    assert json.loads((kept / "reply.json").read_text())["seed"] == 7

    def full(*_: Any) -> None:
        raise TresseError("disk full")

    monkeypatch.setattr(recordings, "write_wav", full)
    with pytest.raises(TresseError):
        recordings.save(tmp_path, buzz(150, 1), 16000, reply, {})
    assert list(tmp_path.iterdir()) == [kept]


def test_a_taken_port_is_said_in_one_line(fake: tuple[FakeBundle, str]) -> None:
    bundle, url = fake
    with pytest.raises(TresseError, match="choose another port"):
        start(bundle, "127.0.0.1", urlsplit(url).port or 0)  # type: ignore[arg-type]


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
