"""The language model: an ordinary transformers causal LM over the unit vocabulary.

Built from scratch (Llama architecture); or warm-started from a text LM (TWIST: Hassid et al., arXiv 2305.13009), whose
body's weights are kept, while embedding and head are new, because text tokens and unit tokens share nothing; or a model of
units that is trained further, with all its weights.
On disk it is a plain transformers folder with its tokenizer beside it; no code of this project is needed to load it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from slm.errors import TresseError
from slm.schema import read_json, read_model_config
from slm.topics import Topics
from slm.units.hub import is_path
from slm.units.vocabulary import UnitVocabulary
from slm.weights import load_pretrained

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ARCHITECTURES = frozenset(
    [
        "llama",
        "qwen2",
        "qwen3",
        "opt",
        "mistral",
        "gpt2",
        "gpt_neox",
        "phi",
        "phi3",
        "gemma",
        "gemma2",
        "gemma3_text",
        "smollm3",
        "olmo",
        "olmo2",
    ]
)
"""Types of models that are loaded: causal language models whose code is part of transformers."""
BUNDLES = Path(__file__).parent / "bundles"
"""Where the shipped bundles are."""
FEW_ROWS = 16
"""Rows below which PyTorch's own products are as fast."""


@dataclass(frozen=True)
class ModelConfig:
    """Size of a Llama-architecture model, or the language model to start from.

    The default is the model that trains on two CPU cores (5.6M parameters with 2,048 tokens).
    warm_start: folder or hub id of a transformers causal LM of text, or the name or folder of a bundle, to train its model
    further; then its dimensions count and the other settings are ignored. topics: dimensions of what tokens are about
    (`slm.topics`), at most hidden_size, which a new model's embeddings begin with and replies are chosen by; 0: none.
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
    topics: int = 0

    def shape(self) -> ModelConfig:
        """The size alone, without the weights to start from: of a model of units its own, else the settings'."""
        folder = None if self.warm_start is None else unit_model(self.warm_start)
        if folder is None:
            return replace(self, warm_start=None)
        from transformers import AutoConfig

        with reading_model(folder):
            check_architecture(folder)
            text_model = AutoConfig.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            ).get_text_config()
        return replace(
            self,
            warm_start=None,
            hidden_size=text_model.hidden_size,
            layers=text_model.num_hidden_layers,
            heads=text_model.num_attention_heads,
            key_value_heads=text_model.num_key_value_heads,
            intermediate_size=text_model.intermediate_size,
            max_position=text_model.max_position_embeddings,
            tie_embeddings=text_model.tie_word_embeddings,
        )

    def build(self, vocabulary: UnitVocabulary, topics: Topics | None = None) -> PreTrainedModel:
        """A new float32 model for this vocabulary; weights drawn from torch's global generator. topics: what its embeddings
        begin with, where it does not begin with a model that there is.

        Raises TresseError for more dimensions of topics than the model is wide.
        """
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
        model = LlamaForCausalLM(config)
        if topics is not None:
            _begin_with_topics(model.get_input_embeddings().weight, topics.vectors, config.initializer_range)
        return model


@torch.no_grad()
def _begin_with_topics(embeddings_VD: torch.Tensor, vectors_VK: np.ndarray, spread: float) -> None:
    """Have embeddings point where the topics of their tokens do, in place. Their length is that of embeddings drawn with
    `spread`; tokens that are about nothing keep what was drawn. The dimensions are mixed at random, so that no part of an
    attention head has only the commonest ones."""
    width = embeddings_VD.shape[1]
    vectors = torch.from_numpy(vectors_VK).to(embeddings_VD.dtype)
    if vectors.shape[1] > width:
        raise TresseError(f"model.topics {vectors.shape[1]} must be at most model.hidden_size {width}")
    mixed = vectors @ torch.linalg.qr(torch.randn(width, width))[0][: vectors.shape[1]]
    lengths = mixed.norm(dim=1, keepdim=True)
    known = (lengths > 0).squeeze(1)
    embeddings_VD[known] = spread * width**0.5 * mixed[known] / lengths[known]


def part_folders(source: str | Path, part: str) -> list[Path]:
    """Where a part of a bundle may be that `source` names: a bundle's folder, the part's own, or a shipped bundle."""
    roots = [Path(source), *([BUNDLES / source] if "/" not in str(source) else [])]
    return [folder for root in roots for folder in (root / part, root)]


def unit_model(source: str | Path) -> Path | None:
    """The folder of the language model of units that `source` names: a shipped bundle, a bundle's folder, or the model's
    own. None for anything else, such as a text LM. Raises TresseError for a path at which there is nothing."""
    if is_path(str(source)) and not Path(source).exists():
        raise TresseError(
            f"there is no folder {source}: give a bundle, or a folder or hub id of a causal language model"
        )
    for folder in part_folders(source, "slm"):
        try:
            settings = read_json(folder / "tokenizer_config.json")
        except TresseError:
            continue
        if isinstance(settings, dict) and "codebook_size" in settings:
            return folder
    return None


def warm_start(source: str | Path, vocabulary: UnitVocabulary) -> PreTrainedModel:
    """A model to start from, float32.

    source: folder or hub id of any transformers causal LM of text (Qwen2, Llama 3.2, SmolLM2, OPT ...): its body's weights
    are kept, embedding and head are new (TWIST). Or what `unit_model` knows: all weights are kept, and the tags that
    `vocabulary` has more begin as the mean of those there. Raises TresseError for another source, and where the
    vocabularies differ otherwise.
    """
    from transformers import GenerationConfig

    further = unit_model(source)
    try:
        model = _pretrained(further or source)
    except (OSError, ValueError) as error:
        raise TresseError(
            f"cannot start from {source}: give a folder or hub id of a transformers causal language model, or a bundle"
        ) from error
    if further is not None:
        return _with_new_tags(model, UnitVocabulary.load(further), vocabulary, source)
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


def _with_new_tags(
    model: PreTrainedModel, own: UnitVocabulary, vocabulary: UnitVocabulary, source: str | Path
) -> PreTrainedModel:
    """The model with rows for the languages that its own vocabulary lacks."""
    if own.add_languages(vocabulary.languages).tokenizer.get_vocab() != vocabulary.tokenizer.get_vocab():
        raise TresseError(
            f"{source} has other tokens: make the vocabulary from it (a recipe with model.warm_start does)"
        )
    if len(vocabulary) > len(own):
        tags = list(own.tag_ids.values())
        model.resize_token_embeddings(len(vocabulary), mean_resizing=False)
        with torch.no_grad():
            for table in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
                table[len(own) :] = table[tags].mean(0)
    return model


def parameter_count(model: nn.Module) -> int:
    """Distinct parameters: tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def attention_mask(model: PreTrainedModel, allowed: torch.Tensor) -> torch.Tensor:
    """A mask of shape [B or 1, 1, queries, keys], True where a query may attend, as the model's attention takes it."""
    if getattr(model.config, "_attn_implementation", "sdpa") == "sdpa":
        return allowed
    dtype = next(model.parameters()).dtype  # others add the mask to the scores
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


def training_flops(model: PreTrainedModel, tokens: int, attended: int) -> float:
    """Floating-point operations of training on so many tokens: forward once and backward twice that.

    attended: positions that the tokens attend to, themselves included, summed. What recomputing or padding adds is not
    counted (the usual numerator of model FLOPs utilisation: Chowdhery et al., arXiv 2204.02311, appendix B).
    """
    text = model.config.get_text_config()
    matrices = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 6.0 * matrices * tokens + 12.0 * text.num_hidden_layers * text.num_attention_heads * head * attended


def save_model(
    model: PreTrainedModel, vocabulary: UnitVocabulary, folder: Path, *, half: bool = True, mantissa: int | None = None
) -> None:
    """Write config.json, model.safetensors and the tokenizer, loadable by AutoModelForCausalLM and AutoTokenizer.

    half: bfloat16 weights on disk, the precision of training, a fifth smaller than float16 once compressed. The config
    still says float32, so that loading gives a float32 model for the CPU. mantissa: round matrices to so many mantissa
    bits, of bfloat16's 7, so that they compress further.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = torch.bfloat16 if half else torch.float32
    state = {
        name: tensor.detach().to("cpu", dtype) if tensor.is_floating_point() else tensor.detach().cpu()
        for name, tensor in model.state_dict().items()
    }
    if mantissa is not None:
        state = {name: _rounded(tensor, mantissa) if tensor.ndim > 1 else tensor for name, tensor in state.items()}
    if model.config.get_text_config().tie_word_embeddings:  # one copy on disk; loading ties them again
        for name in getattr(model, "_tied_weights_keys", None) or []:
            state.pop(name, None)
    if any(not torch.isfinite(tensor).all() for tensor in state.values() if tensor.is_floating_point()):
        raise TresseError("the model has weights that are not finite: train it again, with a lower learning rate")
    model.save_pretrained(str(folder), state_dict=state)
    vocabulary.save(folder)


def _rounded(values: torch.Tensor, mantissa: int) -> torch.Tensor:
    """The nearest numbers with `mantissa` bits after the leading one, ties to the even one; shape and dtype stay."""
    fractions, exponents = torch.frexp(values.double())  # fractions in 0.5 .. 1
    return torch.ldexp((fractions * 2 ** (mantissa + 1)).round(), exponents - (mantissa + 1)).to(values.dtype)


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
    unit = torch.ones(1, 1)
    try:
        torch.ops.mkldnn._linear_pointwise(unit, unit, None, "none", [], "")
    except (AttributeError, RuntimeError):
        return False
    return True


@contextmanager
def reading_model(folder: Path) -> Iterator[None]:
    """Around the reading of a bundle's slm/: TresseError where files are missing or broken, whatever its reader raises."""
    try:
        yield
    except TresseError:
        raise
    except Exception as error:  # transformers, tokenizers and safetensors each raise their own
        raise TresseError(f"cannot read the language model in {folder}: restore the bundle's files") from error


def check_architecture(source: str | Path, **options: Any) -> None:
    """Raise TresseError where a model's config.json asks for code of its own, or names an architecture that is not one of
    ARCHITECTURES; OSError where there is none. What it asks for is never run."""
    from transformers import PretrainedConfig

    if (Path(source) / "config.json").is_file():
        values = read_model_config(Path(source))
    else:
        values, _ = PretrainedConfig.get_config_dict(str(source), **options)
    if not values:
        raise OSError("no config.json")
    if values.get("auto_map"):
        raise TresseError(f"the model in {source} wants to run code of its own (auto_map): it is not loaded")
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise TresseError(f"the model in {source} is of the type {str(kind)[:40]!r}: give one of {known}")


def _pretrained(source: str | Path, **options: Any) -> PreTrainedModel:
    """A causal language model of a folder or hub id in float32, from safetensors only."""
    from transformers import AutoModelForCausalLM

    check_architecture(source, **options)
    return load_pretrained(AutoModelForCausalLM, source, dtype=torch.float32, **options)


def read_model(folder: Path) -> tuple[PreTrainedModel, UnitVocabulary]:
    """`load_model`, with the layers as transformers makes them: for other programs."""
    vocabulary = UnitVocabulary.load(Path(folder))
    with reading_model(folder):
        model, loaded = _pretrained(folder, local_files_only=True, output_loading_info=True)
        if loaded["missing_keys"] or loaded["mismatched_keys"]:
            raise ValueError("weights are missing")
    if model.config.vocab_size != len(vocabulary):
        raise TresseError(
            f"the model in {folder} has {model.config.vocab_size} tokens and its tokenizer {len(vocabulary)}: "
            "restore the bundle's files"
        )
    return model.eval(), vocabulary


def load_model(folder: Path) -> tuple[PreTrainedModel, UnitVocabulary]:
    """Read what `save_model` wrote, offline: (float32 model in evaluation mode, vocabulary). Raises TresseError where files
    are missing, damaged, or do not fit together."""
    model, vocabulary = read_model(folder)
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = QuickLinear
    return model, vocabulary
