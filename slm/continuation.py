"""Prompt -> continuation: what happens between somebody's last word and the model's first.

waveform -> units -> sentences (cut at pauses) -> tokens with language tags -> sampled tokens -> units. Turning these into
sound is the bundle's business, which alone knows the vocoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from slm.audio import check_waveform, resample
from slm.engines import Engine, Sampling
from slm.errors import TresseError
from slm.units import UnitEncoder, Units, UnitVocabulary
from slm.voice_activity import speech_segments


@dataclass(frozen=True)
class Prompt:
    """What the model was told: sentences of units, all in one language, and the length of the recording in s."""

    sentences: list[Units]
    language: str
    seconds: float


@dataclass(frozen=True)
class Step:
    """One generated token: its unit ids int64 [N] (none at a sentence boundary), and whether a sentence begins here."""

    token: int
    unit_ids: np.ndarray
    boundary: bool


def hear(waveform: np.ndarray, sample_rate: int, encoder: UnitEncoder, max_seconds: float) -> tuple[list[Units], float]:
    """float32 [samples] -> the prompt's sentences as units, and its length in s.

    Raises TresseError where it is too short, too long, not finite, or holds no speech.
    """
    waveform = check_waveform(waveform, sample_rate, max_seconds)
    segments = speech_segments(waveform, sample_rate)
    if not segments:
        raise TresseError("no speech found in the prompt: speak closer to the microphone, or choose another recording")
    frames = encoder.encode(resample(waveform, sample_rate, encoder.sample_rate), encoder.sample_rate).frames()
    sentences = []
    for start, end in segments:
        part = frames[int(start * encoder.frame_rate) : max(1, round(end * encoder.frame_rate))]
        if len(part):
            sentences.append(Units.from_frames(part, encoder.frame_rate))
    return sentences, len(waveform) / sample_rate


def detect_language(sentences: Sequence[Units], engine: Engine, vocabulary: UnitVocabulary) -> str:
    """The language whose tag makes the sentences likeliest under the language model."""
    if len(vocabulary.languages) == 1:
        return vocabulary.languages[0]
    tokens = [
        vocabulary.sequence([(language, sentence.ids) for sentence in sentences]) for language in vocabulary.languages
    ]
    scores = [float(logs[1:].sum()) for logs in engine.score(tokens)]  # without the tag's own likelihood
    return vocabulary.languages[int(np.argmax(scores))]


def prompt_tokens(prompt: Prompt, to: str, vocabulary: UnitVocabulary, limit: int) -> list[int]:
    """`<bos> <prompt language> sentence ... <to>`: at most `limit` tokens; the oldest sentences give way first."""
    sentences = [[vocabulary.tag_ids[prompt.language], *vocabulary.encode(part.ids)] for part in prompt.sentences]
    room = limit - 2
    kept: list[int] = []
    for sentence in reversed(sentences):
        if len(kept) + len(sentence) > room:
            kept = kept or sentence[:room]  # a single sentence longer than the context: its beginning
            break
        kept = sentence + kept
    return [vocabulary.bos_id, *kept, vocabulary.tag_ids[to]]


def continue_prompt(
    prompt: Prompt, to: str, engine: Engine, vocabulary: UnitVocabulary, sampling: Sampling, context: int
) -> Iterator[Step]:
    """Sample the continuation of a prompt in language `to`, token by token, until the story ends.

    Other languages' tags are banned, so that every further sentence is in `to` as well.
    """
    if to not in vocabulary.tag_ids:
        raise TresseError(f"unknown language {to!r}: this bundle speaks {', '.join(vocabulary.languages)}")
    tag = vocabulary.tag_ids[to]
    banned = (vocabulary.bos_id, *(index for language, index in vocabulary.tag_ids.items() if language != to))
    tokens = prompt_tokens(prompt, to, vocabulary, context - sampling.max_tokens)
    sampling = Sampling(**{**sampling.__dict__, "banned": (*sampling.banned, *banned)})
    for token in engine.generate(tokens, sampling):
        yield Step(token, np.asarray(vocabulary.token_units(token), dtype=np.int64), token == tag)
