// The microphone: 16-bit pieces of 20 ms. Asked for on first use, let go a minute after the last one.

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

export class Microphone {
  constructor() {
    this.onPiece = null; // called with Int16Array pieces while recording
    this.level = 0;
  }

  get rate() {
    return this.context.sampleRate;
  }

  // Throws an Error whose name says what is wrong: NotAllowedError, NotFoundError, NotReadableError, Insecure.
  async open() {
    clearTimeout(this.closing);
    if (this.stream?.active) return;
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
      this.level = data.samples.reduce((top, sample) => Math.max(top, Math.abs(sample)), 0) / 32768;
      this.onPiece?.(data.samples);
      if (data.last) this.flushed?.();
    };
    await this.context.resume();
  }

  record(onPiece) {
    this.onPiece = onPiece;
  }

  // Resolves when the last sample before now has been handed over.
  async stop() {
    await new Promise((done) => {
      this.flushed = done;
      this.node.port.postMessage("flush");
    });
    this.onPiece = null;
    this.level = 0;
    clearTimeout(this.closing);
    this.closing = setTimeout(() => this.close(), KEEP_OPEN);
  }

  close() {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.context?.close();
    this.stream = null;
  }
}
