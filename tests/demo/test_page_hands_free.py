"""Hands-free in the browser: a pause within what somebody says, and the reply after it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from slm.audio import resample, write_wav
from tests.browser import chromium
from tests.conftest import spoken_beginning
from tests.demo.pages import Visit, sounding_seconds
from tests.fake_bundle import FakeBundle

RATE = 16000


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium with a microphone that hears two halves of a turn, a second apart, and then nothing for long."""
    half, quiet = spoken_beginning("en")[: RATE * 3 // 2], np.zeros(RATE, np.float32)
    sound = np.concatenate([quiet, half, quiet, half, *[quiet] * 20])
    microphone = tmp_path_factory.mktemp("microphone") / "turn.wav"
    write_wav(microphone, resample(sound, RATE, 48000), 48000)
    with chromium(microphone) as running:
        yield running


@pytest.mark.browser
def test_a_reply_that_is_withdrawn_is_neither_seen_nor_heard(fake: tuple[FakeBundle, str], visit: Visit) -> None:
    bundle, url = fake
    bundle.reply_seconds = 1.5
    visitor = visit(url)
    visitor.page.locator(".settings summary").click()
    visitor.page.locator("[name=seed]").fill("5")
    visitor.page.locator(".free").click()
    visitor.page.wait_for_function("document.querySelectorAll('.reply .play:enabled').length === 1", timeout=60_000)
    visitor.page.locator(".free").click()
    visitor.wait_replies(1)
    assert bundle.closed == 1  # of the reply to the first half
    assert visitor.page.locator(".reply").count() == 1
    assert 0.3 < sounding_seconds(visitor.heard()[1].reshape(-1), 16000) < 1.6
    assert visitor.state("problem") == "false"
    assert int(visitor.page.locator(".reply").get_attribute("data-first-sound-ms")) > 400  # since the last word


@pytest.mark.browser
def test_who_asks_for_quick_replies_is_not_waited_for(fake: tuple[FakeBundle, str], visit: Visit) -> None:
    fake[0].reply_seconds = 0.5
    visitor = visit(fake[1])
    visitor.page.locator(".settings summary").click()
    visitor.page.locator("[name=patience]").select_option("quick")
    visitor.page.locator(".free").click()
    visitor.page.wait_for_function("document.querySelectorAll('.reply .play:enabled').length === 2", timeout=60_000)
    visitor.page.locator(".free").click()
    visitor.wait_replies(2)
    assert visitor.page.locator(".said").count() == 2  # the second within which the test above waits ended a turn
    assert visitor.state("problem") == "false"
