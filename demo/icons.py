"""The icons of the page as an app: the braid of the logo on paper. `python -m demo.icons` draws them into `web/`."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from demo.theme import STRAND_COLOURS, STRANDS

WEB = Path(__file__).with_name("web")
SIZES = (180, 192, 512)
"""Pixels; 180 is Apple's."""
PAPER = "#faf7f2"
HEIGHT = 0.62
"""Of the braid, of the icon's: it stays whole in whatever shape a system cuts icons to."""
VIEW, STROKE = 64.0, 5.6
"""Height of the logo's own coordinates, and the width of its strands in them."""
FINER = 4
"""Drawn so many times larger, then made smaller: smooth edges."""
STEPS = 40
"""Points on a curve."""


def points(path: str) -> np.ndarray:
    """An SVG path of M, C and S (absolute) as points: float64 [n, 2]."""
    drawn: list[np.ndarray] = []
    control = np.zeros(2)
    for command, text in re.findall(r"([MCS])([^MCS]*)", path):
        given = np.array([float(number) for number in text.split()]).reshape(-1, 2)
        if command == "M":
            drawn.append(given[0])
            continue
        count = 3 if command == "C" else 2
        for part in given.reshape(-1, count, 2):
            start = drawn[-1]
            first = part[0] if command == "C" else 2 * start - control
            control, end = part[-2], part[-1]
            for t in np.linspace(0, 1, STEPS)[1:]:
                back = 1 - t
                drawn.append(back**3 * start + 3 * back**2 * t * first + 3 * back * t**2 * control + t**3 * end)
    return np.array(drawn)


def icon(size: int) -> Image.Image:
    """size: pixels of a side."""
    large = FINER * size
    image = Image.new("RGB", (large, large), PAPER)
    pen = ImageDraw.Draw(image)
    scale = HEIGHT * large / VIEW
    radius = STROKE * scale / 2
    for path, colour in zip(re.findall(r'd="([^"]+)"', STRANDS), re.findall(r"\{(\d)\}", STRANDS), strict=True):
        line = points(path) * scale + (large / 2 - 16 * scale, large / 2 - VIEW / 2 * scale)
        fill = STRAND_COLOURS[int(colour)]
        for x, y in _close(line, radius / 4):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    return image.resize((size, size), Image.Resampling.LANCZOS)


def _close(line: np.ndarray, step: float) -> np.ndarray:
    """Points on the same line that lie closer together than `step`."""
    lengths = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))])
    at = np.linspace(0, lengths[-1], int(lengths[-1] / step) + 2)
    return np.stack([np.interp(at, lengths, line[:, axis]) for axis in (0, 1)], 1)


if __name__ == "__main__":
    for pixels in SIZES:
        icon(pixels).save(WEB / f"icon-{pixels}.png", optimize=True)
