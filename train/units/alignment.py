"""Which phone each frame of a clip is, where it is known what was said: forced alignment with a teacher's posteriors.

A teacher that hears guesses; a text says which phones follow each other, and the teacher only when (Viterbi alignment, as
speech recognisers are trained: Young et al. 2006, The HTK Book, ch. 8). Speakers may pause anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PAUSE = 3.0
"""nats that a pause costs where the text has none."""


def align(log_posteriors_TK: np.ndarray, phones: Sequence[int], silence: int = 0) -> tuple[np.ndarray, float]:
    """The likeliest path through the phones, each at least a frame long, in order, with pauses between them.

    log_posteriors: nats, [T, K]; phones: classes, those of silence included, which may be passed over -> the class of every
    frame, int64 [T], and the mean log posterior along the path, in nats. Raises ValueError where there are more phones
    than frames, or none.
    """
    spoken = [phone for phone in phones if phone != silence]
    if not 0 < len(spoken) <= len(log_posteriors_TK):
        raise ValueError(f"{len(spoken)} phones cannot be aligned with {len(log_posteriors_TK)} frames")
    states = np.full(2 * len(spoken) + 1, silence, np.int64)  # a pause before each phone, and behind the last
    states[1::2] = spoken
    price = np.full(len(states), PAUSE)
    at = 0
    for phone in phones:
        if phone == silence:
            price[2 * at] = 0.0
        else:
            at += 1
    price[0] = price[-1] = 0.0
    frames, count = len(log_posteriors_TK), len(states)
    is_phone = np.arange(count) % 2 == 1
    scores = log_posteriors_TK[:, states]
    total = np.full(count, -np.inf)
    total[:2] = scores[0, :2]
    back = np.zeros((frames, count), np.int8)
    for step in range(1, frames):
        one_back = np.concatenate([[-np.inf], total[:-1]]) - np.where(is_phone, 0.0, price)
        two_back = np.where(is_phone, np.concatenate([[-np.inf, -np.inf], total[:-2]]), -np.inf)
        choices = np.stack([total, one_back, two_back])
        back[step] = choices.argmax(0)
        total = choices.max(0) + scores[step]
    state = count - 1 if total[-1] >= total[-2] else count - 2
    mean = float(total[state]) / frames
    path = np.zeros(frames, np.int64)
    for step in range(frames - 1, -1, -1):
        path[step] = states[state]
        state -= int(back[step, state])
    return path, mean
