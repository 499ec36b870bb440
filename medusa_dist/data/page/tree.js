// The drawing of a step: the last known token, the tree of guesses, and the token that the model chose itself.

import { makeSvg, make } from "./dom.js";
import { guesser, percent, styleOf, visible } from "./words.js";

const BOX = { width: 88, height: 36, gapX: 18, gapY: 7, top: 20 };
const LETTERS = 9;
const SMALLEST = 0.75; // of the drawing; what is wider still can be scrolled

/** Nodes by their place in the drawing: {text, x, y, kind, parent}. */
function layout(step, before) {
  const root = { text: before, depth: 0, children: [], kind: "root", parent: null };
  const drafts = step.drafts.map((draft) => ({ draft, text: draft.text, children: [], kind: "rejected" }));
  const accepted = step.accepted.slice(0, step.tokens.length);
  drafts.forEach((node) => {
    node.parent = node.draft.parent < 0 ? root : drafts[node.draft.parent];
    node.depth = node.parent.depth + 1;
    node.who = guesser(node.draft, node.depth);
    node.parent.children.push(node);
  });
  let last = root;
  for (const place of accepted) {
    last = drafts[place];
    last.kind = "accepted";
  }
  const nodes = [root, ...drafts];
  if (step.tokens.length > accepted.length) {
    const own = { text: step.tokens.at(-1).text, depth: last.depth + 1, children: [], kind: "own", parent: last };
    last.children.unshift(own);
    nodes.push(own);
  }
  let row = 0;
  // Accepted paths first, so that what became text is the upper line.
  const rank = (node) => (node.kind === "rejected" ? 2 : node.kind === "own" ? 1 : 0);
  const place = (node) => {
    node.x = node.depth * (BOX.width + BOX.gapX);
    node.row = row;
    node.children.sort((a, b) => rank(a) - rank(b));
    node.children.forEach(place);
    if (!node.children.length) row += 1;
    node.y = BOX.top + node.row * (BOX.height + BOX.gapY);
  };
  place(root);
  const deepest = Math.max(...nodes.map((node) => node.depth));
  return { nodes, width: (deepest + 1) * (BOX.width + BOX.gapX) - BOX.gapX, height: BOX.top + row * (BOX.height + BOX.gapY), deepest };
}

function lineTo(node) {
  const x = node.parent.x + BOX.width;
  const [y, z] = [node.parent.y + BOX.height / 2, node.y + BOX.height / 2];
  const half = BOX.gapX / 2;
  const path = `M${x} ${y}C${x + half} ${y} ${x + half} ${z} ${x + BOX.gapX} ${z}`;
  return makeSvg("path", { d: path, class: `edge ${node.kind}` });
}

function box(node) {
  const text = visible(node.text);
  const short = text.length > LETTERS ? `${text.slice(0, LETTERS - 1)}…` : text;
  const chance = node.draft?.confidence;
  const style = node.who ? styleOf(node.who) : node.kind === "own" ? "model" : "root";
  const parts = [
    makeSvg("title", {}, describe(node)),
    makeSvg("rect", { width: BOX.width, height: BOX.height, rx: 7 }),
    makeSvg("text", { x: 8, y: 15, class: "token" }, short),
    makeSvg("text", { x: 8, y: 27, class: "detail" }, detail(node)),
  ];
  if (chance !== undefined && chance !== null) {
    const width = (BOX.width - 12) * Math.min(1, chance);
    parts.push(makeSvg("rect", { class: "bar", x: 6, y: BOX.height - 5, height: 2.5, rx: 1.25, width }));
  }
  return makeSvg("g", { transform: `translate(${node.x} ${node.y})`, class: `node ${node.kind} ${style}` }, ...parts);
}

function detail(node) {
  if (node.kind === "root") return "so far";
  if (node.kind === "own") return "the model";
  const chance = node.draft.confidence;
  const mark = node.kind === "accepted" ? "✓" : "✗";
  return chance === null ? mark : `${mark} ${percent(Math.min(1, chance))}${node.who.kind === "lookup" ? " lookup" : ""}`;
}

function describe(node) {
  const text = `“${node.text}”`;
  if (node.kind === "root") return `${text}, the last token before this step`;
  if (node.kind === "own") return `${text}, chosen by the model itself`;
  const chance = node.draft.confidence;
  const expected = chance === null ? "" : `, expected right with ${percent(Math.min(1, chance))}`;
  return `${text}, guessed by ${node.who.name}${expected}: ${node.kind === "accepted" ? "right" : "wrong"}`;
}

/** The drawing, and the same as a nested list for those who do not see it. before: the last token's text. */
export function drawStep(step, before) {
  const { nodes, width, height, deepest } = layout(step, before);
  const heads = Array.from({ length: deepest }, (_, index) =>
    makeSvg("text", { x: (index + 1) * (BOX.width + BOX.gapX), y: 11, class: "column" }, `${index + 1} ahead`),
  );
  const drawing = makeSvg(
    "svg",
    { viewBox: `-2 0 ${width + 4} ${height + 2}`, width: width + 4, height: height + 2, "aria-hidden": "true" },
    ...heads,
    ...nodes.filter((node) => node.parent).sort((a, b) => (a.kind === "rejected" ? -1 : 1)).map(lineTo),
    ...nodes.map(box),
  );
  drawing.style.minWidth = `${SMALLEST * width}px`;
  const list = (node) => {
    const item = make("li", {}, describe(node));
    if (node.children.length) item.append(make("ul", {}, ...node.children.map(list)));
    return item;
  };
  return [
    make("div", { class: "tree", tabindex: 0, role: "group", "aria-label": "Tree of guesses" }, drawing),
    make("details", { class: "as-list" }, make("summary", {}, "As a list"), make("ul", {}, list(nodes[0]))),
  ];
}
