// Draws the signal of all responses, token by token, with axes, the zero line, an alarm line, and the numbers under the
// pointer.
import { draw, find, make, visible } from "./dom.js";
import { words } from "./scale.js";

export const DASHES = ["2 4", "none", "9 4", "9 3 2 3", "4 3"];
const HEIGHT = 240;
const EDGE = { left: 52, right: 14, top: 12, bottom: 40 };

/** Returns round numbers that cover a range. */
export function ticks(low, high, most = 6) {
  const rough = (high - low) / most || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((each) => each * power >= rough));
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, index) => (first + index) * step);
}

/** Holds the curve of one comparison. */
export class Curve {
  constructor(run, onPoint) {
    this.run = run;
    this.onPoint = onPoint;
    this.output = make("output", {}, " ");
    this.holder = make("div");
    const key = run.sides.map((side, index) =>
      make("span", { "--side": `var(--side-${index})`, "--dash": index === 0 ? "dotted" : index % 2 ? "solid" : "dashed" }, side.name));
    find("curve").replaceChildren(
      make("figcaption", {}, `${run.adapter.name}, token by token`),
      make("div", { class: "key" }, ...key), this.holder, this.output);
  }

  /** Draws everything again: a few hundred points take no time. */
  show(range) {
    const { sides, adapter, alarm } = this.run;
    const width = Math.max(280, this.holder.clientWidth || 640);
    const values = sides.flatMap((side) => side.tokens.map((token) => token.signals[adapter.name]));
    if (alarm !== null) values.push(alarm);
    let low = Math.min(range.low, ...values);
    let high = Math.max(range.high, ...values);
    const pad = adapter.alarm === null ? 0.04 * (high - low) : 0;
    low -= pad;
    high += pad;
    const last = Math.max(1, this.run.length - 1);
    this.x = (index) => EDGE.left + ((width - EDGE.left - EDGE.right) * index) / last;
    this.y = (value) => HEIGHT - EDGE.bottom - ((HEIGHT - EDGE.top - EDGE.bottom) * (value - low)) / (high - low || 1);
    const svg = draw("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": this.summary() });
    const bottom = HEIGHT - EDGE.bottom;
    for (const value of ticks(low, high)) {
      const y = this.y(value);
      svg.append(draw("line", { class: "grid-line", x1: EDGE.left, x2: width - EDGE.right, y1: y, y2: y }));
      svg.append(draw("text", { x: EDGE.left - 7, y: y + 4, "text-anchor": "end" }, Number(value.toFixed(3)).toString().replace("-", "−")));
    }
    for (const index of ticks(0, last, Math.min(8, width / 70)).filter(Number.isInteger)) {
      const x = this.x(index);
      svg.append(draw("line", { class: "axis", x1: x, x2: x, y1: bottom, y2: bottom + 4 }));
      svg.append(draw("text", { x, y: bottom + 17, "text-anchor": "middle" }, String(index)));
    }
    svg.append(draw("text", { x: (EDGE.left + width - EDGE.right) / 2, y: HEIGHT - 5, "text-anchor": "middle" }, "tokens of the response"));
    svg.append(draw("path", { class: "axis", fill: "none", d: `M${EDGE.left} ${EDGE.top}V${bottom}H${width - EDGE.right}` }));
    if (low < 0 && high > 0) this.level(svg, 0, width, "zero");
    if (alarm !== null) {
      this.level(svg, alarm, width, "alarm");
      const y = this.y(alarm);
      const name = adapter.alarm === null ? "threshold" : "alarm below this";
      svg.append(draw("text", { class: "alarm-text", x: width - EDGE.right - 4, y: y < 30 ? y + 14 : y - 5, "text-anchor": "end" }, name));
    }
    sides.forEach((side, number) => {
      const points = side.tokens.map((token, index) => `${this.x(index).toFixed(1)},${this.y(token.signals[adapter.name]).toFixed(1)}`);
      const line = draw("polyline", { points: points.join(" "), "stroke-dasharray": DASHES[number] });
      line.style.stroke = `var(--side-${number})`;
      svg.append(line);
    });
    this.hair = draw("line", { class: "hair", x1: 0, x2: 0, y1: EDGE.top, y2: bottom, visibility: "hidden" });
    svg.append(this.hair);
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const at = ((event.clientX - box.left) / box.width) * width;
      this.onPoint(Math.round(Math.min(last, Math.max(0, ((at - EDGE.left) / (width - EDGE.left - EDGE.right)) * last))));
    });
    svg.addEventListener("pointerleave", () => this.onPoint(null));
    this.holder.replaceChildren(svg);
  }

  level(svg, value, width, kind) {
    svg.append(draw("line", { class: kind, x1: EDGE.left, x2: width - EDGE.right, y1: this.y(value), y2: this.y(value) }));
  }

  summary() {
    const { sides, adapter } = this.run;
    const ends = sides.filter((side) => side.tokens.length).map((side) =>
      `${side.name} ends at ${words(side.tokens.at(-1).signals[adapter.name], adapter)}`);
    return `${adapter.name}, token by token. ${ends.join(". ")}`;
  }

  /** Shows the numbers of a token of this index. */
  point(at) {
    this.hair?.setAttribute("visibility", at === null ? "hidden" : "visible");
    if (at === null || !this.x) {
      this.output.textContent = " ";
      return;
    }
    this.hair.setAttribute("x1", this.x(at));
    this.hair.setAttribute("x2", this.x(at));
    const { sides, adapter } = this.run;
    const parts = sides.filter((side) => side.tokens[at]).map((side) => {
      const token = side.tokens[at];
      return `${side.name} “${visible(token.text)}” ${words(token.signals[adapter.name], adapter)}`;
    });
    this.output.textContent = `Token ${at}: ${parts.join("   ")}`;
  }
}
