// Draws the comparison that is shown as a picture: the prompt, the legend, each response on its colours, and the curve.
import { DASHES } from "./curve.js";
import { draw, make } from "./dom.js";
import { meaning, rangeOf, words } from "./scale.js";

const EDGE = 20;
const FONT = "system-ui, sans-serif";
const SHARP = 2; // pixels of the picture for one of the page
const DRAWN = ["fill", "stroke", "stroke-width", "stroke-dasharray", "font-size"]; // what the page's style says of the curve

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Splits pieces of text into words, each a list of pieces. A word begins at a space, and a line break is a word. */
function split(pieces) {
  const all = [];
  for (const piece of pieces) {
    for (const text of piece.text.split(/(?= )|(?=\n)|(?<=\n)/)) {
      if (/^[ \n]/.test(text) || !all.length || all.at(-1)[0].text === "\n") all.push([]);
      all.at(-1).push({ ...piece, text });
    }
  }
  return all;
}

/** Holds an SVG that grows downwards. */
class Sheet {
  constructor(width) {
    this.width = width;
    this.y = EDGE;
    this.ruler = make("canvas").getContext("2d");
    this.svg = draw("svg", { xmlns: "http://www.w3.org/2000/svg", width, "font-family": FONT });
    this.ground = draw("rect", { width, fill: colour("--card") });
    this.svg.append(this.ground);
  }

  /** Writes pieces of text one after another. Lines break before words. */
  write(pieces, { size = 16, bold = false } = {}) {
    const line = Math.round(1.65 * size);
    this.ruler.font = `${bold ? "bold " : ""}${size}px ${FONT}`;
    let x = EDGE;
    const feed = () => {
      x = EDGE;
      this.y += line;
    };
    for (const word of split(pieces)) {
      if (word[0].text === "\n") {
        feed();
        continue;
      }
      const wide = this.ruler.measureText(word.map(({ text }) => text).join("")).width;
      if (x > EDGE && x + wide > this.width - EDGE) {
        feed();
        word[0].text = word[0].text.trimStart();
      }
      for (const piece of word) {
        for (let rest = [...piece.text]; rest.length;) {
          let count = rest.length;
          while (count > 1 && x + this.measure(rest, count) > this.width - EDGE) count -= 1;
          this.put({ ...piece, text: rest.slice(0, count).join("") }, x, line, { size, bold });
          x += this.measure(rest, count);
          rest = rest.slice(count);
          if (rest.length) feed();
        }
      }
    }
    this.y += line;
  }

  measure(letters, count) {
    return this.ruler.measureText(letters.slice(0, count).join("")).width;
  }

  put({ text, ink = colour("--text"), ground = null, struck = false }, x, line, { size, bold }) {
    const wide = this.ruler.measureText(text).width;
    if (ground) this.svg.append(draw("rect", { x, y: this.y + 2, width: wide, height: line - 4, fill: ground, "shape-rendering": "crispEdges" }));
    const written = draw("text", { x, y: this.y + line / 2 + 0.35 * size, fill: ink, "font-size": size, "xml:space": "preserve" }, text);
    if (bold) written.setAttribute("font-weight", "bold");
    if (struck) written.setAttribute("text-decoration", "line-through");
    this.svg.append(written);
  }

  /** Draws the scale of the colours. */
  scale(adapter, range) {
    const stops = ["--low", "--middle", "--high"].map((name, index) => draw("stop", { offset: index / 2, "stop-color": colour(name) }));
    const gradient = draw("linearGradient", { id: "scale" });
    gradient.append(...stops);
    this.svg.append(gradient, draw("rect", { x: EDGE, y: this.y + 4, width: 120, height: 16, fill: "url(#scale)", stroke: colour("--soft") }));
    this.y += 24;
    this.write([{ text: `${adapter.name}, ${words(range.low, adapter)} to ${words(range.high, adapter)}. ${meaning(adapter)}`, ink: colour("--soft") }], { size: 14 });
  }

  /** Draws a response: its line of the curve, its name and last number, its tokens, and how it ended. */
  response(side, box, index, adapter) {
    this.y += 20;
    this.svg.append(draw("line", { x1: EDGE, x2: EDGE + 32, y1: this.y, y2: this.y, stroke: colour(`--side-${index}`), "stroke-width": 3, "stroke-dasharray": DASHES[index] }));
    this.y += 4;
    const last = side.tokens.at(-1);
    const end = last ? `   ends at ${words(last.signals[adapter.name], adapter)}` : "";
    this.write([{ text: side.name + end }], { bold: true });
    const ink = colour("--ink");
    const shown = [...box.text.children].filter((each) => !each.hidden).map((each) => each.matches(".back")
      ? { text: each.textContent, ink: colour("--soft"), struck: true }
      : { text: each.textContent, ink, ground: getComputedStyle(each).backgroundColor });
    this.write(shown);
    for (const note of box.notes.children) this.write([{ text: note.textContent, ink: colour("--bad") }], { size: 14 });
  }

  /** Copies a drawing of the page, with what the page's style says of it. */
  copy(shown) {
    const copied = shown.cloneNode(true);
    const targets = copied.querySelectorAll("*");
    shown.querySelectorAll("*").forEach((element, index) => {
      const style = getComputedStyle(element);
      for (const name of DRAWN) targets[index].setAttribute(name, style.getPropertyValue(name));
      targets[index].removeAttribute("style");
    });
    const { width, height } = shown.viewBox.baseVal;
    for (const [name, value] of Object.entries({ x: EDGE, y: this.y + 14, width, height })) copied.setAttribute(name, value);
    this.svg.append(copied);
    this.y += height + 14;
  }

  /** Returns the picture as a PNG. */
  async png() {
    const height = Math.ceil(this.y + EDGE);
    for (const element of [this.svg, this.ground]) element.setAttribute("height", height);
    const image = new Image();
    image.src = `data:image/svg+xml,${encodeURIComponent(new XMLSerializer().serializeToString(this.svg))}`;
    await image.decode();
    const canvas = make("canvas", { width: this.width * SHARP, height: height * SHARP });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    return new Promise((resolve) => canvas.toBlob(resolve));
  }
}

/** Returns the comparison as a PNG, as wide as the curve on the page. */
export function picture(run) {
  const curve = document.querySelector("#curve svg");
  const sheet = new Sheet(Math.round(curve.viewBox.baseVal.width) + 2 * EDGE);
  sheet.write([{ text: `Otter playground: ${run.base} with ${[...new Set([run.adapter.name, run.guide])].filter(Boolean).join(", ")}`, ink: colour("--soft") }], { size: 14 });
  sheet.write([{ text: run.request.text ?? run.request.turns.at(-1)[1] }], { bold: true });
  sheet.scale(run.adapter, rangeOf(run.adapter, run.sides));
  run.sides.forEach((side, index) => sheet.response(side, run.responses.boxes[index], index, run.adapter));
  sheet.copy(curve);
  return sheet.png();
}
