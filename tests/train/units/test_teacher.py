"""The teacher: features of packed windows, labels of frames, a head that learns, saves and goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.errors import TresseError
from tests.train.units.speech_of_tones import TONES, plain_features, tones, write_clips
from train.speech.pool import Clip
from train.units.teacher import (
    FRAME,
    UNKNOWN,
    WIDTH,
    PhoneTeacher,
    TeacherTraining,
    WhisperFeatures,
    inventory,
    labels_of,
    levelled,
    train_teacher,
)

__all__ = ["plain_features"]
TRAINING = TeacherTraining(steps=40, batch_size=4, frames=40, learning_rate=4e-3, checkpoint_every=20)


class EveryFrameItsSample:
    """A Whisper whose features are the first sample of each frame."""

    feature_extractor = SimpleNamespace(nb_max_frames=3000)

    def __init__(self) -> None:
        self.feature_extractor = lambda samples: np.repeat(samples[::FRAME][None, :1500], 2, axis=1)
        self.feature_extractor.nb_max_frames = 3000  # type: ignore[attr-defined]

    def encode(self, mels: np.ndarray) -> np.ndarray:
        """[1, 3000] -> [1, 1500, 1]."""
        return mels[:, ::2, None]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 28 * 16000), min_size=1, max_size=12))
def test_every_clip_gets_the_features_of_its_own_frames(lengths: list[int]) -> None:
    extract = object.__new__(WhisperFeatures)
    extract.model = EveryFrameItsSample()  # type: ignore[assignment]
    clips = [np.full(length, number + 1, np.float32) for number, length in enumerate(lengths)]
    features = extract(clips)
    assert [len(part) for part in features] == [-(-length // FRAME) for length in lengths]
    for number, part in enumerate(features):
        assert (part == number + 1).all()


def test_labels_are_the_phones_at_the_middle_of_each_frame() -> None:
    clip = Clip(
        "x", 0, 9600, 24000, "", "en", "s", "kokoro", 0.0, [("a", 0.0, 0.13), ("q", 0.13, 0.2), ("b", 0.2, 0.4)]
    )
    labels = labels_of(clip, {"_": 0, "a": 1, "b": 2})
    assert labels.tolist() == [1] * 6 + [UNKNOWN] * 4 + [2] * 10


def test_rare_phones_have_no_class() -> None:
    often = [("a", 0.0, 100.0), ("_", 100.0, 150.0), ("rare", 150.0, 150.01)]
    assert inventory([Clip("x", 0, 1, 1, "", "en", "s", "kokoro", 0.0, often)]) == ["_", "a"]  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [16000, 24000, 44100])
def test_levelled_speech_has_one_level_at_one_rate(rate: int) -> None:
    waveform = 0.01 * np.sin(np.arange(rate) * 2 * np.pi * 300 / rate).astype(np.float32)
    out = levelled(waveform, rate)
    assert len(out) == 16000
    assert np.sqrt(np.mean(np.square(out))) == pytest.approx(0.06, rel=0.02)
    assert len(levelled(np.zeros(0, np.float32), rate)) == 0


@pytest.mark.usefixtures("plain_features")
def test_a_teacher_names_what_it_learnt_and_is_read_again(tmp_path: Path) -> None:
    clips = write_clips(tmp_path / "pool", 12)
    made = train_teacher(clips, tmp_path / "pool", tmp_path, TRAINING, tmp_path / "teacher")
    assert made.phones == ["_", *TONES]
    names = ["c", "a", "_", "b"]
    heard = made.posteriors([tones(names, 0.2)])[0]
    assert heard.shape == (40, 4)
    assert torch.allclose(heard.sum(-1), torch.ones(40))
    middles = heard[[5, 15, 25, 35]].argmax(-1)
    assert [made.phones[int(index)] for index in middles] == names
    again = train_teacher(clips, tmp_path / "pool", tmp_path, TRAINING, tmp_path / "teacher")
    assert torch.equal(again.posteriors([tones(names, 0.2)])[0], heard)


@pytest.mark.usefixtures("plain_features")
def test_a_training_that_was_stopped_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = write_clips(tmp_path / "pool", 6)
    whole = replace(TRAINING, steps=12, checkpoint_every=4)
    straight = train_teacher(clips, tmp_path / "pool", tmp_path, whole, tmp_path / "straight").head
    from train.tools import trainer

    def stop(done: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    original = trainer.train
    with monkeypatch.context() as patch:
        patch.setattr("train.units.fitting.train", lambda *a, **k: original(a[0], a[1], [*a[2], (1, stop)], **k))
        with pytest.raises(KeyboardInterrupt):
            train_teacher(clips, tmp_path / "pool", tmp_path, whole, tmp_path / "stopped")
    resumed = train_teacher(clips, tmp_path / "pool", tmp_path, whole, tmp_path / "stopped").head
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(TresseError, match="Kokoro"):
        train_teacher([], tmp_path, tmp_path, TRAINING, tmp_path / "teacher")
    with pytest.raises(TresseError, match="TRESSE_MODELS"):
        WhisperFeatures(tmp_path / "none")
    with pytest.raises(TresseError, match="train it again"):
        PhoneTeacher.load(tmp_path, tmp_path)
    assert WIDTH == 512
