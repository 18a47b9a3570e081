"""The one form of a text: what is spoken, compared, and looked up in caches is first brought into it.

One sentence can be written in many ways that look alike: é as one character or as e and an accent, fi as a ligature, a
byte order mark or a soft hyphen that nobody sees. Synthesisers read them as different words. A text without such
characters stays as it is, and so does its speech.
"""

from __future__ import annotations

import re
import unicodedata

_COMPATIBLE = re.compile("[\ufb00-\ufb06\uff01-\uff5e\u0132\u0133\u0149\u01c4-\u01cc\u01f1-\u01f3]+")
"""Letters joined by a typesetter, and those of full width."""
_INVISIBLE = re.compile("[\ufeff\u200b\u2060\u00ad]")
"""Byte order mark, zero-width space, word joiner, soft hyphen: within a word they are nothing to be read."""


def plain(text: str) -> str:
    """The text in its one form: composed (NFC), ligatures as letters, without characters that nobody sees.

    Doing it again changes nothing. Letters that a language has (œ, ß) stay, and so do punctuation and spaces.
    """
    text = _COMPATIBLE.sub(lambda match: unicodedata.normalize("NFKC", match[0]), _INVISIBLE.sub("", text))
    return unicodedata.normalize("NFC", text)


def plain_entry(entry: object) -> object:
    """`plain` of every text in an entry of an item; paths of recordings and phonemes stay."""
    if isinstance(entry, str):
        return plain(entry)
    if isinstance(entry, list):
        return [plain_entry(part) for part in entry]
    return entry
