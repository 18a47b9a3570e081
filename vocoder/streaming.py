"""Speaking while units are still arriving: the one way from units to samples, offline synthesis included.

A stream keeps what later samples need (some kilobytes, however long it speaks) and hands out every sample as soon as
it is certain. Work is done in blocks of bounded size, so a push of any length needs bounded memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from vocoder.causal import CausalStack, LookaheadConv
from vocoder.config import VocoderConfig
from vocoder.istft import OverlapState, Source, StreamingISTFTHead
from vocoder.prosody import MIDDLE, Prosody, ProsodyState
from vocoder.prosody import run_lengths as predicted_run_lengths
from vocoder.source import advance_phase

BLOCK = 256
"""Units, or head frames, computed at once: fits the caches of one core."""


def _index(name: str, known: list[str], kind: str) -> int:
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}: this vocoder knows {', '.join(known)}")
    return known.index(name)


class StreamedVocoder(Protocol):
    """What a stream needs of `vocoder.model.Vocoder`; shapes as there."""

    config: VocoderConfig
    first: LookaheadConv
    norm: nn.LayerNorm
    backbone: CausalStack
    head: StreamingISTFTHead

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    def predictor(self) -> Prosody:
        """Durations and pitch, in float64 on the CPU."""
        ...

    def embed(self, ids_BN: Tensor, speaker_B: Tensor, language_BN: Tensor, features_BNC: Tensor) -> Tensor:
        """Everything known about a unit -> [B, N, C]."""
        ...

    def spread(self, x_BNC: Tensor, unit_BT: Tensor, start_BT: Tensor, end_BT: Tensor, f0_BT: Tensor) -> Tensor:
        """Units -> head frames [B, T, C]."""
        ...


class VocoderStream:
    """One utterance, or an endless one. After `flush` the stream is finished.

    Durations and pitch are predicted in float64 on the CPU: durations are rounded to whole frames, phases accumulate,
    and neither must depend on how the units were cut into pushes.
    """

    @torch.inference_mode()
    def __init__(self, vocoder: StreamedVocoder, speaker: str | None = None) -> None:
        config = vocoder.config
        self.vocoder = vocoder
        self._speaker = 0 if speaker is None else _index(speaker, config.speakers, "speaker")
        self._language = 0
        self._finished = False
        device = vocoder.device
        self._predictor = vocoder.predictor()
        self._speaker_B = torch.tensor([self._speaker], device=device)
        self._prosody = ProsodyState()
        self._remainder = 0.0
        self._tone = (0.0, 0.0)
        """Frequency (Hz) and phase (rad) of the last head frame."""
        self._source = torch.zeros(2, 0, dtype=torch.float64)
        """Frequency and phase of the head frames that wait for the look-ahead."""
        self._frames = 0
        """Head frames spoken."""
        self._first_state: Tensor | None = None
        self._backbone_state: list[Tensor] | None = None
        self._overlap: OverlapState = vocoder.head.fresh(1, device)
        self.run_lengths = np.zeros(0, np.int64)
        """Unit frames that each unit of the latest push lasts, given or predicted: int64 [N]."""

    def push(
        self,
        ids: Sequence[int] | np.ndarray,
        run_lengths: Sequence[int] | np.ndarray | None = None,
        language: str | Sequence[str] | None = None,
        *,
        begins: bool | Sequence[bool] = False,
        final: bool = False,
    ) -> np.ndarray:
        """More units -> float32 [samples now certain].

        ids: int [N], whole runs. run_lengths: int [N] unit frames, at least 1; None: predicted. language: of these
        units, or one for each; None: the language of the push before, at first the first of the config. begins: whether
        a sentence begins with the first of these units, or with each. `final`: nothing follows, as push and then
        flush. Raises ValueError for ids, lengths or languages that cannot be; the
        stream is then as it was.
        """
        if self._finished:
            raise ValueError("this stream is finished: open a new one for further units")
        units, languages = self._check_units(ids, language)
        lengths = None if run_lengths is None else self._check_lengths(run_lengths, len(units))
        edges = self._sentence_edges(begins, len(units))
        if len(languages):
            self._language = int(languages[-1])
        elif isinstance(language, str):
            self._language = _index(language, self.vocoder.config.languages, "language")
        parts = []
        self.run_lengths = np.zeros(0, np.int64)
        with torch.inference_mode():
            for first, last in itertools.pairwise(edges):
                if first or begins is True or (begins and begins[0]):
                    self._prosody = ProsodyState()
                for start in range(first, last, BLOCK):
                    part = slice(start, min(last, start + BLOCK))
                    parts += self._speak(units[part], None if lengths is None else lengths[part], languages[part])
            if final:
                self._finished = True
                if self._frames or self._source.shape[1]:
                    nothing = torch.zeros(1, 0, self.vocoder.config.dim, device=self.vocoder.device)
                    parts.append(self._advance(nothing, final=True))
        if not parts:
            return np.zeros(0, np.float32)
        return torch.cat(parts).cpu().numpy()

    def flush(self) -> np.ndarray:
        """The samples still held back, float32 [at most the look-ahead]; the stream is finished afterwards."""
        return np.zeros(0, np.float32) if self._finished else self.push([], final=True)

    def _check_units(
        self, ids: Sequence[int] | np.ndarray, language: str | Sequence[str] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        config = self.vocoder.config
        units = np.asarray(ids)
        if units.ndim != 1 or (len(units) and units.dtype.kind not in "iu"):
            raise ValueError(f"ids must be a 1-D sequence of integers, not {units.dtype} {list(units.shape)}")
        if len(units) and not 0 <= int(units.min()) <= int(units.max()) < config.codebook_size:
            raise ValueError(
                f"unit ids must lie in 0..{config.codebook_size - 1}, not {int(units.min())}..{int(units.max())}"
            )
        if language is None or isinstance(language, str):
            index = self._language if language is None else _index(language, config.languages, "language")
            languages = np.full(len(units), index, np.int64)
        else:
            languages = np.asarray([_index(name, config.languages, "language") for name in language], np.int64)
            if len(languages) != len(units):
                raise ValueError(
                    f"{len(languages)} languages for {len(units)} units: give one for each, or one for all"
                )
        return units.astype(np.int64), languages

    @staticmethod
    def _check_lengths(run_lengths: Sequence[int] | np.ndarray, count: int) -> np.ndarray:
        lengths = np.asarray(run_lengths)
        if lengths.shape != (count,):
            raise ValueError(f"run_lengths {list(lengths.shape)} must be as many as ids [{count}]")
        if count and (lengths.dtype.kind not in "iu" or int(lengths.min()) < 1):
            raise ValueError("run_lengths must be integers of at least 1 frame")
        return lengths.astype(np.int64)

    @staticmethod
    def _sentence_edges(begins: bool | Sequence[bool], count: int) -> list[int]:
        """Where the pieces of a push that belong to one sentence each begin and end."""
        if isinstance(begins, bool):
            return [0, count]
        if len(begins) != count:
            raise ValueError(f"begins marks {len(begins)} of {count} units: give one for each, or one for all")
        return [0, *(index for index in range(1, count) if begins[index]), count]

    def _speak(self, units: np.ndarray, lengths: np.ndarray | None, languages: np.ndarray) -> list[Tensor]:
        """At most BLOCK units of one sentence -> the samples now certain, in pieces."""
        vocoder, device, config = self.vocoder, self.vocoder.device, self.vocoder.config
        state = self._prosody
        ids_BN, language_BN = torch.from_numpy(units)[None], torch.from_numpy(languages)[None]
        heard, logits, state.durations = self._predictor.durations(
            ids_BN, self._speaker_B.cpu(), language_BN, state.durations
        )
        if lengths is None:
            chosen, self._remainder = predicted_run_lengths(logits[0], self._remainder)
            lengths = np.asarray(chosen, np.int64)
        melody, state.melody = self._predictor.features(
            heard, torch.from_numpy(lengths)[None], state.elapsed, state.melody
        )
        state.elapsed += int(lengths.sum())
        x_BNC = vocoder.embed(ids_BN.to(device), self._speaker_B, language_BN.to(device), melody.to(device).float())
        self.run_lengths = np.concatenate([self.run_lengths, lengths])
        steps = lengths * config.repeats
        total = int(steps.sum())
        ends = np.cumsum(steps)
        parts = []
        for begin in range(0, total, BLOCK):
            frame = np.arange(begin, min(total, begin + BLOCK))
            unit = np.searchsorted(ends, frame, side="right")
            end = ends[unit] - 1 - frame
            index = torch.from_numpy(np.stack([unit, steps[unit] - 1 - end, end]))[:, None]
            octaves, voicing = self._predictor.pitch(melody, *index)
            f0 = (MIDDLE * torch.exp2(octaves) * (voicing > 0))[0]
            phase = advance_phase(f0, self._tone, config.hop_length / config.sample_rate)
            self._tone = (float(f0[-1]), float(phase[-1]))
            self._source = torch.cat([self._source, torch.stack([f0, phase])], dim=1)
            unit_BT, start_BT, end_BT = index.to(device)
            x_BTC = vocoder.spread(x_BNC, unit_BT, start_BT, end_BT, f0[None].to(device).float())
            parts.append(self._advance(x_BTC, final=False))
        return parts

    def _advance(self, x_BTC: Tensor, *, final: bool) -> Tensor:
        """Head frames [1, T, C] -> the samples now certain [n]."""
        vocoder = self.vocoder
        x, self._first_state = vocoder.first(x_BTC, self._first_state, final=final)
        ready = x.shape[1]
        if ready:
            x, self._backbone_state = vocoder.backbone(vocoder.norm(x), self._backbone_state)
        f0, phase = self._source[:, None, :ready].to(x.device, torch.float32)
        frame = torch.arange(self._frames, self._frames + ready, device=x.device)[None]
        self._source, self._frames = self._source[:, ready:], self._frames + ready
        samples, self._overlap = vocoder.head(x, Source(f0, phase, frame), self._overlap, final=final)
        return samples[0]
