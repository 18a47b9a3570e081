// The connection to the server: a WebSocket, whose order is the order of everything that is said.
//
// The page sends commands as JSON, {id, do, values}, each of which is answered, and the microphone's sound as frames of 16-bit
// samples. The server sends messages as JSON; the frame behind one of the type "audio" is its sound. It sends something every
// few seconds; a connection on which nothing comes for longer is dead, whatever the browser thinks of it, and is made anew. The
// server then repeats what the page has not received.

import { keep, recall } from "./stored.js";

const LATEST_CHECK = 1000; // ms
const FIRST_TRY = 1500; // ms
const CONNECTIONS = 6; // that browsers keep to one server
const PIECE = 0.04; // s of sound in a frame: the server hears few larger ones with less work
const UNTAKEN = 8; // frames of sound that the server has not taken yet: what comes after these goes together
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
    this.connected = false; // the server has said hello
    this.socket = null;
    this.asked = new Map(); // id of a command -> what its answer is given to
    this.number = 0;
    this.pieces = []; // sound that is not sent yet
    this.untaken = 0;
    setInterval(() => this.check(), LATEST_CHECK);
    window.addEventListener("online", () => this.check());
    document.addEventListener("visibilitychange", () => this.check());
  }

  url(path, values = {}) {
    const url = new URL(path, this.base);
    for (const [key, value] of Object.entries({ session: this.session, ...values })) url.searchParams.set(key, value);
    return url;
  }

  // ---- the connection -----------------------------------------------------------------------------------------------

  check() {
    if (!this.socket || performance.now() - this.latest < this.patience) return;
    this.uploads.abort();
    this.hangUp();
  }

  async connect() {
    for (let tries = 0; ; tries += 1) {
      const ticket = await this.draw(FIRST_TRY * Math.max(1, tries));
      if (ticket !== null && (await this.listen(ticket))) tries = 0;
      else if (ticket !== null && tries > 2) this.session = ""; // a duplicated tab: it gets a story of its own
      this.onMessage({ type: "lost" });
      await new Promise((done) => setTimeout(done, Math.min(5000, 300 * 2 ** tries)));
    }
  }

  // A ticket for the socket; null where the server does not answer, known after at most `longest` ms. Browsers keep connections
  // for later requests, which may be as dead as the socket was. Asking over all of them at once finds one that works, and gives
  // up those that do not.
  async draw(longest) {
    const request = new AbortController();
    const timer = setTimeout(() => request.abort(), longest);
    const ask = async (n) => {
      const response = await fetch(this.url("ticket", { n }), { cache: "no-store", signal: request.signal });
      return (await response.json()).ticket;
    };
    try {
      return await Promise.any(Array.from({ length: CONNECTIONS }, (_, n) => ask(n)));
    } catch {
      return null;
    } finally {
      clearTimeout(timer);
      request.abort();
    }
  }

  // Until the connection ends. Whether there was one.
  listen(ticket) {
    const url = this.url("talk", { page: this.page, received: this.received, ticket });
    url.protocol = url.protocol.replace("http", "ws");
    const socket = (this.socket = new WebSocket(url));
    socket.binaryType = "arraybuffer";
    this.uploads = new AbortController();
    this.latest = performance.now();
    let audio = null; // the message whose sound comes next
    socket.onmessage = ({ data }) => {
      this.latest = performance.now();
      if (typeof data !== "string") return this.take(audio, data);
      const message = JSON.parse(data);
      if (message.type === "audio") audio = message;
      else this.take(message);
    };
    return new Promise((done) => {
      this.hangUp = socket.onclose = () => {
        const listened = this.connected;
        socket.onmessage = socket.onclose = null; // it may be long before a dead one is closed
        socket.close();
        this.socket = null;
        this.connected = false;
        for (const answer of this.asked.values()) answer({ problem: BROKEN, lost: true });
        this.asked.clear();
        this.pieces = [];
        this.untaken = 0;
        done(listened);
      };
    });
  }

  take(message, sound) {
    if (message.type === "beat") return;
    if (message.type === "taken") {
      this.untaken -= 1;
      return;
    }
    if (message.type === "answer") {
      this.asked.get(message.id)?.(message);
      this.asked.delete(message.id);
      return;
    }
    if (message.type === "hello") {
      this.session = message.session;
      keep("session", "tresse-session", this.session);
      if (!message.resumed) this.received = 0;
      this.connected = true;
    } else this.received += 1;
    this.onMessage(message, sound);
  }

  // ---- what the page says -------------------------------------------------------------------------------------------

  // The answer: its `problem` is null where the server has done it; `lost` where that is not known.
  ask(name, values = {}) {
    if (!this.connected) return Promise.resolve({ problem: AWAY, lost: true });
    this.send();
    this.number += 1;
    this.socket.send(JSON.stringify({ id: this.number, do: name, values }));
    return new Promise((done) => this.asked.set(this.number, done));
  }

  // Whether it was done; where not, onProblem has been told.
  async act(name, values) {
    const { problem } = await this.ask(name, values);
    if (problem) this.onProblem(problem);
    return !problem;
  }

  // Settings that are lost are sent again when there is a connection.
  async set(values) {
    const { problem, lost } = await this.ask("settings", values);
    if (problem && !lost) this.onProblem(problem);
  }

  // A file goes by itself, whatever else is said meanwhile.
  async upload(file) {
    if (!this.connected) {
      this.onProblem(AWAY);
      return false;
    }
    const { signal } = this.uploads;
    try {
      const response = await fetch(this.url("upload", { name: file.name }), { method: "POST", body: file, signal });
      if (response.ok) return true;
      this.onProblem((await response.json()).problem);
    } catch {
      this.onProblem(signal.aborted ? BROKEN : "the server does not answer: is it still running?");
    }
    return false;
  }

  // Sound of this rate follows. use: "prompt" or "check", up to the command "finish", or "free".
  open(rate, use) {
    this.pieces = [];
    this.size = PIECE * rate;
    this.act("microphone", { rate, use });
  }

  // Int16Array; lost where there is no connection.
  hear(samples) {
    this.pieces.push(samples);
    const enough = this.pieces.reduce((sum, { length }) => sum + length, 0) >= this.size;
    if (enough && this.untaken < UNTAKEN) this.send();
  }

  send() {
    const pieces = this.pieces.splice(0);
    if (!pieces.length || !this.connected) return;
    const all = new Int16Array(pieces.reduce((sum, { length }) => sum + length, 0));
    let at = 0;
    for (const piece of pieces) {
      all.set(piece, at);
      at += piece.length;
    }
    this.untaken += 1;
    this.socket.send(all);
  }
}
