"""What is said in the speech that a teacher names, as phones: the sentences of a pool, and recordings of people, whose texts
are given, or written down by the teacher's Whisper."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slm.audio import read_audio
from slm.errors import TresseError
from slm.transcribe import Transcriber
from train.corpus.channel import phones_of
from train.corpus.recordings import Recording
from train.speech.pool import Clip
from train.tools.progress import Progress
from train.units.teacher import levelled

CONFIDENCE = 0.55
"""Least confidence of a transcript that is believed: e to the mean log probability of its tokens."""
Speech = Iterator[tuple[np.ndarray, list[int] | None]]
"""Waveforms, float32 [samples] at 16 kHz, and the classes of the phones that are said in them, where they are known."""


class Reader:
    """Reads texts as a teacher's phones. phones: the teacher's, SILENCE first; voices: espeak-ng's by language; merged:
    phones that have the class of another."""

    def __init__(
        self, phones: Sequence[str], voices: Mapping[str, str], merged: Mapping[str, str] | None = None
    ) -> None:
        self.classes, self.voices = {phone: number for number, phone in enumerate(phones)}, voices
        for phone, other in (merged or {}).items():
            if phone not in self.classes and other in self.classes:
                self.classes[phone] = self.classes[other]

    def __call__(self, text: str, language: str | None) -> list[int] | None:
        """The classes of a text's phones, without those that have none; None where nobody reads its language."""
        if language is None or language not in self.voices:
            return None
        return [self.classes[phone] for phone in phones_of(text, self.voices[language]) if phone in self.classes]


def of_clips(clips: Sequence[Clip], pool: Path, reader: Reader) -> Speech:
    """The waveforms of a pool as teacher and student hear them, and what is said in them."""
    for clip in clips:
        yield levelled(clip.read(pool), clip.sample_rate), reader(clip.text, clip.language)


def of_recordings(recordings: Sequence[Recording], reader: Reader, whisper: Path | None, transcripts: Path) -> Speech:
    """The same of recordings; what cannot be read is left out.

    whisper: a faster-whisper folder, which writes down what has no text; None leaves it without. transcripts: a JSONL file
    that keeps what it wrote, a line a recording, so that nothing is written down twice.
    """
    known = {row["audio"]: row for row in _lines(transcripts)}
    recogniser: Transcriber | None = None
    progress = Progress(f"said in {transcripts.stem}", len(recordings), unit="clips")
    for number, recording in enumerate(recordings, 1):
        try:
            waveform, rate = read_audio(recording.path)
        except TresseError:
            continue
        text, language = recording.text, recording.language
        row = known.get(str(recording.path))
        if (text is None or language is None) and whisper is not None:
            if row is None:
                recogniser = recogniser or Transcriber(str(whisper), sorted(reader.voices))
                heard = recogniser.transcribe(waveform, rate, language)
                row = {
                    "audio": str(recording.path),
                    "text": heard.text,
                    "language": heard.language,
                    "confidence": round(heard.confidence, 4),
                }
                with transcripts.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
            if row["confidence"] >= CONFIDENCE:
                text, language = text or row["text"], language or row["language"]
        yield levelled(waveform, rate), reader(text, language) if text else None
        progress.update(number)


def _lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; a last line that was not finished is cut off."""
    if not path.exists():
        return []
    whole, _, broken = path.read_text(encoding="utf-8").rpartition("\n")
    if broken:
        path.write_text(whole + "\n" * bool(whole), encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]
