"""The page: somebody begins a story, the model goes on with it aloud. Layout, wiring and serving; no state of its own
but the turns under way, so any number of people can use one server without hearing each other.

Costs: one generation at a time per CPU core (others wait in Gradio's queue); memory is the bundle's.
"""

from __future__ import annotations

import html
import logging
import os
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before the import: gradio reads it there

import gradio as gr

from demo import recordings as recording
from demo.look import HEAD, LOGO, PROMPT_WAVEFORM, REPLY_WAVEFORM, STYLE, theme
from demo.player import CLIENT_ASK, Feed, player
from demo.texts import ENGLISH, Texts
from demo.turn import MAX_SEED, Reply, Runs, Settings, Turn, new_seed
from slm.audio import read_audio, write_wav
from slm.errors import TresseError

if TYPE_CHECKING:
    from slm.bundle import Bundle

log = logging.getLogger(__name__)

CONCURRENT_TURNS = max(2, os.cpu_count() or 2)
QUEUE_SIZE = 64
MAX_UPLOAD = "50mb"
KEEP_FILES = (600, 3600)
"""Gradio's temporary files: looked at every 600 s, deleted when 3600 s old; all of them when the server ends."""

Outputs = tuple[Any, Any, Any, Any]
"""What a turn updates: player, whole reply, facts, seed."""


def build_page(bundle: Bundle, recordings: Path | None = None, texts: Texts = ENGLISH) -> gr.Blocks:
    """The page for a bundle. recordings: folder in which to keep prompts and replies (None: nothing is kept).

    Launch it with `launch(**launch_options(bundle))`. Raises TresseError where the folder cannot be written.
    """
    folder = recording.open_folder(Path(recordings)) if recordings is not None else None
    runs = Runs()
    with gr.Blocks(title=texts.title, analytics_enabled=False, delete_cache=KEEP_FILES) as page:
        gr.HTML(_header(texts), apply_default_css=False, elem_id="header")
        with gr.Row(elem_id="columns", equal_height=False):
            with gr.Column(min_width=320):
                gr.HTML(f"<h2>{texts.prompt_heading}</h2>", apply_default_css=False)
                prompt = gr.Audio(
                    sources=["microphone", "upload"],
                    type="filepath",
                    label=texts.prompt_label,
                    buttons=[],
                    elem_id="prompt",
                    waveform_options=PROMPT_WAVEFORM,
                )
                hint = html.escape(texts.prompt_hint.format(seconds=bundle.max_prompt_seconds))
                gr.HTML(f"<p class='hint'>{hint}</p>", apply_default_css=False)
                _examples(bundle, prompt, texts)
            with gr.Column(min_width=320):
                gr.HTML(f"<h2>{texts.reply_heading}</h2>", apply_default_css=False)
                language = gr.Radio(
                    [(texts.language(code), code) for code in bundle.languages],
                    value=bundle.languages[0],
                    label=texts.to_label,
                    elem_id="language",
                )
                go = gr.Button(texts.go_on, variant="primary", size="lg", elem_id="go")
                voice = player(bundle.sample_rate, texts.player)
                reply = gr.Audio(
                    label=texts.reply_label,
                    type="filepath",
                    interactive=False,
                    visible=False,
                    buttons=["download"],
                    elem_id="reply",
                    waveform_options=REPLY_WAVEFORM,
                )
                facts = gr.HTML("", apply_default_css=False, elem_id="facts")
                settings = _settings(bundle, texts)
        note = texts.recorded.format(folder=folder) if folder else texts.privacy.format(minutes=sum(KEEP_FILES) // 60)
        gr.HTML(f"<p>{html.escape(note)}</p>", apply_default_css=False, elem_id="note")

        run = gr.Textbox(visible=False)
        seed = settings[-1]
        go.click(
            _turn_handler(bundle, folder, runs, texts),
            inputs=[run, prompt, language, *settings],
            outputs=[voice, reply, facts, seed],
            js=CLIENT_ASK,
            show_progress="hidden",
            trigger_mode="multiple",
            concurrency_limit=CONCURRENT_TURNS,
            api_visibility="private",
        )

        def stop(event: gr.EventData) -> None:
            runs.stop(str(event.run))

        voice.stop(stop, queue=False, show_progress="hidden", trigger_mode="multiple", api_visibility="private")
    page.queue(max_size=QUEUE_SIZE)
    return page


def launch_options(bundle: Bundle) -> dict[str, Any]:
    """Arguments for `Blocks.launch`: the look, what may be served, and nothing that leaves the machine."""
    return {
        "theme": theme(),
        "css": STYLE,
        "head": HEAD,
        "allowed_paths": sorted({str(example.path.resolve().parent) for example in bundle.examples}),
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


def start(bundle: Bundle, host: str, port: int, recordings: Path | None = None) -> tuple[gr.Blocks, str]:
    """Serve the page in the background: the page (`close()` ends it) and its address. port 0: any free one.

    Raises TresseError where the port is taken or the recordings' folder cannot be written.
    """
    page = build_page(bundle, recordings)
    try:
        _, url, _ = page.launch(
            server_name=host, server_port=port or None, prevent_thread_lock=True, **launch_options(bundle)
        )
    except OSError as error:
        raise TresseError(f"cannot serve on {host}:{port} (is it in use?): choose another port") from error
    return page, url


def serve(
    bundle: Bundle,
    host: str,
    port: int,
    recordings: Path | None = None,
    open_browser: bool = False,
    texts: Texts = ENGLISH,
) -> None:
    """Serve the page until Ctrl+C; the model is warmed up meanwhile. Raises TresseError as `start` does."""
    page, url = start(bundle, host, port, recordings)
    print(texts.serving.format(url=url))
    if recordings is not None:
        print(texts.serving_recorded.format(folder=recordings))
    print(texts.serving_stop, flush=True)
    threading.Thread(target=_warm_up, args=(bundle,), daemon=True).start()
    if open_browser:
        import webbrowser

        webbrowser.open(url)
    page.block_thread()


def _warm_up(bundle: Bundle) -> None:
    """So that the first visitor does not wait for what is loaded lazily."""
    try:
        bundle.warm_up()
    except Exception:
        log.exception("warming up failed")


def _header(texts: Texts) -> str:
    return f"<header>{LOGO}<div><h1>{texts.title}</h1><p>{html.escape(texts.explanation)}</p></div></header>"


def _examples(bundle: Bundle, prompt: gr.Audio, texts: Texts) -> None:
    """One click loads an example into the prompt."""
    if not bundle.examples:
        return
    gr.HTML(f"<p class='label'>{html.escape(texts.examples)}</p>", apply_default_css=False)
    with gr.Column(elem_id="examples"):
        for example in sorted(bundle.examples, key=lambda example: bundle.languages.index(example.language)):
            label = texts.example.format(language=texts.language(example.language), text=example.text)
            button = gr.Button(label, size="sm", min_width=0, elem_classes=["example", f"example-{example.language}"])
            button.click(
                lambda path=str(example.path): path,
                outputs=prompt,
                show_progress="hidden",
                queue=False,
                api_visibility="private",
            )


def _settings(bundle: Bundle, texts: Texts) -> list[gr.components.Component]:
    """The folded settings, in the order of the handler's arguments; the seed is the last."""
    with gr.Accordion(texts.settings, open=False, elem_id="settings"):
        speakers = [(texts.speaker_automatic, ""), *((name.capitalize(), name) for name in bundle.speakers)]
        speaker = gr.Dropdown(
            speakers,
            value="",
            label=texts.speaker,
            filterable=False,
            visible=len(bundle.speakers) > 1,
            elem_id="speaker",
        )
        max_seconds = gr.Slider(2, 30, value=12, step=1, label=texts.max_seconds, elem_id="max-seconds")
        temperature = gr.Slider(
            0.1, 1.5, value=0.8, step=0.05, label=texts.temperature, info=texts.temperature_hint, elem_id="temperature"
        )
        top_p = gr.Slider(0.1, 1, value=0.95, step=0.01, label=texts.top_p, info=texts.top_p_hint, elem_id="top-p")
        fresh = gr.Checkbox(True, label=texts.new_seed, elem_id="new-seed")
        seed = gr.Number(
            0, precision=0, minimum=0, maximum=MAX_SEED, label=texts.seed, info=texts.seed_hint, elem_id="seed"
        )
    return [speaker, max_seconds, temperature, top_p, fresh, seed]


def _turn_handler(bundle: Bundle, folder: Path | None, runs: Runs, texts: Texts) -> Callable[..., Iterator[Outputs]]:
    """The generator behind "go on": streams a turn into the player, then shows the whole reply and its figures."""

    def go_on(
        run: str,
        prompt: str | None,
        language: str,
        speaker: str,
        max_seconds: float,
        temperature: float,
        top_p: float,
        fresh: bool,
        seed: int | None,
    ) -> Iterator[Outputs]:
        feed = Feed(run or uuid.uuid4().hex, bundle.sample_rate)
        skip = gr.skip()

        def fail(text: str) -> Outputs:
            return feed.close("error", text), skip, skip, skip

        with runs.begin(feed.run) as stopped, tempfile.TemporaryDirectory(prefix="tresse-") as temporary:
            try:
                if prompt is None:
                    raise TresseError(texts.no_prompt)
                if not Path(prompt).exists():
                    raise TresseError(texts.prompt_gone)
                waveform, rate = read_audio(prompt, bundle.max_prompt_seconds)
                chosen = new_seed() if fresh or seed is None else int(seed)
                settings = Settings(language, chosen, temperature, top_p, max_seconds, speaker or None)
                turn = Turn(bundle, waveform, rate, settings, stopped)
                for audio in turn:
                    if message := feed.add(audio):
                        yield message, skip, skip, skip
                reply = turn.reply
                if reply is None:
                    if not stopped.is_set():
                        raise TresseError(texts.no_reply)
                    yield feed.close("stopped"), skip, skip, skip
                    return
                yield feed.close("stopped" if reply.stopped else "finished"), skip, skip, skip
                facts = _facts(reply, texts)
                if folder:
                    facts += _keep(folder, waveform, rate, reply, bundle, texts)
                path = Path(temporary) / f"tresse-{language}-{chosen}.wav"
                write_wav(path, reply.waveform, reply.sample_rate)
                yield skip, gr.Audio(str(path), visible=True), facts, chosen
            except TresseError as error:
                yield fail(_readable(str(error), prompt))
            except Exception:
                log.exception("a turn failed")
                yield fail(texts.unexpected)

    return go_on


def _readable(message: str, prompt: str | None) -> str:
    """The message with the file's own name instead of where the server keeps it."""
    if prompt:
        message = message.replace(prompt, f"“{Path(prompt).name}”")
    return message[:1].upper() + message[1:]


def _keep(folder: Path, waveform: Any, rate: int, reply: Reply, bundle: Bundle, texts: Texts) -> str:
    """Save the turn; what to say about it. A full disk must not take the reply away."""
    try:
        kept = recording.save(folder, waveform, rate, reply, bundle.info)
    except TresseError as error:
        return f"<p class='kept failed'>{html.escape(texts.not_saved.format(reason=error))}</p>"
    return f"<p class='kept'>{html.escape(texts.saved_as)} <code>{html.escape(kept.name)}</code></p>"


def _facts(reply: Reply, texts: Texts) -> str:
    def seconds(value: float, digits: int) -> str:
        return texts.seconds.format(seconds=value, digits=digits)

    facts = {
        texts.fact_prompt_language: texts.language(reply.prompt_language),
        texts.fact_language: texts.language(reply.settings.language),
        texts.fact_length: seconds(reply.seconds, 1),
        texts.fact_first_audio: seconds(reply.first_audio, 2),
        texts.fact_real_time_factor: f"{reply.real_time_factor:.2f}",
        texts.fact_seed: str(reply.settings.seed),
    }
    items = "".join(f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in facts.items())
    stopped = f"<p class='kept'>{html.escape(texts.stopped_early)}</p>" if reply.stopped else ""
    return f"<dl>{items}</dl>{stopped}"
