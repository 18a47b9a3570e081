"""Which sentences are spoken for the recogniser, by whom and how: a plan, drawn before anything is spoken."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from train.speech.augmentation import Augmentation


@dataclass(frozen=True)
class Utterance:
    """A sentence to be spoken. through: by a bundle, from its units, rather than directly; retimed: with the run lengths
    that the bundle predicts. recording: seed of the room, line and noise that it is recorded with."""

    language: str
    text: str
    speaker: str
    through: bool = False
    recording: int | None = None
    retimed: bool = False


@dataclass(frozen=True)
class PoolSettings:
    """What is spoken. utterances: in all languages together; scrambled: share whose words are drawn without regard to
    sense, lest the recogniser hear stories where there are none; resynthesised: share spoken by a bundle's vocoder;
    retimed: share of these whose run lengths are the vocoder's own, as in a reply; recorded: share that passes through
    `augmentation`.
    """

    utterances: int = 40_000
    scrambled: float = 0.25
    resynthesised: float = 0.4
    retimed: float = 0.5
    recorded: float = 0.4
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0


def written(text: str) -> str:
    """A sentence as it is to be transcribed: without quotation marks and dashes, which nobody hears."""
    text = re.sub(r"[«»“”\"()]", " ", text.replace("’", "'").replace("\N{NO-BREAK SPACE}", " "))
    text = re.sub(r"\s+[–—]\s+", " ", text.replace("\N{NARROW NO-BREAK SPACE}", " "))
    return re.sub(r"\s+([,.!?;:])", r"\1", " ".join(text.split()))


def plan_pool(
    settings: PoolSettings, sentences: list[tuple[str, str]], speakers: list[str], bundle: bool = False
) -> list[Utterance]:
    """The utterances of a pool: languages in turn, every sentence before any comes twice, speakers at random.

    sentences: (language, text). bundle: whether there is one to speak the resynthesised share.
    """
    rng, timing = (np.random.default_rng([settings.seed, purpose]) for purpose in (11, 13))
    texts = {
        language: [text for other, text in sentences if other == language]
        for language in dict.fromkeys(language for language, _ in sentences)
    }
    languages = list(texts)
    orders = {language: rng.permutation(len(texts[language])) for language in languages}
    plan = []
    for number in range(settings.utterances):
        language = languages[number % len(languages)]
        own = texts[language]
        if rng.random() < settings.scrambled:
            text = scramble(own, rng)
        else:
            text = own[orders[language][number // len(languages) % len(own)]]
        through = bundle and rng.random() < settings.resynthesised
        recording = number if rng.random() < settings.recorded else None
        retimed = bool(timing.random() < settings.retimed) and through
        plan.append(Utterance(language, text, speakers[rng.integers(len(speakers))], through, recording, retimed))
    return plan


def scramble(texts: list[str], rng: np.random.Generator) -> str:
    """A senseless sentence of pieces (one to three words in a row) of other sentences."""
    words: list[str] = []
    for _ in range(rng.integers(2, 5)):
        source = re.sub(r"[.!?;:,]", " ", written(texts[rng.integers(len(texts))])).split()
        first, count = rng.integers(len(source)), rng.integers(1, 4)
        piece = source[first : first + count]
        words += [piece[0].lower(), *piece[1:]] if first == 0 else piece
    return (words[0][:1].upper() + words[0][1:] + " " + " ".join(words[1:])).strip() + "."
