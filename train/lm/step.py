"""One training step of a language model on packed rows: the only one, for training, benchmark and estimate.

Trades: the loss is summed over targets and divided by their number in the whole step, which every process knows from the
packing plan, so that gradient accumulation and data parallelism change nothing but the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from train.lm.attention import attention_inputs
from train.lm.muon import Float32Muon
from train.lm.packing import IGNORE, PackedBatch
from train.lm.schedule import SLMTraining
from train.tools.hardware import bf16_pays
from train.tools.trainer import Updates


def token_losses(
    model: nn.Module, batch: PackedBatch, device: torch.device | str = "cpu", *, half: bool = False
) -> Tensor:
    """Negative log-likelihood of every target in nats: float32 [B, L] on `device`, 0 where there is none.

    batch: on the CPU. model: on `device`, under `use_document_attention`; half: it computes in half precision.
    """
    moved = batch.to(device)
    inputs = attention_inputs(batch.positions, device, half=half)
    logits = model(input_ids=moved.tokens, use_cache=False, **inputs).logits
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), moved.targets.flatten(), ignore_index=IGNORE, reduction="none"
    )
    return losses.view_as(moved.targets)


def optimisers_of(model: nn.Module, training: SLMTraining, device: torch.device) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the body's matrices if asked for; matrices and tables decay, norms and biases do not.

    Muon (Jordan 2024; scaled as in Liu et al., arXiv 2502.16982, so that it takes AdamW's learning rate and decay).
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is not None:
        tables.add(id(head.weight))
    decayed = [p for p in trained if p.ndim >= 2]
    body = [p for p in decayed if p.ndim == 2 and id(p) not in tables] if training.optimiser == "muon" else []
    in_body = {id(p) for p in body}
    groups = [
        {"params": [p for p in decayed if id(p) not in in_body], "weight_decay": training.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = device.type in ("cpu", "cuda") or None
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=training.learning_rate, betas=training.betas, fused=fused)
    ]
    if body:
        settings = {"lr": training.learning_rate, "weight_decay": training.weight_decay}
        kind = torch.optim.Muon if bf16_pays(device) else Float32Muon
        optimisers.append(kind(body, **settings, adjust_lr_fn="match_rms_adamw"))
    return optimisers


class PackedStep:
    """Forward and backward passes over the rows of a step in portions, and the update."""

    def __init__(
        self,
        model: nn.Module,
        optimisers: Sequence[Any],
        training: SLMTraining,
        device: torch.device,
        *,
        half: bool,
        accelerator: Any = None,
    ) -> None:
        """model, optimisers: as `accelerator` prepared them, or on `device` without one. half: compute in bfloat16."""
        self.model, self.device, self.half, self.accelerator = model, device, half, accelerator
        self.processes = 1 if accelerator is None else accelerator.num_processes
        self.training = training
        clip_gradients = nn.utils.clip_grad_norm_ if accelerator is None else accelerator.clip_grad_norm_
        self.updates = Updates(model.parameters(), optimisers, training.learning_rate, training.clip, clip_gradients)

    def gradients(
        self, batch: PackedBatch, targets: int | Tensor, count: Callable[[Tensor, PackedBatch], None] | None = None
    ) -> Tensor:
        """Add the gradients of the mean loss; returns this process's share of that mean, in nats (a scalar).

        batch: this process's rows. targets: of the whole step, over all processes. count: takes the losses [B, L] of
        every portion and the portion. Every process makes equally many passes, whatever rows it has, since models whose
        parameters are shared out need all processes in each.
        """
        share = torch.zeros((), device=self.device)
        rows = len(batch.tokens)
        passes = (
            self.training.passes(self.processes)
            if self.processes > 1
            else -(-rows // (self.training.micro_rows or rows))
        )
        for number, part in enumerate(batch.portions(passes), 1):
            last = number == passes
            with nullcontext() if last or self.accelerator is None else self.accelerator.no_sync(self.model):
                with self._autocast():
                    losses = token_losses(self.model, part, self.device, half=self.half)
                loss = losses.sum() * (self.processes / targets)
                if self.accelerator is None:
                    loss.backward()
                else:
                    self.accelerator.backward(loss)
            share += loss.detach() / self.processes
            if count is not None:
                count(losses, part)
        return share

    def _autocast(self) -> Any:
        """A model that accelerate prepared does it itself."""
        if self.accelerator is not None:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half)
