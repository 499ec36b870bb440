// The page: connects the parts, keeps the conversation.

import { Answer } from "./answer.js";
import { ApiError, chatChunks, findModels, useKey } from "./api.js";
import { byId, make } from "./dom.js";
import { hideStep, showAnswer, showExample, showStep, shownStep, watchServer } from "./panel.js";
import { fields, opening, SettingsError } from "./settings.js";

const START = new URL("./", document.baseURI).href;
const EXAMPLES = [
  "Explain rainbows in two sentences.",
  "Count from 1 to 30, separated by commas.",
  "Write a short poem about the sea.",
];
const GUESSERS = [["model", "the model"], ["head head-1", "head 1"], ["head head-2", "head 2"], ["head head-3", "head 3 …"], ["lookup", "lookup"]];
const LEGEND = {
  model: "The model itself: the token that it adds after the guesses that were right.",
  head: "A small layer on top of the model, trained to guess this many tokens ahead.",
  lookup: "What followed the same words earlier in this text.",
};

let models = [];
let messages = [];
let running = null; // the AbortController of the call in progress

const model = () => models[byId("model").selectedIndex];

// --- what goes wrong ---

function showError(error) {
  if (error instanceof ApiError && error.status === 401) {
    byId("key-form").hidden = false;
    byId("key").focus();
    return;
  }
  const box = byId("error");
  const where = error.param ? ` (${error.param})` : "";
  box.textContent = error instanceof TypeError ? "The service does not answer." : `${error.message}${where}`;
  box.hidden = false;
}

const say = (text) => {
  byId("status").textContent = text;
};

// --- models ---

async function connect() {
  try {
    models = await findModels(START);
  } catch (error) {
    showError(error);
    return;
  }
  byId("key-form").hidden = true;
  byId("error").hidden = true;
  const select = byId("model");
  select.replaceChildren(...models.map(({ card }) => make("option", {}, card.id)));
  select.disabled = models.length < 2;
  chooseModel();
}

function chooseModel() {
  const { card } = model();
  byId("tools-label").hidden = !card.tool_format;
  for (const [name, value] of Object.entries(card.default_sampling_params ?? {})) {
    const box = byId(name);
    if (box) box.placeholder = String(value);
  }
  document.title = `${card.id} · medusa_dist`;
}

// --- the conversation ---

function bubble(kind, name, ...content) {
  const made = make("article", { class: `message ${kind}`, "aria-label": name }, ...content);
  byId("log").append(made);
  return made;
}

const pick = (answer, index) => {
  showStep(answer, index, document.activeElement === answer.text);
};

function copyButton(answer) {
  const button = make("button", { type: "button", class: "small" }, "Copy");
  button.addEventListener("click", async () => {
    let done = true;
    try {
      await navigator.clipboard.writeText(answer.content);
    } catch {
      // Without TLS, browsers offer no clipboard to pages of other machines.
      getSelection().selectAllChildren(answer.text);
      done = document.execCommand("copy");
    }
    button.textContent = done ? "Copied" : "Press Ctrl-C";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
}

/** Stream one answer. onChunk: called after each chunk. */
async function stream(body, answer, signal, onChunk) {
  let seen = 0;
  for await (const chunk of chatChunks(model().base, body, signal)) {
    if (chunk.usage) answer.usage = chunk.usage;
    const [choice] = chunk.choices;
    if (choice) answer.add(choice);
    if (performance.now() - seen > 100 || choice?.finish_reason) {
      seen = performance.now();
      onChunk();
    }
  }
}

function follow() {
  const { scrollHeight } = document.documentElement;
  if (innerHeight + scrollY > scrollHeight - 240) scrollTo({ top: scrollHeight });
}

/** One answer in the conversation. Returns it, complete or not. */
async function answerOnce(body, signal, holder, title) {
  const answer = new Answer(pick);
  const clock = make("span", { class: "clock" });
  const foot = make("footer", { class: "row" }, clock);
  if (title) holder.append(make("h3", {}, title));
  holder.append(answer.text, foot);
  const tell = () => {
    clock.textContent = `${answer.numTokens} tokens · ${answer.seconds.toFixed(1)} s · ${answer.steps.length} steps`;
    showAnswer(answer);
    follow();
  };
  try {
    await stream(body, answer, signal, tell);
  } catch (error) {
    if (error.name !== "AbortError") throw error; // what came before the stop stays
  } finally {
    answer.end();
    tell();
    if (signal.aborted) foot.append(make("span", { class: "muted" }, "stopped"));
    else if (answer.finish === "length") foot.append(make("span", { class: "muted" }, "cut at the limit of tokens"));
    foot.append(make("span", { class: "grow" }), copyButton(answer));
  }
  return answer;
}

/** The same request twice, one after the other, so that neither slows the other. */
async function answerTwice(body, signal) {
  const pair = bubble("assistant pair", "Answer with and without drafts");
  const [left, right] = [make("div", { class: "half" }), make("div", { class: "half" })];
  pair.append(left, right);
  const { speculation: _, ...drafted } = body;
  const withDrafts = await answerOnce(drafted, signal, left, "With drafts");
  if (signal.aborted) return withDrafts;
  const without = await answerOnce({ ...body, speculation: "off" }, signal, right, "Without drafts");
  if (!signal.aborted) pair.append(make("p", { class: "verdict", role: "note" }, ...verdict(withDrafts, without)));
  showAnswer(withDrafts);
  return withDrafts;
}

function verdict(one, other) {
  const [a, b] = [one, other].map((answer) => answer.steps.flatMap((step) => step.tokens.map((token) => token.id)));
  if (one.content === other.content && a.join() === b.join()) {
    const ratio = other.seconds / one.seconds;
    const speed = Number.isFinite(ratio) ? ` ${one.seconds.toFixed(1)} s with drafts, ${other.seconds.toFixed(1)} s without: ${ratio.toFixed(2)} times the speed.` : "";
    return [make("strong", {}, `Identical: all ${a.length} tokens are the same.`), speed];
  }
  const place = a.findIndex((id, index) => id !== b[index]);
  return [
    make("strong", {}, `The texts differ from token ${(place < 0 ? b.length : place) + 1} on.`),
    " On a CPU in float32 they never do; elsewhere two tokens may be so nearly equal that rounding decides.",
  ];
}

async function ask(text) {
  if (running) return;
  let body;
  try {
    body = fields();
  } catch (error) {
    if (!(error instanceof SettingsError)) throw error;
    byId("settings").open = true;
    showError(error);
    return;
  }
  if (!model()) return connect();
  byId("error").hidden = true;
  byId("intro").hidden = true;
  byId("legend").hidden = false;
  document.body.classList.add("has-chat");
  if (text !== null) {
    messages.push({ role: "user", content: text });
    bubble("user", "You", text);
  }
  running = new AbortController();
  setBusy(true);
  say("The model is answering.");
  Object.assign(body, { model: model().card.id, messages: [...opening(), ...messages], explain: true });
  let answer = null;
  try {
    const twice = byId("compare").checked && !body.speculation;
    answer = twice
      ? await answerTwice(body, running.signal)
      : await answerOnce(body, running.signal, bubble("assistant", "The model"));
  } catch (error) {
    showError(error);
  } finally {
    running = null;
    setBusy(false);
  }
  finish(answer);
  follow();
}

/** Keep an answer for the next question; without one, forget the question, which may be asked again. */
function finish(answer) {
  if (!answer) {
    say("There is no complete answer.");
    if (messages.at(-1)?.role === "user") byId("prompt").value ||= messages.pop().content;
    return;
  }
  const calls = answer.calls.filter(Boolean);
  const message = { role: "assistant", content: answer.content };
  if (calls.length) {
    message.tool_calls = calls.map(({ id, name, arguments: given }) => ({ id, type: "function", function: { name, arguments: given } }));
  }
  messages.push(message);
  say(`Answer: ${answer.content}`);
  if (calls.length) askResults(calls);
}

/** Boxes for what the called tools return. */
function askResults(calls) {
  const boxes = calls.map(({ name }) => make("textarea", { rows: 2, required: true, "aria-label": `Result of ${name}`, placeholder: `Result of ${name}` }));
  const form = make("form", { class: "results" }, ...boxes, make("button", { type: "submit" }, "Send results"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    calls.forEach(({ id }, index) => messages.push({ role: "tool", tool_call_id: id, content: boxes[index].value }));
    form.replaceWith(...boxes.map((box) => make("p", { class: "message user" }, box.value)));
    ask(null);
  });
  byId("log").append(form);
  boxes[0].focus();
}

function setBusy(isBusy) {
  byId("send").hidden = isBusy;
  byId("stop").hidden = !isBusy;
  byId("clear").disabled = isBusy;
}

// --- what the reader does ---

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("prompt").value;
  if (!text.trim() || running) return;
  byId("prompt").value = "";
  ask(text);
});
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("ask").requestSubmit();
  }
});
byId("stop").addEventListener("click", () => running?.abort());
byId("clear").addEventListener("click", () => {
  messages = [];
  hideStep();
  byId("log").replaceChildren();
  byId("answer-panel").hidden = true;
  byId("intro").hidden = false;
  byId("legend").hidden = true;
  document.body.classList.remove("has-chat");
  showExample();
  byId("prompt").focus();
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value);
  byId("key").value = "";
  connect();
});
byId("model").addEventListener("change", chooseModel);
byId("close").addEventListener("click", hideStep);
addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (running) running.abort();
  else hideStep();
});
const turn = (by) => {
  const answer = shownStep();
  if (!answer) return;
  showStep(answer, Math.max(0, Math.min(answer.steps.length - 1, by(answer.current))), true);
};
byId("previous").addEventListener("click", () => turn((at) => at - 1));
byId("next").addEventListener("click", () => turn((at) => at + 1));
byId("step").addEventListener("input", () => turn(() => Number(byId("step").value) - 1));

byId("examples").append(
  ...EXAMPLES.map((text) => {
    const button = make("button", { type: "button" }, text);
    button.addEventListener("click", () => ask(text));
    return button;
  }),
);
byId("legend").append(
  "Written by ",
  ...GUESSERS.map(([style, name]) => make("span", { class: `t ${style}`, title: LEGEND[style.split(" ")[0]] }, name)),
);
showExample();
watchServer(() => model()?.base);
connect();
