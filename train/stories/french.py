"""French forms: agreement in gender and number, elision, contraction, possessives.

Determiners, prepositions and conjunctions change only where a tag names them, and only before the word that follows
in the same tag; the clitic pronoun `{le@object}` alone looks at the text after its tag (`finish`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from train.stories.words import JOINT, Entry, Tag, by_number, entry_of, head_of

LANGUAGE = "fr"
# (masculine, feminine, plural masculine, plural feminine)
_DETERMINERS = {
    "le": ("le", "la", "les", "les"),
    "un": ("un", "une", "des", "des"),
    "ce": ("ce", "cette", "ces", "ces"),
    "mon": ("mon", "ma", "mes", "mes"),
    "ton": ("ton", "ta", "tes", "tes"),
    "son": ("son", "sa", "ses", "ses"),
    "leur": ("leur", "leur", "leurs", "leurs"),
    "tout": ("tout", "toute", "tous", "toutes"),
}
_PRONOUNS = {
    "il": ("il", "elle", "ils", "elles"),
    "lui": ("lui", "elle", "eux", "elles"),
    "le": ("le", "la", "les", "les"),
    "celui": ("celui", "celle", "ceux", "celles"),
}
_ELIDING = {"de", "que", "si", "ne", "se", "me", "te", "je"}
_ELIDING_OUTSIDE = {"le", "la", "ma", "ta", "sa", "ce", "jusque", "lorsque", "puisque", "quoique"}
KEYWORDS = {*_DETERMINERS, *_ELIDING, "à", "dans", "intro"}
_FEMININE = {
    "blanc": "blanche", "doux": "douce", "roux": "rousse", "gros": "grosse", "gentil": "gentille", "beau": "belle",
    "nouveau": "nouvelle", "vieux": "vieille", "long": "longue", "sec": "sèche", "frais": "fraîche", "inquiet":
    "inquiète", "petit": "petite", "favori": "favorite", "bas": "basse", "faux": "fausse", "fou": "folle",
}  # fmt: skip
_BEFORE_VOWEL = {"beau": "bel", "nouveau": "nouvel", "vieux": "vieil", "fou": "fol"}
_FEMININE_ENDINGS = (
    ("eux", "euse"), ("eau", "elle"), ("teur", "trice"), ("er", "ère"), ("if", "ive"), ("el", "elle"), ("en", "enne"),
    ("on", "onne"), ("ou", "oue"), ("e", "e"),
)  # fmt: skip
_ASPIRED = {
    "hache", "haie", "hamac", "hamster", "hanche", "handicap", "hangar", "hareng", "haricot", "harpe", "hasard", "haut",
    "haute", "hautes", "hauts", "héron", "hérisson", "héros", "hêtre", "heurt", "hibou", "hiboux", "hockey", "honte",
    "hors", "housse", "houx", "hublot", "huit", "hutte", "onze", "ouistiti", "oui", "yaourt", "yacht", "yoyo",
}  # fmt: skip
_VOWELS = "aàâæeéèêëiîïoôœuùûü"


def elides(word: str) -> bool:
    """Whether a word that can elide does so before `word`: vowels and mute h, not h aspiré (`le hibou`)."""
    first_word = re.split(r"[\s'’,.!?-]", word.lower(), maxsplit=1)[0]
    if first_word in _ASPIRED or (first_word.endswith("s") and first_word[:-1] in _ASPIRED):
        return False
    return first_word[:1] in _VOWELS or (first_word[:1] == "h" and len(first_word) > 1)


def feminine(adjective: str) -> str:
    """`inquiet` -> `inquiète`, `heureux` -> `heureuse`, `perdu` -> `perdue`, `triste` -> `triste`."""
    if adjective in _FEMININE:
        return _FEMININE[adjective]
    for ending, replacement in _FEMININE_ENDINGS:
        if adjective.endswith(ending):
            return adjective[: -len(ending)] + replacement
    return adjective + "e"


def plural(word: str) -> str:
    """`petit` -> `petits`, `gris` -> `gris`, `beau` -> `beaux`, `normal` -> `normaux`."""
    if word.endswith(("s", "x", "z")):
        return word
    if word.endswith("eau"):
        return word + "x"
    if word.endswith("al"):
        return word[:-2] + "aux"
    return word + "s"


def agree(adjective: str, entry: Entry) -> str:
    """An adjective or participle in the gender and number of `entry`."""
    form = feminine(adjective) if entry.gender == "f" else adjective
    return plural(form) if entry.plural else form


def _pick(forms: tuple[str, str, str, str], entry: Entry) -> str:
    return forms[(2 if entry.plural else 0) + (1 if entry.gender == "f" else 0)]


def _join(tokens: list[tuple[str, str]]) -> str:
    """Contract and elide from right to left. A token is (text, part): det, indef, prep, pron, adj or word."""
    following, part_after, out = "", "", ""
    for text, part in reversed(tokens):
        vowel = bool(following) and elides(following)
        glue = " "
        if part == "prep" and text in ("de", "à") and part_after == "det" and following in ("le", "les"):
            out = out[len(following) :]
            text, glue = {"de": {"le": "du", "les": "des"}, "à": {"le": "au", "les": "aux"}}[text][following], ""
        elif part == "prep" and text == "de" and part_after == "indef" and following in ("des", "de", "d'"):
            out = out[len(following) :].lstrip()
            text, glue = ("d'", "") if elides(out) else (text, glue)
        elif part == "indef" and text == "des" and part_after == "adj":
            text, glue = ("d'", "") if vowel else ("de", " ")  # de beaux gants
        elif part in ("prep", "pron") and text in _ELIDING and vowel:
            if text != "si" or following in ("il", "ils"):
                text, glue = ("s" if text == "si" else text[:-1]) + "'", ""
        elif part == "det" and text in ("le", "la") and vowel:
            text, glue = "l'", ""
        elif part == "det" and text == "ce" and vowel:
            text = "cet"
        elif part == "det" and text in ("ma", "ta", "sa") and vowel:
            text = text[0] + "on"
        elif part == "adj" and text in _BEFORE_VOWEL and vowel and part_after in ("word", "adj"):
            text = _BEFORE_VOWEL[text]
        out = text + (glue if out and not out.startswith(" ") else "") + out
        following, part_after = text, part
    return out


def _agreeing(text: str, role: str, entries: Mapping[str, Entry]) -> tuple[str, str]:
    """`text@role`: the form of a word that agrees with another role, and its part of speech."""
    entry = entry_of(role, entries)
    if not entry.is_noun:
        raise ValueError(f"{text}@{role}: nothing can agree with a {entry.type}")
    if text in entries:
        adjective = entries[text]
        base = adjective.text[LANGUAGE]
        return base if adjective.invariable else agree(base, entry), "adj"
    if "|" in text:
        return by_number(text, entry), "word"
    if text in _PRONOUNS:
        form = _pick(_PRONOUNS[text], entry)
        return form + JOINT if text == "le" and not entry.plural else form, "word"
    return agree(text, entry), "adj"


def render(tag: Tag, entries: Mapping[str, Entry], adjectives: frozenset[str]) -> str:
    """The words of a tag, agreed, contracted, elided. Raises ValueError for a word it does not know."""
    head = head_of(tag, entries)
    tokens: list[tuple[str, str]] = []
    determined = False
    for word in tag:
        text = word.text
        if word.role is not None:
            tokens.append(_agreeing(text, word.role, entries))
        elif text in entries:
            entry = entries[text]
            base = entry.text[LANGUAGE]
            if entry.type == "adjective" and head is not None and not entry.invariable:
                base = agree(base, head)
            if entry.is_noun and entry.type != "noun" and not entry.name and not determined:
                tokens.append((_pick(_DETERMINERS["le"], entry), "det"))
            tokens.append((base, "adj" if entry.type == "adjective" else "word"))
        elif text == "intro" and head is not None and head.type == "person":
            if head.name:
                tokens += [(_pick(_DETERMINERS["un"], head), "indef"), (head.kind_text[LANGUAGE], "word")]
                tokens.append((agree("nommé", head), "adj"))
            else:
                tokens += [(_pick(_DETERMINERS["un"], head), "indef"), (agree("petit", head), "adj")]
            determined = True
        elif text == "dans" and head is not None and head.type == "place":
            *before, last = head.preposition[LANGUAGE].split()  # au bord de
            tokens += [*((part, "word") for part in before), (last, "prep")]
        elif text == "tout" and head is not None:
            tokens.append((_pick(_DETERMINERS[text], head), "word"))
        elif text in _DETERMINERS and head is not None:
            tokens.append((_pick(_DETERMINERS[text], head), "indef" if text == "un" else "det"))
            determined = True
        elif text in _ELIDING or text == "à":
            tokens.append((text, "prep"))
        elif text in adjectives and head is not None:
            tokens.append((agree(text, head), "adj"))
        else:
            raise ValueError(f"unknown word {text!r}: neither a role of the situation, a keyword nor an adjective")
    return _join(tokens)


def check_before(before: str, words: str) -> None:
    """Raise ValueError where the plain text before a tag ends in a word that elides or contracts before its words."""
    last = re.split(r"[\s'’]", before)[-2].lower() if before.endswith(" ") else ""
    first, _, rest = words.partition(" ")
    if (
        (last in _ELIDING | _ELIDING_OUTSIDE and last != "si" and elides(words))
        or (last == "si" and first in ("il", "ils"))
        or (last in ("de", "à") and first in ("le", "les") and rest)
    ):
        raise ValueError(f"{last!r} before {words!r}: write it into the tag")


def finish(sentence: str) -> str:
    """Elide the clitics that waited for the word after their tag: `le` + ` attrape` -> `l'attrape`."""
    if JOINT not in sentence:
        return sentence
    parts = sentence.split(JOINT)
    out = parts[0]
    for part in parts[1:]:
        after = part.lstrip()
        out = out[:-1] + "'" + after if out.endswith(("le", "la")) and elides(after) else out + part
    return out
