// The unit strip: every unit a coloured stretch of a time line, a band below it in the colour of the sentence's language,
// a gap where a sentence begins, and a line where the sound is.

const BAND = 5; // px
const SHORTEST = 6; // s that the strip shows at least

export class Strip {
  constructor(canvas, frameRate, languages) {
    Object.assign(this, { canvas, frameRate, languages, units: [], position: null });
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
    if (this.position !== null) {
      pen.fillStyle = style.getPropertyValue("--ink").trim();
      pen.fillRect(this.position * this.frameRate * perFrame - 1, 0, 2, height);
    }
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
