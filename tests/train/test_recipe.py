"""A whole recipe, small: killed again and again it ends with the very bundle of an undisturbed run, and the bundle talks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from slm.bundle import Bundle
from slm.errors import TresseError
from tests.conftest import spoken_beginning
from train.publish.card import write_card
from train.recipe import Recipe
from train.stages import run_recipe

SMALL = {
    "stories.train": 24,
    "stories.validation": 6,
    "units.encoder": {"codebook_size": 40, "width": 24},
    "units.training": {
        "iterations": [{"steps": 6, "clusters": 20}, {"steps": 12}],
        "sentences_per_language": 6,
        "voices_per_sentence": 1,
        "checkpoint_every": 3,
    },
    "corpus": {"stories_per_shard": 8, "speakers": ["basile", "anouk"]},
    "vocabulary.size": 120,
    "model": {"hidden_size": 32, "layers": 2, "heads": 2, "intermediate_size": 64, "max_position": 512},
    "slm": {"steps": 12, "batch_rows": 4, "row_length": 256, "held_out": 4, "checkpoint_every": 3, "warmup": 2},
    "vocoder": {
        "sentences_per_language": 8,
        "size": {"dim": 32, "intermediate_dim": 48, "dilations": [1, 1]},
        "training": {"steps": 9, "batch_size": 2, "validation_clips": 2, "checkpoint_every": 3, "sample_every": 100},
    },
    "bundle.examples_per_language": 1,
    "evaluation.items": 4,
}
STAGES = ["stories", "units", "corpus", "vocabulary", "topics", "slm", "vocoder", "bundle", "evaluation"]


def start(out: Path, *more: str) -> subprocess.Popen:
    changes = [part for key, value in SMALL.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    command = [sys.executable, "-m", "demo.cli", "recipe", "tiny", "--out", str(out), "--workers", "1", *changes, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    process = start(out)
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors.decode()[-2000:]
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("bundle.json", "README.md")
    }


def test_the_bundle_talks(undisturbed: Path) -> None:
    bundle = Bundle.load(undisturbed / "bundle", device="cpu")
    assert bundle.languages == ["en", "fr"]
    assert len(bundle.examples) == 2
    audio = [c.audio for c in bundle.continue_speech(spoken_beginning("en"), 16000, to="fr", seed=1, max_seconds=2.0)]
    assert np.isfinite(np.concatenate(audio)).all()
    cells = bundle.info["metrics"]["cloze"]["unseen_voices"]["cells"]
    assert set(cells) == {"en>en", "en>fr", "fr>en", "fr>fr"}
    assert bundle.info["provenance"]["stories"] == 24
    assert "Limits" in (undisturbed / "bundle" / "README.md").read_text(encoding="utf-8")
    assert [stage for stage in STAGES if not (undisturbed / "done" / f"{stage}.json").exists()] == []


def test_killed_again_and_again_it_ends_the_same(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    watched = ["units/iteration-2.pt", "corpus/shard-00000.parquet", "slm/checkpoint.pt", "vocoder/checkpoint.pt"]
    for name in watched:  # killed right after a stage left its first trace
        process = start(out)
        while process.poll() is None and not (out / name).exists():
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    process = start(out)
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors.decode()[-2000:]
    assert files(out / "bundle") == files(undisturbed / "bundle")


def test_a_finished_run_does_nothing_and_another_recipe_is_refused(undisturbed: Path) -> None:
    overrides = {key: json.dumps(value) for key, value in SMALL.items()}
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    run_recipe(Recipe.load("tiny", overrides), undisturbed)
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")} == before
    with pytest.raises(TresseError, match="another recipe"):
        run_recipe(Recipe.load("tiny", {**overrides, "seed": "1"}), undisturbed)


def test_a_part_made_alone_is_the_part_of_the_whole(undisturbed: Path, tmp_path: Path) -> None:
    process = start(tmp_path, "--until", "vocoder", "--set", f"parts.units={undisturbed / 'bundle'}")
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors.decode()[-2000:]
    assert (tmp_path / "vocoder" / "model.safetensors").read_bytes() == (
        undisturbed / "bundle" / "vocoder" / "model.safetensors"
    ).read_bytes()
    assert {path.stem for path in (tmp_path / "done").glob("*.json")} == {"stories", "units", "vocoder"}


def test_a_bundle_is_trained_further(undisturbed: Path, tmp_path: Path) -> None:
    """Nearly without a learning rate a model trained further is the one it began as; with one it is another."""
    source = undisturbed / "bundle"
    parts = {f"parts.{part}": json.dumps(str(source)) for part in ("units", "vocoder")} | {
        "model": json.dumps({"warm_start": str(source)}),
        "corpus": json.dumps({"stories_per_shard": 8, "speakers": ["bruno"]}),
        "seed": "1",
    }
    overrides = {key: json.dumps(value) for key, value in SMALL.items()} | parts
    weights = {}
    for rate in (1e-12, 1e-2):
        recipe = Recipe.load("tiny", {**overrides, "slm.learning_rate": str(rate)})
        run_recipe(recipe, tmp_path / str(rate), until="bundle", workers=1)
        weights[rate] = (tmp_path / str(rate) / "bundle" / "slm" / "model.safetensors").read_bytes()
    began = (source / "slm" / "model.safetensors").read_bytes()
    assert weights[1e-12] == began != weights[1e-2]
    made = Bundle.load(tmp_path / "0.01" / "bundle", device="cpu").info["provenance"]
    assert made["voices"] == ["bruno", "basile", "anouk"], "none of these counts as never heard"
    assert (made["warm_start"]["bundle"], made["warm_start"]["seed"], made["seed"]) == ("tiny", 0, 1)
    write_card(tmp_path / "0.01" / "bundle")
    assert "Began as | the bundle tiny (24 stories, seed 0" in (tmp_path / "0.01/bundle/README.md").read_text("utf-8")
    assert (tmp_path / "1e-12/vocabulary/tokenizer.json").read_bytes() == (source / "slm/tokenizer.json").read_bytes()
    with pytest.raises(TresseError, match=r"set parts\.units to it too"):
        Recipe.load("tiny", {**overrides, "parts.units": "null"}).held_vocabulary()


def test_recipes_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nlanguages: [en]\nslm: {learnin_rate: 1.0}\n", encoding="utf-8")
    with pytest.raises(TresseError, match=r"unknown key slm\.learnin_rate: did you mean slm\.learning_rate"):
        Recipe.load(str(path))
    with pytest.raises(TresseError, match=r"bundle\.mantissa: input should be less than or equal to 7"):
        Recipe.load("tiny", {"bundle.mantissa": "8"})
    path.write_text("name: mine\nlanguages: 3\n", encoding="utf-8")
    with pytest.raises(TresseError, match="languages"):
        Recipe.load(str(path))
    path.write_text("[1, 2", encoding="utf-8")
    with pytest.raises(TresseError, match="cannot read the recipe"):
        Recipe.load(str(path))
