"""Fixtures of this room."""

from __future__ import annotations

from dataclasses import replace

import pytest

from train.speech.voices import Voices


@pytest.fixture(scope="module")
def one_voice(voices: Voices) -> Voices:
    """The reference voice for training, one other held out."""
    return replace(voices, training={voices.reference: voices.training[voices.reference]})
