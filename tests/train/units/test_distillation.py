"""Units named by a teacher: who is asked to speak, what is kept of speech, and a student that learns its names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.errors import TresseError
from slm.transcribe import Segment, Transcript
from slm.units.attention import AttentionEncoderConfig, AttentionNetwork, AttentionUnitEncoder
from slm.units.causal import FRAME, LogMel
from slm.units.conv import ConvEncoderConfig, ConvNetwork, ConvUnitEncoder
from slm.weights import rounded
from tests.train.units.speech_of_tones import RATE, TONES, plain_features, tones, write_clips
from train.corpus.recordings import Recording
from train.speech.augmentation import Augmentation
from train.speech.kokoro import KokoroSpeaker
from train.speech.pool import Clip
from train.speech.voices import Voices
from train.tools import trainer
from train.units.distillation import (
    DistilledUnits,
    babble,
    begin_with,
    begin_with_teacher,
    distil,
    draw_batch,
    hide,
    merge,
    phone_encoder,
    requests,
)
from train.units.naming import TEXT, NamedSpeech, name_speech, told
from train.units.said import Reader, of_recordings
from train.units.teacher import EncoderTeacher, PhoneTeacher, TeacherTraining, levelled, train_teacher

__all__ = ["plain_features"]
CONFIG = ConvEncoderConfig(codebook_size=4, width=32, dilations=(1, 2), look_ahead=(1, 1))
TRAINING = DistilledUnits(
    steps=60,
    batch_size=8,
    segment_frames=40,
    learning_rate=1e-2,
    checkpoint_every=20,
    teacher=TeacherTraining(steps=40, batch_size=4, frames=40, learning_rate=4e-3, checkpoint_every=20),
    conditions=Augmentation(noise=0.5, snr_db=(10.0, 30.0)),
)
SENTENCES = [("en", "The fox was very sad."), ("fr", "Le renard était très triste."), ("en", "It rained.")]


@pytest.fixture
def teacher(tmp_path: Path, plain_features: None) -> PhoneTeacher:
    """One that has learnt the tones."""
    clips = write_clips(tmp_path / "pool", 8)
    return train_teacher(clips, tmp_path / "pool", tmp_path, TRAINING.teacher, tmp_path / "teacher")


def named(teacher: PhoneTeacher, folder: Path) -> NamedSpeech:
    """The tones of a pool, named."""
    clips = write_clips(folder / "others", 6, seed=1)
    return of_teacher(clips, teacher, ConvNetwork(CONFIG).mel, folder)


def of_teacher(clips: list[Clip], teacher: PhoneTeacher, front: LogMel, folder: Path) -> NamedSpeech:
    """The clips of folder/others as the teacher alone names them."""
    speech = ((levelled(clip.read(folder / "others"), clip.sample_rate), None) for clip in clips)
    return name_speech(speech, len(clips), teacher, TRAINING.conditions, 0, front, folder / "named")


def test_requests_are_drawn_once_and_more_of_them_go_on_behind_the_first() -> None:
    voices = Voices.named(TRAINING.voices)
    few = requests(SENTENCES, voices, replace(TRAINING, sentences=20))
    many = requests(SENTENCES, voices, replace(TRAINING, sentences=60))
    assert many[:20] == few
    families = {speaker.family for _, _, speaker in many}
    assert families == {"kokoro", "pico", "espeak"}
    assert families.isdisjoint(voices.held_out_families)
    allowed = {
        voice for speaker in voices.training.values() if isinstance(speaker, KokoroSpeaker)
        for style in speaker.kokoro.values() for voice in style.timbre
    }  # fmt: skip
    for _, language, speaker in many:
        if isinstance(speaker, KokoroSpeaker):
            style = speaker.kokoro[language]
            assert set(style.timbre) <= allowed
            assert sum(style.timbre.values()) == pytest.approx(1.0, abs=0.01)
        voices.synthesiser(speaker).fingerprint  # every drawn speaker belongs to a back end  # noqa: B018


def test_every_clip_is_kept_clean_and_changed_under_the_same_names(teacher: PhoneTeacher, tmp_path: Path) -> None:
    speech = named(teacher, tmp_path)
    assert len(speech.lengths) == 12
    assert speech.mels.shape == (2 * speech.lengths.sum(), CONFIG.mels)
    assert torch.allclose(speech.weights.float().sum(-1), torch.ones(len(speech.weights)), atol=2e-3)
    for clean in range(0, 12, 2):
        first, second = (
            slice(int(speech.starts[n]), int(speech.starts[n] + speech.lengths[n])) for n in (clean, clean + 1)
        )
        assert torch.equal(speech.names[first], speech.names[second])
    again = named(teacher, tmp_path)
    assert torch.equal(again.mels, speech.mels)


def test_merged_phones_share_a_unit() -> None:
    phones, units = merge(["_", "a", "ɐ", "b", "ə"], {"ɐ": "ə", "x": "a", "b": "y"})
    assert phones == ["_", "a", "b", "ə"]
    assert units.tolist() == [0, 1, 3, 2, 3]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_a_batch_is_a_function_of_seed_and_step(step: int) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([50, 3, 120])
    speech = NamedSpeech(
        torch.rand(2 * 173, 40, generator=generator).half(),
        torch.randint(4, (173, 6), generator=generator).to(torch.uint8),
        torch.full((173, 6), 1 / 6).half(),
        lengths.cumsum(0) - lengths,
        lengths,
    )
    first, second = draw_batch([speech], TRAINING, step), draw_batch([speech], TRAINING, step)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    mels, names, weights, mask = first
    assert mels.shape == (8, 80, 40)
    assert names.shape == weights.shape == (8, 40, 6)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert not torch.equal(mels, draw_batch([speech], TRAINING, step + 1)[0])


def test_a_student_learns_the_teachers_names(teacher: PhoneTeacher, tmp_path: Path) -> None:
    speech = [named(teacher, tmp_path)]

    torch.manual_seed(0)
    network = ConvNetwork(CONFIG)
    distil(network, speech, TRAINING, tmp_path / "student.pt")
    encoder = ConvUnitEncoder(network.half().float())
    names = ["c", "a", "_", "b"]
    frames = encoder.encode(tones(names, 0.2, level=0.1), RATE).frames()
    phones = ["_", *TONES]
    assert [phones[int(frames[middle])] for middle in (5, 15, 25, 35)] == names


def test_a_training_that_was_stopped_ends_the_same(
    teacher: PhoneTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speech = [named(teacher, tmp_path)]

    def train(checkpoint: str) -> ConvNetwork:
        torch.manual_seed(0)
        network = ConvNetwork(CONFIG)
        distil(network, speech, replace(TRAINING, steps=9, checkpoint_every=3), tmp_path / checkpoint)
        return network

    def stop(done: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    straight, original = train("straight.pt"), trainer.train
    with monkeypatch.context() as patch:
        patch.setattr("train.units.fitting.train", lambda *a, **k: original(a[0], a[1], [*a[2], (1, stop)], **k))
        with pytest.raises(KeyboardInterrupt):
            train("stopped.pt")
    resumed = train("stopped.pt")
    for name, tensor in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_attention_learns_the_teachers_names(teacher: PhoneTeacher, tmp_path: Path) -> None:
    config = AttentionEncoderConfig(
        codebook_size=4,
        layers=2,
        width=32,
        heads=2,
        mels=40,
        block=10,
        ahead=5,
        history=20,
        dropout=0.05,
        head_dropout=0.05,
    )
    clips = write_clips(tmp_path / "others", 6, seed=1)
    torch.manual_seed(0)
    network = AttentionNetwork(config)
    speech = of_teacher(clips, teacher, network.mel, tmp_path)
    distil(network, [speech], replace(TRAINING, learning_rate=4e-3, steps=120, babble=0.2), tmp_path / "student.pt")
    encoder = AttentionUnitEncoder(rounded(network, AttentionUnitEncoder.stored))
    names = ["c", "a", "_", "b"]
    frames = encoder.encode(tones(names, 0.2, level=0.1), RATE).frames()
    assert [["_", *TONES][int(frames[middle])] for middle in (5, 15, 25, 35)] == names


def test_a_network_begins_as_its_teacher_and_what_has_learnt_may_stay_as_it_is(
    teacher: PhoneTeacher, tmp_path: Path
) -> None:
    config = AttentionEncoderConfig(codebook_size=4, layers=1, heads=2, block=60, ahead=0, head_dropout=0.1)
    torch.manual_seed(0)
    network = AttentionNetwork(config)
    begin_with_teacher(network, teacher.head, torch.arange(4, dtype=torch.uint8))
    x = torch.randn(1, 60, config.width)
    ours = network.outward(network.head.eval()(x, 60, None)[0])
    assert torch.allclose(ours, teacher.head(x), atol=1e-5)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    clips = write_clips(tmp_path / "others", 3, seed=1)
    speech = of_teacher(clips, teacher, network.mel, tmp_path)
    distil(network, [speech], replace(TRAINING, steps=3, segment_frames=61, begun=0.0), tmp_path / "student.pt")
    moved = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(name.startswith("head.") for name in moved)
    with pytest.raises(TresseError, match="256 and 192"):
        begin_with_teacher(
            AttentionNetwork(replace(config, inward=8)), teacher.head, torch.arange(4, dtype=torch.uint8)
        )


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.floats(0, 1))
def test_others_talk_behind_a_share_of_the_segments(size: int, share: float) -> None:
    generator = torch.Generator().manual_seed(size)
    power = torch.rand(size, 30, 8, generator=generator) + 0.01
    heard = babble(power, share, generator)
    assert (heard >= power).all()
    added = (heard - power).mean((1, 2)) / power.mean((1, 2))
    assert (added <= 10**-0.5 * 1.01).all()
    if share == 0 or size < 3:
        assert torch.equal(heard, power)
    if share == 1 and size >= 3:
        assert (added >= 10**-2.5 * 0.99).all()


def test_masks_hide_bands_and_stretches() -> None:
    mels = torch.ones(3, 100, 40)
    assert torch.equal(hide(mels, 0), mels)
    torch.manual_seed(0)
    hidden = hide(mels, 2)
    assert hidden.shape == mels.shape
    assert set(hidden.unique().tolist()) == {0.0, 1.0}
    assert (hidden == 0).float().mean() < 2 * (1 / 8 + 0.15)


def test_a_training_can_begin_with_an_encoder(tmp_path: Path) -> None:
    learnt, other = ConvNetwork(CONFIG), ConvNetwork(CONFIG)
    ConvUnitEncoder(learnt.half().float()).save(tmp_path / "units")
    (tmp_path / "units" / "phones.json").write_text(json.dumps(["_", *TONES]))
    begin_with(other, ["_", *TONES], str(tmp_path))
    for name, tensor in learnt.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor.to(other.state_dict()[name].dtype)), name
    with pytest.raises(TresseError, match="other phones"):
        begin_with(other, ["_", "a"], str(tmp_path))
    with pytest.raises(TresseError, match="another shape"):
        begin_with(ConvNetwork(replace(CONFIG, width=16)), ["_", *TONES], str(tmp_path))
    with pytest.raises(TresseError, match="no encoder"):
        begin_with(other, ["_", *TONES], str(tmp_path / "none"))


def test_an_encoder_names_speech_for_the_next(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ConvUnitEncoder(ConvNetwork(CONFIG)).save(tmp_path / "units")
    (tmp_path / "units" / "phones.json").write_text(json.dumps(["_", *TONES]))
    encoder, phones = phone_encoder(str(tmp_path))
    waveforms = [tones(list(TONES), 0.2), tones(list(TONES)[:1], 0.2)[:-7]]
    posteriors = EncoderTeacher(encoder, phones).posteriors(waveforms)
    for waveform, posterior in zip(waveforms, posteriors, strict=True):
        assert posterior.shape == (-(-len(waveform) // 320), len(phones))
        assert torch.allclose(posterior.sum(-1), torch.ones(len(posterior)), atol=1e-5)
        frames = encoder.smoothed(posterior.log().numpy())
        assert np.array_equal(frames, encoder.encode(waveform, RATE).frames())
    merged = Reader(phones, {"en": "en-us"}, {"x": phones[1], "y": "unknown"})
    assert merged.classes["x"] == 1
    assert "y" not in merged.classes


def test_recordings_that_cannot_be_read_or_are_too_short_are_left_out(teacher: PhoneTeacher, tmp_path: Path) -> None:
    import soundfile

    soundfile.write(tmp_path / "good.wav", tones(["a", "b", "c", "a"], 0.3), RATE)
    soundfile.write(tmp_path / "short.wav", tones(["a"], 0.1), RATE)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    given = [Recording(tmp_path / f"{name}.wav", None, None, name, name) for name in ("broken", "short", "good")]
    reader, front = Reader(teacher.phones, {}), ConvNetwork(CONFIG).mel

    def name(recordings: list[Recording], folder: str) -> NamedSpeech:
        said = of_recordings(recordings, reader, None, tmp_path / "transcripts.jsonl")
        return name_speech(said, len(recordings), teacher, TRAINING.conditions, 0, front, tmp_path / folder)

    speech = name(given, "recordings")
    assert speech.lengths.tolist() == [1.2 * RATE / FRAME] * 2
    with pytest.raises(TresseError, match="there is no speech to name"):
        name(given[:2], "nothing")
    assert np.isfinite(speech.mels.float().numpy()).all()


def test_a_text_says_which_phones_and_the_teacher_when() -> None:
    heard = torch.full((9, 4), 0.02)
    heard[:3, 0], heard[3:6, 1], heard[6:, 2] = 0.94, 0.94, 0.94
    assert torch.equal(told(heard, [0, 1, 2]).argmax(1), heard.argmax(1))
    misheard = heard.clone()
    misheard[3:6, 1], misheard[3:6, 3] = 0.3, 0.66
    named = told(misheard, [1, 2])
    assert torch.equal(named.argmax(1), heard.argmax(1))
    assert torch.allclose(named[:, 1], (1 - TEXT) * misheard[:, 1] + TEXT * (heard.argmax(1) == 1))
    assert torch.allclose(named.sum(1), misheard.sum(1) * (1 - TEXT) + TEXT)
    for other in ([3, 1, 3], [2, 1] * 5, []):  # another text, more phones than frames, none
        assert torch.equal(told(heard, other), heard)


def test_what_has_no_text_is_written_down_once_and_believed_where_it_is_sure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import soundfile

    asked: list[str | None] = []

    class Listener:
        """Is sure of every other recording."""

        def __init__(self, name: str, languages: list[str]) -> None:
            assert languages == ["en", "fr"]

        def transcribe(self, waveform: np.ndarray, rate: int, language: str | None) -> Transcript:
            asked.append(language)
            if len(asked) == 4:
                raise KeyboardInterrupt
            return Transcript((Segment(0.0, 1.0, "the sun", "en", 0.9, 0.9 if len(asked) % 2 else 0.2),))

    monkeypatch.setattr("train.units.said.Transcriber", Listener)
    given = []
    for number in range(5):
        soundfile.write(tmp_path / f"{number}.wav", tones(["a"], 1.0), RATE)
        text, language = ("Le chat.", "fr") if number == 2 else (None, None)
        given.append(Recording(tmp_path / f"{number}.wav", text, language, "somebody", "people"))
    reader = Reader(["_", "ə", "n", "l", "a"], {"en": "en-us", "fr": "fr"})

    def listen() -> list[list[int] | None]:
        return [said for _, said in of_recordings(given, reader, tmp_path, tmp_path / "transcripts.jsonl")]

    with pytest.raises(KeyboardInterrupt):
        listen()
    with (tmp_path / "transcripts.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"audio": "a line that was not')
    said = listen()
    assert [part is None for part in said] == [False, True, False, False, False]
    assert said[0] == [0, 1, 2, 0]
    assert said[2] == [0, 3, 1, 4, 0, 0]
    assert len(asked) == 5
    listen()
    assert len(asked) == 5
