// The streaming player. Runs inside a gr.HTML component, which provides: element, props, trigger, watch.
//
// props.value is a message {run, state, chunks: [[number, base64 int16], ...], total?, text?}; chunks are numbered from 0,
// messages repeat the last few. Buffers are scheduled back to back on one AudioContext at the bundle's sample rate.
// State, for styling and for tests, is in the data attributes of .player.
const texts = props.texts;
const root = element.querySelector(".player");
const canvas = root.querySelector(".player-braid");
const statusText = root.querySelector(".player-status");
const timeText = root.querySelector(".player-time");
const stopButton = root.querySelector(".player-stop");

const LEAD = 0.04; // s between the arrival of the first chunk and its sound
const LEAD_AFTER_GAP = 0.15; // s, after sound ran out once: gather a little more
const FADE = 0.008; // s, time constant of the fade when silenced
const ACTIVE = ["waiting", "playing", "buffering"];

let context = null;
let analyser = null;
let run = null;
let reply = null; // state of the current run, see fresh()

const fresh = () => ({
  bus: null, // GainNode that everything of this run goes through
  sources: new Set(),
  next: 0, // number of the chunk expected next
  lost: 0,
  gaps: 0,
  received: 0, // s of sound
  playhead: 0, // context time where the next buffer begins
  ended: false, // the last message came
  asked: performance.now(),
});

function unlock() {
  // Browsers let sound start only from a gesture: every gesture makes sure that the context exists and runs.
  if (!context) {
    context = new AudioContext({ sampleRate: props.rate, latencyHint: "interactive" });
    analyser = context.createAnalyser();
    analyser.fftSize = 1024;
    analyser.connect(context.destination);
  }
  if (context.state === "suspended") context.resume();
}

function show(state, text) {
  root.dataset.state = state;
  statusText.textContent = text ?? texts[state];
  stopButton.disabled = !ACTIVE.includes(state);
  if (ACTIVE.includes(state)) animate();
}

function silence() {
  if (!reply || !reply.bus) return;
  const { bus, sources } = reply;
  const now = context.currentTime;
  bus.gain.setTargetAtTime(0, now, FADE);
  for (const source of sources) source.stop(now + 8 * FADE);
  setTimeout(() => bus.disconnect(), 200);
  reply.bus = null;
}

function ask(newRun) {
  if (reply && !reply.ended) trigger("stop", { run }); // a new question ends the old answer
  silence();
  unlock();
  run = newRun;
  reply = fresh();
  delete root.dataset.firstSoundMs;
  Object.assign(root.dataset, { lost: 0, gaps: 0, played: 0, received: 0 });
  timeText.textContent = "";
  show("waiting");
}

function stop() {
  silence();
  show("stopped");
  if (!reply.ended) trigger("stop", { run });
  run = null; // whatever still comes of it is not for us
}

function schedule(base64) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const samples = Float32Array.from(new Int16Array(bytes.buffer), (s) => s / 32768);
  const buffer = context.createBuffer(1, samples.length, context.sampleRate);
  buffer.copyToChannel(samples, 0);
  if (!reply.bus) {
    reply.bus = context.createGain();
    reply.bus.connect(analyser);
  }
  const source = context.createBufferSource();
  source.buffer = buffer;
  source.connect(reply.bus);
  const now = context.currentTime;
  if (reply.playhead < now + 0.005) {
    const first = reply.received === 0;
    if (!first) root.dataset.gaps = ++reply.gaps;
    const begin = now + (first ? LEAD : LEAD_AFTER_GAP);
    reply.playhead = Math.ceil(begin * context.sampleRate) / context.sampleRate; // on a sample: nothing is interpolated
    if (first) root.dataset.firstSoundMs = Math.round(performance.now() - reply.asked + 1000 * LEAD);
  }
  source.start(reply.playhead);
  source.onended = () => reply.sources.delete(source);
  reply.sources.add(source);
  reply.playhead += buffer.duration;
  reply.received += buffer.duration;
}

function receive(message) {
  if (!message || message.run !== run || reply.ended) return;
  unlock();
  for (const [number, data] of message.chunks) {
    if (number < reply.next) continue;
    reply.lost += number - reply.next;
    schedule(data);
    reply.next = number + 1;
  }
  if (message.state !== "playing") {
    reply.ended = true;
    reply.lost += message.total - reply.next;
  }
  root.dataset.lost = reply.lost;
  root.dataset.received = reply.received.toFixed(3);
  if (message.state === "error") show("error", message.text);
  else if (message.state === "stopped") (silence(), show("stopped"));
  update();
}

function update() {
  if (!run || !context) return;
  const waited = performance.now() - reply.asked;
  const state = root.dataset.state;
  const left = Math.max(0, reply.playhead - context.currentTime);
  const played = Math.max(0, reply.received - left);
  root.dataset.played = played.toFixed(3);
  if (reply.received) {
    const total = reply.ended && left > 0 ? ` / ${reply.received.toFixed(1)}` : "";
    timeText.textContent = `${played.toFixed(1)}${total} s`;
  }
  if (!ACTIVE.includes(state)) return;
  if (reply.received === 0 && !reply.ended) {
    if (waited > 4000) show("waiting", texts.still_waiting);
  } else if (left > 0) {
    if (context.state !== "running") show("playing", texts.blocked);
    else show("playing");
  } else if (reply.ended) {
    show("finished", reply.lost ? texts.lost.replace("{n}", reply.lost) : texts.finished);
  } else {
    show("buffering");
  }
}

// ---- the braid: three strands, as wide as the voice is loud --------------------------------------------------------
const still = matchMedia("(prefers-reduced-motion: reduce)");
let phase = 0;
let level = 0;
let lastDraw = 0;
let frame = null;

function loudness() {
  if (!analyser || !reply || !reply.bus) return 0;
  const samples = new Float32Array(analyser.fftSize);
  analyser.getFloatTimeDomainData(samples);
  return Math.min(1, 4 * Math.sqrt(samples.reduce((sum, s) => sum + s * s, 0) / samples.length));
}

function draw() {
  const scale = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  if (!width) return;
  if (canvas.width !== Math.round(width * scale)) [canvas.width, canvas.height] = [width * scale, height * scale];
  const style = getComputedStyle(root);
  const strands = [1, 2, 3].map((n) => style.getPropertyValue(`--strand-${n}`).trim());
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.lineCap = "round";
  const step = 3;
  const wave = 64; // px from crossing to crossing of one strand with itself
  for (let x = 0; x < width; x += step) {
    const edge = Math.sin((Math.PI * x) / width); // strands meet at both ends
    const swing = edge * (5 + level * (height / 2 - 9));
    const at = (px, n) => (2 * Math.PI * px) / wave + phase + (n * 2 * Math.PI) / 3;
    const y = (px, n) => height / 2 + swing * Math.sin(at(px, n));
    const order = [0, 1, 2].sort((a, b) => Math.cos(2 * at(x, a)) - Math.cos(2 * at(x, b)));
    for (const n of order) {
      pen.strokeStyle = strands[n];
      pen.lineWidth = 2.5 + 1.5 * edge;
      pen.beginPath();
      pen.moveTo(x, y(x, n));
      pen.lineTo(x + step, y(x + step, n));
      pen.stroke();
    }
  }
}

function animate() {
  if (frame === null) frame = requestAnimationFrame(tick);
}

function tick(now) {
  frame = null;
  if (now - lastDraw > 30) {
    const target = loudness();
    level += (target - level) * (target > level ? 0.5 : 0.15);
    if (!still.matches) phase -= 0.04 + 0.08 * level;
    lastDraw = now;
    draw();
  }
  if (ACTIVE.includes(root.dataset.state) || level > 0.01) animate();
}

// ---- wiring --------------------------------------------------------------------------------------------------------
for (const gesture of ["pointerdown", "pointerup", "keydown"]) {
  document.addEventListener(gesture, unlock, { capture: true, passive: true });
}
document.addEventListener("tresse:ask", (event) => ask(event.detail.run));
stopButton.addEventListener("click", stop);
watch("value", () => receive(props.value));
setInterval(update, 50);
new ResizeObserver(draw).observe(canvas);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTimeout(draw, 100));
