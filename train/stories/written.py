"""Written stories: `written/*.jsonl`, originals in two languages with a right ending (the last sentence) and a wrong one.

A file holds the stories of one writer; the letter of an id names it. `e f g k m p r t u y` keep to a simple register (the
1,200 commonest words, nouns named again), the others use the 2,500 commonest. written/BRIEF.md is how they are written,
`python -m train.stories.written FILE` checks a file.

`written/translations/*.jsonl` tell some of these stories in further languages, sentence by sentence: a row has the story's
`id`, `sentences` and `wrong`. A story in three languages is one story, in one split.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from slm.errors import TresseError
from train.stories.grammar import read_lines

FOLDER = Path(__file__).with_name("written")
TRANSLATIONS = FOLDER / "translations"
LANGUAGES = ("en", "fr")
"""Of the originals: every story is told in these."""
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

    def is_told_in(self, *languages: str) -> bool:
        """Whether it is told in all of these."""
        return all(language in self.sentences for language in languages)

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


def read_translations(path: Path) -> Iterator[tuple[str, dict[str, list[str]], dict[str, str]]]:
    """(id, sentences, wrong ending) of each row, by language. Raises TresseError naming the line that is wrong."""
    for number, row in read_lines(path):
        try:
            yield row["id"], row["sentences"], row["wrong"]
        except KeyError as error:
            raise TresseError(f"{path}, line {number}: add {error} to the translation") from None


def with_translations(stories: Iterable[WrittenStory], paths: Iterable[Path]) -> tuple[WrittenStory, ...]:
    """The stories, told in the languages of the translations too.

    Raises TresseError, naming file and story, for an id that no story has, a language that it has already, and another
    number of sentences.
    """
    told = list(stories)
    numbers = {story.id: number for number, story in enumerate(told)}
    for path in paths:
        for id, sentences, wrong in read_translations(path):
            if id not in numbers:
                raise TresseError(f"{path}: {id}: there is no such story to be translated: mend the id")
            story = told[numbers[id]]
            if again := [language for language in sentences if story.is_told_in(language)]:
                raise TresseError(f"{path}: {id}: it is told in {again[0]} already: leave out one of them")
            if {len(texts) for texts in sentences.values()} != {len(story.sentences[LANGUAGES[0]])}:
                raise TresseError(f"{path}: {id}: give a sentence for each of the story's")
            told[numbers[id]] = replace(
                story, sentences={**story.sentences, **sentences}, wrong={**story.wrong, **wrong}
            )
    return tuple(told)


@cache
def written_stories() -> tuple[WrittenStory, ...]:
    """All written stories of the project, file by file in the order of their names, with their translations."""
    stories = (story for path in sorted(FOLDER.glob("*.jsonl")) for story in read_written(path))
    return with_translations(stories, sorted(TRANSLATIONS.glob("*.jsonl")))


def faults(story: WrittenStory) -> list[str]:
    """What the brief forbids in a story, in words; [] where nothing is wrong."""
    languages = [*LANGUAGES, *(language for language in story.sentences if language not in LANGUAGES)]
    counts = [len(story.sentences[language]) for language in languages]
    wrong = []
    if len(set(counts)) > 1:
        wrong.append(", ".join(f"{n} sentences in {language}" for n, language in zip(counts, languages, strict=True)))
    if counts[0] not in SENTENCES:
        wrong.append(f"{counts[0]} sentences instead of {SENTENCES[0]} to {SENTENCES[-1]}")
    for language in languages:
        if language not in story.wrong:
            wrong.append(f"no wrong ending in {language}")
            continue
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
