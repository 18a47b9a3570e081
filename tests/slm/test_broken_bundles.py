"""Bundles whose fields and weights nobody has checked: each is one line, or it talks. `TRESSE_FUZZ_BUNDLES` tries more."""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from demo.cli import main
from slm.bundle import Bundle
from slm.errors import TresseError
from slm.model import BUNDLES
from slm.schema import read_info
from slm.units.conv import ConvEncoderConfig, ConvNetwork, ConvUnitEncoder
from tests.bundles import BRAID
from tests.fake_bundle import buzz
from tests.tiny_encoders import save_bundle

FILES = (
    "bundle.json",
    "units/config.json",
    "vocoder/config.json",
    "examples/examples.json",
    "slm/config.json",
    "slm/tokenizer_config.json",
    "slm/generation_config.json",
)
WEIGHTS = ("units/model.safetensors", "vocoder/model.safetensors", "slm/model.safetensors")
BROKEN = int(os.environ.get("TRESSE_FUZZ_BUNDLES", "200"))
PARTS = 8
DEEP = "[" * 200_000 + "]" * 200_000
HOSTILE: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 10**9, 10**12, 2**63, 10**400, -(10**9), 0.5, 1e9, 1e308, float("nan"), float("inf"),
    "", "en", "../../../../etc/passwd", "/etc/passwd", "a/b/c", "two\nlines", "x" * 100_000, "\ud7ff\u202e", [], {}, [[]],
    [None], [0], [1] * 1000, ["en", "en"], {"a": {"b": []}}, {"0": 1},
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small bundle of the default kind, with an example; what the tests convert is not kept."""
    folder = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    config = ConvEncoderConfig(codebook_size=24, width=16, dilations=(1, 2), look_ahead=(1, 1))
    path = save_bundle(folder / "bundle", ConvUnitEncoder(ConvNetwork(config)), vocab_size=60)
    shutil.copytree(BRAID / "examples", path / "examples")
    info = {"name": "tiny", "provenance": {"recipe": "tiny", "seed": 0}, "metrics": {"cloze": {"en": 0.5}}}
    change(path / "bundle.json", lambda values: values.update(info, sample_rate=16000, frame_rate=50.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        talk(path)
        yield path


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


def change(path: Path, edit: Callable[[Any], Any]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(edit(values) or values), encoding="utf-8")


def talk(path: Path) -> int:
    """Load a bundle and let it speak; how many chunks."""
    bundle = Bundle.load(path, "cpu")
    settings = {"max_seconds": 0.5, "seed": 1}
    return len(list(bundle.continue_speech(buzz(200, 1.0), 16000, bundle.languages[0], **settings)))  # type: ignore[arg-type]


def refused(path: Path) -> str:
    """The one line that such a bundle is refused with."""
    with pytest.raises(TresseError) as caught:
        talk(path)
    assert str(caught.value).isprintable()
    return str(caught.value)


# ---- every field -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        ("bundle.json", "languages", None),
        ("bundle.json", "languages", []),
        ("bundle.json", "languages", "en"),
        ("bundle.json", "languages", ["en", "en"]),
        ("bundle.json", "languages", ["en", "../fr"]),
        ("bundle.json", "languages", ["en", "de"]),
        ("bundle.json", "format", 0),
        ("bundle.json", "format", 2),
        ("bundle.json", "format", True),
        ("bundle.json", "format", "1"),
        ("bundle.json", "max_prompt_seconds", 1e9),
        ("bundle.json", "max_prompt_seconds", float("nan")),
        ("bundle.json", "max_prompt_seconds", "60"),
        ("bundle.json", "sample_rate", 10**9),
        ("bundle.json", "frame_rate", 1e9),
        ("bundle.json", "metrics", {"cloze": float("inf")}),
        ("bundle.json", "metrics", []),
        ("bundle.json", "provenance", {"recipe": "../../secret"}),
        ("bundle.json", "provenance", {"stories": 10**12}),
        ("bundle.json", "provenance", {"warm_start": {"recipe": "/etc/x"}}),
        ("bundle.json", "name", "a/b"),
        ("units/config.json", "type", None),
        ("units/config.json", "type", ["conv"]),
        ("units/config.json", "dilations", []),
        ("units/config.json", "dilations", [10**9, 1]),
        ("units/config.json", "look_ahead", [1]),
        ("units/config.json", "look_ahead", [10**9, 1]),
        ("units/config.json", "sample_rate", 10**9),
        ("units/config.json", "width", 10**9),
        ("units/config.json", "width", 8192),
        ("units/config.json", "kernel", 0),
        ("units/config.json", "mels", 0),
        ("units/config.json", "codebook_size", 10**9),
        ("units/config.json", "colour", 1),
        ("vocoder/config.json", "sample_rate", 10**9),
        ("vocoder/config.json", "frame_rate", 1e9),
        ("vocoder/config.json", "dilations", []),
        ("vocoder/config.json", "dim", 10**9),
        ("vocoder/config.json", "dim", 16_384),
        ("vocoder/config.json", "n_fft", 10**9),
        ("vocoder/config.json", "hop_length", 0),
        ("vocoder/config.json", "languages", None),
        ("vocoder/config.json", "languages", ["fr", "de"]),
        ("vocoder/config.json", "speakers", []),
        ("slm/config.json", "num_hidden_layers", 0),
        ("slm/config.json", "num_hidden_layers", 10**9),
        ("slm/config.json", "hidden_size", 10**9),
        ("slm/config.json", "hidden_size", 2**20),
        ("slm/config.json", "vocab_size", 10**8),
        ("slm/config.json", "max_position_embeddings", 0),
        ("slm/config.json", "max_position_embeddings", None),
        ("slm/config.json", "transformers_weights", "../../x.safetensors"),
        ("slm/config.json", "quantization_config", {"quant_method": "gptq"}),
        ("slm/config.json", "attn_implementation", "somebody/kernels"),
        ("slm/tokenizer_config.json", "languages", None),
        ("slm/tokenizer_config.json", "codebook_size", 1e9),
        ("slm/tokenizer_config.json", "codebook_size", 10),
    ],
)  # fmt: skip
def test_a_field_that_cannot_be_true_is_one_line(bundle: Path, file: str, field: str, value: Any) -> None:
    change(bundle / file, lambda values: values.update({field: value}))
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(bundle)
    assert time.process_time() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB


@pytest.mark.parametrize("file", FILES[:-1])
@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", "null", DEEP, '{"a": ' * 100_000, '"\\ud800"', "NaN", "\x00" * 50]
)
def test_files_that_hold_something_else(bundle: Path, file: str, text: str) -> None:
    if (file, text) == ("examples/examples.json", "[]"):
        return  # no examples
    (bundle / file).write_text(text, encoding="utf-8")
    refused(bundle)


@pytest.mark.parametrize("file", [*FILES[:-1], *WEIGHTS, "slm/tokenizer.json"])
def test_what_never_ends_is_not_read(bundle: Path, file: str) -> None:
    (bundle / file).unlink()
    os.mkfifo(bundle / file)
    refused(bundle)


@pytest.mark.parametrize(
    "name", ["../../../bundle.json", "/etc/passwd", "sub/a.flac", "..", ".", "", "missing.flac", 7, None]
)
def test_examples_lie_beside_their_listing(bundle: Path, name: Any) -> None:
    change(bundle / "examples" / "examples.json", lambda entries: entries[0].update(file=name))
    refused(bundle)


@pytest.mark.parametrize("path", ["../../other", "/tmp", "a/b/c", "~/x", "", None, 7, ["kyutai/mimi"]])
@pytest.mark.parametrize("kind", ["mimi", "hubert"])
def test_units_name_no_folder_outside(bundle: Path, kind: str, path: Any) -> None:
    (bundle / "units" / "config.json").write_text(json.dumps({"type": kind, "path": path, "layer": 1}))
    assert "path" in refused(bundle)


def test_a_folder_that_is_named_like_a_hub_id_is_not_taken_for_it(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "somebody" / "mimi").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    (bundle / "units" / "config.json").write_text(json.dumps({"type": "mimi", "path": "somebody/mimi"}))
    assert "work in another folder" in refused(bundle)


# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", WEIGHTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_are_finite(bundle: Path, file: str, value: float) -> None:
    weights = load_file(bundle / file)
    next(iter(weights.values())).view(-1)[-1] = value
    save_file(weights, bundle / file, {"format": "pt"})
    refused(bundle)


@pytest.mark.parametrize("file", WEIGHTS)
@pytest.mark.parametrize("how", ["fewer", "cut", "other", "none", "text"])
def test_weights_are_those_of_the_config(bundle: Path, file: str, how: str) -> None:
    weights = load_file(bundle / file)
    first = sorted(weights)[0]
    if how == "fewer":
        del weights[first]
    if how == "other":
        weights[first] = torch.zeros(3, 5)
    save_file({} if how == "none" else weights, bundle / file, {"format": "pt"})
    if how == "cut":
        (bundle / file).write_bytes((bundle / file).read_bytes()[:-7])
    if how == "text":
        (bundle / file).write_text("no weights")
    refused(bundle)


@pytest.mark.parametrize("names", [{"a": "../../../x.safetensors"}, {"a": "/etc/passwd"}, None, {"a": 7}])
def test_an_index_of_weights_names_files_beside_it(bundle: Path, names: Any) -> None:
    (bundle / "slm" / "model.safetensors").rename(bundle / "x.safetensors")
    (bundle / "slm" / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    with pytest.raises(TresseError):
        _ = Bundle.load(bundle, "cpu").language_model


# ---- two hundred of them ---------------------------------------------------------------------------------------------


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The paths of all fields in a JSON value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, part in parts for inner in places(part, (*path, key)))]


def break_json(path: Path, rng: random.Random) -> str:
    """Replace or remove fields, or damage the text; what was done."""
    text = path.read_text(encoding="utf-8")
    if rng.random() < 0.2:
        at = rng.randrange(len(text))
        path.write_text(text[:at] + rng.choice(["", "}", '"', "\x00", DEEP]) + text[at + rng.randrange(20) :])
        return f"{path.name} at {at}"
    values, done = json.loads(text), []
    for _ in range(rng.choice([1, 1, 2, 4])):
        *outer, last = rng.choice([place for place in places(values) if place] or [("new",)])
        parent = values
        for key in outer:
            parent = parent[key]
        if rng.random() < 0.15:
            del parent[last]
        else:
            parent[last] = copy.deepcopy(rng.choice(HOSTILE))
        done.append(f"{last}={str(parent[last])[:40] if last in (parent if isinstance(parent, dict) else ()) else '?'}")
    path.write_text(json.dumps(values), encoding="utf-8")
    return f"{path.name} {done}"


def break_weights(path: Path, rng: random.Random) -> str:
    """Change bytes; what was done. Most of these change a weight a little, which is allowed."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 8, 100])):
        at = rng.randrange(rng.choice([8, 400, len(data)]))
        data[at] = rng.randrange(256)
    path.write_bytes(data)
    return path.name


@pytest.mark.parametrize("part", range(PARTS))
def test_broken_bundles_are_one_line_or_talk(whole: Path, tmp_path: Path, part: int) -> None:
    problems = []
    for number in range(part, BROKEN, PARTS):
        rng = random.Random(number)
        bundle = Path(shutil.copytree(whole, tmp_path / str(number)))
        if rng.random() < 0.15:
            done = break_weights(bundle / rng.choice(WEIGHTS), rng)
        else:
            done = break_json(bundle / rng.choice(FILES), rng)
        began = time.process_time()
        problem = ""
        try:
            talk(bundle)
        except TresseError as error:
            problem = str(error)
        except Exception as error:
            pytest.fail(f"number {number}, {done}: {error!r}")
        assert problem.isprintable(), done
        assert time.process_time() - began < 10, done
        problems.append(problem)
        shutil.rmtree(bundle)
    assert sum(map(bool, problems)) > len(problems) / 4  # a sensible share was broken indeed


@pytest.mark.parametrize("damage", ["languages", "weights", "rope", "nan"])
def test_the_command_line_says_it_in_one_line(
    bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: str
) -> None:
    weights = load_file(bundle / "slm" / "model.safetensors")
    if damage == "languages":
        change(bundle / "bundle.json", lambda values: values.update(languages=None, name="two\nlines"))
    elif damage == "rope":
        change(bundle / "slm" / "config.json", lambda values: values["rope_parameters"].update(rope_type="none\nsuch"))
    else:
        name = sorted(weights)[0]
        weights[name] = weights[name] * float("nan")
        save_file(dict(list(weights.items())[2:]) if damage == "weights" else weights, bundle / WEIGHTS[2])
    prompt = BRAID / "examples" / "en-1.flac"
    with pytest.raises(SystemExit) as stop:
        main(["continue", str(prompt), "--to", "en", "--out", str(tmp_path / "o.wav"), "--bundle", str(bundle)])
    assert stop.value.code == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1, captured.err
    assert not (tmp_path / "o.wav").exists()


@pytest.mark.parametrize("name", ["braid", "natural"])
def test_the_bundles_that_come_with_it_are_whole(name: str) -> None:
    info = read_info(BUNDLES / name)
    assert info == json.loads((BUNDLES / name / "bundle.json").read_text(encoding="utf-8"))
    bundle = Bundle.load(None if name == "natural" else name, "cpu")
    assert bundle.info["name"] == name
    assert len(bundle.examples) == 6
    assert np.isfinite(bundle.max_prompt_seconds)
