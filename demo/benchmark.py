"""Benchmark items to hear on the page: a story's beginning is scored with its right ending and a wrong one.

Needs what makes benchmarks (the extra `train`); made on the first look, then kept for everybody.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from slm.errors import TresseError

if TYPE_CHECKING:
    from slm.bundle import Bundle

COUNT = 6
"""Items shown: half of each kind."""
SEED = 1


class Benchmark:
    """`items` for the page, `sound` of one ending with its beginning."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._lock = threading.Lock()
        self._items: list[dict[str, Any]] | None = None
        self._sounds: dict[str, tuple[np.ndarray, int]] = {}

    def items(self) -> list[dict[str, Any]]:
        """Every item: kind, cell, endings a and b (text, score in nats a token, file), which is right, and whether the
        model finds that one likelier. Raises TresseError where benchmarks cannot be made here.
        """
        with self._lock:
            if self._items is None:
                self._items = self._make()
            return self._items

    def sound(self, name: str) -> tuple[np.ndarray, int]:
        """float32 [samples] and their rate. Raises TresseError for a name that no item has."""
        if name not in self._sounds:
            raise TresseError("there is no such benchmark item: reload the page")
        return self._sounds[name]

    def _make(self) -> list[dict[str, Any]]:
        try:
            from train.evaluate.cloze.items import items_for
            from train.speech.voices import SAMPLE_RATE, Voices, speak
        except ImportError as error:
            raise TresseError("benchmark items need the extra train: pip install 'tresse[train]'") from error
        bundle = self.bundle
        voices = Voices.of(bundle.info, bundle.languages)
        made: list[dict[str, Any]] = []
        items = items_for(bundle.languages, max(1, COUNT // 2), SEED)
        told = [language for language in bundle.languages if items and language in items[0].context]
        pairs = [(first, second) for first in told for second in told]
        if not pairs:
            raise TresseError(f"there are no benchmark items in the languages {', '.join(bundle.languages)}")
        for number, item in enumerate(items):
            begins_in, ends_in = pairs[number % len(pairs)]
            speaker = voices.speaker(voices.reference)
            parts = [speak(str(text), begins_in, speaker, voices) for text in item.context[begins_in]]
            gap = np.zeros(SAMPLE_RATE // 3, np.float32)
            beginning = np.concatenate([part for sentence in parts for part in (sentence, gap)])
            context = [(begins_in, bundle.units.encode(part, SAMPLE_RATE).ids) for part in parts]
            endings: dict[str, dict[str, Any]] = {}
            right = "ab"[number % 2]
            for side in "ab":
                text = str((item.right if side == right else item.wrong)[ends_in])
                spoken = speak(text, ends_in, speaker, voices)
                name = f"{number}-{side}"
                self._sounds[name] = (np.concatenate([beginning, spoken]), SAMPLE_RATE)
                score = self._score(context, ends_in, bundle.units.encode(spoken, SAMPLE_RATE).ids)
                endings[side] = {"text": text, "score": round(score, 4), "file": f"benchmark/{name}.wav"}
            likelier = max(endings, key=lambda side: endings[side]["score"])
            made.append(
                {
                    "kind": item.kind,
                    "cell": f"{begins_in}>{ends_in}",
                    "right": right,
                    "endings": endings,
                    "correct": likelier == right,
                }
            )
        return made

    def _score(self, context: list[tuple[str, np.ndarray]], language: str, ending: np.ndarray) -> float:
        """Mean log-likelihood a token, in nats, of an ending given its beginning: the headline rule."""
        vocabulary = self.bundle.vocabulary
        start = len(vocabulary.sequence(context)) + len(vocabulary.head(language))
        (logs,) = self.bundle.engine.score([vocabulary.sequence([*context, (language, ending)])])
        return float(logs[start - 1 :].mean())  # logs[i] is of token i + 1: the tag itself is left out
