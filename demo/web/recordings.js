// The page of past recordings: every turn that the server kept of this page, newest first, with a search by language.

import { languageName, seconds, t } from "./texts.js";

export function recordingsPage(panel, props, link, player) {
  let language = "";

  return async function show() {
    const response = await fetch(link.url("recordings", language ? { language } : {}), { cache: "no-store" });
    const turns = response.ok ? await response.json() : [];
    const select = document.createElement("select");
    select.append(new Option(t("recordings.all"), ""), ...props.languages.map((code) => new Option(languageName(code), code)));
    select.value = language;
    select.addEventListener("change", () => {
      language = select.value;
      show();
    });
    const label = document.createElement("label");
    label.append(`${t("recordings.language")} `, select);
    const list = document.createElement("ul");
    for (const turn of turns) {
      const item = document.createElement("li");
      const [, day, time] = turn.name.match(/^(\d{8})-(\d{6})/);
      const date = new Date(`${day.slice(0, 4)}-${day.slice(4, 6)}-${day.slice(6)}T${time.slice(0, 2)}:${time.slice(2, 4)}:${time.slice(4)}`);
      const head = document.createElement("p");
      head.className = "soft";
      head.textContent = `${date.toLocaleString(document.documentElement.lang)} · ${t("recordings.turn", { n: turn.turn, story: turn.conversation })}`;
      item.append(head);
      for (const { file, languages, seconds: length, text } of turn.parts) {
        const row = document.createElement("p");
        row.className = "recording-part";
        const url = link.url(`recordings/${turn.name}/${file}`);
        const play = Object.assign(document.createElement("button"), { type: "button", className: "quiet play", textContent: t("play") });
        play.addEventListener("click", () => player.play(`recordings/${turn.name}/${file}`, url));
        const download = Object.assign(document.createElement("a"), { className: "quiet", href: url, download: `${turn.name}-${file}`, textContent: t("download") });
        const who = t(file === "prompt.wav" ? "you" : "model");
        row.append(play, download, ` ${who} · ${languages.map(languageName).join(" / ")} · ${seconds(length)} ${text ? `· ${text}` : ""}`);
        item.append(row);
      }
      list.append(item);
    }
    const title = Object.assign(document.createElement("h2"), { textContent: t("tab.recordings") });
    const none = Object.assign(document.createElement("p"), { className: "soft", textContent: turns.length ? "" : t("recordings.none") });
    panel.replaceChildren(title, label, list, none);
  };
}
