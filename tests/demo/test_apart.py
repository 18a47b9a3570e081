"""A server in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.apart import health, served_apart
from slm.errors import TresseError


def test_it_answers_says_its_memory_and_ends() -> None:
    with served_apart(None, "cpu") as server:
        assert health(server.url)["languages"] == ["en", "fr"]
        memory = server.memory()
        assert memory is None or memory > 100_000_000
    assert server.memory() is None
    with pytest.raises(TresseError, match="no server answers"):
        health(server.url)


def test_one_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(TresseError, match="nowhere"), served_apart(str(tmp_path / "nowhere"), "cpu"):
        pass
