"""`tresse eval resynthesis`: speech -> units -> speech, and what it costs in words, sound, melody and loudness.

Held-out sentences (test stories, none of whose sentences training has heard) are spoken by three groups of voices, encoded,
and spoken again by the vocoder's speakers:

- `same speaker`: the vocoder's speakers, each resynthesised as itself, with the run lengths that were heard. Only here can
  sound and melody be compared with the original's;
- `same speaker, own timing`: the same units with the run lengths that the vocoder predicts, as in a reply;
- `training voices`, `held-out voices`: other prompts, spoken by the vocoder's speakers in turn.

Words are those of a recogniser (any object with `transcribe(waveform, sample_rate, language).text`): its errors on the
original speech stand beside those on the resynthesised. The bundle's own recogniser was trained on the vocoder's sound and
flatters it; a judge, DNSMOS and a speaker encoder (`train.evaluate.judges`) were not. Loudness is the level of what is not
silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from slm.errors import TresseError
from train.evaluate.judges import Embedding, Rating, likeness_of_speakers, ratings, speakers_table
from train.evaluate.metrics import RESYNTHESIS, named
from train.evaluate.scorable import Talking, Transcribing
from train.evaluate.word_error import character_errors, word_errors
from train.speech.pitch import pitch_contours
from train.speech.voices import SAMPLE_RATE, Voices, speak
from train.stories.held_out import held_out_sentences
from train.tools.checkpoints import atomic_path, write_json
from train.tools.progress import Progress
from train.vocoder.losses import SpectralLoss

SAME, OWN_TIMING = "same speaker", "same speaker, own timing"
TRAINING, HELD_OUT = "training voices", "held-out voices"
GOALS = {SAME: 0.03, OWN_TIMING: 0.03, TRAINING: 0.03, HELD_OUT: 0.08}
"""By how much word error may exceed that of the original speech."""
F0_GOAL, LOUDNESS_GOAL = 0.5, 2.0
PITCH_HOP = 0.01
"""s between two measurements of pitch."""
SILENT = 0.05
"""Share of the loudest 20 ms below which 20 ms are silence, where loudness is measured."""
RESAMPLES = 2000
QUIETEST = 1e-5
"""Level of the noise that spectrograms are drawn with."""
PLOT = "spectrograms.png"
WORDS = (
    "original_word_error",
    "word_error",
    "rise",
    "goal",
    "character_error",
    "resynthesised_character_error",
)
JUDGED = ("judged_original", "judged", "judged_rise", "natural_original", "natural")
SOUND = ("mel_distance", "f0_correlation", "f0_error", "voicing_error", "level", "level_spread", "peak")
"""Columns of the tables."""


@dataclass(frozen=True)
class Utterance:
    """A sentence, who spoke it, and what the vocoder made of its units."""

    group: str
    language: str
    text: str
    voice: str
    speaker: str
    original: np.ndarray
    spoken: np.ndarray


def evaluate_resynthesis(
    bundle: Talking,
    transcriber: Transcribing | None,
    *,
    out: Path,
    count: int = 60,
    panel: Voices | None = None,
    judge: Transcribing | None = None,
    rating: Rating | None = None,
    embed: Embedding | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a bundle on `count` sentences a language and group; write results.json, resynthesis.md and its plot.

    transcriber, judge: None leaves their word errors out; rating, embed: None leaves naturalness and likeness out.

    Raises TresseError where the bundle's speakers are not among the voices, or cannot speak here.
    """
    panel = panel or Voices.of(bundle.info, bundle.languages, bundle.speakers)
    utterances = resynthesise(bundle, held_out_sentences(bundle.info, bundle.languages, count), panel)
    results: dict[str, Any] = {
        "sentences": count,
        "speakers": list(bundle.speakers),
        "transcribed": transcriber is not None,
        "rows": {},
    }
    words = transcripts(utterances, transcriber) if transcriber is not None else None
    judged = transcripts(utterances, judge) if judge is not None else None
    for language in bundle.languages:
        rows = results["rows"][language] = {}
        for group in GOALS:
            members = [
                index
                for index, utterance in enumerate(utterances)
                if (utterance.language, utterance.group) == (language, group)
            ]
            if not members:
                continue
            some = [utterances[index] for index in members]
            row: dict[str, Any] = {"n": len(some), **loudness(some, bundle.sample_rate)}
            if words is not None:
                row |= recognition([words[index] for index in members], seed) | {"goal": GOALS[group]}
            if judged is not None:
                row["judge"] = recognition([judged[index] for index in members], seed)
            if rating is not None:
                row["naturalness"] = ratings(some, rating, bundle.sample_rate, SAMPLE_RATE)
            if group == SAME:
                row |= sound(some, bundle.sample_rate)
            rows[group] = row
    if embed is not None:
        own = [utterance for utterance in utterances if utterance.group == SAME]
        results["likeness"] = likeness_of_speakers(own, embed, bundle.sample_rate, SAMPLE_RATE)
    results["goals_met"] = goals_met(results)
    out.mkdir(parents=True, exist_ok=True)
    save_spectrograms(utterances, bundle.sample_rate, out / PLOT)
    with atomic_path(out / "resynthesis.md") as temporary:
        temporary.write_text(markdown_page(results), encoding="utf-8")
    write_json(out / "results.json", results)
    return results


def resynthesise(bundle: Talking, sentences: Sequence[tuple[str, str]], panel: Voices) -> list[Utterance]:
    """(language, text) sentences spoken by every group's voices in turn, those that can speak them here, encoded and
    spoken again. The bundle's own speakers have to."""
    own = [name for name in bundle.speakers if name in panel.training]
    if not own:
        raise TresseError(f"none of the bundle's speakers ({', '.join(bundle.speakers)}) is among the training voices")
    groups = {
        SAME: own,
        TRAINING: [name for name in panel.training if name not in own],
        HELD_OUT: list(panel.held_out),
    }
    spoken: list[Utterance] = []
    progress = Progress("resynthesis", len(sentences) * (len(groups) + 1), unit="sentences")
    languages = dict.fromkeys(language for language, _ in sentences)
    panel.check(own, languages)
    for group, names in groups.items():
        able = {
            language: [name for name in names if group == SAME or panel.can_speak(name, language)]
            for language in languages
        }
        for number, (language, text) in enumerate(sentences):
            if not able[language]:
                continue
            voice = able[language][number % len(able[language])]
            speaker = voice if group == SAME else own[number % len(own)]
            original = speak(text, language, panel.speaker(voice), panel)
            units = bundle.units.encode(original, SAMPLE_RATE)
            audio = bundle.vocoder.synthesise(units, speaker, language)
            utterance = Utterance(group, language, text, voice, speaker, original, audio)
            spoken.append(utterance)
            if group == SAME:
                unhurried = SimpleNamespace(ids=units.ids, run_lengths=None, frame_rate=units.frame_rate)
                audio = bundle.vocoder.synthesise(unhurried, speaker, language)
                spoken.append(replace(utterance, group=OWN_TIMING, spoken=audio))
            progress.update(len(spoken))
    return spoken


def transcripts(utterances: Sequence[Utterance], transcriber: Transcribing) -> list[tuple[str, str, str]]:
    """What was said, what the recogniser hears in the original, and in the resynthesised: of each utterance."""
    heard: list[tuple[str, str, str]] = []
    originals: dict[int, str] = {}
    progress = Progress("transcripts", len(utterances), unit="sentences")
    for utterance in utterances:
        if id(utterance.original) not in originals:
            originals[id(utterance.original)] = transcriber.transcribe(
                utterance.original, SAMPLE_RATE, utterance.language
            ).text
        again = transcriber.transcribe(utterance.spoken, SAMPLE_RATE, utterance.language).text
        heard.append((utterance.text, originals[id(utterance.original)], again))
        progress.update(len(heard))
    return heard


def recognition(words: Sequence[tuple[str, str, str]], seed: int) -> dict[str, Any]:
    """Word and character error of the original and of the resynthesised, and by how much word error rose (95 % interval).

    Errors of all sentences over words (characters) of all; the interval is a bootstrap over sentences.
    """
    said, original, again = zip(*words, strict=True)
    results: dict[str, Any] = {}
    for name, count in (("word_error", word_errors), ("character_error", character_errors)):
        before, lengths = count(said, original)
        after, _ = count(said, again)
        rates = [float(errors.sum() / max(1, lengths.sum())) for errors in (before, after)]
        results[name] = {"original": rates[0], "resynthesis": rates[1]}
        if name == "word_error":
            drawn = np.random.default_rng(seed).integers(0, len(said), (RESAMPLES, len(said)))
            rises = (after - before)[drawn].sum(1) / lengths[drawn].sum(1)
            low, high = np.percentile(rises, [2.5, 97.5])
            results["rise"] = {"mean": rates[1] - rates[0], "ci95": [float(low), float(high)]}
    return results


def sound(utterances: Sequence[Utterance], sample_rate: int) -> dict[str, float]:
    """Mel distance (mean absolute difference of log-mels, nats), and the melody where both are voiced.

    f0_correlation: of log f0, mean over sentences; f0_error: mean, in semitones; voicing_error: share of frames.
    """
    hop = round(PITCH_HOP * sample_rate)
    spectral = SpectralLoss(sample_rate)
    contours = pitch_contours(
        [utterance.original for utterance in utterances] + [utterance.spoken for utterance in utterances],
        sample_rate,
        hop,
    )
    distances, correlations, errors, voicing = [], [], [], []
    for index, utterance in enumerate(utterances):
        shared = min(len(utterance.original), len(utterance.spoken))
        pair = [torch.from_numpy(waveform[:shared])[None] for waveform in (utterance.spoken, utterance.original)]
        distances.append(float(spectral(*pair)[0]))
        f0, again = contours[index], contours[len(utterances) + index]
        frames = min(len(f0), len(again))
        correlation, error = compare_melodies(f0[:frames], again[:frames])
        correlations.append(correlation)
        errors.append(error)
        voicing.append(float(np.mean((f0[:frames] > 0) != (again[:frames] > 0))))
    return {
        "mel_distance": float(np.mean(distances)),
        "f0_correlation": float(np.nanmean(correlations)),
        "f0_error": float(np.nanmean(errors)),
        "voicing_error": float(np.mean(voicing)),
    }


def compare_melodies(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Hz [T] each, 0 where unvoiced -> correlation of log f0 and mean error in semitones, where both are voiced.

    NaN where fewer than ten frames are; a flat contour correlates with nothing (0).
    """
    both = (one > 0) & (other > 0)
    if both.sum() < 10:
        return float("nan"), float("nan")
    a, b = np.log2(one[both]), np.log2(other[both])
    flat = min(a.std(), b.std()) < 1e-6
    return 0.0 if flat else float(np.corrcoef(a, b)[0, 1]), float(12 * np.abs(a - b).mean())


def active_level(waveform: np.ndarray, sample_rate: int) -> float:
    """dB of full scale of what is not silence; -inf for silence."""
    size = sample_rate // 50
    blocks = waveform[: len(waveform) // size * size].reshape(-1, size)
    power = np.mean(np.square(blocks, dtype=np.float64), axis=1)
    loud = power[power > SILENT**2 * power.max(initial=0.0)]
    return float(10 * np.log10(loud.mean())) if len(loud) else float("-inf")


def loudness(utterances: Sequence[Utterance], sample_rate: int) -> dict[str, float]:
    """Mean level (dB), the widest distance of a sentence from it (dB), and the highest sample."""
    levels = np.array([active_level(utterance.spoken, sample_rate) for utterance in utterances])
    return {
        "level": float(levels.mean()),
        "level_spread": float(np.abs(levels - levels.mean()).max()),
        "peak": float(max(np.abs(utterance.spoken).max(initial=0.0) for utterance in utterances)),
    }


def goals_met(results: dict[str, Any]) -> dict[str, bool]:
    """Which of the goals hold in every language: word error, melody, loudness."""
    rows = [(group, row) for groups in results["rows"].values() for group, row in groups.items()]
    met = {"loudness": all(row["level_spread"] <= LOUDNESS_GOAL and row["peak"] < 1.0 for _, row in rows)}
    met["melody"] = all(row["f0_correlation"] >= F0_GOAL for group, row in rows if group == SAME)
    if results["transcribed"]:
        met["word_error"] = all(row["rise"]["mean"] <= row["goal"] for _, row in rows)
    return met


def markdown_page(results: dict[str, Any]) -> str:
    """The report: protocol, tables, spectrograms."""
    page = [
        "# Resynthesis",
        "",
        f"Speech, its units, and speech again by {', '.join(results['speakers'])}; {results['sentences']} sentences of",
        "test stories a language and group. Word and character errors are those of a recogniser's transcripts, in %;",
        "in brackets a 95 % bootstrap interval over sentences.",
        "",
        summary_table(results),
        "",
        *strangers(results),
        "## Sound and melody",
        "",
        "The vocoder's speakers against themselves. Mel distance in nats; f0 where both are voiced: correlation of its",
        "logarithm within a sentence, error in semitones. Loudness: level of what is not silence, and the sentence farthest",
        "from the mean.",
        "",
        _table(results, SOUND),
    ]
    met = ", ".join(f"{name} {'met' if met else 'not met'}" for name, met in results["goals_met"].items())
    return "\n".join([*page, "", f"Goals: {met}.", "", f"![{PLOT}]({PLOT})"]) + "\n"


def strangers(results: dict[str, Any]) -> list[str]:
    """The page's lines on what independent ears say, where they were asked."""
    lines: list[str] = []
    rows = [row for groups in results["rows"].values() for row in groups.values()]
    if any("judge" in row or "naturalness" in row for row in rows):
        lines += ["## Independent ears", "", "Word errors of the judge, and DNSMOS overall (1 to 5).", ""]
        lines += [_table(results, JUDGED), ""]
    if results.get("likeness"):
        lines += [speakers_table(results["likeness"]), ""]
    return lines


def summary_table(results: dict[str, Any]) -> str:
    """The table for the terminal: errors of the original and of the resynthesised."""
    if not results["transcribed"]:
        return "No recogniser: word errors were not measured."
    return _table(results, WORDS)


def _table(results: dict[str, Any], fields: Sequence[str]) -> str:
    """A row for each language and group of voices, a column for each field of `metrics.RESYNTHESIS`."""
    metrics = [named(RESYNTHESIS, field) for field in fields]
    heads = [metric.title + (f", {metric.unit}" if metric.unit else "") for metric in metrics]
    lines = [f"| Language | Voices | {' | '.join(heads)} |", "|---|---|" + "---:|" * len(metrics)]
    for language, rows in results["rows"].items():
        for group, row in rows.items():
            lines.append(f"| {language} | {group} | {' | '.join(metric.cell(row) for metric in metrics)} |")
    return "\n".join(lines)


def save_spectrograms(utterances: Sequence[Utterance], sample_rate: int, path: Path) -> None:
    """The first sentence of every language and speaker: original above resynthesised, with the pitch drawn in."""
    from matplotlib.figure import Figure

    firsts: dict[tuple[str, str], Utterance] = {}
    for utterance in utterances:
        if utterance.group == SAME:
            firsts.setdefault((utterance.language, utterance.speaker), utterance)
    figure = Figure(figsize=(12, 3.6 * len(firsts)), layout="constrained")
    grid = figure.subplots(2 * len(firsts), 1, squeeze=False)[:, 0]
    hop = round(PITCH_HOP * sample_rate)
    longest = max((max(len(utterance.original), len(utterance.spoken)) for utterance in firsts.values()), default=0)
    dither = np.random.default_rng(0).standard_normal(longest).astype(np.float32)  # digital silence has no logarithm
    for index, ((language, speaker), utterance) in enumerate(firsts.items()):
        for axes, title, waveform in zip(
            grid[2 * index :], ("original", "resynthesised"), (utterance.original, utterance.spoken), strict=False
        ):
            axes.specgram(
                waveform + QUIETEST * dither[: len(waveform)],
                NFFT=512,
                noverlap=384,
                Fs=sample_rate,
                vmin=-130,
                vmax=-30,
                cmap="magma",
            )
            [f0] = pitch_contours([waveform], sample_rate, hop)
            times = (np.arange(len(f0)) + 0.5) * PITCH_HOP
            axes.plot(times[f0 > 0], 10 * f0[f0 > 0], ".", color="cyan", markersize=2)
            axes.set(title=f"{language}, {speaker}, {title}: {utterance.text}", ylabel="Hz (pitch x 10)")
    if firsts:
        grid[-1].set_xlabel("time (s)")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)
