// The unit strip: every unit a coloured stretch of a time line, a band below it in the colour of the sentence's language,
// a gap where a sentence begins, and a line where the sound is.

const BAND = 5; // px
const SHORTEST = 6; // s that the strip shows at least
const STEP = 0.5; // s that an arrow key goes

export class Strip {
  constructor(canvas, frameRate, languages) {
    Object.assign(this, { canvas, frameRate, languages, units: [], position: null, cursor: null });
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  // ids, lengths in frames, languages: arrays of equal length; a language is null in a pause, "" while it is not known; starts: where sentences begin.
  add(ids, lengths, languages, starts) {
    ids.forEach((id, k) => this.units.push([id, lengths[k], languages[k], starts[k]]));
    this.draw();
  }

  get seconds() {
    return this.units.reduce((sum, unit) => sum + unit[1], 0) / this.frameRate;
  }

  at(position) {
    if (position === this.position) return;
    this.position = position;
    this.draw();
  }

  draw() {
    const { canvas } = this;
    const scale = window.devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = canvas;
    if (!width) return;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    const style = getComputedStyle(canvas);
    const perFrame = width / (Math.max(SHORTEST, this.seconds) * this.frameRate);
    const light = style.getPropertyValue("--strip-light").trim() || "58%";
    let x = 0;
    for (const [id, frames, language, start] of this.units) {
      const wide = frames * perFrame;
      const left = start && x > 0 ? x + 1.5 : x;
      const right = x + wide + 0.4; // a little over the next one: no seams
      pen.fillStyle = language === null ? "transparent" : `hsl(${(id * 137.508) % 360} 45% ${light})`;
      pen.fillRect(left, 0, right - left, height - BAND - 2);
      const strand = this.languages.indexOf(language) + 1;
      pen.fillStyle = strand ? style.getPropertyValue(`--strand-${strand}`).trim() : "transparent";
      pen.fillRect(left, height - BAND, right - left, BAND);
      x += wide;
    }
    pen.fillStyle = style.getPropertyValue("--ink").trim();
    for (const at of [this.position, this.cursor].filter((one) => one !== null)) {
      pen.fillRect(at * this.frameRate * perFrame - 1, 0, 2, height);
    }
  }

  // Let people choose a point to listen from: with a pointer, or with the arrow keys and Enter. listen(s): called with it.
  seek(listen, words) {
    const { canvas } = this;
    const values = { role: "slider", tabindex: 0, "aria-valuemin": 0, "aria-valuemax": 0, "aria-valuenow": 0 };
    for (const [name, value] of Object.entries(values)) canvas.setAttribute(name, value);
    const go = (seconds) => {
      this.cursor = Math.max(0, Math.min(seconds, this.seconds));
      canvas.setAttribute("aria-valuemax", this.seconds.toFixed(1));
      canvas.setAttribute("aria-valuenow", this.cursor.toFixed(1));
      canvas.setAttribute("aria-valuetext", words(this.cursor));
      this.draw();
    };
    canvas.addEventListener("focus", () => canvas.matches(":focus-visible") && go(this.cursor ?? 0));
    canvas.addEventListener("blur", () => {
      this.cursor = null;
      this.draw();
    });
    canvas.addEventListener("click", ({ detail, offsetX }) => {
      const pointed = (offsetX / canvas.clientWidth) * Math.max(SHORTEST, this.seconds);
      listen(detail ? Math.min(pointed, this.seconds) : (this.cursor ?? 0));
    });
    canvas.addEventListener("keydown", (event) => {
      const at = this.cursor ?? 0;
      const to = { ArrowLeft: at - STEP, ArrowDown: at - STEP, ArrowRight: at + STEP, ArrowUp: at + STEP, Home: 0, End: this.seconds }[event.key];
      if (to !== undefined) go(to);
      else if (event.key === "Enter" || event.key === " ") listen(at);
      else return;
      event.preventDefault();
    });
  }
}

// Units as the server describes a reply -> arguments of `add`. `before`: number of the sentence that came last.
export function ofReply({ ids, lengths, sentence, spoken }, before = -1) {
  const languages = sentence.map((number) => (number < 0 ? null : spoken[number]));
  let last = before;
  const starts = sentence.map((number) => {
    const start = number > last;
    last = Math.max(last, number);
    return start;
  });
  return { arguments: [ids, lengths, languages, starts], last };
}
