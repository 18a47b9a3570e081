"""A recipe: everything that makes a bundle, as one validated YAML file, and the stages that carry it out.

    stories -> units -> corpus -> vocabulary -> slm -> vocoder -> bundle -> asr -> evaluation

or, with `ablation`, stories -> units -> corpus -> vocabulary -> ablation.

Every stage writes into its own folder of the output and leaves a marker with a fingerprint of its settings and of the
stages that it needs. A run that was interrupted goes on with the first stage without a marker; every stage that takes
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
from typing import Annotated, Any

import yaml
from pydantic import Field

from slm.errors import TresseError
from slm.model import ModelConfig, part_folders, unit_model
from slm.units import UnitVocabulary
from slm.units.conv import ConvEncoderConfig
from train.asr.training import ASRTraining
from train.corpus.preparation import CorpusPreparation
from train.lm.schedule import SLMTraining
from train.lm.schedule import Stage as Schedule
from train.stories.grammar import Cycles
from train.tools.checkpoints import atomic_path, write_json
from train.tools.launch import is_main, under_launcher
from train.units.training import UnitTraining
from train.vocoder.settings import VocoderTraining

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class StoriesSettings:
    """How many stories of each split. file: a stories.jsonl to train on instead of generated ones. cycle: how many
    stories in a row combine the same few facts and wordings (with corpus.stories_per_voice the same number, they share a
    voice and most of their speech); values: of each role in a cycle; wordings: of each sentence."""

    train: int = 8000
    validation: int = 125
    cycle: int = 1
    values: int = 3
    wordings: int = 3
    file: str | None = None

    @property
    def cycles(self) -> Cycles:
        """How the training stories are told."""
        return Cycles(self.cycle, self.values, self.wordings)


@dataclass(frozen=True)
class Parts:
    """Parts taken from finished bundles instead of made: name of a shipped bundle, a bundle's folder, or the folder of
    the part itself. A unit encoder so taken may be of any type (conv, mimi, hubert)."""

    units: str | None = None
    vocoder: str | None = None
    asr: str | None = None

    def find(self, part: str) -> Path | None:
        """The folder of a part that is to be taken, None where it is to be made. Raises TresseError for none there."""
        source = getattr(self, part)
        if source is None:
            return None
        for folder in part_folders(source, part):
            if (folder / "config.json").exists():
                return folder
        raise TresseError(f"parts.{part}: there is no {part} in {source}: give a bundle, or the folder {part}/ of one")


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
    """The vocoder, its training, how many sentences a language and speaker it learns from, and how many other voices'
    units of each sentence it hears beside the speaker's own."""

    sentences_per_language: int = 1000
    others: int = 1
    size: VocoderSize = field(default_factory=VocoderSize)
    training: VocoderTraining = field(default_factory=lambda: VocoderTraining(steps=9000, adversarial_from=4500))


@dataclass(frozen=True)
class RecogniserSettings:
    """The recogniser of the transcripts, and how many sentences a language it learns from."""

    sentences_per_language: int = 3000
    training: ASRTraining = field(default_factory=ASRTraining)


@dataclass(frozen=True)
class BundleSettings:
    """What the bundle offers beside its parts: prompts shipped per language, longest prompt in s.

    mantissa: bits that the language model's matrices are rounded to, of bfloat16's 7 (all of them when null): with 3 they
    take two thirds of the space in an archive, or in the history of a repository.
    """

    examples_per_language: int = 3
    max_prompt_seconds: float = 60.0
    mantissa: Annotated[int, Field(ge=1, le=7)] | None = None


@dataclass(frozen=True)
class EvaluationSettings:
    """Cloze items of each kind that the finished bundle is measured with."""

    items: int = 300


@dataclass(frozen=True)
class AblationRow:
    """One line of the ablation's table: a schedule, trained with each seed."""

    name: str
    stages: tuple[Schedule, ...]
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class AblationSettings:
    """Language models compared at matched budgets: rows by key, the key of the one all others are tested against, and
    cloze items of each kind."""

    rows: dict[str, AblationRow]
    baseline: str
    items: int = 500


@dataclass(frozen=True)
class Recipe:
    """See recipes/. Languages, seed and the settings of every stage.

    asr: null makes a bundle without a recogniser. ablation: makes a comparison of language models instead of a bundle.
    """

    name: str
    languages: tuple[str, ...]
    seed: int = 0
    parts: Parts = field(default_factory=Parts)
    stories: StoriesSettings = field(default_factory=StoriesSettings)
    units: UnitSettings = field(default_factory=UnitSettings)
    corpus: CorpusPreparation = field(default_factory=CorpusPreparation)
    vocabulary: VocabularySettings = field(default_factory=VocabularySettings)
    model: ModelConfig = field(default_factory=ModelConfig)
    slm: SLMTraining = field(default_factory=SLMTraining)
    vocoder: VocoderSettings = field(default_factory=VocoderSettings)
    bundle: BundleSettings = field(default_factory=BundleSettings)
    asr: RecogniserSettings | None = None
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    ablation: AblationSettings | None = None

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

    def taken(self, stage: str) -> Path | None:
        """The folder of what a stage takes from a bundle instead of making it; None where it makes it.

        A model that is trained further brings its vocabulary. Raises TresseError for none there, and where that model
        would be given the units of another encoder than its own.
        """
        if stage != "vocabulary":
            return self.parts.find(stage)
        folder = None if self.model.warm_start is None else unit_model(self.model.warm_start)
        if folder is not None and self.parts.units is None:
            raise TresseError(
                f"model.warm_start={self.model.warm_start} knows its own units: set parts.units to it too"
            )
        return folder

    def held_vocabulary(self) -> UnitVocabulary | None:
        """The vocabulary of the model that is trained further, with the recipe's languages; None where there is none."""
        folder = self.taken("vocabulary")
        return None if folder is None else UnitVocabulary.load(folder).add_languages(self.languages)


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


def _check_keys(kind: Any, values: Any, where: str, prefix: str = "") -> None:
    """Raise TresseError for keys that a dataclass, or those inside its optional, list and mapping fields, do not have."""
    import types
    import typing

    inner = typing.get_args(kind)
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        held = [part for part in inner if dataclasses.is_dataclass(part)]
        if held and values is not None:
            _check_keys(held[0], values, where, prefix)
    elif typing.get_origin(kind) in (tuple, list) and inner and isinstance(values, list):
        for number, value in enumerate(values):
            _check_keys(inner[0], value, where, f"{prefix}{number}.")
    elif typing.get_origin(kind) is dict and isinstance(values, Mapping):
        for key, value in values.items():
            _check_keys(inner[1], value, where, f"{prefix}{key}.")
    elif dataclasses.is_dataclass(kind):
        if not isinstance(values, Mapping):
            raise TresseError(f"{where}: {prefix.rstrip('.') or 'the file'} must hold keys and values")
        hints = typing.get_type_hints(kind)
        for key, value in values.items():
            if key not in hints:
                near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.4) or sorted(hints)
                raise TresseError(f"{where}: unknown key {prefix}{key}: did you mean {prefix}{near[0]}?")
            _check_keys(hints[key], value, where, f"{prefix}{key}.")


@dataclass(frozen=True)
class Stage:
    """A step of a recipe: its name, the parts of the recipe it depends on, what it does with the output folder, and the
    stages that it needs (of those that the recipe has).

    takes: whether it can be taken from a bundle (`parts`). together: whether several processes may carry it out as one.
    """

    name: str
    settings: tuple[str, ...]
    run: Callable[[Recipe, Path, int], None]
    needs: tuple[str, ...] = ()
    takes: bool = False
    together: bool = False

    def depends_on(self, recipe: Recipe) -> dict[str, Any]:
        """The settings it depends on, beside the stages that it needs; of a part that is taken, its content."""
        settings = {key: _plain(getattr(recipe, key)) for key in ("languages", "seed")}
        folder = recipe.taken(self.name) if self.takes else None
        if folder is not None:
            return settings | {"taken": _content(folder)}
        return settings | {key: _plain(getattr(recipe, key)) for key in self.settings}


def run_recipe(recipe: Recipe, out: Path, until: str | None = None, workers: int = 2) -> None:
    """Carry out the stages of a recipe in `out`, or only `until` and what it needs; goes on where an earlier run stopped.

    Under `accelerate launch` the processes train the language model together; what comes before must be there.
    Raises TresseError where `out` holds the work of another recipe.
    """
    from train.stages import stages_of

    stages = {stage.name: stage for stage in stages_of(recipe)}
    if until is not None and until not in stages:
        raise TresseError(f"there is no stage {until}: choose one of {', '.join(stages)}")
    wanted = set(stages) if until is None else _needed(until, stages)
    fingerprints: dict[str, str] = {}
    for name, stage in stages.items():
        if name not in wanted:
            continue
        settings = stage.depends_on(recipe)
        before = [fingerprints[needed] for needed in stage.needs if needed in stages]
        digest = hashlib.sha256(json.dumps([before, settings], sort_keys=True).encode())
        fingerprints[name] = digest.hexdigest()[:16]
        marker = out / "done" / f"{name}.json"
        if marker.exists():
            if json.loads(marker.read_text(encoding="utf-8"))["fingerprint"] != fingerprints[name]:
                raise TresseError(
                    f"{out} holds the stage {name} of another recipe: choose another --out, or delete {marker}"
                )
        elif under_launcher() and not stage.together:
            raise TresseError(
                f"the stage {name} is for one process: run tresse recipe {recipe.name} --until "
                f"{'vocabulary' if 'slm' in stages else name} first, without a launcher"
            )
        elif is_main():
            with _Stopwatch(out / "done" / f".{name}.seconds") as watch:
                stage.run(recipe, out, workers)
                held = {"fingerprint": fingerprints[name], "seconds": watch.seconds, "settings": settings}
                write_json(marker, held)
        else:
            stage.run(recipe, out, workers)
        if under_launcher() and stage.together:
            return


def _needed(name: str, stages: Mapping[str, Stage]) -> set[str]:
    """A stage and, of these, all that it needs."""
    found = {name}
    for needed in stages[name].needs:
        if needed in stages:
            found |= _needed(needed, stages)
    return found


def _content(folder: Path) -> str:
    """A fingerprint of the files of a part."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(folder)).encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


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
