"""Speech for training and evaluation: who speaks (a voices file), and sentences spoken by a synthesiser.

Each back end is a file of this folder. espeak-ng comes with pip and speaks at hundreds of times real time; Kokoro has
natural voices in any mixture; SVOX Pico, Piper, flite and any transformers VITS checkpoint have theirs. A voices file may
mix them. Whatever speaks, a sentence ends up at 16 kHz (or the rate asked for), with 60 ms of silence at both ends and at
one loudness, and depends on the request alone.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol, get_args

import numpy as np
import yaml
from pydantic import BeforeValidator, ConfigDict, Discriminator, Tag, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails

from slm.errors import TresseError
from train.speech.espeak import Espeak, EspeakSpeaker, Phoneme
from train.speech.flite import Flite, FliteSpeaker
from train.speech.kokoro import Kokoro, KokoroSpeaker
from train.speech.pico import Pico, PicoSpeaker
from train.speech.piper import Piper, PiperSpeaker
from train.speech.vits import Vits, VitsSpeaker
from train.tools.texts import plain
from train.tools.workers import worker_pool

__all__ = ["LOUDNESS", "MARGIN", "SAMPLE_RATE", "Phoneme", "Speaker", "Synthesiser", "Unspeakable", "Voices", "speak"]

VOICES = Path(__file__).parents[1]
"""Where the project's voices files lie."""
SAMPLE_RATE = 16000
MARGIN = 0.06
"""s of silence left before and after a sentence."""
LOUDNESS = 0.07
"""Root mean square that every sentence is scaled to (before peaks are held under 0.95)."""
SILENCE = 2e-3
"""Samples below are silence, where a sentence is trimmed."""

Speaker = EspeakSpeaker | VitsSpeaker | KokoroSpeaker | PicoSpeaker | PiperSpeaker | FliteSpeaker
FAMILIES = tuple(kind.family for kind in get_args(Speaker))
"""Kinds of synthesiser: a family can be kept out of training as a whole."""


TIMED = (Espeak, Kokoro)
"""Back ends that give the times of phonemes."""


class Unspeakable(TresseError):
    """A text that gives no speech. One row of a corpus, not the whole of it, is at fault."""


class Synthesiser(Protocol):
    """Text -> speech: what a back end offers. `speaker` is one of its own kind."""

    name: str

    def speak(self, text: str, language: str, speaker: Any) -> np.ndarray:
        """float32 [samples] at 16 kHz, the same for the same request; margins and level are the caller's to mend.

        Raises TresseError where the speaker does not speak the language.
        """
        ...

    def check(self, language: str, speaker: Any) -> None:
        """Raise TresseError, naming the mend, where `speak` would; cheap, to be asked before long work."""
        ...

    def fingerprint(self, speaker: Any) -> str:
        """Everything that the speech depends on beside text and language (versions, weights, settings)."""
        ...


def _named(entries: Any) -> Any:
    """A group of a voices file: each entry learns its name, where it can."""
    if not isinstance(entries or {}, Mapping):
        return entries
    return {
        str(name): {**entry, "name": str(name)} if isinstance(entry, Mapping) and "name" not in entry else entry
        for name, entry in (entries or {}).items()
    }


def _family(entry: Any) -> str | None:
    """Which of the families a speaker, or its entry in a voices file, belongs to; None where it is no entry."""
    if isinstance(entry, get_args(Speaker)):
        return entry.family
    if not isinstance(entry, Mapping) or "name" not in entry:
        return None
    return next((family for family in FAMILIES if family in entry), EspeakSpeaker.family)


_AnySpeaker = Annotated[
    Annotated[EspeakSpeaker, Tag("espeak")]
    | Annotated[VitsSpeaker, Tag("vits")]
    | Annotated[KokoroSpeaker, Tag("kokoro")]
    | Annotated[PicoSpeaker, Tag("pico")]
    | Annotated[PiperSpeaker, Tag("piper")]
    | Annotated[FliteSpeaker, Tag("flite")],
    Discriminator(_family),
]
_Group = Annotated[dict[str, _AnySpeaker], BeforeValidator(_named)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Voices:
    """Who speaks the corpus (a voices file).

    languages: the espeak-ng voice of each language, which also reads texts for Kokoro. models: the folder that holds
    kokoro/, pico/ and piper/ (in a file: relative to it); the environment variable TRESSE_MODELS goes before it.
    held_out_families: no training speaker may be of these. unseen: who speaks evaluations instead of every held-out voice
    by itself: for each language a voice, so that a voice of a single language has another beside it.
    """

    languages: dict[str, str]
    reference: str
    vocoder: list[str]
    training: _Group
    held_out: _Group = dataclasses.field(default_factory=dict)
    models: Path | None = None
    held_out_families: list[str] = dataclasses.field(default_factory=list)
    unseen: list[dict[str, str]] = dataclasses.field(default_factory=list)

    @classmethod
    def load(cls, path: Path | None = None) -> Voices:
        """Read a voices file (the project's own by default). Raises TresseError, in one line, where it is wrong."""
        path = Path(path) if path else VOICES / "voices.yaml"
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise TresseError(f"cannot read the voices in {path}: {' '.join(str(error).split())}") from error
        try:
            return _parse(data, path.parent)
        except ValueError as error:
            raise TresseError(f"{path}: {error} (train/voices.yaml shows the form)") from error

    @classmethod
    def named(cls, name: str) -> Voices:
        """The voices file of a recipe: one beside recipes/ by its name, or a path. Raises what `load` does."""
        beside = VOICES / name
        return cls.load(beside if beside.exists() else Path(name).expanduser())

    @classmethod
    def of(cls, info: Mapping[str, Any], languages: Iterable[str], speakers: Iterable[str] = ()) -> Voices:
        """The voices that measure a bundle: the project's own; those of its recipe where these lack one of its languages, or
        all of the speakers that are asked for.

        info: of the bundle, which names their file; only files beside recipes/ are looked for.
        """
        own, asked = cls.load(), set(speakers)
        known = own.training.keys() | own.held_out.keys()
        enough = set(languages) <= set(own.languages) and (not asked or not asked.isdisjoint(known))
        return own if enough else cls.of_recipe(info) or own

    @classmethod
    def of_recipe(cls, info: Mapping[str, Any]) -> Voices | None:
        """The voices of a bundle's recipe; None where its info names no file beside recipes/."""
        name = info.get("provenance", {}).get("voices_file")
        if not name or Path(name).name != name or not (VOICES / name).is_file():
            return None
        return cls.load(VOICES / name)

    def speaker(self, name: str) -> Speaker:
        """The speaker of this name, from either group."""
        try:
            return {**self.training, **self.held_out}[name]
        except KeyError:
            known = ", ".join([*self.training, *self.held_out])
            raise TresseError(f"unknown voice {name}: choose one of {known}") from None

    def synthesiser(self, speaker: Speaker, sample_rate: int = SAMPLE_RATE) -> Synthesiser:
        """The back end that this speaker belongs to, giving speech at `sample_rate` Hz."""
        match speaker:
            case KokoroSpeaker():
                return Kokoro(self.model_folder("kokoro"), self.languages, sample_rate)
            case PicoSpeaker():
                return Pico(self.model_folder("pico"), sample_rate)
            case PiperSpeaker():
                return Piper(self.model_folder("piper"), sample_rate)
            case FliteSpeaker():
                return Flite(sample_rate)
            case VitsSpeaker():
                return Vits(sample_rate)
            case _:
                return Espeak(self.languages, sample_rate)

    def model_folder(self, name: str) -> Path:
        """Where the files of a back end lie: in $TRESSE_MODELS, or else in `models`, or else in the working folder."""
        return Path(os.environ.get("TRESSE_MODELS") or self.models or "models").expanduser() / name

    def reading(self, name: str, language: str) -> str:
        """The espeak-ng voice that reads a language to this speaker. Raises TresseError where there is none."""
        speaker = self.speaker(name)
        style = speaker.kokoro.get(language) if isinstance(speaker, KokoroSpeaker) else None
        reading = style.reading if style else None
        if reading is None and language not in self.languages:
            raise TresseError(f"no espeak-ng voice reads {language!r} to voice {name}: add it to `languages`")
        return reading or self.languages[language]

    def check(self, names: Iterable[str], languages: Iterable[str]) -> None:
        """Raise TresseError, naming the mend, where one of these voices cannot speak one of the languages."""
        languages = list(languages)
        for name in names:
            speaker = self.speaker(name)
            for language in languages:
                self.synthesiser(speaker).check(language, speaker)

    def can_speak(self, name: str, *languages: str) -> bool:
        """Whether a voice speaks all these languages, here and now."""
        try:
            self.check([name], languages)
        except TresseError:
            return False
        return True

    def fingerprint(self, names: Iterable[str]) -> list[str]:
        """What the speech of these voices depends on, for provenance and for telling two corpora apart."""
        return [self.synthesiser(self.speaker(name)).fingerprint(self.speaker(name)) for name in names]


@dataclasses.dataclass(frozen=True)
class Spoken:
    """A sentence as it was spoken. waveform: float32 [samples]; phonemes: with times from its start, None where the back end
    gives none; offset: s of the synthesiser's own output before it (negative where silence was added). Up to the offset two
    timbres of Kokoro with one prosody are synchronous."""

    waveform: np.ndarray
    phonemes: list[Phoneme] | None
    offset: float


def render(
    text: str, language: str, speaker: Speaker, voices: Voices | None = None, sample_rate: int = SAMPLE_RATE
) -> Spoken:
    """Speak one sentence in its one form (`train.tools.texts`), with all that is known of it. Raises what `speak` does."""
    text = plain(text)
    synthesiser = (voices or _default_voices()).synthesiser(speaker, sample_rate)
    phonemes = None
    if isinstance(synthesiser, TIMED):
        timed: Any = synthesiser
        waveform, phonemes = timed.speak_with_phonemes(text, language, speaker)
    else:
        waveform = synthesiser.speak(text, language, speaker)
    waveform, offset = _finish(waveform, text, sample_rate)
    if phonemes is not None:
        phonemes = [Phoneme(phoneme.name, phoneme.start - offset) for phoneme in phonemes]
    return Spoken(waveform, phonemes, offset)


def speak(
    text: str, language: str, speaker: Speaker, voices: Voices | None = None, sample_rate: int = SAMPLE_RATE
) -> np.ndarray:
    """Speak one sentence: float32 [samples] at `sample_rate` Hz, silence trimmed to 60 ms at both ends, loudness equalised.

    Raises TresseError for a language the speaker does not speak, and Unspeakable for text that says nothing.
    """
    return render(text, language, speaker, voices, sample_rate).waveform


def speak_with_phonemes(
    text: str, language: str, speaker: Speaker, voices: Voices | None = None, sample_rate: int = SAMPLE_RATE
) -> tuple[np.ndarray, list[Phoneme]]:
    """Like `speak`, with the phonemes and their times: for evaluation and the recogniser. The unit encoder never sees them.

    Phonemes are the back end's own: espeak-ng's mnemonics, or Kokoro's IPA characters (`train.speech.phones` reads both).
    Raises TresseError also for a speaker of a back end that has no times.
    """
    if not isinstance((voices or _default_voices()).synthesiser(speaker), TIMED):
        raise TresseError(f"voice {speaker.name} has no phoneme times: choose a voice of espeak-ng or Kokoro")
    spoken = render(text, language, speaker, voices, sample_rate)
    return spoken.waveform, spoken.phonemes or []


def _finish(waveform: np.ndarray, text: str, sample_rate: int = SAMPLE_RATE) -> tuple[np.ndarray, float]:
    """Trim and level speech; also the s that were cut off at its beginning (negative where silence was added)."""
    loud = np.flatnonzero(np.abs(waveform) > SILENCE)
    if len(loud) < sample_rate // 50:
        raise Unspeakable(f"nothing to speak in {text!r}: give a sentence with words")
    margin = int(MARGIN * sample_rate)
    start, stop = loud[0] - margin, loud[-1] + 1 + margin
    padded = np.pad(waveform, (max(0, -start), max(0, stop - len(waveform))))
    waveform = padded[max(0, start) : max(0, start) + stop - start]
    waveform = waveform * (LOUDNESS / float(np.sqrt(np.mean(np.square(waveform[margin:-margin])))))
    waveform = waveform * min(1.0, 0.95 / float(np.abs(waveform).max()))
    return waveform.astype(np.float32), start / sample_rate


@functools.cache
def _default_voices() -> Voices:
    return Voices.load()


_FORMS = {
    "languages": "give `language: espeak-ng voice` pairs",
    "vocoder": "give a list of voices",
    "unseen": "give a list of {language: voice}",
    "training": "give `name: {variant, rate, pitch}` or `name: {kokoro: ...}` entries",
    "speaker": f"give {{variant, rate, pitch}}, or one of the keys {', '.join(FAMILIES[1:])}",
}


def _parse(data: Any, folder: Path) -> Voices:
    """What a voices file in `folder` says. Raises ValueError, in one line, naming the entry."""
    if not isinstance(data, Mapping):
        raise ValueError("the file must hold keys and values")
    if not data.get("training") and set(data) <= {*Voices.__dataclass_fields__}:
        raise ValueError("training: give at least one voice")
    data = {"languages": {}, **data}
    if isinstance(data.get("training"), Mapping):
        data.setdefault("reference", str(next(iter(data["training"]))))
    data["vocoder"] = data.get("vocoder") or [data.get("reference")]
    try:
        voices = TypeAdapter(Voices).validate_python(data)
    except ValidationError as error:
        raise ValueError(_message(error.errors())) from error
    twice = set(voices.training) & set(voices.held_out)
    if twice:
        raise ValueError(f"{min(twice)} is both a training and a held-out voice: give it another name")
    for name in [voices.reference, *voices.vocoder]:
        if name not in voices.training:
            raise ValueError(f"{name} must be one of the training voices")
    for name, speaker in voices.training.items():
        if speaker.family in voices.held_out_families:
            raise ValueError(
                f"training.{name} is of the family {speaker.family}, which is held out: move it to held_out"
            )
    _check_unseen(voices)
    models = None if voices.models is None else folder / voices.models.expanduser()
    return dataclasses.replace(voices, models=models)


def _check_unseen(voices: Voices) -> None:
    """Raise ValueError where `unseen` names no voice for a language, an unknown one, or one of another entry too."""
    used: set[str] = set()
    for number, names in enumerate(voices.unseen, start=1):
        if lacking := [language for language in voices.languages if language not in names]:
            raise ValueError(f"unseen: entry {number} has no voice for {lacking[0]}: name one")
        for name in names.values():
            if name not in voices.training and name not in voices.held_out:
                raise ValueError(f"unseen: {name} is neither a training nor a held-out voice: describe it in held_out")
            if name in used:
                raise ValueError(f"unseen: {name} is in two entries: an ending in another voice needs others")
        used |= set(names.values())


def _message(errors: list[ErrorDetails]) -> str:
    """The first thing to mend of a wrong voices file: unknown keys first, with the nearest that there is."""
    error = next((error for error in errors if error["type"] == "unexpected_keyword_argument"), errors[0])
    path = [str(part) for part in error["loc"]]
    kind: Any = Voices
    if len(path) > 2 and path[0] in ("training", "held_out"):  # the family is pydantic's own step
        kind = next(kind for kind in get_args(Speaker) if kind.family == path[2])
        del path[2]
    key = ".".join(path)
    if error["type"] == "unexpected_keyword_argument":
        known = [*kind.__dataclass_fields__]
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0) or known
        return (
            f"unknown key {key}: did you mean {near[0]}?"
            if kind is Voices
            else f"{key}: unknown key: did you mean {near[0]}?"
        )
    if error["type"] == "union_tag_not_found":
        return f"{key}: {_FORMS['speaker']}"
    if len(path) == 1 and path[0] in _FORMS:
        return f"{key}: {_FORMS[path[0]]}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{key}: {message[0].lower()}{message[1:]}"


def speak_all(requests: list[tuple[str, str, Speaker]], voices: Voices, workers: int) -> list[np.ndarray]:
    """Speak (text, language, speaker) requests over `workers` processes, in order."""
    texts, languages, speakers = zip(*requests, strict=True)
    if workers <= 1:
        return [speak(*request, voices) for request in requests]
    with worker_pool(workers) as pool:
        return list(pool.map(speak, texts, languages, speakers, [voices] * len(requests), chunksize=32))
