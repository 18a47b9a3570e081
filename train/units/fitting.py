"""What the trainings of this room share: AdamW, a schedule, a log line, and checkpoints that a later run goes on from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from train.tools.checkpoints import load_checkpoint, save_checkpoint
from train.tools.progress import Progress
from train.tools.trainer import Schedule, Updates, train


def fit(
    network: nn.Module,
    losses: Callable[[int], dict[str, Tensor]],
    steps: int,
    learning_rate: float,
    checkpoint: Path,
    checkpoint_every: int,
    title: str,
    begun: float = 1.0,
) -> None:
    """Train a network in place; goes on from the checkpoint.

    losses: of a step's number, a pure function of it, -> "loss", a scalar with gradients, and what else the log shows.
    title: of the log line. begun: share of the learning rate for all but what names units, `outward` or `head`: what has
    learnt already must not be unlearnt; 0 leaves it as it is. Raises TresseError where the loss is not finite.
    """
    named = dict(network.named_parameters())
    new = [parameter for name, parameter in named.items() if name.startswith(("outward", "head."))]
    rest = [parameter for name, parameter in named.items() if not name.startswith(("outward", "head."))]
    for parameter in rest if begun == 0.0 else []:
        parameter.requires_grad_(False)
    groups: Any = [{"params": rest, "share": begun}, {"params": new}] if begun != 1.0 else network.parameters()
    optimiser = torch.optim.AdamW(new if begun == 0.0 else groups, lr=learning_rate, weight_decay=0.01)
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    updates = Updates(learning, [optimiser], learning_rate, clip=1.0)
    start = 0
    if state := load_checkpoint(checkpoint):
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        start = state["step"]
    progress = Progress(title, steps, start=start)
    last: dict[str, Tensor] = {}

    def step(number: int, factor: float) -> Tensor:
        values = losses(number)
        values["loss"].backward()
        last.update({name: value.detach() for name, value in values.items()})
        return last["loss"] + updates.apply(factor)

    def log(done: int) -> None:
        progress.update(done, **{name: value.item() for name, value in last.items()})

    def save(done: int) -> None:
        state = {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "step": done}
        save_checkpoint(checkpoint, state)

    network.train()
    train(step, Schedule(steps, warmup=100, floor=0.02), [(1, log), (checkpoint_every, save)], start=start)
