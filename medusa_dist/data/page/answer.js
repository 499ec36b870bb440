// One answer of the model: its text in tinted tokens, its steps, its clock.

import { make } from "./dom.js";
import { Aligner } from "./tokens.js";
import { styleOf, whoOf } from "./words.js";

export class Answer {
  steps = [];
  content = "";
  reasoning = "";
  calls = []; // {id, name, arguments}
  usage = null;
  finish = null;
  #aligner = new Aligner();
  #spans = []; // [number] -> the tokens' elements
  #first = 0; // when its first token came
  #last = 0;
  #told = 0; // tokens that came after the first chunk

  /** onStep(answer, number): the reader points at a step. */
  constructor(onStep) {
    this.text = make("div", {
      class: "text",
      tabindex: 0,
      role: "group",
      "aria-label": "Answer. Arrow keys go from step to step.",
      "aria-busy": "true",
    });
    this.current = -1;
    this.text.addEventListener("pointerover", (event) => {
      if (event.pointerType === "mouse") this.#pick(event, onStep);
    });
    this.text.addEventListener("click", (event) => this.#pick(event, onStep));
    this.text.addEventListener("focus", () => this.current < 0 && this.steps.length && onStep(this, 0));
    this.text.addEventListener("keydown", (event) => {
      const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -1e9, End: 1e9 }[event.key];
      if (!move || !this.steps.length) return;
      event.preventDefault();
      onStep(this, Math.max(0, Math.min(this.steps.length - 1, this.current + move)));
    });
  }

  #pick(event, onStep) {
    const number = event.target.dataset?.step;
    if (number !== undefined) onStep(this, Number(number));
  }

  /** Take a choice of a chunk. */
  add(choice) {
    const now = performance.now();
    for (const step of choice.steps ?? []) {
      this.#aligner.add(step, this.steps.length);
      this.steps.push(step);
      if (this.#first) this.#told += step.tokens.length;
    }
    if (choice.steps?.length) {
      this.#first ||= now;
      this.#last = now;
    }
    const { reasoning_content: reasoning, content, tool_calls: calls } = choice.delta ?? {};
    if (reasoning) {
      this.reasoning += reasoning;
      this.#show(reasoning, "reasoning");
    }
    if (content) {
      this.content += content;
      this.#show(content, "content");
    }
    for (const call of calls ?? []) this.#addCall(call);
    this.finish = choice.finish_reason ?? this.finish;
  }

  #show(text, kind) {
    for (const piece of this.#aligner.take(text)) {
      const span = make("span", { class: kind }, piece.text);
      if (piece.number !== undefined) {
        span.dataset.step = piece.number;
        span.classList.add("t", ...styleOf(whoOf(this.steps[piece.number], piece.place)).split(" "));
        (this.#spans[piece.number] ??= []).push(span);
      }
      this.text.append(span);
    }
  }

  #addCall({ index, id, function: part }) {
    const call = (this.calls[index] ??= { id, name: part.name, arguments: "" });
    call.arguments += part.arguments ?? "";
    if (!call.shown) {
      call.shown = make("code", { class: "call" });
      this.text.append(call.shown);
    }
    call.shown.textContent = `${call.name}(${call.arguments})`;
  }

  /** Mark the tokens of a step; -1: of none. */
  mark(number) {
    for (const span of this.#spans[this.current] ?? []) span.classList.remove("current");
    this.current = number;
    for (const span of this.#spans[number] ?? []) span.classList.add("current");
  }

  /** The token before a step. */
  before(number) {
    return number ? (this.steps[number - 1].tokens.at(-1)?.text ?? "") : "the prompt";
  }

  end() {
    this.text.setAttribute("aria-busy", "false");
    for (const piece of this.calls) if (piece) delete piece.shown;
  }

  get numTokens() {
    return this.usage?.completion_tokens ?? this.steps.reduce((sum, step) => sum + step.tokens.length, 0);
  }

  /** Seconds from the first token to the last. */
  get seconds() {
    return (this.#last - this.#first) / 1000;
  }

  get rate() {
    return this.seconds > 0 ? this.#told / this.seconds : NaN;
  }

  /** Tokens per step; the first step reads the prompt and is left out, as it never has guesses. */
  get tokensPerStep() {
    const steps = this.steps.slice(1);
    return steps.length ? steps.reduce((sum, step) => sum + step.tokens.length, 0) / steps.length : NaN;
  }

  /** Of each guesser, in order: {who, style, right, checked}, counting a depth once per step. */
  acceptance() {
    const found = new Map();
    for (const step of this.steps) {
      const depths = [];
      step.drafts.forEach((draft, place) => {
        depths[place] = draft.parent < 0 ? 1 : depths[draft.parent] + 1;
      });
      const seen = new Set();
      step.drafts.forEach((draft, place) => {
        const kinds = [...(draft.drafters.includes("heads") ? [`head ${depths[place]}`] : []), ...(draft.drafters.includes("lookup") ? ["lookup"] : [])];
        for (const name of kinds) {
          const entry = found.get(name) ?? { name, right: 0, checked: 0 };
          const isRight = step.accepted.includes(place);
          if (!seen.has(name)) entry.checked += 1;
          seen.add(name);
          if (isRight && !seen.has(`${name} right`)) entry.right += 1;
          if (isRight) seen.add(`${name} right`);
          found.set(name, entry);
        }
      });
    }
    return [...found.values()].sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
  }
}
