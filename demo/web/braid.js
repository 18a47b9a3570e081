// The braid: three strands, as wide apart as the voice is loud.

export class Braid {
  constructor(canvas, loudness) {
    Object.assign(this, { canvas, loudness, phase: 0, level: 0, last: 0 });
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTimeout(() => this.draw(), 100));
    setInterval(() => this.step(), 40);
  }

  step() {
    const target = this.loudness();
    const before = this.level;
    this.level += (target - this.level) * (target > this.level ? 0.5 : 0.15);
    if (this.level < 0.003 && before < 0.003) return;
    if (!this.still.matches) this.phase -= 0.04 + 0.08 * this.level;
    this.draw();
  }

  draw() {
    const { canvas, level, phase } = this;
    const scale = window.devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = canvas;
    if (!width) return;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    const style = getComputedStyle(canvas);
    const strands = [1, 2, 3].map((n) => style.getPropertyValue(`--strand-${n}`).trim());
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.lineCap = "round";
    const step = 3;
    const wave = 64; // px from crossing to crossing of one strand with itself
    for (let x = 0; x < width; x += step) {
      const edge = Math.sin((Math.PI * x) / width); // strands meet at both ends
      const swing = edge * (5 + level * (height / 2 - 9));
      const at = (px, n) => (2 * Math.PI * px) / wave + phase + (n * 2 * Math.PI) / 3;
      const y = (px, n) => height / 2 + swing * Math.sin(at(px, n));
      const order = [0, 1, 2].sort((a, b) => Math.cos(2 * at(x, a)) - Math.cos(2 * at(x, b)));
      for (const n of order) {
        pen.strokeStyle = strands[n];
        pen.lineWidth = 2.5 + 1.5 * edge;
        pen.beginPath();
        pen.moveTo(x, y(x, n));
        pen.lineTo(x + step, y(x + step, n));
        pen.stroke();
      }
    }
  }
}
