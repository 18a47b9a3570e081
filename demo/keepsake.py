"""A story as one HTML file to print or to share: sound, transcripts and languages, and nothing that it fetches."""

from __future__ import annotations

import base64
import json
from html import escape
from pathlib import Path

from demo import subtitles
from demo.archive import check_begun, sound_bytes
from demo.conversation import Conversation, Reply, Turn

WEB = Path(__file__).with_name("web")
TITLE = 60
"""Characters of a title."""
ENDS = ".!?…"

PAGE = """<!doctype html>
<html lang="{interface}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; media-src data:; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: light-dark(#2a2723, #ece8e1); --soft: light-dark(#655e55, #aaa398);
  --line: light-dark(#e4ddd2, #3a3f44); --panel: light-dark(#fff, #1f2225); --paper: light-dark(#faf7f2, #16181a); }}
body {{ font: 1.05rem/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 760px;
  margin: 0 auto; padding: clamp(16px, 4vw, 40px); }}
h1 {{ font-size: 1.8rem; line-height: 1.2; overflow-wrap: anywhere; }}
ol {{ list-style: none; padding: 0; display: grid; gap: 18px; }}
article {{ background: var(--panel); border: 1px solid var(--line); border-radius: 16px; padding: 12px 16px;
  margin-bottom: 10px; break-inside: avoid; }}
.said {{ margin-right: 10%; }}
.reply {{ margin-left: 10%; }}
.other {{ opacity: 0.8; border-style: dashed; }}
h2 {{ font-size: 1rem; margin: 0; }}
.language {{ border: 1.5px solid var(--soft); border-radius: 999px; padding: 1px 9px; font-size: 0.76rem; }}
.soft {{ color: var(--soft); font-size: 0.9rem; font-weight: 400; }}
p {{ margin: 8px 0; overflow-wrap: anywhere; }}
audio {{ width: 100%; }}
button {{ font: inherit; color: inherit; min-height: 44px; padding: 4px 16px; border: 1px solid var(--soft);
  border-radius: 999px; background: none; cursor: pointer; }}
@media print {{ audio, button {{ display: none; }} body {{ max-width: none; }} article {{ margin: 0 0 8px; }} }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
<button type="button">{print}</button>
<ol>
{turns}
</ol>
<p class="soft">{note}</p>
</main>
<script>
for (const badge of document.querySelectorAll(".language")) {{
  const names = new Intl.DisplayNames([document.documentElement.lang], {{ type: "language" }});
  try {{ badge.textContent = names.of(badge.dataset.code); }} catch {{ /* the code stays */ }}
}}
const parts = [...document.querySelectorAll("article:not(.other) audio")];
document.querySelector("button").addEventListener("click", () => window.print());
parts.forEach((part, k) => part.addEventListener("ended", () => parts[k + 1]?.play()));
</script>
</body>
</html>
"""
"""One part after the other sounds, from where it is started."""


def title(conversation: Conversation) -> str | None:
    """The first sentence that was written down, at most TITLE characters of it; None where nothing was."""
    for part in subtitles.told(conversation):
        words = " ".join(segment.text for segment in subtitles.heard(part)).split()
        if not words:
            continue
        chosen: list[str] = []
        for word in words:
            if chosen and len(" ".join([*chosen, word])) > TITLE:
                return " ".join(chosen).rstrip(",;: ")[:TITLE] + "…"
            chosen.append(word)
            if word[-1] in ENDS and len(chosen) > 1:
                break
        text = " ".join(chosen).rstrip(".")
        return text if len(text) <= TITLE else text[:TITLE] + "…"
    return None


def page(conversation: Conversation, interface: str = "en", named: str = "") -> str:
    """The file; interface: the language of what is not transcript, one of `web/texts.*.json`, else English; named: its
    title, "" for that of its transcripts.

    Raises TresseError for an empty story.
    """
    check_begun(conversation)
    texts = read_texts(interface)
    turns = []
    for turn in conversation.turns:
        articles = [_article(turn, texts["you"], "said", [turn.prompt.language])]
        if not turn.prompt.in_domain:
            articles.append(f'<p class="soft">{escape(texts["out_of_domain"])}</p>')
        for part, reply in enumerate(turn.replies):
            name, kind = texts["model"], "reply"
            if part != turn.chosen:
                name, kind = f"{name} ({texts['kept.other']})", "reply other"
            articles.append(_article(reply, name, kind, list(dict.fromkeys(reply.languages))))
        turns.append("<li>\n" + "\n".join(articles) + "\n</li>")
    return PAGE.format(
        interface=escape(texts["kept.language"]),
        title=escape(" ".join(named.split()) or title(conversation) or texts["kept.untitled"]),
        print=escape(texts["kept.print"]),
        turns="\n".join(turns),
        note=escape(texts["kept.note"]),
    )


def read_texts(interface: str) -> dict[str, str]:
    """The words of the page in this language, else in English."""
    known = {path.name.split(".")[1]: path for path in WEB.glob("texts.*.json")}
    code = interface if interface in known else "en"
    return {**json.loads(known[code].read_text(encoding="utf-8")), "kept.language": code}


def _article(part: Turn | Reply, name: str, kind: str, languages: list[str | None]) -> str:
    """A prompt or a reply: who spoke, in which languages, what, and its sound."""
    rate = part.sample_rate if isinstance(part, Reply) else part.rate
    sound = base64.b64encode(sound_bytes(part.waveform, rate, "flac")).decode()
    badges = " ".join(
        f'<span class="language" data-code="{escape(code)}">{escape(code.upper())}</span>' for code in languages if code
    )
    words = " ".join(
        f'<span lang="{escape(segment.language)}">{escape(segment.text.strip())}</span>'
        for segment in subtitles.heard(part)
    )
    return (
        f'<article class="{kind}">\n<h2>{escape(name)} {badges}</h2>\n'
        + (f"<p>{words}</p>\n" if words else "")
        + f'<audio controls preload="metadata" src="data:audio/flac;base64,{sound}"></audio>\n</article>'
    )
