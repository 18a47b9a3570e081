"""The forms in which a story can be taken away, for the page and for programs."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from demo import archive, keepsake, subtitles
from demo.conversation import Conversation
from slm.errors import TresseError

if TYPE_CHECKING:
    from slm.bundle import Bundle

FORMS = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "zip": "application/zip",
    "srt": "application/x-subrip; charset=utf-8",
    "vtt": "text/vtt; charset=utf-8",
    "html": "text/html; charset=utf-8",
}
"""Their media types."""
WORDS = 10
"""Of a title that a file's name holds, with the first."""
WRITTEN = ("srt", "vtt", "html")
"""Those that hold transcripts."""


@dataclass(frozen=True)
class Export:
    """A file: its content, media type and name."""

    data: bytes
    media_type: str
    name: str


def file_name(title: str) -> str:
    """A file's name without its ending: "tresse" and the words of a title, in ASCII letters and digits."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return "-".join(["tresse", *re.findall("[a-z0-9]+", plain.replace("'", ""))][:WORDS])


def export(conversation: Conversation, bundle: Bundle, form: str, interface: str = "en", title: str = "") -> Export:
    """The story in a form of FORMS; interface: the language of what is no transcript in it; title: "" for that of its
    transcripts.

    Raises TresseError for another form, an empty story, or subtitles of a story without transcripts.
    """
    if form == "zip":
        data = archive.pack(conversation, bundle)
    elif form in ("wav", "flac"):
        data = archive.sound_bytes(archive.whole(conversation, bundle.sample_rate), bundle.sample_rate, form)
    elif form == "srt":
        data = subtitles.srt(conversation).encode()
    elif form == "vtt":
        texts = keepsake.read_texts(interface)
        data = subtitles.vtt(conversation, texts["you"], texts["model"]).encode()
    elif form == "html":
        data = keepsake.page(conversation, interface, title).encode()
    else:
        raise TresseError(f"a story comes as {', '.join(FORMS)}, not as {form}")
    name = file_name(title if title.strip() else keepsake.title(conversation) or "")
    return Export(data, FORMS[form], f"{name if name != 'tresse' else 'tresse-story'}.{form}")
