"""Cloze items from written stories: sStoryCloze and sTopicCloze in English and French, 1,871 items each, split by story.

Test stories that are translated give items in further languages (`languages`).

Stories of the test set are chosen so that shortcuts stand at chance: of all stories without twins, the set in which the
right ending is preferred in half of the items by bigrams, by its length, by a classifier of words trained on all endings,
and by the words that it shares with the story. *topic* items are mirrored: the wrong ending is the right one of another
test story, and every ending is wrong in exactly one item. `python -m train.stories.written_cloze` chooses anew and writes
written/test.txt (one id a line); the items follow from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from random import Random

import numpy as np
import scipy.sparse

from train.stories.cloze_items import BENCHMARK_ITEMS, ClozeItem
from train.stories.endings_only import Bigrams, correct_choices, words
from train.stories.twins import without_twins
from train.stories.written import FOLDER, LANGUAGES, WrittenStory, written_stories
from train.tools.checkpoints import atomic_path
from train.tools.statistics import outcomes

TEST_LIST = FOLDER / "test.txt"
VALIDATION_LIST = FOLDER / "validation.txt"
"""One in twenty of the stories that were left when it was written; stories that came later train."""
SEED = 20261126
TOLERANCE = 0.005
"""Distance from one half that the choice of stories aims at, for every shortcut."""


@cache
def splits() -> dict[str, tuple[WrittenStory, ...]]:
    """`train`, `validation` and `test` stories. Of twins only one is in any of them: the test story, else the one that
    validates, else the first.

    Stories that are added later change neither test nor validation, though they move the likeness of two stories a little,
    and with it a story that validates may become the twin of a test story.
    """
    test, validation = (set(path.read_text(encoding="utf-8").split()) for path in (TEST_LIST, VALIDATION_LIST))
    stories = sorted(written_stories(), key=lambda story: story.id not in validation)
    unique = without_twins(stories, chosen=test)
    return {
        "train": tuple(story for story in unique if story.id not in test | validation),
        "validation": tuple(story for story in unique if story.id in validation - test),
        "test": tuple(story for story in unique if story.id in test),
    }


def written_items(
    split: str = "test", languages: Sequence[str] = LANGUAGES, count: int | None = None
) -> list[ClozeItem]:
    """Story and topic items of those of a split's stories that are told in all these languages, in the order of the stories.

    count: of each kind, at most; all of them when None.
    """
    stories = [story for story in splits()[split] if story.is_told_in(*languages)][:count]
    return [*(story_item(story, languages) for story in stories), *topic_items(stories, languages)]


def story_item(story: WrittenStory, languages: Iterable[str] = LANGUAGES) -> ClozeItem:
    """The story with its two endings."""
    return ClozeItem(
        id=f"written-{story.id}",
        kind="story",
        context={language: story.sentences[language][:-1] for language in languages},
        right={language: story.sentences[language][-1] for language in languages},
        wrong={language: story.wrong[language] for language in languages},
    )


def topic_items(stories: Sequence[WrittenStory], languages: Sequence[str] = LANGUAGES) -> list[ClozeItem]:
    """Every story with its ending and another's of about the same length; each ending is wrong exactly once.

    Stories are ordered by the length of their endings in all the languages, and within blocks of 40 the seeded shuffle
    hands each ending to the next story. A single story gives none.
    """
    if len(stories) < 2:
        return []
    order = sorted(range(len(stories)), key=lambda k: sum(len(stories[k].sentences[la][-1]) for la in languages))
    rng, other = Random(SEED), [0] * len(stories)
    blocks = [order[start : start + 40] for start in range(0, len(order), 40)]
    if len(blocks) > 1 and len(blocks[-1]) == 1:
        blocks[-2] += blocks.pop()
    for block in blocks:
        rng.shuffle(block)
        for here, following in zip(block, block[1:] + block[:1], strict=True):
            other[here] = following
    return [
        ClozeItem(
            id=f"written-{story.id}",
            kind="topic",
            context={language: story.sentences[language][:-1] for language in languages},
            right={language: story.sentences[language][-1] for language in languages},
            wrong={language: stories[other[k]].sentences[language][-1] for language in languages},
        )
        for k, story in enumerate(stories)
    ]


def shared_words(item: ClozeItem, ending: str, language: str) -> float:
    """Share of an ending's words of four letters and more that the context has."""
    context = set(words(" ".join(item.context[language])))
    long = [word for word in words(ending) if len(word) > 3]
    return sum(word in context for word in long) / max(1, len(long))


def classified(items: Sequence[ClozeItem], language: str, penalty: float = 3.0) -> np.ndarray:
    """A classifier that sees endings only, trained on all items but those of the fold: right minus wrong [items].

    Ridge regression of right (+1) and wrong (-1) on the words and word pairs of an ending, ten folds.
    """
    texts = [side[language] for item in items for side in (item.right, item.wrong)]
    grams = [[*(w := words(text)), *map(" ".join, pairwise(w))] for text in texts]
    columns = {gram: column for column, gram in enumerate(sorted({gram for row in grams for gram in row}))}
    rows = [row for row, present in enumerate(grams) for _ in present]
    cells = [columns[gram] for row in grams for gram in row]
    matrix = scipy.sparse.csr_matrix((np.ones(len(rows)), (rows, cells)), shape=(len(texts), len(columns)))
    difference = (matrix[0::2] - matrix[1::2]).tocsr()  # a weight for the difference is a weight for each ending
    kernel = (difference @ difference.T).toarray()
    scores = np.zeros(len(items))
    for fold in range(10):
        out = np.arange(len(items)) % 10 == fold
        alpha = np.linalg.solve(kernel[~out][:, ~out] + penalty * np.eye((~out).sum()), np.ones((~out).sum()))
        scores[out] = kernel[out][:, ~out] @ alpha
    return scores


def bigram_choices(items: Sequence[ClozeItem], language: str) -> np.ndarray:
    """Bigrams counted in the right endings of the other folds of ten: 1 right, 0 wrong, 1/2 tie [items]."""
    results = np.zeros(len(items))
    for fold in range(10):
        out = [number for number in range(len(items)) if number % 10 == fold]
        bigrams = Bigrams(item.right[language] for number, item in enumerate(items) if number % 10 != fold)
        results[out] = correct_choices([items[number] for number in out], language, bigrams.score)
    return results


def shortcuts(items: Sequence[ClozeItem], language: str) -> dict[str, np.ndarray]:
    """By name of the shortcut, for every item [items] 1 where it prefers the right ending, 0 the wrong, 1/2 for a tie."""
    overlap = np.array(
        [[shared_words(item, side[language], language) for side in (item.right, item.wrong)] for item in items]
    )
    stories = Bigrams(sentence for item in items for sentence in item.context[language])
    return {
        "bigrams of the stories": np.array(correct_choices(items, language, stories.score)),
        "bigrams of the endings": bigram_choices(items, language),
        "length": np.array(correct_choices(items, language, lambda sentence: float(len(sentence)))),
        "words shared with the story": outcomes(*overlap.T),
        "classifier of endings": outcomes(classified(items, language), np.zeros(len(items))),
    }


def choose(stories: Sequence[WrittenStory], count: int = BENCHMARK_ITEMS, rounds: int = 6) -> list[WrittenStory]:
    """`count` stories on which every shortcut is right in half of the items, in the order given.

    The classifier and the bigrams depend on the set that they are trained on, so the choice is repeated, with what they
    say of the set that was chosen before.
    """
    items = [story_item(story) for story in stories]
    rng = np.random.default_rng(SEED)
    chosen = np.sort(rng.permutation(len(items))[:count])
    table = _table(items)
    for _ in range(rounds):
        table[chosen] = _table([items[k] for k in chosen])
        chosen = _balanced(table, chosen, rng)
    return [stories[k] for k in chosen]


def _table(items: Sequence[ClozeItem]) -> np.ndarray:
    """Outcomes of all shortcuts in all languages, less one half [items, columns]."""
    return np.stack([column for language in LANGUAGES for column in shortcuts(items, language).values()], axis=1) - 0.5


def _balanced(table: np.ndarray, chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Swap stories in and out of the chosen until all columns [items, shortcuts] have a mean near 0."""
    inside = np.zeros(len(table), bool)
    inside[chosen] = True
    total = table[inside].sum(axis=0)
    for _ in range(20_000):
        if np.abs(total).max() <= TOLERANCE * len(chosen):
            break
        leaving, coming = rng.choice(np.flatnonzero(inside)), rng.choice(np.flatnonzero(~inside))
        changed = total - table[leaving] + table[coming]
        if (changed**2).sum() < (total**2).sum():
            inside[[leaving, coming]] = False, True
            total = changed
    return np.flatnonzero(inside)


def main() -> None:
    """Choose the test stories, write their list, and print what the shortcuts score."""
    chosen = choose(without_twins(written_stories()))
    with atomic_path(TEST_LIST) as temporary:
        temporary.write_text("\n".join(story.id for story in chosen) + "\n", encoding="utf-8")
    for language in LANGUAGES:
        scores = shortcuts([story_item(story) for story in chosen], language)
        print(language, ", ".join(f"{name} {100 * value.mean():.1f} %" for name, value in scores.items()))


if __name__ == "__main__":
    main()
