"""The speech back end: every sentence depends on itself alone; speakers differ; phoneme times lie inside."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from slm.errors import TresseError
from train.speech.espeak import EspeakSpeaker
from train.speech.time_warping import dtw_batch
from train.speech.voices import LOUDNESS, SAMPLE_RATE, Voices, speak, speak_with_phonemes

SENTENCES = {"en": "Anna lost her red ball near the river.", "fr": "Anna a perdu son ballon rouge près de la rivière."}


def test_a_sentence_does_not_depend_on_what_was_spoken_before(voices: Voices) -> None:
    for name in ("basile", "bruno", "jules"):
        first = speak(SENTENCES["fr"], "fr", voices.speaker(name))
        speak(SENTENCES["en"], "en", voices.speaker("anouk"))
        assert np.array_equal(first, speak(SENTENCES["fr"], "fr", voices.speaker(name)))


def test_ctrl_c_within_the_callback_of_espeak_is_not_lost(voices: Voices, monkeypatch: pytest.MonkeyPatch) -> None:
    """ctypes prints what a callback raises, and goes on."""

    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("train.speech.espeak._Library._keep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            speak(SENTENCES["en"], "en", voices.speaker("anouk"))
    assert len(speak(SENTENCES["en"], "en", voices.speaker("anouk")))


def test_speakers_differ_in_every_language(voices: Voices) -> None:
    for language, text in SENTENCES.items():
        spoken = {speak(text, language, voices.speaker(n)).tobytes() for n in [*voices.training, *voices.held_out]}
        assert len(spoken) == len(voices.training) + len(voices.held_out)


def test_there_are_enough_voices(voices: Voices) -> None:
    assert len(voices.training) >= 24
    assert len(voices.held_out) >= 6
    assert not set(voices.training) & set(voices.held_out)
    assert len(voices.vocoder) >= 2


def test_levels_and_phoneme_times(voices: Voices) -> None:
    for language, text in SENTENCES.items():
        waveform, phonemes = speak_with_phonemes(text, language, voices.speaker("zoe"))
        assert waveform.dtype == np.float32
        assert np.abs(waveform).max() <= 0.95 + 1e-6
        assert 0.5 * LOUDNESS < np.sqrt(np.mean(waveform**2)) < 1.1 * LOUDNESS
        times = [phoneme.start for phoneme in phonemes]
        assert len(times) > 20
        assert times == sorted(times)
        assert min(times) > -0.05
        assert max(times) < len(waveform) / SAMPLE_RATE


def test_voices_vary_in_rate_and_pitch(voices: Voices) -> None:
    speakers = list(voices.training.values())
    assert len({(speaker.rate, speaker.pitch) for speaker in speakers if isinstance(speaker, EspeakSpeaker)}) > 12
    lengths = [len(speak(SENTENCES["en"], "en", speaker)) for speaker in speakers]
    assert max(lengths) > 1.2 * min(lengths)


def test_what_was_spoken_depends_on_everything_the_fingerprint_tells(voices: Voices) -> None:
    espeak, zoe = voices.synthesiser(voices.speaker("zoe")), voices.speaker("zoe")
    others = [dataclasses.replace(zoe, **change) for change in ({"rate": 170}, {"pitch": 30}, {"variant": "f5"})]
    assert len({espeak.fingerprint(speaker) for speaker in [zoe, *others]}) == 4
    assert len({speak(SENTENCES["en"], "en", speaker).tobytes() for speaker in [zoe, *others]}) == 4
    assert voices.fingerprint(["zoe", "alban"]) == Voices.load().fingerprint(["zoe", "alban"])


BASILE = "basile: {variant: m1, rate: 160, pitch: 50}"


def test_a_users_voices_need_little(tmp_path: Path) -> None:
    path = tmp_path / "voices.yaml"
    path.write_text(f"languages: {{de: de}}\ntraining:\n  {BASILE}\n")
    voices = Voices.load(path)
    assert (voices.reference, voices.vocoder, voices.held_out) == ("basile", ["basile"], {})
    voices.check(["basile"], ["de"])
    assert len(speak("Der Hund lief zum Fluss.", "de", voices.speaker("basile"), voices)) > SAMPLE_RATE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: [", "cannot read the voices"),
        ("- a list", "must hold keys and values"),
        ("languages: {en: en-us}", "training: give at least one voice"),
        (f"trainings:\n  {BASILE}", "unknown key trainings: did you mean training"),
        ("training: {anna: {variant: f1, rate: fast, pitch: 50}}", r"training\.anna\.rate: "),
        ("training: {anna: {variant: f1, rate: 160, pitch: 150}}", r"training\.anna\.pitch: .*99"),
        ("training: {anna: {variant: f1, rate: 160}}", r"training\.anna\.pitch: .*required"),
        ("training: {anna: {variant: f1, rate: 160, pitch: 5, tone: 1}}", r"training\.anna\.tone: "),
        ("training: {anna: {vits: {}}}", r"training\.anna\.vits: "),
        ("training: {anna: {vits: {en: {speaker_id: 1}}}}", r"training\.anna\.vits\.en\.model: .*required"),
        ("training: {anna: loud}", r"training\.anna: give "),
        (f"training:\n  {BASILE}\nheld_out:\n  {BASILE}", "basile is both"),
        (f"reference: zoe\ntraining:\n  {BASILE}", "zoe must be one of the training voices"),
        (f"languages: [en]\ntraining:\n  {BASILE}", "languages: give"),
        (f"training:\n  {BASILE}\nunseen: basile", "unseen: give"),
        (f"training:\n  {BASILE}\nunseen: [{{en: zoe}}]", "unseen: zoe is neither"),
        (
            f"languages: {{en: en, fr: fr}}\ntraining:\n  {BASILE}\nunseen: [{{en: basile}}]",
            "entry 1 has no voice for fr",
        ),
        (f"training:\n  {BASILE}\nunseen: [{{en: basile}}, {{en: basile}}]", "unseen: basile is in two entries"),
    ],
)
def test_a_wrong_voices_file_is_mended_from_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "voices.yaml"
    path.write_text(text)
    with pytest.raises(TresseError, match=message) as caught:
        Voices.load(path)
    assert "\n" not in str(caught.value)
    assert "voices.yaml" in str(caught.value)


def test_a_voice_that_would_not_be_heard_as_written_is_found_before_the_work(voices: Voices) -> None:
    zoe = voices.speaker("zoe")
    cases = [
        (dataclasses.replace(zoe, variant="f99"), voices, "no variant f99"),
        (zoe, _with_language(voices, "fr-fr"), "no voice fr-fr.f4: name a language by its short code"),
        (zoe, dataclasses.replace(voices, languages={}), "no espeak-ng voice speaks 'en'"),
    ]
    for speaker, group, message in cases:
        with pytest.raises(TresseError, match=message):
            dataclasses.replace(group, training={"zoe": speaker}, held_out={}).check(["zoe"], ["en"])
    voices.check(["zoe", "basile"], ["en", "fr"])


def test_what_cannot_be_spoken_is_refused_in_one_line(voices: Voices) -> None:
    with pytest.raises(TresseError, match="'xx'"):
        speak("hello", "xx", voices.speaker("zoe"))
    with pytest.raises(TresseError, match="nothing to speak"):
        speak("...", "en", voices.speaker("zoe"))
    with pytest.raises(TresseError, match="unknown voice nobody"):
        voices.speaker("nobody")
    with pytest.raises(TresseError, match="no voice"):
        speak("hello", "en", dataclasses.replace(voices.speaker("zoe"), variant=""), _with_language(voices, "qqq"))


def _with_language(voices: Voices, name: str) -> Voices:
    return dataclasses.replace(voices, languages={"en": name})


def test_alignment_is_the_cheapest_path() -> None:
    """Against the textbook table, cell by cell."""
    import torch

    generator = torch.Generator().manual_seed(0)
    pairs = [
        (torch.randn(n, 3, generator=generator), torch.randn(m, 3, generator=generator))
        for n, m in [(1, 1), (1, 5), (6, 1), (7, 9), (12, 8)]
    ]
    found = dtw_batch([a for a, _ in pairs], [b for _, b in pairs])
    for (a, b), path in zip(pairs, found, strict=True):
        assert path.shape == (len(a),)
        assert (path.diff() >= 0).all()
        assert path[-1] == len(b) - 1
        assert _path_cost(a, b, path.tolist()) == pytest.approx(_table_cost(a, b), rel=1e-5)


def _table_cost(a, b) -> float:  # type: ignore[no-untyped-def]
    import torch

    distance = torch.cdist(a, b)
    table = torch.full((len(a) + 1, len(b) + 1), torch.inf)
    table[0, 0] = 0
    for i in range(len(a)):
        for j in range(len(b)):
            table[i + 1, j + 1] = distance[i, j] + min(table[i, j], table[i, j + 1], table[i + 1, j])
    return float(table[-1, -1])


def _path_cost(a, b, path: list[int]) -> float:  # type: ignore[no-untyped-def]
    """Cost of the cheapest full path that ends every source frame's run of target frames where `path` says."""
    import torch

    distance = torch.cdist(a, b)
    table = torch.full((len(a) + 1, len(b) + 1), torch.inf)
    table[0, 0] = 0
    for i in range(len(a)):
        for j in range(path[i] + 1):
            table[i + 1, j + 1] = distance[i, j] + min(table[i, j], table[i, j + 1], table[i + 1, j])
    return float(table[-1, -1])


def test_alignment_finds_a_stretch() -> None:
    import torch

    source = torch.arange(40.0)[:, None].repeat(1, 2)
    path = dtw_batch([source[::2]], [source])[0]
    assert (path - 2 * torch.arange(20)).abs().max() <= 2
