"""Word and character errors of transcripts: counted by jiwer, in words as `spoken_words` normalises them.

jiwer's own normalisation keeps punctuation, and those of Whisper and others spell numbers and contractions anew: figures
would no longer compare with earlier ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import jiwer
import numpy as np

from train.asr.training import spoken_words


def word_errors(said: Sequence[str], heard: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Texts [N] and their transcripts [N] -> errors and words of each text, both int64 [N]."""
    pairs = [(_normalised(text), _normalised(transcript)) for text, transcript in zip(said, heard, strict=True)]
    errors = [_errors(jiwer.process_words(text, transcript)) for text, transcript in pairs]
    return np.array(errors, np.int64), np.array([len(text.split()) for text, _ in pairs], np.int64)


def character_errors(said: Sequence[str], heard: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Texts [N] and their transcripts [N] -> errors and characters of each text (spaces count), both int64 [N]."""
    pairs = [(_normalised(text), _normalised(transcript)) for text, transcript in zip(said, heard, strict=True)]
    errors = [_errors(jiwer.process_characters(text, transcript)) for text, transcript in pairs]
    return np.array(errors, np.int64), np.array([len(text) for text, _ in pairs], np.int64)


def _normalised(text: str) -> str:
    return " ".join(spoken_words(text))


def _errors(output: jiwer.WordOutput | jiwer.CharacterOutput) -> int:
    return output.substitutions + output.deletions + output.insertions
