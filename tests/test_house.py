"""The rules of the house: short files, short functions, plain names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("demo", "slm", "train", "vocoder")
LONGEST_FILE, LONGEST_FUNCTION = 400, 80
SAYS_NOTHING = {"held", "found", "one", "place", "way"}
"""Names of variables that say nothing about what is in them."""


def sources(*suffixes: str) -> list[Path]:
    return [path for room in (*ROOMS, "tests") for path in sorted((ROOT / room).rglob("*")) if path.suffix in suffixes]


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", sources(".py", ".js"), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE
    if path.suffix == ".py":
        for function in functions(path):
            lines = (function.end_lineno or 0) - function.lineno + 1
            assert lines <= LONGEST_FUNCTION, f"{function.name} has {lines} lines"


def test_variables_say_what_they_hold() -> None:
    named = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.id}"
        for path in sources(".py")
        if path.relative_to(ROOT).parts[0] in ROOMS
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in SAYS_NOTHING
    }
    assert not named
