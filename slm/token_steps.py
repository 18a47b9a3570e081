"""Decoding with PyTorch, a token a step for several continuations of one prompt, drawn on the model's device.

With a `length` every step has the same shapes: keys and values lie in a static cache, and what has no key yet is masked.
Everything that a step reads and writes stays on the device, so that on a GPU it is captured once as a CUDA graph and
replayed for every token. Price: each token attends to `length` positions, and a prompt's keys are copied once. Without a
`length` the cache grows, which is cheaper on a CPU.

Sync points: one in `TokenSteps.next`, for up to `ahead` tokens of every continuation.

Shapes: B continuations, T tokens of the prompt, V of the vocabulary, K likeliest ones, S = ahead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from slm.model import attention_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from slm.engines import Sampling

SHORTEST = 1024
"""Positions of the shortest static cache; longer ones have twice as many, four times as many ..."""
WARM_UPS = 3
"""Steps before one is captured: libraries choose their kernels and workspaces in the first ones."""
_capturing = threading.Lock()


def cache_length(positions: int) -> int:
    """The positions of the static cache that holds so many: few lengths, so that few graphs are captured."""
    return max(SHORTEST, 1 << (positions - 1).bit_length())


def has_fixed_shapes(model: PreTrainedModel) -> bool:
    """Whether the steps of this model can all be alike: not where layers attend to a sliding window, or where rotations
    depend on the length so far."""
    from transformers.cache_utils import StaticCache, StaticLayer

    text = model.config.get_text_config()
    rotations = getattr(text, "rope_parameters", None) or {}
    if rotations.get("rope_type") in ("dynamic", "longrope"):
        return False
    return all(type(layer) is StaticLayer for layer in StaticCache(config=text, max_cache_len=1).layers)


def noise(generators: Sequence[torch.Generator], kept: int) -> Tensor:
    """What `torch.multinomial` would draw to choose one of `kept` by each generator: float32 [B, K], on the CPU."""
    return torch.stack([torch.empty(kept).exponential_(generator=own) for own in generators])


def draw(logits_BV: Tensor, noise_BK: Tensor, temperature: Tensor | float, top_p: Tensor | float) -> Tensor:
    """Draw a token from each row of logits at the temperature, from the smallest set of tokens with a share of `top_p` of
    the first K: int64 [B, 1].

    It is the one that `torch.multinomial` draws: the largest quotient of weight and exponential noise.
    """
    likeliest_BK, order_BK = (logits_BV / temperature).topk(noise_BK.shape[1])
    shares_BK = likeliest_BK.softmax(-1)
    weights_BK = shares_BK * (shares_BK.cumsum(-1) - shares_BK < top_p)
    return order_BK.gather(1, (weights_BK / noise_BK).argmax(-1, keepdim=True))


def capture(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """The step as something to call again and again: on a GPU a replayed CUDA graph, elsewhere the step itself.

    On a GPU the step is run a few times first. Other threads may go on working on the device meanwhile.
    """
    if device.type != "cuda":
        return step
    with _capturing, torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            step()
    return graph.replay


class TokenSteps:
    """The next tokens of B continuations of one prompt after another: `start`, then `next` again and again.

    All tensors are made once, so that a captured step finds them where they were.
    """

    def __init__(self, model: PreTrainedModel, rows: int, kept: int, ahead: int, length: int | None = None) -> None:
        """rows: B. kept: K, or 0 to take the likeliest token. ahead: S. length: positions of the static cache, of a model
        that `has_fixed_shapes`; None for a cache that grows."""
        self.model, self.rows, self.kept, self.ahead, self.length = model, rows, kept, ahead, length
        text = model.config.get_text_config()
        self._device = device = next(model.parameters()).device
        self._first_BV: Tensor | None = None
        self._replay: Callable[[], None] | None = None
        self._cache: Any = None
        if length is not None:
            from transformers import StaticCache

            self._cache = StaticCache(config=text, max_cache_len=length)
        with torch.inference_mode():
            self._tokens_B1 = torch.zeros(rows, 1, dtype=torch.int64, device=device)
            self._position_11 = torch.zeros(1, 1, dtype=torch.int64, device=device)
            self._at_1 = torch.zeros(1, dtype=torch.int64, device=device)
            """Tokens drawn so far; of a row the first `_least_1` are none of `_early_V`, the others none of `_late_V`."""
            self._least_1 = torch.zeros_like(self._at_1)
            self._early_V, self._late_V = torch.zeros(2, text.vocab_size, dtype=torch.bool, device=device)
            self._temperature, self._top_p = torch.ones(2, device=device)
            self._noise_SBK = torch.ones(ahead, rows, kept, device=device)
            self._drawn_SB = torch.zeros(ahead, rows, dtype=torch.int64, device=device)
            self._logs_SB = torch.zeros(ahead, rows, device=device)
            self._columns_L = torch.arange(length or 0, device=device)

    @torch.inference_mode()
    def start(self, tokens: Sequence[int], sampling: Sampling, ends: Sequence[int]) -> None:
        """Read a prompt of T tokens, T + `sampling.max_tokens` being `length` at most. ends: tokens that are not among the
        first `sampling.min_tokens`."""
        prompt_1T = torch.tensor([list(tokens)], device=self._device)
        output = self.model(prompt_1T, use_cache=True, logits_to_keep=1)
        if self.length is None:
            self._cache = output.past_key_values
            if self.rows > 1:
                self._cache.batch_repeat_interleave(self.rows)
        else:
            self._fill(output.past_key_values)
            if self._replay is None:
                self._cache.reset()
                self._replay = capture(self._step, self._device)
                self._fill(output.past_key_values)
        self._first_BV = output.logits[:, -1].float().expand(self.rows, -1)
        self._position_11.fill_(len(tokens))
        self._at_1.zero_()
        self._least_1.fill_(sampling.min_tokens)
        self._temperature.fill_(sampling.temperature)
        self._top_p.fill_(sampling.top_p)
        for banned_V, tokens in ((self._late_V, [*sampling.banned]), (self._early_V, [*sampling.banned, *ends])):
            banned_V.zero_()
            banned_V[tokens] = True

    def _fill(self, prompt: Any) -> None:
        """Put the keys and values of one row into the static cache, for all rows."""
        self._cache.reset()
        for number, layer in enumerate(prompt.layers):
            keys, values = (x.expand(self.rows, -1, -1, -1) for x in (layer.keys, layer.values))
            self._cache.update(keys, values, number)

    @torch.inference_mode()
    def next(self, count: int, generators: Sequence[torch.Generator]) -> list[list[tuple[int, float]]]:
        """The next `count` tokens of each row with their natural log-likelihoods, by steps: `ahead` of them, or fewer the
        last time. generators: of the rows, on the CPU."""
        if self.kept:
            self._noise_SBK[:count].copy_(torch.stack([noise(generators, self.kept) for _ in range(count)]))
        for _ in range(count):
            if self._first_BV is not None:
                self._choose(self._first_BV)
                self._first_BV = None
            else:
                (self._replay or self._step)()
        drawn, logs = self._drawn_SB[:count].tolist(), self._logs_SB[:count].tolist()
        return [list(zip(*step, strict=True)) for step in zip(drawn, logs, strict=True)]

    def _step(self) -> None:
        """Draw a token behind the last ones."""
        mask = None
        if self.length is not None:
            mask = attention_mask(self.model, (self._columns_L <= self._position_11)[None, None])
        output = self.model(
            self._tokens_B1,
            attention_mask=mask,
            position_ids=self._position_11,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._position_11.add_(1)
        self._choose(output.logits[:, -1].float())

    def _choose(self, logits_BV: Tensor) -> None:
        """Draw from the logits behind the last tokens."""
        slot_1 = self._at_1 % self.ahead
        banned_V = torch.where(self._at_1 < self._least_1, self._early_V, self._late_V)
        allowed_BV = logits_BV.masked_fill(banned_V, -torch.inf)
        if self.kept:
            noise_BK = self._noise_SBK.index_select(0, slot_1)[0]
            drawn_B1 = draw(allowed_BV, noise_BK, self._temperature, self._top_p)
        else:
            drawn_B1 = allowed_BV.argmax(-1, keepdim=True)
        self._tokens_B1.copy_(drawn_B1)
        self._drawn_SB.index_copy_(0, slot_1, drawn_B1.T)
        self._logs_SB.index_copy_(0, slot_1, logits_BV.log_softmax(-1).gather(1, drawn_B1).T)
        self._at_1.add_(1)
