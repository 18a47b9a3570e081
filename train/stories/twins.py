"""Near-twins among written stories: two stories that share so much of their content words that they tell one plot.

A story is a vector of its content words (log counts times inverse document frequency; words of more than 5 % of the
stories are left out), one a language; the likeness of two stories is the mean of the languages' cosines. Of 3,842 stories
read in pairs, those above 0.5 tell the same plot, those below 0.45 share a setting at most.
`python -m train.stories.twins` lists the pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from math import log

import numpy as np
import scipy.sparse

from train.stories.endings_only import words
from train.stories.written import LANGUAGES, WrittenStory, written_stories

TWINS = 0.5
"""Likeness from which two stories are twins."""
COMMON = 0.05
"""Share of the stories from which a word says nothing about the plot."""


def story_vectors(texts: Sequence[str]) -> scipy.sparse.csr_matrix:
    """Stories as texts -> unit vectors of their content words [stories, words]."""
    counts = [Counter(words(text)) for text in texts]
    documents = Counter(word for count in counts for word in count)
    usable = [word for word, number in documents.items() if 2 <= number <= max(2, COMMON * len(texts))]
    columns = {word: column for column, word in enumerate(usable)}
    entries = [
        (row, columns[word], (1 + log(number)) * log(len(texts) / documents[word]))
        for row, count in enumerate(counts)
        for word, number in count.items()
        if word in columns
    ]
    rows, cells, weights = zip(*entries, strict=True) if entries else ((), (), ())
    matrix = scipy.sparse.csr_matrix((weights, (rows, cells)), shape=(len(texts), len(columns)))
    lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return scipy.sparse.diags(1 / np.maximum(lengths, 1e-9)) @ matrix


def near_twins(stories: Sequence[WrittenStory], threshold: float = TWINS) -> list[tuple[int, int, float]]:
    """(earlier index, later index, likeness) of all pairs at least so alike, the most alike first."""
    likeness = sum(
        (vectors @ vectors.T) / len(LANGUAGES)
        for vectors in (
            story_vectors([" ".join(story.sentences[language]) for story in stories]) for language in LANGUAGES
        )
    )
    pairs = scipy.sparse.triu(likeness, k=1).tocoo()
    alike = pairs.data >= threshold
    rows = zip(pairs.row[alike].tolist(), pairs.col[alike].tolist(), pairs.data[alike].tolist(), strict=True)
    return sorted(rows, key=lambda pair: (-pair[2], pair[0], pair[1]))


def without_twins(
    stories: Sequence[WrittenStory], threshold: float = TWINS, chosen: Set[str] = frozenset()
) -> list[WrittenStory]:
    """The stories without the later one of every pair of twins whose earlier one stays.

    chosen: ids of stories that stay whatever they are like, and before any other.
    """
    stories = sorted(stories, key=lambda story: story.id not in chosen)
    dropped: set[int] = set()
    for first, second, _ in sorted(near_twins(stories, threshold), key=lambda pair: (pair[1], pair[0])):
        if first not in dropped and stories[second].id not in chosen:
            dropped.add(second)
    return [story for number, story in enumerate(stories) if number not in dropped]


def main() -> None:
    """Print the twins with their texts in English."""
    stories = written_stories()
    pairs = near_twins(stories)
    for first, second, likeness in pairs:
        for index in (first, second):
            print(f"{likeness:.2f} {stories[index].id}: {' '.join(stories[index].sentences['en'])}")
        print()
    print(f"{len(pairs)} pairs of twins among {len(stories)} stories")


if __name__ == "__main__":
    main()
