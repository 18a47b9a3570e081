"""Cloze: how often the model finds the right ending of a story likelier than a wrong one.

Protocol. An item is a story's context and two endings. Sentences are spoken one by one, encoded and tokenised; the prompt
is `<bos>`, then each context sentence behind its language's tag; an ending stands behind the tag of its language, without
`<eos>`. Tags are given to a model that was trained with them, never scored. Every ordered pair of languages is a cell
(context > ending). Rules, each a mean over tokens: the ending given the prompt (the headline), prompt and ending
together, and the ending given the prompt minus the ending alone; and a fourth, by which replies choose their sentences
(`slm.choosing`), where the bundle's topics count too. Ties count one half; 95 % intervals are bootstrapped over
pairs of mirrored items. The control scores endings alone, without any context: on mirrored items it stands at chance, 50 %,
whatever the model.

Voices. By default every item is spoken twice: by a voice that the language model did not hear (*unseen*, the headline) and
by one that it heard (*seen*; the bundle's provenance names them), drawn for each pair of mirrored items. Unseen voices are
the held-out ones, or those that the voices file of the bundle's recipe names under `unseen`: a voice for each language.
Endings are in the prompt's voice (*same*); in the first group also in another of its voices (*different*). Items that are
recordings are a group of their own (*recorded*).

Cost, one core: about 7 ms a distinct sentence and voice, once; scoring 1,871 items of each kind with the shipped model
about two minutes for a group, both pairings and all four cells.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from slm.errors import TresseError
from slm.interleave import braid, sentence_tokens
from slm.likelihood import ScoredItem, score_endings
from slm.units import UnitVocabulary
from train.evaluate.cloze.items import Item, to_items
from train.evaluate.cloze.protocol import (
    CHOSEN,
    DIFFERENT,
    RECORDED,
    SAME,
    SEEN,
    UNSEEN,
)
from train.evaluate.cloze.report import markdown_page
from train.evaluate.cloze.results import Cell, Choice, results_of
from train.evaluate.cloze.voice_groups import Speakers, named, panel_of, trained_among, voice_groups
from train.evaluate.scorable import Scorable
from train.evaluate.spoken_items import Request, SpokenUnits
from train.speech.voices import Voices
from train.tools.checkpoints import atomic_path, write_json
from train.tools.progress import Progress

ENDINGS = ("right", "wrong")


@dataclass(frozen=True)
class _Asked:
    """An item in one voice group: the voice of its prompt and of its endings by language and pairing."""

    item: Item
    group: str
    prompt: Speakers
    endings: Mapping[str, Speakers]  # by pairing

    def requests(self, languages: Sequence[str]) -> tuple[dict[tuple[str, ...], Request], list[tuple[str, str, str]]]:
        """What is to be spoken, by place, and what the item lacks as (language, entry, why)."""
        requests: dict[tuple[str, ...], Request] = {}
        lacking = []
        for language in languages:
            context = self.item.context.get(language)
            if isinstance(context, list) and context:
                for k, entry in enumerate(context):
                    requests["context", language, str(k)] = (entry, language, self.prompt[language])
            else:
                lacking.append((language, "context", f"the item has no context in {language}"))
            for part in ENDINGS:
                entry = getattr(self.item, part).get(language)
                if entry is None:
                    lacking.append((language, part, f"the item has no {part} in {language}"))
                    continue
                for pairing, voices in self.endings.items():
                    requests[part, language, pairing] = (entry, language, voices[language])
        return requests, lacking


def evaluate_cloze(
    bundle: Scorable,
    items: Iterable[Any],
    *,
    out: Path,
    voices: Mapping[str, str] | None = None,
    groups: Sequence[str] = (UNSEEN, SEEN),
    panel: Voices | None = None,
    cache: Path | None = None,
    audio_root: Path = Path("."),
    workers: int = 1,
    seed: int = 0,
) -> dict[str, Any]:
    """Score cloze items with a bundle's encoder, vocabulary and language model; write and return the results.

    items: mappings or dataclasses of the form {"id", "kind", "context": {lang: [sentences]}, "right": {lang: sentence},
    "wrong": ...}; any sentence may be {"audio": path} (relative to `audio_root`). voices: language -> the one voice that
    speaks it, instead of the groups. panel: the voices there are; by default those of `panel_of`. seed: of the drawing of
    voices. out: receives results.json, cloze.md and scores.jsonl. cache: folder of the spoken units (default:
    out/speech). What cannot be used is listed in results["problems"] and left out of the cells concerned only, whose
    "left_out" counts it. Raises TresseError where nothing can be scored.
    """
    checked = to_items(items)
    panel = panel or panel_of(bundle, voices)
    speakers = voice_groups(bundle, panel, voices, groups)
    asked = _ask(checked, bundle.languages, speakers, seed)
    spoken = SpokenUnits(
        bundle.units,
        panel,
        cache=cache or out / "speech",
        encoder_files=getattr(bundle, "path", None) and bundle.path / "units",
        audio_root=audio_root,
        workers=workers,
    )
    places, problems = _speak(asked, bundle.languages, spoken)
    choices, left_out = _score(bundle, asked, places, spoken, problems)
    if not choices:
        first = next(iter(problems))
        raise TresseError(f"no cloze item can be scored; the first problem: item {first[0]}: {first[3]}")
    results = results_of(checked, bundle.languages, named(speakers), choices, left_out)
    results["protocol"]["tags"] = bundle.vocabulary.tags
    results["protocol"]["trained"] = trained_among(speakers.get(UNSEEN, ()), panel)
    results["problems"] = [
        dict(zip(("id", "language", "entry", "problem"), problem, strict=True)) for problem in problems
    ]
    with atomic_path(out / "scores.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(asdict(choice)) + "\n" for choice in choices), encoding="utf-8")
    with atomic_path(out / "cloze.md") as temporary:
        temporary.write_text(markdown_page(results), encoding="utf-8")
    write_json(out / "results.json", results)
    return results


def _ask(
    items: list[Item], languages: Sequence[str], speakers: Mapping[str, Sequence[Speakers]], seed: int = 0
) -> list[_Asked]:
    """Every item in every voice group that it is spoken in; recordings in their own."""
    asked = [
        _Asked(item, RECORDED, dict.fromkeys(languages, ""), {SAME: dict.fromkeys(languages, "")})
        for item in items
        if item.recorded
    ]
    for group, choices in speakers.items():
        for item in items:
            if item.recorded:
                continue
            own = item.draw(choices, seed=seed)
            endings: dict[str, Speakers] = {SAME: own}
            if len(choices) > 1 and group == next(iter(speakers)):
                endings[DIFFERENT] = item.draw(choices, shift=1, seed=seed)
            asked.append(_Asked(item, group, own, endings))
    return asked


Places = list[dict[tuple[str, ...], str]]
"""For each asked item, the key of the units at each place; what cannot be used is missing."""
Problems = dict[tuple[str, str, str, str], None]
"""(item, language, entry, why), each once, in order."""


def _speak(asked: list[_Asked], languages: Sequence[str], spoken: SpokenUnits) -> tuple[Places, Problems]:
    problems: Problems = {}
    wanted: list[tuple[int, tuple[str, ...], Request]] = []
    for number, query in enumerate(asked):
        requests, lacking = query.requests(languages)
        for language, part, why in lacking:
            problems[query.item.id, language, part, why] = None
        wanted += [(number, position, request) for position, request in requests.items()]
    failed = spoken.add(request for _, _, request in wanted)
    places: Places = [{} for _ in asked]
    for index, (number, position, request) in enumerate(wanted):
        if index in failed:
            part, language, which = position
            entry = f"context[{which}]" if part == "context" else part
            problems[asked[number].item.id, language, entry, failed[index]] = None
        else:
            places[number][position] = spoken.key(*request)
    return places, problems


def _score(
    bundle: Scorable, asked: list[_Asked], places: Places, spoken: SpokenUnits, problems: Problems
) -> tuple[list[Choice], dict[Cell, int]]:
    """Every usable choice, and how many were not, by cell; adds the items too long for the model to `problems`."""
    rows, owners, left_out = _rows(bundle, asked, places, spoken, problems)
    if not rows:
        return [], left_out
    shown: list[Progress] = []

    def progress(done: int, total: int) -> None:
        if not shown:
            shown.append(Progress("scoring", total, unit="rows"))
        shown[0].update(done)

    scores = score_endings(bundle.language_model, rows, **conditions(bundle.vocabulary), progress=progress)
    topics = getattr(bundle, "topics", None)
    if topics is not None:
        scores = [
            [
                replace(score, likeness=topics.likeness(row.prompt, ending))
                for score, ending in zip(scored, row.endings, strict=True)
            ]
            for row, scored in zip(rows, scores, strict=True)
        ]
    choices = [
        Choice(
            query.item.id, query.item.kind, query.item.pair, query.item.fact, query.group, pairing, context, ending,
            scored[2 * index], scored[2 * index + 1],
        )
        for owned, scored in zip(owners, scores, strict=True)
        for index, (query, pairing, context, ending) in enumerate(owned)
    ]  # fmt: skip
    return choices, left_out


def conditions(vocabulary: UnitVocabulary) -> dict[str, Any]:
    """How the protocol scores: endings alone stand behind `<bos>`; language tags are never counted."""
    return {"unconditional_prompt": [vocabulary.bos_id], "unscored": list(vocabulary.tag_ids.values())}


def scored_items(bundle: Scorable, items: Iterable[Any], voice: str, cache: Path | None = None) -> list[ScoredItem]:
    """What is scored for items in all cells where one voice speaks everything; what cannot be used is left out."""
    asked = _ask(to_items(items), bundle.languages, {CHOSEN: [dict.fromkeys(bundle.languages, voice)]})
    spoken = SpokenUnits(bundle.units, cache=cache, encoder_files=bundle.path / "units")
    places, problems = _speak(asked, bundle.languages, spoken)
    return _rows(bundle, asked, places, spoken, problems)[0]


Owners = list[list[tuple[_Asked, str, str, str]]]
"""For each row: (asked, pairing, language of the context, language of the endings) of each two of its endings."""


def _rows(
    bundle: Scorable, asked: list[_Asked], places: Places, spoken: SpokenUnits, problems: Problems
) -> tuple[list[ScoredItem], Owners, dict[Cell, int]]:
    """One row per prompt, with all its endings."""
    limit = getattr(bundle.language_model.config, "max_position_embeddings", None) or 1 << 30
    vocabulary, languages = bundle.vocabulary, bundle.languages
    tokens = _tokens(places, spoken, vocabulary)
    rows: list[ScoredItem] = []
    owners: Owners = []
    left_out: dict[Cell, int] = {}
    for query, keys_at in zip(asked, places, strict=True):
        endings: dict[tuple[str, str], list[np.ndarray]] = {}
        for pairing in query.endings:
            for language in languages:
                keys = [keys_at.get((part, language, pairing)) for part in ENDINGS]
                if None not in keys:
                    endings[pairing, language] = [
                        sentence_tokens(tokens[str(key)], language, vocabulary) for key in keys
                    ]
        for context in languages:
            entries = query.item.context.get(context)
            count = len(entries) if isinstance(entries, list) else 0
            keys = [keys_at.get(("context", context, str(k))) for k in range(count)]
            fitting: list[tuple[str, str]] = []
            prompt: list[int] = []
            if keys and None not in keys:
                sentences = [tokens[str(key)] for key in keys]
                prompt = braid({context: sentences}, [context] * count, vocabulary).tolist()
                for (pairing, ending), pair in endings.items():
                    longest = len(prompt) + max(map(len, pair))
                    if longest <= limit:
                        fitting.append((pairing, ending))
                    else:
                        why = f"{context}>{ending} has {longest} tokens and the model's context {limit}: shorten it"
                        problems[query.item.id, context, "context", why] = None
            for pairing in query.endings:
                for ending in languages:
                    if (pairing, ending) not in fitting:
                        cell = (query.group, pairing, context, ending, query.item.kind)
                        left_out[cell] = left_out.get(cell, 0) + 1
            if fitting:
                rows.append(ScoredItem(prompt, [part.tolist() for key in fitting for part in endings[key]]))
                owners.append([(query, pairing, context, ending) for pairing, ending in fitting])
    return rows, owners, left_out


def _tokens(places: Places, spoken: SpokenUnits, vocabulary: UnitVocabulary) -> dict[str, np.ndarray]:
    """The tokens of all units by key."""
    keys = list(dict.fromkeys(key for keys_at in places for key in keys_at.values()))
    units = [spoken.by_key(key) for key in keys]
    return dict(zip(keys, vocabulary.encode_batch([part.ids for part in units if part is not None]), strict=True))
