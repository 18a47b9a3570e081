"""The skeleton of every training: what is due when, and nothing written once numbers are lost."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slm.errors import TresseError
from train.tools.trainer import Schedule, Updates, train, train_steps


def test_learning_rates_rise_and_fall() -> None:
    schedule = Schedule(10, warmup=4, floor=0.1)
    factors = [schedule.factor(step) for step in range(12)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[9] == pytest.approx(1 - 5 / 6 * 0.9)
    assert factors[10:] == pytest.approx([0.1, 0.1])


def test_actions_are_due_every_so_often_in_order_and_at_the_end() -> None:
    happened: list[tuple[str, int]] = []
    actions = [(3, lambda done: happened.append(("log", done))), (2, lambda done: happened.append(("save", done)))]
    steps = []

    def step(number: int, factor: float) -> torch.Tensor:
        steps.append(number)
        return torch.tensor(factor)

    train(step, Schedule(7, warmup=2), actions, start=1)
    assert steps == [1, 2, 3, 4, 5, 6]
    assert happened == [("save", 2), ("log", 3), ("save", 4), ("log", 6), ("save", 6), ("log", 7), ("save", 7)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("when", [0, 2, 3, 5])
def test_nothing_is_written_once_numbers_are_lost(value: float, when: int) -> None:
    """Also where the broken step itself wrote nothing, and the steps after it look well."""
    saved: list[int] = []

    def step(number: int, factor: float) -> torch.Tensor:
        return torch.tensor(value if number == when else 1.0)

    with pytest.raises(TresseError, match=r"not finite at step \d: lower the learning rate"):
        for _ in train_steps(step, Schedule(6, warmup=0), [(2, saved.append)]):
            pass
    assert saved == list(range(2, when + 1, 2))


def test_an_update_clips_steps_and_forgets() -> None:
    weight = nn.Parameter(torch.zeros(2))
    updates = Updates([weight], [torch.optim.SGD([weight], lr=9.0)], learning_rate=2.0, clip=1.0)
    weight.grad = torch.tensor([3.0, 4.0])
    assert float(updates.apply(0.5)) == 5.0
    assert torch.allclose(weight.detach(), torch.tensor([-0.6, -0.8]), atol=1e-5)
    assert weight.grad is None
