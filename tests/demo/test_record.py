"""Folders of prompts: what is a prompt, what is finished, and where each continuation goes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from demo import record
from demo.cli import _spread
from demo.prompts import digest, find_prompts, read_rows
from demo.record import record_folder
from slm.audio import SUFFIXES, read_audio, write_wav
from slm.errors import TresseError
from slm.settings import ReplySettings
from tests.fake_bundle import FakeBundle, buzz

SETTINGS = ReplySettings((), seed=1, max_seconds=2.0)


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeBundle:
    """Its continuation of a prompt is the prompt itself, and its seed is heard."""
    made = FakeBundle(tmp_path / "bundle")
    (made.path / "slm").mkdir()
    (made.path / "slm" / "model.safetensors").write_bytes(b"weights")

    def continue_file(bundle: Any, prompt: Path, out: Path, reply: ReplySettings) -> dict[str, Any]:
        waveform, rate = read_audio(prompt)
        write_wav(out, np.concatenate([waveform, buzz(100 + reply.seed, 0.1)]), rate)
        return {"seconds": 1.0, "prompt_in_domain": True}

    monkeypatch.setattr(record, "continue_file", continue_file)
    return made


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    for number, name in enumerate(("a.wav", "x/b.flac", "x__b.flac", "x/y/c.WAV")):
        path = tmp_path / "prompts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(str(path), buzz(110 + 20 * number, 0.5), 16000)
    return tmp_path / "prompts"


def run(bundle: Any, prompts: Path, out: Path, languages: str = "en", **changes: Any) -> tuple[int, ...]:
    from dataclasses import replace

    return record_folder(bundle, prompts, languages.split(), out, replace(SETTINGS, **changes))


def times(out: Path) -> dict[str, int]:
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in sorted(out.rglob("*.wav"))}


def changed(before: dict[str, int], out: Path) -> set[str]:
    return {name for name, time in times(out).items() if before.get(name) != time}


def test_no_two_continuations_share_a_file(bundle: FakeBundle, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(bundle, prompts, out, "en fr") == (8, 0, 0, 0)
    assert len(times(out)) == 8
    for name in ("x/b.flac", "x__b.flac"):
        waveform, _ = soundfile.read(out / f"{name}.en.wav", dtype="float32")
        assert np.allclose(waveform[:8000], soundfile.read(prompts / name, dtype="float32")[0], atol=1e-3)
    assert {row["file"] for row in read_rows(out / "manifest.jsonl")} == set(times(out))


def test_what_is_finished_is_known_by_content(bundle: FakeBundle, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(bundle, prompts, out)
    before = times(out)
    os.utime(prompts / "a.wav")
    assert run(bundle, prompts, out) == (4, 0, 0, 0)
    assert not changed(before, out)
    # another prompt under the same name
    soundfile.write(str(prompts / "a.wav"), buzz(300, 0.5), 16000)
    run(bundle, prompts, out)
    assert changed(before, out) == {"a.wav.en.wav"}
    # sound that is no longer what was written
    before = times(out)
    write_wav(out / "x/b.flac.en.wav", buzz(90, 0.4), 16000)
    run(bundle, prompts, out)
    assert changed(before, out) == {"x/b.flac.en.wav"}
    # other settings, and back: the same files are made of both
    before = times(out)
    run(bundle, prompts, out, seed=2)
    assert len(changed(before, out)) == 4
    before = times(out)
    run(bundle, prompts, out)
    assert len(changed(before, out)) == 4
    # another bundle at the same path
    before = times(out)
    (bundle.path / "slm" / "model.safetensors").write_bytes(b"other weights")
    run(bundle, prompts, out)
    assert len(changed(before, out)) == 4
    # what it says about itself changes no continuation
    before = times(out)
    (bundle.path / "README.md").write_text("Measured anew.")
    run(bundle, prompts, out)
    assert not changed(before, out)


@pytest.mark.parametrize("inside", ["replies", "x/replies", "x"])
def test_continuations_are_no_prompts(bundle: FakeBundle, prompts: Path, tmp_path: Path, inside: str) -> None:
    own = [path for path in find_prompts(prompts, tmp_path / "out")[0] if not path.is_relative_to(prompts / inside)]
    for _ in range(2):
        assert run(bundle, prompts, prompts / inside)[0] == len(own)
    before = set(prompts.rglob("*"))
    run(bundle, prompts, tmp_path / "elsewhere", "fr")  # nor for a later run into another folder
    assert set(prompts.rglob("*")) == before
    assert len(times(tmp_path / "elsewhere")) == 4
    with pytest.raises(TresseError, match="name another folder"):
        run(bundle, prompts, prompts / "x" / "..")


@pytest.mark.parametrize("suffix", ["aiff", "caf", "oga", "au", "w64", "AIF"])
def test_every_form_that_is_read_is_looked_for(bundle: FakeBundle, tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "prompts"
    folder.mkdir()
    form = {"oga": "OGG", "aif": "AIFF"}.get(suffix.lower(), suffix.upper())
    soundfile.write(str(folder / f"a.{suffix}"), buzz(120, 0.5), 16000, format=form)
    (folder / "notes.txt").write_text("said by Anna")
    assert run(bundle, folder, tmp_path / "out") == (1, 0, 0, 1)
    assert {".mp4", ".webm", ".m4a", ".opus"} <= SUFFIXES


def test_a_manifest_that_was_cut_off_is_read(tmp_path: Path) -> None:
    rows = [{"file": "a.wav"}, {"file": "b\u2028.wav"}]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "manifest.jsonl").write_text(text + '\n3\n{"file": "c', encoding="utf-8")
    assert read_rows(tmp_path / "manifest.jsonl") == rows


def test_a_digest_is_of_names_and_content(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ("a" if name != "three" else "b")).write_bytes(b"1")
    one, two, three = (digest(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two != three
    (tmp_path / "two" / "a").write_bytes(b"2")
    assert digest(tmp_path / "two") != one
    shutil.rmtree(tmp_path / "two")
    assert digest(tmp_path / "two") == digest()


LANGUAGES = st.lists(st.sampled_from(["en", "fr", "es"]), min_size=1, max_size=3)
OPTIONS = st.lists(st.sampled_from([["--seed", "-1"], ["--seed=3"], ["--top-p", "0.5"], ["--out", "o"]]), max_size=3)


@settings(max_examples=150, deadline=None)
@given(languages=LANGUAGES, before=OPTIONS, after=OPTIONS, where=st.sampled_from(["first", "last", "after"]))
def test_languages_are_languages_whatever_files_there_are(
    languages: list[str], before: list[list[str]], after: list[list[str]], where: str
) -> None:
    """The folder of prompts may stand before `--to`, right behind the languages, or at the end; it is called `de`."""
    first, last = ([part for option in options for part in option] for options in (before, after))
    given = {
        "first": ["de", *first, "--to", *languages, *last],
        "after": [*first, "--to", *languages, "de", *last],
        "last": [*first, "--to", *languages, *(last or ["--seed", "1"]), "de"],
    }[where]
    spread = _spread(given)
    assert [spread[k + 1] for k, part in enumerate(spread) if part == "--to"] == languages
    assert spread[spread.index("--") + 1 :] == ["de"]
    options = [part for part in spread[: spread.index("--")] if part not in ("--to", *languages)]
    assert options == [*first, *(last or (["--seed", "1"] if where == "last" else []))]


def test_a_folder_called_like_a_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("fr", "en", "prompts"):
        (tmp_path / name).mkdir()
    assert _spread(["prompts", "--to", "en", "fr", "--out", "o"]) == [
        "--out",
        "o",
        "--to",
        "en",
        "--to",
        "fr",
        "--",
        "prompts",
    ]
    assert _spread(["--to=en", "fr", "--", "-odd"]) == ["--to", "en", "--to", "fr", "--", "-odd"]
