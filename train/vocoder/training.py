"""Train the unit vocoder: crops of clips, spectral losses from the start, discriminators later if asked.

A crop carries past context that the loss does not count, so that training sees what a stream sees. The prosody
predictor learns on the same clips from their beginnings, which also gives the backbone its long memory. The generator is
given the pitch of the recording, with its phase, so that pulses meet pulses; the predicted pitch learns beside it. One
generator pass a step: its waveform serves the spectral losses, the discriminators' update and the adversarial losses
alike.

The folder afterwards: config.json, model.safetensors, checkpoint.pt (to go on from, bit for bit), log.jsonl,
samples/ (held-out clips and their spectrograms).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.audio import write_wav
from slm.bundle import choose_device
from slm.errors import TresseError
from train.tools.checkpoints import atomic_path, load_checkpoint, save_checkpoint
from train.tools.hardware import bf16_pays
from train.tools.progress import Log
from train.tools.trainer import Schedule, Updates, train
from train.vocoder.data import Batch, Clip, check, draw_batch
from train.vocoder.losses import Discriminators, SpectralLoss
from train.vocoder.settings import VocoderTraining
from vocoder.config import VocoderConfig
from vocoder.istft import Source, limit
from vocoder.model import Vocoder
from vocoder.prosody import duration_loss, followed, pitch_loss

SAMPLES = 4
"""Held-out clips that are kept to be listened to."""


def generate(vocoder: Vocoder, batch: Batch, autocast: torch.autocast) -> tuple[Tensor, dict[str, Tensor]]:
    """The segments as the vocoder speaks them [B, L] float32, and the losses of its prosody."""
    config, prosody = vocoder.config, vocoder.prosody
    places = batch.unit_BT, batch.start_BT, batch.end_BT
    with autocast:
        language_BN = batch.language_B[:, None].expand_as(batch.ids_BN)
        ids_BM = followed(batch.ids_BN, batch.run_lengths_BN, config.codebook_size, config.units_ahead)
        heard, logits, _ = prosody.durations(ids_BM, batch.speaker_B, language_BN)
        melody, _ = prosody.features(heard, batch.run_lengths_BN)
        octaves, voicing = prosody.pitch(melody, *places)
        x_BNC = vocoder.embed(ids_BM, batch.speaker_B, language_BN, melody, batch.remembers_B)
        x_BTC = vocoder.spread(x_BNC, *places, batch.f0_BT) * batch.inside_BT[:, :, None]
        x_BTC, _ = vocoder.first(x_BTC)
        x_BTC, _ = vocoder.backbone(vocoder.norm(x_BTC))
    error, entropy = pitch_loss(octaves, voicing, batch.f0_BT, batch.inside_BT)
    losses = {"duration": duration_loss(logits, batch.run_lengths_BN), "pitch": error, "voicing": entropy}
    # The segment and, on both sides, the frames whose windows reach into it; none outside the clip.
    head = vocoder.head
    margin = -(-config.n_fft // (2 * config.hop_length))
    count = batch.segment_BL.shape[1] // config.hop_length
    wanted = batch.inner_B[:, None] + torch.arange(-margin, count + margin, device=x_BTC.device)
    index = wanted.clamp(min=0)
    present_BT = (wanted >= 0) & torch.gather(batch.inside_BT, 1, index)
    x_BTC = torch.gather(x_BTC.float(), 1, index[:, :, None].expand(-1, -1, x_BTC.shape[2]))
    fresh = head.fresh(len(index), x_BTC.device)
    f0, phase, frame = (torch.gather(x, 1, index) for x in (batch.f0_BT, batch.phase_BT, batch.frame_BT))
    spectrum = head.spectrum(x_BTC, Source(f0, phase, frame))
    waveform, _ = head.overlap_add(spectrum, fresh, final=True, present_BT=present_BT)
    spoken_BL = present_BT[:, margin : margin + count].repeat_interleave(config.hop_length, dim=1)  # a stream ends here
    waveform = waveform[:, margin * config.hop_length :][:, : count * config.hop_length]
    return limit(waveform * spoken_BL), losses


class Trainer:
    """The state of a training: weights, optimisers, steps done; and one step of it."""

    def __init__(self, config: VocoderConfig, training: VocoderTraining, clips: list[Clip]) -> None:
        """clips: those to train on, with their pitch."""
        self.config, self.training, self.clips = config, training, clips
        self.device = torch.device(choose_device(training.device))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            self.vocoder = Vocoder(config).to(self.device).train()
            self.vocoder.prosody.dropout.p = training.prosody_dropout
            adversarial = training.adversarial_from is not None
            self.discriminators = Discriminators(training.discriminator).to(self.device) if adversarial else None
        self.spectral = SpectralLoss(config.sample_rate).to(self.device)
        self.autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=use_bfloat16(training.precision, self.device)
        )
        self.optimiser = _adamw(self.vocoder, training.learning_rate)
        self.updates = Updates(self.vocoder.parameters(), [self.optimiser], training.learning_rate, clip=10.0)
        self.schedule = Schedule(training.steps, training.warmup, floor=0.02)
        self.done = 0
        self.losses: dict[str, Tensor] = {}
        """Of the last step: scalars, on the device."""
        if self.discriminators is not None:
            rate = training.discriminator_learning_rate
            self.discriminator_optimiser = _adamw(self.discriminators, rate)
            self.discriminator_updates = Updates(
                self.discriminators.parameters(), [self.discriminator_optimiser], rate, clip=math.inf
            )

    def state(self) -> dict[str, Any]:
        """All that `restore` needs: tensors, numbers and strings. Fields named `judge` are the discriminators'."""
        adversarial = self.discriminators is not None
        return {
            "config": asdict(self.config),
            "step": self.done,
            "vocoder": self.vocoder.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "judges": self.discriminators.state_dict() if self.discriminators is not None else None,
            "judge_optimiser": self.discriminator_optimiser.state_dict() if adversarial else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint. Raises TresseError where it belongs to another vocoder."""
        if state["config"] != asdict(self.config):
            raise TresseError("the checkpoint is of a vocoder with other settings: train into another folder")
        self.vocoder.load_state_dict(state["vocoder"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.discriminators is not None and state["judges"] is not None:
            self.discriminators.load_state_dict(state["judges"])
            self.discriminator_optimiser.load_state_dict(state["judge_optimiser"])
        self.done = state["step"]

    def step(self, number: int, factor: float) -> Tensor:
        """One step (train.tools.trainer): the loss and the gradients' norm, a scalar that is not synchronised."""
        training = self.training
        batch = draw_batch(self.config, training, self.clips, number).to(self.device)
        fake, prosody = generate(self.vocoder, batch, self.autocast)
        mel, convergence = self.spectral(fake, batch.segment_BL)
        loss = training.mel_weight * mel + training.convergence_weight * convergence
        loss = loss + training.duration_weight * prosody["duration"]
        loss = loss + training.pitch_weight * prosody["pitch"] + training.voicing_weight * prosody["voicing"]
        losses = {"mel": mel, "convergence": convergence, **prosody}
        roots, gradients = [loss], [torch.ones_like(loss)]
        if self.discriminators is not None and number >= (training.adversarial_from or 0):
            adversarial, gradient = self._discriminate(batch.segment_BL, fake, factor)
            losses |= adversarial
            roots.append(fake)
            gradients.append(gradient)
        torch.autograd.backward(roots, gradients)
        norm = self.updates.apply(factor)
        self.done = number + 1
        self.losses = {name: value.detach() for name, value in losses.items()}
        return torch.stack([*self.losses.values(), norm]).sum()

    def _discriminate(self, real_BL: Tensor, fake_BL: Tensor, factor: float) -> tuple[dict[str, Tensor], Tensor]:
        """Update the discriminators; the losses, and what the waveform is to learn from them: its gradient [B, L].

        One pass over each waveform serves both sides: the discriminators' weights take the gradient of their loss
        only, the waveform that of the generator's only.
        """
        training = self.training
        assert self.discriminators is not None
        some = slice(0, training.adversarial_clips)
        heard = fake_BL[some].detach().requires_grad_()
        with self.autocast:
            own_loss, fooled, matching = self.discriminators(real_BL[some], heard)
        wanted = training.adversarial_weight * fooled + training.matching_weight * matching
        (gradient,) = torch.autograd.grad(wanted, heard, retain_graph=True)
        own_loss.backward(inputs=list(self.discriminators.parameters()))
        self.discriminator_updates.apply(factor)
        losses = {"discriminator": own_loss, "adversarial": fooled, "matching": matching}
        return losses, F.pad(gradient, (0, 0, 0, len(fake_BL) - len(gradient)))

    @torch.no_grad()
    def validate(self, clips: list[Clip], folder: Path | None) -> dict[str, float]:
        """Mean log-mel L1 of whole clips, synthesised as streams do, over all and by language and speaker; and, named
        `heard_`, the losses that training has, with the pitch of the recording: where they are far above those of
        training, the clips are known by heart.

        With a folder, WAVs and spectrograms of the first SAMPLES in it.
        """
        self.vocoder.eval()
        batch = draw_batch(self.config, self.training, clips, 0).to(self.device)
        fake, heard = generate(self.vocoder, batch, self.autocast)
        heard["mel"] = self.spectral(fake, batch.segment_BL)[0]
        groups: dict[str, list[float]] = {}
        for index, clip in enumerate(clips):
            spoken = self.vocoder.synthesise(clip.units, clip.speaker, clip.language)
            shared = min(len(spoken), len(clip.waveform))
            pair = [torch.from_numpy(x[:shared])[None].float().to(self.device) for x in (spoken, clip.waveform)]
            groups.setdefault(f"{clip.language}_{clip.speaker}", []).append(float(self.spectral(*pair)[0]))
            if folder is not None and index < SAMPLES:
                name = f"{index:02d}-{clip.language}-{clip.speaker}".replace("/", "_")
                write_wav(folder / f"{name}-original.wav", clip.waveform, self.config.sample_rate)
                write_wav(folder / f"{name}-step{self.done:06d}.wav", spoken, self.config.sample_rate)
                plot_spectrograms(folder / f"{name}-step{self.done:06d}.png", pair, self.config.sample_rate)
        self.vocoder.train()
        means = {f"validation_mel_{name}": float(np.mean(losses)) for name, losses in groups.items()}
        losses_heard = {f"heard_{name}": float(loss) for name, loss in heard.items()}
        return {"validation_mel": float(np.mean(list(means.values()))), **means, **losses_heard}


def hold_out(clips: list[Clip], training: VocoderTraining) -> tuple[list[Clip], list[Clip]]:
    """Clips to validate on, of all languages and speakers in turn, and the others; a fixed draw.

    No other clip of the same recording is trained on. Where clips are few, all are trained on and some heard again.
    """
    queues: dict[tuple[str, str], list[Clip]] = {}
    for index in np.random.default_rng([training.seed, 2**31]).permutation(len(clips)):
        queues.setdefault((clips[index].language, clips[index].speaker), []).append(clips[index])
    turns = itertools.chain.from_iterable(itertools.zip_longest(*(queues[key] for key in sorted(queues))))
    held_out = list(itertools.islice(filter(None, turns), training.validation_clips))
    if len(clips) <= 4 * training.validation_clips:
        return held_out, clips
    recordings = {id(clip.pitch) for clip in held_out}
    return held_out, [clip for clip in clips if id(clip.pitch) not in recordings]


def begun_vocoder(folder: Path, config: VocoderConfig) -> Vocoder:
    """The vocoder that training goes on from. config: of the one that is made. Raises TresseError where it is not in the
    folder, or another."""
    try:
        vocoder = Vocoder.load(folder).for_speakers(config.speakers, config.units_ahead)
    except ValueError as error:
        raise TresseError(f"vocoder.begin: {error}: restore its files") from error
    if vocoder.config != config:
        raise TresseError(
            f"vocoder.begin: the vocoder in {folder} has other units, languages or sizes: leave begin out"
        )
    return vocoder


def train_vocoder(
    config: VocoderConfig,
    training: VocoderTraining,
    clips: list[Clip],
    folder: Path,
    progress: Callable[[dict], None] | None = None,
    begin: Vocoder | None = None,
) -> Vocoder:
    """Train a vocoder into `folder`, going on from its checkpoint.pt where there is one. On the CPU when done.

    begin: of this config, whose weights training begins with; the discriminators begin anew.
    progress: called with every line of the log. Raises TresseError for clips or settings that cannot be trained on.
    """
    held_out, clips = hold_out(check(config, training, clips), training)
    trainer = Trainer(config, training, clips)
    if begin is not None:
        trainer.vocoder.load_state_dict(begin.state_dict())
    checkpoint = load_checkpoint(folder / "checkpoint.pt")
    if checkpoint is not None:
        trainer.restore(checkpoint)
    if training.memory_dropout >= 1:
        trainer.vocoder.forget()
    folder.mkdir(parents=True, exist_ok=True)
    start, began = trainer.done, time.monotonic()
    log = Log(folder / "log.jsonl", start)

    def report(done: int) -> None:
        record: dict[str, Any] = {"step": done, **{name: round(float(x), 5) for name, x in trainer.losses.items()}}
        record["steps_per_second"] = round((done - start) / (time.monotonic() - began), 3)
        if held_out and (done % training.sample_every == 0 or done == training.steps):
            record |= trainer.validate(held_out, folder / "samples")
        log.write(record)
        print(_line(record, training.steps), flush=True)
        if progress is not None:
            progress(record)

    def save(done: int) -> None:
        save_checkpoint(folder / "checkpoint.pt", trainer.state())

    actions = [(training.log_every, report), (training.checkpoint_every, save)]
    train(trainer.step, trainer.schedule, actions, start=start)
    vocoder = trainer.vocoder.cpu().eval()
    vocoder.save(folder)
    return vocoder


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16. `auto`: on CUDA, and on CPUs with instructions for it."""
    if precision not in ("auto", "float32", "bfloat16"):
        raise TresseError(f"unknown precision {precision!r}: choose auto, float32 or bfloat16")
    if precision != "auto":
        return precision == "bfloat16"
    return bf16_pays(device)


def plot_spectrograms(path: Path, waveforms: list[Tensor], sample_rate: int) -> None:
    """The log-mel spectrograms of [1, L] waveforms (spoken, original) above each other, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from torchaudio.transforms import MelSpectrogram

    to_mel = MelSpectrogram(sample_rate, n_fft=1024, hop_length=256, n_mels=80, power=1)
    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, title, waveform in zip(
        figure.subplots(2, 1, sharex=True), ("spoken", "original"), waveforms, strict=True
    ):
        mel = to_mel(waveform[0].cpu()).clamp(min=1e-5).log()
        extent = (0.0, waveform.shape[1] / sample_rate, 0.0, 80.0)
        axes.imshow(mel.numpy(), origin="lower", aspect="auto", extent=extent, vmin=-11.5, vmax=3.0)
        axes.set(title=title, ylabel="mel band")
    axes.set_xlabel("time (s)")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)


def _adamw(module: nn.Module, learning_rate: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(module.parameters(), lr=learning_rate, betas=(0.8, 0.9), weight_decay=0.01, fused=True)


def _line(record: dict[str, Any], steps: int) -> str:
    """step 500/12000 mel 0.812 ... 8.1 steps/s, 24 min left"""
    shown = [name for name in record if name not in ("step", "steps_per_second") and "validation_mel_" not in name]
    numbers = " ".join(f"{name} {record[name]:.3f}" for name in shown)
    speed = record["steps_per_second"]
    left = (steps - record["step"]) / max(speed, 1e-9) / 60
    return f"vocoder step {record['step']}/{steps} {numbers} {speed:.2f} steps/s, {left:.0f} min left"
