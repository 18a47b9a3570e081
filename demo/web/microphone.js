// The microphone: 16-bit pieces of 20 ms. Asked for on first use, let go a minute after the last one.
//
// It may end (a headset is unplugged), be muted, or be interrupted (a call, another tab, a computer that slept). While it
// records it is watched; before it records, one that no longer works is opened anew.

import { onGesture, onReturn, wake } from "./gestures.js";
import { Meter } from "./meter.js";

const WORKLET = `
registerProcessor("pieces", class extends AudioWorkletProcessor {
  constructor() {
    super();
    this.piece = new Int16Array(Math.round(sampleRate / 50));
    this.filled = 0;
    this.port.onmessage = () => this.send(true);
  }
  send(last) {
    this.port.postMessage({ samples: this.piece.slice(0, this.filled), last });
    this.filled = 0;
  }
  process([[channel]]) {
    for (const sample of channel ?? []) {
      this.piece[this.filled++] = Math.max(-1, Math.min(1, sample)) * 32767;
      if (this.filled === this.piece.length) this.send(false);
    }
    return true;
  }
});`;
const KEEP_OPEN = 60_000; // ms
const WATCH = 200; // ms
const PATIENCE = 1000; // ms that a microphone may be muted, interrupted or without samples while it records
const FLUSH = 300; // ms

export class Microphone {
  // onTrouble(name): what is recorded has a hole. MicrophoneEnded, MicrophoneMuted or MicrophoneInterrupted.
  constructor(onTrouble) {
    this.onTrouble = onTrouble;
    this.onPiece = null; // called with Int16Array pieces while recording
    this.level = 0;
    this.latest = 0; // performance.now() of the latest piece
    this.well = 0; // performance.now() when there was no trouble
    setInterval(() => this.watch(), WATCH);
    this.meter = new Meter();
    onGesture(() => this.context && wake(this.context));
    onReturn(() => this.context && wake(this.context));
  }

  get rate() {
    return this.context.sampleRate;
  }

  // What is wrong with the open microphone; null where nothing is.
  get trouble() {
    const track = this.stream?.getAudioTracks()[0];
    if (!track || track.readyState === "ended") return "MicrophoneEnded";
    if (track.muted) return "MicrophoneMuted";
    const hears = this.context.state === "running" && performance.now() - this.latest < PATIENCE;
    return hears ? null : "MicrophoneInterrupted";
  }

  // Throws an Error whose name says what is wrong: NotAllowedError, NotFoundError, NotReadableError, Insecure,
  // MicrophoneInterrupted.
  open() {
    this.opening ??= this.ready().finally(() => (this.opening = null));
    return this.opening;
  }

  async ready() {
    clearTimeout(this.closing);
    if (this.stream && (await wake(this.context)) && !this.trouble) return;
    this.close();
    if (!navigator.mediaDevices?.getUserMedia) throw Object.assign(new Error(), { name: "Insecure" });
    this.stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: true, channelCount: 1 } });
    try {
      this.context = new AudioContext({ sampleRate: 16000 });
      this.source = this.context.createMediaStreamSource(this.stream);
    } catch {
      this.context = new AudioContext(); // a browser that does not resample: the server does
      this.source = this.context.createMediaStreamSource(this.stream);
    }
    const url = URL.createObjectURL(new Blob([WORKLET], { type: "text/javascript" }));
    await this.context.audioWorklet.addModule(url);
    URL.revokeObjectURL(url);
    this.node = new AudioWorkletNode(this.context, "pieces", { numberOfOutputs: 0 });
    this.source.connect(this.node);
    this.node.port.onmessage = ({ data }) => {
      this.latest = performance.now();
      this.level = data.samples.reduce((top, sample) => Math.max(top, Math.abs(sample)), 0) / 32768;
      const power = data.samples.reduce((sum, sample) => sum + (sample / 32768) ** 2, 0) / Math.max(1, data.samples.length);
      this.meter.push(this.level, power);
      this.onPiece?.(data.samples);
      if (data.last) this.flushed?.();
    };
    if (!(await wake(this.context, PATIENCE))) throw Object.assign(new Error(), { name: "MicrophoneInterrupted" });
    this.latest = performance.now();
  }

  record(onPiece) {
    clearTimeout(this.closing);
    this.onPiece = onPiece;
    this.meter.begin();
    this.well = performance.now();
  }

  // A page that nobody sees, on a phone that is locked, may have no microphone and cannot open one: it waits.
  watch() {
    const trouble = this.onPiece && !document.hidden && this.trouble;
    if (!trouble) this.well = performance.now();
    else if (trouble === "MicrophoneEnded" || performance.now() - this.well > PATIENCE) this.onTrouble(trouble);
    else wake(this.context);
  }

  // Resolves when the last sample before now has been handed over, or cannot be.
  async stop() {
    const mine = this.onPiece;
    if (mine) {
      const late = new Promise((done) => setTimeout(done, FLUSH));
      const flushed = new Promise((done) => (this.flushed = done));
      this.node.port.postMessage("flush");
      await Promise.race([flushed, late]);
    }
    if (this.onPiece === mine) this.rest();
  }

  // Nothing is recorded: let the microphone go after a while.
  rest() {
    this.onPiece = null;
    this.level = 0;
    clearTimeout(this.closing);
    this.closing = setTimeout(() => this.close(), KEEP_OPEN);
  }

  close() {
    clearTimeout(this.closing);
    this.onPiece = null;
    this.level = 0;
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    if (this.context?.state !== "closed") this.context?.close();
    this.stream = null;
  }
}
