"""`tresse eval voices`: what a bundle understands of anybody's recordings.

Recordings come as a folder of `NAME.wav` (or any other format) with `NAME.txt` beside it, or with a `list.jsonl` in it, a
row a recording: {"audio", "text"?, "language"?, "speaker"?, "family"?}. Without a speaker a file is its own; without a
family (of synthesisers, or "people") a speaker is. Measured:

- *unit edit rate* between two speakers of the same text, within a family and across families, beside that of different
  texts by different families;
- *in domain*: share of the recordings whose units are likelier to the language model than tokens drawn blindly;
- *word error* of the recording, and of the recording through units and vocoder, by the bundle's own recogniser and by an
  independent one (`judge`): the bundle's own was trained on the vocoder's sound and flatters it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from slm.audio import read_audio
from slm.errors import MachineError, TresseError
from slm.units import Units
from train.corpus.recordings import Recording
from train.evaluate.scorable import Talking, Transcribing
from train.evaluate.units import edit_rates
from train.evaluate.word_error import word_errors
from train.tools.checkpoints import atomic_path, write_json
from train.tools.progress import Progress
from train.tools.statistics import bootstrap

PAIRS = 4000
"""Pairs of a kind that edit rates are taken of, at most."""


class HasUnits(Protocol):
    """A recording with its units and language."""

    @property
    def recording(self) -> Recording:
        """The recording."""

    @property
    def units(self) -> Units:
        """Its units."""

    @property
    def language(self) -> str:
        """Its language."""


@dataclass(frozen=True)
class Understood:
    """What a bundle made of a recording: float32 [samples] at `sample_rate` Hz, its units and language."""

    recording: Recording
    units: Units
    language: str
    in_domain: bool
    seconds: float
    waveform: np.ndarray
    sample_rate: int


def evaluate_voices(
    bundle: Talking,
    recordings: Sequence[Recording],
    *,
    out: Path,
    recogniser: Transcribing | None = None,
    judge: Transcribing | None = None,
    speaker: str | None = None,
) -> dict[str, Any]:
    """Measure, and write results.json and voices.md to `out`. What cannot be read is named in results["problems"].

    recogniser: the bundle's own; judge: an independent one. speaker: of the vocoder. Raises TresseError where nothing can
    be read.
    """
    understood, problems = _understand(bundle, recordings)
    if not understood:
        raise TresseError(f"no recording can be used; the first problem: {problems[0]['problem']}")
    heard = {
        name: _word_errors(bundle, understood, transcriber, speaker)
        for name, transcriber in (("own", recogniser), ("judge", judge))
        if transcriber is not None
    }
    results: dict[str, Any] = {
        "recordings": len(understood),
        "seconds": round(sum(part.seconds for part in understood), 1),
        "unit_edit_rate": edit_rates_by_family(understood),
        "groups": {
            kind: _groups(understood, heard, [getattr(part.recording, kind) for part in understood])
            for kind in ("family", "speaker")
        },
        "problems": problems,
    }
    with atomic_path(out / "voices.md") as temporary:
        temporary.write_text(markdown_page(results), encoding="utf-8")
    write_json(out / "results.json", results)
    return results


def edit_rates_by_family(understood: Sequence[HasUnits]) -> dict[str, dict[str, dict[str, Any]]]:
    """{language: {"FAMILY / FAMILY", "within families", "across families", "different texts": {mean, ci95, pairs}}}."""
    said: dict[tuple[str, str], list[HasUnits]] = defaultdict(list)
    for part in understood:
        if part.recording.text is not None:
            said[part.language, " ".join(part.recording.text.lower().split())].append(part)
    pairs: dict[str, dict[str, list[tuple[np.ndarray, np.ndarray]]]] = defaultdict(lambda: defaultdict(list))
    for (language, _), parts in said.items():
        for first, second in combinations(parts, 2):
            if first.recording.speaker != second.recording.speaker:
                families = sorted((first.recording.family, second.recording.family))
                units = (first.units.ids, second.units.ids)
                kind = "within families" if families[0] == families[1] else "across families"
                pairs[language][" / ".join(families)].append(units)
                pairs[language][kind].append(units)
    texts = list(said.items())
    for ((language, _), parts), ((other, _), others) in pairwise(texts):
        if language == other:
            pairs[language]["different texts"] += [
                (first.units.ids, second.units.ids)
                for first in parts
                for second in others
                if first.recording.family != second.recording.family
            ]
    return {
        language: {kind: _rate(units) for kind, units in sorted(kinds.items()) if units}
        for language, kinds in pairs.items()
    }


def _rate(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    step = -(-len(pairs) // PAIRS)
    mean, interval = bootstrap(edit_rates(pairs[::step]))
    return {"mean": mean, "ci95": interval, "pairs": len(pairs[::step])}


def _understand(bundle: Talking, recordings: Iterable[Recording]) -> tuple[list[Understood], list[dict[str, str]]]:
    understood, problems = [], []
    given = list(recordings)
    progress = Progress("recordings", len(given), unit="recordings")
    for number, recording in enumerate(given, 1):
        try:
            if recording.language is not None and recording.language not in bundle.languages:
                raise TresseError(f"the bundle does not know the language {recording.language}")
            waveform, rate = read_audio(recording.path)
            prompt = bundle.prompt(waveform, rate)
        except MachineError:
            raise
        except TresseError as error:
            problems.append({"recording": recording.path.name, "problem": str(error)})
            continue
        language = recording.language or prompt.language or bundle.languages[0]
        units = bundle.units.encode(waveform, rate)
        seconds = len(waveform) / rate
        understood.append(Understood(recording, units, language, prompt.in_domain, seconds, waveform, rate))
        progress.update(number)
    return understood, problems


def _word_errors(
    bundle: Talking, understood: Sequence[Understood], transcriber: Transcribing, speaker: str | None
) -> dict[int, dict[str, tuple[int, int]]]:
    """By number of the recording: errors and words of the recording ("as recorded") and through units and vocoder."""
    counted: dict[int, dict[str, tuple[int, int]]] = {}
    progress = Progress("transcripts", len(understood), unit="recordings")
    for number, part in enumerate(understood):
        if part.recording.text is None:
            continue
        again = bundle.vocoder.synthesise(part.units, speaker=speaker or bundle.speakers[0], language=part.language)
        counted[number] = {}
        for name, waveform, rate in (
            ("as recorded", part.waveform, part.sample_rate),
            ("through units", again, bundle.sample_rate),
        ):
            heard = transcriber.transcribe(waveform, rate, part.language).text
            errors, words = word_errors([part.recording.text], [heard])
            counted[number][name] = (int(errors[0]), int(words[0]))
        progress.update(number + 1)
    return counted


def _groups(
    understood: Sequence[Understood],
    heard: Mapping[str, Mapping[int, Mapping[str, tuple[int, int]]]],
    names: Sequence[str],
) -> dict[str, dict[str, dict[str, Any]]]:
    """{language: {group: figures}}."""
    members: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, (part, name) in enumerate(zip(understood, names, strict=True)):
        members[part.language, name].append(number)
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for (language, name), numbers in sorted(members.items()):
        share, interval = bootstrap(np.array([understood[number].in_domain for number in numbers], float))
        units = sum(len(understood[number].units) for number in numbers)
        seconds = sum(understood[number].seconds for number in numbers)
        row: dict[str, Any] = {
            "n": len(numbers),
            "units_per_second": round(units / seconds, 2),
            "in_domain": {"mean": share, "ci95": interval},
            "word_error": {},
        }
        for who, counted in heard.items():
            for what in ("as recorded", "through units"):
                rows = [counted[number][what] for number in numbers if number in counted]
                if words := sum(count for _, count in rows):
                    row["word_error"].setdefault(what, {})[who] = round(sum(error for error, _ in rows) / words, 4)
        groups.setdefault(language, {})[name] = row
    return groups


def markdown_page(results: Mapping[str, Any]) -> str:
    """The report."""
    page = [
        "# Voices",
        "",
        f"{results['recordings']} recordings, {results['seconds']:.0f} s.",
        "",
        edit_table(results),
        "",
    ]
    for kind, title in (("family", "Families"), ("speaker", "Speakers")):
        page += [f"## {title}", "", group_table(results["groups"][kind]), ""]
    page += ["Word error by the independent recogniser, and in brackets by the bundle's own.", ""]
    if results["problems"]:
        page += ["## Left out", "", *(f"- {row['recording']}: {row['problem']}" for row in results["problems"]), ""]
    return "\n".join(page)


def edit_table(results: Mapping[str, Any]) -> str:
    """Unit edit rates between speakers of the same text, in %."""
    lines = ["| Unit edit rate between speakers | % | pairs |", "|---|---:|---:|"]
    for language, kinds in results["unit_edit_rate"].items():
        for kind, rate in kinds.items():
            low, high = rate["ci95"]
            lines.append(
                f"| {language}: {kind} | {100 * rate['mean']:.1f} [{100 * low:.1f}, {100 * high:.1f}] | {rate['pairs']} |"
            )
    return "\n".join(lines)


def group_table(groups: Mapping[str, Any]) -> str:
    """A row for each language and group."""
    lines = [
        "| | recordings | units a second | in domain, % | word error as recorded, % | through units, % |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for language, rows in groups.items():
        for name, row in rows.items():
            errors = [_both(row["word_error"].get(what, {})) for what in ("as recorded", "through units")]
            share = 100 * row["in_domain"]["mean"]
            lines.append(
                f"| {language}: {name} | {row['n']} | {row['units_per_second']:.1f} | {share:.0f} | "
                + " | ".join(errors)
                + " |"
            )
    return "\n".join(lines)


def _both(errors: Mapping[str, float]) -> str:
    judge = f"{100 * errors['judge']:.1f}" if "judge" in errors else "-"
    return judge + (f" ({100 * errors['own']:.1f})" if "own" in errors else "")
