"""Shared fixtures: the shipped bundle, and small speech made in memory."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may ask the network for anything
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import numpy as np
import pytest

from slm.audio import write_wav
from slm.bundle import Bundle
from tests.bundles import BRAID
from train.speech.voices import SAMPLE_RATE, Voices, speak

BEGINNINGS = {
    "en": ["Anna went to the garden with her little dog.", "The red ball was lost and she was very sad."],
    "fr": ["Anna est allée au jardin avec son petit chien.", "Le ballon rouge était perdu et elle était très triste."],
}
"""Story beginnings that no grammar of this project makes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):  # keywords hold the names of folders, too
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB. Skips where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """The bundle `braid` on the CPU."""
    return Bundle.load(BRAID, device="cpu")


@pytest.fixture(scope="session")
def voices() -> Voices:
    return Voices.load()


def spoken_beginning(language: str, speaker: str = "zoe") -> np.ndarray:
    """A story beginning with a pause between its sentences, in a voice that no training heard."""
    voices = Voices.load()
    pause = np.zeros(int(0.45 * SAMPLE_RATE), np.float32)
    one, two = (speak(text, language, voices.speaker(speaker), voices) for text in BEGINNINGS[language])
    return np.concatenate([one, pause, two])


@pytest.fixture(scope="session")
def beginnings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A WAV of a story beginning per language."""
    folder = tmp_path_factory.mktemp("beginnings")
    paths = {}
    for language in BEGINNINGS:
        paths[language] = folder / f"{language}.wav"
        write_wav(paths[language], spoken_beginning(language), SAMPLE_RATE)
    return paths
