"""The pages for newcomers say what is so: every command in them is run, on little data, and all Python as it stands.

A command runs in a folder that holds the files it names; options are added only to make it small. Whatever a page shows as
the content of a file (a line that ends in "`name`:" above the block) is that file here.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from demo.cli import main
from slm.audio import read_audio, write_wav
from slm.bundle import Bundle
from tests.bundles import BRAID
from train.recipe import Recipe, parse
from train.stories.cloze_items import make_items, write_items

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "train/README.md",
    "train/corpus/README.md",
    "train/lm/README.md",
    "train/evaluate/README.md",
    "demo/README.md",
    "slm/README.md",
]
LINKED = [
    *PAGES,
    "SECURITY.md",
    "demo/container/README.md",
    "measured/README.md",
    "measured/ablation.md",
    "measured/corpus.md",
    "measured/natural.md",
    "measured/results.md",
    "measured/stories.md",
    "measured/training.md",
    "slm/units/README.md",
    "train/asr/README.md",
    "train/speech/README.md",
    "train/stories/README.md",
    "vocoder/README.md",
]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"`([\w-]+\.\w+)`:\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(tresse [^`]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


@dataclass(frozen=True)
class Run:
    """How a command is run here. add: options that make it small; leaves: files it must leave."""

    add: str = ""
    leaves: str = ""


SMALL = " ".join(
    f"--set '{key}={json.dumps(value)}'"
    for key, value in {
        "stories.train": 16,
        "stories.cycle": 1,
        "corpus": {"stories_per_shard": 16, "speakers": ["basile"]},
        "vocabulary.size": 140,
        "model": {"hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64},
        "slm": {"steps": 2, "batch_rows": 2, "row_length": 256, "micro_rows": 2, "held_out": 2},
    }.items()
)
TALK, PAGE = Run("--max-seconds 2", "reply.wav"), Run()
DRY = Run("--dry-run")
"""Of a recipe that the page starts: what it would do; speed is measured for the command that the page itself so writes."""
RUNS = {
    "make demo": Run(),
    "make test": Run(),
    "make install": Run(),
    "make lint": Run(),
    "make fuzz": Run(),
    "make check-docs": Run(),
    "tresse continue slm/bundles/natural/examples/en-1.flac --to fr --out reply.wav": TALK,
    "tresse continue story.wav --to fr --out reply.wav": TALK,
    "tresse continue story.zip --turn 2 --out reply.wav": Run("--bundle braid", "reply.wav"),
    "tresse record folder/ --to en fr --out replies/": Run("--max-seconds 1", "replies/manifest.jsonl"),
    "tresse demo": PAGE,
    "tresse demo --host 0.0.0.0 --port 8000 --recordings kept/": Run("--host 127.0.0.1", "kept"),
    "python -m demo.space space/": Run("", "space/app.py space/demo/space.py"),
    "tresse prepare --stories mine.jsonl --out corpus/": Run("--workers 1", "corpus/shard-00000.parquet"),
    "tresse prepare --audio segments.jsonl --out recorded/": Run("--workers 1", "recorded/shard-00000.parquet"),
    "tresse prepare --stories three.jsonl --voices voices.yaml --out corpus/": Run(
        "--workers 1", "corpus/shard-00000.parquet"
    ),
    "tresse recipe braid --dry-run": Run(),
    "tresse recipe braid": DRY,
    "tresse recipe braid --until vocabulary": DRY,
    "tresse recipe mine.yaml --dry-run": Run(),
    "tresse recipe further.yaml --dry-run": Run(),
    "tresse recipe braid-more --dry-run": Run(),
    "tresse recipe braid-more --set model.warm_start=runs/braid/bundle": Run("--set model.warm_start=braid --dry-run"),
    "tresse recipe small": DRY,
    "tresse recipe spanish --dry-run": Run(),
    "tresse recipe ablation": DRY,
    "tresse recipe braid --out runs/short --set slm.tokens=20_000_000 --set stories.train=8000": DRY,
    "tresse train slm --recipe braid --out runs/braid": Run(f"--workers 1 {SMALL}", "runs/braid/slm/slm/config.json"),
    "tresse recipe paper-1b --until vocabulary": DRY,
    "accelerate launch --config_file train/fsdp.yaml --num_processes 4 -m demo.cli train slm --recipe paper-1b": Run(),
    "accelerate launch --config_file train/fsdp.yaml --num_machines 2 --machine_rank 0 --num_processes 16 "
    "--main_process_ip 10.0.0.1 --main_process_port 29500 -m demo.cli train slm --recipe paper-1b": Run(),
    "tresse recipe paper-1b": DRY,
    "tresse recipe paper-360m --dry-run --processes 64": Run(
        "--set 'model={hidden_size: 64, layers: 2, heads: 2, intermediate_size: 64}'"
    ),
    "tresse eval all --out results/": Run(
        "--bundle braid --quick --only alignment", "results/report.html results/results.json"
    ),
    "tresse eval cloze --out results/": Run("--bundle braid --items few.jsonl", "results/cloze.md"),
    "tresse eval cloze --items unseen --count 500 --out results/unseen/": Run(
        "--bundle braid --count 1", "results/unseen/cloze.md"
    ),
    "tresse eval cloze --items written --out results/written/": Run(
        "--bundle braid --count 1", "results/written/cloze.md"
    ),
    "tresse eval cloze --items items.jsonl --voice en=zoe --voice fr=zoe --out results/mine/": Run(
        "--bundle braid", "results/mine/scores.jsonl"
    ),
    "tresse eval cloze --compare runs/mine/bundle --out results/cloze/": Run(
        "--bundle braid --items few.jsonl --voice en=zoe", "results/cloze/compare.md"
    ),
    "tresse eval pairs --out results/pairs/": Run("--bundle braid --items pairs.jsonl", "results/pairs/pairs.md"),
    "tresse eval pairs --set grammar --out results/grammar/": Run(
        "--bundle braid --items pairs.jsonl", "results/grammar/pairs.md"
    ),
    "tresse eval pairs --items pairs.jsonl --language en --out results/pairs/": Run(
        "--bundle braid", "results/pairs/results.json"
    ),
    "tresse eval alignment --out results/alignment/": Run("--bundle braid --count 4", "results/alignment/layers.png"),
    "tresse eval units --out results/units/": Run("--bundle braid --count 2", "results/units/units.md"),
    "tresse eval resynthesis --out results/resynthesis/ --judge small": Run(
        "--bundle braid --count 1 --judge slm/bundles/braid/asr", "results/resynthesis/resynthesis.md"
    ),
    "tresse eval voices recordings/ --judge small --out results/voices/": Run(
        "--bundle braid --judge slm/bundles/braid/asr", "results/voices/voices.md"
    ),
    "tresse eval continuation --out results/continuation/": Run(
        "--bundle braid --count 1 --max-seconds 1", "results/continuation/continuation.md"
    ),
    "tresse bench cloze": Run("--bundle braid --count 2"),
    "tresse bench continue": Run("--prompts 1"),
    "tresse bench turns recordings/": Run("--count 1 --stories 1"),
    "tresse bench serve": Run("--most 1 --seconds 1"),
}


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return [text for name, text in BLOCK.findall(read(page)) if name == language]


def commands() -> dict[str, str]:
    """Every command of the pages' ```bash blocks, without its comment, and the page it is on."""
    found = {}
    for page in PAGES:
        for text in blocks(page, "bash"):
            for line in text.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    found[" ".join(words)] = page
    return found


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the pages' commands name."""
    from demo import archive
    from demo.conversation import Conversation, Settings, Speaking, Turn

    folder = tmp_path_factory.mktemp("desk")
    bundle = Bundle.load(BRAID)
    waveform, rate = read_audio(bundle.examples[0].path)
    for name in ("story.wav", "folder/one.wav", "recordings/anna.wav", "more.wav", "right.wav"):
        (folder / name).parent.mkdir(exist_ok=True)
        write_wav(folder / name, waveform, rate)
    write_wav(folder / "wrong.wav", waveform[::-1].copy(), rate)
    story = Conversation()
    settings = Settings("fr", max_seconds=1.0)
    for _ in range(2):
        turn = Turn(waveform, rate, bundle.prompt(waveform, rate, story.story), settings)
        speaking = Speaking(bundle, turn.prompt, settings.reply(("fr",)), threading.Event())
        assert list(speaking)
        assert speaking.reply is not None
        turn.replies.append(speaking.reply)
        story.add(turn)
    (folder / "story.zip").write_bytes(archive.pack(story, bundle))
    write_items(folder / "few.jsonl", make_items(1, 2, "test"))
    for page in PAGES:
        for name, content in FILE.findall(read(page)):
            (folder / name).write_text(content, encoding="utf-8")
    (folder / "runs" / "mine").mkdir(parents=True)
    (folder / "runs" / "mine" / "bundle").symlink_to(BRAID)
    (folder / "slm").symlink_to(ROOT / "slm")
    (folder / "train").symlink_to(ROOT / "train")
    return folder


@pytest.fixture
def place(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in; caches lie with the desk; what no option makes small is made small here."""
    folder = tmp_path / "work"
    shutil.copytree(desk, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(desk / "cache"))
    monkeypatch.setattr("train.estimate.MEASURED_POSITIONS", 32)
    monkeypatch.setattr("train.evaluate.units_report.BASELINE_SENTENCES", 20)
    return folder


def test_every_command_of_the_pages_is_run_here() -> None:
    assert sorted(commands()) == sorted(RUNS)


@pytest.mark.parametrize("command", [pytest.param(name, id=name.replace("/", "|")) for name in RUNS])
def test_the_command_does_what_the_page_says(command: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*shlex.split(command), *shlex.split(RUNS[command].add)]
    if RUNS[command] is DRY:
        monkeypatch.setattr(
            "train.estimate._measure", lambda *_: {"device": "none", "tokens_per_second": 1.0, "mfu": None}
        )
    if words[0] == "make":
        done = subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif words[0] == "accelerate":
        launched(words)
    elif words[:2] == ["tresse", "demo"]:
        with monkeypatch.context() as patch:
            served(words[1:], patch)
    elif words[:2] == ["python", "-m"]:
        monkeypatch.setattr(sys, "argv", words[2:])
        runpy.run_module(words[2], run_name="__main__", alter_sys=True)
    else:
        assert words[0] == "tresse"
        assert run(words[1:]) == 0
    for name in RUNS[command].leaves.split():
        assert (place / name).exists(), name


def run(arguments: list[str]) -> int:
    """Exit status of a tresse command, in this process."""
    try:
        main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def served(arguments: list[str], patch: pytest.MonkeyPatch) -> None:
    """A page that is served, asked whether it lives, and closed instead of waited for."""
    answers: list[dict[str, Any]] = []

    def ask(served: Any) -> None:
        with urllib.request.urlopen(f"{served.page.local_url}tresse/health", timeout=30) as answer:
            answers.append(json.load(answer))

    patch.setattr("demo.app.Served.wait", ask)
    patch.setattr("demo.app._warm_up", lambda bundle: None)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert run(arguments if "--port" in arguments else [*arguments, "--port", str(port)]) == 0
    assert answers[0]["status"] == "ok"


def launched(words: list[str]) -> None:
    """What `accelerate launch` is given: a configuration that it reads, and a command that tresse knows."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    given = launch_command_parser().parse_args(words[2:])
    assert "FSDP" in str(load_config_from_file(given.config_file).distributed_type)
    assert (given.module, given.training_script) == (True, "demo.cli")
    inner = given.training_script_args
    assert run([*inner, "--help"]) == 0
    Recipe.load(inner[inner.index("--recipe") + 1])


@pytest.mark.parametrize("page", LINKED)
def test_commands_in_the_text_are_ones_that_tresse_knows(page: str) -> None:
    for command in INLINE.findall(read(page)):
        words = [word for word in shlex.split(command)[1:] if word != "..."]
        assert run([*words, "--help"]) == 0, command  # unknown options are refused before help is given


@pytest.fixture
def server(place: Path) -> Iterator[str]:
    """The address of a page that is served."""
    from demo.app import start

    page, url = start(Bundle.load(BRAID), "127.0.0.1", 0)
    yield url
    page.close()


@pytest.mark.parametrize(("page", "number"), [(page, k) for page in PAGES for k in range(len(blocks(page, "python")))])
def test_the_python_runs_as_it_stands(page: str, number: int, place: Path, request: pytest.FixtureRequest) -> None:
    code = blocks(page, "python")[number]
    if "//127.0.0.1:7860" in code:
        address = request.getfixturevalue("server").rstrip("/").removeprefix("http:")
        code = code.replace("//127.0.0.1:7860", address)
    exec(compile(code, f"{page}, block {number + 1}", "exec"), {"__name__": "page"})


def test_recipes_in_the_text_are_valid() -> None:
    for text in [block for page in PAGES for block in blocks(page, "yaml")]:
        values = yaml.safe_load(text)
        if "slm" in values:
            parse(Recipe, {"name": "page", "languages": ["en", "fr"], **values}, "the page")


@pytest.mark.parametrize("page", LINKED)
def test_what_is_linked_is_there(page: str) -> None:
    for target in LINK.findall(read(page)):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target
