// The line to the server: one long answer brings messages, short requests carry what the page says.
//
// A message is 4 bytes length of JSON, 4 bytes length of sound, both little-endian, then the two. The server sends something
// every few seconds; a line on which nothing comes for longer is dead, whatever the browser thinks of it, and is made anew.
// The server then repeats what the page has not received.

import { keep, recall } from "./stored.js";

const LATEST_CHECK = 1000; // ms
const LONGEST_REQUEST = 15_000; // ms
const FIRST_TRY = 1500; // ms
const CONNECTIONS = 6; // that browsers keep to one server
const AWAY = "the page is not connected to the server: wait a moment, then do it again";
const BROKEN = "the line broke: what you did last may not have arrived, please do it again";

const hex = (count) => Array.from(crypto.getRandomValues(new Uint8Array(count)), (n) => n.toString(16).padStart(2, "0")).join("");

export class Link {
  // heartbeat: s between signs of life from the server, at most.
  constructor(onMessage, onProblem, heartbeat) {
    this.base = new URL("tresse/", document.baseURI);
    this.onMessage = onMessage;
    this.onProblem = onProblem;
    this.patience = 1000 * (2 * heartbeat + 1); // ms: two signs of life may be missing
    this.page = hex(8);
    this.session = recall("session", "tresse-session"); // the server gives one in its hello
    this.received = 0; // messages since the server told the whole story
    this.line = null; // AbortController of the long answer
    this.connected = false; // the server has said hello over it
    this.requests = new Set(); // AbortControllers
    this.pieces = []; // sound that waits for the request before it
    this.sending = null;
    setInterval(() => this.check(), LATEST_CHECK);
    window.addEventListener("online", () => this.check());
    document.addEventListener("visibilitychange", () => this.check());
  }

  url(path, values = {}) {
    const url = new URL(path, this.base);
    for (const [key, value] of Object.entries({ session: this.session, ...values })) url.searchParams.set(key, value);
    return url;
  }

  check() {
    if (!this.line || performance.now() - this.latest < this.patience) return;
    this.connected = false;
    this.line.abort();
    for (const request of this.requests) request.abort();
  }

  // Browsers keep connections for later requests; those are as dead as the line was. Asking over all of them at once finds one
  // that works, and gives up those that do not. Whether there is one, known after at most `longest` ms.
  async answers(longest) {
    const request = new AbortController();
    const timer = setTimeout(() => request.abort(), longest);
    const ask = (n) => fetch(this.url("health", { n }), { cache: "no-store", signal: request.signal });
    try {
      await Promise.any(Array.from({ length: CONNECTIONS }, (_, n) => ask(n)));
      return true;
    } catch {
      return false;
    } finally {
      clearTimeout(timer);
      request.abort();
    }
  }

  async connect() {
    await this.listen(0);
    for (let tries = 0; ; tries += 1) {
      this.onMessage({ type: "lost" });
      await new Promise((done) => setTimeout(done, Math.min(5000, 300 * 2 ** tries)));
      if ((await this.answers(FIRST_TRY * (tries + 1))) && (await this.listen(tries))) tries = -1;
    }
  }

  // Until the line breaks. Whether there was one.
  async listen(tries) {
    const line = (this.line = new AbortController());
    this.latest = performance.now();
    let listened = false;
    try {
      const url = this.url("listen", { page: this.page, received: this.received });
      const response = await fetch(url, { cache: "no-store", signal: line.signal });
      listened = response.ok;
      if (listened) await this.read(response.body.getReader());
      else if (tries > 1) this.session = ""; // a duplicated tab: it gets a story of its own
    } catch {
      // the server is away, or the line is dead
    }
    this.line = null;
    this.connected = false;
    return listened;
  }

  async read(reader) {
    let bytes = new Uint8Array(0);
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      this.latest = performance.now();
      const joined = new Uint8Array(bytes.length + value.length);
      joined.set(bytes);
      joined.set(value, bytes.length);
      bytes = joined;
      while (bytes.length >= 8) {
        const view = new DataView(bytes.buffer, bytes.byteOffset);
        const [text, sound] = [view.getUint32(0, true), view.getUint32(4, true)];
        if (bytes.length < 8 + text + sound) break;
        if (text) this.take(JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + text))), bytes.slice(8 + text, 8 + text + sound));
        bytes = bytes.slice(8 + text + sound);
      }
    }
  }

  take(message, sound) {
    if (message.type === "hello") {
      this.session = message.session;
      keep("session", "tresse-session", this.session);
      if (!message.resumed) this.received = 0;
      this.connected = true;
    } else this.received += 1;
    this.onMessage(message, sound);
  }

  // What is wrong; null where it arrived and was accepted, BROKEN where that is not known. longest: ms until it counts as lost.
  async request(url, body, longest) {
    if (!this.connected) return AWAY;
    const request = new AbortController();
    this.requests.add(request);
    const timer = longest ? setTimeout(() => request.abort(), longest) : 0;
    try {
      const response = await fetch(url, { method: "POST", body, signal: request.signal });
      return response.ok ? null : (await response.json()).problem;
    } catch {
      return request.signal.aborted ? BROKEN : "the server does not answer: is it still running?";
    } finally {
      clearTimeout(timer);
      this.requests.delete(request);
    }
  }

  // Whether it arrived and was accepted; where not, onProblem has been told.
  async post(url, body, longest = LONGEST_REQUEST) {
    const problem = await this.request(url, body, longest);
    if (problem) this.onProblem(problem);
    return !problem;
  }

  act(action, values = {}) {
    return this.post(this.url(`do/${action}`), JSON.stringify(values));
  }

  // The settings may arrive twice: they are sent until they do, while nothing newer is chosen.
  async set(values) {
    this.settings = values;
    for (let longest = FIRST_TRY; this.settings === values; longest *= 2) {
      const last = longest > LONGEST_REQUEST;
      const problem = await this.request(this.url("do/settings"), JSON.stringify(values), longest);
      if (problem === AWAY) return; // they are sent when the line is back
      if (problem && (last || problem !== BROKEN)) this.onProblem(problem);
      if (last || problem !== BROKEN) return;
    }
  }

  example(number) {
    return this.post(this.url(`example/${number}`));
  }

  upload(file) {
    return this.post(this.url("upload", { name: file.name }), file, 0);
  }

  // Sound of the microphone, int16: pieces that come while a request is under way go together in the next one. Whether all
  // that waited arrived; without a line nothing does.
  hear(samples, flags) {
    if (!this.connected) return Promise.resolve(false);
    this.pieces.push({ samples, flags });
    this.sending ??= this.drain().finally(() => (this.sending = null));
    return this.sending;
  }

  async drain() {
    let arrived = true;
    while (this.pieces.length && this.connected) {
      const now = this.recording();
      const flags = Object.assign({}, ...now.map((piece) => piece.flags));
      const all = new Int16Array(now.reduce((sum, { samples }) => sum + samples.length, 0));
      let at = 0;
      for (const { samples } of now) {
        all.set(samples, at);
        at += samples.length;
      }
      if (await this.post(this.url("hear", flags), all)) continue;
      arrived = false;
      if (!flags.last) this.recording(); // without its middle the rest is worth nothing
    }
    arrived &&= !this.pieces.length;
    this.pieces = [];
    return arrived;
  }

  // Take what waits of the oldest recording.
  recording() {
    const ends = this.pieces.findIndex(({ flags }) => flags.last);
    return this.pieces.splice(0, ends < 0 ? this.pieces.length : ends + 1);
  }
}
