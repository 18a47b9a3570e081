"""Continuation: what the model says when it goes on with a story, by every language it is told in and asked for.

The first sentences of stories are spoken by voices that no training heard; the bundle continues each in every language,
greedily and at three temperatures; a recogniser writes the continuations down (see `slm.transcribe`; any object with its
`transcribe` will do). Per language pair and temperature:

- *in_domain*: share of the prompts that are in domain (`slm.prompt_stream`): the reply to another does not follow from it;
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slm.audio import write_wav
from slm.errors import MachineError, TresseError
from slm.settings import TEMPERATURE, TOP_P
from train.evaluate.continuation_report import Continuation, markdown_page, save_plot
from train.evaluate.facts import coherence, lexicon, parser, words_of
from train.evaluate.repetition import auto_bleu, self_bleu
from train.evaluate.scorable import Talking, Transcribing
from train.evaluate.spoken_items import files_hash
from train.speech.voices import SAMPLE_RATE, Voices, speak
from train.stories.grammar import Story, generate_stories
from train.tools.checkpoints import atomic_path, write_json
from train.tools.progress import Progress
from train.tools.statistics import bootstrap

TEMPERATURES = (0.0, 0.5, TEMPERATURE, 1.0)
PAUSE = 0.45
"""s between the sentences of a prompt."""


def evaluate_continuation(
    bundle: Talking,
    transcriber: Transcribing | None,
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
    made = _Making(bundle, transcriber, out, stories, panel, voices, sentences, seed, max_seconds)
    rows, problems = made.all(temperatures, fingerprint)
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


@dataclass(frozen=True)
class _Making:
    """How the continuations of an evaluation are made."""

    bundle: Talking
    transcriber: Transcribing | None
    out: Path
    stories: list[Story]
    panel: Voices
    voices: list[str]
    sentences: int
    seed: int
    max_seconds: float

    def all(self, temperatures: Sequence[float], fingerprint: str) -> tuple[list[Continuation], list[dict[str, str]]]:
        """Every continuation, those included that an earlier run made, and what could not be made."""
        wanted = [
            (number, said, asked, temperature)
            for number in range(len(self.stories))
            for said in self.bundle.languages
            for asked in self.bundle.languages
            for temperature in temperatures
        ]
        table = self.out / "continuations.jsonl"
        done = _read_table(table, fingerprint, self.out)
        progress = Progress("continuations", len(wanted), start=len(done), unit="continuations")
        problems: list[dict[str, str]] = []
        rows: list[Continuation] = []
        spoken: tuple[tuple[int, str], np.ndarray] | None = None
        self.out.mkdir(parents=True, exist_ok=True)
        with table.open("a" if done else "w", encoding="utf-8") as file:
            for count, (number, said, asked, temperature) in enumerate(wanted, start=1):
                id = f"{number:03d}-{said}-{asked}-{temperature:g}"
                if id not in done:
                    try:
                        if spoken is None or spoken[0] != (number, said):
                            spoken = (number, said), self._speak_prompt(number, said)
                        row = self._continue(id, spoken[1], number, said, asked, temperature)
                    except MachineError:
                        raise
                    except TresseError as error:
                        problems.append({"id": id, "language": said, "entry": "prompt", "problem": str(error)})
                        continue
                    file.write(json.dumps({"fingerprint": fingerprint, **asdict(row)}, ensure_ascii=False) + "\n")
                    file.flush()
                    done[id] = row
                rows.append(done[id])
                progress.update(count)
        return rows, problems

    def _voice(self, number: int) -> str:
        return self.voices[number % len(self.voices)]

    def _speak_prompt(self, number: int, language: str) -> np.ndarray:
        pause = np.zeros(int(PAUSE * SAMPLE_RATE), np.float32)
        speaker = self.panel.speaker(self._voice(number))
        texts = self.stories[number].sentences[language][: self.sentences]
        parts = [speak(text, language, speaker, self.panel) for text in texts]
        return np.concatenate([part for sentence in parts for part in (sentence, pause)][:-1])

    def _continue(
        self, id: str, prompt: np.ndarray, number: int, said: str, asked: str, temperature: float
    ) -> Continuation:
        bundle, rate = self.bundle, self.bundle.sample_rate
        drawing = {"seed": self.seed + number, "temperature": temperature, "top_p": TOP_P}
        chunks = list(bundle.continue_speech(prompt, SAMPLE_RATE, to=asked, max_seconds=self.max_seconds, **drawing))
        audio = np.concatenate([chunk.audio for chunk in chunks]) if chunks else np.zeros(0, np.float32)
        write_wav(self.out / f"audio/{id}.wav", audio, rate)
        text, share, confidence = None, None, None
        if self.transcriber is not None:
            transcript = self.transcriber.transcribe(audio, rate) if len(audio) else None
            segments = list(transcript.segments) if transcript is not None else []
            total = sum(part.end - part.start for part in segments)
            text = transcript.text if transcript is not None else ""
            share = sum(part.end - part.start for part in segments if part.language == asked) / total if total else 0.0
            confidence = float(transcript.confidence) if transcript is not None else 0.0
        return Continuation(
            id=id,
            story=number,
            told=said,
            asked=asked,
            temperature=temperature,
            voice=self._voice(number),
            prompt=" ".join(self.stories[number].sentences[said][: self.sentences]),
            audio=f"audio/{id}.wav",
            seconds=len(audio) / rate,
            tokens=chunks[-1].tokens if chunks else 0,
            transcript=text,
            language=share,
            confidence=confidence,
            in_domain=chunks[-1].prompt.in_domain if chunks else None,
        )


def _read_table(path: Path, fingerprint: str, out: Path) -> dict[str, Continuation]:
    """What an earlier run with the same settings has finished; a last line that was cut off counts as not done."""
    done: dict[str, Continuation] = {}
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for line in lines:
        try:
            row = json.loads(line)
            if row.pop("fingerprint") == fingerprint and (out / row["audio"]).exists():
                row["in_domain"] = row.pop("familiar", row.get("in_domain"))
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
    known = np.asarray([value for value in values if value is not None], float)
    if not len(known):
        return {"mean": None, "ci95": [None, None], "n": 0}
    mean, interval = bootstrap(known)
    return {"mean": mean, "ci95": interval, "n": len(known)}


def _cells(rows: list[Continuation], stories: list[Story], sentences: int) -> dict[str, dict[str, dict[str, Any]]]:
    """{"en>fr": {"0.7": metrics}}."""
    cells: dict[str, dict[str, list[Continuation]]] = {}
    for row in rows:
        cells.setdefault(f"{row.told}>{row.asked}", {}).setdefault(f"{row.temperature:g}", []).append(row)
    return {
        name: {temperature: _metrics(drawn, stories, sentences) for temperature, drawn in by_temperature.items()}
        for name, by_temperature in cells.items()
    }


def _metrics(rows: list[Continuation], stories: list[Story], sentences: int) -> dict[str, Any]:
    """rows: of one language pair and temperature."""
    measured: dict[str, Any] = {
        "n": len(rows),
        "seconds": _mean([row.seconds for row in rows]),
        "silent": sum(row.seconds == 0 for row in rows),
        "in_domain": _mean([None if row.in_domain is None else float(row.in_domain) for row in rows]),
    }
    texts = [row.transcript for row in rows if row.transcript is not None]
    if len(texts) < len(rows):
        return measured
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
    return measured | {
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
    shares_by_pair = {}
    for told in languages:
        for asked in languages:
            shares = [
                coherence(
                    parser(told).facts(" ".join(story.sentences[told][:sentences])),
                    parser(asked).facts(" ".join(story.sentences[asked][sentences:])),
                ).share
                for story in stories
            ]
            shares_by_pair[f"{told}>{asked}"] = _mean(shares)
    return shares_by_pair
