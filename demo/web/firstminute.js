// What a newcomer can do before the first word: hear an example dialogue, and have the voice checked.

import { language, languageName, number, t } from "./texts.js";

const SECONDS = 5; // of a check
const KEY = "dialogue";
const NONE = 60; // dB above the noise: there is none

// How a voice was recorded, in figures.
export function figures({ level, snr, clipped }) {
  const parts = [t("voice.level", { n: number(level, 0).replace("-", "−") }), snr === null || snr >= NONE ? null : t("voice.snr", { n: number(snr, 0) })];
  if (clipped >= 0.001) parts.push(t("voice.share", { n: number(100 * clipped, 1) }));
  return parts.filter(Boolean).join(" · ");
}

export class FirstMinute {
  // page: say(text, calm), hush(), changed().
  constructor(root, props, link, player, talking, page) {
    Object.assign(this, { root, props, link, player, talking, page, checking: null, result: null, dialogue: null });
    this.$ = (selector) => root.querySelector(selector);
    this.$(".hear-dialogue").hidden = !props.examples.length;
    this.$(".hear-dialogue").addEventListener("click", () => this.hear());
    this.$(".check-voice").addEventListener("click", () => (this.checking ? this.end(this.checking) : this.check()));
  }

  // ---- an example dialogue ------------------------------------------------------------------------------------------

  get sounds() {
    return this.player.position(KEY) !== null;
  }

  async hear() {
    if (this.sounds) return this.page.hush();
    this.page.say("DialogueMade", true);
    try {
      const response = await fetch(this.link.url(`dialogue/${language}`));
      const told = await response.json();
      if (!response.ok) throw new Error(told.problem);
      this.dialogue = told.parts;
      this.show();
      await this.player.play(KEY, this.link.url(`dialogue/${language}.flac`));
      this.page.say(null);
    } catch (error) {
      this.page.say(error.message);
    }
  }

  // ---- a check of the voice -----------------------------------------------------------------------------------------

  async check() {
    const { microphone } = this.talking;
    if (this.talking.turn || !this.link.connected) return;
    this.result = null;
    this.page.hush();
    await this.talking.setFree(false);
    try {
      await microphone.open();
    } catch (error) {
      return this.page.say(error.name);
    }
    if (this.talking.turn || this.talking.free) return;
    const mine = (this.checking = { hear: (piece) => this.link.hear(piece) });
    this.link.open(microphone.rate, "check");
    microphone.record(mine.hear);
    this.page.say("VoiceSpeak", true);
    this.show();
    setTimeout(() => this.end(mine), 1000 * SECONDS);
  }

  async end(mine) {
    if (this.checking !== mine) return;
    const { microphone } = this.talking;
    const meant = microphone.onPiece === mine.hear; // nobody pressed the button meanwhile
    const { hint } = microphone.meter;
    if (meant) await microphone.stop();
    if (this.checking !== mine) return;
    this.checking = null;
    if (!meant) return this.show();
    this.page.say("VoiceThinks", true);
    this.show();
    const { problem, lost, check } = await this.link.ask("finish");
    this.page.say(lost ? problem : null);
    if (!lost) this.result = check ?? { advice: hint || "none", problem };
    this.show();
  }

  // ---- what is shown ------------------------------------------------------------------------------------------------

  get words() {
    const { result } = this;
    if (!result) return "";
    if (result.advice) return t(`voice.${result.advice}`);
    return t("voice.good", { language: result.language ? languageName(result.language) : "" }).replace(" ()", "");
  }

  show() {
    const { result, dialogue } = this;
    const button = this.$(".check-voice");
    button.textContent = t(this.checking ? "voice.end" : "voice.check");
    button.setAttribute("aria-pressed", String(Boolean(this.checking)));
    const box = this.$(".voice-result");
    box.hidden = !result;
    box.dataset.advice = result?.advice ?? "";
    box.replaceChildren(Object.assign(document.createElement("span"), { textContent: this.words }));
    if (result?.voice) box.append(Object.assign(document.createElement("span"), { className: "facts", textContent: figures(result.voice) }));
    const list = this.$(".dialogue");
    list.hidden = !dialogue;
    list.replaceChildren(
      ...(dialogue ?? []).map(({ who, language: spoken, text }) => {
        const line = document.createElement("li");
        const badge = Object.assign(document.createElement("span"), { className: "badge", textContent: languageName(spoken) });
        badge.style.setProperty("--badge", `var(--strand-${this.props.languages.indexOf(spoken) + 1})`);
        line.append(Object.assign(document.createElement("b"), { textContent: t(`dialogue.${who}`) }), badge, Object.assign(document.createElement("span"), { className: "words", textContent: text || "…", lang: spoken }));
        return line;
      }),
    );
  }
}
