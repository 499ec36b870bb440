// Which piece of the visible text each token wrote.
//
// The text of an answer comes in `content`, without reasoning marks or calls, and held back where it may be part of a
// stop string; the tokens come in `steps`. What is shown is always the text; tokens only tint it.

const LOOK_AHEAD = 64;

export class Aligner {
  #queue = []; // tokens whose text was not shown yet

  /** step: as the service sends it. number: of the step in the answer, from 0. */
  add(step, number) {
    step.tokens.forEach((token, place) => {
      if (token.text) this.#queue.push({ text: token.text, number, place });
    });
  }

  /** The text in pieces: {text, number, place} of a token, or {text} where no token fits. */
  take(text) {
    const pieces = [];
    while (text) {
      const index = this.#queue.slice(0, LOOK_AHEAD).findIndex((t) => text.startsWith(t.text) || t.text.startsWith(text));
      if (index < 0) {
        pieces.push({ text });
        break;
      }
      this.#queue.splice(0, index); // hidden, such as the marks of reasoning
      const token = this.#queue[0];
      const shown = token.text.length <= text.length ? token.text : text;
      pieces.push({ ...token, text: shown });
      text = text.slice(shown.length);
      token.text = token.text.slice(shown.length);
      if (!token.text) this.#queue.shift();
    }
    return pieces;
  }
}
