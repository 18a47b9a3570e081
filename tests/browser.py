"""The browser of the browser tests: finds Chromium, installs it where there is none.

`python -m tests.browser` makes sure that there is one (idempotent): as root with apt-get, Debian's package; otherwise
Playwright's own download. Ends with status 1 and one line where neither works.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=user-gesture-required",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]


def chromium_path() -> str | None:
    """The Chromium to drive: one on PATH, /usr/bin/chromium, or Playwright's own; None where there is none."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    if Path("/usr/bin/chromium").exists():
        return "/usr/bin/chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def flags(microphone: Path | None) -> list[str]:
    """Chromium's flags; microphone: a WAV that the fake microphone plays."""
    return [*FLAGS, *([f"--use-file-for-fake-audio-capture={microphone}"] if microphone else [])]


@contextmanager
def chromium(microphone: Path | None = None) -> Iterator[Any]:
    """A headless Chromium (Playwright's Browser). microphone: a WAV that the fake microphone plays."""
    from playwright.sync_api import sync_playwright

    path = chromium_path()
    if path is None:
        raise RuntimeError("no Chromium: run `python -m tests.browser`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=flags(microphone))
        try:
            yield browser
        finally:
            browser.close()


def ensure() -> str:
    """Install Chromium where there is none; its path. Raises RuntimeError with what to do where that fails."""
    if path := chromium_path():
        return path
    attempts = []
    if os.geteuid() == 0 and shutil.which("apt-get"):
        attempts.append([["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]])
    attempts.append([[sys.executable, "-m", "playwright", "install", "chromium"]])
    for commands in attempts:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        installed = all(subprocess.run(command, env=environment).returncode == 0 for command in commands)
        if installed and (path := chromium_path()):
            return path
    raise RuntimeError("no Chromium could be installed: install the package `chromium` and run this again")


def main() -> int:
    """Command line: prints the path."""
    try:
        print(f"browser tests use {ensure()}")
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
