"""Two workers behind one address: the container's Caddyfile, run by Caddy."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client, handle_file

from demo.app import Served, start
from slm.audio import write_wav
from tests.demo.pages import Visit
from tests.extras import CADDY, needs_caddy
from tests.fake_bundle import FakeBundle, buzz, loudest_frequency
from tests.program import MANUAL, Program
from tests.talker import Talker
from train.tools.launch import free_port

CADDYFILE = Path(__file__).parents[2] / "demo" / "container" / "Caddyfile"
pytestmark = needs_caddy
COOKIE = "tresse_worker"


@dataclass
class Workers:
    """Those behind the proxy, and its address."""

    served: list[Served]
    url: str

    def sessions(self) -> list[set[str]]:
        """The names of the sessions of each worker."""
        return [{session.name for session in each.service.sessions()} for each in self.served]


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    folder = tmp_path_factory.mktemp("workers")
    started = [start(FakeBundle(folder / name, reply_seconds=0.6), "127.0.0.1", 0) for name in "ab"]  # type: ignore
    url = f"http://127.0.0.1:{free_port()}"
    known = {
        "TRESSE_HOST": url,
        "TRESSE_WORKERS": " ".join(address.removeprefix("http://").rstrip("/") for _, address in started),
        "CADDY_ADMIN": f"127.0.0.1:{free_port()}",
        "XDG_CONFIG_HOME": str(folder),
        "XDG_DATA_HOME": str(folder),
    }
    command = [str(CADDY), "run", "--config", str(CADDYFILE), "--adapter", "caddyfile"]
    process = subprocess.Popen(command, env={**os.environ, **known}, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 180
        while not answers(url):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield Workers([each for each, _ in started], url)
    finally:
        process.terminate()
        process.wait(20)
        for each, _ in started:
            each.close()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/tresse/health").status_code == 200
    except httpx.TransportError:
        return False


def test_pages_stay_with_their_worker_and_both_have_some(workers: Workers) -> None:
    talkers = [Talker(workers.url) for _ in range(12)]  # all with one worker: one in 2,048
    pitches = [120.0 + 10 * number for number in range(len(talkers))]
    for _ in range(2):
        for talker, pitch in zip(talkers, pitches, strict=True):
            talker.turn(lambda talker=talker, pitch=pitch: talker.say(buzz(pitch, 0.6)))
    for talker, pitch in zip(talkers, pitches, strict=True):
        assert loudest_frequency(talker.audio(1), 16000) == pytest.approx(pitch, abs=5)
        assert not talker.of("problem")
    first, second = workers.sessions()
    names = {talker.session for talker in talkers}
    assert names & first
    assert names & second
    assert not first & second
    for talker in talkers:
        assert talker.get("story", form="wav").status_code == 200
        talker.close()


def test_a_program_gets_the_story_of_its_socket_with_its_cookie(workers: Workers) -> None:
    for _ in range(4):
        program = Program(workers.url)
        program.settings(**MANUAL)
        program.turn(buzz(150.0, 0.6, 16000))
        assert program.socket.response is not None
        cookie = program.socket.response.headers["Set-Cookie"].partition(";")[0]
        assert cookie.startswith(f"{COOKIE}=")
        asked = {"session": program.of("session.created")[0]["session"]["id"], "form": "wav"}
        story = httpx.get(f"{workers.url}/tresse/story", params=asked, headers={"Cookie": cookie})
        assert story.content[:4] == b"RIFF"
        program.close()


def test_calls_of_a_client_are_one_conversation(workers: Workers, tmp_path: Path) -> None:
    write_wav(tmp_path / "prompt.wav", buzz(150.0, 0.6, 16000), 16000)
    for _ in range(3):
        client = Client(workers.url, verbose=False)
        for _ in range(2):
            client.predict(handle_file(str(tmp_path / "prompt.wav")), target="en", api_name="/continue_story")
        assert client.predict(api_name="/undo_turn") == 1
        client.close()


@pytest.mark.browser
def test_a_browser_talks_behind_the_proxy(workers: Workers, visit: Visit) -> None:
    for _ in range(3):
        visitor: Any = visit(workers.url)
        visitor.example()
        visitor.wait_replies(1)
        visitor.example()
        visitor.wait_replies(2)
        assert visitor.state("problem") == "false"
