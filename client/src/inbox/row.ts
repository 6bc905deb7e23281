// One notification in the list: a link or button over the whole row that opens it, a button that marks it read or unread,
// one that shows a long text in full, and the actions that its data offers.

import type { Item } from "../types.js";
import { type Action, type Content, contentOf, initialsOf, shortened } from "./content.js";
import { button, icon, iconOf, image, make, say, sayIsolated, set } from "./dom.js";
import type { Strings } from "./strings.js";
import { ago, fullTime } from "./time.js";

/** What a page shows instead of the sentence: a text, or a node, which stays in the page's own tree and style. */
export type RenderItem = (item: Item) => Node | string;

/** How rows are shown; a new one shows them all anew. */
export interface View {
  readonly locale: string;
  readonly strings: Strings;
  readonly renderItem: RenderItem | undefined;
}

/** What the user does with a row. The event is a click, also one that opens a new tab; `url` is where it leads. */
export interface RowEvents {
  chosen(item: Item, url: string | undefined, event: MouseEvent): void;
  toggled(item: Item): void;
  acted(item: Item, action: Action, event: MouseEvent): void;
}

const INTERACTIVE = "a, button, input, select, textarea, label, summary, [tabindex]";

export class Row {
  readonly element = make("li", { class: "row" });
  open: HTMLElement = button({ class: "open", part: "item" }, () => {}); // its click reaches the row
  readonly toggle: HTMLButtonElement;
  readonly #host: HTMLElement;
  readonly #events: RowEvents;
  readonly #mark = make("span", { class: "unseen", part: false });
  readonly #text = make("span", { class: "text", dir: "auto" });
  readonly #message = make("span", { class: "message", dir: "auto" });
  readonly #icon = make("span");
  readonly #actions = make("div", { class: "actions" });
  #offered = ""; // what #actions are
  readonly #expand = button({ class: "quiet expand", part: "expand", hidden: true }, () => this.#setExpanded(!this.#isExpanded));
  readonly #time = make("time", { class: "time" });
  readonly #body = make("div", { class: "body" });
  #item: Item;
  #view: View | undefined;
  readonly #sizes = new ResizeObserver(() => this.#measure());
  #content: HTMLElement | undefined; // around what the page rendered
  #slot: HTMLElement | undefined; // where that is shown
  #tabIndex = -1;
  #isExpanded = false;
  #image: string | undefined; // what the icon shows

  constructor(host: HTMLElement, item: Item, events: RowEvents) {
    this.#host = host;
    this.#item = item;
    this.#events = events;
    this.toggle = button({ class: "toggle" }, () => events.toggled(this.#item), make("span", { class: "dot" }));
    this.element.append(this.#icon, this.#body, this.toggle);
    this.#body.append(this.open, this.#expand, this.#actions); // for good: they would lose the focus if they were moved
    onClick(this.element, (event) => {
      const path = event.composedPath();
      const inside = path.slice(0, path.indexOf(this.element));
      const other = inside.some((one) => one !== this.open && one instanceof Element && one.matches(INTERACTIVE));
      if (!other) events.chosen(this.#item, this.open.getAttribute("href") ?? undefined, event);
    });
  }

  /** Shows `item`; does nothing if that is what is shown. */
  update(item: Item, view: View): void {
    if (item === this.#item && view === this.#view) return;
    const isRendered = item === this.#item && view.renderItem === this.#view?.renderItem;
    this.#item = item;
    this.#view = view;
    const hadFocus = this.hasFocus;
    const content = contentOf(item, view.strings);
    this.#showIcon(content);
    this.#lead(content.url);
    const sentence = this.#show(content, view, isRendered);
    this.#setExpanded(this.#isExpanded);
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
    this.#tabIndex = current ? 0 : -1;
    const actions = this.#actions.children as Iterable<Element> as Iterable<HTMLElement>;
    for (const control of [this.open, this.toggle, this.#expand, ...actions]) control.tabIndex = this.#tabIndex;
  }

  /** Offers to show more where a text is cut. */
  #measure(): void {
    const isCut = [this.#text, this.#message].some(({ scrollHeight, clientHeight }) => scrollHeight > clientHeight + 1);
    this.#expand.hidden = !isCut && !this.#isExpanded;
  }

  /** Whether the focus is in it, or in what the page put into it. */
  get hasFocus(): boolean {
    const { activeElement } = this.#host.getRootNode() as Document | ShadowRoot;
    const own = this.#host.shadowRoot?.activeElement ?? null;
    return this.element.contains(own) || (this.#content?.contains(activeElement) ?? false);
  }

  remove(): void {
    this.#sizes.disconnect();
    this.element.remove();
    this.#content?.remove();
  }

  #setExpanded(isExpanded: boolean): void {
    this.#isExpanded = isExpanded;
    this.element.classList.toggle("expanded", isExpanded);
    set(this.#expand, { "aria-expanded": String(isExpanded) });
    const { showMore = "", showLess = "" } = this.#view?.strings ?? {};
    say(this.#expand, isExpanded ? showLess : showMore);
  }

  /** Makes the row a link to `url`, or a button. */
  #lead(url: string | undefined): void {
    const isLink = url !== undefined;
    if (isLink !== this.open.hasAttribute("href")) {
      const { open } = this;
      this.open = isLink ? make("a", { class: "open", part: "item" }) : button({ class: "open", part: "item" }, () => {});
      this.open.tabIndex = this.#tabIndex;
      this.open.append(...open.childNodes);
      open.replaceWith(this.open);
    }
    if (isLink) set(this.open, link(url));
  }

  #offer(actions: readonly Action[]): void {
    const offered = JSON.stringify(actions);
    if (offered === this.#offered) return;
    this.#offered = offered;
    this.#actions.replaceChildren(
      ...actions.map((action) => {
        const look = { class: "action", dir: "auto" };
        const element = action.url === undefined ? button(look, () => {}, action.label) : make("a", { ...look, ...link(action.url) }, action.label);
        element.tabIndex = this.#tabIndex;
        onClick(element, (event) => this.#events.acted(this.#item, action, event));
        return element;
      }),
    );
  }

  /** An image, or what stands for it: initials, or the icon of the type. */
  #showIcon({ image: src, name, title, message }: Content): void {
    // A name that stands nowhere else is what the image says.
    const isNew = name !== undefined && !`${title} ${message}`.includes(name);
    set(this.#icon, { "aria-hidden": !isNew && "true", role: isNew && "img", "aria-label": isNew && name });
    const wanted = JSON.stringify([src, name]);
    if (wanted === this.#image) return;
    this.#image = wanted;
    const kind = iconOf(this.#item.entityType);
    const initials = initialsOf(name ?? "");
    set(this.#icon, { class: `icon ${initials ? "initials" : kind}`, part: "icon" });
    const instead = initials || icon(kind);
    this.#icon.replaceChildren(src === undefined ? instead : image(src, () => this.#icon.replaceChildren(instead)));
  }

  /** Puts in what the item says, and returns it as a short text. A node of the page that is there stays where it is. */
  #show({ title, message, actions }: Content, view: View, isRendered: boolean): string {
    const shown = this.#content?.firstChild;
    const rendered = isRendered && shown ? shown : render(this.#item, view.renderItem);
    if (rendered !== undefined && rendered === shown) return this.#said(title);
    this.#content?.remove();
    this.#content = undefined;
    this.#slot?.remove();
    this.#slot = undefined;
    this.#offer(rendered === undefined ? actions : []);
    if (rendered === undefined || typeof rendered === "string") {
      sayIsolated(this.#text, rendered ?? title);
      sayIsolated(this.#message, rendered === undefined ? message : "");
      this.#message.hidden = this.#message.textContent === "";
      this.open.replaceChildren(this.#mark, this.#text, " ", this.#message, " ", this.#time);
      this.open.removeAttribute("aria-labelledby");
      this.#sizes.disconnect(); // what is observed anew is measured anew
      for (const text of [this.#text, this.#message]) this.#sizes.observe(text);
      return shortened(rendered ?? title);
    }
    // A node may hold links and buttons of its own, which must not stand inside a button: the one of the row lies
    // behind it and takes its name from it.
    const name = `item-${this.#item.id}`;
    this.#slot = make("div", { class: "content", id: name }, this.#mark, make("slot", { name }), " ", this.#time);
    this.open.replaceChildren();
    set(this.open, { "aria-labelledby": name });
    this.#body.append(this.#slot);
    this.#sizes.disconnect();
    this.#expand.hidden = true;
    this.#content = make("div", { slot: name }, rendered);
    this.#host.append(this.#content);
    return this.#said(title);
  }

  readonly #said = (title: string) => shortened(this.#content?.textContent.trim() || title);
}

/** The middle button opens a link in a new tab, and is no click. */
function onClick(element: HTMLElement, clicked: (event: MouseEvent) => void): void {
  element.addEventListener("click", clicked);
  element.addEventListener("auxclick", (event) => {
    if (event.button === 1 && event.composedPath().some((at) => at instanceof HTMLAnchorElement)) clicked(event);
  });
}

/** Other sites are not told which page of this one led to them. */
const link = (href: string) => ({ href, rel: new URL(href).origin === location.origin ? "noopener" : "noopener noreferrer" });

/** What the page makes of an item; a mistake there is reported and costs the page its own content, not the inbox. */
function render(item: Item, renderItem: RenderItem | undefined): Node | string | undefined {
  try {
    return renderItem?.(item);
  } catch (error) {
    reportError(error);
    return undefined;
  }
}
