"""The page served: Gradio carries it (and its programs' interface, see demo/programs.py), `web/` is what the browser runs,
`routes.py` what it talks to. Any number of people can use one server without hearing each other.

Costs: two replies at a time for each CPU core, unless told otherwise (others wait in line); memory is the bundle's and the
open stories'.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before the import: gradio reads it there

import gradio as gr
from starlette.middleware import Middleware

from demo import tending
from demo.guard import Guard
from demo.limits import MAX_EVENT, MAX_UPLOAD, Limits
from demo.page import HEARTBEAT_SECONDS
from demo.password import Password
from demo.programs import add_programs
from demo.recordings import open_folder
from demo.routes import WEB, plots, routes
from demo.service import KEEP_SECONDS, Service
from demo.sockets import PING_SECONDS
from demo.theme import HEAD, LOGO, STYLE, theme
from demo.transcripts import Transcripts
from slm import decoding
from slm.errors import TresseError, say
from slm.settings import MAX_SECONDS, TEMPERATURE, TOP_P
from slm.turn_ends import PATIENCE
from train.evaluate.metrics import plain_digits

if TYPE_CHECKING:
    from slm.bundle import Bundle

log = logging.getLogger(__name__)

QUEUE_SIZE = 64
KEEP_FILES = (600, 3600)
"""Files of programs' requests: looked at every 600 s, deleted when 3600 s old; all of them when the server ends."""
OPEN_TO_ALL = "Everybody who reaches this machine can talk to it. It has no password: give --auth, and see SECURITY.md"
BEHIND_A_PASSWORD = "Others can reach it with the password, which is readable on the line without TLS: see SECURITY.md"
INTERFACES = sorted(path.name.split(".")[1] for path in WEB.glob("texts.*.json"))
START = """
import(new URL("tresse/web/main.js", document.baseURI)).then((page) => page.start(element, props));
"""


def open_service(
    bundle: Bundle, recordings: Path | None = None, asr: str | Path | None = None, replies: int | None = None
) -> Service:
    """What the pages of one server share. recordings: folder in which to keep turns (None: nothing is kept); asr: another
    recogniser than the bundle's own; replies: made at once, None: two for each core.

    Raises TresseError where the folder cannot be written, or the recogniser cannot be loaded.
    """
    folder = open_folder(Path(recordings)) if recordings is not None else None
    return Service(bundle, replies or 2 * (os.cpu_count() or 1), folder, Transcripts.open(bundle, asr))


def share_cores() -> None:
    """A core a reply: replies are made side by side, and their small products are no faster on several."""
    import torch

    torch.set_num_threads(1)


def build_page(service: Service) -> gr.Blocks:
    """The page. Launch it with `launch(**launch_options(service))`."""
    bundle = service.bundle
    template = (WEB / "page.html").read_text(encoding="utf-8").replace("LOGO", LOGO)
    with gr.Blocks(title="Tresse", analytics_enabled=False, delete_cache=KEEP_FILES) as page:
        gr.HTML(
            value=None,
            html_template=template,
            js_on_load=START,
            apply_default_css=False,
            elem_id="tresse",
            languages=bundle.languages,
            tags=bundle.tags,
            speakers=bundle.speakers,
            defaults={"max_seconds": MAX_SECONDS, "temperature": TEMPERATURE, "top_p": TOP_P, "patience": PATIENCE},
            rate=bundle.sample_rate,
            frame_rate=bundle.units.frame_rate,
            examples=[{"language": example.language, "text": example.text} for example in bundle.examples],
            metrics=bundle.info.get("metrics", {}),
            digits=plain_digits(),
            plots=sorted(plots(bundle)),
            recordings=str(service.folder) if service.folder else "",
            transcripts=bool(service.transcripts),
            minutes=round(KEEP_SECONDS / 60),
            max_upload=MAX_UPLOAD,
            interfaces=INTERFACES,
            heartbeat=HEARTBEAT_SECONDS,
        )
        add_programs(service)
    page.queue(max_size=QUEUE_SIZE)
    return page


def launch_options(
    service: Service, hosts: Sequence[str] = (), account: tuple[str, str] | None = None
) -> dict[str, Any]:
    """Arguments for `Blocks.launch`: the theme, the page's addresses, and nothing that leaves the machine. hosts: names that
    the server answers to, beside this machine's own; account: user and password that it asks for."""
    asking = [Middleware(Password, account=account, tickets=service.tickets)] if account else []
    return {
        "theme": theme(),
        "css": STYLE,
        "head": HEAD,
        "app_kwargs": {
            "routes": routes(service),
            "middleware": [Middleware(Guard, hosts=tuple(hosts)), *asking, Middleware(Limits)],
        },
        "max_file_size": MAX_UPLOAD,
        "footer_links": [],
        "run_history": False,
        "share": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "enable_monitoring": False,
        "quiet": True,
    }


def start(
    bundle: Bundle,
    host: str,
    port: int,
    recordings: Path | None = None,
    asr: str | Path | None = None,
    hosts: Sequence[str] = (),
    account: tuple[str, str] | None = None,
    replies: int | None = None,
) -> tuple[Served, str]:
    """Serve the page in the background: the page (`close()` ends it) and its address. port 0: any free one. hosts: names
    that it answers to (`demo.guard`); account: user and password (`demo.password`); replies: see `open_service`.

    Raises TresseError where the port is taken, or as `open_service` does.
    """
    address = host.strip("[]")
    _check_address(address)
    service = open_service(bundle, recordings, asr, replies)
    page = build_page(service)
    options = launch_options(service, (*hosts, address), account)  # it answers to the name that it is served under
    try:
        with _no_proxies():
            _, url, _ = page.launch(
                server_name=f"[{address}]" if ":" in address else address,
                server_port=port or None,
                prevent_thread_lock=True,
                **options,
            )
    except OSError as error:
        raise TresseError(f"cannot serve on {host}:{port} (is it in use?): choose another port") from error
    page.server.config.ws_max_size = MAX_EVENT  # read at each connection
    page.server.config.ws_per_message_deflate = False
    page.server.config.ws_ping_timeout = PING_SECONDS
    threading.Thread(target=tending.tidy, args=(service,), daemon=True).start()
    return Served(page, service), url


class Served:
    """A page that is served."""

    def __init__(self, page: gr.Blocks, service: Service) -> None:
        self.page, self.service = page, service

    def wait(self) -> None:
        """Until Ctrl+C."""
        with suppress(KeyboardInterrupt):
            threading.Event().wait()

    def close(self) -> None:
        """End it, and at once: open pages are told."""
        self.page.server.should_exit = True
        tending.stop(self.service)
        self.page.close(verbose=False)


def _check_address(host: str) -> None:
    """Raise TresseError where this machine has no such address."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no name of a machine"
        raise TresseError(f"cannot serve on {host} ({reason}): choose another host") from error


@contextmanager
def _no_proxies() -> Iterator[None]:
    """While Gradio starts, it asks the new server whether it is there: by httpx, through the proxies that the environment
    names. These do not know this machine's own addresses; `*` makes httpx ask directly."""
    before = {name: os.environ.get(name) for name in ("no_proxy", "NO_PROXY")}
    os.environ.update(dict.fromkeys(before, "*"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def serve(
    bundle: Bundle,
    host: str,
    port: int,
    recordings: Path | None = None,
    open_browser: bool = False,
    asr: str | Path | None = None,
    hosts: Sequence[str] = (),
    account: tuple[str, str] | None = None,
    replies: int | None = None,
) -> None:
    """Serve the page until Ctrl+C; the model is warmed up meanwhile. Raises TresseError as `start` does."""
    share_cores()
    served, url = start(bundle, host, port, recordings, asr, hosts, account, replies)
    try:
        _announce(url, host, recordings, account is not None)
        threading.Thread(target=_warm_up, args=(bundle,), daemon=True).start()
        if open_browser:
            import webbrowser

            webbrowser.open(url)
        served.wait()
    finally:
        served.close()


def _announce(url: str, host: str, recordings: Path | None, asks: bool) -> None:
    say(f"Tresse listens on {url}")
    if not _is_local(host):
        say(BEHIND_A_PASSWORD if asks else OPEN_TO_ALL)
    if recordings is not None:
        say(f"Prompts and replies are kept in {recordings}")
    say("Press Ctrl+C to stop.")


def _is_local(host: str) -> bool:
    return host.strip("[]") in ("localhost", "::1") or host.startswith("127.")


def _warm_up(bundle: Bundle) -> None:
    """So that the first visitor does not wait for what is loaded lazily."""
    try:
        bundle.warm_up()
        decoding.start()
    except Exception:
        log.exception("warming up failed")
