"""What the tests of this room share."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from slm.units.conv import ConvEncoderConfig, ConvNetwork, ConvUnitEncoder
from train.corpus.preparation import prepare_corpus
from train.corpus.work import CorpusPreparation, Prepared
from train.speech.voices import Voices

LANGUAGES = ["en", "fr"]
PREPARATION = CorpusPreparation(stories_per_shard=2, speakers=("anouk", "bruno"))


@dataclasses.dataclass
class Told:
    id: str
    sentences: dict[str, list[str]]


def tell(count: int) -> list[Told]:
    """Stories of four sentences that have some sentences in common."""
    who = [("dog", "chien"), ("cat", "chat"), ("bird", "petit oiseau")]
    numbers = [("one", "un"), ("two", "deux"), ("three", "trois"), ("four", "quatre"), ("five", "cinq")]
    stories = []
    for i in range(count):
        (en, fr), (number, nombre) = who[i % 3], numbers[i % 5]
        english = [f"The {en} ran away.", f"It saw {number} balls.", f"The {en} came home {number} times.", "It slept."]
        french = [f"Le {fr} est parti.", f"Il a vu {nombre} ballons.", f"Le {fr} est rentré {nombre} fois.", "Il dort."]
        stories.append(Told(f"story-{i}", {"en": english, "fr": french}))
    return stories


def prepare(
    encoder: Path,
    folder: Path,
    stories: int = 12,
    preparation: CorpusPreparation = PREPARATION,
    workers: int = 1,
    source: Path | None = None,
) -> Prepared:
    given = source or tell(stories)
    return prepare_corpus(given, LANGUAGES, encoder, folder, preparation, Voices.load(), workers)


def make_encoder(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    ConvUnitEncoder(ConvNetwork(ConvEncoderConfig(codebook_size=50, width=16))).save(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
