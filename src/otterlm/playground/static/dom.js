// Makes and finds elements, and writes numbers.

export const find = (id) => document.getElementById(id);

/** Makes an element. Properties that start with -- are CSS variables; `on` holds listeners. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("--")) element.style.setProperty(name, value);
    else if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** Makes an element of an SVG. */
export function draw(tag, attributes = {}, text = null) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== null) element.textContent = text;
  return element;
}

export function signed(value) {
  const text = Math.abs(value).toFixed(2);
  return (Number(text) === 0 ? "" : value < 0 ? "−" : "+") + text;
}

export const percent = (share) => {
  if (share > 0 && share < 0.001) return "<0.1%";
  return (100 * share).toFixed(share < 0.1 ? 1 : 0) + "%";
};

/** Shows white space that would be lost in a table. */
export const visible = (text) => text.replace(/^ /, "·").replaceAll("\n", "⏎") || "(nothing)";
