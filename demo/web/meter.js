// How loud somebody speaks into the microphone, and what is wrong with it while there is time to do something about it.

const PIECES = 125; // of 20 ms: what counts is the last 2.5 s
const PATIENCE = 75; // pieces before anything is said
const QUIET = 0.01; // of full scale: the loudest sample of a voice that is too quiet
const FULL = 0.99;
const CLIPPED = 20; // pieces with samples at full scale
const FLOOR = -60; // dB at the left end of the meter

export class Meter {
  constructor() {
    this.begin();
  }

  begin() {
    this.peaks = [];
    this.level = 0;
  }

  // The loudest sample of a piece, of 1.
  push(peak) {
    this.level = Math.max(peak, 0.85 * this.level);
    this.peaks.push(peak);
    if (this.peaks.length > PIECES) this.peaks.shift();
  }

  // From 0 to 1.
  get share() {
    return Math.max(0, Math.min(1, 1 - (20 * Math.log10(Math.max(this.level, 1e-9))) / FLOOR));
  }

  // "clipped", "quiet" or "".
  get hint() {
    if (this.peaks.filter((peak) => peak >= FULL).length >= CLIPPED) return "clipped";
    return this.peaks.length >= PATIENCE && Math.max(...this.peaks) < QUIET ? "quiet" : "";
  }
}
