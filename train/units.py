"""Training of the default unit encoder: hear words, not voices. Without text.

The synthesiser speaks the same sentence in many voices with nearly the same timing. One voice is the reference: the
clusters (k-means) of its MFCCs name the units. Every other voice's utterance is aligned with the reference's by dynamic
time warping of their MFCCs and given the reference's unit names, and the network learns to predict these names from any
voice, augmented in gain, equalisation, noise, vocal tract length, rate and bandwidth. No transcript, phoneme or language
label is used. About six minutes of two cores for the default budget.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor

from slm.units.conv import FRAME, ConvEncoderConfig, ConvUnitEncoder, LogMel, UnitNetwork
from train.alignment import dtw_batch
from train.checkpoint import linear_schedule, load_checkpoint, save_checkpoint
from train.kmeans import assign, kmeans
from train.precision import bf16_pays
from train.progress import Progress
from train.speech import SAMPLE_RATE, Speaker, Voices, speak
from train.workers import worker_pool


@dataclass(frozen=True)
class UnitTraining:
    """Budget of the unit encoder's training. voices_per_sentence: other voices beside the reference."""

    steps: int = 3000
    batch_size: int = 24
    segment_frames: int = 120
    learning_rate: float = 2e-3
    sentences_per_language: int = 400
    voices_per_sentence: int = 4
    seed: int = 0
    checkpoint_every: int = 500


@dataclass
class AlignedSpeech:
    """Mel energies of all utterances end to end [F, mels] (100 Hz), unit names [F / 2], utterance starts and lengths in
    frames of 20 ms, and which utterances are the reference's."""

    mels: Tensor
    names: Tensor
    starts: np.ndarray
    lengths: np.ndarray


def mfcc(waveform: np.ndarray) -> Tensor:
    """float32 [samples] at 16 kHz -> MFCCs [T, 39] at 50 Hz with deltas, mean and variance normalised."""
    transform = _mfcc_transform()
    coefficients = transform(torch.from_numpy(waveform))[:, : -(-len(waveform) // FRAME)]
    delta = torchaudio.functional.compute_deltas(coefficients[None])[0]
    delta2 = torchaudio.functional.compute_deltas(delta[None])[0]
    features = torch.cat([coefficients, delta, delta2]).T
    return (features - features.mean(0)) / (features.std(0) + 1e-3)


_TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {}


def _mfcc_transform() -> Callable[[Tensor], Tensor]:
    if "mfcc" not in _TRANSFORMS:
        options = {"n_fft": 512, "win_length": 400, "hop_length": FRAME, "n_mels": 40}
        _TRANSFORMS["mfcc"] = torchaudio.transforms.MFCC(SAMPLE_RATE, n_mfcc=13, melkwargs=options)
    return _TRANSFORMS["mfcc"]


def speak_all(requests: list[tuple[str, str, Speaker]], voices: Voices, workers: int) -> list[np.ndarray]:
    """Speak (text, language, speaker) requests over `workers` processes, in order."""
    texts, languages, speakers = zip(*requests, strict=True)
    if workers <= 1:
        return [speak(*request, voices) for request in requests]
    with worker_pool(workers) as pool:
        return list(pool.map(speak, texts, languages, speakers, [voices] * len(requests), chunksize=32))


def align_voices(
    sentences: list[tuple[str, str]], voices: Voices, config: ConvEncoderConfig, training: UnitTraining, workers: int
) -> AlignedSpeech:
    """Speak (language, text) sentences in several training voices and name every frame after the reference voice."""
    rng = np.random.default_rng([training.seed, 1])
    others = [name for name in voices.training if name != voices.reference]
    reference = voices.training[voices.reference]
    requests: list[tuple[str, str, Speaker]] = []
    for language, text in sentences:
        picks = rng.choice(others, size=min(training.voices_per_sentence, len(others)), replace=False)
        requests += [(text, language, speaker) for speaker in [reference, *(voices.training[name] for name in picks)]]
    waveforms = speak_all(requests, voices, workers)
    features = [mfcc(waveform) for waveform in waveforms]
    group = len(requests) // len(sentences)
    reference_features = features[::group]
    centroids = kmeans(torch.cat(reference_features), config.codebook_size, seed=training.seed)
    reference_names = [assign(part, centroids) for part in reference_features]
    front = LogMel(config.mels, config.sample_rate)
    mels, names, lengths = [], [], []
    order = [index for index in range(len(requests)) if index % group]
    paths: dict[int, Tensor] = {}
    for first in range(0, len(order), 64):
        block = order[first : first + 64]
        found = dtw_batch([features[i][:, :13] for i in block], [reference_features[i // group][:, :13] for i in block])
        paths.update(zip(block, found, strict=True))
    for index, waveform in enumerate(waveforms):
        target = reference_names[index // group]
        named = target if index % group == 0 else target[paths[index]]
        padded = F.pad(torch.from_numpy(waveform), (240, len(named) * FRAME - len(waveform)))
        mels.append(front.power(padded[None])[0])
        names.append(named)
        lengths.append(len(named))
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return AlignedSpeech(torch.cat(mels), torch.cat(names), starts, np.array(lengths))


def draw_batch(data: AlignedSpeech, training: UnitTraining, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Augmented log-mels [B, 2T, mels], unit names [B, T] and a loss mask [B, T]: a pure function of (seed, step)."""
    rng = np.random.default_rng([training.seed, 2, step])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    size, frames = training.batch_size, training.segment_frames
    pick = rng.integers(len(data.starts), size=size)
    length = data.lengths[pick]
    rate = rng.uniform(0.85, 1.18, size)
    first = np.floor(rng.uniform(0, 1, size) * np.maximum(1, length - frames * rate)) * (rng.random(size) > 0.2)
    # 20 ms positions of every target frame; what lies behind the utterance's end is its last (silent) frame
    position = np.minimum(first[:, None] + np.arange(frames) * rate[:, None], length[:, None] - 1)
    names = data.names[torch.from_numpy(data.starts[pick][:, None] + position.astype(np.int64))]
    half = np.minimum(2 * first[:, None] + np.arange(2 * frames) * rate[:, None], 2 * length[:, None] - 1)
    mels = data.mels[torch.from_numpy(2 * data.starts[pick][:, None] + half.astype(np.int64))]
    mels = augment(mels, generator)
    mask = torch.ones(size, frames)
    mask[torch.from_numpy(first > 0), :10] = 0.0  # these frames lack the history that they would have had
    return LogMel.log(mels), names, mask


def augment(power_BTM: Tensor, generator: torch.Generator) -> Tensor:
    """Vocal tract length, gain, equaliser, noise and telephone band, on mel energies [B, T, mels]."""
    size, frames, mels = power_BTM.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * (high - low) + low

    # Vocal tract length: the mel axis stretched by up to 10 %, linearly interpolated.
    warp = uniform(0.9, 1.1, size, 1) * torch.arange(mels)
    low = warp.floor().clamp(0, mels - 1).long()
    weight = (warp - low).clamp(0, 1)[:, None]
    index = low[:, None].expand(size, frames, mels)
    upper = (low + 1).clamp(max=mels - 1)[:, None].expand(size, frames, mels)
    x = power_BTM.gather(2, index) * (1 - weight) + power_BTM.gather(2, upper) * weight
    # Equaliser: a smooth curve of up to +-9 dB between five bands; gain: -20 to +12 dB.
    curve = F.interpolate(uniform(-0.9, 0.9, size, 1, 5), mels, mode="linear", align_corners=True)
    x = x * 10 ** (curve + uniform(-2.0, 1.2, size, 1, 1))
    # Telephone: about 300 to 3,400 Hz.
    band = torch.ones(size, 1, mels)
    band[uniform(0, 1, size) < 0.15, :, : mels // 10] = 1e-4
    band[uniform(0, 1, size) < 0.15, :, mels * 7 // 10 :] = 1e-4
    x = x * band
    # Noise: tilted, at 5 to 60 dB under the speech, fluctuating as the energy of Gaussian noise does.
    level = x.mean((1, 2), keepdim=True) * 10 ** uniform(-6.0, -0.5, size, 1, 1)
    tilt = 10 ** (uniform(-1, 1, size, 1, 1) * torch.linspace(-1, 1, mels))
    return x + level * tilt * -torch.log(torch.rand(size, frames, mels, generator=generator) + 1e-9)


def train_units(
    config: ConvEncoderConfig,
    training: UnitTraining,
    sentences: list[tuple[str, str]],
    voices: Voices,
    folder: Path,
    workers: int = 2,
) -> ConvUnitEncoder:
    """Train the encoder on (language, text) sentences spoken by the training voices; goes on from folder's checkpoint."""
    data = align_voices(sentences, voices, config, training, workers)
    torch.manual_seed(training.seed)
    network = UnitNetwork(config)
    optimiser = torch.optim.AdamW(network.parameters(), lr=training.learning_rate, weight_decay=0.01)
    factor = linear_schedule(training.steps, warmup=100, floor=0.02)
    checkpoint = folder / "checkpoint.pt"
    step = 0
    if state := load_checkpoint(checkpoint):
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
    progress = Progress("units", training.steps, start=step)
    look = network.look_ahead
    while step < training.steps:
        mels, names, mask = draw_batch(data, training, step)
        for group in optimiser.param_groups:
            group["lr"] = training.learning_rate * factor(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16_pays("cpu")):
            logits, _ = network(mels)
        loss = F.cross_entropy(
            logits.float().flatten(0, 1),
            names[:, : names.shape[1] - look].flatten(),
            label_smoothing=0.05,
            reduction="none",
        )
        weight = mask[:, : mask.shape[1] - look].flatten()
        loss = (loss * weight).sum() / weight.sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        step += 1
        if progress.due() or step == training.steps:
            hit = (logits.argmax(-1) == names[:, : names.shape[1] - look]).float().mean()
            progress.update(step, loss=loss.item(), accuracy=hit.item())
        if step % training.checkpoint_every == 0 or step == training.steps:
            save_checkpoint(
                checkpoint, {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "step": step}
            )
    return ConvUnitEncoder(network)


def unit_edit_rate(a: np.ndarray, b: np.ndarray) -> float:
    """Levenshtein distance of two collapsed unit sequences over the longer one's length (0 equal .. 1)."""
    distance = torchaudio.functional.edit_distance([int(x) for x in a], [int(x) for x in b])
    return distance / max(1, len(a), len(b))


def voice_consistency(
    encoder: ConvUnitEncoder, sentences: list[tuple[str, str]], voices: Voices, workers: int = 2
) -> dict[str, float]:
    """Mean unit edit rate between each voice and the reference over held-out (language, text), by voice group."""
    rates: dict[str, list[float]] = {}
    reference = voices.training[voices.reference]
    for group, speakers in (("training", voices.training), ("held_out", voices.held_out)):
        chosen = [speaker for name, speaker in speakers.items() if name != voices.reference]
        for index, (language, text) in enumerate(sentences):
            pair = [reference, chosen[index % len(chosen)]]
            one, two = (encoder.encode(speak(text, language, speaker, voices), SAMPLE_RATE).ids for speaker in pair)
            rates.setdefault(f"{group}_{language}", []).append(unit_edit_rate(one, two))
    return {name: float(np.mean(values)) for name, values in rates.items()}


def config_from(values: dict) -> ConvEncoderConfig:
    """A configuration from recipe values."""
    return dataclasses.replace(ConvEncoderConfig(), **values)
