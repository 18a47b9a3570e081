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


def index_of(name: str, known: list[str], kind: str) -> int:
    """The number of a name among those known. Raises ValueError where it is none of them."""
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

    def embed(self, ids_BM: Tensor, speaker_B: Tensor, language_BN: Tensor, features_BNC: Tensor) -> Tensor:
        """Everything known about a unit and those that follow it -> [B, N, C]."""
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
        self._speaker = 0 if speaker is None else index_of(speaker, config.speakers, "speaker")
        self._language = 0
        self._finished = False
        device = vocoder.device
        self._predictor = vocoder.predictor()
        self._speaker_B = torch.tensor([self._speaker], device=device)
        self._prosody = ProsodyState()
        self._waiting = np.zeros((4, 0), np.int64)
        """Units that are not spoken yet, since those behind them are not known: id, run length (0: predicted), language, and
        whether a sentence begins."""
        self._ended = False
        """Whether a sentence begins with the next unit, whichever it is."""
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
        """Unit frames that each unit spoken by the latest push lasts, given or predicted: int64 [N]. With
        `units_ahead` these are first the units that waited, and the last ones of the push wait."""

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
        a sentence begins with the first of these units, or with each: the one before has ended. `final`: nothing follows,
        as push and then flush. Raises ValueError for ids, lengths or languages that cannot be; the stream is then as it was.
        """
        if self._finished:
            raise ValueError("this stream is finished: open a new one for further units")
        units, languages = self._check_units(ids, language)
        lengths = 0 * units if run_lengths is None else self._check_lengths(run_lengths, len(units))
        starts = self._sentence_starts(begins, len(units))
        if len(languages):
            self._language = int(languages[-1])
        elif isinstance(language, str):
            self._language = index_of(language, self.vocoder.config.languages, "language")
        self._ended = begins is True and not len(units)
        waiting = np.concatenate([self._waiting, np.stack([units, lengths, languages, starts])], axis=1)
        total = waiting.shape[1]
        starting = np.flatnonzero(waiting[3])
        known = max(0, total - self.vocoder.config.units_ahead, *starting[-1:])
        ready = total if final or self._ended else known
        self._waiting = waiting[:, ready:]
        given = np.flatnonzero(np.diff(waiting[1] > 0)) + 1
        edges = [0, *sorted({*starting, *given} - {0}), total]
        parts = []
        self.run_lengths = np.zeros(0, np.int64)
        with torch.inference_mode():
            for first, last in itertools.pairwise(edges):
                if first < ready and waiting[3, first]:
                    self._prosody = ProsodyState()
                end = min([total, *starting[starting > first]])
                for start in range(first, min(last, ready), BLOCK):
                    stop = min(last, ready, start + BLOCK)
                    following = waiting[0, stop : min(end, stop + self.vocoder.config.units_ahead)]
                    parts += self._speak(waiting[:3, start:stop], following)
            if final:
                self._finished = True
                if self._frames or self._source.shape[1]:
                    nothing = torch.zeros(1, 0, self.vocoder.config.dim, device=self.vocoder.device)
                    parts.append(self._advance(nothing, final=True))
        if not parts:
            return np.zeros(0, np.float32)
        return torch.cat(parts).cpu().numpy()

    def flush(self) -> np.ndarray:
        """The samples still held back, float32 [n]; the stream is finished afterwards."""
        if self._finished:
            self.run_lengths = np.zeros(0, np.int64)
            return np.zeros(0, np.float32)
        return self.push([], final=True)

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
            index = self._language if language is None else index_of(language, config.languages, "language")
            languages = np.full(len(units), index, np.int64)
        else:
            languages = np.asarray([index_of(name, config.languages, "language") for name in language], np.int64)
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

    def _sentence_starts(self, begins: bool | Sequence[bool], count: int) -> np.ndarray:
        """Whether a sentence begins with each unit of a push: int64 [N]."""
        if isinstance(begins, bool):
            starts = np.zeros(count, np.int64)
            starts[:1] = begins
        elif len(begins) != count:
            raise ValueError(f"begins marks {len(begins)} of {count} units: give one for each, or one for all")
        else:
            starts = np.asarray(begins, np.int64).reshape(count)
        starts[:1] |= self._ended
        return starts

    def _speak(self, units: np.ndarray, following: np.ndarray) -> list[Tensor]:
        """At most BLOCK units of one sentence, their ids, run lengths (all given or all 0) and languages [3, N], and the ids
        behind them that the sentence has -> the samples now certain, in pieces."""
        vocoder, device, config = self.vocoder, self.vocoder.device, self.vocoder.config
        state = self._prosody
        ids, lengths, languages = units
        nothing = np.full(config.units_ahead - len(following), config.codebook_size)
        ids_BM = torch.from_numpy(np.concatenate([ids, following, nothing]))[None]
        language_BN = torch.from_numpy(languages.copy())[None]
        heard, logits, state.durations = self._predictor.durations(
            ids_BM, self._speaker_B.cpu(), language_BN, state.durations
        )
        if not lengths[0]:
            chosen, self._remainder = predicted_run_lengths(logits[0], self._remainder)
            lengths = np.asarray(chosen, np.int64)
        melody, state.melody = self._predictor.features(
            heard, torch.from_numpy(lengths)[None], state.elapsed, state.melody
        )
        state.elapsed += int(lengths.sum())
        x_BNC = vocoder.embed(ids_BM.to(device), self._speaker_B, language_BN.to(device), melody.to(device).float())
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
