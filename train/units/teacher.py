"""The teacher of phone-supervised units: Whisper's encoder, and a small network on top that names phones.

Whisper was trained on people of all kinds, so its last layer says what is said and little of who says it. A bidirectional
GRU on it learns phones from speech whose phone times are known: Kokoro's own, aligned anew with what is heard
(`train.speech.realignment`). It then names any speech, recordings of people included, and `train.units.distillation`
teaches a small causal network to do the same as the sound arrives.

Whisper runs in faster-whisper (int8, about 25 times real time on one core); several clips share one window of 30 s. The
head trains at about 4 steps a second on one core.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from slm.audio import resample
from slm.errors import TresseError
from slm.units.causal import CausalUnitEncoder
from train.speech.kokoro import KokoroSpeaker
from train.speech.phones import SILENCE, Phone, frame_labels
from train.speech.pool import Clip
from train.speech.realignment import realigned_clips
from train.tools.checkpoints import atomic_path
from train.tools.progress import Progress
from train.units.fitting import fit

Item = TypeVar("Item")
RATE, FRAME = 16000, 320
"""Hz, and samples of a frame: 50 a second."""
WINDOW = 30 * RATE
GAP = 20 * FRAME
"""Silence between two clips of a window."""
WIDTH = 512
"""Of the features of Whisper-base."""
LEVEL = 0.06
"""Root mean square that clips are brought to."""
UNKNOWN = -100
"""Label of frames that teach nothing."""
RARE = 5e-4
"""Share of the frames below which a phone has no class of its own, and teaches nothing."""


@dataclass(frozen=True)
class TeacherTraining:
    """Budget of the head. hours: of speech with known phones, at most."""

    steps: int = 2600
    batch_size: int = 16
    frames: int = 200
    learning_rate: float = 1e-3
    hours: float = 2.5
    seed: int = 0
    checkpoint_every: int = 400


def check_whisper(folder: Path) -> None:
    """Raise TresseError where a folder holds no faster-whisper model."""
    if not (folder / "model.bin").exists():
        raise TresseError(f"there is no Whisper in {folder}: set TRESSE_MODELS to the folder that holds whisper/")


class WhisperFeatures:
    """The last layer of a Whisper's encoder. folder: a faster-whisper (CTranslate2) model."""

    def __init__(self, folder: Path) -> None:
        from faster_whisper import WhisperModel

        check_whisper(folder)
        self.model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=os.cpu_count() or 1)

    def __call__(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32 [samples] at 16 kHz, each below 29 s -> float16 [frames, WIDTH] at 50 Hz."""
        features: list[np.ndarray] = []
        window, filled = [np.zeros(GAP, np.float32)], GAP
        starts: list[tuple[int, int]] = []
        for waveform in waveforms:
            clip = _framed(waveform)
            if filled + len(clip) + GAP > WINDOW:
                features += self._window(window, starts)
                window, starts, filled = [np.zeros(GAP, np.float32)], [], GAP
            starts.append((filled // FRAME, len(clip) // FRAME))
            window += [clip, np.zeros(GAP, np.float32)]
            filled += len(clip) + GAP
        return features + (self._window(window, starts) if starts else [])

    def _window(self, parts: list[np.ndarray], starts: list[tuple[int, int]]) -> list[np.ndarray]:
        frames = self.model.feature_extractor.nb_max_frames
        mels = self.model.feature_extractor(np.concatenate(parts))[:, :frames]
        encoded = np.array(self.model.encode(np.pad(mels, ((0, 0), (0, frames - mels.shape[1])))))[0]
        return [encoded[start : start + count].astype(np.float16) for start, count in starts]


class PhoneHead(nn.Module):
    """Features [B, T, WIDTH] -> logits of phones [B, T, K]."""

    def __init__(self, phones: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.inward = nn.Linear(WIDTH, 256)
        self.both_ways = nn.GRU(256, 192, batch_first=True, bidirectional=True)
        self.outward = nn.Linear(384, phones)
        self.dropout = nn.Dropout(0.2)

    def forward(self, features_BTD: Tensor) -> Tensor:
        """See the class."""
        x = self.dropout(F.gelu(self.inward(self.norm(features_BTD))))
        return self.outward(self.dropout(self.both_ways(x)[0]))


class Teacher(Protocol):
    """Names frames of any speech. phones: the names, SILENCE first."""

    phones: list[str]

    def posteriors(self, waveforms: Sequence[np.ndarray]) -> list[Tensor]:
        """float32 [samples] at 16 kHz -> probabilities of the phones, float32 [frames, K] at 50 Hz each."""


class EncoderTeacher:
    """A unit encoder whose units are phones, as a teacher of the next."""

    def __init__(self, encoder: CausalUnitEncoder, phones: list[str]) -> None:
        self.encoder, self.phones = encoder, phones

    def posteriors(self, waveforms: Sequence[np.ndarray]) -> list[Tensor]:
        """See Teacher."""
        return [torch.from_numpy(self.encoder.log_probabilities(waveform)).exp() for waveform in waveforms]


class PhoneTeacher:
    """Names frames by what Whisper hears. phones: the names, SILENCE first."""

    def __init__(self, features: WhisperFeatures, head: PhoneHead, phones: list[str]) -> None:
        self.features, self.head, self.phones = features, head.eval(), phones

    @torch.inference_mode()
    def posteriors(self, waveforms: Sequence[np.ndarray]) -> list[Tensor]:
        """See Teacher."""
        return [
            self.head(torch.from_numpy(part.astype(np.float32))[None])[0].softmax(-1)
            for part in self.features(waveforms)
        ]

    def save(self, folder: Path) -> None:
        """Write teacher.safetensors and phones.json."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.head.state_dict(), str(folder / "teacher.safetensors"))
        (folder / "phones.json").write_text(json.dumps(self.phones, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, whisper: Path) -> PhoneTeacher:
        """Read what `save` wrote. Raises TresseError where it, or the Whisper, is missing."""
        try:
            phones = json.loads((folder / "phones.json").read_text(encoding="utf-8"))
            head = PhoneHead(len(phones))
            head.load_state_dict(load_file(str(folder / "teacher.safetensors")))
        except (OSError, ValueError, RuntimeError) as error:
            raise TresseError(f"cannot read the teacher in {folder}: train it again") from error
        return cls(WhisperFeatures(whisper), head, phones)


def train_teacher(
    clips: Sequence[Clip], pool: Path, whisper: Path, training: TeacherTraining, folder: Path
) -> PhoneTeacher:
    """Train the head on Kokoro's clips, spread over all of them; goes on from the folder's checkpoint.

    Raises TresseError where there are none.
    """
    if (folder / "teacher.safetensors").exists():
        return PhoneTeacher.load(folder, whisper)
    timed = timed_clips(clips)
    if not timed:
        raise TresseError(
            "the teacher needs speech of Kokoro, whose phones are known: add its voices to the voices file"
        )
    share = min(1.0, training.hours * 3600 / max(1.0, sum(clip.samples / clip.sample_rate for clip in timed)))
    timed = timed[:: max(1, round(1 / share))]
    timed = realigned_clips(timed, pool)
    phones = inventory(timed)
    extract = WhisperFeatures(whisper)
    features, labels = _features(extract, timed, pool, phones, folder / "features")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        head = PhoneHead(len(phones))
        _train(head, features, labels, training, folder / "teacher.pt")
    teacher = PhoneTeacher(extract, head, phones)
    teacher.save(folder)
    return teacher


def timed_clips(clips: Sequence[Clip]) -> list[Clip]:
    """The clips whose phones are known and IPA: Kokoro's."""
    return [clip for clip in clips if clip.phones and clip.family == KokoroSpeaker.family]


def inventory(clips: Sequence[Clip]) -> list[str]:
    """The phones that are not rare in the clips, the silence first, the others in alphabetical order."""
    seconds: dict[str, float] = {}
    for clip in clips:
        for name, start, end in clip.phones or []:
            seconds[name] = seconds.get(name, 0.0) + end - start
    least = RARE * sum(seconds.values())
    return [SILENCE, *sorted(name for name, total in seconds.items() if total >= least and name != SILENCE)]


def labels_of(clip: Clip, phones: Mapping[str, int]) -> np.ndarray:
    """The phone at the middle of each frame of 20 ms: int64 [frames], UNKNOWN where it has no class."""
    spoken = [Phone(name, start, end) for name, start, end in clip.phones or []]
    frames = -(-clip.samples * RATE // (clip.sample_rate * FRAME))
    return np.array([phones.get(str(name), UNKNOWN) for name in frame_labels(spoken, frames, RATE / FRAME)])


def levelled(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """float32 [samples] at any rate -> at 16 kHz and the level that teacher and student learn at."""
    at_16k = resample(np.asarray(waveform, np.float32), sample_rate, RATE)
    gain = LEVEL / max(1e-3, float(np.sqrt(np.mean(np.square(at_16k), dtype=np.float64))) if len(at_16k) else 1.0)
    return np.clip(at_16k * np.float32(gain), -1.0, 1.0)


def _framed(waveform: np.ndarray) -> np.ndarray:
    return np.pad(waveform, (0, -len(waveform) % FRAME)).astype(np.float32)


def _features(
    extract: WhisperFeatures, clips: Sequence[Clip], pool: Path, phones: Sequence[str], folder: Path
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Features and labels of the clips; kept in `folder`, 100 clips a file, so that nothing is computed twice."""
    classes = {name: number for number, name in enumerate(phones)}
    features: list[np.ndarray] = []
    progress = Progress("features", len(clips), unit="clips")
    for first in range(0, len(clips), 100):
        block = clips[first : first + 100]
        path = folder / f"{first:06d}.npz"
        if not path.exists():
            made = extract([levelled(clip.read(pool), clip.sample_rate) for clip in block])
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.savez(file, *made)
        with np.load(path) as saved:
            features += [saved[f"arr_{number}"] for number in range(len(block))]
        progress.update(len(features))
    labels = [np.resize(labels_of(clip, classes), len(part)) for clip, part in zip(clips, features, strict=True)]
    return features, labels


def _train(
    head: PhoneHead, features: list[np.ndarray], labels: list[np.ndarray], training: TeacherTraining, checkpoint: Path
) -> None:
    def losses(number: int) -> dict[str, Tensor]:
        torch.manual_seed(int(np.random.SeedSequence([training.seed, number]).generate_state(1)[0]))  # dropout
        x, y = draw(features, labels, training, number)
        logits = head(x)
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=UNKNOWN, label_smoothing=0.05)
        return {"loss": loss, "accuracy": (logits.argmax(-1) == y)[y != UNKNOWN].float().mean()}

    fit(head, losses, training.steps, training.learning_rate, checkpoint, training.checkpoint_every, "teacher")


def draw(
    features: Sequence[np.ndarray], labels: Sequence[np.ndarray], training: TeacherTraining, step: int
) -> tuple[Tensor, Tensor]:
    """Crops of clips: features [B, T, WIDTH] and labels [B, T], a pure function of (seed, step)."""
    rng = np.random.default_rng([training.seed, step])
    x = np.zeros((training.batch_size, training.frames, WIDTH), np.float32)
    y = np.full((training.batch_size, training.frames), UNKNOWN, np.int64)
    for row, clip in enumerate(rng.integers(len(features), size=training.batch_size)):
        first = int(rng.integers(max(1, len(features[clip]) - training.frames + 1)))
        part = slice(first, first + training.frames)
        count = len(labels[clip][part])
        x[row, :count], y[row, :count] = features[clip][part], labels[clip][part]
    return torch.from_numpy(x), torch.from_numpy(y)


def blocks(items: Iterable[Item], size: int = 60) -> Iterator[list[Item]]:
    """Lists of `size`."""
    block: list[Item] = []
    for item in items:
        block.append(item)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block
