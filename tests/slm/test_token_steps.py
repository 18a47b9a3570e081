"""PyTorch's decoding: caches, batches and looks ahead change no token, and a step can be recorded once and replayed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from slm import token_steps
from slm.bundle import Bundle
from slm.engines import SPARES, Proposal, Sampling, TorchEngine
from slm.token_steps import TokenSteps, cache_length, draw, has_fixed_shapes, noise
from slm.units import UnitVocabulary

ROTATED = {"num_key_value_heads": 2, "intermediate_size": 24}
KINDS: dict[str, dict[str, Any]] = {
    "llama": ROTATED,
    "qwen2": ROTATED,
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "gpt2": {},
    "gpt_neox": {"intermediate_size": 24},
    "phi": {"intermediate_size": 24},
    "gemma": {**ROTATED, "head_dim": 8},
    "olmo2": ROTATED,
}
"""Architectures and their sizes."""
GROWING: dict[str, dict[str, Any]] = {
    "mistral": {**ROTATED, "sliding_window": 8},
    "gemma2": {**ROTATED, "head_dim": 8, "sliding_window": 8},
    "llama": {**ROTATED, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}},
}
"""Those whose steps are not all alike."""
HOST_READS = {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal", "aten::nonzero"}


def tiny(kind: str, sizes: dict[str, Any], words: UnitVocabulary) -> Any:
    """A random model, float64: so that no two tokens are equally likely but for rounding."""
    torch.manual_seed(5)
    shape = {"vocab_size": len(words), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"bos_token_id": words.bos_id, "eos_token_id": words.eos_id, "pad_token_id": None}
    config = CONFIG_MAPPING[kind](**shape, max_position_embeddings=128, **special, **sizes)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)
    return model


@pytest.fixture(scope="module")
def words() -> UnitVocabulary:
    return UnitVocabulary.train([], codebook_size=50, languages=["en", "fr"], vocab_size=None)


@pytest.fixture(scope="module", autouse=True)
def short_caches() -> Iterator[None]:
    """So that tests meet several lengths."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_steps, "SHORTEST", 16)
        yield


@pytest.fixture(scope="module", params=KINDS)
def engines(request: pytest.FixtureRequest, words: UnitVocabulary) -> tuple[TorchEngine, TorchEngine]:
    """With a cache that grows, and with a static one that serves all replies."""
    model = tiny(request.param, KINDS[request.param], words)
    static = TorchEngine(model, words, static=True)
    assert static.static
    return TorchEngine(model, words), static


def samplings() -> st.SearchStrategy[Sampling]:
    return st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 0.7, 1.3]),
        top_p=st.sampled_from([0.5, 0.95, 1.0]),
        top_k=st.sampled_from([1, 5, 256]),
        max_tokens=st.integers(0, 20),
        min_tokens=st.integers(0, 8),
        seed=st.integers(0, 2**31),
        banned=st.sampled_from([(), (3, 4, 5)]),
    )


PROMPTS = st.lists(st.integers(0, 49), min_size=1, max_size=40)
ENDS = st.sampled_from([[51], [51, *range(20)]])


def same(a: Sequence[Proposal], b: Sequence[Proposal]) -> bool:
    """The same tokens, equally likely but for rounding."""
    return [x.tokens for x in a] == [y.tokens for y in b] and all(
        math.isclose(x.likelihood, y.likelihood, abs_tol=1e-4) for x, y in zip(a, b, strict=True)
    )


class Tape(TorchDispatchMode):
    """A step recorded as a CUDA graph records it: each operation, with the very tensors that it was given; numbers that the
    host knew stay as they were. What asks the device for a number is refused, as while a graph is captured."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.name().split(".")[0] not in HOST_READS, f"a step waits for the device: {func.name()}"
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        """Do it all again."""
        fresh: dict[int, Any] = {}

        def now(value: Any) -> Any:
            return fresh.get(id(value), value)

        for func, args, kwargs, before in self.calls:
            result = func(*tree_map(now, args), **tree_map(now, kwargs))
            fresh |= {id(old): new for old, new in zip(tree_leaves(before), tree_leaves(result), strict=True)}


def record(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """In the place of `slm.token_steps.capture`."""
    with Tape() as tape:
        step()
    assert tape.calls
    return tape.replay


# ---- one cache or the other ------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(tokens=PROMPTS, sampling=samplings(), count=st.integers(0, 4), ends=ENDS)
def test_a_static_cache_changes_no_token(
    engines: tuple[TorchEngine, TorchEngine], tokens: list[int], sampling: Sampling, count: int, ends: list[int]
) -> None:
    growing, static = engines
    assert same(growing.propose(tokens, sampling, count, ends), static.propose(tokens, sampling, count, ends))
    assert list(growing.generate(tokens, sampling)) == list(static.generate(tokens, sampling))
    assert len(static._spares) <= SPARES


@settings(max_examples=6, deadline=None)
@given(tokens=PROMPTS, sampling=samplings(), count=st.integers(0, 4), ends=ENDS, ahead=st.integers(2, 40))
def test_looking_ahead_changes_nothing(
    engines: tuple[TorchEngine, TorchEngine],
    tokens: list[int],
    sampling: Sampling,
    count: int,
    ends: list[int],
    ahead: int,
) -> None:
    for engine in engines:
        other = TorchEngine(engine.model, engine.vocabulary, engine.static, ahead)
        assert other.propose(tokens, sampling, count, ends) == engine.propose(tokens, sampling, count, ends)
        assert list(other.generate(tokens, sampling)) == list(engine.generate(tokens, sampling))


@settings(max_examples=5, deadline=None)
@given(tokens=PROMPTS, sampling=samplings(), count=st.integers(1, 3), ends=ENDS)
def test_a_recorded_step_is_replayed_for_every_token(
    engines: tuple[TorchEngine, TorchEngine], tokens: list[int], sampling: Sampling, count: int, ends: list[int]
) -> None:
    """Nothing in it depends on what the host knew when it was recorded, so a CUDA graph of it is good for all tokens."""
    growing, static = engines
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_steps, "capture", record)
        recorded = TorchEngine(static.model, static.vocabulary, static=True, ahead=4)
        for prompt in (tokens, tokens[::-1], [*tokens, 7]):
            assert same(growing.propose(prompt, sampling, count, ends), recorded.propose(prompt, sampling, count, ends))


@pytest.mark.parametrize("kind", GROWING)
def test_models_whose_steps_differ_keep_a_cache_that_grows(kind: str, words: UnitVocabulary) -> None:
    model = tiny(kind, GROWING[kind], words)
    assert not has_fixed_shapes(model)
    engine, sampling = TorchEngine(model, words, static=True), Sampling(max_tokens=20, min_tokens=20, seed=3)
    assert not engine.static
    assert list(engine.generate([1, 2, 3], sampling)) == list(TorchEngine(model, words).generate([1, 2, 3], sampling))


@given(positions=st.integers(1, 100_000))
def test_caches_hold_what_is_asked_for_in_few_lengths(positions: int) -> None:
    length = cache_length(positions)
    assert positions <= length <= max(token_steps.SHORTEST, 2 * positions - 1)
    assert length % token_steps.SHORTEST == 0
    assert (length // token_steps.SHORTEST).bit_count() == 1


# ---- the draw --------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**31), rows=st.integers(1, 5), kept=st.integers(1, 60), top_p=st.floats(0.05, 1.0))
def test_tokens_are_those_that_multinomial_draws(seed: int, rows: int, kept: int, top_p: float) -> None:
    logits = 3 * torch.randn(rows, 60, generator=torch.Generator().manual_seed(seed))
    generators, others = ([torch.Generator().manual_seed(seed + row) for row in range(rows)] for _ in range(2))
    for _ in range(3):
        drawn = draw(logits, noise(generators, kept), 0.8, top_p)[:, 0].tolist()
        for row, (token, own) in enumerate(zip(drawn, others, strict=True)):
            likeliest, order = (logits[row] / 0.8).topk(kept)
            shares = likeliest.softmax(-1)
            weights = shares * (shares.cumsum(-1) - shares < top_p)
            assert token == int(order[torch.multinomial(weights, 1, generator=own)])


# ---- replies beside and behind each other ----------------------------------------------------------------------------


def test_the_host_looks_once_every_few_tokens(words: UnitVocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchEngine(tiny("llama", KINDS["llama"], words), words, static=True, ahead=8)
    looks: list[int] = []
    plain = TokenSteps.next
    monkeypatch.setattr(TokenSteps, "next", lambda steps, count, own: looks.append(count) or plain(steps, count, own))
    assert len(list(engine.generate([1, 2], Sampling(max_tokens=20, min_tokens=20)))) == 20
    assert looks == [8, 8, 4]


def test_replies_at_once_have_caches_of_their_own(words: UnitVocabulary) -> None:
    """Tokens taken by turns, and replies that are ended early; then the caches serve again."""
    engine = TorchEngine(tiny("llama", KINDS["llama"], words), words, static=True, ahead=3)
    sampling = Sampling(max_tokens=24, min_tokens=24)
    alone = [list(engine.generate([seed, 1], replace(sampling, seed=seed))) for seed in range(4)]
    for taken in (24, 5, 24):
        beside = [engine.generate([seed, 1], replace(sampling, seed=seed)) for seed in range(4)]
        turns = [[next(reply) for reply in beside] for _ in range(taken)]
        assert [list(tokens) for tokens in zip(*turns, strict=True)] == [tokens[:taken] for tokens in alone]
        assert len(engine._spares) <= 1
        for reply in beside:
            reply.close()  # type: ignore[attr-defined]
        assert len(engine._spares) == 4


# ---- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_graphs_change_no_likeliest_token(kind: str, words: UnitVocabulary) -> None:
    """Replayed, without a graph, and on the CPU."""
    model = tiny(kind, KINDS[kind], words)
    sampling = Sampling(temperature=0.0, max_tokens=60, min_tokens=60)
    prompts = [[1, 2, 3], list(range(40))]
    here = [list(TorchEngine(model, words).generate(tokens, sampling)) for tokens in prompts]
    model.to("cuda")
    captured, eager = TorchEngine(model, words), TorchEngine(model, words, static=False)
    assert captured.static
    for engine in (captured, eager, captured):
        assert [list(engine.generate(tokens, sampling)) for tokens in prompts] == here


@pytest.mark.gpu
def test_a_gpu_draws_what_a_cpu_draws_also_in_threads(words: UnitVocabulary) -> None:
    model = tiny("llama", KINDS["llama"], words)
    sampling = Sampling(temperature=1.0, max_tokens=60, min_tokens=60)

    def drawn(engine: TorchEngine, seed: int) -> list[Proposal]:
        return engine.propose([seed, 2], replace(sampling, seed=seed), 1 + seed % 3, [words.eos_id])

    here = [drawn(TorchEngine(model, words), seed) for seed in range(12)]
    engine = TorchEngine(model.to("cuda"), words)
    with ThreadPoolExecutor(6) as pool:
        there = list(pool.map(lambda seed: drawn(engine, seed), range(12)))
    assert all(same(a, b) for a, b in zip(here, there, strict=True))


@pytest.mark.gpu
def test_the_shipped_model_decodes_the_same_on_a_gpu(bundle: Bundle) -> None:
    from slm.model import load_model

    model, words = load_model(bundle.path / "slm")
    start = [words.bos_id, words.tag_ids["en"]]
    sampling = Sampling(temperature=0.0, max_tokens=40)
    here = list(TorchEngine(model, words).generate(start, sampling))
    assert list(TorchEngine(model.to("cuda"), words).generate(start, sampling)) == here
