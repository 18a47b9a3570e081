"""The page of the generated stories (measured/stories.md): `python -m train.stories.report` prints it."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from train.stories.cloze_items import BENCHMARK_ITEMS, KINDS, make_items, read_handwritten
from train.stories.data import LANGUAGES, UNSEEN
from train.stories.endings_only import correct_choices, shortcut_scorers
from train.stories.grammar import SPLITS, default_grammar, generate_stories

STORIES = 6000
"""Training stories that are counted."""
BEGIN, END = "<!-- measured -->", "<!-- end -->"


def report() -> str:
    """Markdown: counts, types and tokens, one example of every kind of item, the control's accuracies."""
    return "\n".join([*_counts(), "", *_examples(), "", *_control()])


def _counts() -> Iterator[str]:
    grammar = default_grammar()
    stories = list(generate_stories(0, STORIES))
    unseen = [situation for situation in grammar.situations if situation.unseen]
    wordings = sum(
        len(wordings)
        for situation in grammar.situations
        for slot in situation.slots
        for wordings in slot.wordings.values()
    )
    yield f"- {len(grammar.situations)} situations, {len(unseen)} of them held out ({', '.join(s.name for s in unseen)})"
    yield f"- {wordings:,} wordings in each language"
    yield f"- {grammar.count_stories():.1e} distinct stories"
    lengths = Counter(len(story.sentences[LANGUAGES[0]]) for story in stories)
    shares = ", ".join(f"{count} sentences: {lengths[count] / len(stories):.0%}" for count in sorted(lengths))
    yield f"- length of a story: {shares}"
    yield ""
    yield f"| {STORIES:,} training stories | " + " | ".join(LANGUAGES) + " |"
    yield "|---|" + "---|" * len(LANGUAGES)
    words = {la: [w for s in stories for t in s.sentences[la] for w in _words(t)] for la in LANGUAGES}
    sentences = {la: [t for s in stories for t in s.sentences[la]] for la in LANGUAGES}
    yield "| word tokens | " + " | ".join(f"{len(words[la]):,}" for la in LANGUAGES) + " |"
    yield "| word types | " + " | ".join(f"{len(set(words[la])):,}" for la in LANGUAGES) + " |"
    yield "| distinct sentences | " + " | ".join(f"{len(set(sentences[la])):,}" for la in LANGUAGES) + " |"
    yield "| words a sentence | " + " | ".join(f"{len(words[la]) / len(sentences[la]):.1f}" for la in LANGUAGES) + " |"


def _examples() -> Iterator[str]:
    rng = random.Random(5)
    for split in SPLITS:
        story = rng.choice(list(generate_stories(3, 50, split)))
        facts = ", ".join(f"{role} = {value}" for role, value in story.facts.items())
        yield f"**A story of the split `{split}`** ({facts})"
        yield ""
        for language in LANGUAGES:
            yield f"- {language}: {' '.join(story.sentences[language])}"
        yield ""
    items = make_items(1, 40, "test")
    chosen = [rng.choice([item for item in items if item.kind == kind]) for kind in KINDS]
    for title, item in zip([*KINDS, "hand-written"], [*chosen, rng.choice(read_handwritten())], strict=True):
        yield f"**A {title} item** (`{item.id}`)"
        yield ""
        for language in LANGUAGES:
            ends = f"*right:* {item.right[language]} *wrong:* {item.wrong[language]}"
            yield f"- {language}: {' '.join(item.context[language])} {ends}"
        yield ""


def _control() -> Iterator[str]:
    stories = list(generate_stories(0, STORIES))
    scorers = {language: shortcut_scorers(stories, language) for language in LANGUAGES}
    yield f"Accuracy in % of scorers that see the endings alone ({BENCHMARK_ITEMS:,} items a cell; chance is 50):"
    yield ""
    names = list(scorers[LANGUAGES[0]])
    yield "| split | kind | language | " + " | ".join(names) + " |"
    yield "|---|---|---|" + "---|" * len(names)
    for split in ("test", UNSEEN):
        items = make_items(1, BENCHMARK_ITEMS, split)
        for kind in KINDS:
            for language in LANGUAGES:
                own = [item for item in items if item.kind == kind]
                choices = [correct_choices(own, language, scorers[language][name]) for name in names]
                row = " | ".join(f"{100 * sum(c) / len(c):.1f}" for c in choices)
                yield f"| {split} | {kind} | {language} | {row} |"


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


if __name__ == "__main__":
    page = Path(__file__).parents[2] / "measured" / "stories.md"
    head, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    page.write_text(f"{head}{BEGIN}\n{report()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
