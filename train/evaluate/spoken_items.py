"""The speech of evaluation items as units: each distinct sentence spoken and encoded once in a voice, and kept on disk.

An entry is a sentence (spoken by a voice), `{"phonemes": "h@l'oU"}` (espeak-ng's mnemonics, spoken as they are) or
`{"audio": "path.wav"}`. The cache is a folder of .npz files, keyed by the content (text in its one form, language and all
that the voice's speech depends on, or the file's bytes) and by the encoder's files, so that neither another voice nor
another encoder can be mistaken for this one. A file that is there is finished; several evaluations may write to one cache
at once.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from slm.audio import read_audio, resample
from slm.errors import MachineError, TresseError, cannot_read
from slm.units.sequence import UnitEncoder, Units
from train.evaluate.scorable import Scorable
from train.speech.voices import SAMPLE_RATE, Voices, speak
from train.tools.checkpoints import atomic_path
from train.tools.progress import Progress
from train.tools.texts import plain
from train.tools.workers import worker_pool

BATCH = 16
BLOCK = 8 * BATCH
SAVE_EVERY = 2048
POOL_FROM = 1024
"""Sentences from which on worker processes pay for their start."""

Request = tuple[Any, str, str]
"""An entry, its language, and the voice that speaks it if it is no recording."""


def default_cache() -> Path:
    """Where evaluations of this user keep the units of what they have spoken."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "tresse" / "speech"


def heard_voices(bundle: Scorable, panel: Voices) -> list[str]:
    """The panel's training voices that a bundle's language model was trained on: all, where its provenance names none."""
    named = getattr(bundle, "info", {}).get("provenance", {}).get("voices")
    return [name for name in panel.training if named is None or name in named]


class SpokenUnits:
    """Requests -> Units.

    encoder: a UnitEncoder. encoder_files: the folder it was loaded from (its identity); without it nothing is kept on
    disk. audio_root: what the paths of recordings are relative to. workers: processes; all but one speak.
    """

    def __init__(
        self,
        encoder: UnitEncoder,
        voices: Voices | None = None,
        *,
        cache: Path | None = None,
        encoder_files: Path | None = None,
        audio_root: Path = Path("."),
        workers: int = 1,
    ) -> None:
        self.encoder, self.audio_root, self.workers = encoder, audio_root, workers
        self.voices = voices or Voices.load()
        self.identity = files_hash(encoder_files) if encoder_files is not None else None
        self.cache = cache / self.identity if cache is not None and self.identity is not None else None
        self.problems: dict[str, str] = {}
        self._units: dict[str, Units] = {}
        self._unsaved: list[str] = []
        self._fingerprints: dict[str, str] = {}
        if self.cache is not None:
            self._units = _read_cache(self.cache, float(encoder.frame_rate))

    def key(self, entry: Any, language: str, voice: str) -> str:
        """What an entry's units depend on, as a hash. Raises TresseError for an entry that cannot be spoken."""
        if is_recording(entry):
            path = self._path(entry)
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                raise TresseError(f"no audio file {path}: put it there, or take the item out") from None
            except OSError as error:
                raise cannot_read(path, error) from error
            except ValueError as error:  # a null character
                raise TresseError(f"no audio file {path}: put it there, or take the item out") from error
            parts: tuple[object, ...] = ("audio", hashlib.sha256(content).hexdigest())
        elif isinstance(entry, dict) and isinstance(entry.get("phonemes"), str) and entry["phonemes"].strip():
            parts = ("phonemes", entry["phonemes"], language, self._fingerprint(voice))
        elif isinstance(entry, str) and entry.strip():
            parts = ("text", plain(entry), language, self._fingerprint(voice))
        elif isinstance(entry, dict):
            raise TresseError('an entry that is not a sentence must be {"audio": "path.wav"}')
        else:
            raise TresseError("the sentence is empty: write one, or give an audio file")
        return hashlib.sha256(repr((*parts, self.identity)).encode()).hexdigest()[:32]

    def add(self, requests: Iterable[Request]) -> dict[int, str]:
        """Speak and encode all that are new. Returns what went wrong: {number of the request: why}."""
        failed: dict[int, str] = {}
        keys: dict[int, str] = {}
        fresh: dict[str, Request] = {}
        for number, request in enumerate(requests):
            try:
                key = self.key(*request)
            except MachineError:
                raise
            except TresseError as error:
                failed[number] = str(error)
                continue
            keys[number] = key
            if key not in self._units and key not in self.problems:
                fresh.setdefault(key, request)
        progress = Progress("speech", len(fresh), unit="sentences")
        names, wanted = list(fresh), list(fresh.values())
        blocks = [range(first, min(first + BLOCK, len(wanted))) for first in range(0, len(wanted), BLOCK)]
        spoken = self._spoken([[wanted[index] for index in block] for block in blocks])
        for block, waveforms in zip(blocks, spoken, strict=True):
            said: list[tuple[str, np.ndarray]] = []
            for index, waveform in zip(block, waveforms, strict=True):
                if isinstance(waveform, str):
                    self.problems[names[index]] = waveform
                else:
                    said.append((names[index], waveform))
            self._encode(said)
            progress.update(block.stop)
            if len(self._unsaved) >= SAVE_EVERY:
                self._save()
        self._save()
        failed.update({number: self.problems[key] for number, key in keys.items() if key in self.problems})
        return failed

    def units(self, entry: Any, language: str, voice: str) -> Units:
        """The units of an entry that `add` has encoded."""
        return self._units[self.key(entry, language, voice)]

    def by_key(self, key: str) -> Units | None:
        """The units of a key, if they are known."""
        return self._units.get(key)

    def _fingerprint(self, voice: str) -> str:
        if voice not in self._fingerprints:
            self._fingerprints[voice] = self.voices.fingerprint([voice])[0]
        return self._fingerprints[voice]

    def _path(self, entry: dict[str, Any]) -> Path:
        return self.audio_root / entry["audio"]

    def _spoken(self, blocks: list[list[Request]]) -> Iterator[list[np.ndarray | str]]:
        """Waveforms at the encoder's rate, or what went wrong, block by block, a few blocks ahead of their use."""
        rate, root = int(self.encoder.sample_rate), self.audio_root
        if self.workers < 2 or sum(map(len, blocks)) < POOL_FROM:
            for block in blocks:
                yield speak_block(block, self.voices, rate, root)
            return
        with worker_pool(self.workers - 1) as pool:
            ahead: deque[Future[list[np.ndarray | str]]] = deque()
            for block in blocks:
                ahead.append(pool.submit(speak_block, block, self.voices, rate, root))
                if len(ahead) > 2 * self.workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _encode(self, block: list[tuple[str, np.ndarray]]) -> None:
        """Encode in batches of similar length."""
        block = sorted(block, key=lambda pair: len(pair[1]))
        for first in range(0, len(block), BATCH):
            part = block[first : first + BATCH]
            for (key, _), units in zip(part, self.encoder.encode_batch([wave for _, wave in part]), strict=True):
                if len(units):
                    self._units[key] = units
                    self._unsaved.append(key)
                else:
                    self.problems[key] = "no speech found in it: it gave no units"

    def _save(self) -> None:
        if self.cache is None or not self._unsaved:
            return
        units = [self._units[key] for key in self._unsaved]
        name = hashlib.sha256("".join(self._unsaved).encode()).hexdigest()[:24]
        with atomic_path(self.cache / f"{name}.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                keys=np.asarray(self._unsaved),
                lengths=np.asarray([len(part) for part in units], dtype=np.int64),
                ids=np.concatenate([part.ids for part in units]).astype(np.uint16),
                run_lengths=np.concatenate([part.run_lengths for part in units]).astype(np.uint16),
            )
        self._unsaved = []


def is_recording(entry: Any) -> bool:
    """Whether an entry is an audio file."""
    return isinstance(entry, dict) and isinstance(entry.get("audio"), str)


def speak_block(requests: Sequence[Request], voices: Voices, sample_rate: int, root: Path) -> list[np.ndarray | str]:
    """Each request as float32 [samples] at `sample_rate` Hz, or, as a string, why there is none."""
    waveforms: list[np.ndarray | str] = []
    for entry, language, voice in requests:
        try:
            if is_recording(entry):
                waveform, rate = read_audio(root / entry["audio"])
            elif isinstance(entry, dict):
                from train.evaluate.lexical import speak_phonemes

                waveform, rate = speak_phonemes(entry["phonemes"], language, voices.speaker(voice), voices), SAMPLE_RATE
            else:
                waveform, rate = speak(entry, language, voices.speaker(voice), voices), SAMPLE_RATE
            waveforms.append(resample(waveform, rate, sample_rate))
        except MachineError:
            raise
        except TresseError as error:
            waveforms.append(str(error))
    return waveforms


def _read_cache(folder: Path, frame_rate: float) -> dict[str, Units]:
    """What `_save` wrote; a damaged file is no error, its sentences are spoken anew."""
    units: dict[str, Units] = {}
    for path in sorted(folder.glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as stored:
                ends = np.cumsum(stored["lengths"])
                ids, runs = stored["ids"].astype(np.int64), stored["run_lengths"].astype(np.int64)
                for key, end, length in zip(stored["keys"], ends, stored["lengths"], strict=True):
                    units[str(key)] = Units(ids[end - length : end], runs[end - length : end], frame_rate)
        except (OSError, ValueError, KeyError, EOFError):
            continue
    return units


def files_hash(folder: Path) -> str | None:
    """A hash of all files of a folder, or None where there is none."""
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
