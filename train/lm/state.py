"""What a checkpoint of the language model's training holds: weights and optimisers, and settings that must stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from slm.errors import TresseError
from slm.interleave import OLD_NAMES


class Weights:
    """Model and optimisers as a checkpoint holds them, whole, also where processes hold a part each (FSDP)."""

    def __init__(self, accelerator: Any, model: nn.Module, optimisers: list[Any]) -> None:
        self.accelerator, self.model, self.optimisers = accelerator, model, optimisers
        self.sharded = str(accelerator.distributed_type).endswith("FSDP")

    def state(self) -> dict[str, Any]:
        """Every process must ask; what the first one gets is whole."""
        if self.sharded:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            model, optimiser = get_state_dict(self.model, [o.optimizer for o in self.optimisers], options=options)
            return {"model": model, "optimiser": optimiser}
        model = self.accelerator.unwrap_model(self.model).state_dict()
        return {"model": model, "optimiser": [optimiser.state_dict() for optimiser in self.optimisers]}

    def load_optimisers(self, state: Any) -> None:
        """`state()["optimiser"]`; the weights are loaded before they are given to the processes."""
        if self.sharded:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

            options = StateDictOptions(full_state_dict=True)
            plain = [o.optimizer for o in self.optimisers]
            set_optimizer_state_dict(self.model, plain, optim_state_dict=state, options=options)
        else:
            for optimiser, own in zip(self.optimisers, state, strict=True):
                optimiser.load_state_dict(own)


def check_same(before: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    """Raises TresseError where a run would go on with other settings than it began with."""
    before, wanted = _in_new_words(before), _in_new_words(wanted)
    for part in wanted:
        for name, value in wanted[part].items():
            if before[part].get(name) != value:
                raise TresseError(
                    f"the run in {folder} was started with {part} {name}={before[part].get(name)}, not {value}: "
                    "use another folder, or delete its checkpoint.pt"
                )


def _in_new_words(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the names that modes have now."""
    text = json.dumps(settings)
    for old, new in OLD_NAMES.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    return json.loads(text)
