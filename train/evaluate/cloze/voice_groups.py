"""Who speaks the items of an evaluation: groups of voices, of which one is drawn for each item.

What is drawn names a voice for each language: most often the same voice for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slm.errors import TresseError
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
    known = {
        SEEN: [dict.fromkeys(languages, name) for name in heard_voices(bundle, panel)],
        UNSEEN: [dict.fromkeys(languages, name) for name in panel.held_out],
    }
    for group in groups:
        if group not in known:
            raise TresseError(f"unknown voice group {group!r}: choose {SEEN} or {UNSEEN}")
    there: dict[str, tuple[Speakers, ...]] = {group: tuple(known[group]) for group in groups if known[group]}
    if not there:
        raise TresseError("the voices file has no voice of this group: name some under held_out")
    return there


def named(groups: Mapping[str, Sequence[Speakers]]) -> dict[str, Any]:
    """Groups as results name them: {"unseen": [names], "chosen": {language: name}}."""
    return {
        group: dict(choices[0]) if group == CHOSEN else [_name(speakers) for speakers in choices]
        for group, choices in groups.items()
    }


def _name(speakers: Speakers) -> str:
    """`zoe`, or `slt (en), pia (fr)` where each language has a voice of its own."""
    if len(set(speakers.values())) == 1:
        return next(iter(speakers.values()))
    return ", ".join(f"{name} ({language})" for language, name in speakers.items())
