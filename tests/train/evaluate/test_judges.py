"""Independent ears: ratings of original and resynthesised, likeness of a speaker in two languages, what is missing."""

from __future__ import annotations

import builtins
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from slm.errors import TresseError
from train.evaluate.judges import likeness_of_speakers, naturalness, ratings, speaker_embedding, speakers_table


def part(language: str, voice: str, original: float, spoken: float, speaker: str | None = None) -> Any:
    """An utterance whose sound is one number."""
    sound = {"original": np.full(1600, original, np.float32), "spoken": np.full(1600, spoken, np.float32)}
    return SimpleNamespace(language=language, voice=voice, speaker=speaker or voice, **sound)


def direction(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """An embedding that turns by the first sample, in rad."""
    return np.array([np.cos(waveform[0]), np.sin(waveform[0])])


def test_cosines_are_of_one_speakers_pairs() -> None:
    utterances = [
        part("en", "a", 0.0, 0.1),
        part("en", "a", 0.2, 0.1),
        part("fr", "a", 0.0, 0.6),
        part("en", "b", 0.0, 2.0),
        part("en", "other", 0.0, 3.0, speaker="b"),
    ]
    rows = likeness_of_speakers(utterances, direction, 16000, 16000)
    assert rows["a"]["within a language"] == pytest.approx(1.0)
    assert rows["a"]["across languages"] == pytest.approx(np.cos(0.5))
    assert rows["a"]["original"] == pytest.approx(np.cos(0.2))
    assert rows["a"]["to the original"] == pytest.approx(np.cos(0.1))
    assert set(rows["b"].values()) == {None}  # one utterance of its own, and one of somebody else
    table = speakers_table(rows)
    assert "| a | 1.000 |" in table
    assert "| b | - |" in table


def test_ratings_are_means_of_both_sides() -> None:
    utterances = [part("en", "a", 1.0, 3.0), part("en", "a", 2.0, 5.0)]
    rated = ratings(utterances, lambda waveform, rate: float(waveform[0]), 16000, 16000)
    assert rated == {"original": 1.5, "resynthesis": 4.0}


@pytest.mark.parametrize("judge", [naturalness, speaker_embedding])
def test_a_missing_package_is_named_with_its_mend(judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] in ("speechmos", "resemblyzer"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(TresseError, match=r"is not installed: pip install 'tresse\[judges\]'"):
        judge()


def test_noise_sounds_worse_than_silence_between_words() -> None:
    pytest.importorskip("speechmos", reason="needs speechmos: pip install 'tresse[judges]'")
    rating, rng = naturalness(), np.random.default_rng(0)
    noise = rng.normal(size=32000).astype(np.float32)
    assert 1.0 <= rating(0.3 * noise, 16000) <= 2.0
