// Sentences: who guessed a token, why a tree is as large as it is, what a step did.

/** Who produced token `place` of a step: {kind, depth, name}. */
export function whoOf(step, place) {
  if (place >= step.accepted.length) return { kind: "model", depth: 0, name: "the model" };
  return guesser(step.drafts[step.accepted[place]], place + 1);
}

/** Who guessed a draft at this depth of the tree. */
export function guesser(draft, depth) {
  const { drafters } = draft;
  if (drafters.includes("heads")) {
    const also = drafters.includes("lookup") ? ", and lookup" : "";
    return { kind: "head", depth, name: `head ${depth}${also}` };
  }
  if (drafters.includes("lookup")) return { kind: "lookup", depth, name: "lookup" };
  return { kind: "grammar", depth, name: "the schema" };
}

export function styleOf(who) {
  return who.kind === "head" ? `head head-${Math.min(who.depth, 6)}` : who.kind;
}

export const REASONS = {
  off: "Drafts are off for this request.",
  prompt: "This step read the prompt; there was nothing to guess from yet.",
  last_token: "Only one more token was allowed, so there was nothing to guess.",
  no_gain: "The heads did not run: with this many sequences they were not expected to save time.",
  paused: "The heads pause for this answer: too few of their recent guesses were right.",
  no_guess: "Nobody had a guess.",
  budget: "One more guess would have cost more time than it was expected to save.",
  max_nodes: "The service checks no more than this per step (speculation.max_nodes).",
  room: "There was no room for more in this step.",
  all: "Every guess there was has been checked.",
  static: "The service always checks the same tree.",
};

export const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;

const guesses = (number) => count(number, "guess", "guesses");

/** What a step did, in one sentence. */
export function summary(step) {
  const { num_drafts: checked, accepted, tokens } = step;
  if (!checked) return `The model wrote ${count(tokens.length, "token")} by itself.`;
  const right = accepted.length;
  const gave = `this pass gave ${count(tokens.length, "token")}`;
  if (!right) return `One pass checked ${guesses(checked)}; none was right, so ${gave}.`;
  return `One pass checked ${guesses(checked)}; ${right} ${right === 1 ? "was" : "were"} right, so ${gave} instead of 1.`;
}

/** How many guesses were on offer, and why no more were checked. */
export function budgetOf(step) {
  const lines = [];
  if (step.num_offered || step.num_drafts) {
    const most = Math.max(step.num_offered, step.num_drafts);
    lines.push(`${step.num_drafts} of ${guesses(most)} on offer checked.`);
  }
  lines.push(REASONS[step.reason] ?? step.reason);
  return lines.join(" ");
}

/** A token's text with blanks that can be seen. */
export function visible(text) {
  return text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ +| +$/g, (blanks) => "·".repeat(blanks.length)) || "∅";
}

export const percent = (share) => `${Math.round(100 * share)} %`;
