"""English forms: articles, pronouns, possessives."""

from __future__ import annotations

from collections.abc import Mapping

from train.stories.words import Entry, Tag, by_number, entry_of, head_of

LANGUAGE = "en"
KEYWORDS = {"the", "a", "this", "in", "to", "intro"}
# (masculine, feminine, plural); beings are he or she, things are it.
_PRONOUNS = {
    "she": ("he", "she", "they"),
    "her": ("his", "her", "their"),
    "him": ("him", "her", "them"),
    "herself": ("himself", "herself", "themselves"),
    "it": ("it", "it", "they"),
    "them": ("it", "it", "them"),
}
_VOWELS = "aeiou"
_CONSONANT_SOUND = ("uni", "use", "eu", "one")
_SILENT_H = ("hour", "honest")


def starts_with_vowel(word: str) -> bool:
    """Whether the article before `word` is `an`."""
    low = word.lower()
    if low.startswith(_SILENT_H):
        return True
    return low[:1] in _VOWELS and not low.startswith(_CONSONANT_SOUND)


def render(tag: Tag, entries: Mapping[str, Entry], adjectives: frozenset[str]) -> str:
    """The words of a tag, agreed. Raises ValueError for a word it does not know."""
    head = head_of(tag, entries)
    out: list[str] = []
    determined = False
    for word in tag:
        text = word.text
        if word.role is not None:
            entry = entry_of(word.role, entries)
            if "|" in text:
                out.append(by_number(text, entry))
            elif text in _PRONOUNS:
                out.append(_PRONOUNS[text][2 if entry.plural else 1 if entry.gender == "f" else 0])
                determined = determined or text == "her"
            else:
                raise ValueError(f"no form of {text!r} agrees in English")
        elif text in entries:
            entry = entries[text]
            if entry.is_noun and entry.type != "noun" and not entry.name and not determined:
                out.append("the")
            out.append(entry.text[LANGUAGE])
        elif text in ("in", "to") and head is not None and head.type == "place":
            out.append(head.preposition[LANGUAGE] if text == "in" else "to")
        elif text == "intro" and head is not None and head.type == "person":
            out += ["a", head.kind_text[LANGUAGE], "named"] if head.name else ["a", "little"]
            determined = True
        elif text in ("the", "a", "this") and head is not None:
            out.append({"a": "some", "this": "these"}.get(text, text) if head.plural else text)
            determined = True
        elif text in adjectives:
            out.append(text)
        else:
            raise ValueError(f"unknown word {text!r}: neither a role of the situation, a keyword nor an adjective")
    for i in range(len(out) - 1):
        if out[i] == "a" and starts_with_vowel(out[i + 1]):
            out[i] = "an"
    return " ".join(out)


def check_before(before: str, words: str) -> None:
    """Raise ValueError where the plain text before a tag ends in an article that may not stand before its words."""
    last = before.split(" ")[-2].lower() if before.endswith(" ") else ""
    if last in ("a", "an") and last != ("an" if starts_with_vowel(words) else "a"):
        raise ValueError(f"{last!r} before {words!r}: write the article into the tag")


def finish(sentence: str) -> str:
    """What is left to do once the sentence is whole: nothing in English."""
    return sentence
