"""What units say of phones and speakers in recordings that nobody marked."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.errors import TresseError
from slm.model import BUNDLES
from slm.units import Units
from tests.bundles import BRAID
from train.evaluate.units import Utterance
from train.evaluate.voice_phones import Aligner, measure_phones, speaker_probe
from train.speech.phones import SILENCE, Phone
from train.speech.phones import phones as phones_spoken
from train.speech.voices import SAMPLE_RATE, Voices, speak_with_phonemes

UNITS = {SILENCE: 0, "p": 1, "a": 2, "ɑ": 2, "t": 3, "i": 4}
FRAME = SAMPLE_RATE // 50


class Hearing:
    """Hears the units that it is told, and nearly nothing else."""

    frame_rate = 50.0

    def __init__(self, frames: list[int]) -> None:
        self.frames = frames

    def log_probabilities(self, waveform: np.ndarray) -> np.ndarray:
        posteriors = np.full((len(waveform) // FRAME, 5), 0.01)
        posteriors[np.arange(len(posteriors)), self.frames[: len(posteriors)]] = 0.96
        return np.log(posteriors)


def _waveform(frames: list[int]) -> np.ndarray:
    return np.zeros(len(frames) * FRAME, np.float32)


@given(st.lists(st.integers(1, 9), min_size=5, max_size=5))
@settings(max_examples=30)
def test_phones_are_found_where_they_are_heard(lengths: list[int]) -> None:
    ids = [0, 1, 2, 3, 0]
    frames = np.repeat(ids, lengths).tolist()
    aligner = Aligner(Hearing(frames), {**UNITS, "æ": 2}, {"en": "en-us"})
    phones = aligner.phones(_waveform(frames), "pat", "en")
    assert phones is not None
    ends = np.cumsum(lengths) / 50
    assert [phone.end for phone in phones] == pytest.approx(ends.tolist())
    assert [phone.start for phone in phones] == pytest.approx([0.0, *ends[:-1]])


def test_a_text_that_is_not_heard_has_no_phones() -> None:
    frames = [0] * 5 + [4] * 60 + [0] * 5
    aligner = Aligner(Hearing(frames), {**UNITS, "æ": 2}, {"en": "en-us"})
    assert aligner.phones(_waveform(frames), "pat", "en") is None
    assert aligner.phones(_waveform(frames), "pat", "fr") is None
    assert aligner.phones(_waveform(frames[:1]), "pat", "en") is None


def test_units_that_are_no_phones_cannot_align() -> None:
    with pytest.raises(TresseError, match="are not phones"):
        Aligner.load(BRAID / "units")


def _utterance(voice: str, sentence: int, names: list[str]) -> Utterance:
    phones = [Phone(name, 0.1 * index, 0.1 * (index + 1)) for index, name in enumerate(names)]
    return Utterance("en", sentence, voice, np.zeros(SAMPLE_RATE // 10 * len(names), np.float32), phones)


class Deaf:
    """An encoder without features."""

    sample_rate, frame_rate, codebook_size = SAMPLE_RATE, 50.0, 5


def test_units_that_are_the_phones_err_nowhere() -> None:
    said = [
        _utterance(voice, number, [SILENCE, "p", middle, "t", SILENCE])
        for voice in ("one", "two")
        for number, middle in enumerate(["a", "i", "a", "i"])
    ]
    exact = [Units.from_frames(np.repeat([UNITS[p.name] for p in one.phones], 5), 50.0) for one in said]
    same = [Units.from_frames(np.zeros(25, np.int64), 50.0) for _ in said]
    right = measure_phones(Deaf(), said, exact)["en"]  # type: ignore[arg-type]
    none = measure_phones(Deaf(), said, same)["en"]  # type: ignore[arg-type]
    assert right["recordings"] == 8
    assert right["pnmi"] == pytest.approx(1.0)
    assert right["abx"]["units"]["within"] == right["abx"]["units"]["across"] == 0.0
    assert none["pnmi"] == pytest.approx(0.0)
    assert none["abx"]["units"]["across"] == pytest.approx(0.5)
    assert set(right["abx"]) == {"units"}


def _spoken(tell: bool) -> tuple[list[Units], list[np.ndarray], list[str], list[str]]:
    """Recordings of two speakers, of whom one's sound is lower, and whose units tell them apart or do not."""
    rng = np.random.default_rng(0)
    units, waveforms, speakers, texts = [], [], [], []
    for text in range(10):
        ids = rng.integers(0, 4, 40)
        for number, speaker in enumerate(("high", "low")):
            own = np.where(ids == 3, 3 + number, ids) if tell else ids
            units.append(Units(own, np.ones(40, np.int64), 50.0))
            tone = np.sin(2 * np.pi * (300 + 900 * number) * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
            waveforms.append((0.1 * tone + 0.01 * rng.normal(size=SAMPLE_RATE)).astype(np.float32))
            speakers.append(speaker)
            texts.append(f"text {text}")
    return units, waveforms, speakers, texts


def test_a_probe_tells_speakers_only_by_what_differs() -> None:
    told = speaker_probe(*_spoken(True), 5)
    blind = speaker_probe(*_spoken(False), 5)
    assert told is not None
    assert blind is not None
    assert told["units"] == 1.0
    assert told["sound"] == blind["sound"] == 1.0
    assert blind["units"] <= 0.5
    assert told["chance"] == 0.5
    assert told["speakers"] == 2
    assert told["recordings"] == 20


def test_a_probe_needs_two_speakers_of_several_texts() -> None:
    units, waveforms, speakers, texts = _spoken(True)
    assert speaker_probe(units[::2], waveforms[::2], speakers[::2], texts[::2], 5) is None
    assert speaker_probe(units[:4], waveforms[:4], speakers[:4], texts[:4], 5) is None


def test_phones_of_a_synthesiser_are_found_near_its_own_times() -> None:
    """By the shipped encoder, which names phones: half of the phones begin within 40 ms of what espeak-ng says."""
    voices = Voices.load()
    text = "The farmer looked for his little dog near the river."
    waveform, marks = speak_with_phonemes(text, "en", voices.speaker("basile"), voices)
    aligner = Aligner.load(BUNDLES / "natural" / "units")
    found = aligner.phones(waveform, text, "en")
    assert found is not None
    truth = [phone.start for phone in phones_spoken(marks, len(waveform) / SAMPLE_RATE)]
    near = [min(abs(phone.start - start) for start in truth) for phone in found]
    assert np.median(near) <= 0.04
    assert found[0].start == 0.0
    assert all(a.end == b.start for a, b in itertools.pairwise(found))
