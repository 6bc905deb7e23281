// Importing this registers <tidings-inbox>, where there is a DOM.

import { TidingsInbox } from "./element.js";

if (globalThis.customElements && !customElements.get("tidings-inbox"))
  customElements.define("tidings-inbox", TidingsInbox);

export { TidingsInbox };
export type { Action } from "./content.js";
export type { InboxElementEvents } from "./element.js";
export type { RenderItem } from "./row.js";
export type { Sentence, Strings, StringsPatch } from "./strings.js";
