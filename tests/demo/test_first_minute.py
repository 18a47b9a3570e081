"""What a newcomer meets: an example dialogue, the check of the voice, words about what is wrong; and the page on phones."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import numpy as np
import pytest
import soundfile
from PIL import Image

from demo.app import start
from demo.dialogue import Dialogues
from demo.icons import SIZES, icon
from demo.routes import WEB
from demo.service import Service
from slm.audio import write_wav
from slm.errors import TresseError
from tests.bundles import BRAID
from tests.demo.pages import Visit, Visitor, sounding_seconds
from tests.fake_bundle import FakeBundle, buzz

LOUDNESS = """
const make = AudioContext.prototype.createMediaStreamSource;
AudioContext.prototype.createMediaStreamSource = function (stream) {
  const source = make.call(this, stream);
  window.gain = new GainNode(this, { gain: window.loudness ?? 1 });
  source.connect(window.gain);
  const noise = this.createBuffer(1, this.sampleRate, this.sampleRate);
  noise.copyToChannel(Float32Array.from({ length: noise.length }, () => 2 * Math.random() - 1), 0);
  window.noise = new GainNode(this, { gain: window.noisiness ?? 0 });
  const hiss = new AudioBufferSourceNode(this, { buffer: noise, loop: true });
  hiss.connect(window.noise);
  hiss.start();
  const both = new GainNode(this);
  window.gain.connect(both);
  window.noise.connect(both);
  return both;
};
window.sounds = (loudness, noisiness) => {
  Object.assign(window, { loudness, noisiness });
  if (window.gain) [window.gain.gain.value, window.noise.gain.value] = [loudness, noisiness];
};
"""
PHONE = {"width": 390, "has_touch": True, "is_mobile": True}
HANDHELD = {
    "phone": PHONE,
    "lying": {**PHONE, "width": 844, "height": 390},
    "tablet": {**PHONE, "width": 820, "height": 1180},
    "desktop": {},
}
LOCKED = """
window.contexts = [];
window.AudioContext = class extends AudioContext {
  constructor(...options) {
    super(...options);
    window.contexts.push(this);
  }
};
window.locks = [];
Object.defineProperty(navigator, "wakeLock", { value: { request: async () => {
  const lock = { released: false, release: async () => (lock.released = true) };
  window.locks.push(lock);
  return lock;
} } });
window.awake = () => window.locks.filter((lock) => !lock.released).length;
window.show = (visible) => {
  Object.defineProperty(document, "hidden", { value: !visible, configurable: true });
  Object.defineProperty(document, "visibilityState", { value: visible ? "visible" : "hidden", configurable: true });
  if (!visible) window.locks.forEach((lock) => (lock.released = true)); // as browsers do
  document.dispatchEvent(new Event("visibilitychange"));
};
"""
TARGETS = """() => [...document.querySelectorAll(
    ".talk button, .talk a, .talk input, .talk select, .talk summary, .talk canvas[tabindex]")]
  .filter((e) => e.checkVisibility({ opacityProperty: false }))
  .map((e) => [e.tagName + "." + e.className + (e.name ?? ""), (e.closest("label") ?? e).getBoundingClientRect()])
  .map(([name, box]) => [name, box.width, box.height])"""
HIDDEN_FOCUS = """() => [...document.querySelectorAll("#panel-talk :is(button, a, input, select, summary)")]
  .filter((e) => e.checkVisibility() && !e.disabled && !e.closest(".dock"))
  .filter((e) => {
    window.scrollTo(0, 0);
    e.focus();
    return document.activeElement === e
      && e.getBoundingClientRect().bottom > document.querySelector(".dock").getBoundingClientRect().top;
  })
  .map((e) => e.tagName + "." + e.className)"""
WCAG = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}}


def violations(visitor: Visitor) -> list[str]:
    """What axe-core finds wrong with the page as it is: the rule, the element, why."""
    from axe_playwright_python.sync_playwright import Axe

    response: dict[str, Any] = Axe().run(visitor.page, options=WCAG).response
    assert len(response["passes"]) > 10
    return [
        f"{rule['id']}: {node['html'][:120]} {node['failureSummary']}"
        for rule in response["violations"]
        for node in rule["nodes"]
    ]


def noisy(snr: float) -> np.ndarray:
    """A second without a voice, then a buzz of 2 s at 16 kHz, in noise so many dB below it."""
    told = np.concatenate([np.zeros(16000, np.float32), buzz(200, 2.0)])
    power = float((told[np.abs(told) > 0.05] ** 2).mean())
    return told + np.random.default_rng(0).normal(0, np.sqrt(power / 10 ** (snr / 10)), len(told)).astype(np.float32)


@pytest.fixture
def measured(tmp_path: Path) -> Iterator[str]:
    """The address of a page whose bundle has short replies, and the measurements of the shipped one."""
    bundle = FakeBundle(tmp_path / "bundle", reply_seconds=0.5, real_time_factor=0.05)
    bundle.info["metrics"] = json.loads((BRAID / "bundle.json").read_text(encoding="utf-8"))["metrics"]
    page, url = start(bundle, "127.0.0.1", 0)  # type: ignore[arg-type]
    yield url
    page.close()


@pytest.mark.browser
def test_a_newcomer_hears_an_example_and_learns_how_the_voice_comes_through(
    fake: tuple[FakeBundle, str], visit: Visit, tmp_path: Path
) -> None:
    fake[0].real_time_factor = 0.05
    visitor = visit(fake[1], script=LOUDNESS)
    page = visitor.page
    assert "It is no assistant" in page.locator("header p").inner_text()
    page.locator(".hear-dialogue").click()
    page.locator(".dialogue li").nth(1).wait_for()
    assert page.locator(".dialogue .badge").all_inner_texts() == ["English", "French"]
    visitor.wait_for("speaking")
    visitor.wait_for("idle")
    assert sounding_seconds(visitor.heard()[1].reshape(-1), 16000) > 2.0  # of both, with the pauses in them
    advice = page.locator(".voice-result")
    for gain, noise, now, words in (
        (1.0, 0.0, "", "You come through well"),
        (1.0, 0.003, "", "You come through well"),
        (0.003, 0.0, "Hardly anything is heard", "You are very quiet"),
        (60.0, 0.0, "Too loud for the microphone", "You are too loud"),
        (1.0, 0.08, "much noise", ""),  # the check may find no silence in this buzz to compare it with
    ):
        page.evaluate("values => window.sounds(...values)", [gain, noise])
        page.locator(".check-voice").click()
        page.locator(".level").wait_for()
        advice.wait_for(state="hidden")
        advice.wait_for()
        assert words in advice.inner_text()
        visitor.page.locator(".press").hover()
        visitor.page.mouse.down()
        visitor.wait_for("recording")
        if now:  # while there is time to do something about it
            page.locator(".status", has_text=now).wait_for()
        else:
            page.wait_for_timeout(2000)
            assert "Let go" in visitor.status()
        visitor.page.mouse.up()
        visitor.wait_for("idle")
        page.locator(".new").click()
        page.locator(".check-voice").wait_for()
    for snr, words in ((30.0, ""), (8.0, "much noise")):
        write_wav(tmp_path / "told.wav", noisy(snr), 16000)
        visitor.upload(tmp_path / "told.wav")
        page.locator(".said").last.wait_for()
        assert words in " ".join(page.locator(".said .advice").all_inner_texts())
        assert bool(page.locator(".said .advice").count()) == bool(words)
        visitor.wait_replies(1)
        page.locator(".new").click()
        page.locator(".said").wait_for(state="detached")


@pytest.mark.browser
@pytest.mark.parametrize(
    ("locale", "scheme", "device"),
    [
        ("en-GB", "light", "phone"),
        ("fr-FR", "dark", "phone"),
        ("fr-FR", "light", "lying"),
        ("en-GB", "dark", "tablet"),
        ("en-GB", "dark", "desktop"),
        ("fr-FR", "light", "desktop"),
    ],
)
def test_everybody_can_use_the_page_and_a_thumb_is_enough(
    measured: str, visit: Visit, tmp_path: Path, locale: str, scheme: str, device: str
) -> None:
    visitor = visit(measured, locale=locale, scheme=scheme, **HANDHELD[device])
    page = visitor.page
    page.locator(".hear-dialogue").click()
    page.locator(".dialogue li").nth(1).wait_for()
    page.locator(".check-voice").click()
    page.locator(".voice-result").wait_for()
    assert violations(visitor) == []
    write_wav(tmp_path / "high.wav", buzz(700, 2), 16000)
    visitor.upload(tmp_path / "high.wav")
    visitor.wait_replies(1)
    page.locator("[name=target][value=both]").check(force=True)
    visitor.example()
    visitor.wait_replies(3)
    page.locator(".settings summary").click()
    assert violations(visitor) == []
    if device != "desktop":
        height = page.viewport_size["height"]
        assert [target for target in page.evaluate(TARGETS) if min(target[1:]) < 44] == []
        assert page.evaluate(HIDDEN_FOCUS) == []
        assert page.locator(".dock").bounding_box()["height"] < 0.2 * height
        for at in (0, 600):  # wherever one has scrolled to
            page.evaluate("at => window.scrollTo(0, at)", at)
            for name in (".press", ".free"):
                box = page.locator(name).bounding_box()
                assert 0.75 * height < box["y"] + box["height"] <= height
                assert box["height"] >= 44
        assert visitor.width_overflow() <= 0
    page.locator("#tab-results").click()
    page.locator("#panel-results table").first.wait_for()
    assert violations(visitor) == []


@pytest.mark.browser
def test_a_screen_that_was_locked_costs_nothing_and_stays_on_while_somebody_talks(
    fake: tuple[FakeBundle, str], visit: Visit
) -> None:
    fake[0].reply_seconds = 0.5
    visitor = visit(fake[1], script=LOCKED, **PHONE)
    page = visitor.page
    visitor.example()
    page.wait_for_function("window.awake() === 1")
    visitor.wait_replies(1)
    page.wait_for_function("window.awake() === 0")
    page.locator(".free").click()
    page.wait_for_function("window.awake() === 1 && window.contexts.length === 2")
    page.evaluate("window.show(false)")
    for _ in range(2):  # the first may come while the microphone is still being opened, which wakes it once
        page.evaluate("Promise.all(window.contexts.map((context) => context.suspend()))")
        page.wait_for_timeout(1000)
    page.wait_for_timeout(1500)  # longer than a microphone may be silent before it is given up
    assert page.evaluate("window.contexts.map((context) => context.state)") == ["suspended", "suspended"]
    page.evaluate("window.show(true)")
    page.wait_for_function("window.contexts.every((context) => context.state === 'running')")
    page.wait_for_function("window.awake() === 1")
    assert (visitor.state("free"), visitor.state("problem")) == ("true", "false")
    page.wait_for_timeout(1500)
    assert page.evaluate("window.contexts.length") == 2  # the microphone was not opened anew
    page.locator(".free").click()
    page.wait_for_function("window.awake() === 0")


@pytest.mark.browser
def test_a_browser_finds_nothing_wrong_with_the_manifest_and_can_install_the_page(
    fake: tuple[FakeBundle, str], visit: Visit
) -> None:
    page = visit(fake[1]).page
    devtools = page.context.new_cdp_session(page)
    told = devtools.send("Page.getAppManifest")
    assert told["errors"] == []
    assert told["url"] == f"{fake[1]}tresse/web/manifest.json"
    manifest = json.loads(told["data"])
    assert urljoin(told["url"], manifest["start_url"]) == fake[1]
    assert {"192x192", "512x512"} <= {entry["sizes"] for entry in manifest["icons"]}
    for entry in manifest["icons"]:
        answer = page.request.get(urljoin(told["url"], entry["src"]))
        assert (answer.status, answer.headers["content-type"]) == (200, entry["type"])
        with Image.open(io.BytesIO(answer.body())) as image:
            assert "x".join(map(str, image.size)) == entry["sizes"]
    errors = devtools.send("Page.getInstallabilityErrors")["installabilityErrors"]
    assert {error["errorId"] for error in errors} <= {"in-incognito"}  # which the browser of the tests is


# ---- the parts that need no browser ---------------------------------------------------------------------------------


def test_the_dialogue_is_made_once_and_goes_on_in_another_language(tmp_path: Path) -> None:
    bundle = FakeBundle(tmp_path / "bundle", real_time_factor=0.01)
    service = Service(bundle, 2)  # type: ignore[arg-type]
    dialogues = Dialogues(service)
    for asked, spoken in (("fr", ["fr", "en"]), ("en", ["en", "fr"]), ("de", ["en", "fr"]), ("fr", ["fr", "en"])):
        dialogue = dialogues.get(asked)
        assert [part["language"] for part in dialogue.parts] == spoken
        sound, rate = soundfile.read(io.BytesIO(dialogue.sound))
        assert len(sound) / rate == pytest.approx(2.0 + 0.5 + 3.0)
    assert service.waiting_line.taken == 2
    bundle.examples.clear()
    with pytest.raises(TresseError, match="begin a story yourself"):
        Dialogues(service).get("en")


def test_the_icons_are_the_logo_and_those_that_the_manifest_names() -> None:
    named = json.loads((WEB / "manifest.json").read_text(encoding="utf-8"))["icons"]
    for entry in named:
        with Image.open(WEB / entry["src"]) as image:
            assert "x".join(map(str, image.size)) == entry["sizes"]
    for size in SIZES:
        with Image.open(WEB / f"icon-{size}.png") as image:
            drawn, kept = np.asarray(icon(size), float), np.asarray(image.convert("RGB"), float)
        assert np.abs(drawn - kept).mean() < 1.0
