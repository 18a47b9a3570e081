"""Speaking while units are still arriving: the one way from units to samples, offline synthesis included.

A stream keeps what later samples need (some kilobytes, however long it speaks) and hands out every sample as soon as
it is certain. Work is done in blocks of bounded size, so a push of any length needs bounded memory.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vocoder.durations import run_lengths as predicted_run_lengths
from vocoder.istft import OverlapState

if TYPE_CHECKING:
    from vocoder.model import Vocoder

BLOCK = 256
"""Units, or head frames, computed at once: fits the caches of one core."""


def _index(name: str, known: list[str], kind: str) -> int:
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}: this vocoder knows {', '.join(known)}")
    return known.index(name)


class VocoderStream:
    """One utterance, or an endless one. After `flush` the stream is finished.

    The duration predictor runs in float64 on the CPU: its results are rounded to whole frames, and must not depend on
    how the units were cut into pushes.
    """

    @torch.inference_mode()
    def __init__(self, vocoder: Vocoder, speaker: str | None = None) -> None:
        config = vocoder.config
        self.vocoder = vocoder
        self._speaker = 0 if speaker is None else _index(speaker, config.speakers, "speaker")
        self._language = 0
        self._finished = False
        self._spoke = False
        device = vocoder.device
        self._predictor = copy.deepcopy(vocoder.durations).to("cpu", torch.float64)
        self._speaker_B = torch.tensor([self._speaker], device=device)
        self._duration_state: list[Tensor] | None = None
        self._remainder = 0.0
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
        final: bool = False,
    ) -> np.ndarray:
        """More units -> float32 [samples now certain].

        ids: int [N], whole runs. run_lengths: int [N] unit frames, at least 1; None: predicted. language: of these
        units, or one for each; None: the language of the push before, at first the first of the config. `final`:
        nothing follows, as push and then flush. Raises ValueError for ids, lengths or languages that cannot be; the
        stream is then as it was.
        """
        if self._finished:
            raise ValueError("this stream is finished: open a new one for further units")
        units, languages = self._check_units(ids, language)
        lengths = None if run_lengths is None else self._check_lengths(run_lengths, len(units))
        if len(languages):
            self._language = int(languages[-1])
        elif isinstance(language, str):
            self._language = _index(language, self.vocoder.config.languages, "language")
        parts = []
        self.run_lengths = np.zeros(0, np.int64)
        with torch.inference_mode():
            for start in range(0, len(units), BLOCK):
                part = slice(start, start + BLOCK)
                parts += self._speak(units[part], None if lengths is None else lengths[part], languages[part])
            if final:
                self._finished = True
                if self._spoke:
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

    def _speak(self, units: np.ndarray, lengths: np.ndarray | None, languages: np.ndarray) -> list[Tensor]:
        """At most BLOCK units -> the samples now certain, in pieces."""
        vocoder, device = self.vocoder, self.vocoder.device
        ids_BN, language_BN = torch.from_numpy(units)[None], torch.from_numpy(languages)[None]
        features, logits, self._duration_state = self._predictor(
            ids_BN, self._speaker_B.cpu(), language_BN, self._duration_state
        )
        if lengths is None:
            chosen, self._remainder = predicted_run_lengths(logits[0], self._remainder)
            lengths = np.asarray(chosen, np.int64)
        x_BNC = vocoder.embed(
            ids_BN.to(device), self._speaker_B, language_BN.to(device), features.to(device, torch.float32)
        )
        self.run_lengths = np.concatenate([self.run_lengths, lengths])
        steps = lengths * vocoder.config.repeats
        total = int(steps.sum())
        ends = np.cumsum(steps)
        parts = []
        for begin in range(0, total, BLOCK):
            frame = np.arange(begin, min(total, begin + BLOCK))
            unit = np.searchsorted(ends, frame, side="right")
            end = ends[unit] - 1 - frame
            index = torch.from_numpy(np.stack([unit, steps[unit] - 1 - end, end])).to(device)
            x_BTC = vocoder.spread(x_BNC, index[0][None], index[1][None], index[2][None])
            parts.append(self._advance(x_BTC, final=False))
        self._spoke = True
        return parts

    def _advance(self, x_BTC: Tensor, *, final: bool) -> Tensor:
        """Head frames [1, T, C] -> the samples now certain [n]."""
        vocoder = self.vocoder
        x, self._first_state = vocoder.first(x_BTC, self._first_state, final=final)
        if x.shape[1]:
            x, self._backbone_state = vocoder.backbone(vocoder.norm(x), self._backbone_state)
        samples, self._overlap = vocoder.head(x, self._overlap, final=final)
        return samples[0]
