"""The forms in which a story can be taken away, for the page and for programs."""

from __future__ import annotations

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
WRITTEN = ("srt", "vtt", "html")
"""Those that hold transcripts."""


@dataclass(frozen=True)
class Export:
    """A file: its content, media type and name."""

    data: bytes
    media_type: str
    name: str


def export(conversation: Conversation, bundle: Bundle, form: str, interface: str = "en") -> Export:
    """The story in a form of FORMS; interface: the language of what is no transcript in it.

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
        data = keepsake.page(conversation, interface).encode()
    else:
        raise TresseError(f"a story comes as {', '.join(FORMS)}, not as {form}")
    return Export(data, FORMS[form], f"tresse-story.{form}")
