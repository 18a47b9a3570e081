"""Anybody's recordings: read as they come, edit rates of the same text by family, errors by two recognisers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from slm.audio import write_wav
from slm.bundle import Bundle
from slm.errors import TresseError
from slm.transcribe import Segment, Transcript
from tests.bundles import BRAID
from train.corpus.recordings import read_recordings
from train.evaluate.voices import evaluate_voices
from train.speech.voices import SAMPLE_RATE, Voices, speak

TEXTS = ["Anna lost her red ball near the river.", "The farmer looked for his dog."]


@dataclass(frozen=True)
class Parrot:
    """A recogniser that hears one text in everything."""

    text: str

    def transcribe(self, waveform: np.ndarray, sample_rate: int, language: str | None = None) -> Transcript:
        seconds = len(waveform) / sample_rate
        return Transcript((Segment(0.0, seconds, self.text, language or "en", 1.0, 0.9),))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two texts by two training voices of one family and one voice of another, with a list; and a row that is broken."""
    folder, voices = tmp_path_factory.mktemp("recordings"), Voices.load()
    rows = []
    for number, text in enumerate(TEXTS):
        for speaker, family in (("basile", "espeak"), ("anouk", "espeak"), ("zoe", "others")):
            name = f"{number}-{speaker}.wav"
            write_wav(folder / name, speak(text, "en", voices.speaker(speaker), voices), SAMPLE_RATE)
            rows.append({"audio": name, "text": text, "language": "en", "speaker": speaker, "family": family})
    rows.append({"audio": "missing.wav", "text": "x", "language": "en", "speaker": "nobody"})
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_figures_by_family_and_speaker(recordings: Path, tmp_path: Path) -> None:
    results = evaluate_voices(
        Bundle.load(BRAID, device="cpu"),
        read_recordings(recordings),
        out=tmp_path,
        recogniser=Parrot(TEXTS[0]),
        judge=Parrot("nothing of it"),
    )
    rates = results["unit_edit_rate"]["en"]
    assert rates["within families"]["pairs"] == 2
    assert rates["across families"]["pairs"] == 4
    assert rates["within families"]["mean"] < 0.3 < rates["different texts"]["mean"]
    espeak = results["groups"]["family"]["en"]["espeak"]
    assert (espeak["n"], espeak["in_domain"]["mean"]) == (4, 1.0)
    errors = espeak["word_error"]["through units"]
    assert 0 < errors["own"] < errors["judge"]  # one text of the two is heard right
    assert results["problems"][0]["recording"] == "missing.wav"
    assert json.loads((tmp_path / "results.json").read_text()) == results
    page = (tmp_path / "voices.md").read_text()
    assert "| en: across families |" in page
    assert "missing.wav" in page


def test_a_folder_with_texts_beside_its_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_wav(tmp_path / f"{name}.wav", np.zeros(1600, np.float32), 16000)
    (tmp_path / "a.txt").write_text("\ufeffIl pleut.\n", encoding="utf-8")
    first, second = read_recordings(tmp_path)
    assert (first.text, first.speaker, first.family, second.text) == ("Il pleut.", "a", "a", None)


@pytest.mark.parametrize(
    ("listing", "words"), [(None, "there are no recordings"), ('{"text": "x"}', "line 1: add 'audio'")]
)
def test_what_is_wrong_is_named(tmp_path: Path, listing: str | None, words: str) -> None:
    if listing is not None:
        (tmp_path / "list.jsonl").write_text(listing, encoding="utf-8")
    with pytest.raises(TresseError, match=words):
        read_recordings(tmp_path)


def test_nothing_that_can_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "noise.wav").write_bytes(b"RIFF")
    with pytest.raises(TresseError, match="no recording can be used"):
        evaluate_voices(Bundle.load(BRAID, device="cpu"), read_recordings(tmp_path), out=tmp_path / "out")
