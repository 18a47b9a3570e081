"""Small Mimi and HuBERT models with random weights and filled codebooks, saved as transformers saves them; a bundle."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import torch
from transformers import HubertConfig, HubertModel, MimiConfig, MimiModel, Wav2Vec2FeatureExtractor

from slm.model import ModelConfig, save_model
from slm.prompt_stream import PromptStream
from slm.units import UnitEncoder, UnitVocabulary
from vocoder import Vocoder, VocoderConfig

MIMI_CODEBOOK = 32


def check_streaming(encoder: UnitEncoder, waveform: np.ndarray, chunks: list[int]) -> None:
    """Speech in pieces of these sizes, and what is left of it, has the units of the whole."""
    stream, at, frames = encoder.stream(), 0, []
    for size in [*chunks, len(waveform)]:
        frames.append(stream.push(waveform[at : at + size]))
        at += size
    frames.append(stream.flush())
    assert np.array_equal(np.concatenate(frames), encoder.encode(waveform, encoder.sample_rate).frames())


def check_fork(encoder: UnitEncoder, said: np.ndarray, other: np.ndarray, cut: int) -> None:
    """A prompt of float32 [n] at 16 kHz that is forked after `cut` samples, where another end, `other`, follows in the fork:
    both give what they would give alone."""

    def fresh(*parts: np.ndarray) -> PromptStream:
        stream = PromptStream(encoder, 16000, 60.0, lambda sentences, before: ("en", True))
        for part in parts:
            stream.push(part)
        return stream

    def frames(stream: PromptStream) -> list[list[int]]:
        return [part.frames().tolist() for part in stream.finish().sentences]

    stream = fresh(said[:cut])
    with mock.patch.object(
        torch.nn.Module, "__deepcopy__", create=True, side_effect=AssertionError("a network is copied")
    ):
        fork = stream.fork()
    fork.push(other)
    assert fork.encoder is encoder
    assert frames(fork) == frames(fresh(said[:cut], other))
    stream.push(said[cut:])
    assert frames(stream) == frames(fresh(said[:cut], said[cut:]))


def save_mimi(folder: Path, frame_rate: float = 12.5, seed: int = 3) -> Path:
    """A Mimi at 8 kHz with 12.5 or 25 units a second and a sliding window shorter than the tests' sounds."""
    torch.manual_seed(seed)
    config = MimiConfig(
        sampling_rate=8000,
        hidden_size=16,
        num_filters=4,
        upsampling_ratios=[8, 5, 4, round(25 / frame_rate)],
        codebook_size=MIMI_CODEBOOK,
        codebook_dim=8,
        num_quantizers=3,
        vector_quantization_hidden_dimension=8,
        upsample_groups=16,
        num_hidden_layers=2,
        intermediate_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=12,
        layer_scale_initial_scale=0.5,
        initializer_range=0.3,
    )
    model = MimiModel(config)
    quantizer = model.quantizer
    for part in (quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer):
        for layer in part.layers:  # random initialisation leaves codebooks empty
            layer.codebook.embed_sum.copy_(4.0 * torch.randn_like(layer.codebook.embed_sum))
    model.save_pretrained(str(folder))
    return folder


def save_hubert(
    folder: Path, frame_rate: float = 50.0, *, stable: bool = False, normalise: bool = True, seed: int = 4
) -> Path:
    """A HuBERT at 16 kHz with 25 or 50 units a second and four layers; `stable`: the layer norms of the large one."""
    torch.manual_seed(seed)
    config = HubertConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8, 8, 8, 8),
        conv_kernel=(10, 8, 4, 4),
        conv_stride=(5, 8, 4, round(100 / frame_rate)),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        do_stable_layer_norm=stable,
        feat_extract_norm="layer" if stable else "group",
        initializer_range=0.3,
    )
    HubertModel(config).save_pretrained(str(folder))
    Wav2Vec2FeatureExtractor(do_normalize=normalise).save_pretrained(str(folder))
    return folder


def save_bundle(folder: Path, units: UnitEncoder, *, vocab_size: int | None) -> Path:
    """A bundle of random weights around a unit encoder: a Llama of one layer, a small vocoder, two languages."""
    rng = np.random.default_rng(0)
    speech = [rng.integers(0, units.codebook_size, 40) for _ in range(50)]
    vocabulary = UnitVocabulary.train(
        speech, codebook_size=units.codebook_size, languages=["en", "fr"], vocab_size=vocab_size
    )
    torch.manual_seed(5)
    size = ModelConfig(hidden_size=16, layers=1, heads=2, intermediate_size=32, max_position=256)
    save_model(size.build(vocabulary), vocabulary, folder / "slm")
    Vocoder(
        VocoderConfig(
            units.codebook_size,
            units.frame_rate,
            16000,
            ["ada"],
            ["en", "fr"],
            dim=16,
            intermediate_dim=32,
            dilations=[1],
            prosody_dim=16,
            prosody_dilations=[1],
            max_run_length=8,
        )
    ).save(folder / "vocoder")
    units.save(folder / "units")
    (folder / "bundle.json").write_text('{"format": 1, "languages": ["en", "fr"], "max_prompt_seconds": 30}')
    return folder
