"""A recogniser's folder (`asr/` of a bundle, or any faster-whisper model), checked before faster-whisper opens it.

CTranslate2 reads model.bin in C++ and believes what it finds there, and the ids of tokens index its tables. So the sizes in
model.bin must be those of the file, and every id must be one that the model has. Nothing is fetched: the tokenizer must be
there. Reads the JSON files whole, and of model.bin only what stands between the weights.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from pydantic import Field, StrictStr

from slm.errors import TresseError
from slm.schema import Part, parse, read_json, regular, whole

NEEDED = ("config.json", "model.bin", "tokenizer.json")
VOCABULARIES = ("vocabulary.json", "vocabulary.txt")
FILES = {*NEEDED, *VOCABULARIES, "preprocessor_config.json", "README.md", "LICENSE"}
FORMAT = range(4, 7)
"""Versions of model.bin: since 4 every weight names its type."""
SIZES = {0: 4, 1: 1, 2: 2, 3: 4, 4: 2, 5: 2}
"""Bytes of a number, by the type's number in model.bin: float32, int8, int16, int32, float16, bfloat16."""
MOST_WEIGHTS, MOST_DIMENSIONS = 20_000, 4
EMBEDDINGS = "decoder/embeddings"
"""Whose weight has a row for every token."""
Id = whole(-1, 2**20)


@dataclass(frozen=True)
class Weight:
    """A weight in model.bin. kind: the number of its type; start, length: where its bytes lie."""

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    length: int


class _Config(Part):
    """config.json."""

    suppress_ids: list[Id] | None = None  # type: ignore[valid-type]
    suppress_ids_begin: list[Id] | None = None  # type: ignore[valid-type]
    lang_ids: list[Id] | None = None  # type: ignore[valid-type]
    alignment_heads: list[Annotated[list[whole(0, 1000)], Field(min_length=2, max_length=2)]] | None = None  # type: ignore[valid-type]


class _Features(Part):
    """preprocessor_config.json: how a spectrogram is made. sampling_rate in Hz, chunk_length in s."""

    feature_size: whole(1, 512) = 80  # type: ignore[valid-type]
    sampling_rate: whole(16000, 16000) = 16000  # type: ignore[valid-type]
    hop_length: whole(16, 4000) = 160  # type: ignore[valid-type]
    chunk_length: whole(1, 60) = 30  # type: ignore[valid-type]
    n_fft: whole(16, 8192) = 400  # type: ignore[valid-type]


class _AddedToken(Part):
    id: Id  # type: ignore[valid-type]


class _TokenizerModel(Part):
    vocab: dict[str, Id]  # type: ignore[valid-type]


class _Tokenizer(Part):
    """tokenizer.json, as far as it names tokens."""

    model: _TokenizerModel
    added_tokens: list[_AddedToken] = []  # noqa: RUF012


def check_recogniser(folder: Path) -> None:
    """Raises TresseError, one line, where the files of a recogniser cannot be true."""
    for name in NEEDED:
        if not (folder / name).is_file():
            raise TresseError(f"there is no faster-whisper model in {folder} ({name} is missing): restore its files")
    try:
        rows = _rows(folder / "model.bin")
    except (OSError, ValueError, struct.error) as error:
        raise TresseError(f"{folder / 'model.bin'} is damaged ({error}): restore the recogniser's files") from error
    ids = [*_ids(folder), *(len(words) - 1 for words in _vocabularies(folder))]
    if max(ids) >= rows:
        raise TresseError(f"the files of the recogniser in {folder} do not fit together: restore them")
    features = folder / "preprocessor_config.json"
    if features.exists():
        parse(_Features, read_json(features), features)


def check_folder(folder: Path) -> None:
    """Raises TresseError where a bundle's asr/ holds another file, a folder, or a link that leads out of the bundle. Links
    of the hub's cache lead to the blobs beside it."""
    for path in sorted(folder.iterdir()):
        if path.name not in FILES or not path.is_file():
            raise TresseError(f"no recogniser needs {path}: remove it from the bundle")
    check_links(folder)


def check_links(folder: Path) -> None:
    """Raises TresseError where a link in a folder of a bundle, such as asr/, leads out of the bundle."""
    bundle = folder.parent.resolve()
    roots = [bundle]
    if bundle.parent.name == "snapshots" and not (bundle.parents[1] / "blobs").is_symlink():
        roots.append(bundle.parents[1] / "blobs")
    for path in sorted(folder.rglob("*")):
        if not any(path.resolve().is_relative_to(root) for root in roots):
            raise TresseError(f"{path} is a link that leads out of the bundle: put the file in its place")


def _ids(folder: Path) -> list[int]:
    """All ids of tokens that the JSON files name."""
    path = folder / "config.json"
    config: _Config = parse(_Config, read_json(path), path)
    path = folder / "tokenizer.json"
    tokenizer: _Tokenizer = parse(_Tokenizer, read_json(path), path)
    named = [config.suppress_ids or [], config.suppress_ids_begin or [], config.lang_ids or []]
    named += [[token.id for token in tokenizer.added_tokens], list(tokenizer.model.vocab.values())]
    return [0, *(number for numbers in named for number in numbers)]


def _vocabularies(folder: Path) -> list[list[str]]:
    """The lists of words that lie there."""
    lists: list[list[str]] = []
    if (path := folder / VOCABULARIES[0]).exists():
        lists.append(parse(list[StrictStr], read_json(path), path))
    if (path := folder / VOCABULARIES[1]).exists():
        try:
            lists.append(regular(path).read_text(encoding="utf-8").splitlines())
        except (OSError, ValueError) as error:
            raise TresseError(f"cannot read {path}: restore the recogniser's files") from error
    return lists


def _rows(path: Path) -> int:
    """How many tokens a model knows. Raises what `weights_in` does."""
    rows = [weight.shape[0] for weight in weights_in(path) if weight.name.startswith(f"{EMBEDDINGS}/weight")
            and len(weight.shape) == 2]  # fmt: skip
    if not rows or rows[-1] == 0:
        raise ValueError("it has no tokens")
    return rows[-1]


def weights_in(path: Path) -> list[Weight]:
    """What a Whisper's model.bin holds. Raises ValueError, struct.error where the sizes in it are not those of the file,
    OSError where it cannot be read."""
    size = regular(path).stat().st_size
    weights: list[Weight] = []
    with path.open("rb") as file:
        (version,) = _numbers(file, "<I")
        if version not in FORMAT:
            raise ValueError(f"it is of version {version}")
        if _text(file) != "WhisperSpec":
            raise ValueError("it is no Whisper")
        _, count = _numbers(file, "<II")
        if count > MOST_WEIGHTS:
            raise ValueError(f"{count} weights are too many")
        for _ in range(count):
            name = _text(file)
            (rank,) = _numbers(file, "<B")
            if rank > MOST_DIMENSIONS:
                raise ValueError(f"{name} has {rank} dimensions")
            shape = _numbers(file, f"<{rank}I")
            kind, length = _numbers(file, "<BI")
            if kind not in SIZES or length != math.prod(shape) * SIZES[kind] or file.tell() + length > size:
                raise ValueError(f"{name} has another size than it says")
            weights.append(Weight(name, shape, kind, file.tell(), length))
            file.seek(length, 1)
        (count,) = _numbers(file, "<I")
        if count > MOST_WEIGHTS:
            raise ValueError(f"{count} names are too many")
        for _ in range(2 * count):
            _text(file)
        if file.tell() != size:
            raise ValueError("there is more in it than it says")
    return weights


def _numbers(file: BinaryIO, form: str) -> tuple[Any, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _text(file: BinaryIO) -> str:
    (length,) = _numbers(file, "<H")
    data = file.read(length)
    if len(data) < length or not data.endswith(b"\0"):
        raise ValueError("a name is cut")
    return data[:-1].decode()
