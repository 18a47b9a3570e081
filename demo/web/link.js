// The line to the server: one long answer brings messages, short requests carry what the page says.
//
// A message is 4 bytes length of JSON, 4 bytes length of sound, both little-endian, then the two.

const hex = (count) => Array.from(crypto.getRandomValues(new Uint8Array(count)), (n) => n.toString(16).padStart(2, "0")).join("");

export class Link {
  constructor(onMessage, onProblem) {
    this.base = new URL("tresse/", document.baseURI);
    this.onMessage = onMessage;
    this.onProblem = onProblem;
    this.page = hex(8);
    this.session = sessionStorage.getItem("tresse-session") ?? ""; // the server gives one in its hello
    this.pieces = []; // sound that waits for the request before it
    this.sending = null;
  }

  url(path, values = {}) {
    const url = new URL(path, this.base);
    for (const [key, value] of Object.entries({ session: this.session, ...values })) url.searchParams.set(key, value);
    return url;
  }

  async connect() {
    for (let tries = 0; ; tries += 1) {
      try {
        const response = await fetch(this.url("listen", { page: this.page }), { cache: "no-store" });
        if (response.ok) {
          tries = 0;
          await this.read(response.body.getReader());
        } else if (tries > 1) {
          this.session = ""; // a duplicated tab: it gets a story of its own
        }
      } catch {
        // the server is away: try again below
      }
      this.onMessage({ type: "lost" });
      await new Promise((done) => setTimeout(done, Math.min(5000, 300 * 2 ** tries)));
    }
  }

  async read(reader) {
    let bytes = new Uint8Array(0);
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const joined = new Uint8Array(bytes.length + value.length);
      joined.set(bytes);
      joined.set(value, bytes.length);
      bytes = joined;
      while (bytes.length >= 8) {
        const view = new DataView(bytes.buffer, bytes.byteOffset);
        const [text, sound] = [view.getUint32(0, true), view.getUint32(4, true)];
        if (bytes.length < 8 + text + sound) break;
        if (text) {
          const message = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + text)));
          if (message.type === "hello") {
            this.session = message.session;
            sessionStorage.setItem("tresse-session", this.session);
          }
          this.onMessage(message, bytes.slice(8 + text, 8 + text + sound));
        }
        bytes = bytes.slice(8 + text + sound);
      }
    }
  }

  async post(url, body) {
    try {
      const response = await fetch(url, { method: "POST", body });
      if (response.ok) return true;
      this.onProblem((await response.json()).problem);
    } catch {
      this.onProblem("the server does not answer: is it still running?");
    }
    return false;
  }

  act(action, values = {}) {
    return this.post(this.url(`do/${action}`), JSON.stringify(values));
  }

  example(number) {
    return this.post(this.url(`example/${number}`));
  }

  upload(file) {
    return this.post(this.url("upload", { name: file.name }), file);
  }

  // Sound of the microphone, int16: pieces that come while a request is under way go together in the next one.
  hear(samples, flags) {
    this.pieces.push({ samples, flags });
    this.sending ??= this.drain().finally(() => (this.sending = null));
    return this.sending;
  }

  async drain() {
    while (this.pieces.length) {
      const ends = this.pieces.findIndex(({ flags }) => flags.last);
      const now = this.pieces.splice(0, ends < 0 ? this.pieces.length : ends + 1);
      const flags = Object.assign({}, ...now.map((piece) => piece.flags));
      const all = new Int16Array(now.reduce((sum, { samples }) => sum + samples.length, 0));
      let at = 0;
      for (const { samples } of now) {
        all.set(samples, at);
        at += samples.length;
      }
      await this.post(this.url("hear", flags), all);
    }
  }
}
