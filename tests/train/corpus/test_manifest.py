"""Recordings as rows: a segment has the units that it has alone, and what cannot be used is named."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.audio import read_audio, write_wav
from slm.errors import TresseError
from slm.units import load_encoder
from tests.train.corpus.tiny import LANGUAGES, PREPARATION, contents
from train.corpus import encoding
from train.corpus.manifest import Manifest
from train.corpus.preparation import prepare_corpus
from train.corpus.reader import Rejected, Row
from train.corpus.work import Prepared
from train.speech.voices import Voices

RATES, SECONDS = (16000, 24000), 12.0


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # short clips: more threads wait for each other
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recordings of noise that rises and falls, silent for their last two seconds, and a file that is none."""
    folder = tmp_path_factory.mktemp("recordings")
    for number, rate in enumerate(RATES):
        rng = np.random.default_rng(number)
        times = np.arange(int(SECONDS * rate)) / rate
        waveform = 0.3 * np.sin(2 * np.pi * (200 + 150 * np.sin(times)) * times) + 0.05 * rng.standard_normal(
            len(times)
        )
        waveform[times >= SECONDS - 2] = 0.0
        write_wav(folder / f"{number}.wav", waveform.astype(np.float32), rate)
    (folder / "text.wav").write_text("no audio")
    return folder


def write(path: Path, rows: list[dict[str, Any] | str]) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def prepare(manifest: Manifest, encoder: Path, folder: Path, workers: int = 1) -> Prepared:
    return prepare_corpus(manifest, LANGUAGES, encoder, folder, PREPARATION, Voices.load(), workers)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("shard-*.parquet")) for row in pq.read_table(path).to_pylist()]


def named(folder: Path) -> dict[int, str]:
    lines = (folder / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return {entry["row"]: entry["reason"] for entry in map(json.loads, lines)}


segments = st.builds(
    lambda audio, start, length, language, speaker: {
        "audio": f"{audio}.wav",
        "start": start / 10,
        "end": (start + length) / 10,
        "language": language,
        "speaker": speaker,
    },
    st.integers(0, 1),
    st.integers(0, 100),
    st.integers(3, 40),
    st.sampled_from(LANGUAGES),
    st.sampled_from(["anna", "otto"]),
)


@settings(max_examples=4, deadline=None)
@given(rows=st.lists(segments, min_size=1, max_size=12), hours=st.sampled_from([2.0, 5 / 3600]))
def test_every_segment_has_its_own_units_or_is_named(
    rows: list[dict], hours: float, recordings: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    first = {"audio": "0.wav", "start": 0.05, "end": 1.0, "language": "en", "speaker": "anna"}
    folder = tmp_path_factory.mktemp("corpus")
    manifest = Manifest(write(recordings / "segments.jsonl", [first, *rows]), hours=hours)
    made = prepare(manifest, encoder, folder)
    wanted, network = [], load_encoder(encoder)
    seen, bad = set(), set()
    for number, row in enumerate([first, *rows], 1):
        place_in_time = (row["audio"], row["start"])
        if place_in_time in seen or row["start"] >= SECONDS - 2 or row["end"] > SECONDS + 0.25:
            bad.add(number)
        else:
            rate = RATES[int(row["audio"][0])]
            sound, _ = soundfile.read(recordings / row["audio"], dtype="float32")
            clip = sound[round(row["start"] * rate) : round(row["end"] * rate)]
            wanted.append((row["language"], row["speaker"], network.encode(clip, rate)))
        seen.add(place_in_time)
    told = [
        (language, row["speaker"], ids, runs)
        for row in rows_of(folder)
        for language in LANGUAGES
        for ids, runs in zip(row[f"units_{language}"], row[f"run_lengths_{language}"], strict=True)
    ]
    assert [part[:2] for part in told] == [part[:2] for part in wanted]
    for (*_, ids, runs), (*_, units) in zip(told, wanted, strict=True):
        assert (ids, runs) == (units.ids.tolist(), units.run_lengths.tolist())
    assert (set(named(folder)) if bad else set()) == bad
    assert made.rejected == len(bad)
    assert made.counts.sentences == len(wanted)
    assert made.counts.seconds == pytest.approx(sum(units.seconds for *_, units in wanted))


def test_segments_of_the_least_and_the_greatest_length_are_taken(
    recordings: Path, encoder: Path, tmp_path: Path
) -> None:
    """Also where the difference of their times is a little off."""
    rows: list[dict[str, Any] | str] = [
        {"audio": "0.wav", "start": start / 10, "end": (start + length) / 10, "language": "en", "speaker": "anna"}
        for start, length in ((10, 3), (30, 3), (41, 11), (60, 11))
    ]
    manifest = Manifest(write(recordings / "lengths.jsonl", rows), longest=1.1)
    assert prepare(manifest, encoder, tmp_path).counts.sentences == 4


def test_lines_that_follow_each_other_are_a_row_and_others_are_named(recordings: Path, tmp_path: Path) -> None:
    lines: list[dict[str, Any] | str] = [
        {"audio": "0.wav", "start": 0, "end": 2, "language": "en"},
        {"audio": "0.wav", "start": 2, "end": 4, "language": "en"},
        {"audio": "0.wav", "start": 1, "end": 2, "language": "en"},
        {"audio": "0.wav", "start": 5, "end": 5.1, "language": "en"},
        {"audio": "0.wav", "start": 5, "end": 99, "language": "en"},
        {"audio": "0.wav", "start": "5", "end": 9, "language": "en"},
        {"audio": "none.wav", "start": 0, "end": 9, "language": "en"},
        {"audio": "0.wav", "start": 6, "end": 9, "language": "xx"},
        {"start": 6},
        "[",
        "[]",
        '{"audio": "0.wav", "start": NaN, "language": "en"}',
        '{"audio": "0.wav", "start": 3, "language": "en", "speaker": "\\ud800"}',
        {"audio": "0.wav", "start": 2, "language": "en"},
        {"audio": "1.wav", "language": "fr", "speaker": "otto"},
    ]
    read = list(Manifest(write(recordings / "lines.jsonl", lines)).rows(LANGUAGES))
    rows = [row for row in read if isinstance(row, Row)]
    assert [[segment.row for segment in row.recorded.segments] for row in rows if row.recorded] == [[1, 2], [3], [15]]
    assert [row.recorded.speaker for row in rows if row.recorded] == ["0", "0", "otto"]
    reasons = {row.row: row.reason for row in read if isinstance(row, Rejected)}
    for number, reason in {
        4: "lasts 0.3 s or more",
        5: "lasts 94 s: 60 s is the most",
        6: "start is '5'",
        7: "no such file: none.wav",
        8: "unknown language 'xx'",
        9: "no audio",
        10: "not JSON",
        11: "not a segment",
        12: "start is nan",
        13: "the speaker is not valid Unicode",
        14: "an earlier line",
    }.items():
        assert reason in reasons.pop(number)
    assert not reasons
    with pytest.raises(TresseError, match=r"cannot read .*give a \.jsonl file of segments"):
        list(Manifest(tmp_path / "none.jsonl").rows(LANGUAGES))
    (tmp_path / "bad.jsonl.gz").write_bytes(gzip.compress(b"{}\n" * 1000)[:20])
    with pytest.raises(TresseError, match=r"cannot read .*give a \.jsonl file of segments"):
        list(Manifest(tmp_path / "bad.jsonl.gz").rows(LANGUAGES))


def test_cuts_of_lhotse_are_the_segments_of_their_supervisions(recordings: Path, encoder: Path, tmp_path: Path) -> None:
    recording = {"id": "a", "sources": [{"type": "file", "channels": [0], "source": "0.wav"}], "sampling_rate": 16000}
    parts = [(0.5, 1.5), (2.5, 1.0)]
    spoken = [{"id": "s", "start": s, "duration": d, "language": "English", "speaker": "anna"} for s, d in parts]
    cuts: list[dict[str, Any] | str] = [
        {"id": "c", "start": 1.0, "duration": 4.0, "channel": 0, "supervisions": spoken, "recording": recording},
        {"id": "d", "start": 6.0, "duration": 2.0, "channel": 0, "recording": recording, "type": "MonoCut"},
        {"id": "e", "start": 6.0, "duration": 2.0, "recording": recording, "type": "MultiCut"},
        {"id": "f", "recording": recording},
    ]
    lines: list[dict[str, Any] | str] = [
        {"audio": "0.wav", "start": 1.0 + s, "end": 1.0 + s + d, "language": "en", "speaker": "anna"} for s, d in parts
    ]
    lines.append({"audio": "0.wav", "start": 6.0, "end": 8.0, "language": "en"})
    prepare(Manifest(write(recordings / "cuts.jsonl.gz", cuts), language="en"), encoder, tmp_path / "cuts")
    prepare(Manifest(write(recordings / "same.jsonl", lines)), encoder, tmp_path / "lines")
    assert rows_of(tmp_path / "cuts") == rows_of(tmp_path / "lines")
    assert set(named(tmp_path / "cuts")) == {3, 4}


def test_it_goes_on_to_the_same_bytes_with_any_number_of_workers(
    recordings: Path, encoder: Path, tmp_path: Path
) -> None:
    lines: list[dict[str, Any] | str] = [
        {"audio": f"{number % 2}.wav", "start": number / 2, "end": number / 2 + 1, "language": "en"}
        for number in range(16)
    ]
    lines[5:5] = [{"audio": "text.wav", "language": "en"}]
    manifest = Manifest(write(recordings / "many.jsonl", lines), hours=3.5 / 3600)
    made = prepare(manifest, encoder, tmp_path / "a")
    assert "text.wav is not audio that can be read" in named(tmp_path / "a")[6]
    assert len(list((tmp_path / "a").glob("shard-*.parquet"))) == 6 == -(-made.counts.stories // 3)
    prepare(manifest, encoder, tmp_path / "b", workers=2)
    assert contents(tmp_path / "b") == contents(tmp_path / "a")
    kept = (tmp_path / "b" / "shard-00003.parquet").stat().st_mtime_ns
    (tmp_path / "b" / "shard-00001.parquet").unlink()
    prepare(manifest, encoder, tmp_path / "b")
    assert contents(tmp_path / "b") == contents(tmp_path / "a")
    assert (tmp_path / "b" / "shard-00003.parquet").stat().st_mtime_ns == kept
    write_wav(recordings / "1.wav", np.full(16000, 0.1, np.float32), 16000)
    with pytest.raises(TresseError, match="other stories"):
        prepare(manifest, encoder, tmp_path / "b")


def test_a_dialogue_is_decoded_once(recordings: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[dict[str, Any] | str] = [
        {"audio": f"{number // 8}.wav", "start": number % 8, "end": number % 8 + 0.5, "speaker": f"{number % 2}"}
        for number in range(16)
    ]
    manifest = Manifest(write(recordings / "dialogue.jsonl", lines), language="en")
    rows = [row for row in manifest.rows(LANGUAGES) if isinstance(row, Row)]
    decoded: list[Path] = []
    monkeypatch.setattr(encoding, "read_audio", lambda path: (decoded.append(path), read_audio(path))[1])
    units = encoding.encode_recordings(rows, load_encoder(encoder), 60.0)
    assert (len(rows), len(units)) == (16, 16)
    assert decoded == [recordings / "0.wav", recordings / "1.wav"]


def test_the_command_says_what_it_made_and_what_it_needs(recordings: Path, tmp_path: Path) -> None:
    manifest = write(recordings / "command.jsonl", [{"audio": "0.wav", "start": 0, "end": 2}])
    command = [sys.executable, "-m", "demo.cli", "prepare", "--audio", str(manifest), "--out", str(tmp_path / "corpus")]
    failed = subprocess.run([*command, "--workers", "1"], capture_output=True, text=True)
    assert failed.returncode == 2
    reason = "unknown language None: known are en, fr"
    assert f'no segment can be used (row 1: {reason}): give {{"audio", "start", "end"}} in every line' in failed.stderr
    made = subprocess.run([*command, "--audio-language", "en", "--workers", "1"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert "1 rows of recordings, 0.0 h of speech" in made.stdout
