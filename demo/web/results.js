// "How well does it do": the figures that came with the bundle, its plots, and benchmark items to hear.

import { languageName, number, t } from "./texts.js";

const make = (tag, text = "", className = "") => Object.assign(document.createElement(tag), { textContent: text, className });

// {"a": {"cells": ...}, "b": {"c": {"cells": ...}}} -> [["a"], cells], [["b", "c"], cells]
function* tables(values, path = []) {
  if (!values || typeof values !== "object" || Array.isArray(values)) return;
  if (values.cells) yield [path, values.cells];
  else for (const [key, inner] of Object.entries(values)) yield* tables(inner, [...path, key]);
}

// Single figures: [["unit_edit_rate", "held_out_en"], 0.16]; what belongs to a table is left out.
function* figures(values, path = []) {
  if (typeof values === "number") yield [path, values];
  else if (values && typeof values === "object" && !Array.isArray(values) && !values.cells) {
    for (const [key, inner] of Object.entries(values)) yield* figures(inner, [...path, key]);
  }
}

const cellName = (name) => name.split(">").map(languageName).join(" → ");
const words = (key) => (t(`metric.${key}`) === `metric.${key}` ? key.replaceAll("_", " ") : t(`metric.${key}`));

function clozeTable(path, cells) {
  const table = make("table");
  const kinds = [...new Set(Object.values(cells).flatMap((cell) => Object.keys(cell)))];
  table.append(make("caption", path.map(words).join(" · ")));
  const head = make("tr");
  head.append(make("th", t("results.cell")), ...kinds.map((kind) => make("th", t(`results.${kind}`))));
  table.append(head);
  for (const [name, cell] of Object.entries(cells)) {
    const row = make("tr");
    row.append(Object.assign(make("th", cellName(name)), { scope: "row" }));
    for (const kind of kinds) {
      const box = make("td");
      const score = cell[kind];
      if (score) {
        const [low, high] = score.ci95 ?? [score.accuracy, score.accuracy];
        const bar = make("span", "", "interval");
        bar.style.setProperty("--low", `${100 * low}%`);
        bar.style.setProperty("--high", `${100 * high}%`);
        bar.style.setProperty("--at", `${100 * score.accuracy}%`);
        box.append(make("b", `${number(100 * score.accuracy)} %`), make("span", ` [${number(100 * low)}; ${number(100 * high)}] n = ${score.n}`, "soft"), bar);
      }
      row.append(box);
    }
    table.append(row);
  }
  return table;
}

async function itemsList(props) {
  const response = await fetch(new URL("tresse/benchmark", document.baseURI));
  if (!response.ok) return [make("p", t("results.no_items"), "soft")];
  const items = await response.json();
  const list = make("ul", "", "items");
  for (const item of items) {
    const row = make("li");
    row.append(make("p", `${t(`results.${item.kind}`)} · ${cellName(item.cell)}`, "soft"));
    for (const [side, { text, score, file }] of Object.entries(item.endings)) {
      const line = make("p", "", item.right === side ? "right" : "wrong");
      const play = make("button", "▶", "quiet play");
      play.type = "button";
      play.setAttribute("aria-label", t("play"));
      const sound = new Audio(new URL(file, new URL("tresse/", document.baseURI)));
      play.addEventListener("click", () => sound.play());
      line.append(play, ` ${t(`results.${side}`)}: ${text} `, make("b", number(score, 3)));
      row.append(line);
    }
    row.append(make("p", t(item.correct ? "results.correct" : "results.incorrect"), item.correct ? "verdict good" : "verdict"));
    list.append(row);
  }
  return [list];
}

export function resultsPage(panel, props) {
  return function show() {
    const parts = [make("h2", t("tab.results")), make("p", t("results.how"))];
    const found = [...tables(props.metrics)];
    for (const [path, cells] of found) parts.push(clozeTable(path, cells));
    if (!found.length) parts.push(make("p", t("results.none"), "soft"));
    const single = [...figures(props.metrics)].filter(([path]) => !["split", "n"].includes(path.at(-1)));
    if (single.length) {
      const table = make("table");
      table.append(make("caption", t("results.further")));
      for (const [path, value] of single) {
        const row = make("tr");
        row.append(Object.assign(make("th", path.map(words).join(" · ")), { scope: "row" }), make("td", number(value, 3)));
        table.append(row);
      }
      parts.push(table);
    }
    for (const name of props.plots) {
      const figure = make("figure");
      const picture = Object.assign(make("img"), { src: new URL(`tresse/plots/${name}`, document.baseURI), alt: words(name.replace(/\.\w+$/, "")), loading: "lazy" });
      figure.append(picture, make("figcaption", picture.alt));
      parts.push(figure);
    }
    const hear = make("button", t("results.hear"), "quiet hear-items");
    hear.type = "button";
    hear.addEventListener("click", async () => {
      hear.disabled = true;
      hear.textContent = t("results.wait");
      hear.replaceWith(...(await itemsList(props)));
    });
    parts.push(make("h3", t("results.items")), hear);
    panel.replaceChildren(...parts);
  };
}
