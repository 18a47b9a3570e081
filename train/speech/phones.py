"""Phones from espeak-ng's phoneme times: what units are compared with and the recogniser learns to tell.

The unit encoder never sees them.

The phone set is espeak-ng's own mnemonics of the language, with stress marks (' , % =) stripped and the marks of its
spelling rules dropped (a final 2 or -: `t2` sounds as `t`, `@-` as `@`). Allophones that sound otherwise stay phones of
their own (`t#`, the flap of American English). Pauses, and the silence at both ends, are one label, SILENCE. Marks that
are no sound of their own (`;`, `(en)`) belong to the phone before them.

Kokoro's phones are IPA characters with the marks of nasal vowels; stress is stripped, length marks and spaces belong to
the phone before them, punctuation is SILENCE.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from train.speech.voices import Phoneme

SILENCE = "_"
NASAL = "\N{COMBINING TILDE}"


@dataclass(frozen=True)
class Phone:
    """A phone and its place, in s from the start of the waveform."""

    name: str
    start: float
    end: float


def phone_name(mnemonic: str) -> str | None:
    """espeak-ng's mnemonic -> phone, SILENCE, or None where it is no sound of its own."""
    name = mnemonic.lstrip("',%=")
    if name.startswith("_"):
        return SILENCE
    if not name or name == ";" or name.startswith("("):
        return None
    return name[:-1] if len(name) > 1 and name[-1] in "2-" else name


def ipa_phones(marks: Sequence[Phoneme], seconds: float) -> list[Phone]:
    """Phones of Kokoro's IPA characters; they cover 0..`seconds` without gaps, as those of `phones` do."""
    merged: list[Phoneme] = []
    stress: float | None = None
    for mark in marks:
        if mark.name in ("ˈ", "ˌ"):
            stress = mark.start
        elif mark.name == NASAL and merged:
            merged[-1] = Phoneme(merged[-1].name + NASAL, merged[-1].start)
        elif mark.name.isalpha() and unicodedata.category(mark.name) == "Ll":
            merged.append(Phoneme(mark.name, mark.start if stress is None else stress))
            stress = None
        elif not mark.name or unicodedata.category(mark.name)[0] == "P":
            merged.append(Phoneme(SILENCE, mark.start))
    return phones(merged, seconds)


def phones(phonemes: Sequence[Phoneme], seconds: float) -> list[Phone]:
    """Phones that cover 0..`seconds` without gaps; neighbouring silences are one, phones of no length are left out."""
    marks = [(SILENCE, 0.0)]
    for phoneme in phonemes:
        name = phone_name(phoneme.name)
        if name is not None and not (name == SILENCE and marks[-1][0] == SILENCE):
            marks.append((name, min(max(0.0, float(phoneme.start)), seconds)))
    ends = [start for _, start in marks[1:]] + [seconds]
    return [Phone(name, start, end) for (name, start), end in zip(marks, ends, strict=True) if end > start]


def frame_labels(spoken: Sequence[Phone], frames: int, frame_rate: float) -> np.ndarray:
    """The phone at the middle of each unit frame: str [frames]; what lies behind the last phone is SILENCE."""
    ends = np.array([phone.end for phone in spoken])
    index = np.searchsorted(ends, (np.arange(frames) + 0.5) / frame_rate, side="right")
    return np.array([*(phone.name for phone in spoken), SILENCE])[index]
