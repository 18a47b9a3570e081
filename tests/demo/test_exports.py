"""Stories to keep: subtitles whose times are those of the sound, and one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import io
import itertools
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from demo import archive, keepsake, subtitles
from demo.app import start
from demo.conversation import Conversation, Reply, Settings, Turn
from demo.exports import FORMS, export, file_name
from demo.programs import Programs
from demo.requests import Story
from demo.service import Service
from demo.transcripts import Transcripts
from slm.continuation import Prompt
from slm.errors import TresseError
from slm.transcribe import Segment
from tests.demo.test_stories_kept import StandInTranscriber
from tests.fake_bundle import FakeBundle, buzz
from tests.talker import Talker

RATE = 16000
HOSTILE = '</span><script>alert("1")</script> --> & <b>'


def segment(start: float, end: float, text: str, language: str = "en") -> Segment:
    return Segment(start, end, text, language, 1.0, 1.0)


def reply(seconds: float, *written: Segment, languages: tuple[str, ...] = ("fr",)) -> Reply:
    return Reply(languages, 7, buzz(200.0, seconds), RATE, [], 0.1, 0.2, written=written)


def turn(seconds: float, written: tuple[Segment, ...], *replies: Reply, in_domain: bool = True) -> Turn:
    prompt = Prompt([], "en", seconds, in_domain=in_domain)
    return Turn(buzz(150.0, seconds), RATE, prompt, Settings(), list(replies), written=written)


def story(*turns: Turn) -> Conversation:
    conversation = Conversation()
    for one in turns:
        conversation.add(one)
    return conversation


TWO = story(
    turn(
        2.0,
        (segment(0.1, 1.8, "Anna went to the garden."),),
        reply(3.0, segment(0.2, 2.9, "Elle voit un chien.", "fr")),
    ),
    turn(
        1.0,
        (segment(0.0, 0.9, "And then?"),),
        reply(1.0, segment(0.1, 0.9, "No.")),
        reply(1.5, segment(0.5, 1.0, HOSTILE), segment(1.4, 1.5, "Never heard")),
    ),
)
TWO.choose(1, 1)
TWO.turns[1].replies[1].cut(1.2)


def test_subtitles_have_the_times_of_the_whole_sound() -> None:
    assert subtitles.srt(TWO) == (
        "1\n00:00:00,100 --> 00:00:01,800\n- Anna went to the garden.\n\n"
        "2\n00:00:02,700 --> 00:00:05,400\n- Elle voit un chien.\n\n"
        "3\n00:00:06,000 --> 00:00:06,900\n- And then?\n\n"
        '4\n00:00:08,000 --> 00:00:08,500\n- </span><script>alert("1")</script> -> & <b>\n'
    )
    assert subtitles.vtt(TWO, "Vous").startswith(
        "WEBVTT\n\n00:00:00.100 --> 00:00:01.800\n<v Vous><lang en>Anna went to the garden.</lang>\n\n"
        "00:00:02.700 --> 00:00:05.400\n<v Tresse><lang fr>Elle voit un chien.</lang>\n"
    )
    assert "--&gt; &amp; &lt;b&gt;</lang>" in subtitles.vtt(TWO)
    assert list(subtitles.cues(TWO))[-1].end <= len(archive.whole(TWO, RATE)) / RATE


WORDS = st.lists(st.text("abcdé'.", min_size=1, max_size=20), min_size=1, max_size=60).map(" ".join)


@st.composite
def parts(draw: st.DrawFn) -> tuple[float, tuple[Segment, ...]]:
    """A length in s, and segments in order, of which the last may end later."""
    times = sorted(draw(st.lists(st.floats(0, 4, allow_subnormal=False), min_size=2, max_size=8, unique=True)))
    pairs = zip(times[::2], times[1::2], strict=False)
    return draw(st.floats(0.1, 4)), tuple(segment(begin, end, draw(WORDS)) for begin, end in pairs)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(parts(), parts()), min_size=1, max_size=4))
def test_cues_are_in_order_and_hold_every_word_that_was_heard(given_parts: list[Any]) -> None:
    conversation = story(*(turn(said[0], said[1], reply(answer[0], *answer[1])) for said, answer in given_parts))
    made = list(subtitles.cues(conversation))
    length = len(archive.whole(conversation, RATE)) / RATE
    for cue in made:
        assert 0 <= cue.start <= cue.end <= length + 1e-6
        assert len(cue.text) <= subtitles.LONGEST
    for before, after in itertools.pairwise(made):
        assert before.end <= after.start + 1e-6
    heard = [one.text for part in subtitles.told(conversation) for one in subtitles.heard(part)]
    assert " ".join(cue.text for cue in made) == " ".join(" ".join(heard).split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("Anna went out. It rained.", "Anna went out"),
        ("Où est le chat ? Il dort.", "Où est le chat ?"),
        ("one two three", "one two three"),
        ("word " * 30, " ".join(["word"] * 12) + "…"),
        ("x" * 200, "x" * 60 + "…"),
        ("   ", None),
    ],
)
def test_the_title_is_the_first_sentence(words: str, expected: str | None) -> None:
    assert keepsake.title(story(turn(1.0, (segment(0, 1, words),)))) == expected
    later = story(turn(1.0, (), reply(1.0, segment(0, 1, words))))
    assert keepsake.title(later) == expected


@given(st.text(max_size=100))
def test_a_file_s_name_is_safe_whatever_the_title(title: str) -> None:
    assert re.fullmatch("tresse(-[a-z0-9]+){0,9}", file_name(title))


@dataclass
class Read(HTMLParser):
    """What a page holds: its elements and its text."""

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.mark.parametrize(
    ("interface", "language", "you"), [("fr", "fr", "Vous"), ("en", "en", "You"), ("../x", "en", "You")]
)
def test_the_page_holds_sound_words_and_languages_and_fetches_nothing(interface: str, language: str, you: str) -> None:
    page = keepsake.page(TWO, interface)
    read = Read()
    read.feed(page)
    assert read.of("html") == [{"lang": language}]
    assert "<title>Anna went to the garden</title>" in page
    assert f"<h2>{you} " in page
    assert HOSTILE in read.text
    assert len(read.of("script")) == 1  # what was said is no part of the page's code
    assert "Never heard" not in page
    assert [element["lang"] for element in read.of("span") if "lang" in element][:2] == ["en", "fr"]
    assert [element["data-code"] for element in read.of("span") if "data-code" in element] == [
        "en",
        "fr",
        "en",
        "fr",
        "fr",
    ]
    assert [element["class"] for element in read.of("article")] == ["said", "reply", "said", "reply other", "reply"]
    lengths = []
    for element in read.of("audio"):
        head, _, data = str(element["src"]).partition(",")
        assert head == "data:audio/flac;base64"
        sound, rate = soundfile.read(io.BytesIO(base64.b64decode(data)))
        lengths.append(round(len(sound) / rate, 3))
    assert lengths == [2.0, 3.0, 1.0, 1.0, 1.2]
    for _, attributes in read.elements:
        for name in ("src", "href", "srcset", "action"):
            assert str(attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"url\(|@import|https?:", page)


def test_a_page_without_transcripts_says_so_little_and_one_out_of_domain_says_that() -> None:
    page = keepsake.page(story(turn(1.0, (), reply(1.0), in_domain=False)))
    assert "<title>A story told in turn</title>" in page
    assert "This was not understood" in page


def test_what_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    bundle: Any = FakeBundle(tmp_path)
    for form in FORMS:
        with pytest.raises(TresseError, match="begin a story first"):
            export(Conversation(), bundle, form)
    for form in ("srt", "vtt"):
        with pytest.raises(TresseError, match="no transcript"):
            export(story(turn(1.0, ())), bundle, form)
    with pytest.raises(TresseError, match="wav, flac, zip, srt, vtt, html"):
        export(TWO, bundle, "mp3")
    assert get_args(Story.model_fields["form"].annotation) == tuple(FORMS)


def test_page_and_programs_reach_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle: Any = FakeBundle(tmp_path / "bundle", reply_seconds=0.5, real_time_factor=0.02)
    transcripts = Transcripts(StandInTranscriber(bundle.languages))  # type: ignore[arg-type]
    monkeypatch.setattr("demo.app.Transcripts", SimpleNamespace(open=lambda *_: transcripts))
    page, url = start(bundle, "127.0.0.1", 0)
    try:
        talker = Talker(url)
        talker.turn(lambda: talker.say(buzz(150.0, 1.0)))
        talker.eventually(lambda: sum(message["complete"] for message in talker.of("transcript")) == 2, 120)
        for form, media_type in FORMS.items():
            answer = talker.get("story", form=form, interface="fr")
            assert answer.headers["content-type"] == media_type
            assert f'"tresse-1-0.{form}"' in answer.headers["content-disposition"]
            answer = talker.get("story", form=form, title="Où est\n le <chat> ?")
            assert f'"tresse-ou-est-le-chat.{form}"' in answer.headers["content-disposition"]
        assert (
            "<title>Où est le &lt;chat&gt; ?</title>"
            in talker.get("story", form="html", title="Où est le <chat> ?").text
        )
        assert "<h2>Vous" in talker.get("story", form="html", interface="fr").text
        assert "- 1.0\n" in talker.get("story", form="srt").text
        talker.close()
    finally:
        page.close()


def test_a_program_s_story_is_written_down_when_it_is_saved(tmp_path: Path) -> None:
    bundle: Any = FakeBundle(tmp_path, reply_seconds=0.5, real_time_factor=0.02)
    programs = Programs(Service(bundle, 1, transcripts=Transcripts(StandInTranscriber(bundle.languages))))  # type: ignore[arg-type]
    client: Any = SimpleNamespace(session_hash="a")
    with programs.story(client) as conversation:
        conversation.add(turn(1.0, (), reply(0.5)))
    text = Path(programs.save_story("srt", client)).read_text(encoding="utf-8")
    assert text == ("1\n00:00:00,000 --> 00:00:01,000\n- 1.0\n\n2\n00:00:01,500 --> 00:00:02,000\n- 0.5\n")
    assert np.isclose(conversation.turns[0].written[0].end, 1.0)
    assert "<title>1.0</title>" in Path(programs.save_story("html", client)).read_text(encoding="utf-8")
