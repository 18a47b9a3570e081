"""Text of any source as it is spoken: words and marks only, the same for the same sentence wherever it comes from.

`ftfy` mends what encodings broke and composes letters (NFC), `num2words` reads numbers. What is of a language (quotation
marks, abbreviations, how thousands and decimals are written) is a row of `_HABITS`; a language without a row gets the
general rules. What is normalised stays as it is when it is normalised again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

_LINE_OF_SPEECH = re.compile(r"(^|\n)\s*[-\N{EN DASH}\N{EM DASH}]+\s+")
_APOSTROPHES = re.compile(r"[\N{RIGHT SINGLE QUOTATION MARK}\N{MODIFIER LETTER APOSTROPHE}\N{PRIME}`\N{ACUTE ACCENT}]")
_LOST_QUOTE = re.compile(r"â€(?=[\s.,!?]|$)")
"""A closing quotation mark in UTF-8, read as Windows' letters, whose last byte was lost: there is no letter for it."""
_QUOTES = re.compile(
    r"[\"\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}\N{DOUBLE LOW-9 QUOTATION MARK}«»]|''"
)
_SINGLE_QUOTED = re.compile(r"(?<![\w'])'(?=\w)([^'\n]*(?:'\w[^'\n]*)*[.!?,…])'(?!\w)")
_DASHES = re.compile(r"\s*(?:\N{EM DASH}|--+|\s-\s|\N{HORIZONTAL BAR})\s*|\s+\N{EN DASH}\s+")
_DOTS = re.compile(r"\.\s?\.(\s?\.)+|\.\.")
_BRACKETS = re.compile(r"\s*[(\[{]\s*([^()\[\]{}]*?)\s*[)\]}]")
_UNSPOKEN = re.compile(r"[^\w\s.,;:!?¡¿…'\"“”«»-]|[\d_]")
_END = re.compile(r"(?<=[.!?…])((?:\s?[\"”»])?)\s+(?=[“«]?\s?[¡¿]*[^\W\d_])")
_ROUNDS = 8
"""At most so often rules are applied until nothing changes: twice for ordinary text."""


@dataclass(frozen=True)
class _Habits:
    """What a language writes: its quotation marks, the separators of decimals and thousands (patterns), what abbreviations,
    signs and money beside a number are in words, the word between the ends of a range, the endings of ordinals (a pattern),
    clock times (their pattern, and hour and minute in words), and whether 1984 is read as a year."""

    quotes: tuple[str, str] = ("“", "”")
    decimal: str = "."
    thousands: str = ","
    words: Mapping[str, str] = field(default_factory=dict)
    signs: Mapping[str, str] = field(default_factory=dict)
    money: Mapping[str, str] = field(default_factory=dict)
    to: str = ","
    ordinal: str = r"(?!)"
    clock: tuple[str, Callable[[str, str], str]] | None = None
    years: bool = False


def _o_clock(hour: str, minute: str) -> str:
    return f"{hour} o'clock" if int(minute) == 0 else f"{hour} {'oh ' if int(minute) < 10 else ''}{int(minute)}"


def _horas(hour: str, minute: str) -> str:
    hours = "la una" if int(hour) == 1 else f"las {hour}"
    return hours if int(minute) == 0 else f"{hours} y {int(minute)}"


def _heures(hour: str, minute: str) -> str:
    hours = "une heure" if int(hour) == 1 else f"{hour} heures"
    return hours if int(minute or 0) == 0 else f"{hours} {int(minute)}"


_HABITS = {
    "en": _Habits(
        words={
            **{f"{short}.": whole for short, whole in {"Mr": "Mister", "Mrs": "Missus", "Ms": "Miss"}.items()},
            "Dr.": "Doctor",
            "Prof.": "Professor",
            "St.": "Saint",
            "Mt.": "Mount",
            "Capt.": "Captain",
            "etc.": "et cetera",
            "e.g.": "for example",
            "i.e.": "that is",
            "vs.": "versus",
            "No.": "number",
            "Messrs.": "Messieurs",
            "Jr.": "Junior",
            "Sr.": "Senior",
            "Mr": "Mister",
            "Mrs": "Missus",
        },
        signs={"%": "percent", "&": "and", "+": "plus", "=": "equals"},
        money={"$": "dollars", "€": "euros", "£": "pounds"},
        ordinal=r"(?:st|nd|rd|th)\b",
        to="to",
        clock=(r"\b(\d{1,2}):(\d\d)\b", _o_clock),
        years=True,
    ),
    "fr": _Habits(
        quotes=("« ", " »"),
        decimal=",",
        thousands=r"\s",
        words={
            "M.": "Monsieur",
            "MM.": "Messieurs",
            "Mme": "Madame",
            "Mmes": "Mesdames",
            "Mlle": "Mademoiselle",
            "Mlles": "Mesdemoiselles",
            "Mgr": "Monseigneur",
            "Dr": "Docteur",
            "Dr.": "Docteur",
            "Mr.": "Monsieur",
            "St": "Saint",
            "Ste": "Sainte",
            "etc.": "et cetera",
            "p. ex.": "par exemple",
            "n°": "numéro",
            "c.-à-d.": "c'est-à-dire",
            "Mr": "Monsieur",
            "av.": "avenue",
        },
        signs={"%": "pour cent", "&": "et", "+": "plus", "=": "égale"},
        money={"$": "dollars", "€": "euros", "£": "livres"},
        ordinal=r"(?:ers?|res?|ère|ères|e|ème|èmes|nde?)\b",
        to="à",
        clock=(r"\b(\d{1,2})\s?[hH:]\s?(\d\d)?\b(?!\w)", _heures),
    ),
    "es": _Habits(
        quotes=("«", "»"),
        decimal=",",
        thousands=r"[.\s]",
        words={
            "Sr.": "Señor",
            "Sra.": "Señora",
            "Srta.": "Señorita",
            "Sres.": "Señores",
            "Dr.": "Doctor",
            "Dra.": "Doctora",
            "D.ª": "Doña",
            "Ud.": "usted",
            "Uds.": "ustedes",
            "Vd.": "usted",
            "Vds.": "ustedes",
            "Sto.": "Santo",
            "Sta.": "Santa",
            "etc.": "etcétera",
            "p. ej.": "por ejemplo",
            "n.º": "número",
            "núm.": "número",
            "pág.": "página",
        },
        signs={"%": "por ciento", "&": "y", "+": "más", "=": "igual a"},
        money={"$": "dólares", "€": "euros", "£": "libras"},
        ordinal=r"\.?º",
        to="a",
        clock=(r"\blas? (\d{1,2})[:.](\d\d)\b", _horas),
    ),
}


def normalise(text: str, language: str) -> str:
    """A text in words: NFC, no digits, abbreviations written out, the language's quotation marks, one space between words.

    Characters that nobody speaks may be left (`unspoken` names them). Lines that open with a dash are speech: the dash
    goes; other dashes and brackets become commas.
    """
    for _ in range(_ROUNDS):
        before, text = text, _normalise(text, language, _HABITS.get(language, _Habits()))
        if text == before:
            break
    return text


def _normalise(text: str, language: str, habits: _Habits) -> str:
    text = _mended(text)
    text = _LINE_OF_SPEECH.sub(r"\1", text)
    text = _APOSTROPHES.sub("'", text)
    text = _SINGLE_QUOTED.sub(r'"\1"', text)
    text = _quoted(text, habits.quotes)
    text = _DOTS.sub("…", text)
    text = _written_out(text, habits)
    text = _in_words(text, language, habits)
    for sign, word in habits.signs.items():
        text = text.replace(sign, f" {word} ")
    text = _BRACKETS.sub(lambda match: f", {match[1]}," if match[1] else "", text)
    text = _DASHES.sub(_comma, text)
    return _tidy(text, habits).replace("…", "...")


def unspoken(text: str) -> str | None:
    """The first character of a normalised text that is not spoken (a digit, a sign, a bracket), None where there is none."""
    match = _UNSPOKEN.search(text)
    return match[0] if match else None


def split_sentences(text: str) -> list[str]:
    """Sentences of a normalised text: cut after `.`, `!`, `?` or `…` and a closing quotation mark, before a capital."""
    pieces, start = [], 0
    for match in _END.finditer(text):
        following = text[match.end() :].lstrip("“« ¡¿")
        if following[:1].isupper():
            pieces.append(text[start : match.end(1)].strip())
            start = match.end()
    return [piece for piece in [*pieces, text[start:].strip()] if piece]


def _mended(text: str) -> str:
    import ftfy

    text = _LOST_QUOTE.sub('"', text)
    return ftfy.fix_text(text, uncurl_quotes=False, unescape_html=True, normalization="NFC").replace("\u200b", "")


def _comma(match: re.Match) -> str:
    """What a dash between words becomes: nothing after speech that has its own mark."""
    return " " if match.string[: match.start()].endswith(("”", "»")) else ", "


def _quoted(text: str, quotes: tuple[str, str]) -> str:
    """Quotation marks in the language's form: one that opens stands at the beginning or after a space."""

    def directed(match: re.Match) -> str:
        before, after = text[: match.start()], text[match.end() :]
        if match[0] in "“„«":
            opens = True
        elif match[0] in "”»":
            opens = False
        else:
            opens = (not before or before[-1] in " \n(«“-'¡¿" or before[-1] == "—") and bool(after) and after[0] != " "
        return f"{quotes[0].strip()}" if opens else f"{quotes[1].strip()}"

    return _QUOTES.sub(directed, text)


def _written_out(text: str, habits: _Habits) -> str:
    """Abbreviations in words; one that ends the text keeps its full stop."""
    for short in sorted(habits.words, key=len, reverse=True):
        whole = habits.words[short]
        pattern = rf"(?<![\w'-]){re.escape(short)}" + ("" if short.endswith((".", "°")) else r"(?![\w.'-])")

        ends = "." if short == "etc." else ""  # it ends a sentence before a capital, or where nothing follows
        last = r"""(?=[ ”»"']*(?:$|[^\W\d_a-zà-ÿ]))"""
        text = re.sub(pattern + last, whole + ends, text)
        text = re.sub(pattern, whole, text)
    return text


def _in_words(text: str, language: str, habits: _Habits) -> str:
    """Every number in words: clock times, money, ordinals, decimals, years, then plain ones."""
    if not any(letter.isdigit() for letter in text):
        return text
    if habits.clock is not None:
        pattern, spoken = habits.clock
        text = re.sub(pattern, lambda match: spoken(match[1], match[2]), text)
    text = re.sub(r"([$€£])\s?(\d+(?:[.,]\d+)?)", r"\2\1", text)
    text = re.sub(r"(?<=\d)\s?([$€£])", lambda match: f" {habits.money.get(match[1], match[1])} ", text)
    text = re.sub(r"(?<=\d)\s?[-\N{EN DASH}]\s?(?=\d)", f" {habits.to} ", text)
    text = re.sub(rf"\b(\d+){habits.ordinal}", lambda match: _number(match[1], language, "ordinal") or match[0], text)
    point = re.escape(habits.decimal)
    grouped = rf"\b(\d{{1,3}}(?:{habits.thousands}\d{{3}})+)(?!\d)(?:{point}(\d+))?"
    text = re.sub(grouped, lambda match: _value(re.sub(r"\D", "", match[1]), match[2], language) or match[0], text)
    decimal = rf"\b(\d+){point}(\d+)\b"
    text = re.sub(decimal, lambda match: _value(match[1], match[2], language) or match[0], text)
    kind = "year" if habits.years else "cardinal"
    text = re.sub(r"\b1[1-9]\d\d\b", lambda match: _number(match[0], language, kind) or match[0], text)
    return re.sub(r"\d+", lambda match: f" {_number(match[0], language) or match[0]} ", text)


def _value(whole: str, fraction: str | None, language: str) -> str | None:
    return _number(whole if fraction is None else f"{whole}.{fraction}", language)


@cache
def _number(digits: str, language: str, kind: str = "cardinal") -> str | None:
    """A number in words, None where the language's words for it are not known."""
    from num2words import num2words

    try:
        value = float(digits) if "." in digits else int(digits)
        return str(num2words(value, lang=language, to=kind)).replace(",", "")
    except (NotImplementedError, KeyError, OverflowError, ValueError):
        return None


def _tidy(text: str, habits: _Habits) -> str:
    """One space between words; marks where the language puts them, and no comma beside another mark."""
    opening, closing = (re.escape(mark.strip()) for mark in habits.quotes)
    text = " ".join(text.split())
    text = re.sub(r"\s+([,.…])", r"\1", text)
    text = re.sub(r"(?:,\s*)+([.!?;:…])", r"\1", text)
    text = re.sub(r"([;:!?…])\s*,|,(?:\s*,)+", lambda match: match[1] or ",", text)
    text = re.sub(r"^[,;:\s]+", "", text)
    french = habits.quotes[0] != habits.quotes[0].strip()
    text = re.sub(r"\s*([;:!?]+)", r" \1" if french else r"\1", text)
    inner = " " if french else ""
    text = re.sub(rf"{opening}\s*,?\s*", f"{habits.quotes[0].strip()}{inner}", text)
    text = re.sub(rf"\s*{closing}", f"{inner}{habits.quotes[1].strip()}", text)
    return " ".join(text.split())
