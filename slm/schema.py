"""What the JSON files of a bundle may say: types, bounds, finite numbers. Checked before anything is built from them.

A bundle may come from anybody: a size of 10^9 in one of its files must end as one line, not as an hour of allocating. No
field names a file outside of the bundle: names are names, without separators of folders. `vocoder/config.json` is checked
by `vocoder.config`, which knows nothing of this module.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from slm.errors import TresseError, one_line

FORMAT = 1
"""Of bundle.json."""
MAX_JSON_BYTES = 16_000_000
MAX_INTEGER = 2**27
"""The largest whole number that a model's config.json may hold: vocabularies and contexts are smaller."""
MAX_LAYERS = 512
LAYERS = re.compile(r"(num|n)_(hidden_|encoder_|decoder_|residual_)?layers?")
OWN_CODE = ("auto_map", "custom_pipelines")
"""Keys of a model's config.json that name code to run."""

T = TypeVar("T")


def _plain(value: Any) -> Any:
    """JSON whose numbers are finite."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number is not finite")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _plain(part)
    return value


def _distinct(values: Sequence[str]) -> Sequence[str]:
    if len(set(values)) < len(values):
        raise ValueError("each must be named once")
    return values


def whole(least: int, most: int) -> Any:
    """The type of a whole number between `least` and `most`; no number in quotes, no truth value."""
    return Annotated[int, Field(strict=True, ge=least, le=most)]


Language = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=40)]
Languages = Annotated[list[Language], Field(min_length=1, max_length=200), AfterValidator(_distinct)]
Name = Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f\x7f]+$", max_length=200)]
"""Of a bundle or a recipe. Never a path."""
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_. -]*$", max_length=200)]
"""Of a file beside the one that names it."""
Source = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?$", max_length=200)]
"""A folder beside the file that names it, or a hub id."""
Layer = whole(1, MAX_LAYERS)
Text = Annotated[str, Field(max_length=2000)]


class Part(BaseModel):
    """A JSON object. Keys that are not known stay."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


Seconds = Annotated[float, Field(ge=0, le=1e10, strict=True)]


class TextOrigin(Part):
    """Where texts come from, and under which licence."""

    source: Text
    licence: Text


class TextSource(Part):
    """Texts that a model was trained on. words: by language; credits: who is to be named."""

    origins: list[TextOrigin]
    words: dict[str, whole(0, 10**13)]  # type: ignore[valid-type]
    credits: list[Text] = []


class Provenance(Part):
    """How a bundle was made: what `train` reads of it. voices: that it was trained on; voices_file: their file's name.
    training_seconds: by stage."""

    recipe: Name | None = None
    seed: whole(0, 2**63) = 0  # type: ignore[valid-type]
    stories: whole(0, 10**9) = 0  # type: ignore[valid-type]
    voices: list[Name] = []
    voices_file: Name | None = None
    commit: Name | None = None
    data: Name | None = None
    made: Name | None = None
    bundle: Name | None = None
    model: Text | None = None
    training_seconds: dict[Name, Seconds] = {}
    texts: dict[Name, TextSource] = {}
    warm_start: Provenance | None = None


class Metrics(Part):
    """What a bundle measured: the part of it that a bundle with the same units takes over."""

    unit_edit_rate: dict[Name, Annotated[float, Field(ge=0, le=1000, strict=True)] | None] = {}


UnitShares = dict[Name, Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2, max_length=2**20)]]


class BundleInfo(Part):
    """bundle.json. Rates in Hz, max_prompt_seconds in s. unit_shares: how often each unit occurs in speech, by language."""

    format: whole(1, FORMAT)  # type: ignore[valid-type]
    languages: Languages
    max_prompt_seconds: Annotated[float, Field(ge=1, le=600, strict=True)]
    name: Name = "bundle"
    sample_rate: Annotated[float, Field(ge=1000, le=384_000, strict=True)] | None = None
    frame_rate: Annotated[float, Field(ge=1, le=400, strict=True)] | None = None
    candidates: whole(1, 64) = 1  # type: ignore[valid-type]
    unit_shares: UnitShares | None = None
    provenance: Provenance = Provenance()
    metrics: Metrics = Metrics()


class ExampleEntry(Part):
    """A prompt in examples/examples.json."""

    file: FileName
    language: Language
    text: Text


class UnitsKind(Part):
    """units/config.json of any encoder: what can be said of it before it is loaded."""

    type: Text = ""
    codebook_size: whole(2, 2**20) | None = None  # type: ignore[valid-type]
    collapse: Annotated[bool, Field(strict=True)] = True


class PretrainedUnits(Part):
    """units/config.json of an encoder that transformers loads."""

    path: Source
    collapse: Annotated[bool, Field(strict=True)] = True


class HubertUnits(PretrainedUnits):
    """The same, with the layer whose features are clustered."""

    layer: Layer  # type: ignore[valid-type]


class TokenizerSettings(Part):
    """slm/tokenizer_config.json."""

    languages: Languages
    tags: Annotated[bool, Field(strict=True)] = True
    codebook_size: whole(2, 0x9FFF - 0x4E00 + 1)  # type: ignore[valid-type]


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises TresseError where it is no file, too large, or no JSON (NaN, nested too deep)."""
    try:
        with regular(path).open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
        if len(data) > MAX_JSON_BYTES:
            raise ValueError(f"it is larger than {MAX_JSON_BYTES // 1_000_000} MB")
        return _plain(from_json(data, allow_inf_nan=False))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise TresseError(f"cannot read {path} ({reason}): restore the bundle's files") from error


def regular(path: Path) -> Path:
    """The path of a file that ends: reading a pipe or a device would not. Raises OSError for anything else."""
    if not path.is_file():
        raise FileNotFoundError("there is no such file")
    return path


def parse(kind: Any, values: Any, path: Path) -> Any:
    """`values`, read from `path`, as this type. Raises TresseError that names the first field that is wrong."""
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise TresseError(f"{path} is damaged ({first_problem(error)}): restore the bundle's files") from error


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong, in one line: the field, and what it should be."""
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in problem["loc"])
    return one_line(f"{field}: {problem['msg']}" if field else problem["msg"])[:300]


def read_info(folder: Path) -> dict[str, Any]:
    """bundle.json of a bundle, as it is there. Raises TresseError where it is missing, damaged or of a newer format."""
    path = folder / "bundle.json"
    if not path.is_file():
        raise TresseError(f"{folder} is not a bundle (bundle.json is missing or damaged): restore its files")
    values = read_json(path)
    newer = values.get("format") if isinstance(values, dict) else None
    if isinstance(newer, int) and newer > FORMAT:
        raise TresseError(f"{folder} has bundle format {newer}: upgrade tresse to read it")
    parse(BundleInfo, values, path)
    return dict(values)


def read_examples(folder: Path) -> list[ExampleEntry]:
    """examples.json of the folder examples/; none where there is no such file. Raises TresseError where it is damaged, or
    names a file that is not beside it."""
    path = folder / "examples.json"
    if not path.exists():
        return []
    entries = parse(Annotated[list[ExampleEntry], Field(max_length=200)], read_json(path), path)
    for entry in entries:
        if not (folder / entry.file).is_file():
            raise TresseError(f"{path} names {entry.file}, which is not there: restore the bundle's files")
    return list(entries)


def read_model_config(folder: Path) -> dict[str, Any]:
    """config.json of a transformers model. Raises TresseError where it is damaged, asks for code of its own, or names sizes
    that no model has."""
    path = folder / "config.json"
    values = parse(dict[str, Any], read_json(path), path)
    for key, value in _numbers(values):
        most = MAX_LAYERS if LAYERS.fullmatch(key) else MAX_INTEGER
        if isinstance(value, int) and not -1 <= value <= most:
            raise TresseError(
                f"{path} is damaged ({key[:100]}: {str(value)[:40]} is too much): restore the bundle's files"
            )
        if LAYERS.fullmatch(key) and value < 1:
            raise TresseError(f"{path} is damaged ({key[:100]}: a model has layers): restore the bundle's files")
    if asked := [key for key in OWN_CODE if values.get(key)]:
        raise TresseError(f"the model in {folder} wants to run code of its own ({asked[0]}): it is not loaded")
    return dict(values)


def _numbers(value: Any, key: str = "") -> list[tuple[str, float]]:
    """All numbers in a JSON value with the keys they stand under."""
    if isinstance(value, dict):
        return [pair for name, part in value.items() for pair in _numbers(part, name)]
    if isinstance(value, list):
        return [pair for part in value for pair in _numbers(part, key)]
    return [(key, value)] if isinstance(value, int | float) else []
