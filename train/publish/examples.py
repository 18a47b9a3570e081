"""The example prompts of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from train.speech.voices import SAMPLE_RATE, Voices, speak
from train.stories.grammar import Story, read_stories
from train.stories.sources import GRAMMAR, WRITTEN
from train.tools.checkpoints import write_json

OWN = ("", WRITTEN, GRAMMAR)
"""Sources of stories that are the project's or the user's own."""


def write_examples(
    languages: Sequence[str],
    per_language: int,
    stories: Path,
    folder: Path,
    voices: Voices,
    test: Sequence[Story] | None = None,
) -> None:
    """Beginnings of `per_language` stories a language, spoken by training and held-out voices in turn: FLAC and a listing.

    The stories are those of `test`, or else those to validate on. No training story (in the folder `stories`) begins with
    the same two sentences, and every example is of another story, of another situation where that is known. Of a mixture's
    stories the project's own are taken, so that a bundle holds no text of others. Where there are too few such stories or
    voices, there are fewer examples.
    """
    import soundfile

    folder.mkdir(parents=True)
    training = read_stories(stories / "train.jsonl")
    trained = {tuple(texts[:2]) for story in training for texts in story.sentences.values()}
    among = list(read_stories(stories / "validation.jsonl")) if test is None else test
    among = [story for story in among if story.source in OWN] or among
    entries = []
    taken: set[str] = set()
    for number in range(per_language * len(languages)):
        language = languages[number % len(languages)]
        speakers = [name for name in (*voices.vocoder, *voices.held_out) if voices.can_speak(name, language)]
        fresh = (
            story
            for story in among
            if language in story.sentences
            and _situation(story) not in taken
            and tuple(story.told_in(language)[:2]) not in trained
        )
        story = next(fresh, None)
        if story is None or not speakers:
            continue
        taken.add(_situation(story))
        name = speakers[number % len(speakers)]
        pause = np.zeros(int(0.45 * SAMPLE_RATE), np.float32)
        texts = story.told_in(language)[:2]
        parts = [part for text in texts for part in (speak(text, language, voices.speaker(name), voices), pause)]
        file = f"{language}-{number // len(languages) + 1}.flac"
        soundfile.write(str(folder / file), np.concatenate(parts[:-1]), SAMPLE_RATE)
        entries.append({"file": file, "language": language, "speaker": name, "text": " ".join(texts)})
    write_json(folder / "examples.json", sorted(entries, key=lambda entry: entry["file"]))


def _situation(story: Story) -> str:
    """What two examples must not share."""
    return story.facts.get("situation", story.id)
