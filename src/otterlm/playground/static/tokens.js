// Shows responses as coloured tokens. A token is chosen by click, by touch, or by arrow keys and Enter.
import { find, make, percent, visible } from "./dom.js";
import { colourOf, words } from "./scale.js";

const ARROWS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

/** Holds the boxes of one comparison's responses. */
export class Responses {
  /** @param run holds `sides`; @param onPoint is called with a token's index, or null, when it is pointed at. */
  constructor(run, onPoint) {
    this.run = run;
    this.onPoint = onPoint;
    this.boxes = run.sides.map((side, index) => this.box(side, index));
    find("responses").replaceChildren(...this.boxes.map((box) => box.element));
  }

  box(side, index) {
    const text = make("div", { class: "text", role: "group", "aria-label": `${side.name}: tokens` });
    const rate = make("p", { class: "rate" });
    const notes = make("div");
    const inspector = make("div", { class: "inspector", role: "status", hidden: true });
    const copy = make("button", { type: "button", on: { click: () => this.copy(side, copy) } }, "Copy");
    copy.setAttribute("aria-label", `Copy: ${side.name}`);
    const reply = make("button", { type: "button", hidden: true, class: "reply" }, "Reply to this");
    reply.setAttribute("aria-label", `Reply to this: ${side.name}`);
    const title = make("h2", {}, side.name);
    const element = make(
      "article",
      { class: "response", "aria-label": side.name, "--side": `var(--side-${index})` },
      make("div", { class: "top" }, title, make("span", {}, reply, " ", copy)),
      rate, text, notes, inspector,
    );
    text.addEventListener("keydown", (event) => this.move(event, index));
    return { element, text, rate, notes, inspector, reply, chosen: null };
  }

  copy(side, button) {
    const whole = side.tokens.map((token) => token.text).join("");
    navigator.clipboard.writeText(whole).then(
      () => (button.textContent = "Copied"),
      () => (button.textContent = "Not allowed"),
    );
    setTimeout(() => (button.textContent = "Copy"), 1500);
  }

  /** Adds the token that came last to its response. */
  add(index, range) {
    const { text } = this.boxes[index];
    const tokens = this.run.sides[index].tokens;
    const at = tokens.length - 1;
    const element = make("span", {
      class: "token", role: "button", "aria-pressed": "false", tabindex: at === 0 ? 0 : -1, "data-index": at,
      on: {
        click: () => this.choose(index, at),
        mouseenter: () => this.onPoint(at),
        mouseleave: () => this.onPoint(null),
        focus: () => this.onPoint(at),
        blur: () => this.onPoint(null),
      },
    });
    element.textContent = tokens[at].text;
    if (!tokens[at].text) element.hidden = true; // the next token completes its character
    text.append(element);
    this.colour(element, tokens[at], range);
  }

  colour(element, token, range) {
    const adapter = this.run.adapter;
    const value = token.signals[adapter.name];
    element.style.setProperty("--colour", colourOf(value, range));
    element.setAttribute("aria-label", `${token.text.trim() || "space"}, ${adapter.name} ${words(value, adapter)}`);
    element.title = [
      ...Object.entries(token.signals).map(([name, number]) => `${name} ${number.toFixed(3)}`),
      ...Object.values(token.labels).flatMap((shares) => Object.entries(shares).map(([label, share]) => `${label} ${share.toFixed(2)}`)),
    ].join(", ");
  }

  /** Colours all tokens again, on another range. */
  recolour(range) {
    this.boxes.forEach(({ text }, index) => {
      for (const element of text.querySelectorAll(".token")) {
        this.colour(element, this.run.sides[index].tokens[element.dataset.index], range);
      }
    });
  }

  /** Says how a response ended. */
  end(index) {
    const side = this.run.sides[index];
    const box = this.boxes[index];
    const notes = [];
    for (const passage of side.passages) {
      const back = make("del", { class: "back", title: `taken back: ${passage.label}` }, visible(passage.text));
      const next = box.text.querySelector(`[data-index="${passage.index}"]`);
      box.text.insertBefore(back, next);
    }
    if (side.passages.length) {
      notes.push(make("p", { class: "stopped" },
        `Taken back ${side.passages.length === 1 ? "once" : `${side.passages.length} times`}: `
        + [...new Set(side.passages.map((passage) => passage.label))].join(", ")));
    }
    if (side.stopped === "threshold") notes.push(make("p", { class: "stopped" }, "Stopped: the reward fell under the threshold."));
    else if (side.stopped) notes.push(make("p", { class: "stopped" }, `Stopped by the guard: ${side.stopped}.`));
    if (!side.tokens.length && !side.stopped) notes.push(make("p", {}, "(no tokens)"));
    box.notes.replaceChildren(...notes);
  }

  /** Says where the signal stands after the last token, and how fast tokens come. */
  rate(index) {
    const { tokens, speed } = this.run.sides[index];
    const { adapter } = this.run;
    const last = `${adapter.name} ${words(tokens.at(-1).signals[adapter.name], adapter)}`;
    this.boxes[index].rate.textContent = [last, `${tokens.length} tokens`, speed && `${speed.toFixed(1)} tokens/s`].filter(Boolean).join(", ");
  }

  /** Marks the token of this index in every response. */
  point(at) {
    for (const { text } of this.boxes) {
      text.querySelector(".pointed")?.classList.remove("pointed");
      if (at !== null) text.querySelector(`[data-index="${at}"]`)?.classList.add("pointed");
    }
  }

  move(event, index) {
    const box = this.boxes[index];
    const at = event.target.dataset?.index;
    if (at === undefined) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.choose(index, Number(at));
    } else if (event.key === "Escape") this.close(index);
    else if (event.key in ARROWS || event.key === "Home" || event.key === "End") {
      event.preventDefault();
      const all = [...box.text.querySelectorAll(".token:not([hidden])")];
      const now = all.indexOf(event.target);
      const next = { Home: 0, End: all.length - 1 }[event.key] ?? Math.min(all.length - 1, Math.max(0, now + ARROWS[event.key]));
      event.target.tabIndex = -1;
      all[next].tabIndex = 0;
      all[next].focus();
      if (box.chosen !== null) this.choose(index, Number(all[next].dataset.index), false);
    }
  }

  /** Shows what else could have come; a second time closes it. */
  choose(index, at, closes = true) {
    const box = this.boxes[index];
    if (closes && box.chosen === at) return this.close(index);
    this.close(index);
    box.chosen = at;
    box.text.querySelector(`[data-index="${at}"]`).setAttribute("aria-pressed", "true");
    box.inspector.replaceChildren(...this.details(this.run.sides[index].tokens[at]));
    box.inspector.hidden = false;
  }

  close(index) {
    const box = this.boxes[index];
    box.text.querySelector('[aria-pressed="true"]')?.setAttribute("aria-pressed", "false");
    box.chosen = null;
    box.inspector.hidden = true;
  }

  details(token) {
    const { adapter, guide } = this.run;
    const numbers = Object.entries(token.signals).map(([name, value]) => `${name} ${words(value, this.run.adapterOf(name) ?? adapter)}`);
    const labels = Object.values(token.labels).flatMap((shares) => Object.entries(shares).map(([label, share]) => `${label} ${percent(share)}`));
    const guided = token.alternatives.some((each) => each.guided !== null);
    const scored = token.alternatives.some((each) => each.signal !== null);
    const head = ["Token", "Base", guided ? "Guided" : null, scored ? "Signal" : null].filter(Boolean);
    const source = this.run.adapterOf(guide) ?? adapter;
    const rows = token.alternatives.map((each) => make("tr", { class: each.token === token.id ? "chosen" : null },
      make("th", { scope: "row" }, visible(each.text), each.token === token.id ? " ✓" : ""),
      make("td", {}, percent(each.probability)),
      guided ? make("td", {}, each.guided === 0 ? "ruled out" : percent(each.guided)) : null,
      scored ? make("td", {}, make("span", {}, words(each.signal, source))) : null));
    return [
      make("h3", {}, `“${visible(token.text)}”`),
      make("p", {}, [...numbers, ...labels].join(", ")),
      make("div", { class: "scroll" }, make("table", {},
        make("thead", {}, make("tr", {}, ...head.map((name) => make("th", { scope: "col" }, name)))),
        make("tbody", {}, ...rows))),
    ];
  }
}
