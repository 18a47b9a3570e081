"""Fixtures of this room."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.corpus.tiny import (
    make_encoder,
    prepare,
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"), seed=0)


@pytest.fixture(scope="module")
def corpus(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(encoder, tmp_path_factory.mktemp("corpus")).folder
