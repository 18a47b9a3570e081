"""The names of the cloze protocol: scoring rules, voice groups, pairings."""

from __future__ import annotations

from slm.choosing import worth
from slm.likelihood import EndingScore

RULES = {
    "ending_given_prompt": "log-likelihood per token of the ending, given the prompt",
    "whole_file": "log-likelihood per token of prompt and ending together",
    "ending_minus_unconditional": "log-likelihood per token of the ending given the prompt, minus that of it alone",
    "as_replies_choose": "what replies choose sentences by: nearly the rule before, and how far both are about the same",
}
HEADLINE = "ending_given_prompt"
CONTROL = "without_context"
SEEN, UNSEEN, CHOSEN, RECORDED = "seen", "unseen", "chosen", "recorded"
"""Voice groups: training voices, held-out voices, voices that the user named, audio files."""
SAME, DIFFERENT = "same", "different"
"""Pairings: endings in the prompt's voice, or in another of the group."""


def value_of(score: EndingScore, rule: str) -> float:
    """An ending's score under a rule (or CONTROL: alone), in nats a token."""
    if rule == "whole_file":
        return score.whole / score.whole_tokens
    if rule == "as_replies_choose":
        return worth(score.given, score.unconditional, score.tokens, score.likeness)
    if rule == "ending_minus_unconditional":
        return (score.given - score.unconditional) / score.tokens
    return (score.unconditional if rule == CONTROL else score.given) / score.tokens
