"""A full disk, a read-only folder and the like are no prompt's fault: work stops, says why, and goes on when it may."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demo.programs import Programs
from demo.record import record_folder
from demo.recordings import save
from slm import decoding
from slm.audio import write_wav
from slm.errors import MachineError, TresseError
from slm.settings import ReplySettings
from tests.fake_bundle import FakeBundle, buzz
from tests.talker import Talker

SETTINGS = ReplySettings((), 0, 1.0, 0.9, 2.0)


class Recording(FakeBundle):
    """Continues speech as a bundle does."""

    def continue_speech(self, waveform: np.ndarray, rate: int, settings: ReplySettings) -> Iterator[Any]:
        return self.reply(self.prompt(waveform, rate), settings)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Eight prompts, and one that is none."""
    for number in range(8):
        write_wav(tmp_path / "prompts" / f"{number}.wav", buzz(110 + 10 * number, 1.0), 16000)
    (tmp_path / "prompts" / "broken.wav").write_text("no audio", encoding="utf-8")
    return tmp_path / "prompts"


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    return Recording(tmp_path / "bundle", real_time_factor=0.0)


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]


def test_recording_on_a_full_disk_stops_and_goes_on(prompts: Path, recording: Recording, small_disk: Path) -> None:
    out = small_disk / "out"
    with pytest.raises(MachineError, match=r"cannot write .*No space left on device\): free some space") as caught:
        record_folder(recording, prompts, ["fr"], out, SETTINGS)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    made = rows(out)
    assert 0 < len(made) < 8
    assert not any("error" in row for row in made)
    assert sorted(path.name for path in out.iterdir()) == sorted(["manifest.jsonl", *(row["file"] for row in made)])
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    done, failed, *_ = record_folder(recording, prompts, ["fr"], out, SETTINGS)  # type: ignore[arg-type]
    assert (done, failed) == (8, 1)
    assert [row["prompt"] for row in rows(out)] == [*(f"{number}.wav" for number in range(8)), "broken.wav"]
    assert rows(out)[: len(made)] == made


def test_a_manifest_without_room_for_a_row_stays_whole(
    prompts: Path, recording: Recording, small_disk: Path, tmp_path: Path
) -> None:
    """The WAVs lie elsewhere; only the manifest's disk is full."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.jsonl").symlink_to(small_disk / "manifest.jsonl")
    (small_disk / "filler").write_bytes(bytes(256 * 1024 - 4096))
    (small_disk / "manifest.jsonl").write_bytes(b'{"prompt": "' + b"x" * 4050 + b'"}\n')
    with pytest.raises(MachineError, match="No space left on device"):
        record_folder(recording, prompts, ["fr"], out, SETTINGS)  # type: ignore[arg-type]
    assert [set(row) for row in rows(out)] == [{"prompt"}]


def test_half_a_row_of_a_killed_run_costs_no_other(prompts: Path, recording: Recording, tmp_path: Path) -> None:
    out = tmp_path / "out"
    record_folder(recording, prompts, ["fr"], out, SETTINGS)  # type: ignore[arg-type]
    manifest = out / "manifest.jsonl"
    whole = manifest.read_bytes()
    lines = whole.splitlines(keepends=True)
    for kept in (0, 1, len(lines[-2]) // 2):
        (out / rows(out)[-2]["file"]).unlink()
        manifest.write_bytes(b"".join(lines[:-2]) + lines[-2][:kept])
        record_folder(recording, prompts, ["fr"], out, SETTINGS)  # type: ignore[arg-type]
        assert [row["prompt"] for row in rows(out)] == [row["prompt"] for row in map(json.loads, lines)]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
def test_other_faults_of_the_machine_stop_it_too(
    prompts: Path, recording: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("slm.audio.os.replace", refuse)
    with pytest.raises(MachineError, match=os.strerror(number)):
        record_folder(recording, prompts, ["fr"], tmp_path / "out", SETTINGS)  # type: ignore[arg-type]
    assert list((tmp_path / "out").iterdir()) == []


def test_files_that_cannot_be_opened_any_more_are_no_prompts_fault(
    prompts: Path, recording: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise decoding.cannot_read(path, OSError(errno.EMFILE, os.strerror(errno.EMFILE)))

    monkeypatch.setattr(decoding, "_open", refuse)
    with pytest.raises(MachineError, match="ulimit -n"):
        record_folder(recording, prompts, ["fr"], tmp_path / "out", SETTINGS)  # type: ignore[arg-type]


def test_a_name_that_no_file_can_have_is_its_prompts_fault(recording: Recording, tmp_path: Path) -> None:
    write_wav(tmp_path / "prompts" / "a.wav", buzz(110, 1.0), 16000)
    shutil.move(tmp_path / "prompts" / "a.wav", tmp_path / "prompts" / f"{'a' * 250}.wav")
    write_wav(tmp_path / "prompts" / "b\n\u2028é.wav", buzz(110, 1.0), 16000)
    out = tmp_path / "out"
    done, failed, *_ = record_folder(recording, tmp_path / "prompts", ["fr"], out, SETTINGS)  # type: ignore[arg-type]
    assert (done, failed) == (1, 1)
    done, failed, *_ = record_folder(recording, tmp_path / "prompts", ["fr"], out, SETTINGS)  # type: ignore[arg-type]
    assert (done, failed) == (1, 1)
    lines = (out / "manifest.jsonl").read_text(encoding="utf-8").split("\n")
    assert "shorter name" in json.loads(lines[0])["error"]
    assert json.loads(lines[1])["prompt"] == "b\n\u2028é.wav"


def test_the_page_says_that_a_recording_could_not_be_kept(tmp_path: Path, small_disk: Path) -> None:
    from demo.app import start

    bundle = FakeBundle(tmp_path / "bundle", real_time_factor=0.0)
    (small_disk / "filler").write_bytes(bytes(250 * 1024))
    served, url = start(bundle, "127.0.0.1", 0, recordings=small_disk)  # type: ignore[arg-type]
    talker = Talker(url)
    talker.turn(lambda: talker.do("example", number=0))
    talker.eventually(lambda: "No space left on device" in talker.of("problem")[-1]["text"])
    assert len(talker.of("done")) == 1  # the reply was spoken all the same
    assert [path.name for path in small_disk.iterdir()] == ["filler"]
    programs = Programs(served.service)
    programs._folder.cleanup()
    programs._folder.name = str(small_disk)  # type: ignore[misc]
    request = type("Request", (), {"session_hash": "x"})()
    with pytest.raises(Exception, match="No space left on device") as caught:
        programs.continue_story(str(bundle.examples[0].path), "fr", 1, 1.0, 0.9, 3, "", request)
    assert type(caught.value).__name__ == "Error"  # of Gradio, which shows its line
    with programs.story(request) as conversation:
        assert conversation.turns == []  # asking again does not say it twice
    served.close()


def test_a_read_only_folder_of_recordings_does_not_ask_for_space(tmp_path: Path, small_disk: Path) -> None:
    bundle = FakeBundle(tmp_path / "bundle")
    from demo.conversation import Settings, Turn

    turn = Turn(buzz(110, 1.0), 16000, bundle.prompt(buzz(110, 1.0), 16000), Settings())
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(TresseError, match=r"Read-only file system\): choose a place that can be written to"):
        save(small_disk, turn, "x", 0, {})
