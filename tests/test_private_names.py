"""Names of other libraries that their documentation does not promise. Where one is renamed, the test here fails and says
what to do; `make test-latest` runs it against the newest versions."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class PrivateName:
    """A dotted name, the check that it still is what the code takes it for, who uses it, and what to do otherwise."""

    name: str
    used_by: str
    mend: str
    check: Callable[[object], bool] = lambda value: value is not None


def _arguments(*names: str) -> Callable[[object], bool]:
    return lambda function: set(names) <= set(inspect.signature(function).parameters)


def _one_argument_of(*names: str) -> Callable[[object], bool]:
    return lambda function: bool(set(names) & set(inspect.signature(function).parameters))


def _session_inputs(*names: str) -> Callable[[object], bool]:
    return lambda make: set(names) <= {entry.name for entry in make().session.get_inputs()}


NAMES = [
    PrivateName(
        "transformers.MimiModel.encode",
        "slm.units.mimi",
        "add the new name of the cache to CACHES",
        _one_argument_of("encoder_cache", "encoder_past_key_values"),
    ),
    PrivateName(
        "transformers.MimiModel.encode",
        "slm.units.mimi",
        "pass the streaming state as encode now takes it",
        _arguments("padding_cache", "use_streaming"),
    ),
    PrivateName(
        "transformers.models.mimi.modeling_mimi.MimiSplitResidualVectorQuantizer",
        "slm.units.mimi",
        "read the first codebook from where Mimi's quantiser keeps it now",
    ),
    PrivateName(
        "transformers.models.mimi.modeling_mimi.MimiEuclideanCodebook",
        "slm.units.mimi",
        "read the centroids from where Mimi's codebook keeps them now",
    ),
    PrivateName(
        "transformers.PreTrainedModel.set_attn_implementation",
        "train.lm.attention, train.asr.model",
        "choose the attention kernel as transformers now wants it",
    ),
    PrivateName(
        "transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS",
        "train.lm.attention",
        "register the attention of packed rows as transformers now wants it",
    ),
    PrivateName(
        "transformers.cache_utils.StaticLayer",
        "slm.token_steps",
        "tell caches that hold all positions from those of sliding windows by their new name",
    ),
    PrivateName(
        "transformers.utils.logging.disable_progress_bar", "slm.engines", "silence the converter in another way"
    ),
    PrivateName(
        "faster_whisper.transcribe.pad_or_trim",
        "slm.transcribe",
        "pad features to the model's own number of frames with what replaced it",
    ),
    PrivateName(
        "faster_whisper.vad.get_vad_model",
        "slm.voice_activity",
        "feed Silero's inputs as the wheel's new model names them",
        _session_inputs("input", "h", "c"),
    ),
    PrivateName(
        "ctranslate2.Generator.generate_tokens",
        "slm.engines",
        "stream tokens with what replaced it, `callback` included",
    ),
    PrivateName(
        "vocos.modules.ConvNeXtBlock",
        "vocoder.causal",
        "take the block's parts (dwconv, norm, pwconv1, act, pwconv2, gamma) by their new names",
        lambda block: {"dwconv", "norm", "pwconv1", "act", "pwconv2", "gamma"} <= set(dir(block(4, 8, 0.1, None))),
    ),
    PrivateName("vocos.heads.ISTFTHead", "vocoder.istft", "take the head's parts by their new names"),
    PrivateName(
        "vocos.discriminators.DiscriminatorR", "train.vocoder.losses", "take the discriminator by its new name"
    ),
    PrivateName("torch.ops.mkldnn._linear_pointwise", "slm.model, vocoder.causal", "drop the fast path or rename it"),
    PrivateName(
        "torch._softmax_backward_data", "train.lm.attention", "write the softmax's gradient out, or use the new name"
    ),
    PrivateName(
        "torch.distributed.checkpoint.filesystem._StorageInfo",
        "train.tools.sharded",
        "take the names of a process's files from where write_data gives them now",
        _arguments("relative_path"),
    ),
    PrivateName(
        "torch.cpu._is_avx512_bf16_supported", "train.tools.hardware", "ask the processor for bfloat16 in another way"
    ),
]


def _resolve(name: str) -> object:
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        try:
            value: object = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            value = getattr(value, part)
        return value
    raise AttributeError(name)


@pytest.mark.parametrize("private", NAMES, ids=[f"{entry.name}-{number}" for number, entry in enumerate(NAMES)])
def test_private_name_is_still_there(private: PrivateName) -> None:
    try:
        fits = private.check(_resolve(private.name))
    except (AttributeError, TypeError):
        fits = False
    assert fits, f"{private.name} (used by {private.used_by}) is not what it was: {private.mend}"
