"""Somebody speaks while the page does: it falls silent at once, and the next turn goes on from what was heard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from slm.audio import resample, write_wav
from tests.browser import chromium
from tests.conftest import spoken_beginning
from tests.demo.pages import Visit
from tests.fake_bundle import FakeBundle

RATE = 16000
PAUSE = 5
"""s between the two utterances: more than ends a turn."""
LONG = 20.0
"""s of the reply that is interrupted."""
SPOKEN = """
window.spoken = []; // s on the audio clock when the server said that somebody speaks
window.WebSocket = class extends WebSocket {
  constructor(...options) {
    super(...options);
    this.addEventListener("message", ({ data }) => {
      const speech = typeof data === "string" && JSON.parse(data).type === "speech";
      if (speech) window.spoken.push(window.tapped?.currentTime ?? 0);
    });
  }
};
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium with a microphone that hears two utterances, some seconds apart, and then nothing for long."""
    utterance, quiet = spoken_beginning("en")[: RATE * 3 // 2], np.zeros(RATE, np.float32)
    sound = np.concatenate([quiet, utterance, *[quiet] * PAUSE, utterance, *[quiet] * 60])
    microphone = tmp_path_factory.mktemp("microphone") / "turns.wav"
    write_wav(microphone, resample(sound, RATE, 48000), 48000)
    with chromium(microphone) as running:
        yield running


@pytest.mark.browser
def test_who_speaks_while_it_speaks_is_listened_to(fake: tuple[FakeBundle, str], visit: Visit) -> None:
    bundle, url = fake
    bundle.reply_seconds, bundle.real_time_factor = LONG, 0.5  # seconds of it wait to be heard
    visitor = visit(url, script=SPOKEN)
    page = visitor.page
    page.locator(".settings summary").click()
    page.locator("[name=max_seconds]").fill(str(int(LONG)))
    page.locator(".free").click()
    visitor.wait_for("speaking")
    assert "Talk whenever you like" in visitor.status()
    bundle.reply_seconds = 1.0  # of the next
    page.wait_for_function("window.spoken.length === 2")
    stopped = page.locator(".reply .facts", has_text="stopped early")
    stopped.wait_for()
    page.wait_for_function("document.querySelectorAll('.reply .play:enabled').length === 2", timeout=60_000)
    page.locator(".free").click()
    visitor.wait_for("idle")
    assert bundle.closed == 1
    assert bundle.active == 0
    assert page.locator(".said").count() == page.locator(".reply").count() == 2
    assert stopped.count() == 1  # the second is complete
    assert page.locator(".turn").first.locator(".facts", has_text="stopped early").count() == 1
    times, _ = visitor.heard()
    interrupted, speaks_again = page.evaluate("window.spoken[1]"), times[np.argmax(np.diff(times)) + 1]
    first = times[times < speaks_again]
    assert interrupted - 0.5 < first[-1] < interrupted + 0.3  # it spoke until then, and fades in 64 ms
    heard = float(stopped.inner_text().split(" s")[0])
    assert heard == pytest.approx(interrupted - first[0], abs=0.3)
    assert 1.0 < heard < LONG / 2
    assert visitor.state("problem") == "false"
