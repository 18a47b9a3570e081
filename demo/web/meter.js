// How loud somebody speaks into the microphone, and what is wrong with it while there is time to do something about it.

const PIECES = 125; // of 20 ms: what counts is the last 2.5 s
const PATIENCE = 75; // pieces before anything is said
const QUIET = 0.01; // of full scale: the loudest sample of a voice that is too quiet
const FULL = 0.99;
const CLIPPED = 20; // pieces with samples at full scale
const FLOOR = -60; // dB at the left end of the meter
// The noise is how loud the quietest pieces of the last 5 s are. These two are those of slm/voice_check.py.
const NOISE_PIECES = 250;
const QUIETEST = 0.1; // share of the pieces of which the loudest is as loud as the noise
const NOISY = 16; // dB between voice and noise
const LEAST_LEVEL = -54; // dB: of a voice that is quieter nothing is said about the noise
const SPOKEN = 3; // dB above the noise from which on somebody speaks

const FAINT = 1e-10; // the least power that is told from none

const decibels = (power) => 10 * Math.log10(power);

export class Meter {
  constructor() {
    this.begin();
  }

  begin() {
    this.peaks = [];
    this.powers = [];
    this.level = 0;
  }

  // Of a piece: its loudest sample, of 1, and its mean square.
  push(peak, power) {
    this.level = Math.max(peak, 0.85 * this.level);
    this.peaks.push(peak);
    if (this.peaks.length > PIECES) this.peaks.shift();
    this.powers.push(power);
    if (this.powers.length > NOISE_PIECES) this.powers.shift();
  }

  // From 0 to 1.
  get share() {
    return Math.max(0, Math.min(1, 1 - (20 * Math.log10(Math.max(this.level, 1e-9))) / FLOOR));
  }

  // Whether somebody speaks, and in much noise. Pieces count as speech that lie nearer, in dB, to the loudest than to the noise.
  get noisy() {
    const sorted = this.powers.map((power) => Math.max(power, FAINT)).sort((a, b) => a - b);
    const noise = sorted[Math.floor(QUIETEST * sorted.length)];
    const spoken = sorted.filter((power) => power * power >= noise * sorted.at(-1));
    const voice = spoken.reduce((sum, power) => sum + power, 0) / spoken.length;
    const snr = decibels(Math.max(FAINT, voice - noise) / noise);
    return decibels(voice) >= LEAST_LEVEL && snr >= SPOKEN && snr < NOISY;
  }

  // "clipped", "quiet", "noisy" or "".
  get hint() {
    if (this.peaks.filter((peak) => peak >= FULL).length >= CLIPPED) return "clipped";
    if (this.peaks.length < PATIENCE) return "";
    if (Math.max(...this.peaks) < QUIET) return "quiet";
    return this.noisy ? "noisy" : "";
  }
}
