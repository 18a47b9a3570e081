// "How well does it do": the figures that came with the bundle, its plots, and benchmark items to hear.

import { languageName, number, t } from "./texts.js";

const make = (tag, text = "", className = "") => Object.assign(document.createElement(tag), { textContent: text, className });

// {"a": {"cells": ...}, "b": {"c": {"cells": ...}}} -> [["a"], cells], [["b", "c"], cells]
function* tables(values, path = []) {
  if (!values || typeof values !== "object" || Array.isArray(values)) return;
  if (values.cells) yield [path, values.cells];
  else for (const [key, inner] of Object.entries(values)) yield* tables(inner, [...path, key]);
}

// Figures that belong to no cloze table: {"en": {"held_out": {"word_error": 0.1}}} -> [[["en", "held_out"], {"word_error": 0.1}]].
function* figures(values, path = []) {
  const inner = Object.entries(values).filter(([, value]) => value && typeof value === "object" && !Array.isArray(value) && !value.cells);
  const own = Object.entries(values).filter(([, value]) => typeof value === "number");
  if (own.length) yield [path, Object.fromEntries(own)];
  for (const [key, value] of inner) yield* figures(value, [...path, key]);
}

const cellName = (name) => name.split(">").map(languageName).join(" → ");
const phrase = (key) => (t(`metric.${key}`) === `metric.${key}` ? key.replaceAll("_", " ") : t(`metric.${key}`));
// "fr" -> French; "held_out_fr" -> French, unseen voices.
const words = (key) => {
  const [, group, code] = key.match(/^(?:(training|held_out)_)?([a-z]{2})$/) ?? [];
  return code ? [languageName(code), ...(group ? [phrase(group)] : [])].join(", ") : phrase(key);
};

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

// digits: of the figures that are no shares (train/evaluate/metrics.py).
const shown = (column, value, digits) => (column in digits ? number(value, digits[column]) : `${number(100 * value)} %`);
const columnsOf = (rows) => [...new Set(rows.flatMap(([, values]) => Object.keys(values)))];

// Rows that have no figure in common are tables of their own.
function families(rows) {
  const found = [];
  for (const row of rows) {
    const family = found.find((some) => columnsOf(some).some((column) => column in row[1]));
    if (family) family.push(row);
    else found.push([row]);
  }
  return found;
}

// One part of the evaluation: a row for each group that was measured, a column for each figure.
function figuresTable(key, rows, digits) {
  const columns = columnsOf(rows);
  const table = make("table");
  if (key) table.append(make("caption", words(key)));
  const head = make("tr");
  head.append(make("th"), ...columns.map((column) => Object.assign(make("th", words(column)), { scope: "col" })));
  table.append(head);
  for (const [path, values] of rows) {
    const row = make("tr");
    const name = path.map((one) => (/^\w\w>\w\w$/.test(one) ? cellName(one) : words(one))).join(" · ");
    row.append(Object.assign(make("th", name), { scope: "row" }));
    row.append(...columns.map((column) => make("td", column in values ? shown(column, values[column], digits) : "")));
    table.append(row);
  }
  return table;
}

// Models trained with and without interleaving, at matched budgets: a row each, a column for each cell.
function ablationTable(rows, group) {
  const table = make("table");
  table.append(make("caption", `${words("ablation")} · ${words(group)}`));
  const cells = Object.keys(Object.values(rows)[0].voices[group]);
  const columns = ["topic", "story"].flatMap((kind) => cells.map((cell) => [kind, cell]));
  const head = make("tr");
  head.append(make("th"), ...columns.map(([kind, cell]) => Object.assign(make("th", `${t(`results.${kind}`)} ${cellName(cell)}`), { scope: "col" })));
  table.append(head);
  for (const [key, { name, voices }] of Object.entries(rows)) {
    const row = make("tr");
    row.append(Object.assign(make("th", t(`ablation.${key}`) === `ablation.${key}` ? name : t(`ablation.${key}`)), { scope: "row" }));
    for (const [kind, cell] of columns) {
      const box = make("td");
      const { accuracy, ci95 } = voices[group][cell][kind];
      box.append(make("b", `${number(100 * accuracy)} %`), make("span", ` [${number(100 * ci95[0])}; ${number(100 * ci95[1])}]`, "soft"));
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

// A table that is wider than the screen is scrolled, by key as well.
const widths = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }
});

export function resultsPage(panel, props) {
  return function show() {
    const parts = [make("h2", t("tab.results")), make("p", t("results.how"))];
    const { ablation, ...metrics } = props.metrics;
    const found = [...tables(metrics)];
    for (const [path, cells] of found) parts.push(clozeTable(path, cells));
    if (!found.length) parts.push(make("p", t("results.none"), "soft"));
    if (ablation) {
      const groups = Object.keys(Object.values(ablation.rows)[0].voices);
      parts.push(...groups.map((group) => ablationTable(ablation.rows, group)));
    }
    for (const [key, values] of Object.entries(metrics)) {
      const rows = values && typeof values === "object" ? families([...figures(values)]) : [];
      rows.forEach((some, place) => parts.push(figuresTable(place === 0 && key, some, props.digits)));
    }
    for (const name of props.plots) {
      const figure = make("figure");
      const picture = Object.assign(make("img"), { src: new URL(`tresse/plots/${name}`, document.baseURI), alt: words(name.replace(/\.\w+$/, "")) });
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
    widths.disconnect();
    panel.replaceChildren(...parts);
    for (const table of panel.querySelectorAll("table")) widths.observe(table);
  };
}
