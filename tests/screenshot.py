"""Pictures of the page's main states: `python -m tests.screenshot DIR [--dark] [--width 390] [--state begin ...]`.

Uses the shipped bundle, or `--bundle`. States: begin, talk (three turns, one of them with both languages side by side),
recording, results.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from demo.app import start
from slm.bundle import Bundle
from tests.browser import chromium

STATES = ("begin", "talk", "recording", "results")


def take(bundle: Bundle, out: Path, width: int, dark: bool, states: list[str], language: str = "en") -> list[Path]:
    """Go through the states and take a picture of each that is asked for; their paths."""
    server, url = start(bundle, "127.0.0.1", 0)
    scheme, made = "dark" if dark else "light", []
    out.mkdir(parents=True, exist_ok=True)
    try:
        with chromium() as browser:
            context = browser.new_context(
                viewport={"width": width, "height": 800}, color_scheme=scheme, permissions=["microphone"]
            )
            context.set_default_timeout(90_000)
            page = context.new_page()
            page.goto(f"{url}?lang={language}")
            page.locator(".talk[data-state=idle]").wait_for()
            for state in STATES:
                if state in states:
                    _go(page, state)
                    page.mouse.move(0, 0)
                    page.wait_for_timeout(800)
                    made.append(out / f"{state}-{scheme}-{width}.png")
                    page.screenshot(path=str(made[-1]), full_page=True)
    finally:
        server.close()
    return made


def _go(page: Any, state: str) -> None:
    """Bring the page into a state."""
    if state == "talk":
        page.locator(".settings summary").click()
        page.locator("[name=max_seconds]").fill("6")
        page.locator(".settings summary").click()
        for number, target in enumerate(("fr", "both", "braided")):
            page.locator(f"[name=target][value={target}]").check()
            page.evaluate(f"document.querySelectorAll('.example')[{number}].click()")
            page.wait_for_function(
                "n => document.querySelectorAll('.reply .play:enabled').length >= n", arg=number + 1 + (number > 0)
            )
            page.locator(".talk[data-state=speaking]").wait_for()
            page.locator(".talk[data-state=idle]").wait_for()
    elif state == "recording":
        page.locator(".press").hover()
        page.mouse.down()
        page.locator(".talk[data-state=recording]").wait_for()
        page.wait_for_timeout(2000)
    elif state == "results":
        page.mouse.up()
        page.locator("#tab-results").click()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--language", default="en")
    parser.add_argument("--state", nargs="+", choices=STATES, default=list(STATES))
    parser.add_argument("--bundle", type=Path)
    options = parser.parse_args()
    bundle = Bundle.load(options.bundle)
    bundle.warm_up()
    for path in take(bundle, options.out, options.width, options.dark, options.state, options.language):
        print(path)


if __name__ == "__main__":
    main()
