// The words of the page: texts.en.json, texts.fr.json ... Elements name theirs: data-t (text), data-t-label, data-t-title.

import { keep, recall } from "./stored.js";

let words = {};
export let language = "en";
const listeners = [];

export function t(key, values = {}) {
  const text = words[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

export const number = (value, digits = 1) =>
  Number(value).toLocaleString(language, { minimumFractionDigits: digits, maximumFractionDigits: digits });

export const seconds = (value, digits = 1) => t("seconds", { n: number(value, digits) });

export const languageName = (code) => {
  try {
    const name = new Intl.DisplayNames([language], { type: "language" }).of(code);
    return name.charAt(0).toLocaleUpperCase(language) + name.slice(1);
  } catch {
    return code;
  }
};

// What the server says, in the words of the page: the first pattern that fits.
export function problem(text) {
  for (const [pattern, mend] of words.problems ?? []) {
    const found = text.match(new RegExp(pattern, "i"));
    if (found) return mend.replace(/\$(\d)/g, (whole, group) => found[Number(group)] ?? "");
  }
  return text.charAt(0).toUpperCase() + text.slice(1);
}

export function fill(root) {
  for (const element of root.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of root.querySelectorAll("[data-t-label]")) element.setAttribute("aria-label", t(element.dataset.tLabel));
  for (const element of root.querySelectorAll("[data-t-title]")) element.title = t(element.dataset.tTitle);
}

export async function use(code) {
  const response = await fetch(new URL(`texts.${code}.json`, import.meta.url));
  words = await response.json();
  language = code;
  keep("local", "tresse-language", code);
  document.documentElement.lang = code;
  for (const listener of listeners) listener();
}

export const onChange = (listener) => listeners.push(listener);

export function preferred(available) {
  const asked = new URLSearchParams(location.search).get("lang") ?? recall("local", "tresse-language");
  const codes = [asked, ...navigator.languages].map((code) => String(code).slice(0, 2));
  return codes.find((code) => available.includes(code)) ?? available[0];
}
