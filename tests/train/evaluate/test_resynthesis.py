"""The report on resynthesis, and the benchmark of the vocoder: on sound whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.bundle import Bundle
from slm.errors import TresseError
from tests.fake_bundle import buzz
from train.bench.vocoder import bench_vocoder, table
from train.evaluate.resynthesis import (
    GOALS,
    HELD_OUT,
    SAME,
    TRAINING,
    Utterance,
    active_level,
    compare_melodies,
    evaluate_resynthesis,
    loudness,
    recognition,
    resynthesise,
    sound,
    summary_table,
    transcripts,
)
from train.speech.voices import Voices
from vocoder import Vocoder, VocoderConfig


class Ear:
    """Hears every original as it was said and one word more wherever the vocoder spoke."""

    def __init__(self, said: dict[int, str]) -> None:
        self.said = said

    def transcribe(self, waveform: np.ndarray, sample_rate: int, language: str) -> SimpleNamespace:
        return SimpleNamespace(text=self.said.get(id(waveform), "one two three four more"))


def utterance(original: np.ndarray, spoken: np.ndarray, text: str = "One two, three four.") -> Utterance:
    return Utterance(SAME, "en", text, "basile", "basile", original, spoken)


def test_the_same_sound_has_no_distance_and_the_same_melody() -> None:
    low, high = buzz(120.0, 1.0), buzz(120.0 * 2 ** (3 / 12), 1.0)
    same = sound([utterance(low, low.copy())], 16000)
    assert same["mel_distance"] == 0.0
    assert same["voicing_error"] == 0.0
    assert same["f0_error"] == 0.0
    higher = sound([utterance(low, high)], 16000)
    assert higher["f0_error"] == pytest.approx(3.0, abs=0.3)
    assert higher["mel_distance"] > 0.1


@given(st.lists(st.floats(80, 300), min_size=12, max_size=40, unique=True), st.floats(0.5, 2.0))
def test_melodies_are_compared_in_octaves(f0: list[float], factor: float) -> None:
    """A transposed melody correlates fully and is wrong by the interval; its mirror image correlates negatively."""
    melody = np.array(f0)
    correlation, error = compare_melodies(melody, factor * melody)
    assert correlation == pytest.approx(1.0)
    assert error == pytest.approx(12 * abs(np.log2(factor)), abs=1e-6)
    assert compare_melodies(melody, 1e4 / melody)[0] == pytest.approx(-1.0)
    assert compare_melodies(melody, np.full_like(melody, 100.0))[0] == 0.0
    assert np.isnan(compare_melodies(melody, np.where(np.arange(len(melody)) < 9, melody, 0.0))[0])


@given(st.floats(0.01, 1.0), st.floats(0.0, 2.0))
def test_loudness_is_that_of_what_is_not_silence(gain: float, pause: float) -> None:
    tone = np.sin(2 * np.pi * 200 * np.arange(16000) / 16000).astype(np.float32)
    waveform = gain * np.concatenate([np.zeros(int(pause * 16000) // 320 * 320, np.float32), tone])
    assert active_level(waveform, 16000) == pytest.approx(20 * np.log10(gain) - 3.01, abs=0.01)
    pair = loudness([utterance(tone, tone), utterance(tone, waveform)], 16000)
    assert pair["level_spread"] == pytest.approx(-10 * np.log10(gain), abs=0.01)
    assert pair["peak"] == pytest.approx(1.0, abs=1e-3)
    assert active_level(np.zeros(800, np.float32), 16000) == float("-inf")


def test_errors_are_counted_over_all_words() -> None:
    """One word of four wrong in one of two sentences, and two of four: 1/8 and 3/8, so the rise is 2/8."""
    words = [
        ("One two, three four.", "one two three for", "one two tree fore"),
        ("Five six seven eight", "five six seven eight", "five six eight"),
    ]
    found = recognition(words, seed=0)
    assert found["word_error"] == {"original": 1 / 8, "resynthesis": 3 / 8}
    assert found["rise"]["mean"] == pytest.approx(2 / 8)
    low, high = found["rise"]["ci95"]
    assert low <= 2 / 8 <= high
    assert found["character_error"]["original"] == pytest.approx(1 / (18 + 20))


def test_originals_and_copies_are_told_apart() -> None:
    original, spoken = buzz(120.0, 0.5), buzz(150.0, 0.5)
    ear = Ear({id(original): "one two three four"})
    words = transcripts([utterance(original, spoken), utterance(original, spoken)], ear)
    assert words == [("One two, three four.", "one two three four", "one two three four more")] * 2
    assert recognition(words, 0)["rise"]["mean"] == pytest.approx(1 / 4)


def test_the_report_is_written(bundle: Bundle, tmp_path: Path) -> None:
    """Every group in every language; results.json holds what is returned; without a recogniser no words."""
    ear = Ear({})
    results = evaluate_resynthesis(bundle, ear, out=tmp_path, count=2)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert (tmp_path / "spectrograms.png").stat().st_size > 10_000
    page = (tmp_path / "resynthesis.md").read_text()
    for language in bundle.languages:
        assert set(results["rows"][language]) == set(GOALS)
        for group, row in results["rows"][language].items():
            assert row["n"] == 2
            assert 0.0 < row["peak"] < 1.0
            assert f"| {language} | {group} |" in page
        assert -1.0 <= results["rows"][language][SAME]["f0_correlation"] <= 1.0
    assert len(summary_table(results).splitlines()) == 2 + 4 * len(bundle.languages)
    silent = evaluate_resynthesis(bundle, None, out=tmp_path, count=1)
    assert "word_error" not in silent["goals_met"]
    assert "No recogniser" in summary_table(silent)


def test_voices_and_speakers_take_turns(bundle: Bundle) -> None:
    """Who spoke is of the group; the vocoder's speakers speak, as themselves where they were heard."""
    voices = Voices.load()
    for one in resynthesise(bundle, [("en", "The dog sleeps."), ("en", "The cat is here.")], voices):
        assert one.speaker in bundle.speakers
        if one.group == TRAINING:
            assert one.voice in set(voices.training) - set(bundle.speakers)
        elif one.group == HELD_OUT:
            assert one.voice in voices.held_out
        else:
            assert one.voice == one.speaker
    strangers = SimpleNamespace(speakers=["nobody"])
    with pytest.raises(TresseError, match="nobody"):
        resynthesise(strangers, [], voices)


def test_the_benchmark_measures_what_it_says() -> None:
    """A small vocoder: faster than HiFi-GAN, streams what it speaks offline, and needs its look-ahead to begin."""
    vocoder = Vocoder(VocoderConfig(9, 50.0, 16000, ["ada"], ["en"], dim=16, intermediate_dim=16, dilations=[1])).eval()
    result = bench_vocoder(vocoder, seconds=0.64, repeats=1)
    assert json.loads(json.dumps(result)) == result
    assert result["speedup"]["HiFi-GAN generator"] > 1.0
    assert result["max_abs_diff"] < 1e-4
    assert set(result["streaming"]) == {"20", "80", "320"}
    for chunk, figures in result["streaming"].items():
        assert figures["first_audio_ms"] > max(float(chunk), result["lookahead_ms"])
    assert "HiFi-GAN" in table(result)
