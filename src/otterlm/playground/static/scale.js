// Says what a signal's number looks like: its colour, its words and its range.
import { find, make, signed } from "./dom.js";

/** Returns the range of an adapter's colours: the calibrated one, else that of the numbers shown so far. */
export function rangeOf(adapter, sides) {
  if (adapter.range) return { low: adapter.range[0], high: adapter.range[1], fixed: true };
  const values = sides.flatMap((side) => side.tokens.map((token) => token.signals[adapter.name]));
  const most = Math.max(0.1, ...values.map(Math.abs));
  return { low: -most, high: most, fixed: false };
}

/** Returns the colour of a number as CSS: orange at the low end, white midway, blue at the high end. */
export function colourOf(value, { low, high }) {
  const share = Math.min(1, Math.max(0, (value - low) / (high - low || 1)));
  const [end, part] = share >= 0.5 ? ["--high", 2 * share - 1] : ["--low", 1 - 2 * share];
  return `color-mix(in srgb, var(${end}) ${(100 * part).toFixed(1)}%, var(--middle))`;
}

/** Writes a number as the adapter means it. */
export function words(value, adapter) {
  return adapter.alarm === null ? signed(value) : value.toFixed(2);
}

/** Says what a number means, for the legend. */
export function meaning(adapter) {
  if (adapter.alarm !== null) return "Probability that the text so far is harmless.";
  if (adapter.type === "reward") return "Reward of the text up to and with the token. Blue is better.";
  if (adapter.type === "contrast") return "Expert's logit less the anti-expert's, of the token. Blue is the expert's choice.";
  return "Number beside the token. Blue is higher.";
}

/** Shows the legend of an adapter's colours. */
export function showLegend(adapter, range) {
  const source = range.fixed ? "" : " The range is that of these responses.";
  find("legend").replaceChildren(
    make("b", {}, adapter.name),
    make("span", {}, words(range.low, adapter)),
    make("span", { class: "scale", role: "img", "aria-label": "from orange over white to blue" }),
    make("span", {}, words(range.high, adapter)),
    make("span", { class: "note" }, meaning(adapter) + source + " Choose a token to see its alternatives."),
  );
}
