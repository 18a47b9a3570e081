"""What the tests of this room share."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from tests.fake_bundle import loudest_frequency

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
STATES = """
(() => {
  window.states = [];  // [state, what the status says then]
  new MutationObserver((changes) => {
    for (const { target } of changes)
      if (target.matches(".talk")) window.states.push([target.dataset.state, document.querySelector(".status")?.innerText]);
  }).observe(document, { subtree: true, attributes: true, attributeFilter: ["data-state"] });
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

    def wait_passed(self, state: str, since: int = 0, seconds: float = 60) -> str:
        """Wait until the page has been in a state, however shortly, since `since` changes of it (`changes`): its status."""
        self.page.wait_for_function(
            "([state, since]) => window.states.slice(since).some(([name]) => name === state)",
            arg=[state, since],
            timeout=1000 * seconds,
        )
        text = "([state, since]) => window.states.slice(since).find(([name]) => name === state)[1]"
        return str(self.page.evaluate(text, [state, since]))

    def changes(self) -> int:
        """How often the page's state has changed so far."""
        return int(self.page.evaluate("window.states.length"))

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
        self,
        url: str,
        width: int = 1200,
        height: int = 900,
        scheme: str = "light",
        locale: str = "en-GB",
        script: str = "",
        **options: Any,
    ) -> Visitor:
        permissions = options.pop("permissions", ["microphone"])
        context = self.browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            locale=locale,
            permissions=permissions,
            accept_downloads=True,
            **options,
        )
        self.contexts.append(context)
        context.set_default_timeout(60_000)
        context.add_init_script(TAP)
        context.add_init_script(STATES)
        context.add_init_script(script)
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


def sounding_seconds(waveform: np.ndarray, sample_rate: int) -> float:
    """s of a waveform in which there is sound, counted in blocks."""
    blocks = waveform[: len(waveform) // BLOCK * BLOCK].reshape(-1, BLOCK)
    return float((np.sqrt((blocks**2).mean(1)) > LOUD).sum()) * BLOCK / sample_rate
