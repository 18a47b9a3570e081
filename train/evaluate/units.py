"""Units measured: do they name what is said, and not who says it?

Held-out sentences are spoken by a panel of voices of each group (training voices, held-out voices). Per language and group,
for the encoder and for a plain MFCC + k-means encoder of equal codebook size and frame rate:

- *unit edit rate*: Levenshtein distance over the longer length between the collapsed units of two voices that speak the
  same sentence (every pair of the panel), of a voice and the reference voice, and of a clean and a changed recording
  (noise at 20 dB, pitch +-4 semitones, rate +-15 %, telephone band);
- *phone purity* and *PNMI* (Hsu et al., "HuBERT", 2021) over frames, against espeak-ng's phoneme times; silence is a label
  of its own, and both are also given without the frames of silence. The phone set: `train.speech.phones`. Few sentences
  flatter both, for the same words recur: 12 sentences gave a PNMI of 0.64 where 100 gave 0.58 and 400 gave 0.57;
- *ABX* error of triphones within and across voices (`train.evaluate.abx`), on one-hot units and, where the encoder offers
  `features(waveform) -> float32 [T, D]`, on these with the angular distance;
- *codebook use*: share of the units that occur, and the perplexity of the collapsed units;
- *units a second* after collapse, and *bits a second*: these times the entropy of a unit (run lengths not counted), as in
  the ZeroSpeech challenge 2019;
- *speed*: seconds of speech encoded in a second, in batches of eight, on the threads that torch has.

Everything is a function of the sentences, the voices and the seed. The default (100 sentences a language, six voices a
group) takes 200 s of one core, and 1 GB, with the encoder of `braid`.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein

from slm.audio import resample
from slm.errors import TresseError
from slm.units.sequence import UnitEncoder, Units
from train.evaluate.abx import abx_error, find_tokens
from train.evaluate.mfcc import MfccEncoder
from train.speech.espeak import EspeakSpeaker
from train.speech.phones import SILENCE, Phone, frame_labels, phones
from train.speech.voices import SAMPLE_RATE, Speaker, Voices, speak, speak_with_phonemes
from train.tools.progress import Progress

Encoder = UnitEncoder | MfccEncoder
"""What is measured: an encoder, or the baseline beside it."""
BLOCK = 8
Change = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Utterance:
    """A sentence in one voice: float32 [samples] at 16 kHz and its phones."""

    language: str
    sentence: int
    voice: str
    waveform: np.ndarray
    phones: list[Phone]

    @property
    def seconds(self) -> float:
        """Length in s."""
        return len(self.waveform) / SAMPLE_RATE


@dataclass(frozen=True)
class Speech:
    """What is encoded: by (language, voice group) the utterances of the panel; by (language, sentence) the reference voice's
    float32 [samples]; by (language, group) and change the number of each changed utterance with its new waveform."""

    reference_voice: str
    panel: dict[tuple[str, str], list[Utterance]]
    reference: dict[tuple[str, int], np.ndarray]
    changed: dict[tuple[str, str], dict[str, list[tuple[int, np.ndarray]]]]


def default_changes() -> dict[str, Change]:
    """What may happen to a recording without changing what is said: name -> float32 [samples] -> float32 [samples]."""
    from train.speech.augmentation import noise, pitch, rate, telephone

    return {
        "noise 20 dB": partial(noise, snr_db=20.0, seed=0),
        "pitch +4 semitones": partial(pitch, semitones=4.0),
        "pitch -4 semitones": partial(pitch, semitones=-4.0),
        "rate +15 %": partial(rate, factor=1.15),
        "rate -15 %": partial(rate, factor=0.85),
        "8 kHz band": telephone,
    }


def speak_panel(
    sentences: Sequence[tuple[str, str]],
    voices: Voices,
    *,
    voices_per_group: int = 6,
    changed_voices: int = 1,
    changes: Mapping[str, Change] | None = None,
    seed: int = 0,
) -> Speech:
    """Speak (language, text) sentences in a panel of each voice group; change the recordings of `changed_voices` of them.

    The panel is drawn by `seed` from the voices that tell their phonemes' times (espeak-ng's); a group with fewer than two
    is left out. The voices whose recordings are changed take turns from sentence to sentence.
    """
    changes = default_changes() if changes is None else changes
    groups = {"training": voices.training, "held_out": voices.held_out}
    panels = {group: _panel(members.values(), voices_per_group, seed) for group, members in groups.items()}
    panels = {group: panel for group, panel in panels.items() if len(panel) > 1}
    if not panels:
        raise TresseError("no group of voices has two espeak-ng voices, whose phoneme times are known: add some")
    reference = voices.training[voices.reference]
    speech = Speech(voices.reference, {}, {}, {})
    progress = Progress("speaking", len(sentences), unit="sentences")
    numbers: dict[str, int] = {}
    for done, (language, text) in enumerate(sentences, start=1):
        number = numbers[language] = numbers.get(language, -1) + 1

        def say(speaker: Speaker, language: str = language, text: str = text, number: int = number) -> Utterance:
            waveform, phonemes = speak_with_phonemes(text, language, speaker, voices)
            return Utterance(language, number, speaker.name, waveform, phones(phonemes, len(waveform) / SAMPLE_RATE))

        speech.reference[language, number] = speak(text, language, reference, voices)
        for group, panel in panels.items():
            utterances = speech.panel.setdefault((language, group), [])
            first = len(utterances)
            utterances += [say(speaker) for speaker in panel]
            table = speech.changed.setdefault((language, group), {name: [] for name in changes})
            for turn in range(min(changed_voices, len(panel))):
                index = first + (number * changed_voices + turn) % len(panel)
                for name, change in changes.items():
                    table[name].append((index, change(utterances[index].waveform)))
        progress.update(done)
    return speech


def _panel(members: Iterable[Speaker], count: int, seed: int) -> list[Speaker]:
    speakers = [speaker for speaker in members if isinstance(speaker, EspeakSpeaker)]
    order = np.random.default_rng(seed).permutation(len(speakers))
    return [speakers[i] for i in sorted(order[:count])]


def evaluate_units(
    encoder: UnitEncoder,
    baseline: MfccEncoder,
    sentences: Sequence[tuple[str, str]],
    voices: Voices,
    *,
    speech: Speech | None = None,
    **panel: Any,
) -> dict[str, Any]:
    """Measure an encoder, and the baseline beside it (None: without), on held-out (language, text) sentences.

    speech: what `speak_panel(sentences, voices, **panel)` gave, to be used again. Returns {"encoder": {"codebook_size",
    "frame_rate", "first_unit_seconds"}, "panel": {group: names}, "sentences": {language: n}, "rows": {language: {group:
    {"encoder": metrics, "baseline": metrics}}}}; the metrics are those of `measure`.
    """
    speech = speech or speak_panel(sentences, voices, **panel)
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for name, measured in (("encoder", encoder), ("baseline", baseline)):
        if measured is not None:
            for (language, group), metrics in measure(measured, speech, name).items():
                rows.setdefault(language, {}).setdefault(group, {})[name] = metrics
    return {
        "encoder": {
            "codebook_size": int(encoder.codebook_size),
            "frame_rate": float(encoder.frame_rate),
            "first_unit_seconds": first_unit_seconds(encoder, next(iter(speech.panel.values()))[0].waveform),
        },
        "panel": {group: list(dict.fromkeys(u.voice for u in said)) for (_, group), said in speech.panel.items()},
        "sentences": {language: len({u.sentence for u in said}) for (language, _), said in speech.panel.items()},
        "rows": rows,
    }


def measure(encoder: Encoder, speech: Speech, name: str = "encoder") -> dict[tuple[str, str], dict[str, Any]]:
    """All figures of one encoder: (language, voice group) -> metrics. Rates and errors are 0..1.

    encoder: anything with sample_rate, frame_rate, codebook_size, `encode_batch` and, where it has them, `features`.
    """
    references = dict(zip(speech.reference, _encode(encoder, list(speech.reference.values())), strict=True))
    progress = Progress(f"measuring the {name}", len(speech.panel), unit="groups")
    results = {}
    for done, (key, utterances) in enumerate(speech.panel.items(), start=1):
        began = time.perf_counter()
        units = _encode(encoder, [utterance.waveform for utterance in utterances])
        elapsed = time.perf_counter() - began
        changed = {
            change: _rate([(units[index].ids, other.ids) for index, other in zip(indices, encoded, strict=True)])
            for change, recordings in speech.changed[key].items()
            for indices, waveforms in [zip(*recordings, strict=True)]
            for encoded in [_encode(encoder, list(waveforms))]
        }
        results[key] = {
            **_voice_rates(utterances, units, references, speech.reference_voice),
            "edit_rate_changed": changed,
            **phone_agreement(utterances, units, encoder.codebook_size),
            "abx": _abx(encoder, utterances, units),
            **_codebook_use(utterances, units, encoder.codebook_size),
            "times_real_time": sum(utterance.seconds for utterance in utterances) / elapsed,
        }
        progress.update(done)
    return results


def first_unit_seconds(encoder: UnitEncoder, waveform: np.ndarray) -> float | None:
    """How much of a recording must have arrived, in chunks of 5 ms, before its first unit leaves; None: all of it."""
    waveform, stream = resample(waveform, SAMPLE_RATE, encoder.sample_rate), encoder.stream()
    step = encoder.sample_rate // 200
    for end in range(step, len(waveform), step):
        if len(stream.push(waveform[end - step : end])):
            return end / encoder.sample_rate
    return None


def _encode(encoder: Encoder, waveforms: list[np.ndarray]) -> list[Units]:
    """float32 [samples] at 16 kHz -> collapsed units, in batches of similar length."""
    waveforms = [resample(waveform, SAMPLE_RATE, encoder.sample_rate) for waveform in waveforms]
    order = np.argsort([len(waveform) for waveform in waveforms], kind="stable")
    units: dict[int, Units] = {}
    for first in range(0, len(order), BLOCK):
        block = order[first : first + BLOCK].tolist()
        units.update(zip(block, encoder.encode_batch([waveforms[i] for i in block]), strict=True))
    return [units[index].collapsed() for index in range(len(waveforms))]


def edit_distances(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Pairs of int [N], int [M] -> insertions, deletions and substitutions between them: int64 [pairs]."""
    return np.array([Levenshtein.distance(a.tolist(), b.tolist()) for a, b in pairs], np.int64)


def edit_rates(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Edit distance over the longer sequence's length, 0 (equal) .. 1: float64 [pairs]; two empty ones are equal."""
    longer = np.array([max(1, len(a), len(b)) for a, b in pairs], dtype=np.float64)
    return edit_distances(pairs) / longer


def _rate(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Mean edit rate of pairs of unit sequences, and how many they are."""
    return {"mean": float(edit_rates(pairs).mean()) if pairs else None, "pairs": len(pairs)}


def _voice_rates(
    utterances: Sequence[Utterance],
    units: Sequence[Units],
    references: Mapping[tuple[str, int], Units],
    reference_voice: str,
) -> dict[str, Any]:
    """Edit rates between all pairs of voices and to the reference; by voice; 95 % bootstrap interval over sentences."""
    by_sentence: dict[int, list[int]] = {}
    for index, utterance in enumerate(utterances):
        by_sentence.setdefault(utterance.sentence, []).append(index)
    pairs = [pair for group in by_sentence.values() for pair in itertools.combinations(group, 2)]
    rates = edit_rates([(units[a].ids, units[b].ids) for a, b in pairs])
    sentence = np.array([utterances[a].sentence for a, _ in pairs])
    means = np.array([rates[sentence == number].mean() for number in np.unique(sentence)])
    draws = np.random.default_rng(0).integers(len(means), size=(2000, len(means)))
    names = np.array([(utterances[a].voice, utterances[b].voice) for a, b in pairs])
    to_reference = [
        (x.ids, references[u.language, u.sentence].ids)
        for u, x in zip(utterances, units, strict=True)
        if u.voice != reference_voice
    ]
    return {
        "edit_rate": {
            "mean": float(rates.mean()),
            "ci95": [float(bound) for bound in np.percentile(means[draws].mean(1), [2.5, 97.5])],
            "pairs": len(pairs),
            "by_voice": {str(name): float(rates[(names == name).any(1)].mean()) for name in np.unique(names)},
        },
        "edit_rate_to_reference": _rate(to_reference),
    }


def phone_agreement(utterances: Sequence[Utterance], units: Sequence[Units], codebook_size: int) -> dict[str, Any]:
    """Phone purity and PNMI over all frames, and without those of silence."""
    labels = np.concatenate(
        [frame_labels(u.phones, int(x.run_lengths.sum()), x.frame_rate) for u, x in zip(utterances, units, strict=True)]
    )
    frames = np.concatenate([x.frames() for x in units])
    names, phone = np.unique(labels, return_inverse=True)
    joint = np.zeros((len(names), codebook_size))
    np.add.at(joint, (phone, frames), 1)
    spoken = joint[names != SILENCE]
    return {
        "phone_purity": purity(joint),
        "pnmi": pnmi(joint),
        "phone_purity_without_silence": purity(spoken),
        "pnmi_without_silence": pnmi(spoken),
        "frames": len(frames),
        "phones": len(spoken),
    }


def purity(joint_PK: np.ndarray) -> float:
    """Counts of (phone, unit) -> the share of frames whose phone is the likeliest one of their unit."""
    return float(joint_PK.max(0).sum() / joint_PK.sum())


def pnmi(joint_PK: np.ndarray) -> float:
    """Counts of (phone, unit) -> mutual information over the entropy of the phones: 0 nothing .. 1 all of it."""
    p = joint_PK / joint_PK.sum()
    phone, unit = p.sum(1), p.sum(0)
    known = p > 0
    information = float((p[known] * np.log(p[known] / np.outer(phone, unit)[known])).sum())
    return information / entropy(phone) if entropy(phone) else 0.0


def entropy(p: np.ndarray) -> float:
    """In nats, of probabilities or of counts."""
    p = p[p > 0] / p.sum()
    return float(-(p * np.log(p)).sum())


def _abx(encoder: Encoder, utterances: Sequence[Utterance], units: Sequence[Units]) -> dict[str, Any]:
    contexts = find_tokens([(u.voice, u.sentence, u.phones) for u in utterances])
    results: dict[str, Any] = {
        "units": dataclasses.asdict(abx_error(contexts, [x.frames() for x in units], encoder.frame_rate))
    }
    if hasattr(encoder, "features"):
        features = [encoder.features(resample(u.waveform, SAMPLE_RATE, encoder.sample_rate)) for u in utterances]
        results["features"] = dataclasses.asdict(abx_error(contexts, features, encoder.frame_rate))
    return results


def _codebook_use(utterances: Sequence[Utterance], units: Sequence[Units], codebook_size: int) -> dict[str, float]:
    counts = np.bincount(np.concatenate([x.ids for x in units]), minlength=codebook_size)
    rate = counts.sum() / sum(utterance.seconds for utterance in utterances)
    return {
        "codebook_used": float((counts > 0).mean()),
        "perplexity": float(np.exp(entropy(counts))),
        "units_per_second": float(rate),
        "bits_per_second": float(rate * entropy(counts) / np.log(2)),
    }


def fit_baseline(
    encoder: UnitEncoder, sentences: Sequence[tuple[str, str]], voices: Voices, seed: int = 0
) -> MfccEncoder:
    """MFCC + k-means of the encoder's codebook size and frame rate, fitted to the training voices."""
    return MfccEncoder.fit(list(sentences), voices, int(encoder.codebook_size), float(encoder.frame_rate), seed)
