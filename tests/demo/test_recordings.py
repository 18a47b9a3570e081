"""Turns kept on disk (`--recordings`): whole, found by language, and private to the session that spoke them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import soundfile

from demo import recordings, sessions
from demo.app import start
from demo.service import KEEP_SECONDS
from slm.errors import TresseError
from tests.fake_bundle import FakeBundle, buzz
from tests.talker import Talker

LOW, HIGH = 150.0, 240.0


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server that keeps turns: its address and the folder."""
    bundle, folder = FakeBundle(tmp_path / "bundle", reply_seconds=0.5, real_time_factor=0.05), tmp_path / "kept"
    page, url = start(bundle, "127.0.0.1", 0, recordings=folder)  # type: ignore[arg-type]
    yield url, folder
    page.close()


def test_recordings_are_kept_whole_and_found_by_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "kept"
    bundle = FakeBundle(tmp_path / "bundle", reply_seconds=0.5, real_time_factor=0.05)
    page, url = start(bundle, "127.0.0.1", 0, recordings=folder)  # type: ignore[arg-type]
    try:
        talker = Talker(url)
        for pitch, target in ((LOW, "same"), (LOW, "both"), (HIGH, "same")):
            talker.do("settings", target=target)
            talker.turn(lambda pitch=pitch: talker.say(buzz(pitch, 1.0)))
        talker.eventually(lambda: len(talker.of("saved")) == 3)
        found = talker.get("recordings").json()
        assert len(found) == 3
        assert {part["file"] for turn in found for part in turn["parts"]} >= {"prompt.wav", "reply-2-fr.wav"}
        assert len(talker.get("recordings", language="fr").json()) == 2
        assert len(talker.get("recordings", language="en").json()) == 2
        name = talker.of("saved")[0]["name"]
        data, rate = soundfile.read(io.BytesIO(talker.get(f"recordings/{name}/reply-1-en.wav").content))
        assert len(data) == round(0.5 * rate)
        for bad in (f"{name}/turn.json", f"..%2f{name}/prompt.wav", "x/prompt.wav"):
            assert talker.get(f"recordings/{bad}").status_code in (400, 404)
        described = json.loads((folder / name / "turn.json").read_text())
        assert (described["replies"][0]["languages"], described["prompt"]["in_domain"]) == (["en"], True)
        before = sorted(folder.iterdir())

        def full(*_: Any) -> None:
            raise TresseError("cannot write: free some space there")

        monkeypatch.setattr(recordings, "write_wav", full)
        talker.turn(lambda: talker.say(buzz(LOW, 1.0)))
        assert "free some space" in talker.of("problem")[-1]["text"]
        assert talker.of("done")[-1]["seconds"] == 0.5  # the reply is there all the same
        assert sorted(folder.iterdir()) == before
        talker.close()
    finally:
        page.close()


def test_without_a_folder_nothing_is_kept(served: tuple[FakeBundle, str]) -> None:
    _, url = served
    talker = Talker(url)
    assert "--recordings" in talker.get("recordings").json()["problem"]
    talker.close()


# ---- private to their session ----------------------------------------------------------------------------------------


def speak(talker: Talker, pitch: float = LOW) -> str:
    """Say something and wait until it is kept: its name."""
    before = len(talker.of("saved"))
    talker.turn(lambda: talker.say(buzz(pitch, 1.0)))
    return str(talker.wait("saved", before + 1)["name"])


def names(talker: Talker, **asked: str) -> list[str]:
    return [turn["name"] for turn in talker.get("recordings", **asked).json()]


def test_recordings_are_private_to_their_session(kept: tuple[str, Path]) -> None:
    url, folder = kept
    ada, ben = Talker(url), Talker(url)
    first, second, his = speak(ada), speak(ada, HIGH), speak(ben)
    assert (names(ada), names(ben)) == ([second, first], [his])
    for language in ("en", "fr", "", "xx"):
        assert set(names(ben, language=language)) <= {his}
    for file in ("prompt.wav", "reply-1-en.wav"):
        assert ada.get(f"recordings/{first}/{file}").status_code == 200
        assert ada.get(f"recordings/{first}/{file}").headers["cache-control"] == "no-store"
        answer = ben.get(f"recordings/{first}/{file}")
        assert (answer.status_code, answer.json()) == (
            400,
            {"problem": "there is no such recording: reload the page"},
        )
        guess = ben.get(f"recordings/{first.rsplit('-', 1)[0]}-000000/{file}")
        assert guess.json() == answer.json()  # nor does it say which there are
    label = json.loads((folder / first / "turn.json").read_text())["conversation"]
    strangers = [{}, {"session": ""}, {"session": "0" * 32}, {"session": label}, {"tab": label}, {"session": first}]
    for asked in [*strangers, {"session": ada.session[:8]}, {"session": ada.session.upper() + " "}]:
        for path in ("recordings", f"recordings/{first}/prompt.wav"):
            answer = httpx.get(f"{url}tresse/{path}", params=asked)
            assert (answer.status_code, list(answer.json())) == (400, ["problem"])
    assert not any(ada.session[:8] in path.read_text() for path in folder.glob("*/turn.json"))
    for path in (folder / first / "prompt.wav", folder / first / "turn.json"):
        assert httpx.get(f"{url}gradio_api/file={path}").status_code in (403, 404)
    ada.close()
    ben.close()


def test_a_program_cannot_take_a_recording_for_its_prompt(kept: tuple[str, Path]) -> None:
    url, folder = kept
    ada = Talker(url)
    name = speak(ada)
    prompt = {"path": str(folder / name / "prompt.wav"), "meta": {"_type": "gradio.FileData"}}
    inputs = [prompt, "same", -1, 0.7, 0.9, 3, ""]
    answer = httpx.post(f"{url}gradio_api/call/continue_story", json={"data": inputs})
    if answer.status_code == 200:
        said = httpx.get(f"{url}gradio_api/call/continue_story/{answer.json()['event_id']}", timeout=30).text
        assert "event: error" in said
        assert "event: complete" not in said
    ada.close()


def test_what_is_forgotten_or_lay_there_before_is_nobodys(
    kept: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = kept
    ada = Talker(url)
    name = speak(ada)
    ada.do("new")
    assert names(ada) == [name]  # it is the session's still
    (folder / name).rename(folder / "20240101-000000-en-abcdef")
    assert names(ada) == []
    assert ada.get("recordings/20240101-000000-en-abcdef/prompt.wav").status_code == 400
    (folder / "20240101-000000-en-abcdef").rename(folder / name)
    session = ada.session
    ada.close()
    ada.eventually(lambda: httpx.get(f"{url}tresse/health").json()["open"] == 0)
    assert httpx.get(f"{url}tresse/recordings", params={"session": session}).json()[0]["name"] == name
    later = sessions.time.monotonic() + KEEP_SECONDS + 1
    monkeypatch.setattr(sessions.time, "monotonic", lambda: later)
    answer = httpx.get(f"{url}tresse/recordings", params={"session": session})
    assert answer.json() == {"problem": "the page has lost its session: reload it"}
    assert (folder / name / "prompt.wav").exists()


def test_a_session_remembers_its_latest_turns(kept: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    url, _ = kept
    monkeypatch.setattr(recordings, "MOST", 2)
    ada = Talker(url)
    spoken = [speak(ada) for _ in range(3)]
    assert names(ada) == [spoken[2], spoken[1]]
    assert ada.get(f"recordings/{spoken[0]}/prompt.wav").status_code == 400
    ada.close()


def test_damaged_turns_are_left_out(kept: tuple[str, Path]) -> None:
    url, folder = kept
    ada = Talker(url)
    spoken = [speak(ada) for _ in range(2)]
    (folder / spoken[1] / "turn.json").write_text("[]")
    assert names(ada) == [spoken[0]]
    ada.close()
