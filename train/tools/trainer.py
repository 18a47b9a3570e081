"""The skeleton of every training: learning rates by step, the update, what is due, and a stop where numbers are lost.

A room gives one function, the step: it draws the batch of a step number, computes gradients, applies `Updates` and
returns what must stay finite. Beside it stand actions, each due every so many steps: a log line, a validation, a
checkpoint (train.tools.checkpoints). A step is a pure function of (seed, number), so a room that goes on from a
checkpoint repeats the run bit for bit. Sync points: the device is waited for only where an action is due.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slm.errors import TresseError

Action = tuple[int, Callable[[int], None]]
"""(every, action): the action takes the number of steps done, every so many steps and after the last one."""


@dataclass(frozen=True)
class Schedule:
    """Learning rates of a run of `steps` steps, as factors of the peak: linear warm-up, then linear decay to `floor`."""

    steps: int
    warmup: int
    floor: float = 0.0

    def factor(self, step: int) -> float:
        """The factor of step number `step`, counted from 0."""
        if step < self.warmup:
            return (step + 1) / max(1, self.warmup)
        left = 1.0 - (step - self.warmup) / max(1, self.steps - self.warmup) * (1.0 - self.floor)
        return max(self.floor, left)


class Updates:
    """What ends a step: gradients clipped by their norm, optimisers stepped, gradients forgotten. A group of an optimiser
    whose "share" is given learns at that share of the learning rate."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        optimisers: Sequence[Any],
        learning_rate: float,
        clip: float,
        clip_gradients: Callable[[Any, float], Any] = nn.utils.clip_grad_norm_,
    ) -> None:
        """learning_rate: at the peak. clip: largest norm. clip_gradients: (parameters, largest norm) -> norm before."""
        self.parameters, self.optimisers = list(parameters), list(optimisers)
        self.learning_rate, self.clip, self.clip_gradients = learning_rate, clip, clip_gradients

    def apply(self, factor: float) -> Tensor:
        """Update with the learning rate at `factor` of its peak; returns the norm of the gradients (a scalar)."""
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.learning_rate * group.get("share", 1.0) * factor
        norm = self.clip_gradients(self.parameters, self.clip)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def train_steps(
    step: Callable[[int, float], Tensor],
    schedule: Schedule,
    actions: Sequence[Action] = (),
    *,
    start: int = 0,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[int]:
    """Train from step `start` to the end of the schedule; yields the number of steps done after each.

    step: (number, learning rate factor) -> a scalar of the loss and of the gradients' norm, on its device. It is summed,
    and checked before any action. actions: in this order, where due. reduce: sums a scalar over all processes. Raises
    TresseError where the sum is not finite: no action follows, so no log line and no checkpoint holds what is broken.
    """
    health: Tensor | None = None
    for number in range(start, schedule.steps):
        value = step(number, schedule.factor(number)).detach().float()
        health = value if health is None else health + value
        done = number + 1
        due = [action for every, action in actions if done % every == 0 or done == schedule.steps]
        if due or done == schedule.steps:
            checked = health if reduce is None else reduce(health)
            if not torch.isfinite(checked):
                raise TresseError(
                    f"the loss is not finite at step {done}: lower the learning rate and train into another folder"
                )
            health = None
            for action in due:
                action(done)
        yield done


def train(
    step: Callable[[int, float], Tensor],
    schedule: Schedule,
    actions: Sequence[Action] = (),
    *,
    start: int = 0,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """`train_steps`, to the end."""
    for _ in train_steps(step, schedule, actions, start=start, reduce=reduce):
        pass
