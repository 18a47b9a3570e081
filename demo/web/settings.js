// The controls: target language and the folded settings. Kept in this browser; `read` gives them as the server wants them.

import { keep, recallObject } from "./stored.js";
import { languageName, number, onChange, t } from "./texts.js";

const STORED = "tresse-choices";
const NAMES = ["speaker", "max_seconds", "temperature", "top_p", "seed", "patience"];
const PATIENCE = ["quick", "normal", "patient"];

export class Controls {
  constructor(root, props, onInput) {
    Object.assign(this, { root, props, onInput });
    this.pills = root.querySelector(".pills");
    const several = props.languages.length > 1 ? ["both", "braided"] : [];
    const targets = props.tags ? ["same", ...props.languages, ...several] : props.languages;
    if (!props.tags) root.querySelector(".targets legend").dataset.t = "target.untagged";
    for (const target of targets) {
      const label = document.createElement("label");
      const radio = Object.assign(document.createElement("input"), { type: "radio", name: "target", value: target });
      label.append(radio, document.createElement("span"));
      this.pills.append(label);
    }
    const speaker = this.field("speaker");
    for (const name of ["", ...props.speakers]) speaker.append(new Option(name.charAt(0).toUpperCase() + name.slice(1), name));
    speaker.closest("label").hidden = props.speakers.length < 2;
    this.field("patience").append(...PATIENCE.map((name) => new Option(name, name)));
    this.defaults = { target: "same", speaker: "", seed: "", ...props.defaults };
    this.write(this.defaults);
    this.write(recallObject("local", STORED));
    root.addEventListener("input", (event) => {
      if (event.target.name) this.changed();
    });
    root.querySelector(".defaults").addEventListener("click", () => {
      this.write({ ...this.defaults, target: this.target });
      this.changed();
    });
    onChange(() => this.label());
  }

  field(name) {
    return this.root.querySelector(`[name=${name}]`);
  }

  get target() {
    return this.root.querySelector("[name=target]:checked").value;
  }

  // Values that the controls do not take as they are, change nothing: they may come from another version, or from anywhere.
  write(values) {
    const radios = [...this.root.querySelectorAll("[name=target]")];
    const radio = radios.find((one) => one.value === values.target) ?? radios.find((one) => one.checked) ?? radios[0];
    radio.checked = true;
    for (const name of NAMES.filter((one) => ["string", "number"].includes(typeof values[one]))) {
      const field = this.field(name);
      const before = field.value;
      field.value = values[name];
      const same = field.value === values[name] || (field.value !== "" && Number(field.value) === Number(values[name]));
      if (values[name] !== this.defaults[name] && !(same && field.checkValidity())) field.value = before;
    }
  }

  read() {
    const values = Object.fromEntries(NAMES.map((name) => [name, this.field(name).value]));
    if (values.seed) values.seed = String(Number(values.seed)); // 1e3 is a number to browsers
    return { target: this.target, ...values };
  }

  changed() {
    const chosen = Object.entries(this.read()).filter(([name, value]) => value !== String(this.defaults[name]));
    keep("local", STORED, JSON.stringify(Object.fromEntries(chosen)));
    this.label();
    this.onInput(this.read());
  }

  label() {
    const { languages } = this.props;
    for (const label of this.pills.children) {
      const { value } = label.firstChild;
      const name = value === "both" && languages.length > 2 ? "target.all" : `target.${value}`;
      label.lastChild.textContent = languages.includes(value) ? languageName(value) : t(name);
      label.title = languages.includes(value) ? "" : t(`target.${value}.hint`);
    }
    this.field("speaker").options[0].textContent = t("speaker.any");
    for (const option of this.field("patience").options) option.textContent = t(`patience.${option.value}`);
    this.field("seed").placeholder = t("seed.new");
    for (const name of ["max_seconds", "temperature", "top_p"]) {
      const field = this.field(name);
      field.parentElement.querySelector("output").textContent = number(field.value, name === "max_seconds" ? 0 : 2);
    }
  }
}
