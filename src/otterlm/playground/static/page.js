// The page: asks the server, shows what comes, and keeps the chat.
import { Curve } from "./curve.js";
import { find, make, percent } from "./dom.js";
import * as form from "./form.js";
import { picture } from "./picture.js";
import { rangeOf, showLegend } from "./scale.js";
import { Responses } from "./tokens.js";

let about;
let run = null; // the comparison that is shown
let leaving = null; // aborts the one that runs

/** Yields the events of a comparison as they come. */
async function* compared(body, signal) {
  const response = await fetch("compare", {
    method: "POST", body: JSON.stringify(body), signal, headers: { "Content-Type": "application/json" },
  });
  if (!response.ok) throw new Error(`the server answered ${response.status}`);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}

/** Starts showing a comparison. */
function begin(request, base, adapters, names, recorded) {
  const adapter = adapters.find((each) => each.name === request.shown);
  const asked = request.values.threshold ?? null;
  const alarm = adapter.alarm === null ? asked : request.values.alarm === undefined ? adapter.alarm : 1 - request.values.alarm;
  run = {
    request, base, adapter, alarm, recorded, guide: request.guide?.[0] ?? null, length: request.length,
    adapterOf: (name) => adapters.find((each) => each.name === name),
    sides: names.map((name) => ({ name, tokens: [], ended: false, stopped: null, passages: [], speed: null })), end: null,
  };
  run.responses = new Responses(run, point);
  run.curve = new Curve(run, point);
  find("summary").replaceChildren();
  const what = request.text ?? request.turns.at(-1)[1];
  find("what").replaceChildren(make("b", {}, recorded ? "Recorded example" : "Prompt"), `: ${what}`);
  redraw();
}

function redraw() {
  const range = rangeOf(run.adapter, run.sides);
  showLegend(run.adapter, range);
  run.curve.show(range);
  if (!range.fixed) run.responses.recolour(range);
  return range;
}

function point(at) {
  run.responses.point(at);
  run.curve.point(at);
}

/** Shows one event. */
function take(event, fast = false) {
  const side = run.sides[event.side];
  if (event.kind === "token") {
    side.tokens.push(event.token);
    side.speed = event.speed;
    run.responses.add(event.side, rangeOf(run.adapter, run.sides));
    run.responses.rate(event.side);
    if (!fast) redraw();
  } else if (event.kind === "ended") {
    Object.assign(side, { ended: true, stopped: event.stopped, passages: event.passages });
    run.responses.end(event.side);
  } else if (event.kind === "end") {
    run.end = event;
    finish();
  }
  if (!fast) progress();
}

function progress() {
  const done = run.sides.reduce((sum, side) => sum + (side.ended ? run.length : side.tokens.length), 0);
  find("done").max = run.length * run.sides.length;
  find("done").value = done;
  const speeds = run.sides.map((side) => side.speed).filter(Boolean);
  const mean = speeds.reduce((sum, speed) => sum + speed, 0) / speeds.length;
  find("speed").textContent = speeds.length ? `${mean.toFixed(1)} tokens/s` : "reading the prompt …";
}

/** Shows what the comparison took, whether the original is the base's own, and buttons to go on with. */
function finish() {
  const { exact, base_bytes: base, inserted_bytes: inserted, slowdowns } = run.end;
  const tick = make("span", { class: exact ? "tick" : "cross" }, exact ? "✓ " : "✗ ");
  const claim = exact ? "The original is the base's own text." : "The original differs from the base's own text.";
  const why = "The base also answered alone, with no adapter. The page compared both responses, token by token.";
  const times = slowdowns.map((share, index) =>
    share === null ? null : `${run.sides[index + 1].name}: ${share < 0 ? "−" : "+"}${Math.abs(100 * share).toFixed(0)}% time a token`);
  find("summary").replaceChildren(
    make("details", {}, make("summary", {}, tick, claim), make("p", {}, why)),
    make("details", {}, make("summary", {}, `${(inserted / 2 ** 20).toFixed(1)} MiB are inserted, ${percent(inserted / base)} of the base.`),
      make("p", {}, [...times.filter(Boolean), "Times are of this machine, and differ from run to run."].join(". "))));
  const chat = Boolean(run.request.turns) && !run.recorded;
  run.responses.boxes.forEach(({ reply }, index) => {
    reply.hidden = !chat || !run.sides[index].tokens.length;
    reply.onclick = () => goOn(index);
  });
}

/** Takes a response into the chat. */
function goOn(index) {
  const said = run.sides[index].tokens.map((token) => token.text).join("");
  const asked = run.request.turns.filter(([role]) => role !== "system");
  form.turns.splice(0, form.turns.length, ...asked, ["assistant", said]);
  form.showTurns();
  find("prompt").value = "";
  find("prompt").focus();
  for (const { reply } of run.responses.boxes) reply.hidden = true;
}

async function compare() {
  leaving?.abort();
  const mine = (leaving = new AbortController());
  form.showError(null, "");
  const request = form.request();
  busy(true);
  let whole = false;
  try {
    for await (const event of compared(request, mine.signal)) {
      whole ||= event.kind === "end" || event.kind === "error";
      if (event.kind === "error") form.showError(event.field, event.message);
      else if (event.kind === "start") begin(request, about.base, about.adapters, event.sides, false);
      else take(event);
    }
    find("status").textContent = whole ? "" : "The comparison broke off: see the server's terminal.";
  } catch (error) {
    if (mine !== leaving) return; // another comparison took its turn
    find("status").textContent = error.name === "AbortError" ? "Stopped." : `The server does not answer: ${error.message}`;
  }
  if (mine === leaving) busy(false);
}

function busy(on) {
  find("stop").disabled = !on;
  find("progress").hidden = !on;
  find("results").setAttribute("aria-busy", String(on));
  if (on) {
    find("status").textContent = "";
    find("done").value = 0;
    find("speed").textContent = "reading the prompt …";
  }
}

function showAbout() {
  const names = about.adapters.map((each) => `${each.name} (${each.type})`);
  find("about").textContent = `${about.base} with ${names.join(", ")}`;
  find("loaded").replaceChildren(...names.map((name) => make("li", {}, name)));
  find("available").replaceChildren(...about.available.map((name) =>
    make("button", { type: "button", on: { click: (event) => load(name, event.target) } }, `Load ${name}`)));
}

async function load(name, button) {
  button.disabled = true;
  const response = await fetch("load", { method: "POST", body: JSON.stringify(name), headers: { "Content-Type": "application/json" } });
  const answer = await response.json();
  form.showError("load", answer.error ?? "");
  if (answer.error) return void (button.disabled = false);
  about = answer;
  form.fill(about);
  showAbout();
}

/** Shows the recorded example, so that there is something to look at before the first comparison. */
async function showRecorded() {
  const recorded = await (await fetch("recorded.json")).json();
  const [start, ...rest] = recorded.events;
  begin(recorded.request, recorded.base, recorded.adapters, start.sides, true);
  for (const event of rest) take(event, true);
  find("status").textContent = `${recorded.base} with ${recorded.source}. Press Compare to run your own.`;
  redraw();
}

function copyLink() {
  const link = new URL(form.toHash(form.state()), location.href).href;
  history.replaceState(null, "", link);
  const say = (text) => {
    find("link").textContent = text;
    setTimeout(() => (find("link").textContent = "Copy link"), 1500);
  };
  navigator.clipboard.writeText(link).then(() => say("Copied"), () => say("See the address"));
}

function save(blob, name) {
  const url = URL.createObjectURL(blob);
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

function downloadData() {
  const { request, sides, end, recorded } = run;
  const whole = sides.map((side) => ({ ...side, text: side.tokens.map((token) => token.text).join("") }));
  const data = JSON.stringify({ base: run.base, recorded, request, responses: whole, end }, null, 1);
  save(new Blob([data], { type: "application/json" }), "otter-comparison.json");
}

async function downloadPicture() {
  save(await picture(run), "otter-comparison.png");
}

async function start() {
  about = await (await fetch("about")).json();
  if (!about.chats) document.querySelector("input[value=text]").checked = true;
  form.fill(about);
  showAbout();
  find("prompt").value = about.examples[0];
  const saved = form.fromHash(location.hash);
  if (saved) form.restore(saved);
  find("ask").addEventListener("submit", (event) => { event.preventDefault(); compare(); });
  find("ask").addEventListener("change", form.offer);
  find("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) compare();
  });
  find("stop").addEventListener("click", () => leaving?.abort());
  find("restart").addEventListener("click", () => { form.turns.length = 0; form.showTurns(); });
  find("link").addEventListener("click", copyLink);
  find("data").addEventListener("click", downloadData);
  find("picture").addEventListener("click", downloadPicture);
  addEventListener("resize", () => run && redraw());
  await showRecorded();
}

start().catch((error) => { find("about").textContent = `The page cannot start: ${error.message}`; });
