"""The language model: an ordinary transformers causal LM over the unit vocabulary.

Built from scratch (Llama architecture) or warm-started from a text LM (TWIST: Hassid et al., arXiv 2305.13009): the
body's weights are kept, the embedding and the head are new, because text tokens and unit tokens share nothing.
On disk it is a plain transformers folder with its tokenizer beside it; no code of this project is needed to load it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slm.errors import TresseError
from slm.units.vocabulary import UnitVocabulary

FEW_ROWS = 16
"""Rows below which PyTorch's own products are as fast."""


@dataclass(frozen=True)
class ModelConfig:
    """Size of a Llama-architecture model, or the text LM to start from.

    The default is the model that trains on two CPU cores (5.6M parameters with 2,048 tokens).
    warm_start: folder or hub id of a transformers causal LM; its dimensions are used and the ones below ignored.
    """

    hidden_size: int = 256
    layers: int = 6
    heads: int = 4
    key_value_heads: int | None = None
    intermediate_size: int = 768
    max_position: int = 1024
    rope_theta: float = 10_000.0
    tie_embeddings: bool = True
    warm_start: str | None = None

    def build(self, vocabulary: UnitVocabulary) -> Any:
        """A new float32 model for this vocabulary; weights drawn from torch's global generator."""
        if self.warm_start is not None:
            return warm_start(self.warm_start, vocabulary)
        if self.hidden_size % self.heads or self.heads % (self.key_value_heads or self.heads):
            raise TresseError(
                f"hidden_size {self.hidden_size} must be a multiple of heads {self.heads}, and heads of key_value_heads"
            )
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads or self.heads,
            max_position_embeddings=self.max_position,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            tie_word_embeddings=self.tie_embeddings,
            bos_token_id=vocabulary.bos_id,
            eos_token_id=vocabulary.eos_id,
            pad_token_id=None,
            attn_implementation="sdpa",
        )
        return LlamaForCausalLM(config)


def warm_start(source: str | Path, vocabulary: UnitVocabulary) -> Any:
    """A text LM with its body's weights kept and a new embedding and head for the units (TWIST).

    source: folder or hub id of any transformers causal LM (Qwen2, Llama 3.2, SmolLM2, OPT ...). Returns float32.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    try:
        model = AutoModelForCausalLM.from_pretrained(str(source), dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise TresseError(
            f"cannot start from {source}: give a folder or hub id of a transformers causal language model"
        ) from error
    config = model.config
    text = config.get_text_config()
    tied = bool(text.tie_word_embeddings)
    deviation = float(getattr(text, "initializer_range", 0.02))
    old = model.get_input_embeddings()
    embedding = nn.Embedding(len(vocabulary), old.embedding_dim)
    nn.init.normal_(embedding.weight, std=deviation)
    model.set_input_embeddings(embedding)
    head = nn.Linear(model.get_output_embeddings().in_features, len(vocabulary), bias=False)
    nn.init.normal_(head.weight, std=deviation)
    model.set_output_embeddings(head)
    for settings in {id(config): config, id(text): text}.values():
        settings.vocab_size = len(vocabulary)
        settings.bos_token_id, settings.eos_token_id = vocabulary.bos_id, vocabulary.eos_id
        settings.pad_token_id = None
    model.generation_config = GenerationConfig(bos_token_id=vocabulary.bos_id, eos_token_id=vocabulary.eos_id)
    if tied:
        model.tie_weights()
    return model


def parameter_count(model: nn.Module) -> int:
    """Distinct parameters: tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def training_flops(model: Any, tokens: int, attended: int) -> float:
    """Floating-point operations of training on so many tokens: forward once and backward twice that.

    attended: positions that the tokens attend to, themselves included, summed. What recomputing or padding adds is not
    counted (the usual numerator of model FLOPs utilisation: Chowdhery et al., arXiv 2204.02311, appendix B).
    """
    text = model.config.get_text_config()
    matrices = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 6.0 * matrices * tokens + 12.0 * text.num_hidden_layers * text.num_attention_heads * head * attended


def save_model(model: Any, vocabulary: UnitVocabulary, folder: Path, *, half: bool = True) -> None:
    """Write config.json, model.safetensors and the tokenizer, loadable by AutoModelForCausalLM and AutoTokenizer.

    half: bfloat16 weights on disk, the precision of training, a fifth smaller than float16 once compressed. The config
    still says float32, so that loading gives a float32 model for the CPU.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = torch.bfloat16 if half else torch.float32
    state = {
        name: tensor.detach().to("cpu", dtype) if tensor.is_floating_point() else tensor.detach().cpu()
        for name, tensor in model.state_dict().items()
    }
    if model.config.get_text_config().tie_word_embeddings:  # one copy on disk; loading ties them again
        for name in getattr(model, "_tied_weights_keys", None) or []:
            state.pop(name, None)
    if any(not torch.isfinite(tensor).all() for tensor in state.values() if tensor.is_floating_point()):
        raise TresseError("the model has weights that are not finite: train it again, with a lower learning rate")
    model.save_pretrained(str(folder), state_dict=state)
    vocabulary.save(folder)


class QuickLinear(nn.Linear):
    """A linear layer that, in inference on a CPU, leaves float32 products of some rows to oneDNN: up to twice the speed."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As nn.Linear."""
        alone = not torch.is_inference_mode_enabled() or not input.is_cpu or input.dtype != torch.float32
        if alone or input.numel() < FEW_ROWS * self.in_features or not _has_onednn():
            return super().forward(input)
        return torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")


@functools.cache
def _has_onednn() -> bool:
    """Whether its products can be called here (x86 builds of PyTorch have them)."""
    one = torch.ones(1, 1)
    try:
        torch.ops.mkldnn._linear_pointwise(one, one, None, "none", [], "")
    except (AttributeError, RuntimeError):
        return False
    return True


def load_model(folder: Path) -> tuple[Any, UnitVocabulary]:
    """Read what `save_model` wrote, offline: (float32 model in evaluation mode, vocabulary)."""
    from transformers import AutoModelForCausalLM

    vocabulary = UnitVocabulary.load(Path(folder))
    try:
        model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError) as error:
        raise TresseError(f"cannot read the language model in {folder}: restore the bundle's files") from error
    if model.config.vocab_size != len(vocabulary):
        raise TresseError(
            f"the model in {folder} has {model.config.vocab_size} tokens and its tokenizer {len(vocabulary)}: "
            "restore the bundle's files"
        )
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = QuickLinear
    return model.eval(), vocabulary
