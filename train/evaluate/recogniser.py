"""The recogniser's own evaluation: word error and language of sentences it was not trained on, in both voice groups."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train.asr.plan import written
from train.evaluate.metrics import RECOGNISER, named
from train.evaluate.scorable import Transcribing
from train.evaluate.word_error import word_errors
from train.speech.voices import SAMPLE_RATE, Voices, speak
from train.tools.checkpoints import atomic_path, write_json
from train.tools.progress import Progress

GROUPS = {"training": "training voices", "held_out": "held-out voices"}


def evaluate_recogniser(
    transcriber: Transcribing, sentences: Sequence[tuple[str, str]], panel: Voices, *, out: Path | None = None
) -> dict[str, Any]:
    """What a recogniser makes of (language, text) sentences, each spoken by a voice of both groups.

    Returns word_error by group and language (errors a spoken word), language (share of utterances whose language was
    recognised, by group), confidence, real_time_factor and utterances. out: receives results.json and recogniser.md.
    """
    languages = list(dict.fromkeys(language for language, _ in sentences))
    results: dict[str, Any] = {"word_error": {}, "language": {}, "utterances": 0}
    groups = {group: list(getattr(panel, group).values()) for group in GROUPS}
    progress = Progress("recogniser", len(sentences) * len(groups), unit="utterances")
    seconds = spent = 0.0
    confidences = []
    for group, speakers in groups.items():
        wrong, words = dict.fromkeys(languages, 0), dict.fromkeys(languages, 0)
        right = 0
        for number, (language, text) in enumerate(sentences):
            waveform = speak(text, language, speakers[number % len(speakers)], panel)
            began = time.perf_counter()
            heard = transcriber.transcribe(waveform, SAMPLE_RATE)
            spent += time.perf_counter() - began
            seconds += len(waveform) / SAMPLE_RATE
            errors, length = word_errors([written(text)], [heard.text])
            wrong[language] += int(errors.sum())
            words[language] += int(length.sum())
            right += heard.language == language
            confidences.append(heard.confidence)
            results["utterances"] += 1
            progress.update(results["utterances"])
        results["word_error"][group] = {code: round(wrong[code] / words[code], 4) for code in languages}
        results["language"][group] = round(right / len(sentences), 4)
    results["confidence"] = round(float(np.mean(confidences)), 3)
    results["real_time_factor"] = round(spent / seconds, 4)
    if out is not None:
        write_json(out / "results.json", results)
        with atomic_path(out / "recogniser.md") as temporary:
            temporary.write_text(markdown_page(results), encoding="utf-8")
    return results


def markdown_page(results: Mapping[str, Any]) -> str:
    """The report."""
    languages = list(next(iter(results["word_error"].values())))
    error, recognised = (named(RECOGNISER, field) for field in ("word_error", "language"))
    page = [
        "# Recogniser",
        "",
        f"{results['utterances']} utterances: test sentences that are in no training story, without punctuation and case.",
        f"{results['real_time_factor']:.3f} of real time.",
        "",
        f"| Voices | {' | '.join(f'{error.title} {language}' for language in languages)} | {recognised.title} |",
        "|---|" + "---:|" * (len(languages) + 1),
    ]
    for group, errors in results["word_error"].items():
        cells = [error.text(errors[language]) for language in languages]
        page.append(f"| {GROUPS[group]} | {' | '.join(cells)} | {recognised.text(results['language'][group])} |")
    return "\n".join(page) + "\n"
