"""Every word the page shows, in one place: a second interface language is a second `Texts`."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class PlayerTexts:
    """What the player says about its own state; handed to the browser as it is. {n}: a number filled in there."""

    label: str
    stop: str
    idle: str
    waiting: str
    still_waiting: str
    playing: str
    buffering: str
    finished: str
    stopped: str
    blocked: str
    lost: str

    def as_props(self) -> dict[str, str]:
        """The texts as JSON for the browser."""
        return asdict(self)


@dataclass(frozen=True)
class Texts:
    """Strings of the page. {braces} are filled in with str.format."""

    title: str
    explanation: str
    prompt_heading: str
    prompt_label: str
    prompt_hint: str
    examples: str
    example: str
    reply_heading: str
    to_label: str
    go_on: str
    settings: str
    speaker: str
    speaker_automatic: str
    temperature: str
    temperature_hint: str
    top_p: str
    top_p_hint: str
    max_seconds: str
    new_seed: str
    seed: str
    seed_hint: str
    reply_label: str
    fact_first_audio: str
    fact_real_time_factor: str
    fact_length: str
    fact_prompt_language: str
    fact_language: str
    fact_seed: str
    seconds: str
    stopped_early: str
    privacy: str
    recorded: str
    saved_as: str
    not_saved: str
    no_prompt: str
    prompt_gone: str
    no_reply: str
    unexpected: str
    serving: str
    serving_recorded: str
    serving_stop: str
    languages: dict[str, str]
    player: PlayerTexts

    def language(self, code: str) -> str:
        """Full name of a language; its code where the name is not known."""
        return self.languages.get(code, code)


ENGLISH = Texts(
    title="Tresse",
    explanation="Speak the beginning of a story, pick a language, and listen to a model of speech go on with it, aloud.",
    prompt_heading="You begin",
    prompt_label="Beginning of the story",
    prompt_hint="A sentence or two, at most {seconds:.0f} seconds.",
    examples="Or take one of these",
    example="{language}: {text}",
    reply_heading="It goes on",
    to_label="In which language?",
    go_on="Go on with the story",
    settings="Settings",
    speaker="Voice of the reply",
    speaker_automatic="Automatic",
    temperature="Temperature",
    temperature_hint="Higher: more adventurous. Lower: more predictable.",
    top_p="Top-p",
    top_p_hint="Draws only from the likeliest units that make up this share.",
    max_seconds="Longest reply (s)",
    new_seed="New seed each time",
    seed="Seed",
    seed_hint="Same seed, prompt and settings: same reply.",
    reply_label="The whole reply",
    fact_first_audio="First sound after",
    fact_real_time_factor="Real-time factor",
    fact_length="Length",
    fact_prompt_language="Heard",
    fact_language="Replied in",
    fact_seed="Seed",
    seconds="{seconds:.{digits}f} s",
    stopped_early="Stopped early",
    privacy="Your voice goes to the computer that serves this page, nowhere else, and is deleted within {minutes} minutes.",
    recorded="Recording is on: your beginning and every reply are kept in {folder} on the computer that serves this page.",
    saved_as="Saved as",
    not_saved="The reply could not be saved: {reason}",
    no_prompt="Record or upload the beginning of a story first, or take one of the examples.",
    prompt_gone="This recording has been deleted already. Record or upload it again, or take an example.",
    no_reply="The model had nothing to add this time. Try again, or begin differently.",
    unexpected="Something went wrong here, not on your side. Please try again; the server's log says more.",
    serving="Tresse listens on {url}",
    serving_recorded="Prompts and replies are kept in {folder}",
    serving_stop="Press Ctrl+C to stop.",
    languages={
        "ar": "Arabic",
        "de": "German",
        "en": "English",
        "es": "Spanish",
        "fr": "French",
        "it": "Italian",
        "ja": "Japanese",
        "nl": "Dutch",
        "pl": "Polish",
        "pt": "Portuguese",
        "ru": "Russian",
        "zh": "Chinese",
    },
    player=PlayerTexts(
        label="Reply as it is spoken",
        stop="Stop",
        idle="The reply will sound here",
        waiting="Listening to your beginning…",
        still_waiting="Still waiting: others may be before you",
        playing="Speaking",
        buffering="Waiting for more…",
        finished="Finished",
        stopped="Stopped",
        blocked="Tap anywhere to hear the reply",
        lost="{n} pieces were lost on the way: the whole reply is below",
    ),
)
