"""The command line: every language pair speaks, every mistake of a user is one line and exit status 2."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from demo.cli import main
from slm.audio import write_wav
from tests.bundles import BRAID
from tests.slm.test_audio import bad_files
from train.speech.voices import Voices, speak

PAIRS = [("en", "en"), ("fr", "fr"), ("en", "fr"), ("fr", "en")]


def run(*arguments: str | Path) -> int:
    """Exit status of a command, in this process."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line with which a command is refused."""
    capsys.readouterr()
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_help_needs_neither_torch_nor_gradio() -> None:
    code = (
        "import sys, demo.cli\ntry:\n    demo.cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted(m for m in ('torch', 'gradio', 'transformers', 'numpy') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
    assert "continue" in done.stdout


@pytest.mark.parametrize(("spoken", "to"), PAIRS)
def test_continue_speaks_in_every_pair(
    beginnings: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], spoken: str, to: str
) -> None:
    out = tmp_path / "out.wav"
    assert run("continue", beginnings[spoken], "--to", to, "--out", out, "--json", "--seed", "1") == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) >= {
        "prompt_seconds", "seconds", "language", "tokens", "time_to_first_audio_ms", "real_time_factor", "transcript",
        "seed",
    }  # fmt: skip
    data, rate = soundfile.read(str(out))
    assert report["language"] == to
    assert report["prompt_language"] == spoken
    assert report["prompt_in_domain"]
    assert report["prompt_advice"] == ""
    assert -40 < report["prompt_voice"]["level"] < 0
    assert len(data) / rate == pytest.approx(report["seconds"], abs=0.01)
    assert report["seconds"] >= 2.0
    assert np.sqrt(np.mean(data**2)) > 0.01
    assert report["time_to_first_audio_ms"] < report["total_ms"]  # it leaves before the reply is finished
    assert list(tmp_path.iterdir()) == [out]


def test_a_prompt_out_of_domain_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    panel = Voices.load()
    sound = speak("The quarterly report shows that revenue grew.", "en", panel.speaker("basile"), panel)
    write_wav(prompts / "report.wav", sound, 16000)
    braid = ["--bundle", "braid"]  # it knows little
    assert run("continue", prompts / "report.wav", "--to", "en", "--out", tmp_path / "out.wav", "--json", *braid) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert not report["prompt_in_domain"]
    assert report["prompt_advice"] == "unfamiliar"
    (line,) = [line for line in printed.err.splitlines() if line.startswith("tresse: ")]
    assert "this prompt is out of domain" in line
    assert "take a voice and a story like" in line
    for _ in range(2):  # made, and found to be there
        assert run("record", prompts, "--to", "en", "--out", tmp_path / "replies", *braid) == 0
        assert "1 continuations, 1 of prompts that are out of domain" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_file(beginnings: dict[str, Path], tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.wav" for name in "abc"]
    for file, seed in zip(files, ("5", "5", "6"), strict=True):
        assert run("continue", beginnings["en"], "--to", "fr", "--out", file, "--seed", seed) == 0
    first, again, other = (file.read_bytes() for file in files)
    assert first == again
    assert first != other


@pytest.mark.parametrize("name", ["missing", "folder", "empty", "text", "silence", "short", "nan", "long"])
def test_bad_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    path, words = bad_files(tmp_path / "bad")[name]
    assert words in refused(capsys, "continue", path, "--to", "fr", "--out", tmp_path / "out.wav")
    assert not (tmp_path / "out.wav").exists()


def test_noise_without_speech(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(str(tmp_path / "noise.wav"), np.random.default_rng(0).normal(0, 0.05, 48000), 16000)
    line = refused(capsys, "continue", tmp_path / "noise.wav", "--to", "fr", "--out", tmp_path / "out.wav")
    assert "no speech found" in line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--to", "de"], "speaks en, fr"),
        (["--to", "fr", "--temperature", "-1"], "temperature"),
        (["--to", "fr", "--top-p", "0"], "top-p"),
        (["--to", "fr", "--candidates", "0"], "candidates"),
        (["--to", "fr", "--max-seconds", "0.1"], "max-seconds"),
        (["--to", "fr", "--speaker", "nobody"], "choose one of"),
        (["--to", "fr", "--bundle", "/nowhere"], "no bundle at /nowhere"),
        (["--to", "fr", "--device", "cuda:99"], "no device cuda:99"),
        (["--to", "fr", "--out", "/nowhere/out.wav"], "no folder /nowhere"),
        (["--to", "fr", "--out", "out.mp3"], "must end in .wav"),
    ],
)
def test_bad_settings(
    beginnings: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    out = [] if "--out" in options else ["--out", tmp_path / "out.wav"]
    assert words in refused(capsys, "continue", beginnings["en"], *options, *out)


@pytest.mark.parametrize(
    "damage",
    ["bundle.json", "units/model.safetensors", "units/config.json", "slm/model.safetensors", "slm/config.json",
     "slm/tokenizer.json", "vocoder/model.safetensors", "vocoder/config.json"],
)  # fmt: skip
@pytest.mark.parametrize("how", ["missing", "cut"])
def test_a_damaged_bundle(
    beginnings: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str, how: str
) -> None:
    shutil.copytree(BRAID, tmp_path / "bundle")
    path = tmp_path / "bundle" / damage
    data = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(data[: len(data) // 2])
    out = tmp_path / "out.wav"
    line = refused(capsys, "continue", beginnings["en"], "--to", "fr", "--out", out, "--bundle", tmp_path / "bundle")
    assert "restore" in line or "cannot" in line
    assert not out.exists()


def test_record_goes_on_and_reports_what_it_could_not_use(
    beginnings: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, out = tmp_path / "prompts", tmp_path / "out"
    prompts.mkdir()
    for language, path in beginnings.items():
        shutil.copy(path, prompts / f"{language}.wav")
    (prompts / "broken.wav").write_text("no audio", encoding="utf-8")
    command = ["record", prompts, "--to", "en", "fr", "--out", out, "--max-seconds", "2"]
    assert run(*command) == 0
    assert "4 continuations, 2 prompts could not be used" in capsys.readouterr().out
    wavs = sorted(path.name for path in out.glob("*.wav"))
    assert wavs == ["en.wav.en.wav", "en.wav.fr.wav", "fr.wav.en.wav", "fr.wav.fr.wav"]
    made = {path.name: path.stat().st_mtime_ns for path in out.glob("*.wav")}
    (out / "en.wav.fr.wav").unlink()
    assert run(*command) == 0
    for path in out.glob("*.wav"):
        assert (path.stat().st_mtime_ns == made[path.name]) == (path.name != "en.wav.fr.wav")


def test_recipes_refuse_what_they_do_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "choose one of" in refused(capsys, "recipe", "nonsense", "--out", tmp_path)
    line = refused(capsys, "recipe", "tiny", "--out", tmp_path, "--set", "slm.learningrate=1")
    assert "did you mean slm.learning_rate" in line
    assert "slm.tokens" in refused(capsys, "recipe", "tiny", "--out", tmp_path, "--set", "slm.tokens=many")
    assert "no stage" in refused(capsys, "recipe", "tiny", "--out", tmp_path, "--until", "tea")
    assert not list(tmp_path.iterdir())
