// The loudspeaker: pieces of sound scheduled back to back on one AudioContext at the bundle's sample rate.
//
// A voice is one sound (a reply, a prompt played again), known by a key; voices sound one after the other. How much of a
// voice has sounded is exact: the page can tell the server what was heard when somebody interrupts.

import { onGesture, onReturn, wake } from "./gestures.js";

const LEAD = 0.03; // s between the arrival of the first piece and its sound
const LEAD_AFTER_GAP = 0.15; // s, after sound ran out once: gather a little more
const FADE = 0.008; // s, time constant of the fade when silenced

export class Player {
  constructor(rate) {
    this.rate = rate;
    this.context = null;
    this.voices = new Map(); // key -> {pieces: [[context time, s, offset s]], received, replay}
    this.sources = new Set();
    this.playhead = 0;
    this.gaps = 0;
    onGesture(() => this.unlock());
    onReturn(() => this.context && wake(this.context));
  }

  // Browsers let sound start only from a gesture: every gesture makes sure that the context exists and runs.
  unlock() {
    if (!this.context) {
      this.context = new AudioContext({ sampleRate: this.rate, latencyHint: "interactive" });
      this.analyser = this.context.createAnalyser();
      this.analyser.fftSize = 1024;
      this.analyser.connect(this.context.destination);
    }
    wake(this.context);
  }

  get blocked() {
    return this.sources.size > 0 && this.context.state !== "running";
  }

  get sounding() {
    return Boolean(this.context) && this.playhead > this.context.currentTime;
  }

  voice(key) {
    if (!this.voices.has(key)) this.voices.set(key, { pieces: [], received: 0, replay: false });
    return this.voices.get(key);
  }

  // Sound (Float32Array) of a voice; returns the s from now until it sounds.
  push(key, samples, offset = 0) {
    this.unlock();
    const voice = this.voice(key);
    if (!samples.length) return 0;
    const { context } = this;
    const buffer = context.createBuffer(1, samples.length, this.rate);
    buffer.copyToChannel(samples, 0);
    if (!this.bus) {
      this.bus = context.createGain();
      this.bus.connect(this.analyser);
    }
    const source = context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.bus);
    const now = context.currentTime;
    if (this.playhead < now + 0.005) {
      const gap = voice.received > 0;
      if (gap) this.gaps += 1;
      const begin = now + (gap ? LEAD_AFTER_GAP : LEAD);
      this.playhead = Math.ceil(begin * this.rate) / this.rate; // on a sample: nothing is interpolated
    }
    const begin = this.playhead;
    source.start(begin);
    source.onended = () => this.sources.delete(source);
    this.sources.add(source);
    voice.pieces.push([begin, buffer.duration, offset + voice.received]);
    voice.received += buffer.duration;
    this.playhead += buffer.duration;
    return begin - now;
  }

  // s of a voice that have sounded, null where it does not sound now.
  position(key) {
    const voice = this.voices.get(key);
    if (!voice || !this.context) return null;
    const now = this.context.currentTime;
    const piece = voice.pieces.find(([begin, seconds]) => now >= begin && now < begin + seconds);
    return piece ? piece[2] + now - piece[0] : null;
  }

  // s of a voice that have sounded at all.
  heard(key) {
    const now = this.context?.currentTime ?? 0;
    const pieces = this.voices.get(key)?.pieces ?? [];
    return pieces.reduce((sum, [begin, seconds]) => sum + Math.max(0, Math.min(seconds, now - begin)), 0);
  }

  get current() {
    return [...this.voices.keys()].find((key) => this.position(key) !== null) ?? null;
  }

  // Fade out at once. Returns the voice that sounded and how much of it had: {key, heard, replay}; null where all was silent.
  silence() {
    const key = this.current;
    const result = key === null ? null : { key, heard: this.heard(key), replay: this.voice(key).replay };
    if (this.bus) {
      const { bus, sources, context } = this;
      const now = context.currentTime;
      bus.gain.setTargetAtTime(0, now, FADE);
      for (const source of sources) source.stop(now + 8 * FADE);
      setTimeout(() => bus.disconnect(), 200);
    }
    this.bus = null;
    this.sources = new Set();
    this.playhead = 0;
    this.voices.clear();
    return result;
  }

  // A whole sound file, from `offset` s on.
  async play(key, url, offset = 0) {
    this.unlock();
    this.silence();
    const response = await fetch(url);
    if (!response.ok) throw new Error((await response.json()).problem);
    const decoded = await this.context.decodeAudioData(await response.arrayBuffer());
    this.voice(key).replay = true;
    this.push(key, decoded.getChannelData(0).subarray(Math.round(offset * this.rate)), offset);
  }

  loudness() {
    if (!this.analyser || !this.sounding) return 0;
    const samples = new Float32Array(this.analyser.fftSize);
    this.analyser.getFloatTimeDomainData(samples);
    return Math.min(1, 4 * Math.sqrt(samples.reduce((sum, s) => sum + s * s, 0) / samples.length));
  }
}
