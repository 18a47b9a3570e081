"""One sentence is one sentence, however it is written: in speech, caches, mirrored items and files."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.errors import TresseError
from tests.tiny_evaluation import LoudnessEncoder, TinyBundle, make_item
from train.asr.training import spoken_words
from train.corpus.reader import Row, read_rows
from train.corpus.recordings import read_recordings
from train.evaluate.cloze.evaluation import evaluate_cloze
from train.evaluate.cloze.items import load_items, to_items
from train.evaluate.pairs import read_pairs
from train.evaluate.spoken_items import SpokenUnits
from train.speech.pool import speak_pool
from train.speech.voices import Voices, speak
from train.stories.grammar import generate_stories, read_lines, read_stories
from train.stories.written import written_stories
from train.tools.texts import plain

BOM = "\ufeff"
FORMS = {
    "Le chat a trouvé un fil.": [
        "Le chat a trouve\u0301 un fil.",
        "Le chat a trouvé un \ufb01l.",
        BOM + "Le chat a trouvé un fil.",
        "Le chat a trou\u00advé un f\u200bil.",
        "Le chat a trouve\u0301 un \ufb01l.\u2060",
    ],
    "L’Ångström fut efficace.": ["L’\u212bngstro\u0308m fut e\ufb03cace.", "L’A\u030angstro\u0308m fut e\ufb00icace."],
}
PAIRS = [(text, form) for text, forms in FORMS.items() for form in forms]


@settings(max_examples=300)
@given(text=st.text())
def test_there_is_one_form(text: str) -> None:
    form = plain(text)
    assert plain(form) == form
    for other in ("NFC", "NFD"):
        assert plain(unicodedata.normalize(other, text)) == form
    assert BOM not in form


@settings(max_examples=200)
@given(text=st.text(st.characters(codec="latin-1", exclude_characters="\u00ad") | st.sampled_from("œŒÿ’“”«»–—…")))
def test_plain_texts_stay_as_they_are(text: str) -> None:
    assert plain(text) == text


def test_the_stories_are_plain() -> None:
    told = [story.sentences for story in generate_stories(0, 300)] + [story.sentences for story in written_stories()]
    texts = {text for sentences in told for spoken in sentences.values() for text in spoken}
    assert len(texts) > 1000
    assert {text for text in texts if plain(text) != text} == set()


@pytest.mark.parametrize(("text", "form"), PAIRS)
def test_all_forms_are_the_same_words_in_speech_and_in_the_cache(
    voices: Voices, tmp_path: Path, text: str, form: str
) -> None:
    assert form != text
    assert plain(form) == text
    speaker = voices.speaker("basile")
    assert np.array_equal(speak(form, "fr", speaker, voices), speak(text, "fr", speaker, voices))
    spoken = SpokenUnits(LoudnessEncoder(), voices)  # type: ignore[arg-type]
    assert spoken.key(form, "fr", "basile") == spoken.key(text, "fr", "basile")
    assert spoken_words(form) == spoken_words(text)


def test_a_pool_speaks_every_form_once(voices: Voices, tmp_path: Path) -> None:
    speaker = voices.speaker("basile")
    text, forms = next(iter(FORMS.items()))
    names = set()
    for form in (text, *forms):
        (clip,) = speak_pool([(form, "fr", speaker)], voices, tmp_path, sample_rate=16000)
        assert clip.text == text
        names.add(clip.audio)
    assert len(names) == 1


def test_mirrored_items_are_known_in_any_form() -> None:
    item = make_item(1)
    right, wrong = (dict.fromkeys(("en", "fr"), text) for text in FORMS)
    first = {**item, "right": right, "wrong": wrong}
    for (_, one), (_, other) in zip(PAIRS, reversed(PAIRS), strict=True):
        forms = {plain(form): form for form in (*FORMS, one, other)}
        mirrored = {
            **item,
            "id": "mirror",
            "right": dict.fromkeys(("fr", "en"), forms[wrong["en"]]),
            "wrong": dict.fromkeys(("fr", "en"), forms[right["en"]]),
        }
        known, also = to_items([first, mirrored])
        assert known.pair == also.pair
    recorded = {**item, "id": "r", "right": {"en": {"audio": "\ufb01.wav"}}, "wrong": {"en": {"audio": "fi.wav"}}}
    other = {**recorded, "right": {"en": {"audio": "fi.wav"}}}
    assert to_items([recorded])[0].pair != to_items([other])[0].pair  # names of files are not texts


STORY = {"id": "s", "sentences": {"fr": [PAIRS[0][1]]}}


@pytest.mark.parametrize("start", ["", BOM])
@pytest.mark.parametrize("blank", ["", "\n", "  \n\n"])
def test_every_reader_takes_a_byte_order_mark(tmp_path: Path, start: str, blank: str) -> None:
    def written(name: str, row: dict) -> Path:
        path = tmp_path / name
        path.write_text(start + blank + json.dumps(row, ensure_ascii=False) + "\n" + blank, encoding="utf-8")
        return path

    text = next(iter(FORMS))
    assert [story.sentences["fr"] for story in read_stories(written("stories.jsonl", STORY))] == [[text]]
    (row,) = read_rows(tmp_path / "stories.jsonl", ["fr"])
    assert isinstance(row, Row)
    assert row.sentences == {"fr": [text]}
    items, root = load_items(written("items.jsonl", make_item(1)))
    assert evaluate_cloze(TinyBundle(tmp_path / "bundle"), items, out=tmp_path / "out", audio_root=root)["items"] == 1
    pairs, _ = read_pairs(written("pairs.jsonl", {"right": "a.wav", "wrong": "b.wav"}))
    assert len(pairs) == 1
    (recording,) = read_recordings(written("list.jsonl", {"audio": "a.wav", "text": PAIRS[0][1]}).parent)
    assert recording.text == text
    (tmp_path / "list.jsonl").unlink()
    (tmp_path / "a.wav").touch()
    (tmp_path / "a.txt").write_text(start + PAIRS[1][1], encoding="utf-8")
    assert read_recordings(tmp_path)[0].text == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"id": 1}\n{"id": "\xe9"}\n', "line 2: not UTF-8"),
        ("\ufeff{}\n".encode("utf-16"), "line 1: not UTF-8"),
        (b"\n\n[1]\n", "line 3: write one JSON object a line"),
        (b"[" * 100_000, "line 1: write one JSON object a line"),
    ],
)
def test_what_is_no_text_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(TresseError, match=message) as caught:
        list(read_lines(path))
    assert "\n" not in str(caught.value)
    with pytest.raises(TresseError, match="cannot read"):
        list(read_lines(tmp_path))
