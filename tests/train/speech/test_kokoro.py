"""Kokoro as a back end: texts, styles, times and errors with a small network of the same form in place of the model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from slm.errors import TresseError
from train.speech import kokoro
from train.speech.espeak import Phoneme
from train.speech.kokoro import FRAME, HALF, MOST_TOKENS, RATE, Kokoro, KokoroSpeaker, KokoroStyle, pieces
from train.speech.phones import SILENCE, ipa_phones
from train.speech.reading import read
from train.speech.voices import SAMPLE_RATE, Unspeakable, Voices, render, speak, speak_with_phonemes

TEXT = "The farmer, aged 3.5 years, said: “Hello!”"


def small_network(tokens: np.ndarray, style: np.ndarray, speed: float, pitch: float) -> tuple[np.ndarray, np.ndarray]:
    """Durations from prosody and speed; a tone a token, coloured by timbre and moved by pitch."""
    frames = np.maximum(1, np.round((2 + tokens % 3 + abs(style[HALF])) / speed))
    hertz = np.repeat((90 + 3 * tokens) * pitch, (FRAME * frames).astype(int))
    phase = 2 * np.pi * np.cumsum(hertz) / RATE
    return (0.2 * np.sin(phase) + 0.1 * style[0] * np.sin(2 * phase)).astype(np.float32), frames


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models" / "kokoro"
    (folder / "voices").mkdir(parents=True)
    (folder / "kokoro.onnx").write_bytes(b"weights")
    marks = ";:,.!?—…“” abdefhijklmnopstuvwzæðŋɐɑɔəɚɛɜɡɪɹɾʃʊʌʒθɔɑœ\N{COMBINING TILDE}ˈˌː"
    (folder / "vocab.json").write_text(json.dumps({mark: number for number, mark in enumerate(marks, 1)}))
    for number, name in enumerate(("anna", "marc")):
        styles = np.random.default_rng(number).normal(size=(MOST_TOKENS + 2, 1, 2 * HALF)).astype(np.float32)
        styles.tofile(folder / "voices" / f"{name}.bin")
    np.save(folder / "own.npy", np.full(2 * HALF, 0.5, np.float32))
    monkeypatch.setattr(kokoro, "load_runner", lambda folder: small_network)
    monkeypatch.setenv("TRESSE_MODELS", str(folder.parent))
    return folder


@pytest.fixture
def voices(models: Path, tmp_path: Path) -> Voices:
    path = tmp_path / "voices.yaml"
    path.write_text("""
languages: {en: en-us, fr: fr}
held_out_families: [piper]
training:
  anna: {kokoro: {en: {timbre: {anna: 1}}, fr: {timbre: {anna: 0.5, marc: 0.5}, prosody: {marc: 1}, speed: 1.2}}}
  turned: {kokoro: {en: {timbre: {marc: 1}, prosody: {anna: 1}}}}
  deep: {kokoro: {en: {timbre: {anna: 1}, pitch: 0.7}}}
  british: {kokoro: {en: {timbre: {anna: 1}, reading: en}}}
  own: {kokoro: {en: {timbre: {own.npy: 1}}}}
""")
    return Voices.load(path)


def test_a_sentence_depends_on_its_request_alone(voices: Voices) -> None:
    first = speak(TEXT, "en", voices.speaker("anna"), voices)
    speak("Bonjour.", "fr", voices.speaker("anna"), voices)
    assert np.array_equal(first, speak(TEXT, "en", voices.speaker("anna"), voices))
    names = [*voices.training]
    assert len({speak(TEXT, "en", voices.speaker(name), voices).tobytes() for name in names}) == len(names)


def test_one_prosody_with_two_timbres_is_synchronous(voices: Voices) -> None:
    back_end = Kokoro(voices.model_folder("kokoro"), voices.languages, RATE)
    spoken = [back_end.speak_with_phonemes(TEXT, "en", voices.speaker(name)) for name in ("anna", "turned")]
    assert len(spoken[0][0]) == len(spoken[1][0])
    assert spoken[0][1] == spoken[1][1]
    assert not np.array_equal(spoken[0][0], spoken[1][0])


def test_times_are_the_models_durations(voices: Voices) -> None:
    speaker = voices.speaker("anna")
    back_end = Kokoro(voices.model_folder("kokoro"), voices.languages, RATE)
    waveform, marks = back_end.speak_with_phonemes(TEXT, "en", speaker)
    spoken = back_end.read(TEXT, "en", speaker)
    assert "".join(mark.name for mark in marks) == spoken
    tokens = np.array([0, *(kokoro._vocabulary(back_end.folder)[mark] for mark in spoken), 0])
    style = back_end.style_vector(speaker.kokoro["en"], len(spoken), "anna")  # type: ignore[union-attr]
    durations = small_network(tokens, style, 1.0, 1.0)[1]
    starts = np.cumsum(durations)[:-1] * FRAME / RATE
    assert [mark.start for mark in marks] == pytest.approx(starts.tolist())
    assert len(waveform) == durations.sum() * FRAME
    sentence = render(TEXT, "en", speaker, voices)
    assert sentence.phonemes is not None
    assert sentence.phonemes[0].start == pytest.approx(starts[0] - sentence.offset, abs=1e-6)
    assert speak_with_phonemes(TEXT, "en", speaker, voices)[1] == sentence.phonemes


def test_the_rate_is_the_callers(voices: Voices) -> None:
    speaker = voices.speaker("anna")
    low, high = (speak(TEXT, "en", speaker, voices, rate) for rate in (SAMPLE_RATE, RATE))
    assert len(high) / len(low) == pytest.approx(RATE / SAMPLE_RATE, rel=0.01)


def test_a_text_is_read_with_its_punctuation() -> None:
    assert read("It costs 3.5, no?", "en-us").count(".") == 0
    assert read("« Où est-il ? »", "fr") == "“u ɛtˈil?”"
    assert read("Hello — “yes” (no).", "en-us").count("“") == 1
    assert read(" ... ", "en-us") == ""


def test_long_texts_are_spoken_in_pieces(voices: Voices) -> None:
    spoken = ("ab " * 60 + ", ") * 9
    cut = [*pieces(spoken.strip())]
    assert max(map(len, cut)) <= MOST_TOKENS
    assert "".join(cut).replace(" ", "") == spoken.replace(" ", "")
    assert speak("a long story, " * 80, "en", voices.speaker("anna"), voices).size > 40 * SAMPLE_RATE


def test_phones_of_ipa_marks() -> None:
    marks = "bˈɔ̃ː ʒ, a"
    timed = [*(Phoneme(mark, 0.1 * number) for number, mark in enumerate(marks, 1)), Phoneme("", 1.1)]
    spoken = ipa_phones(timed, 1.2)
    assert [phone.name for phone in spoken] == [SILENCE, "b", "ɔ̃", "ʒ", SILENCE, "a", SILENCE]
    assert [round(phone.start, 2) for phone in spoken] == [0.0, 0.1, 0.2, 0.7, 0.8, 1.0, 1.1]
    assert spoken[-1].end == 1.2


def test_the_fingerprint_covers_model_style_and_settings(voices: Voices, models: Path) -> None:
    before = voices.fingerprint([*voices.training])
    assert len(set(before)) == len(before)
    assert before == voices.fingerprint([*voices.training])
    (models / "kokoro.onnx").write_bytes(b"other weights")
    assert not set(before) & set(voices.fingerprint([*voices.training]))


def test_what_is_wrong_is_said_in_one_line(voices: Voices, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def speaker(name: str) -> KokoroSpeaker:
        return KokoroSpeaker("lise", {"en": KokoroStyle({name: 1.0})})

    (models / "bad.npy").write_bytes(b"nothing")
    cases = [
        (voices.speaker("deep"), "fr", "deep does not speak 'fr': add a `kokoro` style"),
        (speaker("nobody"), "en", "no voice nobody: choose of anna, marc"),
        (speaker("bad.npy"), "en", "is no style"),
        (KokoroSpeaker("x", {"en": KokoroStyle({"anna": 1.0}, reading="xx")}), "en", "no voice xx"),
    ]
    for who, language, message in cases:
        with pytest.raises(TresseError, match=message) as caught:
            voices.synthesiser(who).check(language, who)
        assert "\n" not in str(caught.value)
    with pytest.raises(Unspeakable, match="nothing to speak"):
        speak("...", "en", voices.speaker("anna"), voices)
    with pytest.raises(TresseError, match="no espeak-ng voice reads 'en'"):
        dataclasses.replace(voices, languages={}).check(["anna"], ["en"])
    monkeypatch.setenv("TRESSE_MODELS", str(models))
    with pytest.raises(TresseError, match=r"no Kokoro model in .*: set TRESSE_MODELS"):
        voices.check(["anna"], ["en"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {a: {kokoro: {en: {timbre: {}}}}}", r"training\.a\.kokoro\.en\.timbre: "),
        ("training: {a: {kokoro: {en: {timbre: {x: 1}, sped: 1}}}}", r"training\.a\.kokoro\.en\.sped: "),
        ("training: {a: {pico: {en: en-US}, pich: 2}}", r"training\.a\.pich: .*did you mean pi"),
        ("training: {a: {piper: {en: a.onnx}}}\nheld_out_families: [piper]", "family piper, which is held out"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "voices.yaml").write_text(text)
    with pytest.raises(TresseError, match=message):
        Voices.load(tmp_path / "voices.yaml")


def test_models_may_lie_beside_the_voices_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRESSE_MODELS", raising=False)
    (tmp_path / "voices.yaml").write_text("models: here\ntraining: {a: {pico: {en: en-US}}}")
    voices = Voices.load(tmp_path / "voices.yaml")
    assert voices.model_folder("pico") == tmp_path / "here" / "pico"
    with pytest.raises(TresseError, match=r"no SVOX Pico in .*here.*: set TRESSE_MODELS"):
        voices.check(["a"], ["en"])
