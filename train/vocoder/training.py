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
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.audio import write_wav
from slm.bundle import choose_device
from slm.errors import TresseError
from train.tools.checkpoints import atomic_path, linear_schedule, load_checkpoint, save_checkpoint
from train.tools.hardware import bf16_pays
from train.tools.progress import Log
from train.vocoder.data import Batch, Clip, check, draw_batch
from train.vocoder.losses import Discriminators, SpectralLoss
from vocoder.config import VocoderConfig
from vocoder.istft import Source, limit
from vocoder.model import Vocoder
from vocoder.prosody import duration_loss, pitch_loss

SAMPLES = 4
"""Held-out clips that are kept to be listened to."""


@dataclass(frozen=True)
class VocoderTraining:
    """How to train. Lengths in s; `context_seconds` precede each segment and are not counted by the loss.

    adversarial_from: the step from which the discriminators ("thin" or "stock") take part; None: never. They hear
    `adversarial_clips` segments of each batch. device, precision: "auto" takes CUDA and bfloat16 where the machine has
    them ("cpu", "cuda"; "float32", "bfloat16" ask for one).
    """

    steps: int
    batch_size: int = 12
    segment_seconds: float = 0.8
    context_seconds: float = 0.3
    learning_rate: float = 1e-3
    warmup: int = 100
    seed: int = 0
    adversarial_from: int | None = None
    adversarial_clips: int = 6
    discriminator: str = "thin"
    discriminator_learning_rate: float = 3e-4
    mel_weight: float = 15.0
    convergence_weight: float = 1.0
    duration_weight: float = 1.0
    pitch_weight: float = 4.0
    voicing_weight: float = 1.0
    adversarial_weight: float = 1.0
    matching_weight: float = 2.0
    validation_clips: int = 12
    log_every: int = 50
    checkpoint_every: int = 500
    sample_every: int = 1000
    device: str = "auto"
    precision: str = "auto"


def generate(vocoder: Vocoder, batch: Batch, autocast: torch.autocast) -> tuple[Tensor, dict[str, Tensor]]:
    """The segments as the vocoder speaks them [B, L] float32, and the losses of its prosody."""
    config, prosody = vocoder.config, vocoder.prosody
    places = batch.unit_BT, batch.start_BT, batch.end_BT
    with autocast:
        language_BN = batch.language_B[:, None].expand_as(batch.ids_BN)
        heard, logits, _ = prosody.durations(batch.ids_BN, batch.speaker_B, language_BN)
        melody, _ = prosody.features(heard, batch.run_lengths_BN)
        octaves, voicing = prosody.pitch(melody, *places)
        x_BNC = vocoder.embed(batch.ids_BN, batch.speaker_B, language_BN, melody)
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

    def __init__(self, config: VocoderConfig, training: VocoderTraining) -> None:
        self.config, self.training = config, training
        self.device = torch.device(choose_device(training.device))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            self.vocoder = Vocoder(config).to(self.device).train()
            adversarial = training.adversarial_from is not None
            self.judges = Discriminators(training.discriminator).to(self.device) if adversarial else None
        self.spectral = SpectralLoss(config.sample_rate).to(self.device)
        self.autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=use_bfloat16(training.precision, self.device)
        )
        self.optimiser = _adamw(self.vocoder, training.learning_rate)
        self.judge_optimiser = _adamw(self.judges, training.discriminator_learning_rate) if self.judges else None
        self.factor = linear_schedule(training.steps, training.warmup, floor=0.02)
        self.step = 0

    def state(self) -> dict[str, Any]:
        """All that `restore` needs: tensors, numbers and strings."""
        return {
            "config": asdict(self.config),
            "step": self.step,
            "vocoder": self.vocoder.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "judges": self.judges.state_dict() if self.judges else None,
            "judge_optimiser": self.judge_optimiser.state_dict() if self.judge_optimiser else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint. Raises TresseError where it belongs to another vocoder."""
        if state["config"] != asdict(self.config):
            raise TresseError("the checkpoint is of a vocoder with other settings: train into another folder")
        self.vocoder.load_state_dict(state["vocoder"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.judges is not None and self.judge_optimiser is not None and state["judges"] is not None:
            self.judges.load_state_dict(state["judges"])
            self.judge_optimiser.load_state_dict(state["judge_optimiser"])
        self.step = state["step"]

    def advance(self, clips: list[Clip]) -> dict[str, Tensor]:
        """One step: the losses as scalar tensors (not synchronised)."""
        training = self.training
        batch = draw_batch(self.config, training, clips, self.step).to(self.device)
        factor = self.factor(self.step)
        self.optimiser.param_groups[0]["lr"] = training.learning_rate * factor
        self.optimiser.zero_grad(set_to_none=True)
        fake, prosody = generate(self.vocoder, batch, self.autocast)
        mel, convergence = self.spectral(fake, batch.segment_BL)
        loss = training.mel_weight * mel + training.convergence_weight * convergence
        loss = loss + training.duration_weight * prosody["duration"]
        loss = loss + training.pitch_weight * prosody["pitch"] + training.voicing_weight * prosody["voicing"]
        losses = {"mel": mel, "convergence": convergence, **prosody}
        roots, gradients = [loss], [torch.ones_like(loss)]
        if self.judges is not None and self.step >= (training.adversarial_from or 0):
            judged, gradient = self._judge(batch.segment_BL, fake, factor)
            losses |= judged
            roots.append(fake)
            gradients.append(gradient)
        torch.autograd.backward(roots, gradients)
        nn.utils.clip_grad_norm_(self.vocoder.parameters(), 10.0)
        self.optimiser.step()
        self.step += 1
        return {name: value.detach() for name, value in losses.items()}

    def _judge(self, real_BL: Tensor, fake_BL: Tensor, factor: float) -> tuple[dict[str, Tensor], Tensor]:
        """Update the discriminators; the losses, and what the waveform is to learn from them: its gradient [B, L].

        One pass over each waveform serves both sides: the discriminators' weights take the gradient of their loss
        only, the waveform that of the generator's only.
        """
        training = self.training
        assert self.judges is not None
        assert self.judge_optimiser is not None
        some = slice(0, training.adversarial_clips)
        heard = fake_BL[some].detach().requires_grad_()
        with self.autocast:
            judge_loss, fooled, matching = self.judges(real_BL[some], heard)
        wanted = training.adversarial_weight * fooled + training.matching_weight * matching
        (gradient,) = torch.autograd.grad(wanted, heard, retain_graph=True)
        self.judge_optimiser.param_groups[0]["lr"] = training.discriminator_learning_rate * factor
        self.judge_optimiser.zero_grad(set_to_none=True)
        judge_loss.backward(inputs=list(self.judges.parameters()))
        self.judge_optimiser.step()
        losses = {"discriminator": judge_loss, "adversarial": fooled, "matching": matching}
        return losses, F.pad(gradient, (0, 0, 0, len(fake_BL) - len(gradient)))

    @torch.no_grad()
    def validate(self, clips: list[Clip], folder: Path | None) -> dict[str, float]:
        """Mean log-mel L1 of whole clips, synthesised as streams do, over all and by language and speaker.

        With a folder, WAVs and spectrograms of the first SAMPLES in it.
        """
        self.vocoder.eval()
        groups: dict[str, list[float]] = {}
        for index, clip in enumerate(clips):
            spoken = self.vocoder.synthesise(clip.units, clip.speaker, clip.language)
            shared = min(len(spoken), len(clip.waveform))
            pair = [torch.from_numpy(x[:shared])[None].float().to(self.device) for x in (spoken, clip.waveform)]
            groups.setdefault(f"{clip.language}_{clip.speaker}", []).append(float(self.spectral(*pair)[0]))
            if folder is not None and index < SAMPLES:
                name = f"{index:02d}-{clip.language}-{clip.speaker}".replace("/", "_")
                write_wav(folder / f"{name}-original.wav", clip.waveform, self.config.sample_rate)
                write_wav(folder / f"{name}-step{self.step:06d}.wav", spoken, self.config.sample_rate)
                plot_spectrograms(folder / f"{name}-step{self.step:06d}.png", pair, self.config.sample_rate)
        self.vocoder.train()
        means = {f"validation_mel_{name}": float(np.mean(losses)) for name, losses in groups.items()}
        return {"validation_mel": float(np.mean(list(means.values()))), **means}


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


def train_vocoder(
    config: VocoderConfig,
    training: VocoderTraining,
    clips: list[Clip],
    folder: Path,
    progress: Callable[[dict], None] | None = None,
) -> Vocoder:
    """Train a vocoder into `folder`, going on from its checkpoint.pt where there is one. On the CPU when done.

    progress: called with every line of the log. Raises TresseError for clips or settings that cannot be trained on.
    """
    clips = check(config, training, clips)
    trainer = Trainer(config, training)
    checkpoint = load_checkpoint(folder / "checkpoint.pt")
    if checkpoint is not None:
        trainer.restore(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    log = Log(folder / "log.jsonl", trainer.step)
    held_out, clips = hold_out(clips, training)
    began, from_step = time.monotonic(), trainer.step
    while trainer.step < training.steps:
        losses = trainer.advance(clips)
        step, last = trainer.step, trainer.step == training.steps
        if step % training.log_every == 0 or last:
            record: dict[str, Any] = {"step": step, **{name: round(float(x), 5) for name, x in losses.items()}}
            if not np.isfinite(record["mel"]):
                raise TresseError(f"the loss is not finite at step {step}: lower the learning rate")
            record["steps_per_second"] = round((step - from_step) / (time.monotonic() - began), 3)
            if held_out and (step % training.sample_every == 0 or last):
                record |= trainer.validate(held_out, folder / "samples")
            log.write(record)
            print(_line(record, training.steps), flush=True)
            if progress is not None:
                progress(record)
        if step % training.checkpoint_every == 0 or last:
            save_checkpoint(folder / "checkpoint.pt", trainer.state())
    vocoder = trainer.vocoder.cpu().eval()
    vocoder.save(folder)
    return vocoder


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """ "auto": on CUDA, and on CPUs with instructions for it (elsewhere it would be slower than float32)."""
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
