"""Speech as a network learns from it: mel energies, and the likeliest names of each frame, by teacher and text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from slm.errors import TresseError
from slm.units.causal import FRAME, HOP, WINDOW, LogMel
from train.speech.augmentation import Augmentation
from train.tools.checkpoints import atomic_path
from train.tools.progress import Progress
from train.units.alignment import align
from train.units.said import Speech
from train.units.teacher import RATE, Teacher, blocks

LIKELIEST = 6
"""Names of a frame that are kept."""
LONGEST = 24.0
SHORTEST = 0.5
"""s of a clip that is learnt from."""
TEXT = 0.7
"""Probability that a frame gives to the phone that the text has there; what the teacher hears shares the rest."""
LEAST = -1.2
"""Mean log posterior in nats below which a text is not believed."""


@dataclass(frozen=True)
class NamedSpeech:
    """Clips end to end. mels: energies float16 [2 F, mels] at 100 Hz; names: uint8 [F, LIKELIEST] at 50 Hz, the likeliest
    first; weights: their probabilities float16 [F, LIKELIEST], which add up to 1; starts, lengths: of each clip, in frames
    of 20 ms."""

    mels: Tensor
    names: Tensor
    weights: Tensor
    starts: Tensor
    lengths: Tensor


def name_speech(
    speech: Speech,
    count: int,
    teacher: Teacher,
    conditions: Augmentation,
    seed: int,
    front: LogMel,
    folder: Path,
) -> NamedSpeech:
    """Every clip twice, clean and as recorded under `conditions`, with the teacher's names of the clean one.

    front: of the network that will learn. count: of the clips, those included that are too short or long to learn from.
    Kept in `folder`, 60 clips a file, so that nothing is named twice.
    """
    fitting = ((wave, said) for wave, said in speech if SHORTEST * RATE <= len(wave) <= LONGEST * RATE)
    parts: list[dict[str, Tensor]] = []
    done = 0
    progress = Progress(f"named {folder.name}", count, unit="clips")
    for number, block in enumerate(blocks(fitting)):
        path = folder / f"{number:05d}-{len(block)}.safetensors"
        if not path.exists():
            with atomic_path(path) as temporary:
                save_file(_named(block, number, teacher, conditions, seed, front), str(temporary))
        parts.append(load_file(str(path)))
        done += len(block)
        progress.update(done)
    if not parts:
        raise TresseError(f"there is no speech to name for {folder}: give recordings of {SHORTEST} to {LONGEST} s")
    lengths = torch.cat([part["lengths"] for part in parts])
    mels, names, weights = (torch.cat([part[key] for part in parts]) for key in ("mels", "names", "weights"))
    return NamedSpeech(mels, names, weights, lengths.cumsum(0) - lengths, lengths)


def _named(
    block: list[tuple[np.ndarray, list[int] | None]],
    number: int,
    teacher: Teacher,
    conditions: Augmentation,
    seed: int,
    front: LogMel,
) -> dict[str, Tensor]:
    mels, names, weights, lengths = [], [], [], []
    posteriors = teacher.posteriors([wave for wave, _ in block])
    for clip, ((wave, said), posterior) in enumerate(zip(block, posteriors, strict=True)):
        posterior = posterior if said is None else told(posterior, said)
        frames = -(-len(wave) // FRAME)
        likely = posterior[:frames].topk(min(LIKELIEST, posterior.shape[1]), dim=-1)
        recording = conditions.recording(seed + 60 * number + clip)
        for heard in (wave, recording.of(wave)):
            padded = F.pad(torch.from_numpy(np.asarray(heard, np.float32)), (WINDOW - HOP, frames * FRAME - len(heard)))
            mels.append(front.power(padded[None])[0].half())
            names.append(likely.indices.to(torch.uint8))
            weights.append((likely.values / likely.values.sum(-1, keepdim=True)).half())
            lengths.append(frames)
    joined = {"mels": torch.cat(mels), "names": torch.cat(names), "weights": torch.cat(weights)}
    return {**joined, "lengths": torch.tensor(lengths)}


def told(posteriors_TK: Tensor, said: Sequence[int]) -> Tensor:
    """A teacher's posteriors where it is known which phones are said, in order; as they were where these do not fit."""
    try:
        path, mean = align(posteriors_TK.clamp(min=np.exp(-8.0)).log().numpy(), said)
    except ValueError:
        return posteriors_TK
    if mean < LEAST:
        return posteriors_TK
    return (1.0 - TEXT) * posteriors_TK + TEXT * F.one_hot(torch.from_numpy(path), posteriors_TK.shape[1])
