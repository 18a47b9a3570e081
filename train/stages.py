"""The stages of a recipe, in order. Each reads what the earlier ones left in the output folder, and writes its own part.

    stories -> units -> corpus -> vocabulary -> slm -> vocoder -> bundle -> asr -> evaluation

or, with `ablation`, stories -> units -> corpus -> vocabulary -> ablation.

out/stories/{train,validation}.jsonl, out/units/, out/corpus/, out/vocabulary/, out/slm/, out/vocoder/, out/asr/,
out/bundle/; of an ablation out/ablation/
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path

from slm.model import ModelConfig
from slm.recognisers import check_asr
from slm.schema import read_info
from slm.topics import Topics
from slm.units import UnitVocabulary, load_encoder
from train.ablation import run_ablation
from train.asr.lexicon import make_lexicon
from train.corpus.channel import FILE as CHANNEL
from train.corpus.channel import Channel
from train.corpus.cluster import Cluster
from train.corpus.description import describe_corpus, link_corpus, unit_shares
from train.corpus.preparation import Source, prepare_corpus
from train.corpus.shards import read_units
from train.corpus.work import CorpusPreparation
from train.lm.schedule import STORIES, SLMTraining
from train.lm.topics import corpus_documents, learn_topics
from train.publish.card import write_card, write_recogniser_card
from train.publish.examples import write_examples
from train.publish.provenance import began_as, commit, stage_seconds
from train.recipe import Recipe, find_part
from train.run import Stage, carry_out
from train.speech.voices import SAMPLE_RATE, Voices
from train.stories.grammar import distinct_sentences, generate_stories, read_stories, write_stories
from train.stories.mixture import describe, texts_of, write_mixture
from train.tools.checkpoints import write_json
from train.tools.launch import on_processes, under_launcher
from vocoder import Vocoder, VocoderConfig

PHONES = "phones.json"
"""Beside an encoder whose units are phones: their names."""
BESIDE = (PHONES, CHANNEL, "README.md")
"""Of an encoder's folder, what a bundle keeps beside config and weights."""


def make_stories(recipe: Recipe, out: Path, workers: int) -> None:
    """Generate the training and validation stories, mix them from sources, or take those of a file (the first ones train,
    those that follow validate)."""
    settings = recipe.stories
    if settings.sources:
        recipe.check_sources()
        print(describe(write_mixture(settings, recipe.languages, recipe.seed, out / "stories")))
        return
    own = None if settings.file is None else read_stories(Path(settings.file))
    for split in ("train", "validation"):
        count, cycles = getattr(settings, split), settings.cycles if split == "train" else None
        stories = generate_stories(recipe.seed, count, split, cycles=cycles) if own is None else islice(own, count)
        write_stories(out / "stories" / f"{split}.jsonl", (story.only_in(recipe.languages) for story in stories))


def take(recipe: Recipe, part: str, folder: Path) -> bool:
    """Copy a part that the recipe takes from a bundle, with what that bundle measured; whether there is one to take.

    Raises TresseError where that bundle's files cannot be true.
    """
    source = recipe.taken(part)
    if source is None:
        return False
    if part == "asr":  # the other parts are loaded, which checks them, and saved anew
        check_asr(source)
    described = part == "units" and (source.parent / "bundle.json").exists()
    metrics = read_info(source.parent).get("metrics", {}) if described else {}
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    if described:
        write_json(folder / "metrics.json", {key: metrics[key] for key in ("unit_edit_rate",) if key in metrics})
    return True


def make_units(recipe: Recipe, out: Path, workers: int) -> None:
    """Take the unit encoder, or train it and measure how far its units depend on the voice."""
    from train.evaluate.units import measure, speak_panel
    from train.units.training import train_units

    if take(recipe, "units", out / "units"):
        return
    if recipe.units.distilled is not None:
        from train.units.distillation import train_distilled

        sentences = _distinct(out, "train", recipe.languages, recipe.units.distilled.texts)
        network = recipe.units.attention or recipe.units.encoder
        made, phones = train_distilled(network, recipe.units.distilled, sentences, out / "units", workers)
        made.save(out / "units")
        write_json(out / "units" / PHONES, phones)
        return
    voices, training = Voices.named(recipe.voices), recipe.units.training
    per_language = training.sentences_per_language
    sentences = _distinct(out, "train", recipe.languages, per_language)
    encoder = train_units(recipe.units.encoder, training, sentences, voices, out / "units", workers)
    encoder.save(out / "units")
    unheard = _distinct(out, "validation", recipe.languages, 30) or sentences[-30:]
    speech = speak_panel(unheard, voices, changes={})
    rates = {f"{group}_{la}": row["edit_rate"]["mean"] for (la, group), row in measure(encoder, speech).items()}
    write_json(out / "units" / "metrics.json", {"unit_edit_rate": rates})


def make_corpus(recipe: Recipe, out: Path, workers: int, device: str = "cpu", cluster: Cluster | None = None) -> None:
    """Speak and encode all stories, those to validate on each in another voice."""
    languages, units, voices = list(recipe.languages), out / "units", Voices.named(recipe.voices)

    def prepare(source: Source, folder: Path, preparation: CorpusPreparation) -> None:
        prepare_corpus(source, languages, units, folder, preparation, voices, workers, device, cluster)

    prepare(out / "stories" / "train.jsonl", out / "corpus", recipe.corpus)
    other = out / "stories" / "validation.jsonl"
    if other.stat().st_size:
        prepare(other, out / "validation", replace(recipe.corpus, stories_per_voice=1))
    for name, further in recipe.corpora.items():
        folder = out / "corpora" / name
        if further.folder is None:
            prepare(further.source, folder, recipe.corpus)
        else:
            link_corpus(name, Path(further.folder), units, folder)


def make_vocabulary(recipe: Recipe, out: Path, workers: int) -> None:
    """Learn the unit vocabulary from the corpus, or take that of the model that is trained further."""
    vocabulary = recipe.held_vocabulary()
    if vocabulary is not None:
        vocabulary.save(out / "vocabulary")
        return
    encoder = load_encoder(out / "units")
    vocabulary = UnitVocabulary.train(
        read_units([out / "corpus", *(out / "corpora" / name for name in recipe.corpora)], recipe.languages),
        codebook_size=encoder.codebook_size,
        languages=recipe.languages,
        vocab_size=recipe.vocabulary.size,
    )
    vocabulary.save(out / "vocabulary")


def make_topics(recipe: Recipe, out: Path, workers: int) -> None:
    """Learn what tokens are about, where the recipe asks for it."""
    if recipe.model.topics:
        vocabulary = UnitVocabulary.load(out / "vocabulary")
        documents = corpus_documents(out / "corpus", recipe.languages, vocabulary)
        learn_topics(documents, len(vocabulary), recipe.model.topics).save(out / "topics")


def make_slm(recipe: Recipe, out: Path, workers: int) -> None:
    """Train the language model, on a CPU in as many processes as there are workers."""
    train_language_model(recipe.model, recipe.slm, out, out / "slm", workers)


def train_language_model(model: ModelConfig, training: SLMTraining, data: Path, folder: Path, workers: int) -> None:
    """`train_slm` on data/corpus/; where neither a GPU nor a launcher is at hand, over at most `workers` processes.

    data: holds vocabulary/, corpus/, corpora/ where stages read any, validation/ where there are stories for it, and topics/
    where the embeddings begin with them.
    """
    import torch

    rows = training.rows_of(0, max(1, workers))[1]
    processes = -(-training.batch_rows // rows)  # no more than make the largest share of rows smaller
    if torch.cuda.is_available() or under_launcher() or processes == 1:
        _train_here(model, training, data, folder)
    else:
        on_processes(processes, _train_here, model, training, data, folder)


def _train_here(model: ModelConfig, training: SLMTraining, data: Path, folder: Path) -> None:
    from train.lm.training import train_slm

    validation = data / "validation" if (data / "validation").exists() else None
    vocabulary = UnitVocabulary.load(data / "vocabulary")
    corpora = {name: data / "corpora" / name for part in training.stages for name in part.shares if name != STORIES}
    topics = Topics.load(data / "topics", len(vocabulary))
    train_slm(
        model, training, vocabulary, data / "corpus", folder, corpora=corpora, validation=validation, topics=topics
    )


def make_vocoder(recipe: Recipe, out: Path, workers: int) -> None:
    """Train the vocoder on the vocoder speakers' speech."""
    from train.vocoder.data import Hearing, in_turns, make_clips
    from train.vocoder.training import begun_vocoder, train_vocoder

    if take(recipe, "vocoder", out / "vocoder"):
        return
    voices, settings = Voices.named(recipe.voices), recipe.vocoder
    encoder = load_encoder(out / "units")
    config = VocoderConfig(
        codebook_size=encoder.codebook_size,
        frame_rate=encoder.frame_rate,
        sample_rate=SAMPLE_RATE,
        speakers=[*voices.vocoder, *settings.beside],
        languages=list(recipe.languages),
        **asdict(settings.size),
    )
    count, folder = settings.sentences_per_language, out / "vocoder"
    further = settings.beside_sentences if settings.beside else 0
    told = [_distinct(out, "train", (language,), count + further) for language in recipe.languages]
    units = Channel.load(out / "units").units if settings.phones else None
    hearing = Hearing(settings.others, settings.rerecorded, units, settings.realigned)
    making = partial(make_clips, encoder, seed=recipe.seed, workers=workers)
    sentences = in_turns([texts[:count] for texts in told])
    clips = making(sentences, voices, config.hop_length, folder / "speech", hearing=hearing)
    if settings.beside:
        sentences = in_turns([texts[count:] or texts for texts in told])
        beside = replace(voices, vocoder=list(settings.beside))
        clips += making(
            sentences, beside, config.hop_length, folder / "speech_beside", hearing=replace(hearing, others=0)
        )
    begin = (
        None if settings.begin is None else begun_vocoder(find_part(settings.begin, "vocoder", "vocoder.begin"), config)
    )
    trained = train_vocoder(config, settings.training, clips, folder, begin=begin)
    if settings.beside:
        trained.for_speakers(voices.vocoder).save(folder)


def make_bundle(recipe: Recipe, out: Path, workers: int) -> None:
    """Gather the parts, the example prompts and the model card."""
    from slm.model import load_model, save_model

    made = out / "bundle.new"
    shutil.rmtree(made, ignore_errors=True)
    encoder = load_encoder(out / "units")
    encoder.save(made / "units")
    for path in (out / "units" / name for name in BESIDE):
        if path.exists():
            shutil.copy(path, made / "units")
    model, vocabulary = load_model(out / "slm" / "slm")
    save_model(model, vocabulary, made / "slm", mantissa=recipe.bundle.mantissa)
    if (topics := Topics.load(out / "topics", len(vocabulary))) is not None:
        topics.save(made / "slm")
    Vocoder.load(out / "vocoder").save(made / "vocoder")
    if (out / "asr" / "asr").exists():
        shutil.copytree(out / "asr" / "asr", made / "asr")
    own = recipe.stories.file is not None or bool(recipe.stories.sources)
    test = None if own else list(generate_stories(recipe.seed, 2000, "test"))
    panel, examples = Voices.named(recipe.voices), recipe.bundle.examples_per_language
    write_examples(recipe.languages, examples, out / "stories", made / "examples", panel, test)
    corpus = describe_corpus(out / "corpus")
    further = {name: describe_corpus(out / "corpora" / name) for name in recipe.corpora}
    measured = out / "units" / "metrics.json"
    before = began_as(recipe.model.warm_start)
    telling = () if recipe.corpus.unspoken else recipe.corpus.speakers or panel.training
    voices = [*telling, *before.get("voices", [])]
    info = {
        "format": 1,
        "name": recipe.bundle.name or recipe.name,
        "languages": list(recipe.languages),
        "sample_rate": SAMPLE_RATE,
        "frame_rate": encoder.frame_rate,
        "max_prompt_seconds": recipe.bundle.max_prompt_seconds,
        "candidates": recipe.bundle.candidates,
        "unit_shares": unit_shares(out / "corpus", recipe.languages, encoder.codebook_size),
        "provenance": {
            "recipe": recipe.name,
            "seed": recipe.seed,
            "commit": commit(),
            "data": corpus["data"],
            "stories": corpus["rows"],
            **({"corpora": further} if further else {}),
            **texts_of(out / "stories" / "sources.json"),
            "voices": list(dict.fromkeys(voices)),
            **({"unspoken": asdict(recipe.corpus.unspoken)} if recipe.corpus.unspoken else {}),
            **(
                {}
                if recipe.parts.vocoder
                else {"speakers": {name: panel.speaker(name).family for name in panel.vocoder}}
            ),
            "voices_file": Path(recipe.voices).name,
            "made": datetime.now(UTC).date().isoformat(),
            "training_seconds": stage_seconds(out),
            **({"warm_start": before} if before else {}),
        },
        "metrics": json.loads(measured.read_text(encoding="utf-8")) if measured.exists() else {},
    }
    write_json(made / "bundle.json", info)
    shutil.rmtree(out / "bundle", ignore_errors=True)
    made.rename(out / "bundle")


def make_asr(recipe: Recipe, out: Path, workers: int) -> None:
    """Take the recogniser, or make or train it, and put it into the bundle."""
    settings = recipe.asr
    if take(recipe, "asr", out / "asr" / "asr"):
        pass
    elif settings is not None and settings.lexicon is not None:
        told = out / "stories"
        if settings.sources:
            told = out / "asr" / "texts"
            write_mixture(
                replace(recipe.stories, sources=settings.sources, validation=0), recipe.languages, recipe.seed, told
            )
        stories, readers = read_stories(told / "train.jsonl"), Voices.named(recipe.voices).languages
        make_lexicon(settings.lexicon, stories, recipe.languages, readers, out / "units", out / "asr" / "asr")
        write_recogniser_card(out / "asr" / "asr", texts_of(told / "sources.json"))
    else:
        from train.asr.training import train_asr

        assert settings is not None
        sentences = _distinct(out, "train", recipe.languages, settings.sentences_per_language)
        train_asr(
            settings.training, sentences, Voices.named(recipe.voices), out / "asr", workers, bundle=out / "bundle"
        )
    shutil.rmtree(out / "bundle" / "asr", ignore_errors=True)
    shutil.copytree(out / "asr" / "asr", out / "bundle" / "asr")


def measure(recipe: Recipe, out: Path, workers: int) -> None:
    """Cloze accuracy of the finished bundle on test stories (`items_for`), written into its bundle.json and model card. A
    bundle of languages that no benchmark has is measured in those that it shares, or not at all."""
    from slm.bundle import Bundle
    from train.evaluate.cloze.evaluation import evaluate_cloze
    from train.evaluate.cloze.items import items_for
    from train.publish.figures import cloze_figures

    if items := items_for(recipe.languages, recipe.evaluation.items, recipe.seed + 1):
        bundle = Bundle.load(out / "bundle")
        results = evaluate_cloze(bundle, items, panel=Voices.named(recipe.voices), out=out / "evaluation" / "cloze")
        path = out / "bundle" / "bundle.json"
        info = read_info(out / "bundle")
        info["metrics"]["cloze"] = cloze_figures(results)
        write_json(path, info)
    write_card(out / "bundle")


def compare_models(recipe: Recipe, out: Path, workers: int) -> None:
    """Train and evaluate every row of the ablation, and write its table."""
    assert recipe.ablation is not None
    run_ablation(recipe, recipe.ablation, out, train_language_model, workers)


def _distinct(out: Path, split: str, languages: tuple[str, ...], count: int) -> list[tuple[str, str]]:
    """`distinct_sentences` of the run's stories of a split."""
    return distinct_sentences(read_stories(out / "stories" / f"{split}.jsonl"), languages, count)


DATA = [
    Stage("stories", ("stories",), make_stories),
    Stage("units", ("units",), make_units, needs=("stories",), takes=True),
    Stage("corpus", ("corpus", "corpora", "voices"), make_corpus, needs=("stories", "units")),
    Stage("vocabulary", ("vocabulary",), make_vocabulary, needs=("corpus",), takes=True),
]
BUNDLE = [
    Stage("topics", ("model",), make_topics, needs=("vocabulary",)),
    Stage("slm", ("model", "slm"), make_slm, needs=("topics",), together=True),
    Stage("vocoder", ("vocoder", "voices"), make_vocoder, needs=("stories", "units"), takes=True),
    Stage("bundle", ("name", "bundle", "voices"), make_bundle, needs=("slm", "vocoder")),
]
RECOGNISER = Stage("asr", ("asr", "voices"), make_asr, needs=("bundle",), takes=True)
MEASURE = Stage("evaluation", ("evaluation", "voices"), measure, needs=("bundle", "asr"))
ABLATION = Stage("ablation", ("model", "slm", "ablation"), compare_models, needs=("vocabulary",))


def stages_of(recipe: Recipe) -> list[Stage]:
    """What a recipe does, in order."""
    if recipe.ablation is not None:
        return [*DATA, ABLATION]
    hears = recipe.asr is not None or recipe.parts.asr is not None
    return [*DATA, *BUNDLE, *([RECOGNISER] if hears else []), MEASURE]


def run_recipe(
    recipe: Recipe,
    out: Path,
    until: str | None = None,
    workers: int = 2,
    device: str = "cpu",
    cluster: Cluster | None = None,
) -> None:
    """Make what a recipe makes in `out`, or only the stage `until` and what it needs. See `train.run.carry_out`.

    device, cluster: where the corpus is encoded (`train.corpus.preparation`); units are the same anywhere, so that a run may
    go on with others. Raises TresseError, before anything is made, for languages that cannot be told or spoken, and corpora
    that cannot be.
    """
    recipe.check_languages()
    recipe.check_corpora()
    corpus = partial(make_corpus, device=device, cluster=cluster)
    stages = [replace(stage, run=corpus) if stage.run is make_corpus else stage for stage in stages_of(recipe)]
    carry_out(stages, recipe, out, until, workers)
