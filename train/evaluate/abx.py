"""ABX discrimination of triphones: is a token X nearer to A, of its own kind, than to B, which differs in one phone?

Schatz et al., "Evaluating speech features with the minimal-pair ABX task", Interspeech 2013; Kahn et al., "Libri-light",
ICASSP 2020. Tokens are triphones cut out of whole sentences at espeak-ng's times; A and B share the outer two phones and
differ in the middle one. *Within*: A, B and X in one voice. *Across*: A and B in one voice, X in another. A and X always
come from different sentences: the same sentence in two voices would be an easier task than the standard one.

The distance of two tokens is the mean along the best DTW path (of the shortest one among equals) of a frame distance:
0 or 1 for units (one-hot vectors), the angle of the vectors over pi for features. A tie is half an error. Errors are
averaged over tokens, then over voices, then over contexts, then over pairs of phones. Chance is 0.5.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from train.speech.phones import SILENCE, Phone

TOKENS = 4
"""Tokens at most of one triphone in one voice."""
CONTEXTS = 150
"""Contexts at most, drawn by a seed."""


@dataclass(frozen=True)
class Token:
    """A triphone in an utterance: place in s, and who says it in which sentence."""

    context: tuple[str, str]
    phone: str
    voice: str
    sentence: int
    utterance: int
    start: float
    end: float


@dataclass(frozen=True)
class Abx:
    """Errors 0..1 (chance 0.5), None where the speech has no such triples; numbers of triples and of phone pairs."""

    within: float | None
    across: float | None
    triples: int
    phone_pairs: int


def find_tokens(
    spoken: Sequence[tuple[str, int, Sequence[Phone]]], *, contexts: int = CONTEXTS, tokens: int = TOKENS, seed: int = 0
) -> list[list[Token]]:
    """(voice, sentence, phones) of each utterance -> tokens by context, of the contexts that hold a minimal pair."""
    by_context: dict[tuple[str, str], dict[tuple[str, str], list[Token]]] = defaultdict(lambda: defaultdict(list))
    for index, (voice, sentence, phones) in enumerate(spoken):
        for left, middle, right in zip(phones, phones[1:], phones[2:], strict=False):
            if SILENCE not in (left.name, middle.name, right.name):
                token = Token((left.name, right.name), middle.name, voice, sentence, index, left.start, right.end)
                by_context[token.context][token.phone, voice].append(token)
    usable = sorted(context for context, kinds in by_context.items() if _has_minimal_pair(kinds))
    rng = np.random.default_rng(seed)
    if len(usable) > contexts:
        usable = [usable[i] for i in sorted(rng.permutation(len(usable))[:contexts])]
    chosen = []
    for context in usable:
        kept: list[Token] = []
        for key in sorted(by_context[context]):
            kind = by_context[context][key]
            first = {token.sentence: token for token in reversed(kind)}  # one token a sentence
            kept += [first[sentence] for sentence in sorted(first)[:tokens]]
        chosen.append(kept)
    return chosen


def _has_minimal_pair(kinds: dict[tuple[str, str], list[Token]]) -> bool:
    """Whether a voice says two phones here, one of them in two sentences."""
    phones = {phone for phone, _ in kinds}
    sentences = {
        phone: {token.sentence for key in kinds if key[0] == phone for token in kinds[key]} for phone in phones
    }
    return len(phones) > 1 and any(len(heard) > 1 for heard in sentences.values())


def abx_error(contexts: Sequence[Sequence[Token]], representations: Sequence[np.ndarray], frame_rate: float) -> Abx:
    """Error over the tokens of `find_tokens`. representations, one an utterance: units int [T] or features [T, D]."""
    cells: dict[str, dict[tuple[str, str], list[float]]] = {"within": defaultdict(list), "across": defaultdict(list)}
    triples = 0
    for tokens in contexts:
        parts, kept = [], []
        for token in tokens:
            whole = representations[token.utterance]
            part = whole[_frame(token.start, frame_rate) : max(_frame(token.end, frame_rate), 1)]
            if len(part):
                parts.append(part)
                kept.append(token)
        if len(kept) > 2:
            distances = token_distances(parts)
            for task, table in cells.items():
                errors, count = _context_errors(kept, distances, across=task == "across")
                triples += count
                for pair, error in errors.items():
                    table[pair].append(error)
    means = {
        task: float(np.mean([np.mean(errors) for errors in table.values()])) if table else None
        for task, table in cells.items()
    }
    return Abx(means["within"], means["across"], triples, len(cells["across"] or cells["within"]))


def _frame(seconds: float, frame_rate: float) -> int:
    """The first frame whose middle is not before this time."""
    return max(0, int(np.ceil(seconds * frame_rate - 0.5)))


def _context_errors(
    tokens: Sequence[Token], distances: np.ndarray, *, across: bool
) -> tuple[dict[tuple[str, str], float], int]:
    """(phone of A and X, phone of B) -> error in this context, mean over voices; and the number of triples."""
    sentence = np.array([token.sentence for token in tokens])
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, token in enumerate(tokens):
        groups[token.phone, token.voice].append(index)
    phones = sorted({token.phone for token in tokens})
    voices = sorted({token.voice for token in tokens})
    errors: dict[tuple[str, str], float] = {}
    triples = 0
    for first, second in itertools.permutations(phones, 2):
        cell = []
        for voice, hearer in itertools.product(voices, voices):
            a, b, x = groups.get((first, voice)), groups.get((second, voice)), groups.get((first, hearer))
            if (voice != hearer) != across or not a or not b or not x:
                continue
            allowed_XA = sentence[x][:, None] != sentence[a][None]
            ax_XA, bx_XB = distances[np.ix_(x, a)], distances[np.ix_(x, b)]
            wrong_XA = (np.sign(ax_XA[:, :, None] - bx_XB[:, None]).mean(2) + 1) / 2
            if allowed_XA.any():
                cell.append(wrong_XA[allowed_XA].mean())
                triples += int(allowed_XA.sum()) * len(b)
        if cell:
            errors[first, second] = float(np.mean(cell))
    return errors, triples


def token_distances(tokens: Sequence[np.ndarray]) -> np.ndarray:
    """All pairs' mean frame distance along the best DTW path: tokens int [T] or float [T, D] -> [N, N], symmetric."""
    lengths = np.array([len(token) for token in tokens])
    frames = torch.from_numpy(np.concatenate(tokens))
    if frames.ndim == 1:
        cost_FF = (frames[:, None] != frames[None]).float()
    else:
        unit = torch.nn.functional.normalize(frames.double(), dim=1)
        cost_FF = (torch.arccos((unit @ unit.T).clamp(-1, 1)) / torch.pi).float()
    i, j = np.triu_indices(len(tokens), 1)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    steps = np.arange(lengths.max())
    rows = torch.from_numpy(np.minimum(starts[:, None] + steps, len(frames) - 1))
    cost_BTT = cost_FF[rows[i][:, :, None], rows[j][:, None, :]]
    result = np.zeros((len(tokens), len(tokens)))
    result[i, j] = dtw_mean_cost(cost_BTT, torch.from_numpy(lengths[i]), torch.from_numpy(lengths[j])).numpy()
    return result + result.T


def dtw_mean_cost(cost_BTT: Tensor, n: Tensor, m: Tensor) -> Tensor:
    """Mean cost along the cheapest path from (0, 0) to (n - 1, m - 1), the shortest of equals: float [B].

    cost_BTT: [B, T, T], used up to n [B] rows and m [B] columns. Steps: one row, one column, or both.
    """
    batch, size, _ = cost_BTT.shape
    if batch == 0:
        return cost_BTT.new_zeros(0)
    # skewed[k, b, i] = cost of (i, k - i): rows padded by `size` and read with a stride one shorter
    padded = torch.nn.functional.pad(cost_BTT, (0, size), value=torch.inf).flatten(1)[:, : size * (2 * size - 1)]
    skewed = padded.unflatten(1, (size, 2 * size - 1)).permute(2, 0, 1).contiguous()
    infinity = cost_BTT.new_full((batch, size + 1), torch.inf)
    zeros = cost_BTT.new_zeros(batch, size + 1)
    before, before2 = infinity.clone(), infinity.clone()  # cost of diagonals k - 1 and k - 2, shifted by one
    length, length2 = zeros.clone(), zeros.clone()
    before2[:, 0] = 0.0
    result = cost_BTT.new_zeros(batch)
    last = n + m - 2
    for k in range(2 * size - 1):
        best, steps = before2[:, :-1], length2[:, :-1]
        for other, its_steps in ((before[:, :-1], length[:, :-1]), (before[:, 1:], length[:, 1:])):
            better = (other < best) | ((other == best) & (its_steps < steps))
            best, steps = torch.where(better, other, best), torch.where(better, its_steps, steps)
        before2, before, length2, length = before, infinity.clone(), length, zeros.clone()
        before[:, 1:], length[:, 1:] = best + skewed[k], steps + 1
        ends = (last == k).nonzero()[:, 0]
        result[ends] = before[ends, n[ends]] / length[ends, n[ends]]
    return result
