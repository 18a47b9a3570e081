"""One dense line of progress: what is done, how fast, how long still."""

from __future__ import annotations

import atexit
import json
import sys
import time
from pathlib import Path
from typing import Any

from train.tools.checkpoints import atomic_path


class Progress:
    """Prints `stage done/total  name value ...  rate  ETA`, at most every `every` s; on a terminal a bar, by rich."""

    def __init__(self, stage: str, total: int, start: int = 0, unit: str = "steps", every: float = 10.0) -> None:
        self.stage, self.total, self.unit, self.every = stage, total, unit, every
        self._start, self._began, self._last = start, time.monotonic(), 0.0
        self._bar = _bar() if sys.stderr.isatty() else None
        if self._bar is not None:
            self.every = 0.5
            self._task = self._bar.add_task(stage, total=total, completed=start, said="")

    def due(self) -> bool:
        """Whether a line is due: lets the caller read device values only then."""
        return time.monotonic() - self._last >= self.every

    def update(self, done: int, **values: float | str) -> None:
        """Print a line if one is due, or the work is complete."""
        if not (self.due() or done >= self.total):
            return
        self._last = time.monotonic()
        elapsed = max(1e-9, self._last - self._began)
        rate = (done - self._start) / elapsed
        shown = "  ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
        )
        said = f"{shown}  {rate:.3g} {self.unit}/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, said=said, refresh=True)
            if done >= self.total:
                self._bar.stop()
            return
        eta = (self.total - done) / rate if rate > 0 else float("inf")
        line = f"{self.stage}  {done}/{self.total}  {said}  ETA {clock(eta)}"
        print(line, file=sys.stderr, flush=True)


def _bar() -> Any:
    """A bar on standard error without a thread of its own; it lets go of the terminal when the process ends, however."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    said = TextColumn("{task.fields[said]}", markup=False)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        said,
        TimeRemainingColumn(),
    )
    bar = Bar(*columns, console=Console(stderr=True), auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
    bar.start()
    atexit.register(bar.stop)
    return bar


def clock(seconds: float) -> str:
    """s as h:mm:ss or m:ss."""
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


class Log:
    """A file of one JSON object a line, each with its step. Lines past the step that a run resumes from are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        with atomic_path(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def write(self, entry: dict[str, Any]) -> None:
        """entry: {"step", name: number | text | nested mapping}."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
