"""Where a transformers model of a unit encoder lies: a folder beside the encoder's config.json, any folder, or the hub.

A bundle must hold all it needs, so saving an encoder copies a local model into the bundle; a hub id stays a hub id.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slm.errors import TresseError

MODEL = "model"
"""Name of the folder a local model is copied to, beside config.json."""


def is_path(name: str) -> bool:
    """Whether a name can only be a file's or a folder's: a hub id is `name` or `owner/name`."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def locate(path: str, folder: Path | None = None) -> str:
    """`path` of a config.json in `folder` -> an existing folder, or a hub id."""
    if folder is not None and (folder / path).is_dir():
        return str(folder / path)
    return path


def load_pretrained(model_class: Any, source: str, **options: Any) -> Any:
    """A transformers model of a folder or hub id, from safetensors only. Raises TresseError where there is none."""
    try:
        return model_class.from_pretrained(source, use_safetensors=True, trust_remote_code=False, **options)
    except Exception as error:  # network, authorisation, damaged or foreign files, weights that are only pickled
        raise TresseError(
            f"cannot load {source} as a {model_class.__name__}: give a folder or hub id with its config.json and "
            "model.safetensors"
        ) from error


def save_config(folder: Path, values: Mapping[str, Any], source: str) -> None:
    """Write config.json with "path": the hub id, or the copy of the model's folder made beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = source
    if Path(source).is_dir():
        path, copy = MODEL, folder / MODEL
        if copy.resolve() != Path(source).resolve():
            shutil.rmtree(copy, ignore_errors=True)
            copy.mkdir()
            for file in sorted(Path(source).iterdir()):
                if file.suffix in (".json", ".safetensors"):
                    shutil.copyfile(file, copy / file.name)
    text = json.dumps({**values, "path": path}, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """What `save_config` wrote. Raises TresseError where it is missing or damaged."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(values["path"], str):
            raise TypeError("path must be a string")
        return values
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TresseError(
            f"cannot read {folder / 'config.json'}: it needs a type, and as path a folder or hub id"
        ) from error
