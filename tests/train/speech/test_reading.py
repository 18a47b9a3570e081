"""espeak-ng reads a text alike whatever it has read before, and its speech stays what it is beside a reader."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.errors import TresseError
from train.speech.espeak import Espeak, EspeakSpeaker, _Reader, _reader, ipa
from train.speech.reading import read

TEXTS = [
    "The goat wanted to live by the sea.",
    "Read it, he read it, lead and lead!",
    "Dr. Smith paid 3.50 for two iPhones.",
    "He said “bonjour” and left",
    "the, the; the",
    "Il a vu les enfants à l'école.",
    "Les poules du couvent couvent, est-ce que le vent est à l'est ?",
    "Un week-end à New York, OK ?",
    "Vingt et un ans; 21 ans",
    "œuf, bœufs, œil",
]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=4), st.sampled_from(["en-us", "fr"]))
def test_what_was_read_before_changes_nothing(texts: list[str], voice: str) -> None:
    for text in texts:
        fresh = _Reader(voice)
        try:
            assert fresh.read(text) == _reader(voice).read(text)
        finally:
            fresh.__exit__()


def test_a_reader_leaves_speech_as_it_was() -> None:
    speaker = EspeakSpeaker("anna", "f2", 170, 50)
    before = Espeak({"en": "en-us"}).speak("The cat sat on the roof.", "en", speaker)
    assert read("Le chat, la table.", "fr") == "lə- ʃˈa, la- tˈabl."
    again = Espeak({"en": "en-us"}).speak("The cat sat on the roof.", "en", speaker)
    assert np.array_equal(before, again)


def test_a_voice_that_is_not_there() -> None:
    with pytest.raises(TresseError, match="no voice xx-none"):
        ipa("hello", "xx-none")
