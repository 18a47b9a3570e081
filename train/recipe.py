"""A recipe: everything that makes a bundle, as one validated YAML file, and the stages that carry it out.

    stories -> units -> corpus -> vocabulary -> slm -> vocoder -> bundle -> evaluation

Every stage writes into its own folder of the output and leaves a marker with a fingerprint of its settings and of the
stages before it. A run that was interrupted goes on with the first stage without a marker; every stage that takes
long resumes inside as well.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from slm.errors import TresseError
from slm.model import ModelConfig
from slm.units.conv import ConvEncoderConfig
from train.checkpoint import atomic_path, write_json
from train.corpus import CorpusPreparation
from train.slm import SLMTraining
from train.units import UnitTraining
from train.vocoder import VocoderTraining

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class StoriesSettings:
    """How many stories of each split."""

    train: int = 8000
    validation: int = 125


@dataclass(frozen=True)
class UnitSettings:
    """The unit encoder and its training."""

    encoder: ConvEncoderConfig = field(default_factory=ConvEncoderConfig)
    training: UnitTraining = field(default_factory=UnitTraining)


@dataclass(frozen=True)
class VocabularySettings:
    """Tokens of the unit vocabulary; null turns byte-pair encoding off."""

    size: int | None = 2048


@dataclass(frozen=True)
class VocoderSize:
    """Dimensions of the vocoder; what they mean: vocoder.VocoderConfig."""

    dim: int = 256
    intermediate_dim: int = 640
    dilations: list[int] = field(default_factory=lambda: [1, 1, 1, 2, 2, 2])
    lookahead: int = 4


@dataclass(frozen=True)
class VocoderSettings:
    """The vocoder, its training, and how many sentences a language and speaker it learns from."""

    sentences_per_language: int = 500
    size: VocoderSize = field(default_factory=VocoderSize)
    training: VocoderTraining = field(default_factory=lambda: VocoderTraining(steps=10_000))


@dataclass(frozen=True)
class BundleSettings:
    """What the bundle offers beside its parts: prompts shipped per language, longest prompt in s."""

    examples_per_language: int = 3
    max_prompt_seconds: float = 60.0


@dataclass(frozen=True)
class EvaluationSettings:
    """Cloze items of each kind that the finished bundle is measured with."""

    items: int = 300


@dataclass(frozen=True)
class Recipe:
    """See recipes/tiny.yaml. Languages, seed and the settings of every stage."""

    name: str
    languages: tuple[str, ...]
    seed: int = 0
    stories: StoriesSettings = field(default_factory=StoriesSettings)
    units: UnitSettings = field(default_factory=UnitSettings)
    corpus: CorpusPreparation = field(default_factory=CorpusPreparation)
    vocabulary: VocabularySettings = field(default_factory=VocabularySettings)
    model: ModelConfig = field(default_factory=ModelConfig)
    slm: SLMTraining = field(default_factory=SLMTraining)
    vocoder: VocoderSettings = field(default_factory=VocoderSettings)
    bundle: BundleSettings = field(default_factory=BundleSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    @classmethod
    def load(cls, name: str, overrides: Mapping[str, str] | None = None) -> Recipe:
        """A recipe by name (recipes/NAME.yaml) or path; overrides: dotted key -> YAML value.

        Raises TresseError for an unknown recipe, an unknown key (naming the nearest known one) or a wrong value.
        """
        path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
        if not path.exists():
            known = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.yaml")))
            raise TresseError(f"there is no recipe {name}: choose one of {known}, or give a .yaml file")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
            for key, text in (overrides or {}).items():
                place = values
                *parents, last = key.split(".")
                for parent in parents:
                    place = place.setdefault(parent, {})
                place[last] = yaml.safe_load(text)
        except (yaml.YAMLError, AttributeError, TypeError) as error:
            raise TresseError(f"cannot read the recipe {path}: {str(error).splitlines()[0]}") from error
        return parse(cls, values, str(path))


def parse(kind: type, values: Any, where: str) -> Any:
    """A mapping as a (nested) dataclass. Unknown keys are refused, naming the nearest known one; types are checked."""
    from pydantic import TypeAdapter, ValidationError

    _check_keys(kind, values, where)
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise TresseError(f"{where}: {place}: {first['msg'][0].lower()}{first['msg'][1:]}") from error


def _check_keys(kind: type, values: Any, where: str, prefix: str = "") -> None:
    import typing

    if not isinstance(values, Mapping):
        raise TresseError(f"{where}: {prefix.rstrip('.') or 'the file'} must hold keys and values")
    hints = typing.get_type_hints(kind)
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.4) or sorted(hints)
            raise TresseError(f"{where}: unknown key {prefix}{key}: did you mean {prefix}{near[0]}?")
        if dataclasses.is_dataclass(hints[key]) and isinstance(hints[key], type):
            _check_keys(hints[key], value, where, f"{prefix}{key}.")


@dataclass(frozen=True)
class Stage:
    """A step of a recipe: its name, the parts of the recipe it depends on, and what it does with the output folder."""

    name: str
    settings: tuple[str, ...]
    run: Callable[[Recipe, Path, int], None]


def run_recipe(recipe: Recipe, out: Path, until: str | None = None, workers: int = 2) -> None:
    """Carry out the stages of a recipe in `out`, up to and including `until`; goes on where an earlier run stopped.

    Raises TresseError where `out` holds the work of another recipe.
    """
    from train.stages import STAGES

    names = [stage.name for stage in STAGES]
    if until is not None and until not in names:
        raise TresseError(f"there is no stage {until}: choose one of {', '.join(names)}")
    fingerprint = ""
    for stage in STAGES:
        settings = {key: _plain(getattr(recipe, key)) for key in ("languages", "seed", *stage.settings)}
        digest = hashlib.sha256(json.dumps([fingerprint, settings], sort_keys=True).encode())
        fingerprint = digest.hexdigest()[:16]
        marker = out / "done" / f"{stage.name}.json"
        if marker.exists():
            if json.loads(marker.read_text(encoding="utf-8"))["fingerprint"] != fingerprint:
                raise TresseError(
                    f"{out} holds the stage {stage.name} of another recipe: choose another --out, or delete {marker}"
                )
        else:
            with _Stopwatch(out / "done" / f".{stage.name}.seconds") as watch:
                stage.run(recipe, out, workers)
                write_json(marker, {"fingerprint": fingerprint, "seconds": watch.seconds, "settings": settings})
        if stage.name == until:
            return


class _Stopwatch:
    """s of work on a stage over all interrupted runs: noted in a file every few seconds, removed when the work is done."""

    def __init__(self, path: Path, every: float = 5.0) -> None:
        self.path, self.every = path, every
        self._before = float(path.read_text(encoding="utf-8")) if path.exists() else 0.0
        self._began = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._note, daemon=True)

    @property
    def seconds(self) -> float:
        """s so far."""
        return round(self._before + time.monotonic() - self._began, 1)

    def _note(self) -> None:
        while not self._stopped.wait(self.every):
            with atomic_path(self.path) as temporary:
                temporary.write_text(str(self.seconds), encoding="utf-8")

    def __enter__(self) -> _Stopwatch:
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        if kind is None:
            self.path.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
