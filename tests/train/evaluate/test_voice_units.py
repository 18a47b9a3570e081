"""Units of anybody's recordings without a bundle: edit rates, conditions, and texts spoken by others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from slm.bundle import Bundle
from slm.errors import TresseError
from tests.bundles import BRAID
from train.corpus.recordings import Recording, read_recordings
from train.evaluate.voice_units import CONDITIONS, evaluate_voice_units, speak_texts, tables
from train.speech.voices import SAMPLE_RATE, Voices

TEXTS = {
    "en": ["Anna lost her red ball.", "The farmer looked for his dog."],
    "fr": ["Le chien est parti.", "Il pleut."],
}


@pytest.fixture(scope="module")
def panel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two texts a language, spoken by two voices, given out for people and a synthesiser."""
    folder, voices = tmp_path_factory.mktemp("panel"), Voices.load()
    given = [
        Recording(folder / "absent.wav", text, language, "someone", "people")
        for language in TEXTS
        for text in TEXTS[language]
    ]
    return speak_texts(given, voices, ["basile", "zoe"], folder)


def test_texts_are_spoken_once_by_everyone_who_can(panel: Path) -> None:
    rows = [json.loads(line) for line in (panel / "list.jsonl").read_text().splitlines()]
    assert len(rows) == 4 * 3
    assert {row["speaker"] for row in rows} == {"someone", "basile", "zoe"}
    made = {path: path.stat().st_mtime_ns for path in panel.glob("*.flac")}
    given = [part for part in read_recordings(panel) if part.speaker == "someone"]
    speak_texts(given, Voices.load(), ["basile", "zoe"], panel)
    assert {path: path.stat().st_mtime_ns for path in panel.glob("*.flac")} == made
    few = speak_texts(given, Voices.load(), [], panel.parent / "few", texts=1)
    assert len((few / "list.jsonl").read_text().splitlines()) == 2


def test_conditions_cost_what_they_change(panel: Path, tmp_path: Path) -> None:
    recordings = [
        Recording(part.path, part.text, part.language, part.speaker, part.speaker) for part in read_recordings(panel)
    ]
    encoder = Bundle.load(BRAID, device="cpu").units
    results = evaluate_voice_units(encoder, recordings, out=tmp_path)
    assert [problem["recording"] for problem in results["problems"]] == ["absent.wav"] * 4
    assert results["recordings"] == 8
    for language in TEXTS:
        clean = results["unit_edit_rate"][language]["across families"]["mean"]
        rows = results["conditions"][language]
        assert set(rows) == {"clean", *CONDITIONS}
        assert rows["clean"]["across families"] == pytest.approx(clean)
        for row in rows.values():
            assert row["cost"] == pytest.approx(row["across families"] - clean)
        assert 0 < rows["noise 10 dB"]["against clean"] <= 1
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert "| en: telephone |" in tables(results)


def test_conditions_keep_the_length() -> None:
    waveform = np.random.default_rng(0).normal(size=SAMPLE_RATE).astype(np.float32) * 0.1
    for name, change in CONDITIONS.items():
        assert len(change(waveform)) == len(waveform), name


def test_recordings_without_texts_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(TresseError, match="text and a language"):
        evaluate_voice_units(
            Bundle.load(BRAID, device="cpu").units, [Recording(tmp_path / "x.wav", None, "en", "x", "x")], out=tmp_path
        )
