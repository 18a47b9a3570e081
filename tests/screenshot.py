"""A picture of the page after a reply has played: `python -m tests.screenshot OUT.png [--dark] [--width 390]`.

Uses the shipped bundle, or `--bundle`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from demo.app import start
from slm.bundle import Bundle
from tests.browser import chromium


def take(bundle: Bundle, out: Path, width: int, dark: bool) -> None:
    """Load the first example, ask for the last language, wait until the reply has played, take the picture."""
    server, url = start(bundle, "127.0.0.1", 0)
    try:
        with chromium() as browser:
            scheme = "dark" if dark else "light"
            page = browser.new_page(viewport={"width": width, "height": 700}, color_scheme=scheme)
            page.goto(url)
            page.locator("#examples .example").first.click()
            page.locator("#prompt [aria-label='Play']").wait_for()
            page.locator("#language label").last.click()
            page.locator("#go").click()
            page.locator(".player[data-state=finished]").wait_for(timeout=60_000)
            page.locator("#reply a[download]").first.wait_for()
            page.mouse.move(0, 0)
            page.wait_for_timeout(1500)
            page.screenshot(path=str(out), full_page=True)
    finally:
        server.close(verbose=False)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--bundle", type=Path)
    options = parser.parse_args()
    bundle = Bundle.load(options.bundle)
    bundle.warm_up()
    take(bundle, options.out, options.width, options.dark)


if __name__ == "__main__":
    main()
