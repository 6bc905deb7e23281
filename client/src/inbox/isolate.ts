// Names and texts of other people within a sentence. One in Arabic, or with characters that change the direction of text
// (U+202E), must not turn the sentence round, so each is isolated: FIRST STRONG ISOLATE, the text, POP DIRECTIONAL ISOLATE.

/** The parts of a text that are isolated, without their ends. */
export const ISOLATED = /\u2068([^\u2069]*)\u2069/;

export const isolated = (text: string) => `\u2068${text.replace(/[\u202a-\u202e\u2066-\u2069]/g, "")}\u2069`;

/** As plain text, for a label or another page's toast: isolated only if that makes a difference. */
export const plain = (text: string) =>
  /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/.test(text) ? text : text.replace(/[\u2068\u2069]/g, "");
