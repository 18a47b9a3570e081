"""Shared-prompt scoring equals scoring each ending on its own, one at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from slm.errors import TresseError
from slm.likelihood import EndingScore, ScoredItem, score_endings

VOCABULARY, BOS, TAGS = 50, 48, (46, 47)


def build(name: str) -> Any:
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        OPTConfig,
        OPTForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "max_position_embeddings": 128, "initializer_range": 0.3}
    if name == "opt":
        shape |= {"init_std": 0.3}
        shape.pop("initializer_range")
        model: Any = OPTForCausalLM(OPTConfig(**shape, ffn_dim=48, word_embed_proj_dim=32))
    elif name == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**shape, intermediate_size=48, num_key_value_heads=2))
    else:
        model = LlamaForCausalLM(LlamaConfig(**shape, intermediate_size=48))
    if name == "llama, eager":
        model.set_attn_implementation("eager")
    return model.eval()


def draw_items(count: int, seed: int = 0) -> list[ScoredItem]:
    rng = np.random.default_rng(seed)

    def tokens(low: int, high: int) -> list[int]:
        return rng.integers(0, 48, rng.integers(low, high)).tolist()

    items = []
    for number in range(count):
        prompt = [BOS, *tokens(0, 40)]
        if number % 5 == 4:
            prompt = list(items[-1].prompt)  # several items may share a prompt
        items.append(ScoredItem(prompt, [[TAGS[k % 2], *tokens(1, 20)] for k in range(rng.integers(1, 6))]))
    return items


@torch.no_grad()
def plain(model: Any, start: list[int], ending: list[int], counted: set[int]) -> tuple[float, int, float, int]:
    """One sequence, one pass: (sum, count) over the ending and over everything but the first token."""
    tokens = torch.tensor([start + ending])
    values = model(input_ids=tokens).logits.log_softmax(-1)[0, :-1].gather(1, tokens[0, 1:, None])[:, 0].tolist()
    kept = [
        (value, place + 1 >= len(start)) for place, value in enumerate(values) if int(tokens[0, place + 1]) in counted
    ]
    last = [value for value, is_ending in kept if is_ending]
    return sum(last), len(last), sum(value for value, _ in kept), len(kept)


@pytest.mark.parametrize("name", ["llama", "llama, eager", "qwen2", "opt"])
@pytest.mark.parametrize(("unscored", "max_tokens"), [((), 4096), (TAGS, 300)])
def test_batched_scores_equal_plain_ones(name: str, unscored: tuple[int, ...], max_tokens: int) -> None:
    model, items = build(name), draw_items(24)
    scores = score_endings(model, items, unscored=unscored, max_tokens=max_tokens)
    counted = set(range(VOCABULARY)) - set(unscored)
    for item, held in zip(items, scores, strict=True):
        assert len(held) == len(item.endings)
        for ending, score in zip(item.endings, held, strict=True):
            given, tokens, whole, whole_tokens = plain(model, list(item.prompt), list(ending), counted)
            alone = plain(model, [BOS], list(ending), counted)[0]
            assert (score.tokens, score.whole_tokens) == (tokens, whole_tokens)
            assert score.given == pytest.approx(given, abs=1e-4)
            assert score.whole == pytest.approx(whole, abs=1e-4)
            assert score.unconditional == pytest.approx(alone, abs=1e-4)


def test_many_endings_of_one_prompt_are_split_over_rows() -> None:
    model = build("llama")
    endings = [[k % 48, (3 * k) % 48, (7 * k) % 48, 1, 2, 3, 4, 5, 6, 7] for k in range(60)]
    many = score_endings(model, [ScoredItem([BOS, 1, 2], endings)])[0]
    single = [score_endings(model, [ScoredItem([BOS, 1, 2], [ending])])[0][0] for ending in endings]
    for a, b in zip(many, single, strict=True):
        assert a.given == pytest.approx(b.given, abs=1e-4)
        assert a.unconditional == pytest.approx(b.unconditional, abs=1e-4)


def test_equal_endings_score_exactly_alike_and_order_does_not_matter() -> None:
    model, items = build("llama"), draw_items(8, seed=3)
    doubled = [ScoredItem(item.prompt, [*item.endings, item.endings[0]]) for item in items]
    for held in score_endings(model, doubled):
        assert held[0] == held[-1]
    backward = score_endings(model, items[::-1])[::-1]
    for one, other in zip(score_endings(model, items), backward, strict=True):
        for a, b in zip(one, other, strict=True):
            assert (a.given, a.unconditional) == pytest.approx((b.given, b.unconditional), abs=1e-4)


def test_the_prompt_is_computed_once_for_all_its_endings() -> None:
    model, fed = build("llama"), []
    model.register_forward_pre_hook(
        lambda module, arguments, named: fed.append(named["input_ids"].numel()), with_kwargs=True
    )
    prompt = [BOS, *range(40)]
    endings = [[k, k + 1, k + 2] for k in range(8)]
    score_endings(model, [ScoredItem(prompt, [ending]) for ending in endings])
    assert sum(fed) <= len(prompt) + 1 + 2 * 8 * 3 + 41  # padding of the short row included
    assert sum(fed) < 8 * len(prompt)


def test_a_conditional_of_the_unconditional_prompt_is_the_same_number() -> None:
    score: EndingScore = score_endings(build("llama"), [ScoredItem([BOS], [[1, 2, 3]])])[0][0]
    assert score.given == score.unconditional == score.whole


def test_items_that_cannot_be_scored_are_refused() -> None:
    model = build("llama")
    for item in (ScoredItem([], [[1]]), ScoredItem([BOS], []), ScoredItem([BOS], [[]])):
        with pytest.raises(ValueError, match="at least one token"):
            score_endings(model, [item])
    with pytest.raises(TresseError, match="129 tokens"):
        score_endings(model, [ScoredItem([BOS] * 100, [[1] * 29])])
    assert score_endings(model, []) == []


def test_what_endings_begin_with_is_computed_once() -> None:
    model, fed = build("llama"), []
    model.register_forward_pre_hook(
        lambda module, arguments, named: fed.append(named["input_ids"].numel()), with_kwargs=True
    )
    stem = list(range(20))
    score_endings(model, [ScoredItem([BOS, 1, 2], [[*stem, last] for last in (30, 31, 32)])])
    assert sum(fed) <= 2 * (3 + 20 + 3)  # behind the prompt, and behind <bos>; padding included
