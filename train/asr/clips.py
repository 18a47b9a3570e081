"""Clips drawn from a pool of spoken sentences, augmented as mel spectrograms, a whole batch at once.

Several sentences of a voice in a row, tempo, vocal tract length, equalisation, band limits, noise, gain and SpecAugment
(Park et al. 2019). The phone of each mel frame goes through all of this with the frame. Batches are pure functions of
(seed, step).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from train.asr.features import FLOOR, MelFeatures
from train.asr.plan import written
from train.asr.pool import UNKNOWN, Pool
from train.speech.voices import MARGIN, SAMPLE_RATE


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
        block, number = divmod(step, settings.block)
        if self._block[0] != block:
            self._block = (block, self.plan(block))
        clips = self._block[1][number]
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
            letters = [letter for end, text in zip(ends, sentences, strict=True) for letter in (end - len(text), end)]
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
