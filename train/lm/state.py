"""What a checkpoint of the language model's training holds: weights and optimisers, and settings that must stay.

One process, or several that have the whole model each (DDP), keep one file, `checkpoint.pt`. Processes that have a part each
(FSDP) keep shards in `checkpoint/` (train.tools.sharded). A run goes on from the newest of either kind.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slm.errors import TresseError
from slm.interleave import OLD_NAMES
from train.tools.checkpoints import load_checkpoint, previous_generation, save_checkpoint
from train.tools.sharded import ShardedCheckpoint, ShardedCheckpoints


class Weights:
    """Model and optimisers of a run, as they go into a checkpoint and come out of it."""

    def __init__(self, accelerator: Any, model: nn.Module, optimisers: Sequence[Any]) -> None:
        """model, optimisers: not prepared by `accelerator` yet."""
        self.accelerator, self.model, self.optimisers = accelerator, model, list(optimisers)
        self.sharded = str(accelerator.distributed_type).endswith("FSDP")
        self._named: dict[str, Any] | None = None
        every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self._tied = every - {name for name, _ in model.named_parameters()}
        """Second names of parameters."""

    def load_model(self, state: dict[str, Any]) -> None:
        """Take the weights of a whole checkpoint: before `prepared`."""
        self.model.load_state_dict(state["model"])
        if self.sharded:
            names = {id(parameter): name for name, parameter in self.model.named_parameters()}
            self._named = _by_name(self.optimisers, names, state["optimiser"])

    def prepared(self, model: nn.Module, optimisers: Sequence[Any]) -> None:
        """Go on with what `accelerator` made of them."""
        self.model, self.optimisers = model, list(optimisers)

    def whole(self) -> dict[str, Any]:
        """The state of processes that have all of it."""
        model = self.accelerator.unwrap_model(self.model).state_dict()
        return {"model": model, "optimiser": [optimiser.state_dict() for optimiser in self.optimisers]}

    def load_optimisers(self, state: dict[str, Any]) -> None:
        """Take the optimisers' part of a whole checkpoint: after `prepared`."""
        if self._named is not None:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

            options = StateDictOptions(full_state_dict=True)
            set_optimizer_state_dict(self.model, self._plain(), optim_state_dict=self._named, options=options)
            self._named = None
        else:
            for optimiser, own in zip(self.optimisers, state["optimiser"], strict=True):
                optimiser.load_state_dict(own)

    def shards(self) -> dict[str, Tensor]:
        """All tensors by name, none of them copied; where processes have a part each, DTensors."""
        return self._tensors(*self._parts())

    def load_shards(self, checkpoints: ShardedCheckpoints, checkpoint: ShardedCheckpoint) -> None:
        """Take what any number of processes saved, with parts of the model or not: after `prepared`."""
        from torch.distributed.checkpoint.state_dict import set_state_dict

        model, optimiser = self._parts()
        checkpoints.load(checkpoint, self._tensors(model, optimiser))
        set_state_dict(
            self.model,
            self._plain(),
            model_state_dict=model,
            optim_state_dict=optimiser,
            options=_flat(),
        )

    def full_model(self) -> dict[str, Tensor]:
        """The whole model of processes that have a part each, on the CPU: in the first of them, nothing in the others."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        return get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))

    def _plain(self) -> list[torch.optim.Optimizer]:
        """The optimisers without what `accelerator` wraps them in."""
        return [getattr(optimiser, "optimizer", optimiser) for optimiser in self.optimisers]

    def _parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        from torch.distributed.checkpoint.state_dict import get_state_dict

        return get_state_dict(self.model, self._plain(), options=_flat())

    def _tensors(self, model: dict[str, Any], optimiser: dict[str, Any]) -> dict[str, Tensor]:
        """Without numbers such as learning rates: they follow from settings and step."""
        weights = {f"model.{name}": value for name, value in model.items() if name not in self._tied}
        states = {f"optimiser.{name}": value for name, value in optimiser.items() if isinstance(value, Tensor)}
        return weights | states


def _flat() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(flatten_optimizer_state_dict=True)


def _by_name(optimisers: Sequence[Any], names: dict[int, str], state: Any) -> dict[str, Any]:
    """States of optimisers by the names of parameters (id -> name), as torch.distributed.checkpoint takes them. state: as
    one process saved it, or by name already, as earlier versions did under FSDP."""
    if isinstance(state, dict):
        return state
    named: dict[str, Any] = {"state": {}, "param_groups": []}
    for optimiser, own in zip(optimisers, state, strict=True):
        for group, saved in zip(optimiser.param_groups, own["param_groups"], strict=True):
            members = [names[id(parameter)] for parameter in group["params"]]
            named["state"] |= {name: own["state"][k] for name, k in zip(members, saved["params"], strict=True)}
            named["param_groups"].append({**saved, "params": members})
    return named


class Checkpoints:
    """The checkpoints of a run, of either kind. Every process calls the methods alike."""

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / "checkpoint.pt"
        self.sharded = ShardedCheckpoints(Path(folder) / "checkpoint")

    def newest(self) -> dict[str, Any] | None:
        """Where a run goes on: {"step", "settings", "stream", and "model" and "optimiser", or "shards"}; None: at its
        beginning. Raises TresseError where what there is cannot be read."""
        shards, whole = self.sharded.newest(), load_checkpoint(self.path)
        if shards is not None and (whole is None or whole["step"] < shards.step):
            return {**shards.facts, "step": shards.step, "shards": shards}
        return whole

    def save(self, step: int, weights: Weights, facts: dict[str, Any]) -> None:
        """Write a checkpoint; shards are written while the training goes on. Raises TresseError where this one, or the
        shards before, cannot be written."""
        if weights.sharded:
            self.wait()
            self.sharded.save(step, weights.shards(), facts)
        elif weights.accelerator.is_main_process:
            save_checkpoint(self.path, {"step": step, **facts, **weights.whole()})
            self.sharded.delete()

    def wait(self) -> None:
        """Until what is being written is complete; it replaces a checkpoint of the other kind. Raises TresseError."""
        if self.sharded.wait():
            self.path.unlink(missing_ok=True)
            previous_generation(self.path).unlink(missing_ok=True)


def check_same(before: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    """Raises TresseError where a run would go on with other settings than it began with."""
    before, wanted = _in_new_words(before), _in_new_words(wanted)
    for part in wanted:
        for name, value in wanted[part].items():
            if before[part].get(name) != value:
                raise TresseError(
                    f"the run in {folder} was started with {part} {name}={before[part].get(name)}, not {value}: "
                    "use another folder, or delete its checkpoints"
                )


def _in_new_words(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the names that modes have now."""
    text = json.dumps(settings)
    for old, new in OLD_NAMES.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    return json.loads(text)
