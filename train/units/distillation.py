"""Units for any voice: a network learns to name speech as its teacher does, as the sound arrives.

    pool of natural voices (phones known) ──► teacher's head ──► names of pool and recordings ──► network
                                            what is said in them ──┘

The names are phones (`train.units.teacher`), as the supervised tokens of CosyVoice and GLM-4-Voice are text's. Where it is
known what is said (`said.py`), the teacher tells when (`alignment.py`) and not what. Every clip is learnt twice: as it is,
and through a room, noise, a telephone line or an equaliser, with the names of the clean clip (`naming.py`); vocal tract
length, rate, gain and noise are varied anew in every batch.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchaudio.functional import mask_along_axis_iid

from slm.errors import TresseError
from slm.model import part_folders
from slm.units import load_encoder
from slm.units.attention import AttentionEncoderConfig, AttentionNetwork, AttentionUnitEncoder
from slm.units.causal import CausalUnitEncoder, UnitNetwork
from slm.units.conv import ConvEncoderConfig, ConvUnitEncoder
from slm.weights import rounded
from train.corpus.channel import measure_channel
from train.corpus.recordings import read_recordings
from train.speech.augmentation import Augmentation
from train.speech.espeak import EspeakSpeaker
from train.speech.kokoro import KokoroSpeaker, KokoroStyle
from train.speech.pico import PicoSpeaker
from train.speech.pool import Clip, Request, speak_pool
from train.speech.voices import Speaker, Voices
from train.tools.hardware import bf16_pays
from train.units.crops import draw_crops
from train.units.fitting import fit
from train.units.naming import NamedSpeech, name_speech
from train.units.said import Reader, of_clips, of_recordings
from train.units.teacher import (
    EncoderTeacher,
    PhoneHead,
    PhoneTeacher,
    Teacher,
    TeacherTraining,
    check_whisper,
    levelled,
    timed_clips,
    train_teacher,
)
from train.units.training import augment
from train.units.whisper import begin_with_whisper


@dataclass(frozen=True)
class DistilledUnits:
    """Units named by a teacher.

    whisper: the teacher's Whisper, a folder of the models. voices: the voices file, beside recipes/, whose training
    speakers, and mixtures of them, speak `sentences` sentences, drawn from `texts` a language. recordings: folders of
    recordings of people, as `train.corpus.recordings` reads them; transcribed: Whisper writes down those that have no
    text. merged: phones that share the unit of another, since accents and readings differ in them. begin: a bundle, or
    the folder of an encoder of the same shape and phones, whose network is trained further; null: convolutions begin with
    nothing, attention with Whisper's layers and the teacher's head. self_named: `begin` is the teacher too. begun: share
    of the learning rate for all but what names units; 0 leaves them as they are. teacher: training of its head. steps,
    batch_size, segment_frames, learning_rate: training of the network. conditions: how often clips pass through rooms,
    noise and lines. babble: share of the segments of a batch in which others talk in the background. masks: bands and
    stretches of a segment that are hidden (SpecAugment).
    """

    whisper: str = "whisper"
    voices: str = "voices-natural.yaml"
    merged: dict[str, str] = field(default_factory=dict)
    begin: str | None = None
    self_named: bool = False
    texts: int = 4200
    sentences: int = 4200
    recordings: tuple[str, ...] = ()
    transcribed: bool = True
    teacher: TeacherTraining = field(default_factory=TeacherTraining)
    steps: int = 12000
    batch_size: int = 32
    segment_frames: int = 150
    learning_rate: float = 2e-3
    conditions: Augmentation = field(
        default_factory=lambda: Augmentation(
            room=0.6, noise=0.5, telephone=0.15, equaliser=0.3, clipping=0.05, snr_db=(5.0, 35.0)
        )
    )
    begun: float = 1.0
    babble: float = 0.0
    masks: int = 0
    seed: int = 0
    checkpoint_every: int = 500


def train_distilled(
    config: ConvEncoderConfig | AttentionEncoderConfig,
    training: DistilledUnits,
    sentences: Sequence[tuple[str, str]],
    folder: Path,
    workers: int = 2,
) -> tuple[CausalUnitEncoder, list[str]]:
    """Speak, name and learn; goes on where an earlier run stopped. sentences: (language, text).

    What the encoder makes of Kokoro's phones is left in the folder too (`train.corpus.channel`).
    The encoder and the phones that its units are; config's codebook size is replaced by their number. Raises TresseError
    where a model or a folder of recordings is missing.
    """
    voices = Voices.named(training.voices)
    recordings = [read_recordings(Path(source).expanduser()) for source in training.recordings]
    pool, whisper = folder / "pool", voices.model_folder(training.whisper)
    check_whisper(whisper)
    if training.self_named and training.begin is None:
        raise TresseError("units.distilled.self_named: say in begin which encoder is the teacher")
    clips = speak_pool(requests(sentences, voices, training), voices, pool, workers)
    teacher: Teacher = (
        EncoderTeacher(*phone_encoder(str(training.begin)))
        if training.self_named
        else train_teacher(clips, pool, whisper, training.teacher, folder / "teacher")
    )
    kind: type[CausalUnitEncoder] = (
        AttentionUnitEncoder if isinstance(config, AttentionEncoderConfig) else ConvUnitEncoder
    )
    front = kind.network_type(config).mel
    reader = Reader(teacher.phones, voices.languages, training.merged)
    writer = whisper if training.transcribed else None
    sources = {"pool": (of_clips(clips, pool, reader), len(clips))}
    for number, source in enumerate(recordings):
        said = of_recordings(source, reader, writer, folder / f"transcripts-{number}.jsonl")
        sources[str(number)] = (said, len(source))
    speech = [
        name_speech(said, count, teacher, training.conditions, training.seed, front, folder / "named" / name)
        for name, (said, count) in sources.items()
    ]
    phones, units = merge(teacher.phones, training.merged)
    speech = [replace(source, names=units[source.names.long()]) for source in speech]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        network: UnitNetwork = kind.network_type(replace(config, codebook_size=len(phones)))
    if training.begin is not None:
        begin_with(network, phones, training.begin)
    elif isinstance(network, AttentionNetwork) and isinstance(teacher, PhoneTeacher):
        begin_with_whisper(network, whisper)
        begin_with_teacher(network, teacher.head, units)
    distil(network, speech, training, folder / "student.pt")
    encoder = kind(rounded(network, kind.stored))  # as it will be saved
    named = {name: int(units[number]) for number, name in enumerate(teacher.phones)}
    named |= {name: named[other] for name, other in training.merged.items() if other in named}
    measure_channel(timed_speech(clips, pool, training), named, encoder).save(folder)
    return encoder, phones


def timed_speech(
    clips: Sequence[Clip], pool: Path, training: DistilledUnits, most: int = 500
) -> Iterator[tuple[list[str], np.ndarray]]:
    """The phones and the waveform of at most `most` clips of Kokoro, spread over all, as recorded under the conditions."""
    timed = timed_clips(clips)
    for number, clip in enumerate(timed[:: max(1, len(timed) // most)][:most]):
        recording = training.conditions.recording(training.seed + number)
        yield [name for name, _, _ in clip.phones or []], recording.of(levelled(clip.read(pool), clip.sample_rate))


def begin_with(network: UnitNetwork, phones: Sequence[str], source: str) -> None:
    """Give a network the weights of an encoder. source: as of `phone_encoder`.

    Raises TresseError where it is not there, or is of another shape or other phones.
    """
    encoder, own = phone_encoder(source)
    if own != list(phones):
        raise TresseError(f"units.distilled.begin: the units of {source} are other phones: leave begin out")
    try:
        network.load_state_dict(encoder.network.state_dict())
    except RuntimeError as error:
        raise TresseError(
            f"units.distilled.begin: the encoder of {source} has another shape: leave begin out"
        ) from error


def phone_encoder(source: str) -> tuple[CausalUnitEncoder, list[str]]:
    """An encoder whose units are phones, and these. source: a bundle, or the encoder's folder, with its phones.json.

    Raises TresseError where there is none.
    """
    for folder in part_folders(source, "units"):
        if (folder / "phones.json").exists():
            encoder = load_encoder(folder)
            if isinstance(encoder, CausalUnitEncoder):
                return encoder, json.loads((folder / "phones.json").read_text(encoding="utf-8"))
    raise TresseError(f"units.distilled.begin: there is no encoder with its phones.json in {source}")


def begin_with_teacher(network: AttentionNetwork, head: PhoneHead, units: Tensor) -> None:
    """Give what names units in a network the weights of the teacher's head, in place. units: of each phone, as `merge` gives
    them; a unit begins with the weights of the first of its phones.

    Raises TresseError where the network's head has another shape.
    """
    named = {"norm": head.norm, "inward": head.inward}
    weights = {f"{name}.{key}": value for name, part in named.items() for key, value in part.state_dict().items()}
    for name, value in head.both_ways.state_dict().items():
        weights[f"back.{name.removesuffix('_reverse')}" if name.endswith("_reverse") else f"onward.{name}"] = value
    first = [units.tolist().index(unit) for unit in range(int(units.max()) + 1)]
    weights |= {f"outward.{name}": value[first] for name, value in head.outward.state_dict().items()}
    try:
        network.head.load_state_dict(weights)
    except RuntimeError as error:
        raise TresseError("units.attention: inward and recurrent must be those of the teacher, 256 and 192") from error


def merge(phones: Sequence[str], merged: Mapping[str, str]) -> tuple[list[str], Tensor]:
    """The phones that units are named after, and the unit of each phone, uint8 [phones]. What is not there is ignored."""
    left = [phone for phone in phones if merged.get(phone) not in phones]
    units = [left.index(merged[phone] if phone not in left else phone) for phone in phones]
    return left, torch.tensor(units, dtype=torch.uint8)


def requests(sentences: Sequence[tuple[str, str]], voices: Voices, training: DistilledUnits) -> list[Request]:
    """`training.sentences` sentences, drawn, each by a speaker of its own: of four, three of Kokoro's timbres mixed in twos,
    and one of Pico or espeak-ng with speed and pitch varied."""
    rng = random.Random(training.seed)
    kokoro = [speaker for speaker in voices.training.values() if isinstance(speaker, KokoroSpeaker)]
    others = [speaker for speaker in voices.training.values() if isinstance(speaker, PicoSpeaker | EspeakSpeaker)]
    asked: list[Request] = []
    for number in range(training.sentences):
        language, text = sentences[rng.randrange(len(sentences))]
        if others and number % 4 == 3:
            asked.append((text, language, varied(rng.choice(others), rng, number)))
        elif kokoro:
            able = [speaker for speaker in kokoro if language in speaker.kokoro]
            asked.append((text, language, mixed(rng.choice(able), rng.choice(able), language, rng, number)))
    return asked


def mixed(first: KokoroSpeaker, second: KokoroSpeaker, language: str, rng: random.Random, number: int) -> KokoroSpeaker:
    """A speaker of one language between two others, with speed and pitch varied."""
    style_of_first, style_of_second = first.kokoro[language], second.kokoro[language]
    share = round(rng.uniform(0.3, 1.0), 2)
    timbre: dict[str, float] = {}
    for style, weight in ((style_of_first, share), (style_of_second, 1.0 - share)):
        for voice, part in style.timbre.items():
            timbre[voice] = round(timbre.get(voice, 0.0) + weight * part, 4)
    pitch = share * style_of_first.pitch + (1.0 - share) * style_of_second.pitch
    style = KokoroStyle(
        {voice: part for voice, part in timbre.items() if part > 0},
        style_of_first.prosody or style_of_first.timbre,
        round(min(2.0, style_of_first.speed * rng.uniform(0.85, 1.2)), 2),
        round(pitch * rng.uniform(0.88, 1.14), 2),
        style_of_first.reading,
    )
    return KokoroSpeaker(f"mixed-{number:06d}", {language: style})


def varied(speaker: Speaker, rng: random.Random, number: int) -> Speaker:
    """A speaker of Pico or espeak-ng with speed and pitch varied."""
    if isinstance(speaker, PicoSpeaker):
        speed, pitch = round(rng.uniform(0.85, 1.2), 2), round(rng.uniform(0.75, 1.4), 2)
        return PicoSpeaker(f"varied-{number:06d}", speaker.pico, speed, pitch)
    assert isinstance(speaker, EspeakSpeaker)
    rate, pitch = round(speaker.rate * rng.uniform(0.85, 1.2)), min(99, max(0, speaker.pitch + rng.randint(-15, 15)))
    return EspeakSpeaker(f"varied-{number:06d}", speaker.variant, rate, pitch)


def distil(network: UnitNetwork, speech: Sequence[NamedSpeech], training: DistilledUnits, checkpoint: Path) -> None:
    """Train the network on the teacher's names, in place; goes on from the checkpoint."""

    def losses(number: int) -> dict[str, Tensor]:
        power, names, weights, mask = draw_batch(speech, training, number)
        rng = np.random.default_rng([training.seed, 3, number])
        torch.manual_seed(int(rng.integers(2**62)))  # dropout and masks
        mels = hide(network.mel.log(power), training.masks)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16_pays("cpu")):
            logits, _ = network(mels, network.state_of_training(mels, rng))
        frames = logits.shape[1]
        chosen = logits.float().log_softmax(-1).gather(-1, names[:, :frames])
        loss = -((chosen * weights[:, :frames]).sum(-1) * mask[:, :frames]).sum() / mask[:, :frames].sum()
        return {"loss": loss, "agreement": (logits.argmax(-1) == names[:, :frames, 0]).float().mean()}

    every, begun = training.checkpoint_every, training.begun
    fit(network, losses, training.steps, training.learning_rate, checkpoint, every, "units", begun)


def draw_batch(
    speech: Sequence[NamedSpeech], training: DistilledUnits, step: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mel energies [B, 2T, mels], names [B, T, LIKELIEST], their weights, a loss mask [B, T]: a function of (seed, step).

    Sources are drawn by the square root of their length, so that a small one is not drowned.
    """
    rng = np.random.default_rng([training.seed, 2, step])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    shares = np.sqrt([float(source.lengths.sum()) for source in speech])
    mels, names, weights, masks = [], [], [], []
    counts = rng.multinomial(training.batch_size, shares / shares.sum())
    for source, size in zip(speech, counts, strict=True):
        pick = rng.integers(len(source.lengths), size=size)
        crops = draw_crops(rng, source.starts.numpy()[pick], source.lengths.numpy()[pick], training.segment_frames)
        mels.append(source.mels[crops.halves])
        names.append(source.names[crops.frames])
        weights.append(source.weights[crops.frames])
        masks.append(crops.mask)
    heard = augment(babble(torch.cat(mels).float(), training.babble, generator), generator)
    return heard, torch.cat(names).long(), torch.cat(weights).float(), torch.cat(masks)


def babble(power_BTM: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Two other segments of the batch behind a share of the segments, their energies added at 5 to 25 dB below."""
    size = len(power_BTM)
    if share == 0 or size < 3:
        return power_BTM
    order = torch.randperm(size, generator=generator)
    others = power_BTM[order.roll(1)] + power_BTM[order.roll(2)]
    others = torch.empty_like(others).index_copy_(0, order, others)
    level = power_BTM.mean((1, 2)) / others.mean((1, 2)).clamp(min=1e-9)
    gain = level * 10 ** -(0.5 + 2.0 * torch.rand(size, generator=generator))
    return power_BTM + others * (gain * (torch.rand(size, generator=generator) < share))[:, None, None]


def hide(mels_BTM: Tensor, masks: int) -> Tensor:
    """SpecAugment (Park et al. 2019, arXiv:1904.08779): `masks` bands of up to an eighth of the mels, and as many stretches
    of up to 0.15 s, of each segment. Drawn from torch's generator."""
    spectra = mels_BTM.transpose(1, 2)[:, None]
    for _ in range(masks):
        spectra = mask_along_axis_iid(spectra, mels_BTM.shape[2] // 8, 0.0, 2)
        spectra = mask_along_axis_iid(spectra, 15, 0.0, 3)
    return spectra[:, 0].transpose(1, 2)
