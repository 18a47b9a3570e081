"""Random numbers at any place of a stream, without those before them: what makes reading a corpus stateless.

`languages_at` gives what `slm.interleave.draw_languages` draws, for stories scattered over a corpus; `permuted`
shuffles numbers without a list of all of them. Both are pure functions of their
arguments. Cost: about 2 us a draw, and as much a number.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from slm.interleave import choose_languages

MASK = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)
ROUNDS = 6


def _multiplied(factor: int, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Upper and lower 64 bits of the products with a constant."""
    low, high = np.uint64(factor & 0xFFFFFFFF), np.uint64(factor >> 32)
    a, b = values & MASK, values >> HALF
    middle, cross = low * b, high * a
    carry = ((low * a) >> HALF) + (middle & MASK) + (cross & MASK)
    return high * b + (middle >> HALF) + (cross >> HALF) + (carry >> HALF), np.uint64(factor) * values


def philox(keys: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Philox4x64-10 (Salmon et al. 2011), as in numpy: uint64 keys [N, 2], counters [N] -> uint64 [N, 4]."""
    a, b, c, d = counters.astype(np.uint64), *(np.zeros(len(counters), np.uint64) for _ in range(3))
    first, second = keys[:, 0].copy(), keys[:, 1].copy()
    for _ in range(10):
        high, low = _multiplied(0xD2E7470EE14C6C93, a)
        other_high, other_low = _multiplied(0xCA5A826395121157, c)
        a, b, c, d = other_high ^ b ^ first, other_low, high ^ d ^ second, low
        first += np.uint64(0x9E3779B97F4A7C15)
        second += np.uint64(0xBB67AE8584CAA73B)
    return np.stack([a, b, c, d], axis=1)


@lru_cache(maxsize=1 << 14)
def _key(seed: int, epoch: int, sentence: int) -> tuple[int, int]:
    first, second = np.random.SeedSequence([seed, epoch, sentence]).generate_state(2, np.uint64).tolist()
    return first, second


def languages_at(
    seed: int,
    epochs: np.ndarray,
    sentences: np.ndarray,
    stories: np.ndarray,
    languages: int,
    shares: np.ndarray | None = None,
) -> np.ndarray:
    """What `draw_languages` draws for sentence, story and epoch, each int64 [N]: int64 [N] in 0..languages - 1."""
    if not len(stories):
        return np.zeros(0, np.int64)
    pairs, which = np.unique((epochs << 20) + sentences, return_inverse=True)
    keys = np.asarray([_key(seed, pair >> 20, pair & 0xFFFFF) for pair in pairs.tolist()], dtype=np.uint64)
    blocks = philox(keys[which], stories // 4 + 1)  # four numbers a counter value
    return choose_languages(blocks[np.arange(len(stories)), stories % 4], languages, shares)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Splitmix64's finaliser."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def permuted(numbers: np.ndarray, size: int, seed: int, epochs: np.ndarray) -> np.ndarray:
    """Where numbers 0 .. size - 1 go in the shuffle of their epoch: int64 [N], a permutation for each seed and epoch.

    A Feistel network over the next power of 4; what lands outside is sent through it again (cycle walking).
    """
    bits = max(1, -(-max(1, size - 1).bit_length() // 2))
    half, mask = np.uint64(bits), np.uint64((1 << bits) - 1)
    start = np.random.SeedSequence([seed, 2]).generate_state(1, np.uint64)
    keys = _mixed(start + epochs.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    values = numbers.astype(np.uint64)
    outside = np.arange(len(values))
    while len(outside):
        left, right, key = values[outside] >> half, values[outside] & mask, keys[outside]
        for turn in range(ROUNDS):
            left, right = right, left ^ (_mixed(right + key + np.uint64(turn * 0x1342543DE82EF95)) & mask)
        values[outside] = left << half | right
        outside = outside[values[outside] >= np.uint64(size)]
    return values.astype(np.int64)
