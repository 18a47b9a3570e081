// The page: what people do (press, speak, stop, choose) becomes commands; what the server says becomes sound and cards.
//
// State, for styling and for tests, is in the data attributes of .talk: state (connecting, idle, asking, recording,
// thinking, speaking), free (hands-free is on), gaps, first-sound-ms of the latest reply.

import { Awake } from "./awake.js";
import { Braid } from "./braid.js";
import { FirstMinute } from "./firstminute.js";
import { Keeping } from "./keeping.js";
import { Link } from "./link.js";
import { Player } from "./player.js";
import { recordingsPage } from "./recordings.js";
import { resultsPage } from "./results.js";
import { Controls } from "./settings.js";
import { Story } from "./story.js";
import { Strip } from "./strip.js";
import { Talking } from "./talking.js";
import { fill, languageName, number, onChange, preferred, problem, t, use } from "./texts.js";

// The page as an app of its own: Gradio's page names a manifest that is not there.
function install() {
  for (const other of document.querySelectorAll("link[rel=manifest]")) other.remove();
  const link = Object.assign(document.createElement("link"), { rel: "manifest", crossOrigin: "use-credentials" });
  link.href = new URL("manifest.json", import.meta.url);
  document.head.append(link);
}

export async function start(element, props) {
  const root = element.querySelector(".talk");
  const $ = (selector) => root.querySelector(selector);
  const player = new Player(props.rate);
  const link = new Link(receive, (text) => say(text), props.heartbeat);
  const story = new Story($(".turns"), props, player, link, (turn, part) => {
    story.choose(turn, part);
    link.act("choose", { turn, part });
  });
  const talking = new Talking(root, link, {
    connected: () => connected,
    talks: () => !$("#panel-talk").hidden,
    changed: show,
    hush,
    say,
    prompt,
  });
  const live = new Strip($(".strip.live"), props.frame_rate, props.languages);
  const keeping = new Keeping(root, props, link, say);
  const first = new FirstMinute(root, props, link, player, talking, { hush, say });
  const awake = new Awake();
  const touched = matchMedia("(max-width: 640px), (pointer: coarse)");
  new Braid($(".braid"), () => Math.max(player.loudness(), talking.level));

  let connected = false;
  let known = false; // the server has said once how things stand
  let working = false; // the server is making a reply
  let ended = 0; // performance.now() when the latest prompt ended
  let discarded = new Set(); // replies that somebody did not want to hear the rest of
  let message = null; // what stays until something happens: {text, calm}; calm: no problem
  let queue = 0;
  let context = null;
  let strange = false; // the latest prompt was not understood

  // ---- what is shown ------------------------------------------------------------------------------------------------

  function show() {
    const state = !connected ? "connecting" : talking.state ?? (player.sounding ? "speaking" : working ? "thinking" : "idle");
    const toggled = Boolean(talking.turn?.toggled);
    const { meter, onPiece } = talking.microphone;
    const hint = onPiece ? meter.hint : "";
    const strays = strange && player.current?.startsWith(`${story.turns.length - 1}/`);
    if (state !== root.dataset.state) root.dataset.state = state;
    root.dataset.free = Boolean(talking.free);
    root.dataset.gaps = player.gaps;
    root.dataset.problem = Boolean(message && !message.calm);
    const words = {
      connecting: t(known ? "state.lost" : "state.connecting"),
      asking: t("state.asking"),
      recording: t(hint ? `voice.now.${hint}` : toggled ? "state.recording.tap" : "state.recording"),
      speaking: player.blocked ? t("state.blocked") : t(strays ? "state.speaking.strange" : "state.speaking"),
      thinking: queue ? t("state.queue", { n: queue }) : t("state.thinking"),
      idle: t(talking.free ? "state.free" : strange ? "state.idle.strange" : touched.matches ? "state.idle.touch" : "state.idle"),
    };
    const text = message && !["connecting", "asking", "recording", "speaking"].includes(state) ? problem(message.text) : words[state];
    if ($(".status").textContent !== text) $(".status").textContent = text;
    if (["idle", "connecting"].includes(state) && !talking.free && !$(".strip.live").hidden) showLive(false);
    $(".stop").disabled = !(working || player.sounding);
    $(".press").setAttribute("aria-pressed", String(state === "recording"));
    const label = { asking: t("press.asking"), recording: t(toggled ? "press.recording.tap" : "press.recording") }[state] ?? t("press");
    if ($(".press .label").textContent !== label) $(".press .label").textContent = label;
    if ($(".level").hidden === Boolean(onPiece)) $(".level").hidden = !onPiece;
    if (onPiece) {
      $(".level").dataset.hint = hint;
      $(".level span").style.width = `${Math.round(100 * meter.share)}%`;
    }
    if (story.empty) $(".hear-dialogue").setAttribute("aria-pressed", String(first.sounds));
    $(".check-voice").disabled = !connected || state === "recording" || state === "asking";
    awake.want(Boolean(talking.free) || Boolean(first.checking) || ["asking", "recording", "thinking", "speaking"].includes(state));
    if ($(".beginning").hidden === story.empty) {
      $(".beginning").hidden = !story.empty;
      $(".beginnings").open = story.empty || strange;
    }
    $(".story-bar").hidden = $(".story-title").hidden = story.empty;
    for (const name of [".again", ".undo"]) $(name).disabled = Boolean(talking.turn);
    if (context) {
      $(".meter span").style.width = `${Math.min(100, (100 * context.used) / context.limit)}%`;
      const forgotten = context.forgotten ? ` · ${t("context.forgotten", { n: context.forgotten })}` : "";
      const words = t("context", { used: number(context.used, 0), limit: number(context.limit, 0) }) + forgotten;
      if ($(".context-text").textContent !== words) $(".context-text").textContent = words;
      $(".context").setAttribute("aria-label", words);
    }
  }

  function say(text, calm = false) {
    message = text && { text, calm };
    show();
  }

  // ---- what the server says -----------------------------------------------------------------------------------------

  function receive(m, sound) {
    const key = m.turn === undefined ? null : story.key(m.turn, m.part);
    if (m.type === "hello") {
      connected = known = true;
      if (!m.resumed) working = m.working;
      link.set(controls.read());
      talking.back();
      keeping.show();
    } else if (m.type === "lost") {
      connected = false;
      talking.lost();
    } else if (m.type === "story") {
      player.silence();
      discarded = new Set();
      story.show(m.turns);
      keeping.tell(m.title);
      strange = m.turns.at(-1)?.in_domain === false;
    } else if (m.type === "context") context = m;
    else if (m.type === "speech") bargeIn();
    else if (m.type === "pause") ended = performance.now() - 1000 * m.silence;
    else if (m.type === "listening") {
      if (!m.ids.length) live.units = [];
      showLive(true);
      live.add(m.ids, m.ids.map(() => 1), m.ids.map(() => ""), m.ids.map(() => false));
    } else if (m.type === "heard") {
      showLive(false);
      message = null;
      working = true;
      queue = 0;
      story.heard(m);
      strange = !m.in_domain;
      if (strange) $(".beginnings").open = true;
    } else if (m.type === "queue") queue = m.position;
    else if (m.type === "speaking") {
      queue = 0;
      story.speaking(m);
    } else if (m.type === "audio") {
      story.units(m);
      if (!discarded.has(m.turn)) {
        const first = player.voice(key).received === 0;
        const lead = player.push(key, Float32Array.from(new Int16Array(sound), (s) => s / 32768));
        if (first && m.part === 0) {
          const ms = performance.now() - ended + 1000 * (lead + (player.context.baseLatency || 0));
          root.dataset.firstSoundMs = Math.round(ms);
          story.firstSound(key, ms);
        }
      }
    } else if (m.type === "done") story.done(m);
    else if (m.type === "transcript") {
      if (m.turn === null) showWords(m.text);
      else {
        story.transcript(m.turn, m.part, m.text);
        keeping.tell(m.title);
      }
    } else if (m.type === "saved") story.turns[m.turn]?.item.setAttribute("data-saved", m.name);
    else if (m.type === "problem") {
      message = m;
      showLive(false);
    } else if (m.type === "unheard") {
      message = m;
      talking.unheard();
    } else if (m.type === "idle") working = false;
    show();
  }

  function showLive(on) {
    $(".strip.live").hidden = !on;
    $(".braid").hidden = on;
    if (!on) showWords("");
  }

  function showWords(text) {
    $(".live-text").textContent = text;
    $(".live-text").hidden = !text;
  }

  // ---- what people do -----------------------------------------------------------------------------------------------

  // Silence the speaker, and tell the server what was heard of the reply: what was not is no part of the story.
  function hush() {
    const sounded = player.silence();
    const replay = !sounded || sounded.replay;
    if (replay && !working) return;
    discarded.add(story.turns.length - 1);
    if (replay) return link.act("stop");
    return link.act("stop", heardOf(sounded));
  }

  // Somebody speaks hands-free: the server has ended the reply already, and wants to know how much of it was heard.
  function bargeIn() {
    message = null;
    if (working) discarded.add(story.turns.length - 1);
    const sounded = player.silence();
    if (sounded && !sounded.replay) link.act("stop", heardOf(sounded));
  }

  function heardOf({ key, heard }) {
    const [turn, part] = key.split("/").map(Number);
    return { turn, part, heard };
  }

  async function give(send) {
    message = null;
    await hush(); // a file may overtake what is said
    await prompt(send);
  }

  // What was said goes to the server: send() resolves to whether it arrived.
  async function prompt(send) {
    ended = performance.now();
    working = true;
    show();
    if (!(await send())) working = false;
    show();
  }

  async function change(action) {
    hush();
    player.silence();
    message = null;
    if (action === "new" || (action === "undo" && story.turns.length === 1)) keeping.write("");
    if (action === "again") {
      ended = performance.now();
      working = true;
    }
    if (!(await link.act(action))) working = false;
    show();
  }

  $(".stop").addEventListener("click", () => {
    hush();
    show();
  });
  $(".upload input").addEventListener("change", ({ target }) => {
    const [file] = target.files;
    target.value = "";
    if (!file) return;
    if (file.size > props.max_upload) return say(`“${file.name}” is larger than ${props.max_upload / 1e6} MB`);
    give(() => link.upload(file));
  });
  for (const action of ["again", "undo", "new"]) $(`.${action}`).addEventListener("click", () => change(action));

  $(".beginnings").hidden = !props.examples.length;
  props.examples.forEach(({ language, text }, k) => {
    const item = document.createElement("li");
    const hear = Object.assign(document.createElement("button"), { type: "button", className: "quiet hear-example", textContent: "▶" });
    hear.dataset.tLabel = "example.hear";
    hear.addEventListener("click", () => player.play(`example/${k}`, link.url(`example/${k}.flac`)).catch((e) => say(e.message)));
    const used = Object.assign(document.createElement("button"), { type: "button", className: "example" });
    const badge = Object.assign(document.createElement("span"), { className: "badge" });
    badge.dataset.language = language;
    badge.style.setProperty("--badge", `var(--strand-${props.languages.indexOf(language) + 1})`);
    used.append(badge, Object.assign(document.createElement("span"), { textContent: text, lang: language }));
    used.addEventListener("click", () => give(() => link.act("example", { number: k })));
    item.append(hear, used);
    $(".examples").append(item);
  });

  // ---- pages and languages ------------------------------------------------------------------------------------------

  const tabs = [...root.querySelectorAll("[role=tab]")];
  const pages = { "tab-results": resultsPage($("#panel-results"), props), "tab-recordings": recordingsPage($("#panel-recordings"), props, link, player) };
  $("#tab-recordings").hidden = !props.recordings;
  function open(tab) {
    for (const one of tabs) {
      const chosen = one === tab;
      one.setAttribute("aria-selected", String(chosen));
      one.tabIndex = chosen ? 0 : -1;
      $(`#${one.getAttribute("aria-controls")}`).hidden = !chosen;
    }
    pages[tab.id]?.();
  }
  for (const tab of tabs) {
    tab.addEventListener("click", () => open(tab));
    tab.addEventListener("keydown", ({ key }) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
      if (!step) return;
      const shown = tabs.filter((one) => !one.hidden);
      const next = shown[(shown.indexOf(tab) + step + shown.length) % shown.length];
      next.focus();
      open(next);
    });
  }
  open(tabs[0]);

  for (const code of props.interfaces) {
    const choice = Object.assign(document.createElement("button"), { type: "button", className: "quiet", textContent: code.toUpperCase(), lang: code });
    choice.title = new Intl.DisplayNames([code], { type: "language" }).of(code);
    choice.addEventListener("click", () => use(code));
    $(".interface").append(choice);
  }
  const controls = new Controls($("#panel-talk"), props, (values) => connected && link.set(values));
  onChange(() => {
    fill(root);
    for (const choice of $(".interface").children) choice.setAttribute("aria-pressed", String(choice.lang === document.documentElement.lang));
    story.relabel();
    first.show();
    for (const badge of root.querySelectorAll(".badge[data-language]")) badge.textContent = languageName(badge.dataset.language);
    $(".note").textContent = props.recordings ? t("note.recordings", { folder: props.recordings }) : t("note", { minutes: props.minutes });
    pages[tabs.find((tab) => tab.getAttribute("aria-selected") === "true").id]?.();
    show();
  });
  // On phones and tablets the button is docked to the bottom; nothing that is focused or shown hides behind it.
  new ResizeObserver(() => {
    const docked = getComputedStyle($(".dock")).position === "fixed";
    const height = docked ? `${Math.ceil($(".dock").getBoundingClientRect().height)}px` : "0px";
    root.style.setProperty("--dock", height);
    document.documentElement.style.scrollPaddingBottom = docked ? `calc(${height} + 8px)` : "";
  }).observe($(".dock"));

  install();
  await use(preferred(props.interfaces));
  setInterval(show, 50);
  link.connect();
}
