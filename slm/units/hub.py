"""Where a transformers model of a unit encoder lies: a folder beside the encoder's config.json, any folder, or the hub.

A bundle must hold all it needs, so saving an encoder copies a local model into the bundle; a hub id stays a hub id.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slm import weights
from slm.errors import TresseError
from slm.schema import PretrainedUnits, parse, read_json

MODEL = "model"
"""Name of the folder a local model is copied to, beside config.json."""


def is_path(name: str) -> bool:
    """Whether a name can only be a file's or a folder's: a hub id is `name` or `owner/name`."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def locate(path: str, folder: Path) -> str:
    """`path` of a config.json in `folder` -> the folder beside it, or a hub id. Raises TresseError where a folder of the
    working directory has the name of the hub id, and would be read instead."""
    if (folder / path).is_dir():
        return str(folder / path)
    if Path(path).exists():
        raise TresseError(
            f"{folder} asks for the hub's {path}, and a folder here has this name: work in another folder"
        )
    return path


def load_pretrained(model_class: Any, source: str, **options: Any) -> Any:
    """A transformers model of a folder or hub id, from safetensors only. Raises TresseError where there is none."""
    try:
        return weights.load_pretrained(model_class, source, **options)
    except TresseError:
        raise
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


def read_config(folder: Path, kind: type[PretrainedUnits] = PretrainedUnits) -> Any:
    """What `save_config` wrote, as `kind`. Raises TresseError where it is missing or damaged."""
    return parse(kind, read_json(folder / "config.json"), folder / "config.json")
