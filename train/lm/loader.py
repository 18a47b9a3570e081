"""Reading ahead of the training."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from train.lm.packing import PackedBatch
from train.lm.schedule import StagedStream
from train.lm.stream import Counts


class Loader:
    """A process's rows of each step, made one step ahead by a thread."""

    def __init__(self, stream: StagedStream, first: int, count: int) -> None:
        """first, count: which rows of each step."""
        self.stream, self.first, self.count = stream, first, count
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._ahead: tuple[int, Future[tuple[PackedBatch, Counts]]] | None = None

    def _begin(self, step: int) -> Future[tuple[PackedBatch, Counts]]:
        return self._thread.submit(self.stream.draw, step, self.first, self.count)

    def draw(self, step: int) -> tuple[PackedBatch, Counts]:
        """The rows of a step, and what they hold."""
        future = self._ahead[1] if self._ahead is not None and self._ahead[0] == step else self._begin(step)
        drawn = future.result()
        self._ahead = (step + 1, self._begin(step + 1)) if step + 1 < self.stream.steps else None
        return drawn

    def position(self, step: int) -> dict[str, Any]:
        """See StagedStream.position."""
        return self._thread.submit(self.stream.position, step).result()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()
