"""How the page looks: a theme of system fonts (nothing is fetched), the braid as a logo, style.css."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import gradio as gr

STYLE = (Path(__file__).with_name("web") / "style.css").read_text(encoding="utf-8")

STRAND_COLOURS = ("#2b6f77", "#d9734e", "#e3b04b")
STRANDS = """
<path d="M8 2 C8 12 24 12 24 22 S8 32 8 42 24 52 24 62" stroke="{2}"/>
<path d="M24 2 C24 12 8 12 8 22 S24 32 24 42 8 52 8 62" stroke="{1}"/>
<path d="M16 2 C28 8 28 16 16 22 S4 36 16 42 28 56 16 62" stroke="{0}"/>
"""
LOGO = (
    '<svg class="logo" viewBox="0 0 32 64" fill="none" stroke-width="5" stroke-linecap="round" aria-hidden="true">'
    + STRANDS.format("var(--strand-1)", "var(--strand-2)", "var(--strand-3)")
    + "</svg>"
)
_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="-16 0 64 64" fill="none" stroke-width="7" stroke-linecap="round">'
    + STRANDS.format(*STRAND_COLOURS)
    + "</svg>"
)
HEAD = f"""<link rel="icon" type="image/svg+xml" href="data:image/svg+xml,{quote(_ICON)}">
<link rel="apple-touch-icon" href="tresse/web/icon-180.png">
<meta name="theme-color" content="#faf7f2" media="(prefers-color-scheme: light)">
<meta name="theme-color" content="#16181a" media="(prefers-color-scheme: dark)">
"""

_TEAL = gr.themes.Color(
    name="tresse",
    c50="#eef6f6",
    c100="#d5e9ea",
    c200="#aed3d6",
    c300="#80b7bc",
    c400="#52969d",
    c500="#377f87",
    c600="#2b6f77",
    c700="#255a61",
    c800="#21494f",
    c900="#1d3c41",
    c950="#0f2427",
)


def theme() -> gr.themes.Base:
    """Calm paper and ink; light and dark."""
    return gr.themes.Base(
        primary_hue=_TEAL,
        secondary_hue=_TEAL,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_lg,
        text_size=gr.themes.sizes.text_md,
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
    ).set(
        body_background_fill="#faf7f2",
        body_background_fill_dark="#16181a",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
    )
