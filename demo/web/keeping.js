// The story as a thing to keep: its title, the links that download it, and where the device can share files, a button for that.

import { keep, recallObject } from "./stored.js";
import { onChange, t } from "./texts.js";

const STORED = "tresse-title";

export class Keeping {
  // onProblem(text): it could not be shared.
  constructor(root, props, link, onProblem) {
    Object.assign(this, { root, props, link, onProblem });
    this.own = ""; // what its transcripts give
    this.stored = recallObject("session", STORED); // {session, title}
    this.field = root.querySelector(".story-title");
    this.field.addEventListener("input", () => this.write(this.field.value.trim() === this.own ? "" : this.field.value));
    this.field.addEventListener("change", () => this.show());
    this.field.addEventListener("keydown", ({ key }) => key === "Enter" && this.field.blur());
    const button = root.querySelector(".share");
    button.addEventListener("click", () => this.share());
    button.hidden = !navigator.canShare?.({ files: [new File(["-"], "story.html", { type: "text/html" })] });
    onChange(() => this.show());
  }

  // What somebody wrote, for this session alone; "" where nobody did.
  get written() {
    const { session, title } = this.stored;
    return session === this.link.session && typeof title === "string" ? title : "";
  }

  write(title) {
    this.stored = { session: this.link.session, title: title.trim() };
    keep("session", STORED, JSON.stringify(this.stored));
    this.offer();
  }

  // The title that its transcripts give, null where there are none.
  tell(title) {
    this.own = title ?? "";
    this.show();
  }

  url(form) {
    return this.link.url("story", { form, interface: document.documentElement.lang, title: this.written });
  }

  show() {
    this.field.placeholder = t("kept.untitled");
    const title = this.written || this.own;
    if (document.activeElement !== this.field) this.field.value = title;
    this.offer();
  }

  offer() {
    for (const a of this.root.querySelectorAll(".downloads a")) {
      a.href = this.url(a.dataset.form);
      a.hidden = ["srt", "vtt"].includes(a.dataset.form) && !this.props.transcripts;
    }
  }

  async share() {
    try {
      const response = await fetch(this.url("html"));
      const name = /filename="(.*)"/.exec(response.headers.get("Content-Disposition"))[1];
      const file = new File([await response.blob()], name, { type: "text/html" });
      await navigator.share({ files: [file], title: this.written || this.own || t("kept.untitled") });
    } catch (error) {
      if (error.name !== "AbortError") this.onProblem("ShareFailed"); // they changed their mind
    }
  }
}
