"""Pictures of the page's main states: `python -m tests.screenshot DIR [--device phone] [--dark] [--state begin ...]`.

Uses the bundle that `tresse demo` does, or `--bundle`; the story is told by its examples. States: begin, talk (three turns,
one of them with both languages side by side), recording, results. A desktop's pictures show the whole page (of the results,
the top); a phone's show its screen, whose button to talk is fixed. `--seed` gives the same replies again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from PIL import Image

from demo.app import start
from slm.bundle import Bundle
from tests.browser import chromium

STATES = ("begin", "talk", "recording", "results")
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
DEVICES: dict[str, dict[str, Any]] = {"desktop": {"viewport": {"width": 1200, "height": 800}}, "phone": PHONE}
TARGETS = ("braided", "both", "other")
"""What the turns of the story go on in; other: in another language than that of its examples."""


def take(bundle: Bundle, out: Path, device: str, dark: bool, states: list[str], language: str, seed: int) -> list[Path]:
    """Go through the states and take a picture of each that is asked for; their paths. language: of the page, and of the
    examples that tell the story."""
    server, url = start(bundle, "127.0.0.1", 0)
    scheme, made = "dark" if dark else "light", []
    out.mkdir(parents=True, exist_ok=True)
    try:
        with chromium() as browser:
            context = browser.new_context(color_scheme=scheme, permissions=["microphone"], **DEVICES[device])
            context.set_default_timeout(90_000)
            page = context.new_page()
            page.goto(f"{url}?lang={language}")
            page.locator(".talk[data-state=idle]").wait_for()
            for state in STATES:
                if state in states:
                    _go(page, state, language, seed)
                    page.mouse.move(0, 0)
                    page.wait_for_timeout(800)
                    made.append(out / f"{state}-{scheme}-{device}-{language}.png")
                    page.screenshot(path=str(made[-1]), full_page=device == "desktop" and state != "results")
                    _shrink(made[-1])
    finally:
        server.close()
    return made


def _go(page: Any, state: str, language: str, seed: int) -> None:
    """Bring the page into a state."""
    if state == "talk":
        page.locator(".settings summary").click()
        page.locator("[name=max_seconds]").fill("8")
        page.locator("[name=seed]").fill(str(seed))
        page.locator(".settings summary").click()
        for number, target in enumerate(TARGETS):
            value = {"other": "en" if language == "fr" else "fr"}.get(target, target)
            page.locator(f"[name=target][value={value}]").check(force=True)
            own = page.locator(f".example:has([data-language={language}])")
            own.nth(number).evaluate("example => example.click()")
            parts = page.locator(f".turn:nth-child({number + 1}) .reply:has(.play:enabled)")
            parts.nth(int(target == "both")).wait_for()
            page.locator(".talk[data-state=idle]").wait_for()
            page.wait_for_function(
                "() => [...document.querySelectorAll('.said, .reply')].every((e) => e.querySelector('.words').textContent)"
            )
        page.locator(".story-title").evaluate("title => title.scrollIntoView({ block: 'start' })")
    elif state == "recording":
        page.locator(".press").hover()
        page.mouse.down()
        page.locator(".talk[data-state=recording]").wait_for()
        page.wait_for_timeout(2000)
    elif state == "results":
        page.mouse.up()
        page.locator("#tab-results").click()


def _shrink(path: Path) -> None:
    """Few colours are enough for a page."""
    with Image.open(path) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", choices=DEVICES, default="desktop")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--language", default="en")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--state", nargs="+", choices=STATES, default=list(STATES))
    parser.add_argument("--bundle", type=Path)
    options = parser.parse_args()
    bundle = Bundle.load(options.bundle)
    bundle.warm_up()
    for path in take(bundle, options.out, options.device, options.dark, options.state, options.language, options.seed):
        print(path)


if __name__ == "__main__":
    main()
