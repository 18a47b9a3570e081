"""Who speaks the items of an evaluation: groups of voices, of which one is drawn for each item.

What is drawn names a voice for each language: most often the same voice for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slm.errors import TresseError, complain
from train.evaluate.cloze.protocol import CHOSEN, SEEN, UNSEEN
from train.evaluate.scorable import Scorable
from train.evaluate.spoken_items import heard_voices
from train.speech.voices import Voices

Speakers = Mapping[str, str]
"""By language, the voice that speaks it."""


def voice_groups(
    bundle: Scorable,
    panel: Voices,
    chosen: Mapping[str, str] | None = None,
    groups: Sequence[str] = (UNSEEN, SEEN),
) -> dict[str, tuple[Speakers, ...]]:
    """By group, what is drawn from. chosen: voices by language, instead of groups; the reference voice speaks the others.

    Raises TresseError for a voice, language or group that there is not, and for a voice that does not speak its language.
    """
    languages = bundle.languages
    if chosen:
        for language, name in chosen.items():
            if language not in languages:
                raise TresseError(
                    f"unknown language {language!r} for a voice: this bundle speaks {', '.join(languages)}"
                )
            panel.check([name], [language])
        return {CHOSEN: ({language: chosen.get(language, panel.reference) for language in languages},)}
    known: dict[str, list[Speakers]] = {
        SEEN: [dict.fromkeys(languages, name) for name in heard_voices(bundle, panel)],
        UNSEEN: _unseen(bundle, panel),
    }
    for group in groups:
        if group not in known:
            raise TresseError(f"unknown voice group {group!r}: choose {SEEN} or {UNSEEN}")
    there: dict[str, tuple[Speakers, ...]] = {group: tuple(known[group]) for group in groups if known[group]}
    if not there:
        raise TresseError("the voices file has no voice of this group: name some under held_out")
    return there


def panel_of(bundle: Scorable, chosen: Mapping[str, str] | None = None) -> Voices:
    """Who speaks texts to a bundle: its recipe's voices where their file names unseen ones that all speak here.

    Else those of `Voices.of`, as where voices are chosen.
    """
    recipe = None if chosen else Voices.of_recipe(bundle.info)
    if recipe is not None and _unseen_entries(bundle, recipe):
        return recipe
    return Voices.of(bundle.info, bundle.languages, (chosen or {}).values())


def fingerprints(panel: Voices, languages: Sequence[str]) -> list[str]:
    """What the speech of all voices depends on that may speak these languages: those of all of them, and the unseen ones."""
    names = [name for name in (*panel.training, *panel.held_out) if panel.can_speak(name, *languages)]
    unseen = [
        name
        for entry in panel.unseen
        for language, name in entry.items()
        if name not in names and panel.can_speak(name, language)
    ]
    return panel.fingerprint([*names, *dict.fromkeys(unseen)])


def _unseen(bundle: Scorable, panel: Voices) -> list[Speakers]:
    """What unseen voices are drawn from: the file's `unseen`, or else every held-out voice by itself."""
    if entries := _unseen_entries(bundle, panel):
        return entries
    names = list(panel.held_out)
    if panel.unseen:
        names = [name for name in names if panel.can_speak(name, *bundle.languages)] or names
    return [dict.fromkeys(bundle.languages, name) for name in names]


def _unseen_entries(bundle: Scorable, panel: Voices) -> list[Speakers]:
    """The file's `unseen` for the bundle's languages, without voices that its language model heard; none, and that is said,
    where one of them does not speak here."""
    languages, heard = bundle.languages, set(heard_voices(bundle, panel))
    entries: list[Speakers] = [
        {language: names[language] for language in languages}
        for names in panel.unseen
        if set(languages) <= names.keys()
    ]
    entries = [names for names in entries if heard.isdisjoint(names.values())]
    try:
        for names in entries:
            for language, name in names.items():
                panel.check([name], [language])
    except TresseError as error:
        complain(f"the recipe's unseen voices are not used, other held-out voices are: {error}")
        return []
    return entries


def named(groups: Mapping[str, Sequence[Speakers]]) -> dict[str, Any]:
    """Groups as results name them: {"unseen": [names], "chosen": {language: name}}."""
    return {
        group: dict(choices[0]) if group == CHOSEN else [_name(speakers) for speakers in choices]
        for group, choices in groups.items()
    }


def trained_among(choices: Sequence[Speakers], panel: Voices) -> list[str]:
    """Of these voices, the training voices of the file: other parts than the language model may have heard them."""
    return sorted({name for speakers in choices for name in speakers.values() if name in panel.training})


def _name(speakers: Speakers) -> str:
    """`zoe`, or `slt (en), pia (fr)` where each language has a voice of its own."""
    if len(set(speakers.values())) == 1:
        return next(iter(speakers.values()))
    return ", ".join(f"{name} ({language})" for language, name in speakers.items())
