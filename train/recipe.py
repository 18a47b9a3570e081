"""A recipe: everything that makes a bundle, as one validated YAML file. `train.stages` carries it out."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from slm.errors import TresseError
from slm.interleave import INTERLEAVED, MIXED, MONOLINGUAL, Mode
from slm.model import ModelConfig, part_folders, unit_model
from slm.units import UnitVocabulary
from slm.units.attention import AttentionEncoderConfig
from slm.units.conv import ConvEncoderConfig
from slm.units.vocabulary import check_names
from train.asr.lexicon import LexiconTraining
from train.asr.training import ASRTraining
from train.corpus.manifest import Manifest
from train.corpus.work import CorpusPreparation
from train.lm.schedule import STORIES, SLMTraining
from train.lm.schedule import Stage as Schedule
from train.speech.voices import Voices
from train.stories.data import LANGUAGES
from train.stories.held_out import RECIPES, StoriesSettings
from train.stories.sources import Source
from train.units.distillation import DistilledUnits
from train.units.training import UnitTraining
from train.vocoder.settings import VocoderTraining


def find_part(source: str, part: str, key: str) -> Path:
    """The folder of a part in a shipped bundle, a bundle's folder, or the part's own. Raises TresseError, which begins with
    the recipe's key that asks for it, for none there."""
    for folder in part_folders(source, part):
        if (folder / "config.json").exists():
            return folder
    raise TresseError(f"{key}: there is no {part} in {source}: give a bundle, or the folder {part}/ of one")


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
        return None if source is None else find_part(source, part, f"parts.{part}")


@dataclass(frozen=True)
class FurtherCorpus:
    """A corpus beside that of the stories. One of: stories, a stories.jsonl whose rows may lack languages, spoken as the
    recipe's own are; audio, a manifest of recordings (train.corpus.manifest); folder, what `tresse prepare` made with the
    recipe's languages and unit encoder. language: of all recordings, whatever the manifest says; longest: s of a segment;
    hours: of recordings a shard."""

    stories: str | None = None
    audio: str | None = None
    folder: str | None = None
    language: str | None = None
    longest: float = Manifest.longest
    hours: float = Manifest.hours

    @property
    def source(self) -> Path | Manifest:
        """What is to be prepared, or the folder."""
        if self.audio is not None:
            return Manifest(Path(self.audio), self.language, self.longest, self.hours)
        return Path(self.stories or self.folder or "")

    def check(self, name: str) -> None:
        """Raises TresseError where it names none or several of the three, or cannot be called so."""
        if not re.fullmatch(r"[\w-]+", name) or name == STORIES:
            raise TresseError(f"corpora.{name}: choose a name of letters, digits, - and _, and not {STORIES}")
        if sum(part is not None for part in (self.stories, self.audio, self.folder)) != 1:
            raise TresseError(f"corpora.{name} needs one of stories, audio and folder")
        if self.audio is None and self.language is not None:
            raise TresseError(f"corpora.{name}: language is for audio: leave it out")


@dataclass(frozen=True)
class UnitSettings:
    """The unit encoder and its training: without text (`training`), or, where `distilled` is given, by a teacher.

    attention: a network that begins with Whisper's layers, instead of the convolutions of `encoder`; a teacher's only.
    """

    encoder: ConvEncoderConfig = field(default_factory=ConvEncoderConfig)
    attention: AttentionEncoderConfig | None = None
    training: UnitTraining = field(default_factory=UnitTraining)
    distilled: DistilledUnits | None = None


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
    units_ahead: int = 0


@dataclass(frozen=True)
class VocoderSettings:
    """The vocoder, its training, and how many sentences a language and speaker it learns from. Beside the units of the
    speaker's own speech it hears those of `others` other voices that say the same; those of the same speech, recorded
    `rerecorded` times through rooms, noise and lines; and, with `phones`, those of the phones that were spoken, where
    units are phones and the synthesiser tells them: a language model's units are like these. realigned: whether units of 50
    Hz get the times at which they sound, which are not those that Kokoro tells and an encoder hears. beside: training voices
    that are learnt with the speakers, from `beside_sentences` further sentences a language, and left out in the end: a quick
    synthesiser shows more of what follows what. begin: a bundle, or the folder of a vocoder of the same shape and languages,
    that is trained further; `size.units_ahead` may be more than its."""

    sentences_per_language: int = 1000
    others: int = 1
    rerecorded: int = 0
    phones: bool = False
    realigned: bool = False
    beside: list[str] = field(default_factory=list)
    beside_sentences: int = 1000
    begin: str | None = None
    size: VocoderSize = field(default_factory=VocoderSize)
    training: VocoderTraining = field(default_factory=lambda: VocoderTraining(steps=9000, adversarial_from=4500))


@dataclass(frozen=True)
class RecogniserSettings:
    """The recogniser of the transcripts: a small Whisper, and how many sentences a language it learns from; or, for units
    that are phones, a lexicon, of what is in `sources` (as in stories; nothing in it: of the recipe's stories)."""

    sentences_per_language: int = 3000
    training: ASRTraining = field(default_factory=ASRTraining)
    lexicon: LexiconTraining | None = None
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True)
class BundleSettings:
    """What the bundle offers beside its parts: prompts shipped per language, longest prompt in s. name: the recipe's by
    default. candidates: sentences that are drawn for each one of a reply.

    mantissa: bits that the language model's matrices are rounded to, of bfloat16's 7 (all of them when null): with 3 they
    take two thirds of the space in an archive, or in the history of a repository.
    """

    name: str | None = None
    examples_per_language: int = 3
    max_prompt_seconds: float = 60.0
    candidates: Annotated[int, Field(ge=1, le=64)] = 1
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

    voices: the voices file of corpus, vocoder, recogniser, example prompts and evaluation: one beside recipes/, or a path.
    corpora: what is read beside the stories, by the names that stages of slm have for it.
    asr: null makes a bundle without a recogniser. ablation: makes a comparison of language models instead of a bundle.
    """

    name: str
    languages: tuple[str, ...]
    seed: int = 0
    voices: str = "voices.yaml"
    parts: Parts = field(default_factory=Parts)
    stories: StoriesSettings = field(default_factory=StoriesSettings)
    units: UnitSettings = field(default_factory=UnitSettings)
    corpus: CorpusPreparation = field(default_factory=CorpusPreparation)
    corpora: dict[str, FurtherCorpus] = field(default_factory=dict)
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
            changes = {key: yaml.safe_load(text) for key, text in (overrides or {}).items()}
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise TresseError(f"cannot read the recipe {path}: {str(error).splitlines()[0]}") from error
        if not isinstance(values, dict):
            raise TresseError(f"cannot read the recipe {path}: it must hold keys and values")
        for key, value in changes.items():
            _override(values, key, value)
        return parse(cls, values, str(path))

    @property
    def schedule(self) -> list[Schedule]:
        """All stages that it trains."""
        rows = self.ablation.rows.values() if self.ablation else ()
        return [*self.slm.stages, *(stage for row in rows for stage in row.stages)]

    @property
    def modes(self) -> set[str]:
        """The modes, without their languages, of all stages that read the stories."""
        reading = [stage for stage in self.schedule if STORIES in stage.shares]
        return {Mode.parse(mode, self.languages).name for stage in reading for mode in stage.modes}

    def check_languages(self) -> None:
        """Raises TresseError where the stories are not told, or the voices cannot speak, in one of the languages."""
        if not self.languages:
            raise TresseError("the recipe has no languages: name one at least")
        check_names(self.languages)
        if self.stories.file is None and not self.stories.sources:
            missing = [language for language in self.languages if language not in LANGUAGES]
            if missing:
                raise TresseError(
                    f"there are no built-in stories in {missing[0]}: set stories.file to a stories.jsonl with all the "
                    "languages"
                )
        voices = Voices.named(self.voices)
        made = [] if self.parts.vocoder is not None or self.ablation is not None else voices.vocoder
        telling = self.corpus.speakers or voices.training
        voices.check(dict.fromkeys((*(telling if self.corpus.unspoken is None else ()), *made)), self.languages)

    def check_corpora(self) -> None:
        """Raises TresseError for a corpus that cannot be, that no stage reads, or that a stage reads and is not there."""
        for name, corpus in self.corpora.items():
            corpus.check(name)
            if not any(name in stage.shares for stage in self.schedule):
                raise TresseError(f"corpora.{name}: no stage of slm.stages reads it: name it there, or leave it out")
        for stage in self.schedule:
            stage.check_corpora((STORIES, *self.corpora), self.slm.batch_rows)

    def check_sources(self) -> None:
        """Raises TresseError where the stories have sources that no stage of training tells, in part or whole."""
        partial = [source.id for source in self.stories.sources if source.partial]
        if partial and not self.modes & {MIXED, MONOLINGUAL}:
            raise TresseError(
                f"stories.sources: no stage of slm.stages tells what {partial[0]} has in some languages only: "
                f"add the mode {MIXED}, or leave out partial"
            )
        for kind, serving in (("pairs", (INTERLEAVED,)), ("text", (MIXED, MONOLINGUAL))):
            names = [source.id for source in self.stories.sources if source.kind == kind]
            if names and not self.modes & set(serving):
                raise TresseError(
                    f"stories.sources: no stage of slm.stages tells {kind} like {names[0]}: add the mode {serving[0]}"
                )

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


def _override(values: Any, key: str, value: Any) -> None:
    """Change one value within nested mappings and lists; key: dotted, with numbers from 0 for what is in a list.

    Raises TresseError for a key that leads nowhere.
    """
    *parents, last = key.split(".")
    for depth, name in enumerate([*parents, last]):
        where = ".".join(parents[:depth]) or "the recipe"
        if isinstance(values, list):
            if not (name.isdecimal() and int(name) < len(values)):
                raise TresseError(f"--set {key}: {where} is a list of {len(values)}: name its parts from 0")
            index: Any = int(name)
        elif isinstance(values, dict):
            index = name
        else:
            raise TresseError(f"--set {key}: {where} is a single value: set it whole")
        if depth == len(parents):
            values[index] = value
        else:
            if isinstance(values, dict) and values.get(index) is None:
                values[index] = {}
            values = values[index]


def parse(kind: type, values: Any, where: str) -> Any:
    """A mapping as a (nested) dataclass. Unknown keys are refused, naming the nearest known one; types are checked."""
    from pydantic import TypeAdapter, ValidationError

    _check_keys(kind, values, where)
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise TresseError(f"{where}: {key}: {first['msg'][0].lower()}{first['msg'][1:]}") from error


def _check_keys(kind: Any, values: Any, where: str, prefix: str = "") -> None:
    """Raise TresseError for keys that a dataclass, or those inside its optional, list and mapping fields, do not have."""
    import types
    import typing

    inner = typing.get_args(kind)
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        parts = [part for part in inner if dataclasses.is_dataclass(part)]
        if parts and values is not None:
            _check_keys(parts[0], values, where, prefix)
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
