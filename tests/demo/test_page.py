"""The page, driven in headless Chromium: what is asserted is the sound that reaches the loudspeaker.

A tap in front of the audio destination (`TAP`) keeps every block that is played, with its time on the audio clock. Tests of
exact timing use a stand-in for the bundle; two use the shipped bundle. What needs no browser is in test_conversation.py.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from demo import archive
from tests.demo.pages import (
    LOUD,
    MICROPHONE_PITCH,
    Visit,
    Visitor,
    sounding_seconds,
)
from tests.fake_bundle import FakeBundle, buzz, loudest_frequency

CLICK_AND_TELL_TIME = """(selector) => {
  document.querySelector(selector).click();
  return window.tapped.currentTime;
}"""


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
