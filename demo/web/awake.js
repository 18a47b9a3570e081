// The screen stays on while somebody talks or listens: a phone that locks itself would end both.

import { onReturn } from "./gestures.js";

export class Awake {
  constructor() {
    Object.assign(this, { wanted: false, lock: null });
    onReturn(() => this.ask()); // browsers let go of it whenever the page is hidden
  }

  want(wanted) {
    if (wanted === this.wanted) return;
    this.wanted = wanted;
    if (wanted) return this.ask();
    this.lock?.release().catch(() => {});
    this.lock = null;
  }

  async ask() {
    if (!this.wanted || this.asking || (this.lock && !this.lock.released) || document.hidden) return;
    this.asking = true;
    try {
      this.lock = (await navigator.wakeLock?.request("screen")) ?? null;
    } catch {
      this.lock = null; // the battery is low, or the browser has no such thing: the screen does as it always does
    }
    this.asking = false;
    if (!this.wanted) this.lock?.release().catch(() => {});
  }
}
