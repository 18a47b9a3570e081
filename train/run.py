"""Carrying out the stages of a recipe in one folder.

Every stage writes into its own folder of the output and leaves a marker with a fingerprint of its settings and of the
stages that it needs. A run that was interrupted goes on with the first stage without a marker; every stage that takes
long resumes inside as well.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm.errors import TresseError
from train.lm.schedule import settings_dict
from train.recipe import Recipe
from train.tools.checkpoints import atomic_path, write_json
from train.tools.launch import is_main, leave_group, under_launcher


@dataclass(frozen=True)
class Stage:
    """A step of a recipe: its name, the parts of the recipe it depends on, what it does with the output folder, and the
    stages that it needs (of those that the recipe has).

    takes: whether it can be taken from a bundle (`parts`). together: whether several processes may carry it out as one.
    """

    name: str
    settings: tuple[str, ...]
    run: Callable[[Recipe, Path, int], None]
    needs: tuple[str, ...] = ()
    takes: bool = False
    together: bool = False

    def depends_on(self, recipe: Recipe) -> dict[str, Any]:
        """The settings it depends on, beside the stages that it needs; of a part that is taken, its content."""
        settings = {key: _plain(getattr(recipe, key)) for key in ("languages", "seed")}
        folder = recipe.taken(self.name) if self.takes else None
        if folder is not None:
            return settings | {"taken": _content(folder)}
        own = [(key, _plain(getattr(recipe, key))) for key in self.settings]
        return settings | settings_dict(own)


def carry_out(given: Sequence[Stage], recipe: Recipe, out: Path, until: str | None = None, workers: int = 2) -> None:
    """Carry out stages of a recipe in `out`, or only `until` and what it needs; goes on where an earlier run stopped.

    Under `accelerate launch` the processes train the language model together; what comes before must be there.
    Raises TresseError where `out` holds the work of another recipe.
    """
    stages = {stage.name: stage for stage in given}
    if until is not None and until not in stages:
        raise TresseError(f"there is no stage {until}: choose one of {', '.join(stages)}")
    wanted = set(stages) if until is None else _needed(until, stages)
    fingerprints: dict[str, str] = {}
    for name, stage in stages.items():
        if name not in wanted:
            continue
        settings = stage.depends_on(recipe)
        before = [fingerprints[needed] for needed in stage.needs if needed in stages]
        digest = hashlib.sha256(json.dumps([before, settings], sort_keys=True).encode())
        fingerprints[name] = digest.hexdigest()[:16]
        marker = out / "done" / f"{name}.json"
        if marker.exists():
            if json.loads(marker.read_text(encoding="utf-8"))["fingerprint"] != fingerprints[name]:
                raise TresseError(
                    f"{out} holds the stage {name} of another recipe: choose another --out, or delete {marker}"
                )
        elif under_launcher() and not stage.together:
            raise TresseError(
                f"the stage {name} is for one process: run tresse recipe {recipe.name} --until "
                f"{'vocabulary' if 'slm' in stages else name} first, without a launcher"
            )
        elif is_main():
            with _Stopwatch(out / "done" / f".{name}.seconds") as watch:
                stage.run(recipe, out, workers)
                marker_content = {"fingerprint": fingerprints[name], "seconds": watch.seconds, "settings": settings}
                write_json(marker, marker_content)
        else:
            stage.run(recipe, out, workers)
        if under_launcher() and stage.together:
            leave_group()
            return


def _needed(name: str, stages: Mapping[str, Stage]) -> set[str]:
    """A stage and, of these, all that it needs."""
    names = {name}
    for needed in stages[name].needs:
        if needed in stages:
            names |= _needed(needed, stages)
    return names


def _content(folder: Path) -> str:
    """A fingerprint of the files of a part."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(folder)).encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


class _Stopwatch:
    """s of work on a stage over all interrupted runs: noted in a file every few seconds, removed when the work is done."""

    def __init__(self, path: Path, every: float = 5.0) -> None:
        self.path, self.every = path, every
        self._before = float(path.read_text(encoding="utf-8")) if path.exists() else 0.0
        self._began = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._note, daemon=True)

    @property
    def seconds(self) -> float:
        """s so far."""
        return round(self._before + time.monotonic() - self._began, 1)

    def _note(self) -> None:
        while not self._stopped.wait(self.every):
            with atomic_path(self.path) as temporary:
                temporary.write_text(str(self.seconds), encoding="utf-8")

    def __enter__(self) -> _Stopwatch:
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        if kind is None:
            self.path.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value, dict_factory=settings_dict)
    return value
