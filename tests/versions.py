"""Versions that differ from the tested ones: `python -m tests.versions` compares what is installed with constraints.txt."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


def differences(lines: list[str]) -> list[tuple[str, str, str]]:
    """(name, tested version, installed version) of every constraint that holds here and whose package is installed in
    another version."""
    rows = []
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        tested = next(iter(requirement.specifier)).version
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            continue
        if installed.partition("+")[0] != tested:
            rows.append((requirement.name, tested, installed))
    return rows


def constraints() -> list[str]:
    """The lines of constraints.txt."""
    return [line for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]


def main() -> None:
    """Print the differences, or that there are none."""
    rows = differences(constraints())
    for name, tested, installed in rows:
        print(f"{name}: {installed} is installed, {tested} was tested")
    if not rows:
        print("every installed version is the tested one")


if __name__ == "__main__":
    main()
