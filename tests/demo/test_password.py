"""`--auth`: without the password nothing is answered, with it everything works, in a browser as for programs."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from demo.app import start
from demo.archive import sound_bytes
from demo.cli import main
from demo.password import Password, account
from slm.errors import TresseError
from tests.fake_bundle import FakeBundle, buzz

ACCOUNT = ("ada", "pass:wörd")
RIGHT = "Basic " + base64.b64encode(":".join(ACCOUNT).encode()).decode()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    bundle = FakeBundle(tmp_path_factory.mktemp("bundle") / "bundle", real_time_factor=0.02, reply_seconds=0.3)
    folder = tmp_path_factory.mktemp("kept")
    page, address = start(bundle, "127.0.0.1", 0, folder, account=ACCOUNT)  # type: ignore[arg-type]
    yield address
    page.close()


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "path",
    ["", "config", "tresse/health", "tresse/listen", "tresse/recordings", "tresse/web/main.js", "gradio_api/info",
     "gradio_api/heartbeat/a", "gradio_api/file=/etc/passwd", "theme.css", "login", "nowhere"],
)  # fmt: skip
@pytest.mark.parametrize(
    "header",
    [None, "", "Basic", "Basic !", basic(":"), basic("ada"), basic("ada:pass"), basic("ada:pass:wörd "),
     basic("Ada:pass:wörd"), RIGHT.replace("Basic", "Bearer"), RIGHT[:-4]],
)  # fmt: skip
def test_without_the_password_nothing_is_answered(url: str, path: str, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    for method in ("GET", "POST"):
        answer = httpx.request(method, url + path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Basic")
        assert answer.json() == {"problem": "this page asks for a user and a password"}


def test_with_the_password_all_is_there(url: str) -> None:
    for path in ("", "config", "tresse/health", "tresse/recordings", "tresse/web/main.js", "gradio_api/info"):
        assert httpx.get(url + path, headers={"Authorization": RIGHT}).status_code == 200
    evil = {"Authorization": RIGHT, "Origin": "https://evil.example"}
    assert httpx.get(url + "tresse/recordings", headers=evil).status_code == 403


def test_programs_send_it(url: str, tmp_path: Path) -> None:
    from gradio_client import Client, handle_file

    (tmp_path / "a.wav").write_bytes(sound_bytes(buzz(150, 1.0), 16000))
    client = Client(url, verbose=False, headers={"Authorization": RIGHT})
    files, report = client.predict(handle_file(str(tmp_path / "a.wav")), target="en", api_name="/continue_story")
    assert (report["turn"], len(files), Path(files[0]).stat().st_size > 1000) == (1, 1, True)


@pytest.mark.browser
def test_a_browser_asks_once(url: str, browser) -> None:
    context = browser.new_context(http_credentials={"username": ACCOUNT[0], "password": ACCOUNT[1]})
    page = context.new_page()
    page.goto(url)
    page.locator(".talk[data-state=idle]").wait_for(timeout=60_000)
    context.close()


@pytest.mark.parametrize("given", ["", "ada", ":", "ada:", ":secret", "ada:two\nlines", "@/nowhere/file", "@"])
def test_what_is_no_account_is_one_line(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TresseError):
        account(given)
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--auth", given])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--auth" in line


def test_a_file_or_the_environment_keeps_it_from_other_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "password.txt"
    file.write_text(":".join(ACCOUNT) + "\nmore\n", encoding="utf-8")
    assert account(f"@{file}") == ACCOUNT
    asked = []
    monkeypatch.setattr("demo.app.serve", lambda *_, account, **__: asked.append(account))
    monkeypatch.setattr("slm.bundle.Bundle.load", lambda *_: None)
    _run("demo", "--auth", f"@{file}")
    monkeypatch.setenv("TRESSE_AUTH", ":".join(ACCOUNT))
    _run("demo")
    assert "TRESSE_AUTH" not in os.environ
    _run("demo")
    assert asked == [ACCOUNT, ACCOUNT, None]


def _run(*arguments: str) -> None:
    try:
        main(list(arguments))
    except SystemExit as stop:
        assert not stop.code, stop  # noqa: PT017


def test_passwords_are_compared_whole() -> None:
    knows = Password(None, ACCOUNT)._knows  # type: ignore[arg-type]
    assert knows(RIGHT)
    assert knows(RIGHT.replace("Basic", "basic"))
    assert not knows("")
