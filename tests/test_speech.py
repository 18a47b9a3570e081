"""The speech back end: every sentence depends on itself alone; speakers differ; phoneme times lie inside."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from slm.errors import TresseError
from train.alignment import dtw_batch
from train.speech import LOUDNESS, SAMPLE_RATE, Voices, speak, speak_with_phonemes

SENTENCES = {"en": "Anna lost her red ball near the river.", "fr": "Anna a perdu son ballon rouge près de la rivière."}


def test_a_sentence_does_not_depend_on_what_was_spoken_before(voices: Voices) -> None:
    for name in ("basile", "bruno", "jules"):
        first = speak(SENTENCES["fr"], "fr", voices.speaker(name))
        speak(SENTENCES["en"], "en", voices.speaker("anouk"))
        assert np.array_equal(first, speak(SENTENCES["fr"], "fr", voices.speaker(name)))


def test_speakers_differ_in_every_language(voices: Voices) -> None:
    for language, text in SENTENCES.items():
        spoken = {speak(text, language, voices.speaker(n)).tobytes() for n in [*voices.training, *voices.held_out]}
        assert len(spoken) == len(voices.training) + len(voices.held_out)


def test_there_are_enough_voices(voices: Voices) -> None:
    assert len(voices.training) >= 24
    assert len(voices.held_out) >= 6
    assert not set(voices.training) & set(voices.held_out)
    assert len(voices.vocoder) >= 2


def test_levels_and_phoneme_times(voices: Voices) -> None:
    for language, text in SENTENCES.items():
        waveform, phonemes = speak_with_phonemes(text, language, voices.speaker("zoe"))
        assert waveform.dtype == np.float32
        assert np.abs(waveform).max() <= 0.95 + 1e-6
        assert 0.5 * LOUDNESS < np.sqrt(np.mean(waveform**2)) < 1.1 * LOUDNESS
        times = [phoneme.start for phoneme in phonemes]
        assert len(times) > 20
        assert times == sorted(times)
        assert min(times) > -0.05
        assert max(times) < len(waveform) / SAMPLE_RATE


def test_what_cannot_be_spoken_is_refused_in_one_line(voices: Voices) -> None:
    with pytest.raises(TresseError, match="'xx'"):
        speak("hello", "xx", voices.speaker("zoe"))
    with pytest.raises(TresseError, match="nothing to speak"):
        speak("...", "en", voices.speaker("zoe"))
    with pytest.raises(TresseError, match="unknown voice nobody"):
        voices.speaker("nobody")
    with pytest.raises(TresseError, match="no voice"):
        speak("hello", "en", dataclasses.replace(voices.speaker("zoe"), variant=""), _with_language(voices, "qqq"))


def _with_language(voices: Voices, name: str) -> Voices:
    return dataclasses.replace(voices, languages={"en": name})


def test_alignment_is_the_cheapest_path() -> None:
    """Against the textbook table, cell by cell."""
    import torch

    generator = torch.Generator().manual_seed(0)
    pairs = [
        (torch.randn(n, 3, generator=generator), torch.randn(m, 3, generator=generator))
        for n, m in [(1, 1), (1, 5), (6, 1), (7, 9), (12, 8)]
    ]
    found = dtw_batch([a for a, _ in pairs], [b for _, b in pairs])
    for (a, b), path in zip(pairs, found, strict=True):
        assert path.shape == (len(a),)
        assert (path.diff() >= 0).all()
        assert path[-1] == len(b) - 1
        assert _path_cost(a, b, path.tolist()) == pytest.approx(_table_cost(a, b), rel=1e-5)


def _table_cost(a, b) -> float:  # type: ignore[no-untyped-def]
    import torch

    distance = torch.cdist(a, b)
    table = torch.full((len(a) + 1, len(b) + 1), torch.inf)
    table[0, 0] = 0
    for i in range(len(a)):
        for j in range(len(b)):
            table[i + 1, j + 1] = distance[i, j] + min(table[i, j], table[i, j + 1], table[i + 1, j])
    return float(table[-1, -1])


def _path_cost(a, b, path: list[int]) -> float:  # type: ignore[no-untyped-def]
    """Cost of the cheapest full path that ends every source frame's run of target frames where `path` says."""
    import torch

    distance = torch.cdist(a, b)
    table = torch.full((len(a) + 1, len(b) + 1), torch.inf)
    table[0, 0] = 0
    for i in range(len(a)):
        for j in range(path[i] + 1):
            table[i + 1, j + 1] = distance[i, j] + min(table[i, j], table[i, j + 1], table[i + 1, j])
    return float(table[-1, -1])


def test_alignment_finds_a_stretch() -> None:
    import torch

    source = torch.arange(40.0)[:, None].repeat(1, 2)
    path = dtw_batch([source[::2]], [source])[0]
    assert (path - 2 * torch.arange(20)).abs().max() <= 2
