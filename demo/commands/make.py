"""Making a bundle: recipes, corpora, the training of one part."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from demo.commands.options import CORES, DeviceOption, RayGpusOption, RayOption, RunOption, WorkersOption, pairs
from slm.errors import TresseError, say

if TYPE_CHECKING:
    from train.corpus.cluster import Cluster


def recipe_command(
    name: Annotated[str, typer.Argument(help="A recipe of the project (tiny) or a .yaml file.", show_default=False)],
    out: RunOption = None,
    until: Annotated[
        str | None, typer.Option(help="Make only this stage and what it needs.", show_default=False)
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Change a value: --set slm.tokens=100000.", show_default=False)
    ] = None,
    workers: WorkersOption = CORES,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print parameters, units, memory and time on this machine.")
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(
            help="With --dry-run: processes (GPUs) of the language model's training.", min=1, show_default=False
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Where the corpus is encoded: auto, cpu, cuda, cuda:1 ...")] = "cpu",
    ray: RayOption = None,
    ray_gpus: RayGpusOption = None,
) -> None:
    """Make a whole bundle from nothing: stories, speech, units, language model, vocoder. Run again, it goes on."""
    from train.recipe import Recipe
    from train.stages import run_recipe

    recipe = Recipe.load(name, pairs("--set", change))
    if dry_run:
        from train.estimate import describe, estimate

        say(describe(estimate(recipe, out or Path("runs") / recipe.name, processes=processes)))
        return
    if processes is not None:
        raise TresseError("--processes says what --dry-run estimates: add --dry-run, or train under accelerate launch")
    run_recipe(recipe, out or Path("runs") / recipe.name, until, workers, *_encoding(device, ray, ray_gpus))


def prepare_command(
    out: Annotated[Path, typer.Option(help="Folder of the corpus.", show_default=False)],
    stories: Annotated[
        Path | None,
        typer.Option(help="Parallel stories (.jsonl). [default: generated ones]", show_default=False),
    ] = None,
    audio: Annotated[
        Path | None,
        typer.Option(
            help="Instead of stories: a manifest of recordings (.jsonl), or lhotse's cuts.", show_default=False
        ),
    ] = None,
    audio_language: Annotated[
        str | None,
        typer.Option(help="Language of all recordings, whatever the manifest says.", show_default=False),
    ] = None,
    count: Annotated[int, typer.Option(help="How many stories to generate.", min=1)] = 1000,
    cycle: Annotated[int, typer.Option(help="How many of these combine the same few facts.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="The same seed gives the same stories and voices.")] = 0,
    units: Annotated[
        str | None,
        typer.Option(help="Bundle, or folder of a unit encoder. [default: braid]", show_default=False),
    ] = None,
    languages: Annotated[
        list[str] | None, typer.Option("--language", help="[default: all that the voices speak]", show_default=False)
    ] = None,
    voices: Annotated[
        Path | None, typer.Option(help="Voices file. [default: train/voices.yaml]", show_default=False)
    ] = None,
    augment: Annotated[bool, typer.Option("--augment", help="Rooms, noise and telephone lines.")] = False,
    workers: WorkersOption = CORES,
    device: DeviceOption = "cpu",
    ray: RayOption = None,
    ray_gpus: RayGpusOption = None,
) -> None:
    """Stories or recordings -> units -> Parquet shards. Killed and run again, it goes on."""
    from slm.model import BUNDLES
    from train.corpus.manifest import Manifest
    from train.corpus.preparation import prepare_corpus
    from train.corpus.work import CorpusPreparation
    from train.speech.augmentation import Augmentation
    from train.speech.voices import Voices
    from train.stories.grammar import Cycles, generate_stories

    speakers = Voices.load(voices)
    folder = Path(units) if units else BUNDLES / "braid"
    folder = folder / "units" if (folder / "units").is_dir() else folder
    preparation = CorpusPreparation(
        seed=seed, stories_per_voice=cycle, augmentation=Augmentation() if augment else None
    )
    chosen, cluster = _encoding(device, ray, ray_gpus)
    if audio and stories:
        raise TresseError("--stories and --audio make a corpus each: run prepare once for either")
    source = (
        Manifest(audio, audio_language)
        if audio
        else stories or generate_stories(seed, count, "train", cycles=Cycles(cycle))
    )
    made = prepare_corpus(
        source,
        languages or list(speakers.languages),
        folder,
        out,
        preparation,
        speakers,
        workers,
        chosen,
        cluster,
    )
    rejected = f", {made.rejected} rows could not be used (see rejected.jsonl)" if made.rejected else ""
    what = "rows of recordings" if audio else "stories"
    say(f"{made.folder}: {made.counts.stories} {what}, {made.counts.seconds / 3600:.1f} h of speech{rejected}")


def _encoding(device: str, ray: str | None, ray_gpus: float | None) -> tuple[str, Cluster | None]:
    """Where a corpus is encoded: the device, and the cluster, if any. Raises TresseError for what does not go together."""
    from slm.bundle import choose_device
    from train.corpus.cluster import Cluster

    on_gpus = device.startswith("cuda")
    if ray_gpus and not (ray and on_gpus):
        raise TresseError("--ray-gpus is for the workers of Ray: add --ray and --device cuda")
    if ray is None:
        return choose_device(device), None
    gpus = (ray_gpus or 1.0) if on_gpus else 0.0
    return ("cuda" if on_gpus else choose_device(device)), Cluster(ray, gpus)  # Ray says which GPU


def train_command(
    part: Annotated[str, typer.Argument(help="units, slm, vocoder or asr.", show_default=False)],
    recipe: Annotated[str, typer.Option(help="Recipe to follow.")] = "tiny",
    out: RunOption = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Change a value: --set slm.tokens=100000.", show_default=False)
    ] = None,
    workers: WorkersOption = CORES,
) -> None:
    """Train one part of a recipe (and what it needs). Run again, it goes on."""
    if part not in ("units", "slm", "vocoder", "asr"):
        raise TresseError(f"there is no part {part}: choose units, slm, vocoder or asr")
    recipe_command(recipe, out, part, change, workers)
