"""Text -> IPA with its punctuation, as neural synthesisers are given it: espeak-ng reads what stands between the marks."""

from __future__ import annotations

import re
import unicodedata

from train.speech.espeak import ipa

_MARK = re.compile(r"(\s*(?:[;!?—…“”()]|[:,.](?!\d))+\s*)")
"""Punctuation that stays, with the space around it; not the point of `3.5` or the comma of `3,5`."""
_SAME = str.maketrans({"’": "'", "«": "“", "»": "”", '"': "“", "–": "—"})


def read(text: str, voice: str) -> str:
    """IPA with stress marks and punctuation; empty where nothing is read. voice: espeak-ng's, such as `en-us`.

    Raises TresseError for an unknown voice.
    """
    parts = _MARK.split(unicodedata.normalize("NFC", text).translate(_SAME))
    if not any(re.search(r"\w", part) for part in parts):
        return ""
    read_parts = [
        re.sub(r"\s+", "", part) + " " if number % 2 else ipa(part, voice) if part.strip() else ""
        for number, part in enumerate(parts)
    ]
    return re.sub(
        r"\s+", " ", re.sub(r"([“(]) ", r"\1", "".join(read_parts)).replace(" ”", "”").replace(" )", ")")
    ).strip()
