"""Alignment: are aligned sentences of two languages near each other inside the model?

Each sentence is spoken and fed alone, `<bos> <tag> tokens` (no tag where the model has none); its state in a layer is the
mean over its tokens (not over `<bos>` and tag). Layer 0 is the embedding. Per layer, over N sentences and their
translations:

- mean cosine of aligned sentences, and of mismatched ones (all other N - 1), the control without which it means nothing:
  the states of one language model all point much the same way. Both also *centred*, each language's mean taken away;
- retrieval@1: how often a sentence's translation is its nearest neighbour by centred cosine, in both directions; chance 1/N;
- linear CKA (Kornblith et al., ICML 2019), and as a control that of sentences shifted by one: with few sentences it is high
  for anything.

Voices: one that no training heard for each sentence, the same in both languages. 300 sentences cost about 15 s of a core.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from slm.errors import TresseError
from train.evaluate.metrics import ALIGNMENT
from train.evaluate.scorable import Scorable
from train.evaluate.spoken_items import SpokenUnits
from train.speech.voices import Voices
from train.stories.grammar import Story, generate_stories
from train.tools.checkpoints import atomic_path, write_json
from train.tools.statistics import bootstrap

BATCH_TOKENS = 2048
MAP_PAIRS = 60
"""Sentence pairs drawn in the map."""
PLOTS = {"layers.png": "Alignment by layer", "map.png": "Aligned sentences in two dimensions"}


def aligned_sentences(stories: Iterable[Story], languages: Sequence[str], count: int) -> list[dict[str, str]]:
    """The first `count` sentences with their translations, no text of any language twice; one of each story by turns."""
    stories = list(stories)
    picked: list[dict[str, str]] = []
    seen: set[tuple[str, str]] = set()
    for turn in range(max((len(story.told_in(languages[0])) for story in stories), default=0)):
        for number, story in enumerate(stories):
            length = len(story.told_in(languages[0]))
            if turn >= length:
                continue
            row = {language: story.told_in(language)[(number + turn) % length] for language in languages}
            if len(picked) < count and not seen & set(row.items()):
                picked.append(row)
                seen |= set(row.items())
    return picked


def hidden_states(model: nn.Module, sequences: Sequence[Sequence[int]], skip: int = 2) -> np.ndarray:
    """Token sequences -> mean state of each over its tokens from `skip` on, in every layer: float64 [layers + 1, N, D]."""
    import torch

    device = next(model.parameters()).device
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
    means: list[np.ndarray | None] = [None] * len(sequences)
    first = 0
    while first < len(order):
        last = first + 1
        while last < len(order) and (last + 1 - first) * len(sequences[order[last]]) <= BATCH_TOKENS:
            last += 1
        part = [sequences[index] for index in order[first:last]]
        tokens = torch.zeros(len(part), max(map(len, part)), dtype=torch.long)
        for row, sequence in enumerate(part):
            tokens[row, : len(sequence)] = torch.as_tensor(list(sequence))
        with torch.inference_mode():  # what is padded on the right is seen by nothing before it
            states = model(input_ids=tokens.to(device), output_hidden_states=True, use_cache=False).hidden_states
        for row, index in enumerate(order[first:last]):
            means[index] = np.stack(
                [layer[row, skip : len(part[row])].mean(dim=0).double().cpu().numpy() for layer in states]
            )
        first = last
    return np.stack([mean for mean in means if mean is not None], axis=1)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[N, D], [M, D] -> [N, M]."""

    def unit(states: np.ndarray) -> np.ndarray:
        return states / np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-12)

    return unit(one) @ unit(other).T


def linear_cka(first: np.ndarray, second: np.ndarray) -> float:
    """Similarity of two representations [N, D], [N, E] of the same N things, 0 to 1."""
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    shared = float(np.linalg.norm(first.T @ second)) ** 2
    return shared / max(1e-12, float(np.linalg.norm(first.T @ first)) * float(np.linalg.norm(second.T @ second)))


def measure_layer(one: np.ndarray, other: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """All figures of a layer from the states [N, D] of aligned sentences."""
    count = len(one)
    raw = cosines(one, other)
    centred = cosines(one - one.mean(axis=0), other - other.mean(axis=0))
    off = ~np.eye(count, dtype=bool)
    forward = (centred.argmax(axis=1) == np.arange(count)).astype(float)
    backward = (centred.argmax(axis=0) == np.arange(count)).astype(float)

    def entry(values: np.ndarray) -> dict[str, Any]:
        mean, interval = bootstrap(values, seed=seed)
        return {"mean": mean, "ci95": interval}

    return {
        "cosine": entry(np.diag(raw)),
        "cosine_mismatched": float(raw[off].mean()),
        "centred_cosine": entry(np.diag(centred)),
        "centred_cosine_mismatched": float(centred[off].mean()),
        "retrieval": entry(forward),
        "retrieval_back": entry(backward),
        "cka": linear_cka(one, other),
        "cka_mismatched": linear_cka(one, np.roll(other, 1, axis=0)),
    }


def measure_alignment(
    bundle: Scorable, sentences: Sequence[Mapping[str, str]], spoken: SpokenUnits, voices: Sequence[str]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Figures by language pair and layer, and the states of the best layer by language (of the first pair).

    Raises TresseError where fewer than two sentences can be spoken.
    """
    languages, vocabulary = bundle.languages, bundle.vocabulary
    requests = [(row[la], la, voices[k % len(voices)]) for k, row in enumerate(sentences) for la in languages]
    failed = spoken.add(requests)
    bad = {number // len(languages) for number in failed}
    kept = [k for k in range(len(sentences)) if k not in bad]
    if len(kept) < 2:
        raise TresseError(f"too few sentences can be spoken: {next(iter(failed.values()), 'give more stories')}")
    states = {}
    for language in languages:
        units = [spoken.units(sentences[k][language], language, voices[k % len(voices)]) for k in kept]
        head = [vocabulary.bos_id, *vocabulary.head(language)]
        states[language] = hidden_states(
            bundle.language_model, [[*head, *vocabulary.encode(part.ids)] for part in units], len(head)
        )
    pairs: dict[str, Any] = {}
    for first, second in combinations(languages, 2):
        layers = [measure_layer(a, b) for a, b in zip(states[first], states[second], strict=True)]
        score = [layer["retrieval"]["mean"] + layer["retrieval_back"]["mean"] for layer in layers]
        pairs[f"{first}-{second}"] = {"layers": layers, "best_layer": int(np.argmax(score))}
    best = next(iter(pairs.values()))["best_layer"]
    left_out = [{"sentence": k, "problem": failed[number]} for number in failed for k in [number // len(languages)]]
    figures = {"sentences": len(kept), "chance": 1 / len(kept), "pairs": pairs, "problems": left_out}
    return figures, {language: layers[best] for language, layers in states.items()}


def evaluate_alignment(
    bundle: Scorable,
    *,
    out: Path,
    count: int = 300,
    split: str = "test",
    seed: int = 1,
    compare: Scorable | None = None,
    names: tuple[str, str] = ("this", "other"),
    panel: Voices | None = None,
    cache: Path | None = None,
    workers: int = 1,
) -> dict[str, Any]:
    """Measure a bundle (and another one, `compare`) on aligned sentences of a split; write and return the results.

    out: receives results.json, alignment.md and PLOTS. Raises TresseError for a bundle of one language.
    """
    panel = panel or Voices.load()
    voices = list(panel.held_out) or list(panel.training)
    bundles = {names[0]: bundle} | ({names[1]: compare} if compare is not None else {})
    measured, best_states = {}, {}
    for name, system in bundles.items():
        if len(system.languages) < 2:
            raise TresseError("alignment needs a bundle of two languages at least")
        sentences = aligned_sentences(generate_stories(seed, count, split), system.languages, count)
        spoken = SpokenUnits(
            system.units,
            panel,
            cache=cache or out / "speech",
            encoder_files=system.path / "units",
            workers=workers,
        )
        measured[name], best_states[name] = measure_alignment(system, sentences, spoken, voices)
    results = {"split": split, "voices": voices, "bundles": measured}
    save_layers(results, out / "layers.png")
    save_map(results, best_states, out / "map.png")
    with atomic_path(out / "alignment.md") as temporary:
        temporary.write_text(markdown_page(results), encoding="utf-8")
    write_json(out / "results.json", results)
    return results


def markdown_table(results: Mapping[str, Any]) -> str:
    """A row for each bundle, language pair and layer; the layer that retrieves best is marked."""
    lines = [
        f"| Bundle | Languages | Layer | {' | '.join(metric.title for metric in ALIGNMENT)} |",
        "|---|---|---:|" + "---:|" * len(ALIGNMENT),
    ]
    for bundle, figures in results["bundles"].items():
        for pair, measured in figures["pairs"].items():
            for number, layer in enumerate(measured["layers"]):
                mark = " *" if number == measured["best_layer"] else ""
                cells = " | ".join(metric.cell(layer) for metric in ALIGNMENT)
                lines.append(f"| {bundle} | {pair} | {number}{mark} | {cells} |")
    return "\n".join(lines)


def markdown_page(results: Mapping[str, Any]) -> str:
    """The report: protocol, table, plots."""
    counts = ", ".join(f"{name}: {entry['sentences']}" for name, entry in results["bundles"].items())
    left_out = sum(len(entry["problems"]) for entry in results["bundles"].values())
    page = [
        "# Alignment",
        "",
        f"Mean hidden states of sentences and their translations ({results['split']} stories; sentences of {counts}; "
        f"{left_out} left out). Voices: {', '.join(results['voices'])}.",
        "Layer 0 is the embedding. Mismatched and shifted are the controls: a sentence against the translations of others.",
        "Centred: each language's mean taken away. Retrieval@1 in %, by centred cosine, from the first language to the",
        f"second and back; chance is {100 * next(iter(results['bundles'].values()))['chance']:.1f} %. 95 % bootstrap",
        "intervals. The layer that retrieves best is marked and drawn in the map.",
        "",
        markdown_table(results),
        "",
        *(f"![{title}]({name})\n" for name, title in PLOTS.items()),
    ]
    return "\n".join(page) + "\n"


def save_layers(results: Mapping[str, Any], path: Path) -> None:
    """Curves by layer: cosine, centred cosine, retrieval and CKA, controls dashed; a colour for each bundle and pair."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.4), layout="constrained")
    panels = figure.subplots(1, 4)
    rows = [
        (f"{bundle}, {pair}" if len(results["bundles"]) > 1 else pair, entry["layers"])
        for bundle, figures in results["bundles"].items()
        for pair, entry in figures["pairs"].items()
    ]
    lines = {
        "cosine": ("cosine", "cosine_mismatched"),
        "centred cosine": ("centred_cosine", "centred_cosine_mismatched"),
        "retrieval@1": ("retrieval", "retrieval_back"),
        "linear CKA": ("cka", "cka_mismatched"),
    }
    for axes, (title, keys) in zip(panels, lines.items(), strict=True):
        for colour, (name, layers) in enumerate(rows):
            for key in keys:
                values = [layer[key]["mean"] if isinstance(layer[key], Mapping) else layer[key] for layer in layers]
                second = key == keys[1]
                label = None if second else name
                axes.plot(values, color=f"C{colour}", linestyle="--" if second else "-", marker=".", label=label)
        axes.set_title(f"{title} (dashed: {'back' if title == 'retrieval@1' else 'control'})", fontsize=9)
        axes.set_xlabel("layer")
    panels[0].legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def project(states: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """States [N, D] by language -> their first two principal components [N, 2], each language centred on its own."""
    centred = {language: points - points.mean(axis=0) for language, points in states.items()}
    _, _, directions = np.linalg.svd(np.concatenate(list(centred.values())), full_matrices=False)
    return {language: points @ directions[:2].T for language, points in centred.items()}


def save_map(results: Mapping[str, Any], states: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> None:
    """Sentences of the best layer in two dimensions, a line between each and its translation; a panel a bundle."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(states), 5), layout="constrained")
    panels = figure.subplots(1, len(states), squeeze=False)[0]
    for axes, (name, points) in zip(panels, states.items(), strict=True):
        places = {language: drawn[:MAP_PAIRS] for language, drawn in project(points).items()}
        first, second = list(places)[:2]
        for a, b in zip(places[first], places[second], strict=True):
            axes.plot([a[0], b[0]], [a[1], b[1]], color="0.75", linewidth=0.8, zorder=1)
        for language, drawn in places.items():
            axes.scatter(drawn[:, 0], drawn[:, 1], s=14, label=language, zorder=2)
        pair = next(iter(results["bundles"][name]["pairs"].values()))
        axes.set_title(f"{name}, layer {pair['best_layer']}", fontsize=10)
        axes.legend(fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
