// What a screen reader reads out: politely, and several notifications that come together as one sentence.

import { make } from "./dom.js";

const AFTER_MS = 400; // what comes within this time is read out at once

export class Announcer {
  readonly element = make("div", { class: "unseen", part: false, role: "status" });
  #timer: ReturnType<typeof setTimeout> | undefined;
  #count = 0;
  #last = "";

  say(text: string): void {
    this.element.replaceChildren(text); // a new node is read out even if the text is the same again
  }

  /** Says `text` soon, or what `many` makes of the number if more came until then. */
  arrived(text: string, many: (count: number) => string): void {
    this.#count += 1;
    this.#last = text;
    this.#timer ??= setTimeout(() => {
      const said = this.#count > 1 ? many(this.#count) : this.#last;
      this.stop();
      this.say(said);
    }, AFTER_MS);
  }

  /** Forgets what was to be said. */
  stop(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#count = 0;
  }
}
