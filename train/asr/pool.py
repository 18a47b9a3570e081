"""A pool of spoken sentences, kept as mel features: spoken once over worker processes, drawn from in every step.

Speaking costs 10 ms a sentence; a training step draws clips at 1 ms each. Beside every mel frame the pool keeps the phone
that is heard in it, where the synthesiser gives it (espeak-ng). A pool is a pure function of its plan and sources.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from slm.errors import TresseError
from train.asr.features import MelFeatures
from train.asr.plan import Utterance
from train.speech.augmentation import Augmentation
from train.speech.espeak import EspeakSpeaker
from train.speech.phones import SILENCE, Phone, phones
from train.speech.voices import SAMPLE_RATE, Voices, speak, speak_with_phonemes
from train.tools.checkpoints import atomic_path, write_json
from train.tools.progress import Progress
from train.tools.workers import worker_pool

SHARD = 500
"""Utterances of a file of the pool."""
DRIFT = 0.04
"""s by which a resynthesised utterance may differ in length from what its units last and keep its phones' times."""
UNKNOWN = -100
"""Label of a frame whose phone is not known; no loss counts it."""


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
        places = {"": UNKNOWN, **{phone: number for number, phone in enumerate(self.phones)}}
        self.labels_F = np.concatenate(
            [np.array([places[str(phone)] for phone in part.phones], np.int16)[part.labels_F] for part in parts]
        )
        keys = [(each.language, each.speaker, each.through) for each in utterances]
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
class Renderer:
    """How a plan is spoken and kept. bundle: the folder of the bundle that speaks the resynthesised share."""

    features: MelFeatures
    voices: Voices
    augmentation: Augmentation
    bundle: Path | None = None

    def record(self, utterance: Utterance) -> tuple[np.ndarray, list[Phone]]:
        """The utterance: float32 [samples] at 16 kHz, and its phones; none where their times are not known."""
        speaker, heard = self.voices.speaker(utterance.speaker), []
        if isinstance(speaker, EspeakSpeaker):
            waveform, phonemes = speak_with_phonemes(utterance.text, utterance.language, speaker, self.voices)
            heard = phones(phonemes, len(waveform) / SAMPLE_RATE)
        else:
            waveform = speak(utterance.text, utterance.language, speaker, self.voices)
        if utterance.through and self.bundle is not None:
            before = len(waveform) / SAMPLE_RATE
            waveform, (old, new) = resynthesise(waveform, utterance, self.bundle)
            times = np.interp([[phone.start, phone.end] for phone in heard], [0.0, *old], [0.0, *new])
            heard = [Phone(phone.name, *span) for phone, span in zip(heard, times.tolist(), strict=True)]
            if abs(len(waveform) / SAMPLE_RATE - (before + new[-1] - old[-1])) > DRIFT:
                heard = []
        if utterance.recording is not None:
            waveform = self.augmentation.recording(utterance.recording).of(waveform)
        return waveform, heard

    def fingerprint(self, plan: list[Utterance]) -> str:
        """Changes with whatever changes the pool."""
        speakers = sorted({utterance.speaker for utterance in plan})
        sources = ("phones", plan, self.features, self.augmentation, [self.voices.speaker(name) for name in speakers])
        digest = hashlib.sha256(repr(sources).encode())
        if self.bundle is not None:
            for part in ("units", "vocoder"):
                digest.update((self.bundle / part / "model.safetensors").read_bytes())
        return digest.hexdigest()[:16]


def make_pool(plan: list[Utterance], renderer: Renderer, folder: Path, workers: int) -> Pool:
    """Speak the plan over `workers` processes into `folder`, shard by shard; goes on with the first missing one.

    Raises TresseError where `folder` holds another pool.
    """
    identity = {"utterances": len(plan), "sources": renderer.fingerprint(plan)}
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
        speaking = (pool.map if pool else map)(speak_shard, missing, [renderer] * len(missing))
        for done, _ in enumerate(speaking, len(shards) - len(missing) + 1):
            progress.update(done)
    return Pool(plan, [_read(path) for path, _ in shards])


def _read(path: Path) -> Spoken:
    with np.load(path) as arrays:
        return Spoken(*(arrays[part.name] for part in fields(Spoken)))


def speak_shard(shard: tuple[Path, list[Utterance]], renderer: Renderer) -> None:
    """Speak a shard's utterances and write their features."""
    path, utterances = shard
    mels, labels = [], []
    for utterance in utterances:
        waveform, heard = renderer.record(utterance)
        mels.append(renderer.features(waveform).astype(np.float16))
        labels.append(frame_phones(heard, len(mels[-1]), renderer.features))
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
    speaking = _BUNDLES[bundle]
    units = speaking.units.encode(waveform, SAMPLE_RATE)
    pick = int(hashlib.sha256(repr(utterance).encode()).hexdigest(), 16) % len(speaking.speakers)
    stream = speaking.vocoder.stream(speaking.speakers[pick])
    own = utterance.retimed and collapses(speaking.units)
    audio = stream.push(units.ids, None if own else units.run_lengths, utterance.language, final=True)
    ends = np.cumsum([units.run_lengths, stream.run_lengths], axis=1) / units.frame_rate
    return resample(np.asarray(audio, np.float32), speaking.sample_rate, SAMPLE_RATE), ends
