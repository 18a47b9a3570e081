"""Names in sentence pairs: collections of example sentences are all about the same Tom and Mary.

A name that stands in both languages is replaced in both, by one of the same gender that is spelt alike in every language
and begins with a consonant, so that nothing else in the sentence has to change (no elision, no agreement).
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

_MEN = "Tom Paul Max Simon Lucas Victor Martin Thomas David Bruno Nicolas Robin Samuel Gabriel Vincent Daniel"
_WOMEN = "Marie Clara Nina Lily Julia Sarah Laura Rose Louise Lucy Charlotte Juliette Camille Sophie"
_OTHERS = {"Tom": _MEN.split(" "), "Mary": _WOMEN.split(" ")}
_SPELLINGS = {"Tom": ("Tom",), "Mary": ("Mary", "Marie", "Maria")}


def vary_names(pair: Mapping[str, str], rng: random.Random) -> dict[str, str]:
    """The pair with other names in place of those that every one of its sentences has. pair: text by language."""
    texts = dict(pair)
    taken = {word for text in pair.values() for word in re.findall(r"\w+", text)}
    for name, spellings in _SPELLINGS.items():
        pattern = re.compile(rf"\b(?:{'|'.join(spellings)})\b")
        if all(pattern.search(text) for text in pair.values()):
            other = rng.choice([other for other in _OTHERS[name] if other not in taken - set(spellings)])
            texts = {language: pattern.sub(other, text) for language, text in texts.items()}
    return texts
