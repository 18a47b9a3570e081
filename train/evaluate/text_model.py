"""The other end of the shortcut control: what a text model of words learns from the same stories.

To a model of words nothing is lost in speaking, hearing and tokenising; what it does not bind after so many stories, a
speech model will not either. It reads every story once. `python -m train.evaluate.text_model --stories 40000` prints story
cloze as the training goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from slm.likelihood import ScoredItem, score_endings
from train.evaluate.cloze.protocol import HEADLINE, value_of
from train.lm.packing import IGNORE
from train.lm.schedule import SLMTraining
from train.lm.step import optimisers_of
from train.stories.cloze_items import ClozeItem, make_items
from train.stories.data import LANGUAGES
from train.stories.endings_only import words
from train.stories.grammar import Cycles, generate_stories
from train.tools.statistics import accuracy, outcomes
from train.tools.trainer import Schedule, Updates, train_steps

UNKNOWN, START = 0, 1


@dataclass(frozen=True)
class TextTraining:
    """batch: stories a step. learning_rate: of Muon and AdamW, after `warmup` steps falling linearly to 2 %. width, layers,
    heads: of the transformer."""

    batch: int = 64
    learning_rate: float = 4e-3
    warmup: int = 50
    width: int = 192
    layers: int = 4
    heads: int = 4
    seed: int = 0


class TextModel:
    """A small causal transformer over words, trained story by story; the last mark of a sentence ends it."""

    def __init__(self, stories: Sequence[Sequence[str]], training: TextTraining) -> None:
        """stories: the sentences of each; words that are not in them are one word."""
        from transformers import LlamaConfig, LlamaForCausalLM

        self.training = training
        types = sorted({word for sentences in stories for sentence in sentences for word in words(sentence)})
        self.numbers = {word: number for number, word in enumerate(types, START + 1)}
        self.stories = [self.encode(sentences) for sentences in stories]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            self.model: Any = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=len(self.numbers) + START + 1,
                    hidden_size=training.width,
                    intermediate_size=training.width * 8 // 3,
                    num_hidden_layers=training.layers,
                    num_attention_heads=training.heads,
                    max_position_embeddings=1024,
                    tie_word_embeddings=True,
                )
            )

    def encode(self, sentences: Iterable[str]) -> list[int]:
        """The beginning of a story, from START."""
        return [START, *(self.numbers.get(word, UNKNOWN) for sentence in sentences for word in words(sentence))]

    def train(self) -> Iterator[tuple[int, float]]:
        """Read every story once, in random order; yields (stories read, loss in nats a word) after every step."""
        training = self.training
        settings = SLMTraining(optimiser="muon", learning_rate=training.learning_rate, betas=(0.9, 0.98))
        optimisers = optimisers_of(self.model, settings, torch.device("cpu"))
        updates = Updates(self.model.parameters(), optimisers, training.learning_rate, clip=1.0)
        order = np.random.default_rng(training.seed).permutation(len(self.stories))
        losses: list[torch.Tensor] = []

        def step(number: int, factor: float) -> torch.Tensor:
            batch = [self.stories[k] for k in order[number * training.batch : (number + 1) * training.batch]]
            shape = (len(batch), max(map(len, batch)))
            tokens, targets = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORE)
            for row, story in enumerate(batch):
                tokens[row, : len(story)] = targets[row, : len(story)] = torch.tensor(story)
            self.model.train()
            loss = self.model(input_ids=tokens, labels=targets, use_cache=False).loss
            loss.backward()
            losses.append(loss.detach())
            return losses[-1] + updates.apply(factor)

        schedule = Schedule(-(-len(self.stories) // training.batch), training.warmup, 0.02)
        for done in train_steps(step, schedule):
            yield min(done * training.batch, len(self.stories)), float(losses[-1])

    def choices(self, items: Sequence[ClozeItem], language: str) -> np.ndarray:
        """For every item 1 where the right ending is likelier a word, 0 where the wrong one is, 1/2 for a tie."""
        asked = [
            ScoredItem(
                self.encode(item.context[language]),
                [self.encode([end[language]])[1:] for end in (item.right, item.wrong)],
            )
            for item in items
        ]
        scores = score_endings(self.model.eval(), asked)
        return outcomes(*(np.array([value_of(score[side], HEADLINE) for score in scores]) for side in (0, 1)))


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(
        prog="python -m train.evaluate.text_model", description="Story cloze of a text model."
    )
    parser.add_argument("--stories", type=int, default=40_000, help="how many it reads, once each")
    parser.add_argument("--language", default="en", choices=LANGUAGES)
    group = "stories of a group that shares its people and things, as in a recipe; 1: no groups"
    parser.add_argument("--group", "--cycle", dest="group", type=int, default=64, help=group)
    parser.add_argument("--items", type=int, default=300, help="story items of the test split")
    asked = parser.parse_args()
    training = TextTraining()
    stories = generate_stories(training.seed, asked.stories, cycles=Cycles(asked.group))
    model = TextModel([story.sentences[asked.language] for story in stories], training)
    items = [item for item in make_items(1, asked.items, "test") if item.kind == "story"]
    pairs = np.arange(len(items)) // 2
    parameters = sum(parameter.numel() for parameter in model.model.parameters())
    print(f"{parameters / 1e6:.1f}M parameters, {len(model.numbers):,} words\n")
    print("| stories | loss, nats a word | story cloze, % |\n|---|---|---|")
    losses = []
    for count, loss in model.train():
        losses.append(loss)
        if len(losses) % 100 == 0 or count == asked.stories:
            result = accuracy(model.choices(items, asked.language), pairs)
            low, high = result["ci95"]
            shown = f"{100 * result['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
            print(f"| {count:,} | {np.mean(losses[-50:]):.2f} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
