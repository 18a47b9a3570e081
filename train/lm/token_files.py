"""A unit corpus as tokens on disk: written once beside its shards, and mapped into memory by every process that trains.

A *part* holds the stories of some shards in one file (safetensors): tokens, where each sentence lies in them, its number of
units, and by story its first sentence, its id and a mask of the languages it is told in. Parts are written atomically, and
index.json last: what was stopped goes on, and several machines of a run each begin with another part. The folder is named
after what is in it, so that another vocabulary or a corpus that grew gets one of its own; it may be deleted at any time.

Trades: 8 bytes for where a sentence lies and 4 for its units, beside 2 (4 for more than 65,536 tokens) a token. Pages that
were read are given back to the system every few hundred stories, so that a process holds little of a large corpus.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from slm.errors import TresseError
from slm.units.vocabulary import UnitVocabulary
from train.lm.tokenise import PAIRED, UNUSABLE, tokenise
from train.tools.checkpoints import atomic_path, write_json
from train.tools.launch import local_rank, machine

VERSION = 1
PART_BYTES = 256_000_000
"""Of shards that become one part."""
LOOKUPS = 512
"""Stories looked up or read before pages are given back: each may bring in 64 KB of five arrays."""


@dataclass(frozen=True)
class Passages:
    """Sentences of some stories. first: int64 [stories + 1], where each begins in the others; places: int64 [sentences,
    languages, 2], where the tokens of one begin and end in its part; units: int32 [sentences, languages]; parts: int64
    [stories]; masks: uint32 [stories]."""

    first: np.ndarray
    places: np.ndarray
    units: np.ndarray
    parts: np.ndarray
    masks: np.ndarray


class Part:
    """One mapped file of tokens."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header = int.from_bytes(self._map[:8], "little")
        types = {"U16": np.uint16, "I32": np.int32, "I64": np.int64, "U32": np.uint32, "U64": np.uint64, "U8": np.uint8}
        self._arrays: dict[str, np.ndarray] = {}
        for name, entry in json.loads(self._map[8 : 8 + header]).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                kind = np.dtype(types[entry["dtype"]])
                count = (end - begin) // kind.itemsize
                self._arrays[name] = np.frombuffer(self._map, kind, count, 8 + header + begin)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def give_back(self) -> None:
        """Let the system have the pages that were read; they are read again when they are asked for."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


class TokenFiles:
    """The parts of a corpus, in order; stories are numbered through all of them as in its shards."""

    def __init__(self, folder: Path) -> None:
        """Raises TresseError where the folder is damaged."""
        self.folder = folder
        try:
            index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            self.parts = [Part(folder / name) for name in index["parts"]]
        except (OSError, ValueError, KeyError) as error:
            raise TresseError(f"{folder} is damaged: delete it, it is made again") from error
        self.languages: int = index["languages"]
        self.statistics = {int(mask): np.asarray(values, np.int64) for mask, values in index["statistics"].items()}
        """By mask: [stories, sentences, units by language ..., tokens by language ...]."""
        self.starts = np.cumsum([0, *(len(part["masks"]) for part in self.parts)])
        self._lookups = 0

    def __len__(self) -> int:
        """All stories, usable or not."""
        return int(self.starts[-1])

    @cached_property
    def left_out(self) -> int:
        """Stories with a sentence that has no units in a language they are told in."""
        return int(sum(values[0] for mask, values in self.statistics.items() if mask & UNUSABLE))

    def gather(self, name: str, stories: np.ndarray) -> np.ndarray:
        """A value of each story (int64 [N])."""
        parts = np.searchsorted(self.starts, stories, side="right") - 1
        made = np.zeros(len(stories), self.parts[0][name].dtype)
        for part in np.unique(parts):
            here = parts == part
            made[here] = self.parts[part][name][stories[here] - self.starts[part]]
        return made

    def where(self, chosen: Callable[[Part], np.ndarray]) -> np.ndarray:
        """The numbers of the stories for which a function of a part, bool [stories of the part], is true: uint32 [N]."""
        numbers = [np.flatnonzero(chosen(part)) + self.starts[k] for k, part in enumerate(self.parts)]
        self.give_back()
        return np.concatenate([np.zeros(0, np.uint32), *(some.astype(np.uint32) for some in numbers)])

    def names(self, stories: np.ndarray) -> list[str]:
        """Ids of stories."""
        parts = np.searchsorted(self.starts, stories, side="right") - 1
        names = []
        for story, part in zip((stories - self.starts[parts]).tolist(), parts.tolist(), strict=True):
            begin, end = self.parts[part]["name_bounds"][story : story + 2]
            names.append(self.parts[part]["names"][begin:end].tobytes().decode("utf-8"))
        return names

    def passages(self, stories: np.ndarray) -> Passages:
        """The sentences of stories (int64 [N]); every one of pairs twice in a row, to be told in two languages."""
        stories = stories.astype(np.int64)
        masks = self.gather("masks", stories)
        copies = 1 + (masks & PAIRED > 0).astype(np.int64)
        parts = np.searchsorted(self.starts, stories, side="right") - 1
        opening, counts = np.zeros(len(stories), np.int64), np.zeros(len(stories), np.int64)
        for part in np.unique(parts):
            here = parts == part
            local = stories[here] - self.starts[part]
            begins = self.parts[part]["first"]
            opening[here] = begins[local]
            counts[here] = (begins[local + 1] - begins[local]) * copies[here]
        first = np.r_[0, counts.cumsum()]
        position = np.arange(first[-1]) - np.repeat(first[:-1], counts)
        cells = np.repeat(opening, counts) + position // np.repeat(copies, counts)
        cells = cells[:, None] * self.languages + np.arange(self.languages)
        places = np.zeros((*cells.shape, 2), np.int64)
        units = np.zeros(cells.shape, np.int32)
        of = np.repeat(parts, counts)
        for part in np.unique(parts):
            here, source = of == part, self.parts[part]
            places[here, :, 0], places[here, :, 1] = source["bounds"][cells[here]], source["bounds"][cells[here] + 1]
            units[here] = source["units"][cells[here]]
        self.touched(len(stories))
        return Passages(first, places, units, parts, masks)

    def touched(self, stories: int) -> None:
        """Count stories that were looked up or read, and give pages back when there are enough."""
        self._lookups += stories
        if self._lookups >= LOOKUPS:
            self.give_back()

    def give_back(self) -> None:
        """See Part.give_back."""
        self._lookups = 0
        for part in self.parts:
            part.give_back()


def token_files(
    folder: Path, shards: Sequence[Path], info: dict[str, Any], vocabulary: UnitVocabulary, say: Callable[[str], None]
) -> TokenFiles:
    """The tokens of a corpus: those that are there, else they are made. Of the processes of a run that share a machine, the
    first makes them and the others wait.

    info: what corpus.json says. Raises TresseError for shards that cannot be read or are not all there.
    """
    words = hashlib.sha256(f"{vocabulary.tokenizer.to_str()}{vocabulary.tags}".encode()).hexdigest()[:16]
    stats = [(shard.name, (stat := shard.stat()).st_size, int(stat.st_mtime)) for shard in shards]
    identity = json.dumps([VERSION, words, info, stats], sort_keys=True)
    home = folder if os.access(folder, os.W_OK) else _elsewhere()
    target = home / f"tokens-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    index = target / "index.json"
    if local_rank() > 0:
        while not index.exists():
            time.sleep(0.2)
    elif not index.exists():
        _make(target, shards, stats, info, vocabulary, words, say)
        _forget_older(target, words, folder)
    return TokenFiles(target)


def _elsewhere() -> Path:
    """Where tokens go of a corpus whose folder cannot be written."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "tresse"


def _make(
    target: Path,
    shards: Sequence[Path],
    stats: list[tuple[str, int, int]],
    info: dict[str, Any],
    vocabulary: UnitVocabulary,
    words: str,
    say: Callable[[str], None],
) -> None:
    languages = tuple(info["languages"])
    groups: list[list[Path]] = [[]]
    size = 0
    for shard, (_, more, _) in zip(shards, stats, strict=True):
        if groups[-1] and size + more > PART_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(shard)
        size += more
    names = [f"part-{number:05d}.safetensors" for number in range(len(groups))]
    this, machines = machine()
    shift = this * len(groups) // machines
    for done, number in enumerate([*range(shift, len(groups)), *range(shift)], 1):
        if not (target / names[number]).exists():
            arrays = tokenise(groups[number], languages, vocabulary)
            write_part(target / names[number], arrays)
            say(
                f"tokenised {len(arrays['masks']):,} stories, {len(arrays['tokens']):,} tokens ({done}/{len(groups)} parts)"
            )
    write_index(target, names, len(languages), {"corpus": info, "vocabulary": words, "shards": stats})
    made = TokenFiles(target)
    if len(made) < info.get("stories", 0):
        (target / "index.json").unlink()
        raise TresseError(f"the corpus in {shards[0].parent} is not finished: run its preparation again")


def write_part(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """One part, atomically."""
    from safetensors.numpy import save_file

    with atomic_path(path) as temporary:
        save_file(arrays, temporary)
        temporary.chmod(0o644)  # other users of a shared corpus read it too


def write_index(folder: Path, names: list[str], languages: int, about: dict[str, Any]) -> None:
    """index.json of parts that are there: what they hold, by mask."""
    sums: dict[int, np.ndarray] = {}
    for name in names:
        for mask, values in statistics(Part(folder / name), languages).items():
            sums[mask] = sums.get(mask, np.zeros_like(values)) + values
    kept = {str(mask): values.tolist() for mask, values in sorted(sums.items())}
    write_json(folder / "index.json", {"parts": names, "languages": languages, "statistics": kept, **about})


def statistics(part: Part, languages: int) -> dict[int, np.ndarray]:
    """See TokenFiles.statistics."""
    first, sums = part["first"], {}
    units = np.zeros((len(first), languages), np.int64)  # before each story
    np.cumsum(part["units"].reshape(-1, languages), axis=0, out=(by := np.zeros((first[-1], languages), np.int64)))
    units[1:] = np.r_[np.zeros((1, languages), np.int64), by][first[1:]]
    tokens = np.diff(part["bounds"]).reshape(-1, languages).cumsum(axis=0, dtype=np.int64)
    tokens = np.r_[np.zeros((1, languages), np.int64), tokens][first]
    each = np.c_[np.ones(len(first) - 1, np.int64), np.diff(first), np.diff(units, axis=0), np.diff(tokens, axis=0)]
    for mask in np.unique(part["masks"]):
        sums[int(mask)] = each[part["masks"] == mask].sum(axis=0)
    return sums


def _forget_older(target: Path, words: str, folder: Path) -> None:
    """Remove the tokens that the same vocabulary made of an earlier state of this corpus."""
    if target.parent != folder:
        return
    for other in folder.glob("tokens-*"):
        try:
            about = json.loads((other / "index.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if other != target and about.get("vocabulary") == words:
            shutil.rmtree(other, ignore_errors=True)
