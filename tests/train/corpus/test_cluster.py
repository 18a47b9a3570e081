"""A corpus over Ray: the bytes of the plain way, also where a worker was killed; errors in one line; Ctrl+C keeps what is
written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from demo.cli import main
from slm.errors import TresseError
from tests.extras import needs_ray
from tests.train.corpus.tiny import LANGUAGES, PREPARATION, contents, prepare, tell
from train.corpus import cluster, preparation
from train.corpus.cluster import Cluster, written_by
from train.corpus.leases import lease_of
from train.corpus.preparation import prepare_corpus, write_shard
from train.corpus.work import Counts, Prepared, Shard, Work
from train.speech.voices import Voices

SCRIPT = """
import signal, sys
from pathlib import Path
from tests.train.corpus.test_cluster import over_ray, slow
from train.corpus import preparation
preparation.write_shard = slow
before = signal.getsignal(signal.SIGTERM)
try:
    over_ray(Path(sys.argv[1]), Path(sys.argv[2]))
except KeyboardInterrupt:
    sys.exit(130 if signal.getsignal(signal.SIGTERM) is before else 1)
"""


def over_ray(encoder: Path, folder: Path) -> Prepared:
    voices = Voices.load()
    return prepare_corpus(tell(12), LANGUAGES, encoder, folder, PREPARATION, voices, 2, cluster=Cluster())


@pytest.fixture(scope="module")
def short_folder() -> Iterator[str]:
    """Where Ray's local clusters keep their logs, and sockets, whose paths may not be long."""
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_worker_niceness", "0")  # else others on this machine go before its workers
        yield folder


@pytest.fixture
def two_workers(short_folder: str) -> Iterator[None]:
    """A local cluster that this process has joined."""
    import ray

    with cluster.connected(ray, Cluster(), workers=2):
        yield


def killed_at_first(shard: Shard, work: Work) -> Counts:
    """Write a shard; the first worker that begins a certain one is killed while the file is half written."""
    mark = shard.path.parents[1] / "killed"
    if shard.first == 4 and not mark.exists():
        mark.touch()
        shard.path.with_name(f".{shard.path.name}.{os.getpid()}-ab.tmp").write_bytes(b"PAR1")
        os.kill(os.getpid(), signal.SIGKILL)
    return write_shard(shard, work)


def slow(shard: Shard, work: Work) -> Counts:
    time.sleep(2)
    return write_shard(shard, work)


def fails(shard: Shard, work: Work) -> Counts:
    if shard.first == 0:
        raise TresseError("there is no voice zoe: choose another")
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@needs_ray
def test_two_workers_of_which_one_is_killed_make_the_bytes_of_the_plain_way(
    corpus: Path, encoder: Path, tmp_path: Path, two_workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "write_shard", killed_at_first)
        made = over_ray(encoder, tmp_path / "corpus")
    assert (tmp_path / "killed").exists()
    assert made.counts.stories == 12
    assert contents(made.folder) == contents(corpus)

    # What goes wrong in a worker is one line here
    monkeypatch.setattr(cluster, "RETRIES", 0)
    work = Work(LANGUAGES, encoder, PREPARATION, Voices.load())
    shards = [Shard(tmp_path / f"shard-{number}.parquet", number, []) for number in range(3)]
    for shard in shards[:2]:
        lease_of(shard.path).touch()
    mends = ["there is no voice zoe: choose another", "shard-1.parquet: its worker died", "does not see"]
    for shard, mend in zip(shards, mends, strict=True):
        with pytest.raises(TresseError, match=mend) as error:
            list(written_by(Cluster(), iter([shard]), work, fails, 2))
        assert "Traceback" not in str(error.value)
    with pytest.raises(TresseError, match="GPUs and a worker needs 99: choose --device cpu"):
        list(written_by(Cluster(gpus=99), iter(shards), work, fails, 2))


@needs_ray
def test_after_ctrl_c_it_goes_on_with_what_is_missing(
    corpus: Path, encoder: Path, tmp_path: Path, short_folder: str
) -> None:
    folder = tmp_path / "corpus"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(encoder), str(folder)], stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 200
    while not list(folder.glob("shard-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said.decode()
    assert "Traceback" not in said.decode()
    assert not list(folder.glob(".*.lease"))
    written = {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*")}
    assert 0 < len(written) < 6
    prepare(encoder, folder)
    assert {name: (folder / name).stat().st_mtime_ns for name in written} == written
    assert contents(folder) == contents(corpus)


@needs_ray
@pytest.mark.parametrize("address", ["auto", "nowhere", "127.0.0.1:1", "127.0.0.1:99999", "ray://127.0.0.1:1"])
def test_a_cluster_that_cannot_be_reached_is_one_line(address: str, encoder: Path, short_folder: str) -> None:
    work = Work(LANGUAGES, encoder, PREPARATION, Voices.load())
    with pytest.raises(TresseError, match="check the address"):
        list(written_by(Cluster(address), iter([]), work, fails, 2))


def test_without_ray_the_extra_is_named(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(TresseError, match=r"pip install 'tresse\[ray\]'"):
        over_ray(encoder, tmp_path)


@pytest.mark.parametrize(
    ("options", "device", "expected"),
    [
        (["--seed", "1"], "cpu", None),
        (["--device", "auto"], "cuda" if torch.cuda.is_available() else "cpu", None),
        (["--ray"], "cpu", Cluster("local")),
        (["--ray", "--seed", "1"], "cpu", Cluster("local")),
        (["--ray", "auto"], "cpu", Cluster("auto")),
        (["--ray=head:6379", "--device", "cuda:1"], "cuda", Cluster("head:6379", 1.0)),
        (["--ray-gpus", "0.5", "--device", "cuda", "--ray"], "cuda", Cluster("local", 0.5)),
    ],
)
def test_the_command_line_names_the_cluster(
    options: list[str], device: str, expected: Cluster | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def called(*arguments: object) -> Prepared:
        assert arguments[-2:] == (device, expected)
        return Prepared(Path(), Counts(), 0)

    monkeypatch.setattr(preparation, "prepare_corpus", called)
    main(["prepare", "--out", "corpus", *options])


def test_a_device_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["prepare", "--out", "corpus", "--device", "cuda:99"])
    assert capsys.readouterr().err == "tresse: this machine has no device cuda:99: use --device cpu or auto\n"


@pytest.mark.parametrize("options", [["--ray-gpus", "1"], ["--ray-gpus", "1", "--ray"]])
def test_gpus_that_no_worker_would_use_are_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["prepare", "--out", "corpus", *options])
    assert capsys.readouterr().err == "tresse: --ray-gpus is for the workers of Ray: add --ray and --device cuda\n"
