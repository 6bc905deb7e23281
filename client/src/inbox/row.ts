// One notification in the list: a button over the whole row that opens it, and one that marks it read or unread.

import type { Item } from "../types.js";
import { button, icon, iconOf, make, say, set } from "./dom.js";
import { type Strings, sentenceOf } from "./strings.js";
import { ago, fullTime } from "./time.js";

/** What a page shows instead of the sentence: a text, or a node, which stays in the page's own tree and style. */
export type RenderItem = (item: Item) => Node | string;

/** How rows are shown; a new one shows them all anew. */
export interface View {
  readonly locale: string;
  readonly strings: Strings;
  readonly renderItem: RenderItem | undefined;
}

const INTERACTIVE = "a, button, input, select, textarea, label, summary, [tabindex]";

export class Row {
  readonly element = make("li", { class: "row" });
  readonly open: HTMLButtonElement;
  readonly toggle: HTMLButtonElement;
  readonly #host: HTMLElement;
  readonly #mark = make("span", { class: "unseen", part: false });
  readonly #text = make("span", { class: "text", dir: "auto" });
  readonly #time = make("time", { class: "time" });
  readonly #body = make("div", { class: "body" });
  #item: Item;
  #view: View | undefined;
  #content: HTMLElement | undefined; // around what the page rendered

  constructor(host: HTMLElement, item: Item, activate: (item: Item) => void, toggle: (item: Item) => void) {
    this.#host = host;
    this.#item = item;
    this.open = button({ class: "open", part: "item" }, () => {}); // its click reaches the row
    this.toggle = button({ class: "toggle" }, () => toggle(this.#item), make("span", { class: "dot" }));
    const kind = iconOf(item.entityType);
    this.element.append(make("span", { class: `icon ${kind}`, part: "icon" }, icon(kind)), this.#body, this.toggle);
    this.#body.append(this.open); // for good: it would lose the focus if it was moved
    this.element.addEventListener("click", (event) => {
      const path = event.composedPath();
      const inside = path.slice(0, path.indexOf(this.element));
      const other = inside.some((one) => one !== this.open && one instanceof Element && one.matches(INTERACTIVE));
      if (!other) activate(this.#item);
    });
  }

  /** Shows `item`; does nothing if that is what is shown. */
  update(item: Item, view: View): void {
    if (item === this.#item && view === this.#view) return;
    const isRendered = item === this.#item && view.renderItem === this.#view?.renderItem;
    this.#item = item;
    this.#view = view;
    const hadFocus = this.hasFocus;
    const sentence = this.#show(item, view, isRendered);
    if (hadFocus && !this.hasFocus) this.open.focus(); // the page's node had it and is gone
    const { strings, locale } = view;
    this.element.classList.toggle("unread", !item.read);
    set(this.element, { part: item.read ? "row" : "row unread" });
    say(this.#mark, item.read ? "" : `${strings.unread}: `);
    set(this.toggle, { "aria-label": item.read ? strings.markUnread(sentence) : strings.markRead(sentence) });
    set(this.#time, { datetime: item.createdAt, title: fullTime(item.createdAt, locale) });
    this.tick(Date.now());
  }

  /** Says again how long ago it was. */
  tick(now: number): void {
    if (this.#view) say(this.#time, ago(this.#item.createdAt, this.#view.locale, now));
  }

  /** Whether Tab stops here; arrow keys move between the rows. */
  set current(current: boolean) {
    this.open.tabIndex = this.toggle.tabIndex = current ? 0 : -1;
  }

  /** Whether the focus is in it, or in what the page put into it. */
  get hasFocus(): boolean {
    const { activeElement } = this.#host.getRootNode() as Document | ShadowRoot;
    const own = this.#host.shadowRoot?.activeElement ?? null;
    return this.element.contains(own) || (this.#content?.contains(activeElement) ?? false);
  }

  remove(): void {
    this.element.remove();
    this.#content?.remove();
  }

  /** Puts in what the item says, and returns it as a text. A node of the page that is there stays where it is. */
  #show(item: Item, view: View, isRendered: boolean): string {
    const sentence = sentenceOf(item, view.strings);
    const shown = this.#content?.firstChild;
    const own = isRendered && shown ? shown : (render(item, view.renderItem) ?? sentence);
    if (own === shown) return this.#said(sentence);
    this.#content?.remove();
    this.#content = undefined;
    while (this.open.nextSibling) this.open.nextSibling.remove();
    if (typeof own === "string") {
      say(this.#text, own);
      this.open.replaceChildren(this.#mark, this.#text, " ", this.#time);
      this.open.removeAttribute("aria-labelledby");
      return own;
    }
    // A node may hold links and buttons of its own, which must not stand inside a button: the one of the row lies
    // behind it and takes its name from it.
    const name = `item-${item.id}`;
    const slot = make("div", { class: "content", id: name }, this.#mark, make("slot", { name }), " ", this.#time);
    this.open.replaceChildren();
    set(this.open, { "aria-labelledby": name });
    this.#body.append(slot);
    this.#content = make("div", { slot: name }, own);
    this.#host.append(this.#content);
    return this.#said(sentence);
  }

  readonly #said = (sentence: string) => this.#content?.textContent.trim() || sentence;
}

/** What the page makes of an item; a mistake there is reported and costs the page its own content, not the inbox. */
function render(item: Item, renderItem: RenderItem | undefined): Node | string | undefined {
  try {
    return renderItem?.(item);
  } catch (error) {
    reportError(error);
    return undefined;
  }
}
