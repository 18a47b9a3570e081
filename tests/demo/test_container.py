"""The container's files agree with the code and with each other. Nothing is built here."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from demo.cli import main
from demo.limits import AROUND_A_FILE, MAX_UPLOAD
from tests.extras import CADDY, needs_caddy
from tests.versions import constraints

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "demo" / "container"


def instructions() -> list[tuple[str, str]]:
    """Those of the Dockerfile, in order, each with its arguments on one line."""
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line]


def arguments(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def ignored(path: str) -> bool:
    """Whether the build does not see a path."""
    verdict = False
    names = [path, *map(str, Path(path).parents)]
    for line in (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!")
        if any(fnmatch(name, pattern) or fnmatch(f"/{name}", pattern.replace("**/", "*/")) for name in names):
            verdict = not line.startswith("!")
    return verdict


def test_what_is_copied_is_there_and_is_all_that_is_packaged() -> None:
    copied = [word for rest in arguments("COPY") if "--from" not in rest for word in rest.split()[:-1]]
    for name in copied:
        assert (ROOT / name).exists(), name
        assert not ignored(name), name
    for path in ("demo/web/main.js", "slm/bundles/braid/slm/model.safetensors", "train/evaluate/metrics.py"):
        assert (ROOT / path).exists()
        assert not ignored(path)
    for path in (
        ".git/config",
        "tests/conftest.py",
        "measured/README.md",
        "demo/__pycache__/app.pyc",
        ".venv/bin/tresse",
    ):
        assert ignored(path), path
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (packages,) = re.findall(r"^include = (\[.*\])$", project, re.MULTILINE)
    assert {name.rstrip("*") for name in json.loads(packages)} <= set(copied)
    assert {"README.md", "LICENSE"} <= set(copied)  # setuptools reads them


def test_torch_for_cpus_is_the_tested_version() -> None:
    (command,) = [rest for rest in arguments("RUN") if "TORCH_CPU" in rest]
    (pipeline,) = re.findall(r"\$\((grep .*?)\);", command)
    found = subprocess.run(pipeline, shell=True, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert [line.partition("==")[0] for line in found] == ["torch", "torchaudio"]
    assert all(re.fullmatch(r"\w+==[\d.]+", line) for line in found)
    assert "DEVICE=cpu" in arguments("ARG")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_what_the_image_installs_is_pinned_to_versions_that_the_project_allows(machine: str) -> None:
    (image,) = {rest.split()[0] for rest in arguments("FROM")}
    (version,) = re.findall(r"^python:(3\.\d+)-slim$", image)
    there = {"python_version": version, "python_full_version": f"{version}.0", "sys_platform": "linux"}
    there["platform_machine"] = machine

    def applies(requirement: Requirement) -> bool:
        return requirement.marker is None or requirement.marker.evaluate(there)

    (command,) = [rest for rest in arguments("RUN") if rest.endswith(" .")]
    assert command.endswith("pip install -c constraints.txt .")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert Requirement(f"python{project['requires-python']}").specifier.contains(f"{version}.0")
    needed = [requirement for requirement in map(Requirement, project["dependencies"]) if applies(requirement)]
    pinned = {requirement.name: requirement for requirement in map(Requirement, constraints()) if applies(requirement)}
    assert len(needed) > 10
    for requirement in needed:
        (pin,) = pinned[requirement.name].specifier
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), requirement


def run(words: list[str]) -> int:
    try:
        main(words)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_commands_are_ones_that_tresse_knows(capsys: pytest.CaptureFixture[str]) -> None:
    (entry,), (command,) = arguments("ENTRYPOINT"), arguments("CMD")
    assert json.loads(entry) == ["tresse"]
    given = compose()["services"]["tresse"]["command"]
    for words in (json.loads(command), given):
        assert run([*words, "--help"]) == 0, capsys.readouterr().err
        assert words[words.index("--host") + 1] == "0.0.0.0"
        assert [words[words.index("--port") + 1]] == arguments("EXPOSE")


def test_it_runs_without_rights_and_writes_to_tmp_only() -> None:
    assert arguments("USER") == ["tresse"]
    order = [name for name, _ in instructions()]
    assert order.index("USER") < order.index("ENTRYPOINT")
    environment = dict(word.split("=", 1) for rest in arguments("ENV") for word in shlex.split(rest))
    assert environment["HOME"] == "/tmp"
    for service in compose()["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
    assert compose()["services"]["tresse"]["tmpfs"][0].startswith("/tmp:")


def test_services_find_each_other_and_their_files() -> None:
    services = compose()["services"]
    build = services["tresse"]["build"]
    assert (FOLDER / build["context"] / build["dockerfile"]).resolve() == FOLDER / "Dockerfile"
    assert "ports" not in services["tresse"]  # only the proxy is reached from outside
    volumes = [volume.split(":") for volume in services["proxy"]["volumes"]]
    for source, *_ in volumes:
        assert (FOLDER / source).exists() if source.startswith(".") else source in compose()["volumes"]
    caddy = (FOLDER / "Caddyfile").read_text(encoding="utf-8")
    for name in re.findall(r"\{\$(\w+)\}", caddy):  # those without a default
        assert name in services["proxy"]["environment"]
    (target,) = re.findall(r"reverse_proxy \{\$TRESSE_WORKERS:(\S+)\}", caddy)
    assert target == f"tresse:{services['tresse']['expose'][0]}"
    (size,) = re.findall(r"max_size (\d+)MB", caddy)
    assert int(size) * 1_000_000 >= MAX_UPLOAD + AROUND_A_FILE
    assert caddy.count("{") == caddy.count("}")
    assert services["proxy"]["depends_on"]["tresse"]["condition"] == "service_healthy"
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name in set(re.findall(r"\$\{(\w+)", (FOLDER / "compose.yaml").read_text(encoding="utf-8"))):
        assert f"{name}=" in readme, name  # what must be set is said
    for name in re.findall(r"container/([\w.]+)", readme):
        assert (FOLDER / name).exists(), name


def test_options_that_the_environment_gives_reach_the_server() -> None:
    from typer.main import get_command

    from demo.cli import app

    options = {name: option for option in get_command(app).commands["demo"].params for name in option.opts}  # type: ignore
    given = {option.envvar for option in options.values() if option.envvar}
    assert given == set(compose()["services"]["tresse"]["environment"])
    assert {"--auth", "--replies"} <= {name for name, option in options.items() if option.envvar}


def test_every_worker_is_like_the_first_and_known_to_the_proxy() -> None:
    services = compose("workers.yaml")["services"]
    (port,) = compose()["services"]["tresse"]["expose"]
    proxy, workers = services.pop("proxy"), services
    assert [service["extends"] for service in workers.values()] == [{"file": "compose.yaml", "service": "tresse"}]
    names = ["tresse", *workers]
    assert proxy["environment"]["TRESSE_WORKERS"].split() == [f"{name}:{port}" for name in names]
    assert set(proxy["depends_on"]) == set(workers)


@needs_caddy
@pytest.mark.parametrize("name", ["compose.yaml", "workers.yaml"])
def test_caddy_takes_the_caddyfile_with_the_environment_of_the_services(name: str, tmp_path: Path) -> None:
    given = compose(name)["services"]["proxy"]["environment"]
    known = {key: value for key, value in given.items() if key != "TRESSE_HOST"} | {"TRESSE_HOST": "stories.example"}
    environment = {**os.environ, **known, "XDG_CONFIG_HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}

    def caddy(command: str) -> str:
        words = [str(CADDY), command, "--config", str(FOLDER / "Caddyfile"), "--adapter", "caddyfile"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert '"level":"warn"' not in done.stderr
        return done.stdout

    caddy("validate")
    (server,) = json.loads(caddy("adapt"))["apps"]["http"]["servers"].values()
    (route,) = server["routes"]
    assert server["listen"] == [":443"]
    assert route["match"] == [{"host": ["stories.example"]}]
    limit, proxy = route["handle"][0]["routes"][0]["handle"]
    assert limit["max_size"] >= MAX_UPLOAD + AROUND_A_FILE
    names = known.get("TRESSE_WORKERS", "tresse:7860").split()
    assert proxy["upstreams"] == [{"dial": worker} for worker in names]


def test_a_gpu_is_a_build_argument_and_a_reservation() -> None:
    service = compose("cuda.yaml")["services"]["tresse"]
    (name,) = service["build"]["args"]
    assert name in {rest.split("=")[0] for rest in arguments("ARG")}
    assert service["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


@contextmanager
def answering(status: int) -> Iterator[int]:
    """A server that answers the health check so: its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/tresse/health" else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (401, True), (403, False), (503, False), (0, False)])
def test_the_health_check(status: int, healthy: bool) -> None:
    (check,) = arguments("HEALTHCHECK")
    _, python, code = json.loads(check.partition("CMD ")[2])[0:3]
    assert python == "-c"
    assert f", {arguments('EXPOSE')[0]}," in code
    with answering(status or 503) as port:
        closed = port if status else 1  # nobody answers there
        done = subprocess.run([sys.executable, "-c", code.replace("7860", str(closed))], capture_output=True)
    assert (done.returncode == 0) == healthy
