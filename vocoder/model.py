"""The unit vocoder: collapsed units, a speaker and a language in, a waveform out.

Unit embeddings (with speaker, language, place within the run, and the features of the prosody predictor) are repeated
to the head's frame rate, get the predicted pitch, pass one convolution that looks ahead and a stack of causal ConvNeXt
blocks, and leave through an inverse STFT: the parts of vocos (Siuzdak 2023, arXiv:2306.00814), made causal. What the head
filters are pulses at the predicted pitch, and noise (as in source-filter vocoders: Wang, Takaki and Yamagishi 2019,
arXiv:1810.11946). About 3M parameters at the default size. Offline synthesis is a stream that gets everything at once, so
streamed audio equals offline audio.

Shapes: B batch, N collapsed units, T head frames, C channels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vocoder.causal import CausalStack, LookaheadConv
from vocoder.config import VocoderConfig
from vocoder.istft import StreamingISTFTHead
from vocoder.prosody import MIDDLE, Following, Prosody, run_lengths
from vocoder.streaming import VocoderStream, index_of

PLACES = 32
"""Head frames from the start, and to the end, of a run that are told apart."""


class UnitRuns(Protocol):
    """Units to be spoken, as `slm.units.Units` are."""

    @property
    def ids(self) -> np.ndarray:
        """int [N], whole runs."""
        ...

    @property
    def run_lengths(self) -> np.ndarray | None:
        """int [N] unit frames; None: they are predicted."""
        ...

    @property
    def frame_rate(self) -> float:
        """Hz."""
        ...


class Vocoder(nn.Module):
    """Units -> speech. `synthesise` for whole sequences, `stream` for units that are still arriving."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.units = nn.Embedding(config.codebook_size, dim)
        self.speakers = nn.Embedding(len(config.speakers), dim)
        self.languages = nn.Embedding(len(config.languages), dim)
        self.following = Following(config.codebook_size, config.units_ahead, dim)
        self.from_start = nn.Embedding(PLACES, dim)
        self.to_end = nn.Embedding(PLACES, dim)
        self.prosody = Prosody(config)
        self.context = nn.Linear(config.prosody_dim, dim)
        self.pitch = nn.Linear(2, dim)
        self.first = LookaheadConv(dim, dim, config.kernel_size, config.lookahead)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.backbone = CausalStack(dim, config.intermediate_dim, config.kernel_size, config.dilations)
        self.head = StreamingISTFTHead(dim, config.n_fft, config.hop_length, config.sample_rate)
        self.apply(_initialise)
        self.following.start()
        self.prosody.following.start()
        self._predictor: tuple[list[Tensor], Prosody] | None = None

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.config.sample_rate

    @property
    def lookahead_seconds(self) -> float:
        """How much later than its unit a sample leaves, in s."""
        return self.config.lookahead_seconds

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.units.weight.device

    def embed(
        self,
        ids_BM: Tensor,
        speaker_B: Tensor,
        language_BN: Tensor,
        features_BNC: Tensor,
        remembers_B: Tensor | None = None,
    ) -> Tensor:
        """Everything known about a unit: units and the `units_ahead` that follow the last of them [B, M], speaker,
        language, features of its prosody -> [B, N, C]. remembers: whose features are used, bool (None: all)."""
        x = self.following(self.units, ids_BM) + self.speakers(speaker_B)[:, None] + self.languages(language_BN)
        memory = self.context(features_BNC)
        return x + (memory if remembers_B is None else memory * remembers_B[:, None, None])

    def forget(self) -> None:
        """Leave the features of the sentence so far out for good: the backbone remembers what its convolutions do."""
        nn.init.zeros_(self.context.weight)
        nn.init.zeros_(self.context.bias)

    def for_speakers(self, speakers: Sequence[str], units_ahead: int | None = None) -> Vocoder:
        """The same vocoder with these speakers, in this order; one that it does not know begins as the mean of its own.

        units_ahead: units behind each one that are looked at, at least as many as now; further ones change nothing at
        first.
        """
        known = self.config.speakers
        ahead = max(self.config.units_ahead, units_ahead or 0)
        made = Vocoder(replace(self.config, speakers=list(speakers), units_ahead=ahead))
        weights = made.state_dict() | self.state_dict()
        for name in ("speakers.weight", "prosody.speakers.weight"):
            rows = weights[name]
            weights[name] = torch.stack(
                [rows[known.index(speaker)] if speaker in known else rows.mean(0) for speaker in speakers]
            )
        made.load_state_dict(weights)
        return made.to(self.device).train(self.training)

    def spread(self, x_BNC: Tensor, unit_BT: Tensor, start_BT: Tensor, end_BT: Tensor, f0_BT: Tensor) -> Tensor:
        """Units -> head frames: each frame's unit, its head frames since the run's start and to its end, Hz or 0."""
        x = torch.gather(x_BNC, 1, unit_BT[:, :, None].expand(-1, -1, x_BNC.shape[2]))
        voiced = f0_BT > 0
        tone = torch.stack([torch.log2(f0_BT.clamp(min=1.0) / MIDDLE) * voiced, voiced.to(f0_BT.dtype)], dim=-1)
        x = x + self.pitch(tone.to(x.dtype))
        return x + self.from_start(start_BT.clamp(max=PLACES - 1)) + self.to_end(end_BT.clamp(max=PLACES - 1))

    def predictor(self) -> Prosody:
        """`prosody` in float64 on the CPU: one copy for all streams, made anew once the weights have changed."""
        weights, made = [weight.detach() for weight in self.prosody.parameters()], self._predictor
        if made is None or not all(_same(*pair) for pair in zip(made[0], weights, strict=True)):
            copied = copy.deepcopy(self.prosody).to("cpu", torch.float64)
            made = self._predictor = [weight.clone() for weight in weights], copied
        return made[1]

    def stream(self, speaker: str | None = None) -> VocoderStream:
        """A fresh stream in this speaker's voice (None: the first). Raises ValueError for a speaker not known."""
        return VocoderStream(self, speaker)

    @torch.inference_mode()
    def seconds(self, ids: np.ndarray, speaker: str | None = None, language: str | None = None) -> float:
        """How long a sentence of units, int64 [N], lasts in s where a stream predicts their lengths.

        speaker, language: as in `synthesise`. Raises ValueError for what is not known.
        """
        config = self.config
        if not len(ids):
            return 0.0
        numbers = [
            0 if name is None else index_of(name, known, kind)
            for name, known, kind in ((speaker, config.speakers, "speaker"), (language, config.languages, "language"))
        ]
        following = np.full(config.units_ahead, config.codebook_size)
        ids_BM = torch.from_numpy(np.concatenate([ids, following]).astype(np.int64))[None]
        speaker_B, language_BN = torch.tensor(numbers[:1]), torch.full((1, len(ids)), numbers[1])
        _, logits, _ = self.predictor().durations(ids_BM, speaker_B, language_BN)
        return sum(run_lengths(logits[0], 0.0)[0]) / config.frame_rate

    def synthesise(self, units: UnitRuns, speaker: str | None = None, language: str | None = None) -> np.ndarray:
        """Units -> float32 [samples], |x| <= 1.

        speaker, language: None means the first of the config. Raises ValueError (one line) for what is not known.
        """
        rate = getattr(units, "frame_rate", None)
        if rate is not None and abs(rate - self.config.frame_rate) > 1e-6:
            raise ValueError(f"units of {rate:g} Hz given to a vocoder of {self.config.frame_rate:g} Hz units")
        stream = self.stream(speaker)
        return stream.push(units.ids, getattr(units, "run_lengths", None), language, final=True)

    def save(self, folder: Path | str, half: bool = True) -> None:
        """Write config.json and model.safetensors (float16 unless `half` is False)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        dtype = torch.float16 if half else torch.float32
        weights = {name: value.detach().to("cpu", dtype).contiguous() for name, value in self.state_dict().items()}
        self.config.save(folder / "config.json")
        save_file(weights, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path | str) -> Vocoder:
        """Read what `save` wrote; float32, ready to speak. Raises ValueError (one line) for missing or damaged files."""
        folder = Path(folder)
        config, path = VocoderConfig.load(folder / "config.json"), folder / "model.safetensors"
        try:
            _compare(config, path)  # before there is memory for what the config says
            model = cls(config)
            weights = {name: value.float() for name, value in load_file(path).items()}
            if not all(torch.isfinite(value).all() for value in weights.values()):
                raise ValueError("weights that are not finite")
            model.load_state_dict(weights)
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"cannot read the vocoder's {path}: {reason}") from error
        return model.eval()


def _compare(config: VocoderConfig, path: Path) -> None:
    """Raises ValueError where the weights in a file are not those of a vocoder of this config, by names and shapes."""
    if not path.is_file():
        raise ValueError("there is no such file")
    with torch.device("meta"):
        expected = {name: list(value.shape) for name, value in Vocoder(config).state_dict().items()}
    with safe_open(str(path), "pt") as file:
        stored = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    if stored != expected:
        raise ValueError("it does not fit config.json")


def _same(one: Tensor, other: Tensor) -> bool:
    return one.device == other.device and one.dtype == other.dtype and torch.equal(one, other)


def _initialise(module: nn.Module) -> None:
    """As vocos does: small truncated normal weights, zero biases; embeddings that start as small differences."""
    if isinstance(module, nn.Conv1d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.3)
