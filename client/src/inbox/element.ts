// <tidings-inbox>: a bell with the number of unread notifications and a panel with the list of them, or with the
// attribute `inline` the list alone. It shows what an InboxClient knows and asks it for changes; it keeps no state of
// the inbox itself. Everything that came from users is set as text.

import { InboxClient } from "../client.js";
import type { Credential, InboxError, InboxOptions, Item, Status } from "../types.js";
import type { Toasts } from "./alerts.js";
import { Announcer } from "./announcer.js";
import { type Action, contentOf, plainText, shortened } from "./content.js";
import { button, icon, make, say, set } from "./dom.js";
import { languageOf, load, messagesOf } from "./messages.js";
import { place } from "./place.js";
import { type RenderItem, Row, type RowEvents, type View } from "./row.js";
import { type Strings, type StringsPatch, stringsFor } from "./strings.js";
import { style } from "./style.js";

const TICK_MS = 30_000; // the finest unit shown is a minute
const DOWN_PX = 40; // a list that is scrolled by less still shows its first row
const LANGUAGE_MS = 3000; // how long the first texts wait for their language; English stands in for it then

/** Boolean attributes, and the properties of their names. */
const FLAGS = ["inline", "notify", "silent", "sound", "toasts"] as const;

/** What is set before the element is defined would hide the accessors, so it is set once more. */
const PROPERTIES = ["client", "credential", "strings", "renderItem", ...FLAGS] as const;

/**
 * Whether a boolean attribute or property is on. As in HTML any text is, but for "false": that is what React before 19, Vue
 * and templates make of `inline={false}`.
 */
const isOn = (value: unknown) => value === "" || (Boolean(value) && String(value).toLowerCase() !== "false");

type Wish = (client: InboxClient) => Promise<void>;

// In node, where there is no DOM, the module can be loaded all the same.
const Base = globalThis.HTMLElement ?? (class {} as typeof HTMLElement);

export interface TidingsInbox extends Record<(typeof FLAGS)[number], boolean> {}

export class TidingsInbox extends Base {
  static readonly observedAttributes = ["token", "url", "path", "lang", "inline", "notify", "sound", "toasts"];

  static {
    for (const name of FLAGS) {
      const get = function (this: TidingsInbox) {
        return isOn(this.getAttribute(name));
      };
      const set = function (this: TidingsInbox, on: unknown) {
        if (!isOn(on)) this.removeAttribute(name);
        else if (!this[name]) this.setAttribute(name, "");
      };
      Object.defineProperty(TidingsInbox.prototype, name, { get, set });
    }
  }

  readonly #root = this.attachShadow({ mode: "open" });
  readonly #badge = make("span", { class: "badge", "aria-hidden": "true" });
  readonly #face = make("slot", { name: "bell" }, icon("bell"));
  readonly #bell = make(
    "button",
    { class: "bell", type: "button", "aria-haspopup": "dialog", "aria-expanded": "false", "aria-controls": "panel" },
    this.#face,
    this.#badge,
  );
  readonly #title = make("span", { class: "title" });
  readonly #count = make("span", { class: "badge", part: "count", "aria-hidden": "true" });
  readonly #readAll = button({ class: "quiet", part: "mark-all" }, () => void this.#ask((client) => client.markAllRead()));
  readonly #errorText = make("span");
  readonly #dismiss = button({ class: "toggle", part: "dismiss" }, () => this.#fail(), icon("close"));
  readonly #retry = button({ class: "quiet", part: "retry" }, () => this.#failed && void this.#ask(this.#failed));
  readonly #error = make("div", { class: "error", role: "alert", hidden: true }, this.#errorText, this.#retry, this.#dismiss);
  readonly #list = make("ul", { class: "list", role: "list" });
  readonly #emptyText = make("p");
  readonly #reconnect = button({ class: "quiet", part: "retry" }, () => this.#client?.checkConnection());
  readonly #empty = make("div", { class: "empty" }, make("slot", { name: "empty" }, icon("bell"), this.#emptyText), this.#reconnect);
  readonly #skeleton = make("div", { class: "skeleton", "aria-hidden": "true" }, ...[1, 2, 3].map(() => make("span")));
  readonly #fresh = button({ class: "fresh" }, () => this.#order[0] && this.#focusRow(this.#order[0]));
  readonly #more = button({ class: "quiet more", part: "more" }, () => void this.#loadMore());
  readonly #statusText = make("span");
  readonly #scroll = make("div", { class: "scroll" }, this.#fresh, this.#list, this.#empty, this.#skeleton, this.#more);
  readonly #status = make("p", { class: "status" }, this.#statusText);
  readonly #permit = button({ class: "quiet", part: "notify" }, () => void this.#askToNotify());
  readonly #panel = make(
    "div",
    { class: "panel", id: "panel", tabindex: "-1" },
    make("div", { class: "header" }, make("slot", { name: "header" }, this.#title, this.#count), this.#readAll),
    this.#error,
    this.#scroll,
    make("div", { class: "footer" }, make("slot", { name: "footer" }), this.#status, this.#permit),
  );
  readonly #announcer = new Announcer();

  readonly #rows = new Map<string, Row>();
  #order: Row[] = [];
  #current: Row | undefined;
  #view: View = { ...stringsFor("en"), renderItem: undefined };
  #strings: StringsPatch | undefined;
  #renderItem: RenderItem | undefined;
  #tag = ""; // the language tag that was laid out
  #isLaidOut = false;

  #given: InboxClient | undefined; // by the page, which opens and closes it
  #own: InboxClient | undefined; // made here, from the attributes
  #client: InboxClient | undefined; // the one that is shown
  #offs: (() => void)[] = [];
  #credential: InboxOptions["credential"];
  #settling = false;
  #changed = false; // attributes differ from those that #own was made from

  #ticking: ReturnType<typeof setInterval> | undefined;
  #wasOffline = false;
  #loadingMore = false;
  #alerts: Promise<typeof import("./alerts.js") | undefined> | undefined;
  #toasts: Toasts | undefined;
  #isNotifiable = false;
  #failed: Wish | undefined; // what may be tried again
  #newest = ""; // the id of the first row
  #freshCount = 0; // rows that came above while the list was scrolled down
  // Who has the focus on the button loads with it: rows that come by themselves would take the focus away.
  readonly #end = new IntersectionObserver(([end]) => {
    const isLive = this.#client?.status.name === "live";
    if (end?.isIntersecting && isLive && this.#root.activeElement !== this.#more) void this.#loadMore();
  });
  readonly #languages = new MutationObserver(() => this.#language() !== this.#tag && this.#layOut());
  readonly #place = () => place(this.#panel, this.#bell, "var(--_height)");

  constructor() {
    super();
    this.#root.adoptedStyleSheets = [style()];
    this.#root.append(this.#bell, this.#panel, this.#announcer.element);
    this.#bell.popoverTargetElement = this.#panel;
    this.#face.addEventListener("slotchange", () => this.#render());
    this.#panel.addEventListener("beforetoggle", (event) => this.#beforeToggle(event as ToggleEvent));
    this.#panel.addEventListener("toggle", (event) => this.#toggled(event as ToggleEvent));
    this.#panel.addEventListener("keydown", (event) => this.#onKey(event));
    this.#scroll.addEventListener("scroll", () => this.#freshCount > 0 && this.#showFresh(), { passive: true });
    this.#end.observe(this.#more);
    this.#list.addEventListener("focusin", (event) => this.#onFocus(event.target));
  }

  connectedCallback(): void {
    for (const name of PROPERTIES) this.#setAgain(name);
    this.#ticking = setInterval(() => this.#tick(), TICK_MS);
    for (let root = this.getRootNode(); ; root = root.host.getRootNode()) {
      this.#languages.observe(root, { subtree: true, attributeFilter: ["lang"] });
      if (!(root instanceof ShadowRoot)) break;
    }
    this.#layOut();
    this.#settle();
  }

  disconnectedCallback(): void {
    clearInterval(this.#ticking);
    this.#languages.disconnect();
    this.#announcer.stop();
    this.#follow(false); // the browser closes the panel without an event
    this.#settle();
  }

  attributeChangedCallback(name: string): void {
    const isLook = !["token", "url", "path"].includes(name);
    this.#changed ||= !isLook;
    if (!this.isConnected) return;
    if (isLook) return this.#layOut();
    this.#settle();
  }

  /** The client that is shown. One that the page sets is its own to open and close; else it is made from `token`. */
  get client(): InboxClient | undefined {
    return this.#given ?? this.#own;
  }
  set client(client: InboxClient | undefined) {
    this.#given = client;
    this.#settle();
  }

  /** What the user logs in with, beside the token: a credential, or a function that fetches one. */
  get credential(): InboxOptions["credential"] {
    return this.#credential;
  }
  set credential(credential: Credential | (() => Credential | Promise<Credential>) | undefined) {
    this.#credential = credential;
    this.#changed = true;
    this.#settle();
  }

  /** Texts to show instead of those of the language. */
  get strings(): StringsPatch | undefined {
    return this.#strings;
  }
  set strings(strings: StringsPatch | undefined) {
    this.#strings = strings;
    this.#layOut();
  }

  /** Shows an item in the page's own way: a text, or a node, which is put into the page's tree. */
  get renderItem(): RenderItem | undefined {
    return this.#renderItem;
  }
  set renderItem(renderItem: RenderItem | undefined) {
    this.#renderItem = renderItem;
    this.#layOut();
  }

  /** Whether the panel is open; inline it always is. */
  get open(): boolean {
    return this.inline || this.#isPopped();
  }

  /** What a notification says here, as plain text: for a toast of the page's own. */
  textOf(item: Item): string {
    return plainText(contentOf(item, this.#view.strings));
  }

  show(): void {
    if (!this.open) this.#panel.showPopover();
  }

  hide(): void {
    if (this.#isPopped()) this.#panel.hidePopover();
  }

  // The client

  #setAgain(name: (typeof PROPERTIES)[number]): void {
    if (!Object.hasOwn(this, name)) return;
    const value = this[name];
    delete (this as Record<string, unknown>)[name];
    (this as Record<string, unknown>)[name] = value;
  }

  /** Changes to the client that is wanted now, once all that the page does in one go is done. */
  #settle(): void {
    if (this.#settling) return;
    this.#settling = true;
    queueMicrotask(() => {
      this.#settling = false;
      const mine = this.isConnected && !this.#given ? (this.getAttribute("token") ?? "") : "";
      if (this.#own && (mine === "" || this.#changed)) {
        this.#own.close();
        this.#own = undefined;
      }
      if (mine !== "" && !this.#own) this.#own = this.#make(mine);
      this.#changed = false;
      this.#listen(this.isConnected ? this.client : undefined);
      this.#render();
    });
  }

  #make(token: string): InboxClient {
    const options: InboxOptions = { token };
    const [url, path] = [this.getAttribute("url"), this.getAttribute("path")];
    if (url !== null) options.url = url;
    if (path !== null) options.path = path;
    if (this.#credential !== undefined) options.credential = this.#credential;
    const client = new InboxClient(options);
    client.connect();
    return client;
  }

  #listen(client: InboxClient | undefined): void {
    if (client === this.#client) return;
    for (const off of this.#offs) off();
    this.#client = client;
    this.#wasOffline = false;
    this.#fail();
    this.#offs = client
      ? [
          client.on("change", () => this.#render()),
          client.on("message", (item) => this.#announce(item)),
          client.on("toast", (item) => void this.#toast(item)),
          client.on("error", (error) => REFUSED.has(error.code) || this.#fail(error)), // the status tells that
        ]
      : [];
  }

  /** Asks for something, and tells if it is refused: the client's `error` does not tell all of that. */
  async #ask(wish: Wish): Promise<boolean> {
    this.#fail();
    try {
      if (this.#client) await wish(this.#client);
      return true;
    } catch (error) {
      this.#fail(error as InboxError, wish);
      return false;
    }
  }

  async #loadMore(): Promise<void> {
    if (this.#loadingMore) return;
    const last = this.#order.at(-1);
    const hadFocus = this.#root.activeElement === this.#more;
    this.#loadingMore = true;
    this.#render();
    const isLoaded = await this.#ask((client) => client.loadMore());
    this.#loadingMore = false;
    this.#render();
    this.#end.unobserve(this.#more);
    if (isLoaded) this.#end.observe(this.#more); // which looks again
    // The first row that came is where reading goes on; the button may be gone.
    const next = last && this.#order[this.#order.indexOf(last) + 1];
    const { activeElement } = this.#root;
    if (hadFocus && next && (!activeElement || activeElement === this.#more)) this.#focusRow(next);
  }

  // What is shown

  /** Shows all of it anew: the language, the page's own texts and rows, the place of the list. */
  #layOut(mayLoad = true): void {
    if (!this.isConnected) return;
    this.#loadAlerts();
    this.#tag = this.#language();
    const language = languageOf(this.#tag) ?? "en";
    if (mayLoad && !messagesOf(language)) {
      const late = new Promise((resolve) => setTimeout(resolve, LANGUAGE_MS));
      const done = load(language).then(() => this.#layOut(false));
      void Promise.race([done, late]).then(() => this.#isLaidOut || this.#layOut(false));
      if (!this.#isLaidOut) return; // English would only be seen to go
    }
    this.#isLaidOut = true;
    this.#view = { ...stringsFor(this.#tag, this.#strings), renderItem: this.#renderItem };
    const { strings, locale } = this.#view;
    const { inline } = this;
    set(this.#panel, { popover: inline ? false : "auto", role: inline ? "group" : "dialog", lang: locale });
    set(this.#list, { "aria-label": strings.title });
    set(this.#dismiss, { "aria-label": strings.dismiss });
    say(this.#title, strings.title);
    say(this.#readAll, strings.markAllRead);
    say(this.#permit, strings.notify);
    for (const retry of [this.#retry, this.#reconnect]) say(retry, strings.retry);
    this.#render();
  }

  /** The language of the closest ancestor that has one, also beyond shadow roots. */
  #language(): string {
    for (let at: Element | null = this; at;) {
      const named = at.closest("[lang]");
      if (named) return named.getAttribute("lang") || "en";
      const root = at.getRootNode();
      at = root instanceof ShadowRoot ? root.host : null;
    }
    return "en";
  }

  #render(): void {
    if (!this.isConnected || !this.#isLaidOut) return;
    const { strings } = this.#view;
    const { items = [], unread = 0, hasMore = false, loaded = false } = this.#client ?? {};
    const status: Status = this.#client?.status ?? { name: "offline" };
    for (const badge of [this.#badge, this.#count]) {
      say(badge, unread > 99 ? "99+" : String(unread));
      badge.hidden = unread === 0;
    }
    set(this.#bell, { "aria-label": this.#nameOfBell(unread) });
    set(this.#panel, { "aria-label": strings.bell(unread) });
    if (unread === 0 && this.#root.activeElement === this.#readAll) this.#panel.focus(); // it would get lost
    this.#readAll.disabled = unread === 0;
    this.#renderRows(items);
    this.#more.hidden = !hasMore;
    say(this.#more, this.#loadingMore ? strings.loading : strings.loadMore);
    const isOffline = status.name === "offline";
    const isEmpty = items.length === 0 && !hasMore;
    this.#skeleton.hidden = !isEmpty || loaded || isOffline;
    this.#empty.hidden = !isEmpty || !this.#skeleton.hidden;
    this.#reconnect.hidden = loaded || !this.#client || REFUSED.has(status.reason);
    say(this.#emptyText, loaded ? strings.empty : strings.notLoaded);
    const said = statusText(status, strings);
    say(this.#statusText, said);
    this.#status.title = status.reason ?? "";
    this.#status.className = `status ${status.name}`;
    if (this.#client && isOffline !== this.#wasOffline && (isOffline || status.name === "live")) {
      this.#wasOffline = isOffline;
      if (!this.silent) this.#announcer.say(said);
    }
    const askable = this.notify && this.#isNotifiable && globalThis.Notification?.permission === "default";
    this.#permit.hidden = !askable;
  }

  /** Whoever says what they see must hit it: a text that the page put into the bell is part of its name. */
  #nameOfBell(unread: number): string {
    const name = this.#view.strings.bell(unread);
    const seen = this.#face.assignedNodes().map((node) => node.textContent).join(" ").trim().replace(/\s+/g, " ");
    return name.toLowerCase().includes(seen.toLowerCase()) ? name : `${seen}, ${name}`;
  }

  /** Brings the rows into the order of the items, moving as few as possible: one that moves would lose the focus. */
  #renderRows(items: readonly Item[]): void {
    const focused = this.#order.find((row) => row.hasFocus);
    const at = focused ? this.#order.indexOf(focused) : -1;
    const known = new Set(items.map((item) => item.id));
    for (const [id, row] of this.#rows) {
      if (known.has(id)) continue;
      row.remove();
      this.#rows.delete(id);
    }
    this.#order = items.map((item) => this.#row(item));
    const isDown = this.#scroll.scrollTop > DOWN_PX; // before rows come
    const above = items.findIndex(({ id }) => id === this.#newest);
    this.#newest = items[0]?.id ?? "";
    let next = this.#list.firstElementChild;
    for (const { element } of this.#order) {
      if (element === next) next = next.nextElementSibling;
      else this.#list.insertBefore(element, next);
    }
    if (isDown) this.#freshCount += Math.max(above, 0);
    this.#showFresh();
    if (!this.#current || !this.#order.includes(this.#current)) {
      this.#setCurrent(this.#order[Math.max(at, 0)] ?? this.#order.at(-1));
    }
    if (!focused || this.#order.includes(focused)) return;
    if (this.#current) this.#focusRow(this.#current);
    else this.#panel.focus();
  }

  /** Tells of rows above what is seen, until they are. */
  #showFresh(): void {
    if (this.#scroll.scrollTop <= DOWN_PX) this.#freshCount = 0;
    this.#fresh.hidden = this.#freshCount === 0;
    say(this.#fresh, this.#view.strings.arrived(this.#freshCount));
  }

  #row(item: Item): Row {
    let row = this.#rows.get(item.id);
    if (!row) {
      row = new Row(this, item, this.#rowEvents);
      row.current = false;
      this.#rows.set(item.id, row);
    }
    row.update(item, this.#view);
    return row;
  }

  #tick(): void {
    const now = Date.now();
    for (const row of this.#order) row.tick(now);
  }

  /** Shows why something did not work, or nothing more of it. */
  #fail(error?: InboxError, wish?: Wish): void {
    this.#failed = wish;
    this.#retry.hidden = !wish;
    this.#error.hidden = error === undefined;
    say(this.#errorText, error ? this.#view.strings.failed(error) : "");
  }

  // What the user does

  readonly #rowEvents: RowEvents = {
    chosen: (item, url, event) => this.#choose(item, this.#dispatch("tidings-item", item), url, event),
    acted: (item, action, event) => this.#choose(item, this.#dispatch("tidings-action", { item, action }), action.url, event),
    toggled: (item) => void this.#ask((client) => (item.read ? client.markUnread(item.id) : client.markRead(item.id))),
  };

  #choose(item: Item, isWanted: boolean, url: string | undefined, event: MouseEvent): void {
    if (!isWanted) return event.preventDefault();
    if (!item.read && item.seq) void this.#ask((client) => client.markRead(item.id)); // what is in the inbox
    // With another button or a key the browser opens it elsewhere.
    const isPlain = event.button === 0 && !(event.ctrlKey || event.metaKey || event.shiftKey || event.altKey);
    if (url === undefined || !isPlain) return;
    this.hide();
    const isOnLink = event.composedPath().some((at) => at instanceof HTMLAnchorElement);
    if (!this.#dispatch("tidings-navigate", { item, url })) event.preventDefault();
    else if (!isOnLink) location.assign(url);
  }

  /** Tells the page; false if it prevented what would happen next. */
  #dispatch(name: keyof InboxElementEvents, detail?: unknown): boolean {
    const cancelable = name !== "tidings-open" && name !== "tidings-toast";
    return this.dispatchEvent(new CustomEvent(name, { detail, bubbles: true, composed: true, cancelable }));
  }

  #onKey(event: KeyboardEvent): void {
    const from = this.#focusedRow();
    if (!from && this.#root.activeElement !== this.#panel) return;
    const at = from ? this.#order.indexOf(from) : -1;
    const last = this.#order.length - 1;
    const to = new Map([
      ["ArrowDown", Math.min(at + 1, last)],
      ["ArrowUp", Math.max(at - 1, 0)],
      ["Home", 0],
      ["End", last],
    ]).get(event.key);
    const row = to === undefined ? undefined : this.#order[to];
    if (!row || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    this.#focusRow(row, from !== undefined && this.#root.activeElement === from.toggle);
  }

  #onFocus(target: EventTarget | null): void {
    const row = this.#order.find(({ element }) => element.contains(target as Node));
    if (row) this.#setCurrent(row);
  }

  #focusedRow(): Row | undefined {
    const active = this.#root.activeElement;
    return active ? this.#order.find(({ element }) => element.contains(active)) : undefined;
  }

  #setCurrent(row: Row | undefined): void {
    if (this.#current) this.#current.current = false;
    if (row) row.current = true;
    this.#current = row;
  }

  #focusRow(row: Row, toggle = false): void {
    this.#setCurrent(row);
    (toggle ? row.toggle : row.open).focus();
    row.element.scrollIntoView({ block: "nearest" });
  }

  // The panel

  #isPopped(): boolean {
    return this.#panel.hasAttribute("popover") && this.#panel.matches(":popover-open");
  }

  #beforeToggle({ newState }: ToggleEvent): void {
    if (newState === "open") this.#place();
  }

  #toggled({ newState }: ToggleEvent): void {
    const open = newState === "open" && this.isConnected;
    this.#follow(open);
    if (open) {
      this.#tick();
      if (this.#order[0]) this.#focusRow(this.#order[0]);
      else this.#panel.focus();
      this.#dispatch("tidings-open");
    } else {
      // The focus goes back to the bell, unless a click has taken it to something else.
      const { activeElement } = this.getRootNode() as Document | ShadowRoot;
      if (!activeElement || activeElement === document.body || activeElement === this) this.#bell.focus();
    }
  }

  /** Keeps an open panel at its bell. */
  #follow(open: boolean): void {
    set(this.#bell, { "aria-expanded": String(open) });
    for (const [target, name] of [
      [window, "resize"],
      [document, "scroll"],
    ] as const) {
      if (open) target.addEventListener(name, this.#place, { capture: true, passive: true });
      else target.removeEventListener(name, this.#place, { capture: true });
    }
  }

  // What is told

  #announce(item: Item): void {
    const { strings } = this.#view;
    if (!this.silent) this.#announcer.arrived(this.textOf(item), (count) => strings.arrived(count));
  }

  /** Called in one tab of the browser. */
  async #toast(item: Item): Promise<void> {
    if (isFirst(item, "event")) this.#dispatch("tidings-toast", item);
    const alerts = await this.#alerts;
    if (!alerts || !this.isConnected) return;
    const { strings, locale } = this.#view;
    const { title, message, image, url } = contentOf(item, strings);
    if (document.visibilityState === "hidden") {
      const isAllowed = this.notify && globalThis.Notification?.permission === "granted";
      if (!isAllowed || !isFirst(item, "notification")) return;
      const [head, body] = message ? [shortened(title), message] : [strings.title, title];
      const options = { body: shortened(body), tag: item.id, lang: locale, data: { id: item.id, url }, ...(image && { icon: image }) };
      const opened = () => {
        window.focus();
        this.show();
      };
      return alerts.notify(head, options, opened);
    }
    if (this.sound && isFirst(item, "sound")) void alerts.playSound();
    if (this.toasts && !this.#isPopped() && isFirst(item, "toast")) this.#showToast(item, alerts);
  }

  #showToast(item: Item, alerts: typeof import("./alerts.js")): void {
    if (!this.#toasts) {
      this.#toasts = new alerts.Toasts();
      this.#root.adoptedStyleSheets.push(this.#toasts.sheet);
      this.#root.append(this.#toasts.element);
    }
    let close = () => {};
    const events = Object.entries(this.#rowEvents).map(([name, told]) => [name, (...args: unknown[]) => (close(), told(...args))]);
    const row = new Row(this, item, Object.fromEntries(events) as RowEvents);
    row.update(item, { ...this.#view, renderItem: undefined });
    row.current = true;
    row.toggle.hidden = item.seq === 0; // it is not in the inbox
    close = this.#toasts.show(row.element, this.#view.strings);
  }

  /** Loads what the page has asked for. */
  #loadAlerts(): void {
    if (this.#alerts || !(this.notify || this.toasts || this.sound)) return;
    this.#alerts = (async () => import("./alerts.js"))().catch(() => undefined);
    const offer = () => {
      this.#isNotifiable = true;
      this.#render();
    };
    void this.#alerts.then((alerts) => alerts?.notifiable().then(offer, () => {}));
  }

  async #askToNotify(): Promise<void> {
    await Notification.requestPermission();
    this.#render();
  }
}

// Elements that share a client are given the same item; one of them tells of it.
const told: Record<string, WeakSet<Item>> = {};

function isFirst(item: Item, how: string): boolean {
  const items = (told[how] ??= new WeakSet());
  return !items.has(item) && Boolean(items.add(item));
}

/** Why a user is offline matters to them only if it is for them to change. */
const REFUSED: ReadonlySet<string | undefined> = new Set(["unauthorized", "login_expired", "credential"]);

function statusText({ name, reason }: Status, strings: Strings): string {
  if (name === "offline") return REFUSED.has(reason) ? strings.refused : strings.offline;
  return { connecting: strings.connecting, "catching-up": strings.catchingUp, live: strings.live }[name];
}

export interface InboxElementEvents {
  "tidings-open": CustomEvent<null>;
  "tidings-item": CustomEvent<Item>;
  "tidings-action": CustomEvent<{ item: Item; action: Action }>;
  "tidings-navigate": CustomEvent<{ item: Item; url: string }>;
  "tidings-toast": CustomEvent<Item>;
}

declare global {
  interface HTMLElementTagNameMap {
    "tidings-inbox": TidingsInbox;
  }
  interface HTMLElementEventMap extends InboxElementEvents {}
}
