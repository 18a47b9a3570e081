"""Stories -> speech -> units -> Parquet shards: the corpus that the language model trains on.

A row is a story in one voice: per language a list of sentences (an empty one where it is not told in that language), each
a list of collapsed units and of run lengths; and its kind. Runs of
`stories_per_voice` stories are spoken by one voice; within a shard the same sentence in the same voice is spoken and
encoded once. A shard is written atomically and is a pure function of (stories, voices, encoder, preparation): a shard that
exists is finished, and a preparation that was killed goes on with the missing ones and ends with the same bytes. What a
shard holds (rows, seconds, rejected rows) stands in its own metadata: nothing else has to be kept in step with it.

Stories are streamed twice, once to check and to fingerprint them, once to cut them into shards: memory does not grow with
the corpus. Speaking and encoding are the cost, see `tresse bench prepare`.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from slm.errors import TresseError
from slm.units import UnitEncoder, Units, load_encoder
from train.corpus.encoding import speak_and_encode
from train.corpus.reader import AnyStory, Rejected, Row, read_rows
from train.corpus.work import CorpusPreparation, Counts, Prepared, Request, Shard, Work
from train.speech.voices import Voices
from train.stories.grammar import STORY
from train.tools.checkpoints import atomic_path, write_json
from train.tools.progress import Progress
from train.tools.workers import worker_pool

METADATA = b"tresse"


def prepare_corpus(
    stories: Path | Iterable[AnyStory],
    languages: list[str],
    encoder_folder: Path,
    folder: Path,
    preparation: CorpusPreparation,
    voices: Voices,
    workers: int = 2,
    device: str = "cpu",
) -> Prepared:
    """Write the corpus of `stories` (a stories.jsonl, or stories in memory) to `folder` over `workers` processes; resumes.

    Leaves shard-*.parquet, corpus.json and, where rows could not be used, rejected.jsonl. Raises TresseError where no row
    can be used, a voice cannot speak a language, or `folder` holds another corpus or is being worked on.
    """
    work = Work(languages, encoder_folder, preparation, voices, device)
    if preparation.stories_per_shard < 1 or preparation.stories_per_voice < 1:
        raise TresseError("stories_per_shard and stories_per_voice must be 1 at least")
    voices.check(work.speakers, languages)
    encoder = load_encoder(encoder_folder)
    stories = stories if isinstance(stories, Path) else list(stories)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as rejected, _alone(folder):
        digest, usable, unusable = _survey(stories, work, rejected)
        if not usable:
            rejected.seek(0)
            raise _none_usable(next(iter(rejected), None))
        work = replace(work, sources=digest)
        identity = {
            "languages": languages,
            "frame_rate": encoder.frame_rate,
            "codebook_size": encoder.codebook_size,
            "sources": digest,
        }
        description = folder / "corpus.json"
        if not description.exists():
            write_json(description, {**identity, "stories": usable})
        elif json.loads(description.read_text(encoding="utf-8")).get("sources") != digest:
            raise TresseError(
                f"{folder} holds a corpus of other stories, voices or units: delete it or choose another folder"
            )
        size = preparation.stories_per_shard
        paths = [folder / f"shard-{index:05d}.parquet" for index in range(-(-usable // size))]
        missing = {path for path in paths if not (path.exists() or _empty(path).exists())}
        _write_rejected(folder, rejected, [path for path in paths if path not in missing])
        if missing:
            shards = (shard for shard in _shards(stories, work, folder) if shard.path in missing)
            _work_off(shards, work, workers, len(paths), len(paths) - len(missing))
        counts = sum((shard_counts(path) for path in paths), Counts())
        late = _write_rejected(folder, rejected, paths)
        if not counts.stories:
            raise _none_usable((folder / "rejected.jsonl").read_text(encoding="utf-8").partition("\n")[0])
        write_json(description, {**identity, **asdict(counts), "seconds": round(counts.seconds, 2)})
        return Prepared(folder, counts, unusable + late)


def _none_usable(rejected: str | None) -> TresseError:
    first = json.loads(rejected) if rejected else {"row": 1, "reason": "there is none"}
    return TresseError(
        f"no story can be used (row {first['row']}: {first['reason']}): "
        'give {"id", "sentences": {language: [...]}} in every line'
    )


def _survey(stories: Path | list[AnyStory], work: Work, rejected: IO[str]) -> tuple[str, int, int]:
    """(fingerprint of all that the corpus depends on, usable rows, unusable rows); writes the latter to `rejected`."""
    digest = hashlib.sha256(repr((work.languages, work.preparation)).encode())
    digest.update(repr(work.voices.fingerprint(work.speakers)).encode())
    for path in sorted([work.encoder_folder / "config.json", *work.encoder_folder.glob("*.safetensors")]):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    usable = unusable = 0
    for row in read_rows(stories, work.languages, work.preparation.longest_text):
        if isinstance(row, Row):
            usable += 1
            kind = [] if row.kind == STORY else [row.kind]
            digest.update(json.dumps([row.number, row.id, row.sentences, *kind]).encode())
        else:
            unusable += 1
            rejected.write(row.to_json() + "\n")
    return digest.hexdigest()[:16], usable, unusable


def _shards(stories: Path | list[AnyStory], work: Work, folder: Path) -> Iterator[Shard]:
    size = work.preparation.stories_per_shard
    usable = (row for row in read_rows(stories, work.languages, work.preparation.longest_text) if isinstance(row, Row))
    for index, group in groupby(enumerate(usable), key=lambda numbered: numbered[0] // size):
        yield Shard(folder / f"shard-{index:05d}.parquet", index * size, [row for _, row in group])


def _work_off(shards: Iterator[Shard], work: Work, workers: int, total: int, done: int) -> None:
    """Write the shards, few of them in memory at any time."""
    progress = Progress("corpus", total, start=done, unit="shards")
    hours = 0.0
    if workers <= 1:
        for shard in shards:
            hours += write_shard(shard, work).seconds / 3600
            done += 1
            progress.update(done, hours=hours)
        return
    waiting: set[Future[Counts]] = set()
    try:
        with worker_pool(workers) as pool:
            while True:
                for shard in islice(shards, 2 * workers - len(waiting)):
                    waiting.add(pool.submit(write_shard, shard, work))
                if not waiting:
                    return
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    hours += future.result().seconds / 3600
                    done += 1
                    progress.update(done, hours=hours)
    except BrokenProcessPool as error:
        raise TresseError("a worker was killed (out of memory?): run it again with fewer --workers") from error


def write_shard(shard: Shard, work: Work) -> Counts:
    """Speak, encode and write one shard; stories with a sentence that gives no speech are named in its metadata instead.

    The file depends on `shard` and `work` alone, not on the process or the machine's other work.
    """
    units = speak_and_encode(work.requests(shard), work, _encoder(work.encoder_folder, work.device, work.sources))
    return write_rows(shard, work, units)


def write_rows(shard: Shard, work: Work, units: dict[Request, Units | str]) -> Counts:
    """Write a shard whose sentences were encoded."""
    columns: dict[str, list] = {"id": [], "speaker": [], "kind": []}
    for language in work.languages:
        columns |= {f"units_{language}": [], f"run_lengths_{language}": []}
    rejected = []
    seconds, sentences = 0.0, 0
    for row, speaker, recording in work.told(shard):
        spoken = {
            language: [units[Request(speaker, recording, language, text)] for text in row.sentences.get(language, ())]
            for language in work.languages
        }
        wrong = next((part for story in spoken.values() for part in story if isinstance(part, str)), None)
        if wrong:
            rejected.append(asdict(Rejected(row.number, row.id, wrong)))
            continue
        columns["id"].append(row.id)
        columns["speaker"].append(speaker)
        columns["kind"].append(row.kind)
        for language, story in spoken.items():
            good = [part for part in story if isinstance(part, Units)]
            columns[f"units_{language}"].append([part.ids for part in good])
            columns[f"run_lengths_{language}"].append([part.run_lengths for part in good])
            seconds += sum(part.seconds for part in good)
            sentences += len(good)
    counts = Counts(len(columns["id"]), seconds, sentences, len(units))
    metadata = {"counts": asdict(counts), "rejected": rejected}
    if not counts.stories:
        write_json(_empty(shard.path), metadata)
        return counts
    numbers = pa.list_(pa.list_(pa.uint16()))
    schema = pa.schema(
        [(name, pa.string() if name in ("id", "speaker", "kind") else numbers) for name in columns],
        metadata={METADATA: json.dumps(metadata).encode()},
    )
    with atomic_path(shard.path) as temporary:
        pq.write_table(pa.table(columns, schema=schema), temporary, compression="zstd")
    return counts


@lru_cache(maxsize=1)
def _encoder(folder: Path, device: str, sources: str) -> UnitEncoder:
    """One a process. sources: so that another encoder in the same folder is not taken for this one."""
    return load_encoder(folder).to(device)


def _empty(path: Path) -> Path:
    """What is written in place of a shard without rows: `datasets` does not read an empty Parquet file."""
    return path.with_suffix(".empty.json")


def _metadata(path: Path) -> dict:
    try:
        if _empty(path).exists():
            return json.loads(_empty(path).read_text(encoding="utf-8"))
        return json.loads(pq.read_schema(path).metadata[METADATA])
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise TresseError(f"{path} is damaged: delete it and run the preparation again") from error


def shard_counts(path: Path) -> Counts:
    """What a finished shard holds. Raises TresseError where it is damaged."""
    return Counts(**_metadata(path)["counts"])


def _write_rejected(folder: Path, rejected: IO[str], shards: list[Path]) -> int:
    """Write rejected.jsonl, in order of rows, from the rows that could not be read and those that could not be spoken.

    Returns how many the latter are. No file is left where every row could be used.
    """
    rejected.seek(0)
    unread = (Rejected(**json.loads(line)) for line in rejected)
    late = 0

    def unspoken() -> Iterator[Rejected]:
        nonlocal late
        for path in shards:
            for entry in _metadata(path)["rejected"]:
                late += 1
                yield Rejected(**entry)

    rows = heapq.merge(unread, unspoken(), key=lambda entry: entry.row)
    first = next(rows, None)
    if first is None:
        return 0
    with atomic_path(folder / "rejected.jsonl") as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(first.to_json() + "\n")
        file.writelines(entry.to_json() + "\n" for entry in rows)
    return late


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Work in a folder that nobody else works in, without what a killed run left half written.

    The lock goes with the process, however it ends.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TresseError(f"another process is preparing {folder}: wait for it or choose another folder") from None
        for path in folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)
        yield
    finally:
        os.close(handle)


def read_units(folder: Path, languages: list[str]) -> Iterable[np.ndarray]:
    """Every sentence's collapsed unit ids in the corpus, for training the vocabulary."""
    for path in sorted(folder.glob("shard-*.parquet")):
        table = pq.read_table(path, columns=[f"units_{language}" for language in languages])
        for name in table.column_names:
            for story in table[name].to_pylist():
                for sentence in story:
                    yield np.asarray(sentence, dtype=np.int64)
