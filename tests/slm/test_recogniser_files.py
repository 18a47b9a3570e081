"""A recogniser's folder is checked before faster-whisper opens it: each broken one is one line."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slm import transcribe
from slm.errors import TresseError
from slm.recogniser_files import check_folder, check_recogniser
from slm.recognisers import open_recogniser
from tests.bundles import BRAID

JSON = ("config.json", "tokenizer.json", "preprocessor_config.json", "vocabulary.json")
ROWS = 510


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with a recogniser to break; what opens one is not to be reached."""

    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("it was opened")

    monkeypatch.setattr(transcribe, "_Whisper", opened)
    shutil.copytree(BRAID / "asr", tmp_path / "bundle" / "asr")
    return tmp_path / "bundle"


def refused(bundle: Path) -> str:
    """The one line that such a bundle's recogniser is refused with, before it is opened."""
    with pytest.raises(TresseError) as caught:
        open_recogniser(bundle, ["en", "fr"])
    assert str(caught.value).isprintable()
    assert str(bundle) in str(caught.value)
    return str(caught.value)


def change(path: Path, edit: Callable[[Any], Any]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(edit(values) or values), encoding="utf-8")


def test_a_sound_one_is_opened(bundle: Path) -> None:
    with pytest.raises(TresseError, match="it was opened"):
        open_recogniser(bundle, ["en", "fr"])
    (bundle / "asr" / "README.md").write_text("a Whisper")
    check_folder(bundle / "asr")


@pytest.mark.parametrize("name", ["evil.py", "model.pt", ".hidden", "vocabulary.json.bak", "two\nlines", "shared.so"])
def test_no_other_file_lies_there(bundle: Path, name: str) -> None:
    (bundle / "asr" / name).write_text("import os")
    assert "no recogniser needs" in refused(bundle)


@pytest.mark.parametrize("name", ["more", "README.md"])
def test_no_folder_lies_there(bundle: Path, name: str) -> None:
    (bundle / "asr" / name).mkdir()
    assert "no recogniser needs" in refused(bundle)


@pytest.mark.parametrize("name", ["model.bin", *JSON])
@pytest.mark.parametrize("absolute", [True, False])
def test_no_link_leads_out_of_the_bundle(bundle: Path, tmp_path: Path, name: str, absolute: bool) -> None:
    path, outside = bundle / "asr" / name, tmp_path / "secret"
    path.rename(outside)
    path.symlink_to(outside if absolute else Path("../../secret"))
    assert "leads out of the bundle" in refused(bundle)


def test_links_of_the_hubs_cache_lead_to_its_blobs(tmp_path: Path) -> None:
    cache = tmp_path / "models--somebody--bundle"
    asr = cache / "snapshots" / "0123" / "asr"
    asr.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for path in (BRAID / "asr").iterdir():
        shutil.copy(path, cache / "blobs" / path.name)
        (asr / path.name).symlink_to(f"../../../blobs/{path.name}")
    check_folder(asr)
    check_recogniser(asr)
    (cache / "blobs").rename(tmp_path / "elsewhere")
    (cache / "blobs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TresseError, match="leads out"):
        check_folder(asr)


@pytest.mark.parametrize("name", ["model.bin", "config.json", "tokenizer.json"])
def test_nothing_is_fetched_that_is_missing(bundle: Path, name: str) -> None:
    (bundle / "asr" / name).unlink()
    assert ("has no recogniser" if name == "model.bin" else f"{name} is missing") in refused(bundle)


@pytest.mark.parametrize("name", ["model.bin", *JSON])
def test_what_never_ends_is_not_read(bundle: Path, name: str) -> None:
    (bundle / "asr" / name).unlink()
    os.mkfifo(bundle / "asr" / name)
    refused(bundle)


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize("text", ["", "{", "7", "null", "[" * 100_000, '{"a": NaN}', "\x00" * 9, '[{"a": 1}]'])
def test_json_files_that_hold_something_else(bundle: Path, name: str, text: str) -> None:
    (bundle / "asr" / name).write_text(text, encoding="utf-8")
    refused(bundle)


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("config.json", lambda values: values.update(suppress_ids=[ROWS])),
        ("config.json", lambda values: values.update(suppress_ids_begin=[10**9])),
        ("config.json", lambda values: values.update(lang_ids=[-2])),
        ("config.json", lambda values: values.update(lang_ids="502")),
        ("config.json", lambda values: values.update(alignment_heads=[[1]])),
        ("config.json", lambda values: values.update(alignment_heads=[[1, 10**9]])),
        ("tokenizer.json", lambda values: values["added_tokens"][0].update(id=ROWS)),
        ("tokenizer.json", lambda values: values["added_tokens"][0].update(id=-5)),
        ("tokenizer.json", lambda values: values["model"]["vocab"].update(more=10**6)),
        ("tokenizer.json", lambda values: values["model"].update(vocab=["a"])),
        ("vocabulary.json", lambda values: [*values, "more"]),
        ("vocabulary.json", lambda values: [*values[:-1], 7]),
        ("preprocessor_config.json", lambda values: values.update(feature_size=10**9)),
        ("preprocessor_config.json", lambda values: values.update(n_fft=10**9)),
        ("preprocessor_config.json", lambda values: values.update(chunk_length=10**9)),
        ("preprocessor_config.json", lambda values: values.update(hop_length=0)),
        ("preprocessor_config.json", lambda values: values.update(hop_length="../x")),
        ("preprocessor_config.json", lambda values: values.update(sampling_rate=1)),
    ],
)
def test_a_field_that_cannot_be_true(bundle: Path, name: str, edit: Callable[[Any], Any]) -> None:
    change(bundle / "asr" / name, edit)
    refused(bundle)


# ---- model.bin -------------------------------------------------------------------------------------------------------


def text(name: str) -> bytes:
    return struct.pack("<H", len(name) + 1) + name.encode() + b"\0"


def model(
    *weights: tuple[str, tuple[int, ...], int, int, int],
    version: int = 6,
    spec: str = "WhisperSpec",
    count: int | None = None,
    aliases: int = 0,
    more: bytes = b"",
) -> bytes:
    """A model.bin; a weight is its name, shape, type, length that is said, length that it has."""
    parts = [struct.pack("<I", version), text(spec), struct.pack("<I", 3)]
    parts.append(struct.pack("<I", len(weights) if count is None else count))
    for name, shape, kind, said, real in weights:
        parts += [text(name), struct.pack(f"<B{len(shape)}IBI", len(shape), *shape, kind, said), b"x" * real]
    return b"".join([*parts, struct.pack("<I", aliases), more])


TOKENS = ("decoder/embeddings/weight", (ROWS, 4), 1, 4 * ROWS, 4 * ROWS)


def test_sizes_of_weights_are_those_of_the_file(bundle: Path) -> None:
    path = bundle / "asr" / "model.bin"
    path.write_bytes(model(TOKENS, ("a", (), 0, 4, 4), ("b", (2, 3), 4, 12, 12), aliases=1, more=text("c") + text("a")))
    check_recogniser(bundle / "asr")
    whole = path.read_bytes()
    for length in [*range(90), len(whole) - 1, len(whole) - 3]:
        path.write_bytes(whole[:length])
        refused(bundle)


@pytest.mark.parametrize(
    "data",
    [
        model(TOKENS, version=3),
        model(TOKENS, version=2**32 - 1),
        model(TOKENS, spec="TransformerSpec"),
        model(TOKENS, count=2**32 - 1),
        model(TOKENS, count=2),
        model(TOKENS, aliases=2**32 - 1),
        model(TOKENS, aliases=1),
        model(TOKENS, more=b"x"),
        model(),
        model(("decoder/embeddings/weight", (ROWS - 1, 4), 1, 4 * ROWS - 4, 4 * ROWS - 4)),
        model(TOKENS, ("a", (2**32 - 1, 2**32 - 1), 0, 4, 4)),
        model(TOKENS, ("a", (2**31,), 1, 2**31, 9)),
        model(TOKENS, ("a", (3,), 0, 11, 11)),
        model(TOKENS, ("a", (3,), 9, 12, 12)),
        model(TOKENS, ("a", (1,) * 200, 1, 1, 1)),
        model(("decoder/embeddings/weight", (2**20, 0), 1, 0, 0)),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_true(bundle: Path, data: bytes) -> None:
    (bundle / "asr" / "model.bin").write_bytes(data)
    refused(bundle)


def test_broken_recognisers_are_one_line_or_work(tmp_path: Path) -> None:
    """The whole way, faster-whisper included: what the check lets through does no harm."""
    for number in range(12):
        rng, folder = random.Random(number), tmp_path / str(number) / "asr"
        shutil.copytree(BRAID / "asr", folder)
        path = folder / rng.choice(JSON)
        data = bytearray(path.read_bytes())
        for _ in range(rng.choice([1, 3, 20])):
            data[rng.randrange(len(data))] = rng.choice(b'0199"[]{},:-e x\x00\xff')
        path.write_bytes(data)
        problem = ""
        try:
            open_recogniser(folder.parent, ["en", "fr"], threads=1)
        except TresseError as error:
            problem = str(error)
        assert problem.isprintable()
