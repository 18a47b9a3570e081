"""Text is normalised once: in words, the same however it was written, and unchanged when it is normalised again."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.stories.normalise import normalise, split_sentences, unspoken
from train.stories.written import LANGUAGES, written_stories

SPOKEN = {
    "en": {
        "Mr. Fox paid $3.50 at 5:30 in 1984.": "Mister Fox paid three point five dollars at five thirty in nineteen "
        "eighty-four.",
        "She came 2nd of 1,200.": "She came second of one thousand two hundred.",
        "“Hi” -- he left… with cats, dogs, etc.": "“Hi” he left... with cats, dogs, et cetera.",
        "'Go home,' said the fox (softly).": "“Go home,” said the fox, softly.",
        "He didnâ€™t say â€œyesâ€ to 10-12 ﬁsh & birds.": "He didn't say “yes” to ten to twelve fish and birds.",
        "The dogs' bowl stood by the cats' bed.": "The dogs' bowl stood by the cats' bed.",
    },
    "fr": {
        "M. Leduc a 1 230,5 € et 21 ans.": "Monsieur Leduc a mille deux cent trente virgule cinq euros et vingt et un ans.",
        "À 7h30, le 1er mai.": "À sept heures trente, le premier mai.",
        "— Oui, dit-il.\n— Non !": "Oui, dit-il. Non !",
        '"Que faire?" demanda l’ours.': "« Que faire ? » demanda l'ours.",
    },
    "es": {
        "El Sr. Paz tiene 1.500 ovejas; son las 3:05.": "El Señor Paz tiene mil quinientos ovejas; son las tres y cinco.",
        '—¡Ven!\n"¿Quién es?" Pan, queso, etc.': "¡Ven! «¿Quién es?» Pan, queso, etcétera.",
    },
}


@pytest.mark.parametrize(("language", "text"), [(la, text) for la, texts in SPOKEN.items() for text in texts])
def test_text_is_written_as_it_is_spoken(language: str, text: str) -> None:
    assert normalise(text, language) == SPOKEN[language][text]


@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(
            ["le loup", "a dog", "Mr.", "M.", "etc.", "1984", "3.5", "12e", "7h30", "$5", "%", "…", "--", "—", "(", ")"]
        )
        | st.sampled_from(
            ["«", "»", "“", "”", '"', "'", ",", ".", "!", "?", ":", "ﬁ", "e\u0301", "œ", "\n", "10-12", "¿", "¡"]
        )
    ),
    language=st.sampled_from([*LANGUAGES, "es"]),
)
def test_what_is_normalised_stays_as_it_is(parts: list[str], language: str) -> None:
    text = normalise(" ".join(parts), language)
    assert normalise(text, language) == text
    assert text == unicodedata.normalize("NFC", text)
    assert not re.search(r"\d|\s\s|^\s|\s$", text)


def test_written_stories_are_normal_but_for_their_marks() -> None:
    """Only marks and titles change: what is spoken is the same, so the benchmark's texts and the corpus' look alike."""

    def said(text: str) -> list[str]:
        return re.findall(r"\w+", re.sub(r"\bMr\b", "Mister", re.sub(r"\bMrs\b", "Missus", text)))

    stories = written_stories()[::7]
    for story in stories:
        for language, texts in story.sentences.items():
            for text in texts:
                spoken = normalise(text, language)
                assert said(spoken) == said(text)
                assert unspoken(spoken) is None


def test_sentences_are_cut_where_another_begins() -> None:
    story = written_stories()[3]
    for language in LANGUAGES:
        texts = [normalise(text, language) for text in story.sentences[language]]
        assert "".join(split_sentences(" ".join(texts))).replace(" ", "") == "".join(texts).replace(" ", "")
    speech = (
        "“Big, was he!” said the frog. “As big as this?” “Oh, much bigger!” they cried... and left. Then she burst!"
    )
    assert split_sentences(speech) == [
        "“Big, was he!” said the frog.",
        "“As big as this?”",
        "“Oh, much bigger!” they cried... and left.",
        "Then she burst!",
    ]


def test_what_nobody_speaks_is_named() -> None:
    assert unspoken(normalise("Write to me@home.", "en")) == "@"
    assert unspoken(normalise("On a 3 chats.", "fr")) is None
