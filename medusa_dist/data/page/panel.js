// The side panels: the step that the reader points at, the figures of an answer, those of the server.

import { getJson } from "./api.js";
import { byId, make } from "./dom.js";
import { drawStep } from "./tree.js";
import { budgetOf, count, percent, styleOf, summary, visible, whoOf } from "./words.js";

const POLL_MS = 1000;
const number = (value, digits = 1) => (Number.isFinite(value) ? value.toFixed(digits) : "–");

let shown = null;

/** Show a step of an answer. aloud: say it to screen readers. */
export function showStep(answer, index, aloud = false) {
  if (shown && shown !== answer) shown.mark(-1);
  shown = answer;
  answer.mark(index);
  const step = answer.steps[index];
  byId("step-title").textContent = `Step ${index + 1} of ${answer.steps.length}`;
  byId("step-nav").hidden = false;
  const slider = byId("step");
  slider.max = answer.steps.length;
  slider.value = index + 1;
  slider.setAttribute("aria-valuetext", `${index + 1}: ${summary(step)}`);
  byId("step-body").replaceChildren(...bodyOf(step, answer.before(index)));
  document.body.classList.add("has-step");
  if (aloud) byId("status").textContent = `Step ${index + 1}. ${summary(step)}`;
}

/** What is said and drawn of a step. before: the text of the token before it. */
function bodyOf(step, before) {
  const tokens = step.tokens.map((token, place) => {
    const who = whoOf(step, place);
    return make("li", {}, make("span", { class: `t ${styleOf(who)}` }, visible(token.text)), ` ${who.name}`);
  });
  const facts = [];
  if (step.num_sequences > 1) facts.push(`${step.num_sequences} sequences were decoded together.`);
  if (step.speed_up !== null) facts.push(`Predicted speed: ${step.speed_up.toFixed(2)} times that without guesses.`);
  return [
    make("p", {}, summary(step)),
    make("ul", { class: "tokens", "aria-label": "Tokens of this step" }, ...tokens),
    ...(step.drafts.length ? drawStep(step, before) : []),
    make("p", { class: "budget" }, make("strong", {}, "Why so many? "), budgetOf(step)),
    make("p", { class: "muted" }, facts.join(" ")),
  ];
}

/** Until there is an answer: a made-up step, so that a reader knows what will be seen. */
export function showExample() {
  const draft = (text, parent, confidence, ...drafters) => ({ id: 0, text, parent, confidence, drafters });
  const step = {
    tokens: [" sat", " on", " the", " mat"].map((text) => ({ id: 0, text })),
    drafts: [
      draft(" sat", -1, 0.72, "heads"),
      draft(" on", 0, 0.64, "heads"),
      draft(" the", 1, 0.81, "lookup"),
      draft(" slept", -1, 0.11, "heads"),
      draft(" down", 0, 0.15, "heads"),
    ],
    accepted: [0, 1, 2],
    num_drafts: 5,
    num_offered: 7,
    num_sequences: 1,
    speed_up: null,
    reason: "budget",
  };
  byId("step-title").textContent = "A step, for example";
  byId("step-nav").hidden = true;
  byId("step-body").replaceChildren(make("p", {}, "The text so far ends with “The cat”."), ...bodyOf(step, " cat"));
}

export function hideStep() {
  shown?.mark(-1);
  shown = null;
  document.body.classList.remove("has-step");
}

export function shownStep() {
  return shown;
}

/** The live figures of an answer. */
export function showAnswer(answer) {
  byId("answer-panel").hidden = false;
  byId("answer-rate").textContent = number(answer.rate);
  byId("answer-steps").textContent = number(answer.tokensPerStep, 2);
  byId("answer-tokens").textContent = String(answer.numTokens);
  const bars = answer.acceptance().map(({ name, right, checked }) => {
    const style = name === "lookup" ? "lookup" : `head head-${Math.min(6, Number(name.slice(5)))}`;
    const share = right / checked;
    const fill = make("i");
    fill.style.width = `${100 * share}%`;
    const bar = make("div", { class: `meter ${style}`, "aria-hidden": "true" }, fill);
    const label = `in ${right} of ${count(checked, "step")}`;
    return make("div", { class: "bar" }, make("span", {}, name), bar, make("span", { title: label }, percent(share)));
  });
  byId("acceptance").replaceChildren(...(bars.length ? bars : [make("p", { class: "muted" }, "No guesses so far.")]));
  if (shown === answer) byId("step").max = answer.steps.length;
}

/** Ask the server for its figures once a second, while the page is visible. getBase: of the model in use. */
export function watchServer(getBase) {
  let before = null;
  setInterval(async () => {
    const base = getBase();
    if (!base || document.hidden) return;
    try {
      const load = await getJson(new URL("load", base));
      const now = performance.now();
      byId("running").textContent = load.running_sequences;
      byId("waiting").textContent = Math.max(load.waiting_sequences, load.server_load - load.running_sequences);
      byId("kv").textContent = percent(load.kv_used_fraction);
      const isSame = before?.base === base && load.output_tokens >= before.tokens;
      if (isSame) byId("rate").textContent = number((1000 * (load.output_tokens - before.tokens)) / (now - before.now));
      before = { base, now, tokens: load.output_tokens };
    } catch {
      for (const id of ["rate", "running", "waiting", "kv"]) byId(id).textContent = "–";
      before = null;
    }
  }, POLL_MS);
}
