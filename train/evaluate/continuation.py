"""Continuation: what the model says when it goes on with a story, by every language it is told in and asked for.

The first sentences of stories are spoken by voices that no training heard; the bundle continues each in every language,
greedily and at three temperatures; a recogniser writes the continuations down (see `slm.transcribe`; any object with its
`transcribe` will do). Per language pair and temperature:

- *familiar*: share of the prompts that the model could make out (`slm.continuation.understand`): what it could not, its
  reply does not follow from;
- *language*: share of the speech that the recogniser hears in the language asked for;
- *lexicon*: share of the words that the stories' lexicon has; *confidence* of the recogniser: both measure intelligibility;
- *coherence*: of the facts that a continuation names and whose kind the prompt names too, the share that agree with the
  prompt (`train.evaluate.facts`). Controls: the same continuations against the prompt of another story, and the stories'
  own next sentences, as written, against their prompts: the floor and the ceiling;
- *auto-BLEU-2*, *self-BLEU-2* (`train.evaluate.repetition`), *length* in s, and how many were silent.

All audio and a table of transcripts are kept. What is done is done: run again, it goes on where it stopped. Cost, one core:
about a second a continuation of 8 s with the shipped model and recogniser.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from slm.audio import write_wav
from slm.errors import TresseError
from slm.settings import TEMPERATURE, TOP_P
from train.evaluate.facts import coherence, lexicon, parser, words_of
from train.evaluate.repetition import auto_bleu, self_bleu
from train.evaluate.spoken_items import files_hash
from train.speech.voices import SAMPLE_RATE, Voices, speak
from train.stories.grammar import Story, generate_stories
from train.tools.checkpoints import atomic_path, write_json
from train.tools.progress import Progress
from train.tools.statistics import bootstrap

TEMPERATURES = (0.0, 0.5, TEMPERATURE, 1.0)
PAUSE = 0.45
"""s between the sentences of a prompt."""
METRICS = {
    "language": "in the language asked for",
    "lexicon": "words in the lexicon",
    "confidence": "recogniser's confidence",
    "coherence": "coherence",
    "coherence_control": "coherence with another prompt",
    "auto_bleu_2": "auto-BLEU-2",
}


class Recogniser(Protocol):
    """What is asked of a transcriber: `slm.transcribe.Transcriber` is one."""

    def transcribe(self, waveform: np.ndarray, sample_rate: int) -> Any:
        """float32 [samples] -> a transcript with `text`, `confidence` and `segments` (start, end, language)."""
        ...


@dataclass(frozen=True)
class Continuation:
    """One continuation. audio: file beside the table; language: share of the speech in the language asked for; familiar:
    whether the model could make the prompt out (None: it said nothing)."""

    id: str
    story: int
    told: str
    asked: str
    temperature: float
    voice: str
    prompt: str
    audio: str
    seconds: float
    tokens: int
    transcript: str | None
    language: float | None
    confidence: float | None
    familiar: bool | None = None


def evaluate_continuation(
    bundle: Any,
    transcriber: Recogniser | None,
    *,
    out: Path,
    prompts: int = 20,
    sentences: int = 3,
    temperatures: Sequence[float] = TEMPERATURES,
    split: str = "test",
    seed: int = 1,
    max_seconds: float = 10.0,
    panel: Voices | None = None,
) -> dict[str, Any]:
    """Continue `prompts` stories in all language pairs; write and return the results.

    transcriber: None measures only what needs no transcript. out: receives results.json, continuation.md,
    continuations.jsonl, continuation.png and audio/. Raises TresseError where no continuation can be made.
    """
    panel = panel or Voices.load()
    voices = list(panel.held_out) or list(panel.training)
    stories = list(generate_stories(seed, prompts, split))
    for story in stories:
        for language in bundle.languages:
            if language not in story.sentences:
                raise TresseError(f"the stories are not told in {language}: evaluate a bundle of their languages")
    settings = {
        "bundle": files_hash(bundle.path),
        "prompts": prompts,
        "sentences": sentences,
        "split": split,
        "seed": seed,
        "max_seconds": max_seconds,
        "top_p": TOP_P,
        "transcribed": transcriber is not None,
        "voices": panel.fingerprint(voices),
    }
    fingerprint = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    wanted = [
        (number, told, asked, temperature)
        for number in range(len(stories))
        for told in bundle.languages
        for asked in bundle.languages
        for temperature in temperatures
    ]
    table = out / "continuations.jsonl"
    done = _read_table(table, fingerprint, out)
    progress = Progress("continuations", len(wanted), start=len(done), unit="continuations")
    problems: list[dict[str, str]] = []
    rows: list[Continuation] = []
    spoken: tuple[tuple[int, str], np.ndarray] | None = None
    out.mkdir(parents=True, exist_ok=True)
    with table.open("a" if done else "w", encoding="utf-8") as file:
        for place, (number, told, asked, temperature) in enumerate(wanted, start=1):
            id = f"{number:03d}-{told}-{asked}-{temperature:g}"
            if id not in done:
                text, voice = stories[number].sentences[told][:sentences], voices[number % len(voices)]
                try:
                    if spoken is None or spoken[0] != (number, told):
                        spoken = (number, told), _speak_prompt(text, told, voice, panel)
                    row = _continue(
                        bundle, transcriber, spoken[1], asked, temperature, seed + number, max_seconds,
                        out, Continuation(
                            id, number, told, asked, temperature, voice, " ".join(text), f"audio/{id}.wav", 0.0, 0,
                            None, None, None,
                        ),
                    )  # fmt: skip
                except TresseError as error:
                    problems.append({"id": id, "language": told, "entry": "prompt", "problem": str(error)})
                    continue
                file.write(json.dumps({"fingerprint": fingerprint, **asdict(row)}, ensure_ascii=False) + "\n")
                file.flush()
                done[id] = row
            rows.append(done[id])
            progress.update(place)
    if not rows:
        raise TresseError(f"no continuation could be made; the first problem: {problems[0]['problem']}")
    results = {
        "settings": {**settings, "temperatures": list(temperatures), "voices": voices},
        "continuations": len(rows),
        "cells": _cells(rows, stories, sentences),
        "ceiling": _ceiling(stories, bundle.languages, sentences),
        "problems": problems,
    }
    if transcriber is not None:
        save_plot(results, out / "continuation.png")
    with atomic_path(out / "continuation.md") as temporary:
        temporary.write_text(markdown_page(results, rows), encoding="utf-8")
    write_json(out / "results.json", results)
    return results


def _speak_prompt(sentences: Sequence[str], language: str, voice: str, panel: Voices) -> np.ndarray:
    pause = np.zeros(int(PAUSE * SAMPLE_RATE), np.float32)
    parts = [speak(text, language, panel.speaker(voice), panel) for text in sentences]
    return np.concatenate([part for sentence in parts for part in (sentence, pause)][:-1])


def _continue(
    bundle: Any,
    transcriber: Recogniser | None,
    prompt: np.ndarray,
    asked: str,
    temperature: float,
    seed: int,
    max_seconds: float,
    out: Path,
    row: Continuation,
) -> Continuation:
    chunks = list(
        bundle.continue_speech(
            prompt, SAMPLE_RATE, to=asked, seed=seed, temperature=temperature, top_p=TOP_P, max_seconds=max_seconds
        )
    )
    audio = np.concatenate([chunk.audio for chunk in chunks]) if chunks else np.zeros(0, np.float32)
    write_wav(out / row.audio, audio, bundle.sample_rate)
    text, share, confidence = None, None, None
    if transcriber is not None:
        transcript = transcriber.transcribe(audio, bundle.sample_rate) if len(audio) else None
        segments = list(transcript.segments) if transcript is not None else []
        total = sum(one.end - one.start for one in segments)
        text = transcript.text if transcript is not None else ""
        share = sum(one.end - one.start for one in segments if one.language == asked) / total if total else 0.0
        confidence = float(transcript.confidence) if transcript is not None else 0.0
    found: dict[str, Any] = {"seconds": len(audio) / bundle.sample_rate, "tokens": 0}
    if chunks:
        found |= {"tokens": chunks[-1].tokens, "familiar": chunks[-1].prompt.in_domain}
    return Continuation(**{**asdict(row), **found, "transcript": text, "language": share, "confidence": confidence})


def _read_table(path: Path, fingerprint: str, out: Path) -> dict[str, Continuation]:
    """What an earlier run with the same settings has finished; a last line that was cut off counts as not done."""
    done: dict[str, Continuation] = {}
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for line in lines:
        try:
            row = json.loads(line)
            if row.pop("fingerprint") == fingerprint and (out / row["audio"]).exists():
                done[row["id"]] = Continuation(**row)
        except (ValueError, KeyError, TypeError):
            continue
    if done:  # rewritten, so that what is appended begins on a line of its own
        with atomic_path(path) as temporary:
            temporary.write_text(
                "".join(
                    json.dumps({"fingerprint": fingerprint, **asdict(row)}, ensure_ascii=False) + "\n"
                    for row in done.values()
                ),
                encoding="utf-8",
            )
    return done


def _mean(values: Sequence[float | None]) -> dict[str, Any]:
    held = np.asarray([value for value in values if value is not None], float)
    if not len(held):
        return {"mean": None, "ci95": [None, None], "n": 0}
    mean, interval = bootstrap(held)
    return {"mean": mean, "ci95": interval, "n": len(held)}


def _cells(rows: list[Continuation], stories: list[Story], sentences: int) -> dict[str, dict[str, dict[str, Any]]]:
    """{"en>fr": {"0.7": metrics}}."""
    cells: dict[str, dict[str, list[Continuation]]] = {}
    for row in rows:
        cells.setdefault(f"{row.told}>{row.asked}", {}).setdefault(f"{row.temperature:g}", []).append(row)
    return {
        name: {temperature: _metrics(held, stories, sentences) for temperature, held in by_temperature.items()}
        for name, by_temperature in cells.items()
    }


def _metrics(rows: list[Continuation], stories: list[Story], sentences: int) -> dict[str, Any]:
    """rows: of one language pair and temperature."""
    found: dict[str, Any] = {
        "n": len(rows),
        "seconds": _mean([row.seconds for row in rows]),
        "silent": sum(row.seconds == 0 for row in rows),
        "familiar": _mean([None if row.familiar is None else float(row.familiar) for row in rows]),
    }
    texts = [row.transcript for row in rows if row.transcript is not None]
    if len(texts) < len(rows):
        return found
    known = lexicon(rows[0].asked)
    said = [words_of(text) for text in texts]
    own, others, named = [], [], []
    for row in rows:
        facts = parser(row.asked).facts(row.transcript or "")
        prompts = [
            parser(row.told).facts(" ".join(stories[number % len(stories)].sentences[row.told][:sentences]))
            for number in (row.story, row.story + 1)
        ]
        own.append(coherence(prompts[0], facts).share)
        others.append(coherence(prompts[1], facts).share if len(stories) > 1 else None)
        named.append(coherence(prompts[0], facts).named)
    return found | {
        "language": _mean([row.language for row in rows]),
        "lexicon": _mean([sum(word in known for word in words) / len(words) if words else 0.0 for words in said]),
        "confidence": _mean([row.confidence for row in rows]),
        "coherence": _mean(own),
        "coherence_control": _mean(others),
        "facts": _mean([float(count) for count in named]),
        "auto_bleu_2": _mean([auto_bleu(words) for words in said]),
        "self_bleu_2": self_bleu(said),
        "words": _mean([float(len(words)) for words in said]),
    }


def _ceiling(stories: list[Story], languages: Sequence[str], sentences: int) -> dict[str, Any]:
    """Coherence of the stories' own next sentences, as written, by language pair."""
    found = {}
    for told in languages:
        for asked in languages:
            shares = [
                coherence(
                    parser(told).facts(" ".join(story.sentences[told][:sentences])),
                    parser(asked).facts(" ".join(story.sentences[asked][sentences:])),
                ).share
                for story in stories
            ]
            found[f"{told}>{asked}"] = _mean(shares)
    return found


def markdown_table(results: Mapping[str, Any]) -> str:
    """A row for each language pair and temperature."""
    lines = [
        "| Told > asked | Temperature | prompts made out | in the language | in the lexicon | confidence | coherence "
        "| with another prompt | ceiling | facts | auto-BLEU-2 | self-BLEU-2 | s | silent |",
        "|---|---:|---:|---|---|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]

    def share(entry: Mapping[str, Any] | None, interval: bool = False) -> str:
        if entry is None or entry["mean"] is None:
            return "-"
        low, high = entry["ci95"]
        return f"{100 * entry['mean']:.0f}" + (f" [{100 * low:.0f}, {100 * high:.0f}]" if interval else "")

    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    for name, by_temperature in results["cells"].items():
        for temperature, one in by_temperature.items():
            cells = [
                share(one.get("familiar")),
                share(one.get("language"), True),
                share(one.get("lexicon"), True),
                number((one.get("confidence") or {}).get("mean"), 2),
                share(one.get("coherence"), True),
                share(one.get("coherence_control")),
                share(results["ceiling"][name]),
                number((one.get("facts") or {}).get("mean"), 1),
                number((one.get("auto_bleu_2") or {}).get("mean"), 2),
                number(one.get("self_bleu_2"), 2),
                number(one["seconds"]["mean"], 1),
                str(one["silent"]),
            ]
            lines.append(f"| {name} | {'greedy' if temperature == '0' else temperature} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def markdown_page(results: Mapping[str, Any], rows: Sequence[Continuation]) -> str:
    """The report: protocol, table, plot, and every transcript with its audio."""
    settings = results["settings"]
    page = [
        "# Continuation",
        "",
        f"{settings['prompts']} {settings['split']} stories, told as far as sentence {settings['sentences']} by voices that",
        f"no training heard ({', '.join(settings['voices'])}), continued for {settings['max_seconds']:g} s at most, top-p",
        f"{settings['top_p']:g}. Shares in % with 95 % bootstrap intervals over stories. Coherence: of the facts that a",
        "continuation names and whose kind the prompt names too, the share that agree; beside it the same against another",
        "story's prompt (the control), and that of the story's own next sentences as written (the ceiling). auto-BLEU-2:",
        "repetition within a continuation; self-BLEU-2: likeness of the continuations to each other.",
        "" if settings["transcribed"] else "\nWithout a recogniser (--asr) only lengths are measured.\n",
        markdown_table(results),
        "",
    ]
    if settings["transcribed"]:
        page += ["![Continuations by temperature](continuation.png)", ""]
    page += [
        "## Transcripts",
        "",
        "| Prompt | Told > asked | Temperature | Transcript | Audio |",
        "|---|---|---:|---|---|",
    ]
    for row in rows:
        said = (row.transcript or "-").replace("|", "/")
        prompt = row.prompt.replace("|", "/")
        page.append(f"| {prompt} | {row.told}>{row.asked} | {row.temperature:g} | {said} | [listen]({row.audio}) |")
    if results["problems"]:
        from train.evaluate.cloze.report import problems_section

        page += ["", *problems_section(results["problems"])]
    return "\n".join(page) + "\n"


def save_plot(results: Mapping[str, Any], path: Path) -> None:
    """Every share by temperature, a line for each language pair; the control dashed, the ceiling dotted."""
    from matplotlib.figure import Figure

    shown = [name for name in METRICS if name != "coherence_control"]
    figure = Figure(figsize=(15, 3.2), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(shown)), shown, strict=True):
        for colour, (name, by_temperature) in enumerate(results["cells"].items()):
            places = [float(temperature) for temperature in by_temperature]
            values = [one[metric]["mean"] for one in by_temperature.values()]
            axes.plot(places, [np.nan if v is None else v for v in values], f"C{colour}.-", label=name)
            if metric == "coherence":
                control = [one["coherence_control"]["mean"] for one in by_temperature.values()]
                axes.plot(places, [np.nan if v is None else v for v in control], f"C{colour}--")
                if (ceiling := results["ceiling"][name]["mean"]) is not None:
                    axes.axhline(ceiling, color=f"C{colour}", linestyle=":", linewidth=1)
        axes.set_title(METRICS[metric], fontsize=9)
        axes.set_xlabel("temperature")
        axes.set_ylim(-0.03, 1.03)
        if metric == shown[0]:
            axes.legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
