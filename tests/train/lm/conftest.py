"""Fixtures of this room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.lm.tiny import (
    SMALL,
    vocabulary,
    write_corpus,
)
from train.lm.attention import use_document_attention
from train.lm.corpus import TokenCorpus


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus")
    write_corpus(path)
    return path


@pytest.fixture(scope="module")
def corpus(folder: Path) -> TokenCorpus:
    return TokenCorpus.load(folder, vocabulary())


# --- no document sees its neighbour ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["llama", "qwen2", "opt"])
def model(request: pytest.FixtureRequest) -> Any:
    from transformers import OPTConfig, OPTForCausalLM, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    words = vocabulary()
    if request.param == "llama":
        made = SMALL.build(words)
    else:
        shape = {"vocab_size": len(words), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        if request.param == "qwen2":
            made = Qwen2ForCausalLM(Qwen2Config(**shape, intermediate_size=48, num_key_value_heads=2))
        else:
            made = OPTForCausalLM(OPTConfig(**shape, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=128))
    made = made.eval()
    use_document_attention(made)
    return made
