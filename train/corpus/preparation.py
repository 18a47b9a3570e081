"""Stories or recordings -> speech -> units -> Parquet shards: the corpus that the language model trains on.

A row is a story in one voice: per language a list of sentences (an empty one where it is not told in that language), each
a list of collapsed units and of run lengths; and its kind. Runs of
`stories_per_voice` stories are spoken by one voice; within a shard the same sentence in the same voice is spoken and
encoded once. Of recordings a row is what one speaker says in one of them (train.corpus.manifest).

A shard is written atomically and is a pure function of (stories, voices, encoder, preparation): a shard that exists is
finished, and a preparation that was killed goes on with the missing ones and ends with the same bytes. What a shard holds
(rows, seconds, rejected rows) stands in its own metadata: nothing else has to be kept in step with it. Of processes at work
on the same folder each takes shards by leases (train.corpus.leases).

Stories are streamed twice, once to check and to fingerprint them, once to cut them into shards: memory does not grow with
the corpus. Speaking and encoding are the cost, see `tresse bench prepare`.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path
from typing import IO

from slm.errors import TresseError
from slm.units import UnitEncoder, Units, load_encoder
from train.corpus.channel import FILE, Channel
from train.corpus.cluster import Cluster, written_by
from train.corpus.description import encoder_files, encoder_fingerprint
from train.corpus.encoding import encode_recordings, name_unspoken, speak_and_encode
from train.corpus.leases import Leases
from train.corpus.manifest import Manifest
from train.corpus.reader import AnyStory, Rejected, Row, Segment, read_rows
from train.corpus.shards import Encoded, finished, shard_counts, shard_metadata, write_shard_file
from train.corpus.work import CorpusPreparation, Counts, Prepared, Request, Shard, Work
from train.speech.voices import Voices
from train.stories.grammar import STORY
from train.tools.checkpoints import atomic_path, write_json
from train.tools.progress import Progress
from train.tools.workers import worker_pool

Source = Path | Manifest
"""A stories.jsonl, or a manifest of recordings."""


def prepare_corpus(
    stories: Source | Iterable[AnyStory],
    languages: list[str],
    encoder_folder: Path,
    folder: Path,
    preparation: CorpusPreparation,
    voices: Voices,
    workers: int = 2,
    device: str = "cpu",
    cluster: Cluster | None = None,
) -> Prepared:
    """Write the corpus of `stories` (a stories.jsonl, stories in memory, or a manifest of recordings, which needs no voice)
    to `folder` over `workers` processes, or over a Ray cluster; resumes.

    Leaves shard-*.parquet, corpus.json and, where rows could not be used, rejected.jsonl. Raises TresseError where no row
    can be used, a voice cannot speak a language, `folder` holds another corpus, or Ray does not run. Several processes, on
    machines that share the folder, may be at work on it: they divide the missing shards.
    """
    work = Work(languages, encoder_folder, preparation, voices, device)
    if preparation.stories_per_shard < 1 or preparation.stories_per_voice < 1:
        raise TresseError("stories_per_shard and stories_per_voice must be 1 at least")
    if isinstance(stories, Manifest):
        work = replace(work, longest_segment=stories.longest)
    elif preparation.unspoken is None:
        voices.check(work.speakers, languages)
    else:
        Channel.load(encoder_folder)
    encoder = load_encoder(encoder_folder)
    stories = stories if isinstance(stories, Path | Manifest) else list(stories)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as rejected, Leases(folder) as leases:
        digest, usable, unusable, count = _survey(stories, work, rejected)
        if not usable:
            rejected.seek(0)
            raise _none_usable(next(iter(rejected), None), stories)
        work = replace(work, sources=digest)
        identity = {
            "languages": languages,
            "frame_rate": encoder.frame_rate,
            "codebook_size": encoder.codebook_size,
            "sources": digest,
            "encoder": encoder_fingerprint(encoder_folder),
        }
        description = folder / "corpus.json"
        paths = [_path(folder, index) for index in range(count)]
        with leases.alone(description):
            leases.tidy()
            if not description.exists():
                write_json(description, {**identity, "stories": usable})
            elif json.loads(description.read_text(encoding="utf-8")).get("sources") != digest:
                raise TresseError(
                    f"{folder} holds a corpus of other stories, voices or units: delete it or choose another folder"
                )
            _write_rejected(folder, rejected, [path for path in paths if finished(path)])
        _work_off(stories, work, paths, leases, workers, cluster)
        with leases.alone(description):
            counts = sum((shard_counts(path) for path in paths), Counts())
            late = _write_rejected(folder, rejected, paths)
            if not counts.stories:
                raise _none_usable((folder / "rejected.jsonl").read_text(encoding="utf-8").partition("\n")[0], stories)
            write_json(description, {**identity, **asdict(counts), "seconds": round(counts.seconds, 2)})
        return Prepared(folder, counts, unusable + late)


def _none_usable(rejected: str | None, stories: Source | list[AnyStory]) -> TresseError:
    first = json.loads(rejected) if rejected else {"row": 1, "reason": "there is none"}
    recorded = isinstance(stories, Manifest)
    what, form = (
        ("segment", '"audio", "start", "end"') if recorded else ("story", '"id", "sentences": {language: [...]}')
    )
    return TresseError(f"no {what} can be used (row {first['row']}: {first['reason']}): give {{{form}}} in every line")


def _read(stories: Source | list[AnyStory], work: Work) -> Iterator[Row | Rejected]:
    if isinstance(stories, Manifest):
        return stories.rows(work.languages)
    return read_rows(stories, work.languages, work.preparation.longest_text)


def _survey(stories: Source | list[AnyStory], work: Work, rejected: IO[str]) -> tuple[str, int, int, int]:
    """(fingerprint of all that the corpus depends on, usable rows, unusable rows, shards); writes the unusable to
    `rejected`."""
    if isinstance(stories, Manifest):
        cutting = (work.languages, stories.language, stories.longest, stories.hours)
        digest = hashlib.sha256(repr(cutting).encode())
        described = work.encoder_folder / "config.json"
    else:
        digest = hashlib.sha256(repr((work.languages, work.preparation)).encode())
        if work.preparation.unspoken is None:
            digest.update(repr(work.voices.fingerprint(work.speakers)).encode())
            described = work.encoder_folder / "config.json"
        else:
            readings = [work.voices.reading(name, language) for name in work.speakers for language in work.languages]
            digest.update(repr(readings).encode())
            described = work.encoder_folder / FILE
    digest.update(encoder_files(work.encoder_folder, described))
    usable = unusable = 0
    cut, shards = _Cut(stories, work), 0
    for row in _read(stories, work):
        if isinstance(row, Row):
            usable += 1
            shards = cut.shard(row) + 1
            kind = [] if row.kind == STORY else [row.kind]
            digest.update(json.dumps([row.number, row.id, row.sentences, *kind]).encode())
            if (told := row.recorded) is not None:
                digest.update(json.dumps([told.bytes, told.language, told.speaker, told.segments]).encode())
        else:
            unusable += 1
            rejected.write(row.to_json() + "\n")
    return digest.hexdigest()[:16], usable, unusable, shards


class _Cut:
    """Which shard a row goes into, asked of every usable row in turn: so many stories each, or hours of recordings."""

    def __init__(self, stories: Source | list[AnyStory], work: Work) -> None:
        self._manifest = stories if isinstance(stories, Manifest) else None
        self._stories, self._shard = work.preparation.stories_per_shard, 0
        self._rows, self._seconds = 0, 0.0

    def shard(self, row: Row) -> int:
        """The number of its shard."""
        if self._manifest is None:
            self._rows += 1
            return (self._rows - 1) // self._stories
        assert row.recorded is not None
        seconds = row.recorded.seconds(self._manifest.longest)
        if self._seconds and self._seconds + seconds > 3600 * self._manifest.hours:
            self._shard, self._seconds = self._shard + 1, 0.0
        self._seconds += seconds
        return self._shard


def _path(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.parquet"


def _shards(stories: Source | list[AnyStory], work: Work, folder: Path) -> Iterator[Shard]:
    cut, first = _Cut(stories, work), 0
    usable = (row for row in _read(stories, work) if isinstance(row, Row))
    for index, group in groupby(usable, key=cut.shard):
        rows = list(group)
        yield Shard(_path(folder, index), first, rows)
        first += len(rows)


def _work_off(
    stories: Source | list[AnyStory],
    work: Work,
    paths: list[Path],
    leases: Leases,
    workers: int,
    cluster: Cluster | None,
) -> None:
    """Write the shards that are missing and that no other process writes, until all are there."""
    missing = {path for path in paths if not finished(path)}
    done = len(paths) - len(missing)
    progress, hours = Progress("corpus", len(paths), start=done, unit="shards"), 0.0

    def ours(shard: Shard) -> bool:
        if shard.path not in missing or finished(shard.path) or not leases.take(shard.path):
            return False
        if finished(shard.path):  # by the one that had it until now
            leases.give_back(shard.path)
            return False
        return True

    while missing:
        shards = filter(ours, _shards(stories, work, paths[0].parent))
        written = (
            written_by(cluster, shards, work, write_shard, workers) if cluster else _written(shards, work, workers)
        )
        for path, counts in written:
            leases.give_back(path)
            done, hours = done + 1, hours + counts.seconds / 3600
            progress.update(done, hours=hours)
        leases.wait((missing := {path for path in missing if not finished(path)}), finished)
        done = len(paths) - len(missing)


def _written(shards: Iterator[Shard], work: Work, workers: int) -> Iterator[tuple[Path, Counts]]:
    """Write shards over `workers` processes, few of them in memory at any time; what each holds, as they are finished."""
    if workers <= 1:
        yield from ((shard.path, write_shard(shard, work)) for shard in shards)
        return
    waiting: dict[Future[Counts], Path] = {}
    try:
        with worker_pool(workers) as pool:
            while True:
                for shard in islice(shards, workers + 1 - len(waiting)):
                    waiting[pool.submit(write_shard, shard, work)] = shard.path
                if not waiting:
                    return
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(future), future.result()
    except BrokenProcessPool as error:
        raise TresseError("a worker was killed (out of memory?): run it again with fewer --workers") from error


def write_shard(shard: Shard, work: Work) -> Counts:
    """Speak or decode, encode and write one shard; stories with a sentence that gives no speech, and segments that give no
    units, are named in its metadata instead.

    The file depends on `shard` and `work` alone, not on the process or the machine's other work.
    """
    if work.longest_segment is not None:
        encoder = _encoder(work.encoder_folder, work.device, work.sources)
        return write_recorded(shard, work, encode_recordings(shard.rows, encoder, work.longest_segment))
    requests, unspoken = work.requests(shard), work.preparation.unspoken
    if unspoken is not None:
        return write_rows(shard, work, name_unspoken(requests, work, unspoken))
    encoder = _encoder(work.encoder_folder, work.device, work.sources)
    return write_rows(shard, work, speak_and_encode(requests, work, encoder))


def write_rows(shard: Shard, work: Work, units: dict[Request, Units | str]) -> Counts:
    """Write a shard whose sentences were encoded."""

    def rows() -> Iterator[Encoded | Rejected]:
        for row, speaker, recording in work.told(shard):
            spoken: dict[str, list[Units]] = {}
            wrong = None
            for language, texts in row.sentences.items():
                made = [units[Request(speaker, recording, language, text)] for text in texts]
                wrong = wrong or next((part for part in made if isinstance(part, str)), None)
                spoken[language] = [part for part in made if isinstance(part, Units)]
            yield Rejected(row.number, row.id, wrong) if wrong else Encoded(row.id, speaker, row.kind, spoken)

    return write_shard_file(shard.path, work.languages, rows(), len(units))


def write_recorded(shard: Shard, work: Work, units: dict[Segment, Units | str]) -> Counts:
    """Write a shard of recordings whose segments were encoded; those without units are left out and named."""

    def rows() -> Iterator[Encoded | Rejected]:
        for row in shard.rows:
            assert row.recorded is not None
            told = []
            for segment in row.recorded.segments:
                made = units[segment]
                if isinstance(made, Units):
                    told.append(made)
                else:
                    yield Rejected(segment.row, row.id, made)
            if told:
                yield Encoded(row.id, row.recorded.speaker, row.kind, {row.recorded.language: told})

    return write_shard_file(shard.path, work.languages, rows(), sum(isinstance(part, Units) for part in units.values()))


@lru_cache(maxsize=1)
def _encoder(folder: Path, device: str, sources: str) -> UnitEncoder:
    """One a process. sources: so that another encoder in the same folder is not taken for this one."""
    return load_encoder(folder).to(device)


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
            for entry in shard_metadata(path)["rejected"]:
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
