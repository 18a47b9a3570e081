"""Training of the default unit encoder: hear words, not voices. Without text.

The synthesiser speaks the same sentence in many voices with nearly the same timing. One voice is the reference: its
utterances, cut into runs of one unit each, name the units. Every other voice's utterance is aligned with the reference's
by dynamic time warping of their MFCCs and given the reference's unit names, and the network learns to predict these names
from any voice, augmented in gain, equalisation, noise, vocal tract length, rate and bandwidth. Several iterations, as in
Hsu et al., "HuBERT", 2021: the first one names clusters (k-means) of MFCCs, each later one names clusters of a layer of
the network before it, which are nearer to phones and further from voices.

Frames are not named one by one: a change of name costs `switch_cost` and the cheapest path is taken (Kamper and van
Niekerk, "Towards unsupervised phone and word segmentation using self-supervised vector-quantized neural networks", 2021).
Names that flicker at the borders of sounds cannot be learned, and cost the language model tokens.

No transcript, phoneme or language label is used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from slm.units.causal import FRAME, UnitNetwork
from slm.units.conv import ConvEncoderConfig, ConvNetwork, ConvUnitEncoder, log_mel
from slm.weights import rounded
from train.speech.time_warping import dtw_batch, mfcc
from train.speech.voices import Speaker, Voices, speak_all
from train.tools.hardware import bf16_pays
from train.tools.kmeans import kmeans
from train.units.crops import draw_crops
from train.units.fitting import fit


@dataclass(frozen=True)
class Iteration:
    """One naming of the reference's frames, and the training on it.

    clusters: names, None for the encoder's codebook size. layer: block of the network before whose output is clustered
    (0 is the first; the first iteration clusters MFCCs). switch_cost: price of a change of name from one frame to the next,
    in mean squared distances of a frame from its nearest centroid.
    """

    steps: int
    clusters: int | None = None
    layer: int = -1
    switch_cost: float = 1.5


@dataclass(frozen=True)
class UnitTraining:
    """Budget of the unit encoder's training. voices_per_sentence: other voices beside the reference."""

    iterations: tuple[Iteration, ...] = (Iteration(1500, 100), Iteration(6000, 200, layer=3), Iteration(4000))
    batch_size: int = 24
    segment_frames: int = 120
    learning_rate: float = 2e-3
    sentences_per_language: int = 700
    voices_per_sentence: int = 6
    seed: int = 0
    checkpoint_every: int = 500


@dataclass
class AlignedSpeech:
    """Utterances of the same sentences in several voices, each aligned with the reference voice's.

    mels: mel energies of all utterances end to end [F, mels] (100 Hz). starts, lengths: of each utterance, in frames of
    20 ms. references: the reference utterance of each utterance. paths: for every frame of an utterance, the frame of its
    reference it is aligned with. mfccs: of each reference utterance [T, 39]. names: unit names [F / 2].
    """

    mels: Tensor
    starts: np.ndarray
    lengths: np.ndarray
    references: list[int]
    paths: list[Tensor]
    mfccs: dict[int, Tensor]
    names: Tensor

    def power(self, index: int) -> Tensor:
        """Mel energies [2 T, mels] of one utterance."""
        return self.mels[2 * self.starts[index] : 2 * (self.starts[index] + self.lengths[index])]

    def name(self, reference_names: dict[int, Tensor]) -> None:
        """Give every utterance the names int64 [T] of its reference, along the alignment."""
        named = zip(self.references, self.paths, strict=True)
        self.names = torch.cat([reference_names[reference][path] for reference, path in named])


def align_voices(
    sentences: list[tuple[str, str]], voices: Voices, config: ConvEncoderConfig, training: UnitTraining, workers: int
) -> AlignedSpeech:
    """Speak (language, text) sentences in the reference voice and several others, and align these with it."""
    rng = np.random.default_rng([training.seed, 1])
    others = [name for name in voices.training if name != voices.reference]
    reference = voices.training[voices.reference]
    requests: list[tuple[str, str, Speaker]] = []
    for language, text in sentences:
        picks = rng.choice(others, size=min(training.voices_per_sentence, len(others)), replace=False)
        requests += [(text, language, speaker) for speaker in [reference, *(voices.training[name] for name in picks)]]
    group = len(requests) // len(sentences)
    references = [index - index % group for index in range(len(requests))]
    front = log_mel(config.mels, config.sample_rate)
    features, mels = [], []
    for waveform in speak_all(requests, voices, workers):
        features.append(mfcc(waveform))
        padded = F.pad(torch.from_numpy(waveform), (240, len(features[-1]) * FRAME - len(waveform)))
        mels.append(front.power(padded[None])[0])
    lengths = np.array([len(part) for part in features])
    paths = [torch.arange(length) for length in lengths]
    order = sorted((i for i in range(len(requests)) if references[i] != i), key=lambda i: lengths[i])
    for first in range(0, len(order), 64):
        block = order[first : first + 64]
        aligned = dtw_batch([features[i][:, :13] for i in block], [features[references[i]][:, :13] for i in block])
        for index, path in zip(block, aligned, strict=True):
            paths[index] = path
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    mfccs = {index: features[index] for index in dict.fromkeys(references)}
    names = torch.zeros(int(lengths.sum()), dtype=torch.int64)
    return AlignedSpeech(torch.cat(mels), starts, lengths, references, paths, mfccs, names)


def smooth_names(features: dict[int, Tensor], clusters: int, switch_cost: float, seed: int) -> dict[int, Tensor]:
    """Cluster the frames of all utterances [T, D] and name each utterance's frames int64 [T] in smooth runs."""
    centroids = kmeans(torch.cat(list(features.values())), clusters, seed=seed)
    costs = {index: torch.cdist(part, centroids).square() for index, part in features.items()}
    unit = torch.cat([cost.min(dim=1).values for cost in costs.values()]).mean()
    return {index: cheapest_path(cost / unit, switch_cost) for index, cost in costs.items()}


def cheapest_path(costs_TK: Tensor, switch_cost: float) -> Tensor:
    """The names int64 [T] that minimise the sum of their costs and of `switch_cost` for every change of name."""
    total = costs_TK[0]
    before = torch.zeros(costs_TK.shape, dtype=torch.int64)
    stay = torch.arange(costs_TK.shape[1])
    for t in range(1, len(costs_TK)):
        cheapest, which = total.min(dim=0)
        switch = total > cheapest + switch_cost
        before[t] = torch.where(switch, which, stay)
        total = torch.where(switch, cheapest + switch_cost, total) + costs_TK[t]
    names = torch.zeros(len(costs_TK), dtype=torch.int64)
    name = int(total.argmin())
    for t in range(len(costs_TK) - 1, -1, -1):
        names[t] = name
        name = int(before[t, name])
    return names


@torch.inference_mode()
def hidden_features(network: UnitNetwork, data: AlignedSpeech, layer: int) -> dict[int, Tensor]:
    """The output of block `layer` for every reference utterance, each frame normalised: float32 [T, width]."""
    network.eval()
    silence = network.mel.log(torch.zeros(1, 2 * network.look_ahead, data.mels.shape[1]))
    features = {}
    for index in data.mfccs:
        mels = torch.cat([network.mel.log(data.power(index))[None], silence], dim=1)
        x = network.hidden(mels, layer)[0, : data.lengths[index]]
        features[index] = F.layer_norm(x, x.shape[1:])
    return features


def draw_batch(data: AlignedSpeech, training: UnitTraining, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Augmented mel energies [B, 2T, mels], unit names [B, T] and a loss mask [B, T]: a pure function of (seed, step)."""
    rng = np.random.default_rng([training.seed, 2, step])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    pick = rng.integers(len(data.starts), size=training.batch_size)
    crops = draw_crops(rng, data.starts[pick], data.lengths[pick], training.segment_frames)
    return augment(data.mels[crops.halves], generator), data.names[crops.frames], crops.mask


def augment(power_BTM: Tensor, generator: torch.Generator) -> Tensor:
    """Vocal tract length, gain, equaliser, noise and telephone band, on mel energies [B, T, mels]."""
    size, frames, mels = power_BTM.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * (high - low) + low

    # Vocal tract length: the mel axis stretched by up to 15 %, linearly interpolated.
    warp = uniform(0.87, 1.15, size, 1) * torch.arange(mels)
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
    """Train the encoder on (language, text) sentences spoken by the training voices; goes on from folder's checkpoints."""
    data = align_voices(sentences, voices, config, training, workers)
    networks: list[ConvNetwork] = []
    for number, iteration in enumerate(training.iterations, 1):
        clusters = iteration.clusters or config.codebook_size
        features = hidden_features(networks[-1], data, iteration.layer) if networks else data.mfccs
        data.name(smooth_names(features, clusters, iteration.switch_cost, training.seed))
        torch.manual_seed(training.seed)
        network = ConvNetwork(replace(config, codebook_size=clusters))
        if networks:
            learned = networks[-1].state_dict()
            body = {name: tensor for name, tensor in learned.items() if not name.startswith("outward")}
            network.load_state_dict(body, strict=False)
        title = f"units, {number} of {len(training.iterations)}"
        _train(network, data, training, iteration.steps, folder / f"iteration-{number}.pt", title)
        networks.append(network)
    return ConvUnitEncoder(rounded(networks[-1], ConvUnitEncoder.stored))  # as it will be saved


def _train(
    network: UnitNetwork, data: AlignedSpeech, training: UnitTraining, steps: int, checkpoint: Path, title: str
) -> None:
    """Train the network to predict the names of `data`, in place; goes on from the checkpoint."""

    def losses(number: int) -> dict[str, Tensor]:
        power, names, mask = draw_batch(data, training, number)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16_pays("cpu")):
            logits, _ = network(network.mel.log(power))
        names, weight = names[:, : logits.shape[1]], mask[:, : logits.shape[1]].flatten()
        each = F.cross_entropy(
            logits.float().flatten(0, 1), names.flatten(), label_smoothing=0.05, reduction="none"
        )  # fmt: skip
        loss = (each * weight).sum() / weight.sum()
        return {"loss": loss, "accuracy": (logits.argmax(-1) == names).float().mean()}

    fit(network, losses, steps, training.learning_rate, checkpoint, training.checkpoint_every, title)
