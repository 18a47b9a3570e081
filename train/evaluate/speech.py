"""The speech of evaluation items as units: each distinct sentence spoken and encoded once, and kept on disk.

An entry is a sentence (spoken by a chosen voice) or `{"audio": "path.wav"}`. The cache is one .npz of arrays, keyed by
the content (text, language and the voice's settings, or the file's bytes) and by the encoder's files, so that neither
another voice nor another encoder can be mistaken for this one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from slm.audio import read_audio, resample
from slm.errors import TresseError
from slm.units.sequence import Units
from train.checkpoint import atomic_path
from train.progress import Progress

BLOCK = 16
SAVE_EVERY = 2048


class SpokenUnits:
    """Entries -> Units. encoder: a UnitEncoder; encoder_files: the folder it was loaded from (its identity)."""

    def __init__(
        self,
        encoder: Any,
        voices: dict[str, str],
        *,
        cache: Path | None = None,
        encoder_files: Path | None = None,
        audio_root: Path = Path("."),
    ) -> None:
        from train.speech import Voices

        self.encoder, self.audio_root = encoder, audio_root
        known = Voices.load()
        self.speakers = {language: known.speaker(name) for language, name in voices.items()}
        self.identity = _files_hash(encoder_files) if encoder_files is not None else None
        self.cache = cache if self.identity is not None else None
        self.problems: dict[str, str] = {}
        self._units: dict[str, Units] = {}
        if self.cache is not None:
            self._units = _read_cache(self.cache, float(encoder.frame_rate))

    def key(self, entry: Any, language: str) -> str:
        """What an entry's units depend on, as a hash. Raises TresseError for an entry that cannot be spoken."""
        if isinstance(entry, dict):
            path = self._path(entry)
            try:
                content = path.read_bytes()
            except OSError:
                raise TresseError(f"no audio file {path}: put it there, or take the item out") from None
            parts: tuple[object, ...] = ("audio", hashlib.sha256(content).hexdigest())
        elif isinstance(entry, str) and entry.strip():
            if language not in self.speakers:
                raise TresseError(f"no voice was chosen for {language}")
            parts = ("text", entry, language, self.speakers[language])
        else:
            raise TresseError("the sentence is empty: write one, or give an audio file")
        return hashlib.sha256(repr((*parts, self.identity)).encode()).hexdigest()[:32]

    def add(self, entries: Iterable[tuple[Any, str]]) -> dict[int, str]:
        """Speak and encode all (entry, language) that are new. Returns what went wrong: {number of the entry: why}."""
        failed: dict[int, str] = {}
        keys: dict[int, str] = {}
        fresh: dict[str, tuple[Any, str]] = {}
        for number, (entry, language) in enumerate(entries):
            try:
                key = self.key(entry, language)
            except TresseError as error:
                failed[number] = str(error)
                continue
            keys[number] = key
            if key not in self._units and key not in self.problems:
                fresh.setdefault(key, (entry, language))
        progress = Progress("speech", len(fresh), unit="sentences")
        block: list[tuple[str, np.ndarray]] = []
        saved = 0
        for done, (key, (entry, language)) in enumerate(fresh.items(), start=1):
            try:
                block.append((key, self._waveform(entry, language)))
            except TresseError as error:
                self.problems[key] = str(error)
            if len(block) >= BLOCK * 8 or done == len(fresh):
                self._encode(block)
                block = []
                progress.update(done)
            if done - saved >= SAVE_EVERY:
                self._save()
                saved = done
        if fresh:
            self._save()
        failed.update({number: self.problems[key] for number, key in keys.items() if key in self.problems})
        return failed

    def units(self, entry: Any, language: str) -> Units:
        """The units of an entry that `add` has encoded."""
        return self._units[self.key(entry, language)]

    def _path(self, entry: dict[str, Any]) -> Path:
        if not isinstance(entry.get("audio"), str):
            raise TresseError('an entry that is not a sentence must be {"audio": "path.wav"}')
        return self.audio_root / entry["audio"]

    def _waveform(self, entry: Any, language: str) -> np.ndarray:
        from train.speech import SAMPLE_RATE, speak

        if isinstance(entry, dict):
            waveform, rate = read_audio(self._path(entry))
        else:
            waveform, rate = speak(entry, language, self.speakers[language]), SAMPLE_RATE
        return resample(waveform, rate, self.encoder.sample_rate)

    def _encode(self, block: list[tuple[str, np.ndarray]]) -> None:
        """Encode in batches of similar length."""
        block.sort(key=lambda pair: len(pair[1]))
        for first in range(0, len(block), BLOCK):
            part = block[first : first + BLOCK]
            for (key, _), units in zip(part, self.encoder.encode_batch([wave for _, wave in part]), strict=True):
                if len(units):
                    self._units[key] = units
                else:
                    self.problems[key] = "no speech found in it: it gave no units"

    def _save(self) -> None:
        if self.cache is None:
            return
        units = list(self._units.values())
        with atomic_path(self.cache) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                keys=np.asarray(list(self._units)),
                lengths=np.asarray([len(part) for part in units], dtype=np.int64),
                ids=np.concatenate([part.ids for part in units]).astype(np.uint16) if units else np.zeros(0, np.uint16),
                run_lengths=np.concatenate([part.run_lengths for part in units]).astype(np.uint16)
                if units
                else np.zeros(0, np.uint16),
            )


def _read_cache(path: Path, frame_rate: float) -> dict[str, Units]:
    """What `_save` wrote; a damaged cache is no error, it is made anew."""
    try:
        with np.load(path, allow_pickle=False) as held:
            ends = np.cumsum(held["lengths"])
            ids, runs = held["ids"].astype(np.int64), held["run_lengths"].astype(np.int64)
            return {
                str(key): Units(ids[end - length : end], runs[end - length : end], frame_rate)
                for key, end, length in zip(held["keys"], ends, held["lengths"], strict=True)
            }
    except (OSError, ValueError, KeyError, EOFError):
        return {}


def _files_hash(folder: Path) -> str | None:
    """A hash of all files of a folder, or None where there is none."""
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
