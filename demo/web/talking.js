// Who speaks: push to talk (by pointer, key or click), hands-free, and what becomes of both when the microphone or the line
// fails.

import { Microphone } from "./microphone.js";

const TAP = 350; // ms: a shorter press goes on listening until the next one
const SAME_PRESS = 400; // ms after letting go within which the click of that press comes
const REOPENED = 5000; // ms within which a microphone that was opened anew must not fail again

export class Talking {
  // page: connected(), talks() (its panel is the open one), hush(), changed(), say(text, calm), prompt(send).
  constructor(root, link, page) {
    Object.assign(this, { root, link, page, free: false, wasFree: false, reopened: -Infinity });
    this.turn = null; // {since, toggled, asking, wanted} from the press of the button until its recording ends
    this.microphone = new Microphone((name) => this.fail(name));
    this.button = root.querySelector(".press");
    root.querySelector(".free").addEventListener("click", () => this.setFree(!this.free && !this.wasFree));
    this.listen();
  }

  // asking: the microphone is being opened, and the browser may be asking whether it may be.
  get state() {
    if (!this.turn) return null;
    return this.turn.asking ? "asking" : "recording";
  }

  get level() {
    return this.turn || this.free ? this.microphone.level : 0;
  }

  // ---- push to talk -------------------------------------------------------------------------------------------------

  async begin(toggled) {
    if (this.turn || !this.page.connected()) return;
    const mine = (this.turn = { since: performance.now(), toggled, asking: true, wanted: true });
    this.page.hush();
    const stopped = this.setFree(false);
    this.page.say(null);
    try {
      await stopped;
      await this.ended; // the turn before
      await this.microphone.open();
    } catch (error) {
      if (this.turn !== mine) return;
      this.turn = null;
      return this.page.say(error.name);
    }
    if (this.turn !== mine) return this.turn || this.free || this.microphone.rest();
    mine.asking = false;
    const { connected } = this.link;
    if (mine.wanted && connected) return this.record("prompt");
    this.turn = null;
    this.microphone.rest();
    this.page.say(connected ? "MicrophoneReady" : "LineLost", connected);
  }

  async end() {
    const mine = this.turn;
    if (!mine) return;
    if (mine.asking) {
      mine.wanted = false; // let go before there was a microphone: nothing was said
      return;
    }
    this.turn = null;
    await this.page.prompt(async () => {
      await (this.ended = this.microphone.stop());
      return this.link.act("finish");
    });
  }

  // What was being said is lost.
  drop() {
    this.turn = null;
    this.microphone.stop();
    this.page.changed();
  }

  press(toggled = false) {
    const mine = this.turn;
    if (!mine) return this.begin(toggled);
    if (!mine.toggled) return Object.assign(mine, { since: performance.now(), toggled, wanted: true });
    return mine.asking ? this.drop() : this.end();
  }

  release() {
    const mine = this.turn;
    if (!mine || mine.toggled) return;
    if (performance.now() - mine.since >= TAP) return this.end();
    mine.toggled = true;
    this.page.changed();
  }

  record(use) {
    this.link.open(this.microphone.rate, use);
    this.microphone.record((samples) => this.link.hear(samples));
    this.page.changed();
  }

  // ---- hands-free ---------------------------------------------------------------------------------------------------

  async setFree(on) {
    if (!on && this.page.connected()) this.wasFree = false;
    if (on === Boolean(this.free)) return;
    if (on && !this.page.connected()) return;
    if (on) await this.end();
    const mine = (this.free = on && {});
    this.root.querySelector(".free").setAttribute("aria-pressed", String(on));
    if (!on) {
      const { context } = this.microphone;
      await this.microphone.stop();
      if (context && this.page.connected()) this.link.ask("finish");
      return this.page.changed();
    }
    this.page.say(null);
    await this.hearFree(mine);
  }

  async hearFree(mine) {
    try {
      await this.microphone.open();
    } catch (error) {
      if (this.free === mine) this.setFree(false).then(() => this.page.say(error.name));
      return;
    }
    if (this.free === mine) this.record("free");
    else if (!this.free && !this.turn) this.microphone.rest();
  }

  // ---- when something fails -----------------------------------------------------------------------------------------

  // The microphone does. Hands-free opens it anew, once; who holds the button is told.
  async fail(name) {
    this.microphone.close();
    const again = performance.now() - this.reopened < REOPENED;
    if (this.free && !again) {
      this.reopened = performance.now();
      return this.hearFree(this.free);
    }
    this.turn = null;
    await this.setFree(false);
    this.page.say(name);
  }

  // The server does not hear what is said any more, and has said why.
  unheard() {
    if (this.state === "recording") this.drop();
  }

  // The line does. Hands-free goes on when it is back.
  lost() {
    this.wasFree ||= Boolean(this.free); // the line may fail again and again
    const speaking = this.state === "recording";
    this.setFree(false);
    if (speaking) {
      this.drop();
      this.page.say("LineLost");
    }
  }

  back() {
    const { wasFree } = this;
    this.wasFree = false;
    if (wasFree) this.setFree(true);
  }

  // ---- pointers, keys and clicks ------------------------------------------------------------------------------------

  listen() {
    const { button } = this;
    let down = false;
    let released = -Infinity;
    const release = () => {
      down = false;
      released = performance.now();
      this.release();
    };
    button.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      down = true;
      button.setPointerCapture(event.pointerId);
      this.press();
    });
    button.addEventListener("pointerup", release);
    button.addEventListener("pointercancel", release);
    button.addEventListener("contextmenu", (event) => event.preventDefault());
    // A click of its own: of a screen reader, a switch, a voice. It cannot hold, so it listens until the next one.
    button.addEventListener("click", (event) => {
      const ofPointer = event.detail > 0 && (down || performance.now() - released < SAME_PRESS);
      if (!ofPointer) this.press(true);
    });
    const typing = (target) => target.closest?.("input, select, textarea, summary, a, button:not(.press), canvas");
    const talks = ({ key, target }) => (key === " " || (key === "Enter" && document.activeElement === button)) && !typing(target);
    document.addEventListener("keydown", (event) => {
      if (!this.page.talks()) return;
      if (event.key === "Escape") this.page.hush();
      if (!talks(event) || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      if (!event.repeat) this.press();
    });
    document.addEventListener("keyup", (event) => {
      if (!talks(event) || !this.page.talks()) return;
      event.preventDefault(); // or the browser clicks
      this.release();
    });
    window.addEventListener("blur", () => this.turn && !this.turn.toggled && this.end());
  }
}
