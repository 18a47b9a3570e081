"""What the speech recogniser trains on: a pool of spoken sentences kept as mel features, and clips drawn from it.

Speaking is dear (10 ms a sentence), drawing must be cheap (1 ms a clip): the pool is spoken once over worker processes
and kept as the features that faster-whisper would compute. Everything random is then done to a whole batch of mel
spectrograms at once: several sentences of a voice in a row, tempo, vocal tract length, equalisation, band limits,
noise, gain and SpecAugment (Park et al. 2019). Pool and batches are pure functions of their seeds. Beside every mel frame
the pool keeps the phone that is heard in it, where the synthesiser tells (espeak-ng): it goes through all of this with
the frame.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from slm.errors import TresseError
from train.speech.augmentation import Augmentation
from train.speech.espeak import EspeakSpeaker
from train.speech.phones import SILENCE, Phone, phones
from train.speech.voices import MARGIN, SAMPLE_RATE, Voices, speak, speak_with_phonemes
from train.tools.checkpoints import atomic_path, write_json
from train.tools.progress import Progress
from train.tools.workers import worker_pool

SHARD = 500
"""Utterances of a file of the pool."""
FLOOR = -10.0
"""log10 of the power that digital silence counts as (faster-whisper's)."""
DRIFT = 0.04
"""s by which a resynthesised utterance may differ in length from what its units last and keep its phones' times."""
UNKNOWN = -100
"""Label of a frame whose phone is not known; no loss counts it."""


@dataclass(frozen=True)
class MelFeatures:
    """faster-whisper's log-mel features. hop_length, n_fft: samples at 16 kHz; chunk_length: s of an encoder input."""

    feature_size: int = 64
    hop_length: int = 320
    n_fft: int = 512
    chunk_length: int = 8

    @property
    def frames(self) -> int:
        """Mel frames of a whole chunk."""
        return self.chunk_length * SAMPLE_RATE // self.hop_length

    @cached_property
    def _extractor(self):  # type: ignore[no-untyped-def]
        from faster_whisper.feature_extractor import FeatureExtractor

        return FeatureExtractor(sampling_rate=SAMPLE_RATE, **asdict(self))

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """float32 [samples] at 16 kHz -> log10 mel power float32 [T, feature_size], at most 80 dB under its maximum."""
        return 4.0 * self._extractor(waveform, padding=0).T - 4.0


@dataclass(frozen=True)
class Utterance:
    """A sentence to be spoken. through: by a bundle, from its units, rather than directly; retimed: with the run lengths
    that the bundle predicts. recording: seed of the room, line and noise that it is recorded with."""

    language: str
    text: str
    speaker: str
    through: bool = False
    recording: int | None = None
    retimed: bool = False


@dataclass(frozen=True)
class PoolSettings:
    """What is spoken. utterances: in all languages together; scrambled: share whose words are drawn without regard to
    sense, lest the recogniser hear stories where there are none; resynthesised: share spoken by a bundle's vocoder;
    retimed: share of these whose run lengths are the vocoder's own, as in a reply; recorded: share that passes through
    `augmentation`.
    """

    utterances: int = 40_000
    scrambled: float = 0.25
    resynthesised: float = 0.4
    retimed: float = 0.5
    recorded: float = 0.4
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0


def written(text: str) -> str:
    """A sentence as it is to be transcribed: without quotation marks and dashes, which nobody hears."""
    text = re.sub(r"[«»“”\"()]", " ", text.replace("’", "'").replace("\N{NO-BREAK SPACE}", " "))
    text = re.sub(r"\s+[–—]\s+", " ", text.replace("\N{NARROW NO-BREAK SPACE}", " "))
    return re.sub(r"\s+([,.!?;:])", r"\1", " ".join(text.split()))


def plan_pool(
    settings: PoolSettings, sentences: list[tuple[str, str]], speakers: list[str], bundle: bool = False
) -> list[Utterance]:
    """The utterances of a pool: languages in turn, every sentence before any comes twice, speakers at random.

    sentences: (language, text). bundle: whether there is one to speak the resynthesised share.
    """
    rng, timing = (np.random.default_rng([settings.seed, purpose]) for purpose in (11, 13))
    texts = {
        language: [text for other, text in sentences if other == language]
        for language in dict.fromkeys(language for language, _ in sentences)
    }
    languages = list(texts)
    orders = {language: rng.permutation(len(texts[language])) for language in languages}
    plan = []
    for number in range(settings.utterances):
        language = languages[number % len(languages)]
        own = texts[language]
        if rng.random() < settings.scrambled:
            text = scramble(own, rng)
        else:
            text = own[orders[language][number // len(languages) % len(own)]]
        through = bundle and rng.random() < settings.resynthesised
        recording = number if rng.random() < settings.recorded else None
        retimed = bool(timing.random() < settings.retimed) and through
        plan.append(Utterance(language, text, speakers[rng.integers(len(speakers))], through, recording, retimed))
    return plan


def scramble(texts: list[str], rng: np.random.Generator) -> str:
    """A senseless sentence of pieces (one to three words in a row) of other sentences."""
    words: list[str] = []
    for _ in range(rng.integers(2, 5)):
        source = re.sub(r"[.!?;:,]", " ", written(texts[rng.integers(len(texts))])).split()
        first, count = rng.integers(len(source)), rng.integers(1, 4)
        piece = source[first : first + count]
        words += [piece[0].lower(), *piece[1:]] if first == 0 else piece
    return (words[0][:1].upper() + words[0][1:] + " " + " ".join(words[1:])).strip() + "."


@dataclass(frozen=True)
class Spoken:
    """Utterances as features. mels_FM: log10 mel powers float16, end to end; lengths: frames of each utterance; labels_F:
    uint8, the place of each frame's phone in `phones`, where "" stands for not known."""

    mels_FM: np.ndarray
    lengths: np.ndarray
    labels_F: np.ndarray
    phones: np.ndarray


class Pool:
    """Spoken utterances as features: row i of mels_FM (log10 mel powers) and of labels_F is [starts[i]:][:lengths[i]].

    phones: all that are heard, of all languages; labels_F: int16 places in them, or UNKNOWN; silence: the place of SILENCE.
    """

    def __init__(self, utterances: list[Utterance], parts: list[Spoken]) -> None:
        self.utterances = utterances
        self.mels_FM = np.concatenate([part.mels_FM for part in parts])
        self.lengths = np.concatenate([part.lengths for part in parts])
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]])
        self.phones = sorted({SILENCE, *(str(phone) for part in parts for phone in part.phones)} - {""})
        self.silence = self.phones.index(SILENCE)
        places = {"": UNKNOWN, **{phone: place for place, phone in enumerate(self.phones)}}
        self.labels_F = np.concatenate(
            [np.array([places[str(phone)] for phone in part.phones], np.int16)[part.labels_F] for part in parts]
        )
        keys = [(one.language, one.speaker, one.through) for one in utterances]
        self._groups: dict[tuple, np.ndarray] = {
            key: np.flatnonzero([key == other for other in keys]) for key in dict.fromkeys(keys)
        }
        self._keys = keys

    def __len__(self) -> int:
        return len(self.utterances)

    def mel(self, index: int) -> np.ndarray:
        """float16 [T, M]."""
        return self.mels_FM[self.starts[index] : self.starts[index] + self.lengths[index]]

    def labels(self, index: int) -> np.ndarray:
        """int16 [T]."""
        return self.labels_F[self.starts[index] : self.starts[index] + self.lengths[index]]

    def companions(self, index: int) -> np.ndarray:
        """The utterances of the same language and voice."""
        return self._groups[self._keys[index]]


@dataclass(frozen=True)
class Studio:
    """How a plan is spoken and kept. bundle: the folder of the bundle that speaks the resynthesised share."""

    features: MelFeatures
    voices: Voices
    augmentation: Augmentation
    bundle: Path | None = None

    def record(self, one: Utterance) -> tuple[np.ndarray, list[Phone]]:
        """The utterance: float32 [samples] at 16 kHz, and its phones; none where their times are not known."""
        speaker, heard = self.voices.speaker(one.speaker), []
        if isinstance(speaker, EspeakSpeaker):
            waveform, phonemes = speak_with_phonemes(one.text, one.language, speaker, self.voices)
            heard = phones(phonemes, len(waveform) / SAMPLE_RATE)
        else:
            waveform = speak(one.text, one.language, speaker, self.voices)
        if one.through and self.bundle is not None:
            before = len(waveform) / SAMPLE_RATE
            waveform, (old, new) = resynthesise(waveform, one, self.bundle)
            times = np.interp([[phone.start, phone.end] for phone in heard], [0.0, *old], [0.0, *new])
            heard = [Phone(phone.name, *place) for phone, place in zip(heard, times.tolist(), strict=True)]
            if abs(len(waveform) / SAMPLE_RATE - (before + new[-1] - old[-1])) > DRIFT:
                heard = []
        if one.recording is not None:
            waveform = self.augmentation.recording(one.recording).of(waveform)
        return waveform, heard

    def fingerprint(self, plan: list[Utterance]) -> str:
        """Changes with whatever changes the pool."""
        speakers = sorted({one.speaker for one in plan})
        told = ("phones", plan, self.features, self.augmentation, [self.voices.speaker(name) for name in speakers])
        digest = hashlib.sha256(repr(told).encode())
        if self.bundle is not None:
            for part in ("units", "vocoder"):
                digest.update((self.bundle / part / "model.safetensors").read_bytes())
        return digest.hexdigest()[:16]


def make_pool(plan: list[Utterance], studio: Studio, folder: Path, workers: int) -> Pool:
    """Speak the plan over `workers` processes into `folder`, shard by shard; goes on with the first missing one.

    Raises TresseError where `folder` holds another pool.
    """
    identity = {"utterances": len(plan), "sources": studio.fingerprint(plan)}
    description = folder / "pool.json"
    if description.exists() and json.loads(description.read_text(encoding="utf-8")) != identity:
        raise TresseError(f"{folder} holds speech of other sentences, voices or features: delete it, or choose another")
    write_json(description, identity)
    shards = [
        (folder / f"shard-{first // SHARD:04d}.npz", plan[first : first + SHARD])
        for first in range(0, len(plan), SHARD)
    ]
    missing = [shard for shard in shards if not shard[0].exists()]
    progress = Progress("pool", len(shards), start=len(shards) - len(missing), unit="shards")
    with worker_pool(workers) if workers > 1 and missing else nullcontext() as pool:
        speaking = (pool.map if pool else map)(speak_shard, missing, [studio] * len(missing))
        for done, _ in enumerate(speaking, len(shards) - len(missing) + 1):
            progress.update(done)
    return Pool(plan, [_read(path) for path, _ in shards])


def _read(path: Path) -> Spoken:
    with np.load(path) as held:
        return Spoken(*(held[part.name] for part in fields(Spoken)))


def speak_shard(shard: tuple[Path, list[Utterance]], studio: Studio) -> None:
    """Speak a shard's utterances and write their features."""
    path, utterances = shard
    mels, labels = [], []
    for one in utterances:
        waveform, heard = studio.record(one)
        mels.append(studio.features(waveform).astype(np.float16))
        labels.append(frame_phones(heard, len(mels[-1]), studio.features))
    names, places = np.unique(np.concatenate(labels), return_inverse=True)
    lengths = np.array([len(mel) for mel in mels])
    spoken = Spoken(np.concatenate(mels), lengths, places.astype(np.uint8), names)
    with atomic_path(path) as temporary:
        with temporary.open("wb") as file:
            np.savez(file, **{part.name: getattr(spoken, part.name) for part in fields(Spoken)})


def frame_phones(heard: list[Phone], frames: int, features: MelFeatures) -> np.ndarray:
    """The phone in the middle of each mel frame (frame t is centred at t hops): str [frames]; "" if none is known."""
    if not heard:
        return np.full(frames, "")
    ends = np.array([phone.end for phone in heard])
    index = np.searchsorted(ends, np.arange(frames) * features.hop_length / SAMPLE_RATE, side="right")
    return np.array([*(phone.name for phone in heard), SILENCE])[index]


_BUNDLES: dict = {}


def resynthesise(waveform: np.ndarray, utterance: Utterance, bundle: Path) -> tuple[np.ndarray, np.ndarray]:
    """The waveform as units, and these spoken by the bundle's vocoder, each sentence by one of its speakers.

    Returns float32 [samples] at 16 kHz, and [2, N]: where the N units end in the waveform, and where in what is returned, s.
    """
    from slm.audio import resample
    from slm.bundle import Bundle
    from slm.units import collapses

    if bundle not in _BUNDLES:
        _BUNDLES[bundle] = Bundle.load(bundle, device="cpu")
    held = _BUNDLES[bundle]
    units = held.units.encode(waveform, SAMPLE_RATE)
    pick = int(hashlib.sha256(repr(utterance).encode()).hexdigest(), 16) % len(held.speakers)
    stream = held.vocoder.stream(held.speakers[pick])
    own = utterance.retimed and collapses(held.units)
    audio = stream.push(units.ids, None if own else units.run_lengths, utterance.language, final=True)
    ends = np.cumsum([units.run_lengths, stream.run_lengths], axis=1) / units.frame_rate
    return resample(np.asarray(audio, np.float32), held.sample_rate, SAMPLE_RATE), ends


@dataclass(frozen=True)
class ClipSettings:
    """How clips are drawn. batch: clips; together: share of clips of several sentences; whole: share of batches padded
    to the whole chunk, as faster-whisper pads (others end where their longest clip ends). pause, silence: s between
    sentences, and before and after. block: batches that are drawn together and sorted by length. tempo: factors of the
    speed; warp: of the frequency axis. equaliser, gain: log10 of power (0.35 is 3.5 dB). limited: share of clips whose
    band ends early; noise: share with noise, noise_below: log10 of power under the loudest. masks: of each kind in a
    clip, at most `mask_bands` bands or `mask_frames` frames wide.
    """

    batch: int = 16
    together: float = 0.2
    whole: float = 0.05
    pause: tuple[float, float] = (0.05, 0.6)
    silence: tuple[float, float] = (0.0, 0.2)
    block: int = 32
    tempo: tuple[float, float] = (0.87, 1.15)
    warp: float = 0.08
    equaliser: float = 0.35
    gain: tuple[float, float] = (-1.5, 1.0)
    limited: float = 0.15
    noise: float = 0.6
    noise_below: tuple[float, float] = (1.5, 5.0)
    masks: int = 2
    mask_bands: int = 8
    mask_frames: int = 8

    def weakened(self, strength: float) -> ClipSettings:
        """The same with less augmentation: 0 leaves none but the gain."""
        return replace(
            self,
            tempo=(1 + strength * (self.tempo[0] - 1), 1 + strength * (self.tempo[1] - 1)),
            warp=strength * self.warp,
            equaliser=strength * self.equaliser,
            limited=strength * self.limited,
            noise=strength * self.noise,
            mask_bands=round(strength * self.mask_bands),
            mask_frames=round(strength * self.mask_frames),
        )


@dataclass
class ClipBatch:
    """mels_BMT: as faster-whisper feeds them, zero behind each clip's end (T even); frames_B; languages and texts of the
    clips; labels_BT: the pool's labels of the frames, UNKNOWN behind the end; knots: for each clip, letters of its text
    (rising) and the frames at which they are about to be heard, sentence by sentence."""

    mels_BMT: Tensor
    frames_B: Tensor
    languages: list[str]
    texts: list[str]
    labels_BT: Tensor
    knots: list[tuple[np.ndarray, np.ndarray]]


class Clips:
    """The batches of a run: step s is the same whoever asks, and whenever."""

    def __init__(self, pool: Pool, features: MelFeatures, settings: ClipSettings, seed: int) -> None:
        self.pool, self.features, self.settings, self.seed = pool, features, settings, seed
        self._block: tuple[int, list[list[list[int]]]] = (-1, [])

    def plan(self, block: int) -> list[list[list[int]]]:
        """For each batch of a block, for each clip: the utterances in it."""
        rng = np.random.default_rng([self.seed, 12, block])
        settings = self.settings
        count = settings.block * settings.batch
        slowest = settings.tempo[0]
        clips: list[tuple[int, list[int]]] = []
        for index in rng.integers(len(self.pool), size=count):
            clip, frames = [int(index)], int(self.pool.lengths[index])
            if rng.random() < settings.together:
                for other in rng.choice(self.pool.companions(int(index)), size=rng.integers(1, 3)):
                    longer = frames + int(self.pool.lengths[other]) + self._frames(settings.pause[1])
                    if longer + self._frames(0.5) <= self.features.frames * slowest:
                        clip, frames = [*clip, int(other)], longer
            clips.append((frames, clip))
        clips.sort(key=lambda entry: entry[0])
        batches = [
            [clip for _, clip in clips[first : first + settings.batch]] for first in range(0, count, settings.batch)
        ]
        return [batches[index] for index in rng.permutation(len(batches))]

    def _frames(self, seconds: float) -> int:
        return round(seconds * SAMPLE_RATE / self.features.hop_length)

    def batch(self, step: int, strength: float = 1.0, device: torch.device | str = "cpu") -> ClipBatch:
        """The batch of this step; strength: of the augmentation, 0 to 1."""
        settings = self.settings.weakened(strength)
        block, place = divmod(step, settings.block)
        if self._block[0] != block:
            self._block = (block, self.plan(block))
        clips = self._block[1][place]
        rng = np.random.default_rng([self.seed, 14, step])
        rows = [self._assemble(clip, rng) for clip in clips]
        lengths = np.array([len(labels) for _, labels, _ in rows])
        log_BTM = torch.full((len(rows), int(lengths.max()), self.features.feature_size), FLOOR)
        labels_BT = torch.full(log_BTM.shape[:2], UNKNOWN)
        for number, (mel, labels, _) in enumerate(rows):
            log_BTM[number, : len(mel)] = torch.from_numpy(mel)
            labels_BT[number, : len(mel)] = torch.from_numpy(labels)
        whole = self.features.frames if rng.random() < settings.whole else None
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        mels, labels_BT, frames, tempo_B = augment(
            log_BTM, labels_BT, torch.from_numpy(lengths), self.features.frames, settings, generator
        )
        wanted = whole or min(self.features.frames, int(frames.max()) + int(rng.integers(0, 8)))
        wanted += wanted % 2
        mels = F.pad(mels, (0, 0, 0, max(0, wanted - mels.shape[1])))[:, :wanted]
        labels_BT = F.pad(labels_BT, (0, max(0, wanted - labels_BT.shape[1])), value=UNKNOWN)[:, :wanted]
        texts, knots = [], []
        for clip, (_, _, spans), tempo in zip(clips, rows, tempo_B.tolist(), strict=True):
            sentences = [written(self.pool.utterances[index].text) for index in clip]
            ends = np.cumsum([len(sentence) + 1 for sentence in sentences])
            letters = [letter for end, one in zip(ends, sentences, strict=True) for letter in (end - len(one), end)]
            texts.append(" ".join(sentences))
            knots.append((np.array(letters), np.array(spans).ravel() / tempo))
        languages = [self.pool.utterances[clip[0]].language for clip in clips]
        return ClipBatch(
            mels.transpose(1, 2).contiguous().to(device), frames, languages, texts, labels_BT.to(device), knots
        )

    def _assemble(
        self, clip: list[int], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
        """The clip before augmentation: float32 [T, M], its labels int64 [T], and first and last frame of each sentence."""
        margin, start = self._frames(MARGIN), 0
        mels: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        spans = []

        def silence(between: tuple[float, float]) -> int:
            frames = self._frames(rng.uniform(*between))
            mels.append(np.full((frames, self.features.feature_size), FLOOR, np.float32))
            labels.append(np.full(frames, self.pool.silence, np.int64))
            return frames

        start += silence(self.settings.silence)
        for number, index in enumerate(clip):
            if number:
                start += silence(self.settings.pause)
            mels.append(self.pool.mel(index).astype(np.float32))
            labels.append(self.pool.labels(index).astype(np.int64))
            spans.append((start + margin, start + len(mels[-1]) - margin))
            start += len(mels[-1])
        silence(self.settings.silence)
        return np.concatenate(mels), np.concatenate(labels), spans


def augment(
    log_BTM: Tensor,
    labels_BT: Tensor,
    lengths_B: Tensor,
    most: int,
    settings: ClipSettings,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log10 mel powers -> normalised features [B, T', M] (zero behind the ends), their labels [B, T'] (UNKNOWN there),
    frames [B], at most `most`, and tempo [B]."""
    count, length, bands = log_BTM.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * (high - low) + low

    def curves(size: float) -> Tensor:
        return F.interpolate(torch.randn(count, 1, 5, generator=generator), bands, mode="linear")[:, 0] * size

    tempo_B = uniform(*settings.tempo, count)
    frames_B = (lengths_B / tempo_B).floor().clamp(1, most).long()
    warped = int(frames_B.max())
    place_BT = torch.arange(warped)[None] * tempo_B[:, None]
    nearest_BT = place_BT.round().long().clamp_max(length - 1)
    band_BM = torch.arange(bands)[None] * uniform(1 - settings.warp, 1 + settings.warp, count, 1)
    grid_BTM2 = torch.stack(
        [
            (2 * band_BM / (bands - 1) - 1)[:, None].expand(-1, warped, -1),
            (2 * place_BT / (length - 1) - 1)[:, :, None].expand(-1, -1, bands),
        ],
        dim=-1,
    )
    x_BTM = F.grid_sample(log_BTM[:, None], grid_BTM2, padding_mode="border", align_corners=True)[:, 0]

    equaliser_BM = curves(settings.equaliser) + uniform(*settings.gain, count, 1)
    low_B, high_B = uniform(0, bands * 0.12, count), uniform(bands * 0.75, bands, count)
    band = torch.arange(bands)[None]
    limited = (uniform(0, 1, count) < settings.limited)[:, None] & ((band < low_B[:, None]) | (band > high_B[:, None]))
    x_BTM = x_BTM + (equaliser_BM - 3.0 * limited)[:, None]

    loud_B = x_BTM.amax((1, 2))
    level_B = loud_B - uniform(*settings.noise_below, count)
    level_B = torch.where(uniform(0, 1, count) < settings.noise, level_B, level_B - 100.0)
    noise_BTM = (curves(0.4) + level_B[:, None])[:, None] + 0.22 * torch.randn(x_BTM.shape, generator=generator)
    x_BTM = torch.maximum(x_BTM, noise_BTM) + torch.log10(1 + 10 ** -(x_BTM - noise_BTM).abs())

    inside_BT = torch.arange(warped)[None] < frames_B[:, None]
    x_BTM = torch.maximum(x_BTM.clamp_min(FLOOR), x_BTM.amax((1, 2), keepdim=True) - 8.0)
    x_BTM = (x_BTM + 4.0) / 4.0
    mean_B = x_BTM.mean((1, 2), keepdim=True)
    masked = torch.zeros(x_BTM.shape, dtype=torch.bool)
    for _ in range(settings.masks):
        first, size = uniform(0, bands, count, 1), uniform(0, settings.mask_bands, count, 1)
        masked |= ((band >= first) & (band < first + size))[:, None]
        first, size = uniform(0, 1, count, 1) * frames_B[:, None], uniform(0, settings.mask_frames, count, 1)
        time = torch.arange(warped)[None]
        masked |= ((time >= first) & (time < first + size))[:, :, None]
    x_BTM = torch.where(masked, mean_B, x_BTM)
    labels_BT = torch.where(inside_BT, labels_BT.gather(1, nearest_BT), UNKNOWN)
    return x_BTM * inside_BT[:, :, None], labels_BT, frames_B, tempo_B
