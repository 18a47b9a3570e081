"""Markdown reports as one self-contained HTML file: plots and playable samples inside, nothing fetched."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

import soundfile
from markdown_it import MarkdownIt

from train.tools.checkpoints import atomic_path

AUDIO = (".wav", ".flac")
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b;background:#fff}
table{border-collapse:collapse;font-size:.85rem;margin:1rem 0;display:block;overflow-x:auto}
th,td{border:1px solid #ccc;padding:.25rem .6rem;text-align:left;vertical-align:top;white-space:nowrap}
td:has(audio),td.long{white-space:normal}
th{background:#f3f3f3} img{max-width:100%} audio{height:2rem;width:15rem} code,pre{background:#f3f3f3;padding:.1rem .3rem}
h1,h2{border-bottom:1px solid #ddd;padding-bottom:.2rem}
"""


def html_page(markdown: str, root: Path, title: str) -> str:
    """Render Markdown (with tables); images and links to audio files under `root` are put into the page itself.

    What is missing keeps its path.
    """
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    body = re.sub(r'<img src="([^"]+)"', lambda found: f'<img src="{_inline(root, found[1])}"', body)
    body = re.sub(r'<a href="([^"]+)">[^<]*</a>', lambda found: _player(root, found[1]) or found[0], body)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n<body>\n{body}</body></html>\n'
    )


def write_html(path: Path, markdown: str, root: Path, title: str) -> None:
    """Write `html_page` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(html_page(markdown, root, title), encoding="utf-8")


def nested(markdown: str, folder: str, without: Iterable[str] = ()) -> str:
    """A page as a chapter of another one: headings one level down, paths from the folder above.

    without: titles of sections (## ...) that are left out.
    """
    left_out = set(without)
    lines, skipping = [], False
    for line in markdown.splitlines():
        if line.startswith("## "):
            skipping = line[3:].strip() in left_out
        if skipping:
            continue
        lines.append(f"#{line}" if re.match(r"#+ ", line) else line)
    return re.sub(r"\]\((?!\w+:|/)([^)]+)\)", rf"]({folder}/\1)", "\n".join(lines)).strip() + "\n"


def _inline(root: Path, source: str) -> str:
    path = root / unquote(html.unescape(source))
    if source.startswith("data:") or not path.is_file():
        return source
    kind = {".png": "image/png", ".svg": "image/svg+xml", ".jpg": "image/jpeg"}.get(path.suffix)
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}" if kind else source


def _player(root: Path, source: str) -> str | None:
    path = root / unquote(html.unescape(source))
    if path.suffix not in AUDIO or not path.is_file():
        return None
    waveform, rate = soundfile.read(str(path), dtype="int16")
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate, format="FLAC", subtype="PCM_16")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<audio controls preload="none" src="data:audio/flac;base64,{data}"></audio>'
