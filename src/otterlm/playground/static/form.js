// The form: what can be chosen, what is chosen, and a link that restores it.
import { find, make } from "./dom.js";

let known; // what the server says of the session
export const turns = []; // [role, text], of the chat so far

const textOf = (guide) => (guide.adapter === null ? "none (only the stop)" : `${guide.adapter}: ${guide.method}`);

/** Fills the form with what can be chosen. */
export function fill(about) {
  const before = known ? state() : null;
  known = about;
  find("shown").replaceChildren(...about.adapters.filter((each) => each.coloured).map((each) => make("option", {}, each.name)));
  find("guide").replaceChildren(...about.guides.map((each, index) => make("option", { value: index }, textOf(each))));
  find("examples").replaceChildren(...about.examples.map((text) => make("button", { type: "button", on: { click: () => {
    find("prompt").value = text;
    find("prompt").focus();
  } } }, text)));
  for (const each of about.controls) if (!find(each.name) && !about.strengths.includes(each.name)) find("settings").append(field(each));
  if (before) restore(before);
  offer();
}

function field({ name, label, info, low, high, step, default: start }) {
  return make("div", { id: `${name}-part` },
    make("label", { for: name }, label),
    make("input", { id: name, type: "number", min: low, max: high, step, placeholder: start ?? "not set",
      "aria-describedby": `${name}-info ${name}-error` }),
    make("p", { class: "info", id: `${name}-info` }, info),
    make("p", { class: "error", id: `${name}-error`, role: "alert" }));
}

export const guide = () => known.guides[Number(find("guide").value)];

const taken = () => guide().takes[find("shown").value] ?? [];

/** Shows the fields that are of use with what is chosen. */
export function offer() {
  const names = taken();
  for (const { name } of known.controls) {
    const part = find(`${name}-part`);
    if (part) part.hidden = !names.includes(name);
  }
  const strength = known.strengths.find((name) => names.includes(name));
  find("strengths-part").hidden = !strength;
  if (strength) {
    const control = known.controls.find((each) => each.name === strength);
    find("strengths-label").textContent = `${control.label}, or several`;
    find("strengths").placeholder = String(control.default);
    find("strengths-info").textContent = `Such as 0.5, 1, 2: up to ${known.most} side by side.`;
  }
  const chat = mode() === "chat";
  find("system-part").hidden = !chat;
  find("turns").hidden = !chat;
  find("prompt-label").textContent = chat ? "Message" : "Text to continue";
}

export const mode = () => document.querySelector("input[name=mode]:checked").value;

const number = (text) => (text.trim() === "" ? null : Number(text.trim()));

/** Returns what is chosen, for a link and for the download. */
export function state() {
  const names = ["prompt", "system", "shown", "strengths", "length", "seed"];
  const values = {};
  for (const { name } of known.controls) if (find(name)?.value) values[name] = find(name).value;
  const chosen = Object.fromEntries(names.map((name) => [name, find(name).value]));
  return { ...chosen, mode: mode(), guide: textOf(guide()), values, turns: [...turns] };
}

/** Sets the form to what `state` returned. What is not known here stays as it is. */
export function restore(saved) {
  for (const name of ["prompt", "system", "strengths", "length", "seed"]) if (typeof saved[name] === "string") find(name).value = saved[name];
  const colours = [...find("shown").options].map((option) => option.value);
  if (colours.includes(saved.shown)) find("shown").value = saved.shown;
  const index = known.guides.findIndex((each) => textOf(each) === saved.guide);
  if (index >= 0) find("guide").value = String(index);
  const radio = document.querySelector(`input[name=mode][value="${saved.mode === "text" ? "text" : "chat"}"]`);
  radio.checked = true;
  for (const { name } of known.controls) if (find(name)) find(name).value = saved.values?.[name] ?? "";
  turns.splice(0, turns.length, ...(Array.isArray(saved.turns) ? saved.turns : []));
  if (find("system").value) find("system-part").open = true;
  showTurns();
  offer();
}

/** Shows the chat so far. */
export function showTurns() {
  find("turns").replaceChildren(...turns.map(([role, text]) =>
    make("li", { class: role }, make("b", {}, role === "user" ? "You" : "Base"), text)));
  find("restart").hidden = !turns.length;
}

/** Returns the request of what is chosen. A field that holds no number is sent as null, and refused. */
export function request() {
  const names = taken();
  const strength = known.strengths.find((name) => names.includes(name));
  const listed = find("strengths").value.split(/[,;\s]+/).filter(Boolean);
  const control = known.controls.find((each) => each.name === strength);
  const strengths = !strength ? [] : listed.length ? listed.map((text) => (Number.isFinite(Number(text)) ? Number(text) : text)) : [control.default];
  const values = {};
  for (const name of names) if (find(name)?.value || find(name)?.validity.badInput) values[name] = number(find(name).value);
  const chosen = guide();
  const body = {
    shown: find("shown").value,
    guide: chosen.adapter === null ? null : [chosen.adapter, chosen.method],
    strengths, values, length: number(find("length").value), seed: number(find("seed").value),
  };
  if (mode() === "text") return { text: find("prompt").value, ...body };
  const system = find("system").value.trim();
  return { turns: [...(system ? [["system", system]] : []), ...turns, ["user", find("prompt").value]], ...body };
}

/** Shows a message beside the field that caused it, and removes older ones. */
export function showError(name, message) {
  for (const error of document.querySelectorAll(".error")) error.textContent = "";
  for (const input of document.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
  if (!message) return;
  const id = find(`${name}-error`) ? name : "guide";
  find(`${id}-error`).textContent = message;
  find(id)?.setAttribute("aria-invalid", "true");
  if (find("more").contains(find(id))) find("more").open = true;
  find(id)?.focus();
}

export const toHash = (saved) => `#${encodeURIComponent(JSON.stringify(saved))}`;

/** Reads a link's settings; null where there are none. */
export function fromHash(hash) {
  try {
    return hash.length > 1 ? JSON.parse(decodeURIComponent(hash.slice(1))) : null;
  } catch {
    return null;
  }
}
