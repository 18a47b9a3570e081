"""Training the vocoder: it learns, repeats itself bit for bit when interrupted, and trains on what streams see."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from slm.bundle import Bundle
from slm.errors import TresseError
from slm.units import Units
from train.speech.pool import Clip as Spoken
from train.speech.voices import SAMPLE_RATE, Voices
from train.tools.checkpoints import load_checkpoint
from train.vocoder.data import Clip, Hearing, check, draw_batch, make_clips, phone_units, realigned
from train.vocoder.settings import VocoderTraining
from train.vocoder.training import begun_vocoder, generate, hold_out, train_vocoder
from vocoder.config import VocoderConfig
from vocoder.model import Vocoder

CONFIG = VocoderConfig(
    6,
    50.0,
    16000,
    ["ada", "ben"],
    ["en", "fr"],
    dim=32,
    intermediate_dim=48,
    dilations=[1, 2],
    prosody_dim=16,
    prosody_dilations=[1, 2],
    max_run_length=8,
)
TRAINING = VocoderTraining(
    steps=8,
    batch_size=3,
    segment_seconds=0.2,
    context_seconds=0.1,
    adversarial_from=3,
    adversarial_clips=2,
    validation_clips=1,
    log_every=2,
    checkpoint_every=4,
    sample_every=4,
    device="cpu",
    precision="float32",
)


def tone_clips(count: int = 5) -> list[Clip]:
    """Clips whose units are pitches: unit k is a tone of 200 (k + 1) Hz, for 2 k + 1 frames."""
    rng = np.random.default_rng(0)
    clips = []
    for index in range(count):
        ids = rng.integers(0, 6, 8)
        ids[1:][ids[1:] == ids[:-1]] = 0
        lengths = 1 + ids % 4
        pitch = np.repeat(200.0 * (ids + 1), lengths * 320)
        waveform = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / 16000)
        clips.append(
            Clip(
                waveform.astype(np.float32),
                Units(ids, lengths, 50.0),
                ("ada", "ben")[index % 2],
                ("en", "fr")[index // 2 % 2],
            )
        )
    return clips


class Interrupted(Exception):
    """As if the run had been killed."""


def weights(vocoder: Vocoder) -> dict[str, torch.Tensor]:
    """A copy of the weights."""
    return {name: value.clone() for name, value in vocoder.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether all weights are, bit for bit."""
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """torch's threads, for the time of a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize(("killed_at", "precision"), [(4, "bfloat16"), (6, "float32")])
@pytest.mark.usefixtures("threads")
def test_interrupted_training_ends_with_the_same_weights(tmp_path: Path, killed_at: int, precision: str) -> None:
    """Killed on or after a checkpoint, before and after the discriminators join: bit-identical, and one log."""
    training = replace(TRAINING, precision=precision)
    straight = train_vocoder(CONFIG, training, tone_clips(), tmp_path / "straight")

    def kill(record: dict) -> None:
        if record["step"] == killed_at:
            raise Interrupted

    with pytest.raises(Interrupted):
        train_vocoder(CONFIG, training, tone_clips(), tmp_path / "resumed", progress=kill)
    resumed = train_vocoder(CONFIG, training, tone_clips(), tmp_path / "resumed")
    for (name, one), two in zip(weights(straight).items(), weights(resumed).values(), strict=True):
        assert torch.equal(one, two), name
    states = [load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("straight", "resumed")]
    for name, one in states[0]["judges"].items():
        assert torch.equal(one, states[1]["judges"][name]), name
    logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").open()] for name in ("straight", "resumed")]
    for one, two in zip(*logs, strict=True):
        assert {k: v for k, v in one.items() if k != "steps_per_second"} == {
            k: v for k, v in two.items() if k != "steps_per_second"
        }


def test_an_emptied_checkpoint_costs_no_more_than_the_steps_since_the_one_before(tmp_path: Path) -> None:
    straight = weights(train_vocoder(CONFIG, TRAINING, tone_clips(), tmp_path))
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    steps: list[int] = []
    again = train_vocoder(
        CONFIG, TRAINING, tone_clips(), tmp_path, progress=lambda record: steps.append(record["step"])
    )
    assert steps == [6, 8]  # from the checkpoint of step 4
    assert all(torch.equal(value, straight[name]) for name, value in weights(again).items())


def test_the_folder_holds_what_was_trained(tmp_path: Path) -> None:
    """The returned vocoder is the saved one; samples can be listened to; a finished training is not repeated."""
    records: list[dict] = []
    vocoder = train_vocoder(CONFIG, TRAINING, tone_clips(), tmp_path, progress=records.append)
    assert [record["step"] for record in records] == [2, 4, 6, 8]
    assert "adversarial" not in records[0]
    assert "adversarial" in records[-1]
    assert records == [json.loads(line) for line in (tmp_path / "log.jsonl").open()]
    assert "validation_mel" in records[-1]
    loaded = Vocoder.load(tmp_path)
    assert loaded.config == CONFIG
    for one, two in zip(vocoder.parameters(), loaded.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-3, rtol=1e-3)
    for path in (tmp_path / "samples").glob("*-step*.wav"):
        audio, rate = sf.read(path)
        assert rate == 16000
        assert len(audio) > 1000
        assert path.with_suffix(".png").stat().st_size > 1000
    assert len(list((tmp_path / "samples").glob("*-step*.wav"))) == 2
    before = weights(vocoder)
    again = train_vocoder(CONFIG, TRAINING, tone_clips(), tmp_path, progress=lambda _: pytest.fail("trained again"))
    assert all(torch.equal(value, before[name]) for name, value in weights(again).items())


def test_it_learns_tones_and_durations(tmp_path: Path) -> None:
    """Spectral loss, duration loss and held-out loss fall well below their starts, without discriminators."""
    training = replace(
        TRAINING, steps=150, adversarial_from=None, learning_rate=4e-3, warmup=10, log_every=5, sample_every=1000
    )
    records: list[dict] = []
    train_vocoder(CONFIG, training, tone_clips(8), tmp_path, progress=records.append)
    assert records[-1]["mel"] < 0.6 * records[0]["mel"]
    assert records[-1]["duration"] < 0.5 * records[0]["duration"]
    assert records[-1]["pitch"] < 0.5 * records[0]["pitch"]
    assert records[-1]["voicing"] < 0.8 * records[0]["voicing"]


def test_a_training_goes_on_with_the_weights_of_another(tmp_path: Path) -> None:
    """They are where it begins, with discriminators or without; a checkpoint of its own goes before them."""
    first = train_vocoder(CONFIG, TRAINING, tone_clips(), tmp_path / "first")
    still = replace(TRAINING, learning_rate=0.0, adversarial_from=None)
    begun = train_vocoder(CONFIG, still, tone_clips(), tmp_path / "second", begin=first)
    assert same(weights(first), weights(begun))
    further = train_vocoder(CONFIG, TRAINING, tone_clips(), tmp_path / "third", begin=first)
    assert not same(weights(first), weights(further))
    again = train_vocoder(CONFIG, TRAINING, tone_clips(), tmp_path / "third", begin=Vocoder(CONFIG))
    assert same(weights(further), weights(again))


def test_a_vocoder_to_go_on_from_has_to_fit(tmp_path: Path) -> None:
    train_vocoder(CONFIG, replace(TRAINING, steps=1), tone_clips(), tmp_path)
    assert begun_vocoder(tmp_path, CONFIG).config == CONFIG
    for config, words in (
        (replace(CONFIG, codebook_size=7), "leave begin out"),
        (replace(CONFIG, languages=["es"]), "leave begin out"),
    ):
        with pytest.raises(TresseError, match=words):
            begun_vocoder(tmp_path, config)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(TresseError, match="restore its files"):
        begun_vocoder(tmp_path, CONFIG)


def test_realigned_clips_say_the_same_in_the_same_time() -> None:
    clips = check(CONFIG, TRAINING, tone_clips())
    for before, after in zip(clips, realigned(clips), strict=True):
        assert np.array_equal(after.units.ids, before.units.ids)
        assert after.units.run_lengths.sum() == before.units.run_lengths.sum()
        assert after.units.run_lengths.min() >= 1
        assert after.waveform is before.waveform
    slow = replace(clips[0], units=replace(clips[0].units, frame_rate=25.0))
    with pytest.raises(TresseError, match="units of 25 Hz cannot be realigned"):
        realigned([slow])


def test_speakers_come_and_go_without_a_change_of_the_others(tmp_path: Path) -> None:
    train_vocoder(CONFIG, replace(TRAINING, steps=1), tone_clips(), tmp_path)
    vocoder = Vocoder.load(tmp_path)
    more = begun_vocoder(tmp_path, replace(CONFIG, speakers=["zoe", "ben", "ada"]))
    assert more.config.speakers == ["zoe", "ben", "ada"]
    for speaker in CONFIG.speakers:
        spoken = [part.stream(speaker).push([1, 4, 2], language="fr", final=True) for part in (vocoder, more)]
        assert len(spoken[0])
        assert np.array_equal(*spoken)
    assert same(weights(vocoder), weights(more.for_speakers(CONFIG.speakers)))


def test_what_is_left_out_of_memory_changes_nothing(tmp_path: Path) -> None:
    """A vocoder that does without the features of the sentence so far sounds alike whatever they are."""
    training = replace(TRAINING, memory_dropout=1.0, prosody_dropout=0.3)
    vocoder = train_vocoder(CONFIG, training, tone_clips(), tmp_path)
    features = torch.randn(2, 3, CONFIG.prosody_dim)
    ids, speaker, language = (
        torch.tensor([[0, 1, 2], [3, 4, 5]]),
        torch.tensor([0, 1]),
        torch.zeros(2, 3, dtype=torch.long),
    )
    embedded = [vocoder.embed(ids, speaker, language, x) for x in (features, -features)]
    assert torch.equal(*embedded)
    batch = draw_batch(
        CONFIG, replace(TRAINING, memory_dropout=0.5, batch_size=40), check(CONFIG, TRAINING, tone_clips()), 0
    )
    assert 5 < int(batch.remembers_B.sum()) < 35
    fresh = Vocoder(CONFIG)
    whole = fresh.embed(ids, speaker, language, features)
    some = fresh.embed(ids, speaker, language, features, torch.tensor([True, False]))
    assert torch.equal(some[0], whole[0])
    assert not torch.equal(some[1], whole[1])


def test_batches_are_a_function_of_seed_and_step() -> None:
    clips = check(CONFIG, TRAINING, tone_clips())
    one, same = (vars(draw_batch(CONFIG, TRAINING, clips, 7)) for _ in range(2))
    other_step = vars(draw_batch(CONFIG, TRAINING, clips, 8))
    other_seed = vars(draw_batch(CONFIG, replace(TRAINING, seed=1), clips, 7))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["segment_BL"], other_step["segment_BL"])
    assert not torch.equal(one["segment_BL"], other_seed["segment_BL"])


def spoken_with_its_pitch(vocoder: Vocoder, clip: Clip) -> tuple[np.ndarray, np.ndarray]:
    """A clip as a stream speaks it, and the frequency and phase of the pulses that it speaks with [2, frames]."""
    stream = vocoder.stream(clip.speaker)
    heard: list[torch.Tensor] = []
    head = vocoder.head.forward

    def listen(x, source, *args, **settings):  # type: ignore[no-untyped-def]
        heard.append(torch.stack([source.f0[0], source.phase[0]]))
        return head(x, source, *args, **settings)

    vocoder.head.forward = listen  # type: ignore[method-assign]
    try:
        waveform = stream.push(clip.units.ids, clip.units.run_lengths, clip.language, final=True)
    finally:
        del vocoder.head.forward
    return waveform, torch.cat(heard, dim=1).numpy()


@pytest.mark.parametrize("segment_seconds", [0.1, 2.0])
def test_training_sees_what_a_stream_speaks(segment_seconds: float) -> None:
    """With the whole receptive field as context, the segment is the stream's audio, and the target its waveform."""
    torch.manual_seed(0)
    vocoder = Vocoder(CONFIG).eval()
    training = replace(TRAINING, context_seconds=0.5, segment_seconds=segment_seconds, batch_size=12)
    assert training.context_seconds * 100 >= CONFIG.receptive_field
    [clip] = check(CONFIG, training, tone_clips(1))
    waveform, pitch = spoken_with_its_pitch(vocoder, clip)
    clip = replace(clip, waveform=waveform, pitch=pitch)
    assert np.abs(clip.waveform).max() > 1e-3
    for step in range(3):
        batch = draw_batch(CONFIG, training, [clip], step)
        with torch.no_grad():
            fake, _ = generate(vocoder, batch, torch.autocast("cpu", enabled=False))
        torch.testing.assert_close(fake, batch.segment_BL, atol=1e-5, rtol=1e-3)


def test_what_cannot_be_trained_on_is_refused(tmp_path: Path) -> None:
    clips = tone_clips(2)
    for config, training, some, words in (
        (CONFIG, TRAINING, [], "no clips"),
        (CONFIG, TRAINING, [replace(clips[0], units=Units.empty(50.0))], "no clips"),
        (CONFIG, TRAINING, [replace(clips[0], speaker="zoe")], "ada, ben"),
        (CONFIG, TRAINING, [replace(clips[0], language="de")], "en, fr"),
        (replace(CONFIG, frame_rate=25.0), TRAINING, clips, "25 Hz"),
        (replace(CONFIG, codebook_size=2), TRAINING, clips, "codebook"),
        (CONFIG, replace(TRAINING, discriminator="none"), clips, "thin or stock"),
        (CONFIG, replace(TRAINING, precision="float8"), clips, "bfloat16"),
    ):
        with pytest.raises(TresseError, match=words) as caught:
            train_vocoder(config, training, some, tmp_path / "refused")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "refused").exists()
    short = replace(TRAINING, steps=2, adversarial_from=None)
    train_vocoder(CONFIG, short, clips, tmp_path / "run")
    with pytest.raises(TresseError, match="another folder"):
        train_vocoder(replace(CONFIG, dim=16), short, clips, tmp_path / "run")


def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_saved(tmp_path: Path) -> None:
    broken = replace(TRAINING, learning_rate=1e30, warmup=0, log_every=5)
    with pytest.raises(TresseError, match="lower the learning rate"):
        train_vocoder(CONFIG, broken, tone_clips(), tmp_path)
    assert load_checkpoint(tmp_path / "checkpoint.pt") is None
    assert (tmp_path / "log.jsonl").read_text() == ""


def test_bfloat16_trains_too(tmp_path: Path) -> None:
    records: list[dict] = []
    training = replace(TRAINING, steps=4, adversarial_from=0, precision="bfloat16", log_every=1)
    vocoder = train_vocoder(CONFIG, training, tone_clips(), tmp_path, progress=records.append)
    assert all(np.isfinite(value) for record in records for value in record.values())
    assert {weight.dtype for weight in vocoder.parameters()} == {torch.float32}


def test_clips_speak_a_sentence_with_the_units_of_every_voice(bundle: Bundle, voices: Voices, tmp_path: Path) -> None:
    """Each recording once with its own units, once with another voice's, in the timing of the recording."""
    sentences = [("en", "The little dog sleeps in the garden."), ("fr", "Le petit chien dort dans le jardin.")]
    clips = make_clips(bundle.units, sentences, voices, CONFIG.hop_length, tmp_path)
    own, other = clips[: len(clips) // 2], clips[len(clips) // 2 :]
    assert {(clip.language, clip.speaker) for clip in own} == {
        (language, name) for language, _ in sentences for name in voices.vocoder
    }
    for one, two in zip(own, other, strict=True):
        assert one.waveform is two.waveform
        assert (one.speaker, one.language) == (two.speaker, two.language)
        assert one.units.run_lengths.sum() == two.units.run_lengths.sum() == -(-len(one.waveform) // 320)
        np.testing.assert_array_equal(one.units.ids, bundle.units.encode(one.waveform, SAMPLE_RATE).ids)
        assert not np.array_equal(one.units.frames(), two.units.frames())
        assert (one.units.frames() == two.units.frames()).mean() > 0.5  # aligned: a shifted copy would agree by chance
        assert one.pitch is not None
        assert 60 < np.median(one.pitch[0][one.pitch[0] > 0]) < 400
    again = make_clips(bundle.units, sentences, voices, CONFIG.hop_length, tmp_path)
    assert all(np.array_equal(one.units.ids, two.units.ids) for one, two in zip(clips, again, strict=True))


def test_clips_are_recorded_again_and_learnt_with_the_phones_that_were_spoken(
    bundle: Bundle, voices: Voices, tmp_path: Path
) -> None:
    """Units of another condition and of the phones themselves, in the timing of the recording; other families have none."""
    sentences = [("en", "The little dog sleeps in the garden."), ("fr", "Le petit chien dort dans le jardin.")]
    names = {phone: number for number, phone in enumerate(["_", *"dɔltʒ"])}
    hearing = Hearing(rerecorded=2, units_of_phones=names)
    clips = make_clips(bundle.units, sentences, voices, CONFIG.hop_length, tmp_path, hearing=hearing)
    count = 2 * len(voices.vocoder)
    own, first, second, named = (clips[part * count : (part + 1) * count] for part in range(4))
    for clip, once, again, spoken in zip(own, first, second, named, strict=True):
        assert clip.waveform is once.waveform is again.waveform is spoken.waveform
        assert len({int(each.units.run_lengths.sum()) for each in (clip, once, again, spoken)}) == 1
        assert not np.array_equal(once.units.frames(), again.units.frames())  # other rooms
        assert set(spoken.units.ids) <= set(names.values())
        assert (spoken.units.ids[0], spoken.units.ids[-1]) == (0, 0)  # silence at both ends


def test_phones_without_a_unit_sound_as_the_one_before_them() -> None:
    phones = [("_", 0.0, 0.1), ("a", 0.1, 0.2), ("x", 0.2, 0.3), ("b", 0.3, 0.4), ("y", 0.4, 0.5)]
    row = Spoken("a.flac", 0, 8000, 16000, "ab", "en", "anna", "kokoro", 0.0, phones)
    like = Units(np.array([1]), np.array([25]), 50.0)
    units = phone_units(row, like, {"_": 0, "a": 1, "b": 2})
    assert units is not None
    assert units.ids.tolist() == [0, 1, 2]
    assert units.run_lengths.tolist() == [5, 10, 10]
    assert phone_units(row, like, {"z": 0}) is None
    assert phone_units(replace(row, phones=None), like, {"a": 1}) is None


def test_held_out_clips_are_of_every_kind_and_never_trained_on() -> None:
    clips = check(CONFIG, TRAINING, tone_clips(40))
    clips += [replace(clip, units=clip.units[:4]) for clip in clips]  # other units of the same recordings
    held_out, others = hold_out(clips, replace(TRAINING, validation_clips=8))
    kinds = [(clip.speaker, clip.language) for clip in held_out]
    assert len(set(kinds)) == 4
    assert {kinds.count(kind) for kind in kinds} == {2}
    heard = {id(clip.pitch) for clip in held_out}
    assert len(others) == len(clips) - 2 * len(heard)
    assert not heard & {id(clip.pitch) for clip in others}
