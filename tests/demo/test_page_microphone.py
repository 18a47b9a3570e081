"""The microphone of the page ends, is muted or is interrupted; and the controls, by pointer, key and click."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from tests.demo.pages import MICROPHONE_PITCH, Visit, Visitor
from tests.fake_bundle import FakeBundle, FakePromptStream

WATCHED = """
window.streams = [];
window.contexts = [];
window.delay = 0;
const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
navigator.mediaDevices.getUserMedia = async (wanted) => {
  await new Promise((done) => setTimeout(done, window.delay));
  if (window.refused) throw new DOMException("no", window.refused);
  const stream = await ask(wanted);
  window.streams.push(stream);
  return stream;
};
window.AudioContext = class extends AudioContext {
  constructor(...options) {
    super(...options);
    window.contexts.push(this);
  }
};
window.track = () => window.streams.at(-1).getAudioTracks()[0];
"""
BREAKS = {
    "ended": "window.track().stop()",
    "muted": "Object.defineProperty(window.track(), 'muted', { value: true })",
    "suspended": "contexts.at(-1).resume = () => Promise.resolve(); contexts.at(-1).suspend()",
}


@pytest.fixture
def visitor(fake: tuple[FakeBundle, str], visit: Visit) -> Visitor:
    fake[0].reply_seconds = 0.5
    return visit(fake[1], script=WATCHED)


def streams(visitor: Visitor) -> int:
    """How often the microphone was opened."""
    return int(visitor.page.evaluate("window.streams.length"))


@pytest.mark.browser
@pytest.mark.parametrize("kind", BREAKS)
def test_hands_free_opens_a_microphone_that_fails_anew(visitor: Visitor, kind: str) -> None:
    visitor.page.locator(".free").click()
    visitor.page.wait_for_function("window.streams.length === 1")
    visitor.page.wait_for_timeout(1000)
    visitor.page.evaluate(BREAKS[kind])
    visitor.page.wait_for_function("window.streams.length === 2")
    visitor.page.wait_for_function("window.contexts.at(-1).state === 'running'")
    visitor.page.wait_for_timeout(500)
    assert (visitor.state("free"), visitor.state("problem")) == ("true", "false")
    visitor.page.wait_for_function(  # and again and again: now it says so
        "() => { window.track().stop(); return document.querySelector('.talk[data-problem=true][data-free=false]'); }",
        polling=200,
    )
    assert "microphone is gone" in visitor.status()
    assert visitor.page.locator(".free").get_attribute("aria-pressed") == "false"


@pytest.mark.browser
def test_hands_free_says_why_the_microphone_does_not_come_back(visitor: Visitor) -> None:
    visitor.page.locator(".free").click()
    visitor.page.wait_for_function("window.streams.length === 1")
    visitor.page.wait_for_timeout(500)
    visitor.page.evaluate("window.refused = 'NotFoundError'; window.track().stop()")
    visitor.page.locator(
        ".talk[data-problem=true][data-free=false] .status", has_text="No microphone was found"
    ).wait_for()


@pytest.mark.browser
@pytest.mark.parametrize(
    ("kind", "words"), [("ended", "is gone"), ("muted", "is muted"), ("suspended", "was interrupted")]
)
def test_who_holds_the_button_is_told_and_the_next_turn_is_heard(visitor: Visitor, kind: str, words: str) -> None:
    visitor.page.locator(".press").hover()
    visitor.page.mouse.down()
    visitor.wait_for("recording")
    visitor.page.evaluate(BREAKS[kind])
    visitor.page.locator(".talk[data-problem=true] .status", has_text=words).wait_for()
    visitor.page.mouse.up()
    assert visitor.state() == "idle"
    visitor.hold(1.5)
    visitor.wait_replies(1)
    assert streams(visitor) == 2
    assert visitor.state("problem") == "false"
    said = visitor.page.locator(".said .facts").inner_text()
    assert float(said.split()[0]) > 0.8, said


@pytest.mark.browser
@pytest.mark.parametrize("kind", BREAKS)
def test_a_microphone_that_failed_between_turns_is_opened_anew(visitor: Visitor, kind: str) -> None:
    visitor.hold(1.5)
    visitor.wait_replies(1)
    visitor.page.evaluate(BREAKS[kind])
    visitor.page.wait_for_timeout(300)
    visitor.hold(1.5)
    visitor.wait_replies(2)
    assert streams(visitor) == 2
    assert visitor.state("problem") == "false"


@pytest.mark.browser
@pytest.mark.parametrize("name", ["suspended", "interrupted"])
def test_the_next_gesture_lets_all_sound_run_again(visitor: Visitor, name: str) -> None:
    visitor.hold(1.5)
    visitor.wait_replies(1)
    assert visitor.page.evaluate("window.contexts.length") == 2  # loudspeaker and microphone
    visitor.page.evaluate(
        """async (name) => {
          for (const context of window.contexts) {
            await context.suspend();
            const running = () => Object.getOwnPropertyDescriptor(BaseAudioContext.prototype, "state").get.call(context);
            Object.defineProperty(context, "state", { get: () => (running() === "suspended" ? name : running()) });
          }
        }""",
        name,
    )
    assert visitor.page.evaluate("window.contexts.map((context) => context.state)") == [name, name]
    visitor.page.mouse.click(5, 5)
    visitor.page.wait_for_function("window.contexts.every((context) => context.state === 'running')")
    visitor.forget_sound()
    visitor.hold(1.5)
    visitor.wait_replies(2)
    assert streams(visitor) == 1
    assert visitor.pitch() == pytest.approx(MICROPHONE_PITCH, abs=10)


@pytest.mark.browser
def test_a_server_that_is_slow_gets_few_large_frames(
    visitor: Visitor, fake: tuple[FakeBundle, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hear, lengths = FakePromptStream.push, []

    def slow(stream: FakePromptStream, samples: np.ndarray) -> np.ndarray:
        lengths.append(len(samples))
        time.sleep(0.3)
        return hear(stream, samples)

    monkeypatch.setattr(FakePromptStream, "push", slow)
    visitor.hold(3.0)
    visitor.wait_replies(1)
    assert len(lengths) < 3.0 / 0.04 / 2
    assert sum(lengths) / 16000 > 2.5
    assert visitor.state("problem") == "false"


# ---- controls -------------------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_the_talk_button_works_on_click(visitor: Visitor) -> None:
    for turn in (1, 2):
        visitor.page.evaluate("document.querySelector('.press').click()")
        visitor.wait_for("recording")
        assert "Press again" in visitor.status()
        assert visitor.page.locator(".press .label").inner_text() == "Press to finish"
        visitor.page.wait_for_timeout(1500)
        visitor.page.evaluate("document.querySelector('.press').click()")
        visitor.wait_replies(turn)
    visitor.page.locator(".press").click()  # a short press is one press, though a click follows it
    visitor.wait_for("recording")
    visitor.page.wait_for_timeout(1500)
    assert visitor.state() == "recording"
    visitor.page.locator(".press").focus()
    visitor.page.keyboard.press("Enter")
    visitor.wait_replies(3)
    assert visitor.state("problem") == "false"


@pytest.mark.browser
@pytest.mark.parametrize("way", ["hold", "tap", "click", "key"])
def test_the_first_press_while_the_browser_asks_is_no_short_recording(visitor: Visitor, way: str) -> None:
    visitor.page.evaluate("window.delay = 2500")
    button = visitor.page.locator(".press")
    if way == "hold":
        button.hover()
        visitor.page.mouse.down()
        visitor.page.wait_for_timeout(800)
        assert visitor.state() == "asking"
        visitor.page.mouse.up()
    elif way == "key":
        button.focus()
        visitor.page.keyboard.down(" ")
        visitor.page.wait_for_timeout(800)
        visitor.page.evaluate("window.dispatchEvent(new Event('blur'))")  # the question has the focus
        visitor.page.keyboard.up(" ")
    elif way == "tap":
        button.click()
    else:
        button.evaluate("button => button.click()")
    assert visitor.state() == "asking"
    assert "allow it" in visitor.status()
    if way in ("tap", "click"):  # it listens until the next press
        visitor.wait_for("recording")
        visitor.page.wait_for_timeout(1200)
        button.evaluate("button => button.click()")
    else:
        visitor.page.locator(".talk[data-problem=false] .status", has_text="is ready: hold").wait_for()
        assert visitor.state() == "idle"
        visitor.hold(1.2)
    visitor.wait_replies(1)
    assert (visitor.state("problem"), streams(visitor)) == ("false", 1)


@pytest.mark.browser
def test_a_press_while_the_browser_asks_can_be_taken_back(visitor: Visitor) -> None:
    visitor.page.evaluate("window.delay = 1500")
    for _ in range(2):
        visitor.page.evaluate("document.querySelector('.press').click()")
    visitor.page.wait_for_function("window.streams.length === 1")
    visitor.page.wait_for_timeout(500)
    assert visitor.state() == "idle"
    for _ in range(2):
        visitor.page.evaluate("document.querySelector('.free').click()")
    visitor.page.wait_for_timeout(500)
    assert (visitor.state(), visitor.state("free"), visitor.state("problem")) == ("idle", "false", "false")


FOCUS = """() => {
  const at = document.activeElement;
  if (!at.closest(".talk")) return null;
  const shown = [at, at.nextElementSibling, at.closest("label")].filter(Boolean).map((e) => getComputedStyle(e));
  const outlined = shown.some((s) => s.outlineStyle !== "none" && parseFloat(s.outlineWidth) >= 2);
  return [at.tagName + "." + at.className + (at.name ?? ""), outlined, Math.min(at.getBoundingClientRect().width, 99)];
}"""


def tab_through(visitor: Visitor) -> dict[str, Any]:
    """Every control that the Tab key reaches: whether its focus is visible."""
    reached = {}
    visitor.page.evaluate("document.activeElement.blur()")
    for _ in range(80):
        visitor.page.keyboard.press("Tab")
        if (at := visitor.page.evaluate(FOCUS)) is not None:
            reached[at[0]] = at[1]
    return reached


@pytest.mark.browser
def test_every_control_is_reached_by_key_with_a_visible_focus(visitor: Visitor) -> None:
    visitor.target("both")
    visitor.example()
    visitor.wait_replies(2)
    visitor.page.locator(".settings summary").click()
    reached = tab_through(visitor)
    assert all(reached.values()), reached
    names = " ".join(reached)
    for control in (
        "press",
        "free",
        "again",
        "undo",
        "new",
        "download",
        "play",
        "choose",
        "CANVAS.strip",
        "SUMMARY",
        "seed",
        "target",
    ):
        assert control in names, control
    assert any(name.startswith("INPUT") and not name.split(".")[1] for name in reached)  # the file to upload


@pytest.mark.browser
def test_a_strip_is_heard_from_a_point_that_keys_choose(fake: tuple[FakeBundle, str], visit: Visit) -> None:
    bundle, url = fake
    bundle.reply_seconds = 3.0
    visitor = visit(url)
    visitor.example()
    visitor.wait_replies(1)
    strip = visitor.page.locator(".reply .strip")
    visitor.page.locator(".reply .play").focus()
    visitor.page.keyboard.press("Shift+Tab")
    assert strip.evaluate("strip => strip === document.activeElement")
    for _ in range(4):
        visitor.page.keyboard.press("ArrowRight")
    assert strip.get_attribute("aria-valuetext") == "2.0 s"
    for press in (lambda: visitor.page.keyboard.press("Enter"), lambda: strip.evaluate("strip => strip.click()")):
        visitor.forget_sound()
        press()
        visitor.wait_for("speaking")
        visitor.wait_for("idle")
        times = visitor.heard()[0]
        assert 0.4 < times[-1] - times[0] < 1.2  # of 3 s, from 2 s on
