"""Written stories: `written/*.jsonl`, originals in both languages with a right ending (the last sentence) and a wrong one.

A file holds the stories of one writer; the letter of an id names it. `e f g k m p r t u y` keep to a simple register (the
1,200 commonest words, nouns named again), the others use the 2,500 commonest. written/BRIEF.md is how they are written,
`python -m train.stories.written FILE` checks a file.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from slm.errors import TresseError
from train.stories.grammar import read_lines

FOLDER = Path(__file__).with_name("written")
LANGUAGES = ("en", "fr")
SENTENCES = range(5, 9)
WORDS = range(2, 18)
"""Words of a sentence."""
_FORBIDDEN = re.compile(r"[0-9\[\]()<>*_#]")
_PASSE_SIMPLE = re.compile(r"\b(?!boîtes|vous)\w+(èrent|âmes|îmes|îtes)\b")


@dataclass(frozen=True)
class WrittenStory:
    """`sentences[language][i]` is sentence i of 5 to 8, the last the right ending; `wrong[language]` is another ending, as
    fluent and about as long, that contradicts the story."""

    id: str
    theme: str
    sentences: dict[str, list[str]]
    wrong: dict[str, str]

    def to_json(self) -> str:
        """One line of a file of written stories."""
        return json.dumps(asdict(self), ensure_ascii=False)


def read_written(path: Path) -> list[WrittenStory]:
    """The stories of one file. Raises TresseError naming the line that is wrong."""
    stories = []
    for number, row in read_lines(path):
        try:
            stories.append(WrittenStory(row["id"], row["theme"], row["sentences"], row["wrong"]))
        except KeyError as error:
            raise TresseError(f"{path}, line {number}: add {error} to the story") from None
    return stories


@cache
def written_stories() -> tuple[WrittenStory, ...]:
    """All written stories of the project, file by file in the order of their names."""
    return tuple(story for path in sorted(FOLDER.glob("*.jsonl")) for story in read_written(path))


def faults(story: WrittenStory) -> list[str]:
    """What the brief forbids in a story, in words; [] where nothing is wrong."""
    counts = [len(story.sentences[language]) for language in LANGUAGES]
    wrong = []
    if len(set(counts)) > 1:
        wrong.append(f"{counts[0]} sentences in {LANGUAGES[0]}, {counts[1]} in {LANGUAGES[1]}")
    if counts[0] not in SENTENCES:
        wrong.append(f"{counts[0]} sentences instead of {SENTENCES[0]} to {SENTENCES[-1]}")
    for language in LANGUAGES:
        right, other = story.sentences[language][-1], story.wrong[language]
        for sentence in [*story.sentences[language], other]:
            if _FORBIDDEN.search(sentence):
                wrong.append(f"a character that is not spoken: {sentence}")
            if len(sentence.split()) not in WORDS:
                wrong.append(f"too short or too long: {sentence}")
            if sentence[-1] not in '.!?»"”':
                wrong.append(f"no mark at the end: {sentence}")
        if right == other:
            wrong.append(f"the endings in {language} are the same")
        if abs(len(right.split()) - len(other.split())) > 4:
            wrong.append(f"one ending in {language} is much longer: {other}")
    if _PASSE_SIMPLE.search(" ".join(story.sentences["fr"])):
        wrong.append("passé simple")
    return wrong


def check(stories: Iterable[WrittenStory]) -> list[str]:
    """`faults` of every story, and ids that occur twice, a line each."""
    lines, known = [], set()
    for story in stories:
        named = [*faults(story), *(["an id that occurs twice"] if story.id in known else [])]
        known.add(story.id)
        lines += [f"{story.id}: {fault}" for fault in named]
    return lines


def main() -> None:
    """Check the files that are named, or all of them; status 1 where something is wrong."""
    paths = [Path(name) for name in sys.argv[1:]]
    stories = [story for path in paths for story in read_written(path)] if paths else written_stories()
    lines = check(stories)
    print("\n".join([*lines, f"{len(stories)} stories, {len(lines)} faults"]))
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
