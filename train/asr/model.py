"""The speech recogniser's network: a small transformers Whisper with random weights, and its way to faster-whisper."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

from train.asr.features import MelFeatures
from train.asr.plan import written
from train.tools.checkpoints import write_json

SPECIAL = ("<|endoftext|>", "<|startoftranscript|>")
TASKS = (
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
)
LOCAL_OFFSETS = (0.0, -3.0, 3.0, -8.0, 8.0)
"""Encoder frames from a frame to where its heads look at first."""
LOCAL_GAIN = 1.0


@dataclass(frozen=True)
class ASRModel:
    """Dimensions of the Whisper. vocabulary: text tokens of both languages together."""

    width: int = 192
    heads: int = 3
    encoder_layers: int = 4
    decoder_layers: int = 2
    vocabulary: int = 500
    dropout: float = 0.0
    features: MelFeatures = field(default_factory=MelFeatures)


def train_tokenizer(sentences: list[tuple[str, str]], size: int) -> Tokenizer:
    """Byte-pair encoding of (language, text) sentences, with Whisper's special tokens in the order CTranslate2 wants.

    Texts are encoded with a leading space, as Whisper's.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator((" " + written(text) for _, text in sentences), trainer)
    form = json.loads(tokenizer.to_str())
    form["model"]["vocab"][""] = tokenizer.get_vocab_size()  # by this entry CTranslate2 knows a multilingual model
    tokenizer = Tokenizer.from_str(json.dumps(form))
    languages = [f"<|{language}|>" for language in dict.fromkeys(language for language, _ in sentences)]
    tokenizer.add_special_tokens([*SPECIAL, *languages, *TASKS])
    return tokenizer


def build_model(config: ASRModel, tokenizer: Tokenizer, languages: list[str]) -> Any:
    """A transformers WhisperForConditionalGeneration with random weights."""
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

    end, start = (tokenizer.token_to_id(token) for token in SPECIAL)
    whisper = WhisperConfig(
        vocab_size=tokenizer.get_vocab_size(),
        num_mel_bins=config.features.feature_size,
        d_model=config.width,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        encoder_attention_heads=config.heads,
        decoder_attention_heads=config.heads,
        encoder_ffn_dim=4 * config.width,
        decoder_ffn_dim=4 * config.width,
        max_source_positions=config.features.frames // 2,
        max_target_positions=448,  # faster-whisper asks for up to this many tokens
        dropout=config.dropout,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=start,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(whisper)
    _initialise(model, config)
    model.set_attn_implementation("eager")  # a third faster than the fused kernel at these sizes on a CPU
    heads = range(config.heads)
    last = config.decoder_layers - 1
    model.generation_config = GenerationConfig(
        lang_to_id={f"<|{language}|>": tokenizer.token_to_id(f"<|{language}|>") for language in languages},
        task_to_id={task: tokenizer.token_to_id(f"<|{task}|>") for task in ("translate", "transcribe")},
        is_multilingual=True,
        alignment_heads=[[last, head] for head in heads],
        no_timestamps_token_id=tokenizer.token_to_id("<|notimestamps|>"),
        begin_suppress_tokens=[end],
        suppress_tokens=[],
        decoder_start_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
        _from_model_config=False,
    )
    return model


@torch.no_grad()
def _initialise(model: Any, config: ASRModel) -> None:
    """Random weights that learn quickly: Whisper's own (all 0.02) drown what is heard in the positions.

    Every layer keeps the scale of its input, residual branches start small, and the encoder's heads begin as local
    filters, for which sinusoidal positions suffice: queries and keys are the fastest sinusoids, keys turned by an offset.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv1d) and module is not model.proj_out:
            gain = 2.0 if isinstance(module, nn.Conv1d) else 1.0
            nn.init.normal_(module.weight, std=gain * module.weight[0].numel() ** -0.5)
            if name.endswith(("out_proj", "fc2")):
                module.weight *= 0.4
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    decoder, width = model.model.decoder, config.width
    nn.init.normal_(decoder.embed_tokens.weight, std=width**-0.5)
    nn.init.normal_(decoder.embed_positions.weight, std=0.3 * width**-0.5)
    size = width // config.heads
    pairs = torch.arange(size // 2)
    steps = math.log(10000) / (width // 2 - 1)
    frequency = torch.exp(-steps * pairs)
    for layer in model.model.encoder.layers:
        query, key = layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight
        for head in range(config.heads):
            angle = frequency * LOCAL_OFFSETS[head % len(LOCAL_OFFSETS)]
            sine, cosine = head * size + pairs, head * size + size // 2 + pairs
            query[sine, pairs] += LOCAL_GAIN
            query[cosine, width // 2 + pairs] += LOCAL_GAIN
            key[sine, pairs] += LOCAL_GAIN * angle.cos()
            key[sine, width // 2 + pairs] += -LOCAL_GAIN * angle.sin()
            key[cosine, pairs] += LOCAL_GAIN * angle.sin()
            key[cosine, width // 2 + pairs] += LOCAL_GAIN * angle.cos()


def encode(model: Any, mels_BMT: Tensor) -> tuple[Tensor, Tensor]:
    """Encoder output and, for the phones' head, what its lower half makes of it, both [B, T / 2, width], of features as
    long as they are: Whisper's own forward wants whole chunks."""
    encoder = model.model.encoder
    x_BWT = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mels_BMT))))
    x_BTW = x_BWT.transpose(1, 2)
    x_BTW = x_BTW + encoder.embed_positions.weight[: x_BTW.shape[1]]
    half_BTW = x_BTW
    for number, layer in enumerate(encoder.layers, 1):
        x_BTW = layer(F.dropout(x_BTW, encoder.dropout, encoder.training), None)
        if number == -(-len(encoder.layers) // 2):
            half_BTW = F.layer_norm(x_BTW, x_BTW.shape[-1:])
    return encoder.layer_norm(x_BTW), half_BTW


def convert(model: Any, tokenizer: Tokenizer, features: MelFeatures, folder: Path) -> Path:
    """Write a faster-whisper model: CTranslate2 int8 weights, tokenizer, features."""
    from ctranslate2.converters import TransformersConverter
    from transformers import PreTrainedTokenizerFast

    made = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(made, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        model.save_pretrained(scratch)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(scratch)
        TransformersConverter(scratch).convert(str(made), quantization="int8")
    tokenizer.save(str(made / "tokenizer.json"))
    write_json(made / "preprocessor_config.json", {**asdict(features), "sampling_rate": 16000})
    shutil.rmtree(folder, ignore_errors=True)
    made.rename(folder)
    return folder
