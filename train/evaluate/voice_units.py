"""`tresse eval voices --units DIR`: an encoder's units of anybody's recordings, without a bundle around it.

- *unit edit rate* between two speakers of the same text, by families, as `train.evaluate.voices` has it;
- *under conditions*: the same across families where one of the two recordings has passed through noise at 10 dB, a room
  of 0.4 s or a telephone line (`train.speech.augmentation`), and what that costs; between a recording and its changed
  copy;
- *phones* and *speakers* (`train.evaluate.voice_phones`): PNMI, ABX, and how well a probe tells who speaks;
- *units a second*, the share of the units that occur, and the seconds of speech encoded in a second on one thread.

`speak_texts` makes such recordings of texts that people have read: the same, spoken by synthesised speakers.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slm.audio import read_audio, resample
from slm.errors import TresseError
from slm.units import UnitEncoder, Units
from train.corpus.recordings import LISTING, Recording
from train.evaluate.units import Utterance, edit_rates
from train.evaluate.voice_phones import Aligner, measure_phones, speaker_probe
from train.evaluate.voices import edit_rates_by_family, edit_table
from train.speech.augmentation import SAMPLE_RATE, noise, room, telephone
from train.speech.voices import Unspeakable, Voices, speak
from train.tools.checkpoints import atomic_path, write_json
from train.tools.progress import Progress

CONDITIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "noise 10 dB": partial(noise, snr_db=10.0, seed=0, kind="pink"),
    "babble 10 dB": partial(noise, snr_db=10.0, seed=0, kind="babble"),
    "room 0.4 s": partial(room, seed=0, seconds=0.4),
    "telephone": telephone,
}


@dataclass(frozen=True)
class Encoded:
    """A recording, float32 [samples] at 16 kHz, and its units, clean and under each of the conditions."""

    recording: Recording
    waveform: np.ndarray
    units: Units
    language: str
    changed: dict[str, Units]

    @property
    def text(self) -> str:
        """What is said, in small letters."""
        return " ".join((self.recording.text or "").lower().split())


def evaluate_voice_units(
    encoder: UnitEncoder, recordings: Sequence[Recording], *, out: Path, aligner: Aligner | None = None
) -> dict[str, Any]:
    """Measure, and write results.json and voices.md to `out`. Recordings need a text and a language; others are left out.

    aligner: finds phones in recordings; without it what needs them is left out. What cannot be read is named in
    results["problems"]. Raises TresseError where no recording is left.
    """
    encoded, problems, seconds, spent = [], [], 0.0, 0.0
    progress = Progress("recordings", len(recordings), unit="recordings")
    threads = torch.get_num_threads()
    for number, recording in enumerate(recordings, 1):
        if recording.text is None or recording.language is None:
            continue
        try:
            waveform, rate = read_audio(recording.path)
        except (TresseError, OSError) as error:
            problems.append({"recording": recording.path.name, "problem": str(error)})
            continue
        waveform = resample(waveform, rate, SAMPLE_RATE)
        torch.set_num_threads(1)
        start = time.perf_counter()
        units = encoder.encode(waveform, SAMPLE_RATE)
        spent, seconds = spent + time.perf_counter() - start, seconds + len(waveform) / SAMPLE_RATE
        torch.set_num_threads(threads)
        changed = {name: encoder.encode(change(waveform), SAMPLE_RATE) for name, change in CONDITIONS.items()}
        encoded.append(Encoded(recording, waveform, units, recording.language, changed))
        progress.update(number)
    if not encoded:
        raise TresseError("no recording has a text and a language: add them to list.jsonl")
    ids = np.concatenate([part.units.ids for part in encoded])
    results: dict[str, Any] = {
        "recordings": len(encoded),
        "seconds": round(seconds, 1),
        "unit_edit_rate": edit_rates_by_family(encoded),
        "conditions": under_conditions(encoded),
        "phones": {} if aligner is None else phones_heard(encoder, encoded, aligner),
        "speakers": speakers_told(encoder, encoded),
        "units_per_second": len(ids) / seconds,
        "codebook_use": len(np.unique(ids)) / encoder.codebook_size,
        "times_real_time": seconds / spent,
        "problems": problems,
    }
    with atomic_path(out / "voices.md") as temporary:
        temporary.write_text(f"# Units of voices\n\n{tables(results)}\n", encoding="utf-8")
    write_json(out / "results.json", results)
    return results


def phones_heard(encoder: UnitEncoder, encoded: Sequence[Encoded], aligner: Aligner) -> dict[str, dict[str, Any]]:
    """`measure_phones` of the recordings in which the aligner hears their texts."""
    texts: dict[str, int] = {}
    utterances, units = [], []
    for part in encoded:
        phones = aligner.phones(part.waveform, part.recording.text or "", part.language)
        if phones is not None:
            sentence = texts.setdefault(part.text, len(texts))
            utterances.append(Utterance(part.language, sentence, part.recording.speaker, part.waveform, phones))
            units.append(part.units)
    return measure_phones(encoder, utterances, units)


def speakers_told(encoder: UnitEncoder, encoded: Sequence[Encoded]) -> dict[str, dict[str, float]]:
    """`speaker_probe` by language, where there are speakers enough."""
    told: dict[str, dict[str, float]] = {}
    for language in sorted({part.language for part in encoded}):
        own = [part for part in encoded if part.language == language]
        probe = speaker_probe(
            [part.units for part in own],
            [part.waveform for part in own],
            [part.recording.speaker for part in own],
            [part.text for part in own],
            encoder.codebook_size,
        )
        if probe is not None:
            told[language] = probe
    return told


def under_conditions(encoded: Sequence[Encoded]) -> dict[str, dict[str, dict[str, float]]]:
    """{language: {condition: {"across families", "cost", "against clean": edit rate}}}; cost: what the condition adds."""
    said: dict[tuple[str, str], list[Encoded]] = defaultdict(list)
    for part in encoded:
        said[part.language, part.text].append(part)
    rates: dict[str, dict[str, dict[str, float]]] = {}
    for language in sorted({language for language, _ in said}):
        across = [
            (first, second)
            for (spoken, _), parts in said.items()
            if spoken == language
            for first, second in permutations(parts, 2)
            if first.recording.family != second.recording.family
        ]
        own = [part for part in encoded if part.language == language]
        clean = _mean([(first.units.ids, second.units.ids) for first, second in across])
        rates[language] = {"clean": {"across families": clean, "cost": 0.0, "against clean": 0.0}}
        for name in CONDITIONS:
            rate = _mean([(first.changed[name].ids, second.units.ids) for first, second in across])
            rates[language][name] = {
                "across families": rate,
                "cost": rate - clean,
                "against clean": _mean([(part.changed[name].ids, part.units.ids) for part in own]),
            }
    return rates


def _mean(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    return float(edit_rates(pairs).mean()) if pairs else float("nan")


def tables(results: Mapping[str, Any]) -> str:
    """The report's tables."""
    lines = [
        f"{results['recordings']} recordings, {results['seconds']:.0f} s; {results['units_per_second']:.1f} units a second, "
        f"{100 * results['codebook_use']:.0f} % of the codebook; {results['times_real_time']:.0f} times real time on one "
        "thread.",
        "",
        edit_table(results),
        "",
        "| Under conditions | across families, % | cost, points | against its clean self, % |",
        "|---|---:|---:|---:|",
    ]
    for language, rows in results["conditions"].items():
        for name, row in rows.items():
            figures = " | ".join(f"{100 * row[key]:.1f}" for key in ("across families", "cost", "against clean"))
            lines.append(f"| {language}: {name} | {figures} |")
    if results["phones"]:
        lines += ["", *_phone_table(results["phones"])]
    for language, probe in results["speakers"].items():
        lines += [
            "",
            f"{language}: a probe names the speaker of {100 * probe['units']:.0f} % of {probe['recordings']} recordings "
            f"from their units, of {100 * probe['sound']:.0f} % from their sound; {probe['speakers']} speakers, chance "
            f"{100 * probe['chance']:.0f} %.",
        ]
    return "\n".join(lines)


def _phone_table(phones: Mapping[str, Any]) -> list[str]:
    lines = [
        "| Phones | recordings | PNMI | ABX within, % | ABX across speakers, % | triples |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for language, row in phones.items():
        for name, abx in row["abx"].items():
            errors = " | ".join("" if abx[key] is None else f"{100 * abx[key]:.1f}" for key in ("within", "across"))
            lines.append(
                f"| {language}: {name} | {row['recordings']} | {row['pnmi']:.3f} | {errors} | {abx['triples']:,} |"
            )
    return lines


def speak_texts(
    recordings: Sequence[Recording], voices: Voices, speakers: Sequence[str], out: Path, texts: int | None = None
) -> Path:
    """A folder with a list.jsonl: these recordings with a text, and the same texts spoken by synthesised speakers.

    texts: distinct ones a language, spread over all; every recording of a text that is taken is listed. A speaker speaks
    the languages that it can. What is there already is not spoken again.
    """
    import json

    import soundfile

    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for language in sorted({part.language for part in recordings if part.language and part.text}):
        spoken = [part for part in recordings if part.language == language and part.text]
        distinct = list(dict.fromkeys(str(part.text) for part in spoken))
        chosen = distinct[:: max(1, len(distinct) // texts)][:texts] if texts else distinct
        rows += [
            {"audio": str(part.path.resolve()), "text": part.text, "language": language, "speaker": part.speaker,
             "family": part.family}
            for part in spoken if part.text in chosen
        ]  # fmt: skip
        progress = Progress(f"speaking {language}", len(chosen), unit="texts")
        for number, text in enumerate(chosen):
            for name in speakers:
                speaker = voices.speaker(name)
                path = out / f"{language}-{number:03d}-{name}.flac"
                try:
                    voices.synthesiser(speaker).check(language, speaker)
                    if not path.exists():
                        with atomic_path(path) as temporary:
                            waveform = speak(text, language, speaker, voices)
                            soundfile.write(temporary, waveform, SAMPLE_RATE, format="FLAC")
                except (TresseError, Unspeakable):
                    continue
                row = {
                    "audio": path.name,
                    "text": text,
                    "language": language,
                    "speaker": name,
                    "family": speaker.family,
                }
                rows.append(row)
            progress.update(number + 1)
    with atomic_path(out / LISTING) as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return out
