// The turns of the story as cards: what was said, the replies, and for each its language, words, units and sound.

import { figures } from "./firstminute.js";
import { Strip, ofReply } from "./strip.js";
import { languageName, number, seconds, t } from "./texts.js";

const part = (tag, className, key = "") => {
  const element = Object.assign(document.createElement(tag), { className });
  if (key) Object.assign(element, { textContent: t(key) }).dataset.t = key;
  return element;
};

export class Story {
  // player, link: see there. onChoose(turn, part): somebody wants to go on from another reply.
  constructor(list, props, player, link, onChoose) {
    Object.assign(this, { list, props, player, link, onChoose, cards: new Map(), turns: [] });
    setInterval(() => this.move(), 40);
  }

  get empty() {
    return this.turns.length === 0;
  }

  key(turn, part) {
    return `${turn}/${part}`;
  }

  // Everything anew, as the server holds it.
  show(turns) {
    this.list.replaceChildren();
    this.cards.clear();
    this.turns = [];
    for (const turn of turns) {
      this.heard(turn);
      this.transcript(turn.turn, "prompt", turn.text);
      turn.replies.forEach((reply, k) => {
        this.speaking({ turn: turn.turn, part: k, languages: reply.languages });
        this.units({ turn: turn.turn, part: k, ...reply });
        this.done({ turn: turn.turn, part: k, ...reply });
        this.transcript(turn.turn, k, reply.text);
      });
      if (turn.both) this.choose(turn.turn, turn.chosen);
    }
  }

  heard(message) {
    const item = part("li", "turn");
    item.dataset.turn = message.turn;
    const replies = part("div", "replies");
    this.turns[message.turn] = { item, replies, both: 0, understood: message.in_domain };
    const card = this.card(message.turn, "prompt", message.in_domain ? [message.language] : []);
    for (const { language, ids, lengths } of message.sentences) {
      card.strip.add(ids, lengths, ids.map(() => language), ids.map((_, k) => k === 0));
    }
    const until = this.turns.slice(0, message.turn + 1);
    const share = { n: until.filter((turn) => turn.understood).length, m: until.length };
    Object.assign(card.message, { prompt: message.seconds, voice: message.voice, share });
    this.showFacts(card);
    if (!message.in_domain) replies.append(this.strange(message.advice));
    else if (message.advice) card.words.after(part("p", "advice", `voice.${message.advice}`));
    item.append(card.element, replies);
    this.list.append(item);
    card.strip.draw();
    item.scrollIntoView({ block: "nearest" });
  }

  // What is said beside replies to a prompt that was not understood: that they do not follow from it, and what would help.
  strange(advice) {
    const note = part("p", "out-of-domain");
    note.append(part("b", "", "out_of_domain"), " ", part("span", "", `voice.${advice || "unfamiliar"}`));
    if (this.props.examples.length) note.append(" ", part("span", "", "out_of_domain.examples"));
    return note;
  }

  speaking({ turn, part: k, languages }) {
    const { replies } = this.turns[turn];
    const card = this.card(turn, k, languages);
    replies.append(card.element);
    if (k === 1) replies.classList.add("both");
    card.strip.draw();
  }

  units(message) {
    const card = this.cards.get(this.key(message.turn, message.part));
    if (!card) return;
    const units = ofReply(message, card.last);
    card.last = units.last;
    card.strip.add(...units.arguments);
  }

  done(message) {
    const card = this.cards.get(this.key(message.turn, message.part));
    if (!card) return;
    card.message = { ...card.message, ...message };
    this.showFacts(card);
    card.play.disabled = false;
    card.download.hidden = false;
    if (Number(message.part) > 0) this.choose(message.turn, this.turns[message.turn].chosen ?? 0);
  }

  firstSound(key, ms) {
    const card = this.cards.get(key);
    if (!card) return;
    card.firstSound = Math.round(ms);
    card.element.dataset.firstSoundMs = card.firstSound;
    this.showFacts(card);
  }

  showFacts(card) {
    const { message, firstSound } = card;
    if (message.prompt) {
      const share = message.share.m > 1 ? t("voice.understood", message.share) : "";
      card.facts.textContent = [seconds(message.prompt), message.voice && figures(message.voice), share].filter(Boolean).join(" · ");
    }
    if (!message.seconds) return;
    const facts = [
      seconds(message.seconds),
      firstSound === undefined ? null : t("fact.first", { ms: firstSound }),
      t("fact.rtf", { x: number(message.real_time_factor, 2) }),
      t("fact.seed", { seed: message.seed }),
      message.stopped ? t("fact.stopped") : null,
    ];
    card.facts.textContent = facts.filter(Boolean).join(" · ");
  }

  transcript(turn, k, text) {
    const card = this.cards.get(this.key(turn, k));
    if (!card || !text) return;
    card.words.textContent = text;
    card.words.hidden = false;
  }

  // One reply of several is the one that the story goes on from.
  choose(turn, chosen) {
    this.turns[turn].chosen = chosen;
    for (const [key, card] of this.cards) {
      if (!key.startsWith(`${turn}/`) || key.endsWith("/prompt")) continue;
      const k = Number(key.split("/")[1]);
      card.choose.hidden = turn !== this.turns.length - 1;
      card.choose.setAttribute("aria-pressed", String(k === chosen));
      card.choose.dataset.t = k === chosen ? "chosen" : "choose";
      card.choose.textContent = t(card.choose.dataset.t);
      card.element.classList.toggle("left", k !== chosen);
    }
  }

  card(turn, k, languages) {
    const key = this.key(turn, k);
    const element = part("article", k === "prompt" ? "said" : "reply");
    const head = part("div", "head");
    head.append(part("span", "who", k === "prompt" ? "you" : "model"));
    for (const code of this.props.tags ? languages : []) {
      const badge = part("span", "badge");
      badge.textContent = languageName(code);
      badge.dataset.language = code;
      badge.style.setProperty("--badge", `var(--strand-${this.props.languages.indexOf(code) + 1})`);
      head.append(badge);
    }
    const play = part("button", "quiet play", "play");
    play.type = "button";
    play.disabled = k !== "prompt";
    const url = () => this.link.url("sound", { turn, part: k });
    const sound = (offset = 0) => this.player.play(key, url(), offset).catch((error) => this.link.onProblem(error.message));
    play.addEventListener("click", () => sound());
    const download = part("a", "quiet download", "download");
    download.href = url();
    download.download = "";
    download.hidden = k !== "prompt";
    const choose = part("button", "quiet choose");
    choose.type = "button";
    choose.hidden = true;
    choose.addEventListener("click", () => this.onChoose(turn, k));
    const canvas = part("canvas", "strip");
    canvas.dataset.tLabel = "strip";
    canvas.setAttribute("aria-label", t("strip"));
    const words = part("p", "words");
    words.hidden = true;
    const facts = part("p", "facts");
    const buttons = part("div", "buttons");
    buttons.append(play, download, choose);
    element.append(head, words, canvas, facts, buttons);
    const strip = new Strip(canvas, this.props.frame_rate, this.props.languages);
    strip.seek((from) => play.disabled || sound(from), (at) => seconds(at));
    const card = { element, strip, words, facts, play, download, choose, last: -1, message: { languages } };
    this.cards.set(key, card);
    return card;
  }

  // The figures again, in the language of the page.
  relabel() {
    for (const card of this.cards.values()) this.showFacts(card);
  }

  move() {
    for (const [key, card] of this.cards) card.strip.at(this.player.position(key));
  }
}
