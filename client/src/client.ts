// InboxClient: an inbox, live, for pages. It shows what a session knows: its own, or that of the tab that leads.

import { type Audience, Refused, Session } from "./session.js";
import { shown } from "./state.js";
import { defaultStorage } from "./storage.js";
import { type Command, type Shared, Tabs } from "./tabs.js";
import type { InboxEvents, InboxOptions, InboxStorage, Item, Mark, Status } from "./types.js";

const MAX_IDS = 500; // in one event, which is then far below what a server takes

/** All that there is to show, at one moment. */
export interface Snapshot {
  readonly items: readonly Item[];
  readonly unread: number;
  readonly hasMore: boolean;
  /** Whether the list came at least once, from the server or from what was kept: an empty one says something then. */
  readonly loaded: boolean;
  readonly status: Status;
}

type Handlers = { [E in keyof InboxEvents]: Set<(...args: InboxEvents[E]) => void> };

export class InboxClient {
  readonly #handlers: Handlers = { change: new Set(), message: new Set(), toast: new Set(), error: new Set() };
  readonly #storage: InboxStorage;
  #open = false; // as the page wishes
  #session: Session | undefined; // of the leader
  #tabs: Tabs | undefined;
  #heard: Shared | undefined; // from the leader, or what the last session knew
  #snapshot: Snapshot | undefined;
  #announcing = false;

  /** Does nothing yet: see `connect`. */
  constructor(private readonly options: InboxOptions) {
    if (!options.token) throw new TypeError("an inbox needs a token");
    this.#storage = options.storage ?? defaultStorage();
  }

  /** Opens the inbox, unless it is open. */
  connect(): void {
    if (this.#open) return;
    this.#open = true;
    globalThis.addEventListener?.("pagehide", this.#suspend);
    globalThis.addEventListener?.("pageshow", this.#resume);
    this.#resume();
  }

  /** Closes it; what is known stays to be seen. It can be opened again. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    globalThis.removeEventListener?.("pagehide", this.#suspend);
    globalThis.removeEventListener?.("pageshow", this.#resume);
    this.#suspend();
  }

  /** Closes it and deletes what this browser keeps of it: at a logout, in the last tab that has it open. */
  async forget(): Promise<void> {
    const { key } = this.#place();
    this.close();
    this.#heard = undefined;
    this.#changed();
    await this.#storage.forget(key);
  }

  /** Newest first. */
  get items(): readonly Item[] {
    return this.snapshot.items;
  }

  get unread(): number {
    return this.snapshot.unread;
  }

  get status(): Status {
    return this.snapshot.status;
  }

  /** Whether there are older items to load. */
  get hasMore(): boolean {
    return this.snapshot.hasMore;
  }

  get loaded(): boolean {
    return this.snapshot.loaded;
  }

  /** All of them together; the same object until one of them changes. */
  get snapshot(): Snapshot {
    if (!this.#snapshot) {
      const { known, ops = [], status = { name: "connecting" as const } } = this.#state() ?? {};
      this.#snapshot = { ...shown(known, ops), status };
    }
    return this.#snapshot;
  }

  /** Calls `handler` at each `event`, until the function that it returns is called. */
  on<E extends keyof InboxEvents>(event: E, handler: (...args: InboxEvents[E]) => void): () => void {
    const own = (...args: InboxEvents[E]) => handler(...args); // so that the same one can be given twice
    this.#handlers[event].add(own);
    return () => void this.#handlers[event].delete(own);
  }

  /** Loads the next page of older items, if there are any. */
  async loadMore(): Promise<void> {
    await this.#command({ kind: "more" });
  }

  async markRead(ids: string | readonly string[]): Promise<void> {
    await this.#mark("read", ids);
  }

  async markUnread(ids: string | readonly string[]): Promise<void> {
    await this.#mark("unread", ids);
  }

  /** Marks everything read up to the newest item that is shown, but none that came after it. */
  async markAllRead(): Promise<void> {
    const upTo = this.items[0]?.seq;
    if (upTo !== undefined) await this.#do({ kind: "read", upTo });
  }

  async #mark(kind: "read" | "unread", ids: string | readonly string[]): Promise<void> {
    const all = typeof ids === "string" ? [ids] : ids;
    const parts = Array.from({ length: Math.ceil(all.length / MAX_IDS) }, (_, at) =>
      this.#do({ kind, ids: all.slice(at * MAX_IDS, (at + 1) * MAX_IDS) }),
    );
    await Promise.all(parts);
  }

  #do(mark: Mark): Promise<void> {
    return this.#command({ kind: "do", op: { id: newId(), ...mark } });
  }

  async #command(command: Command): Promise<void> {
    if (this.#tabs) return await this.#tabs.ask(command);
    if (!this.#session) throw new Refused("closed", "the client is not connected");
    await this.#run(this.#session, command);
  }

  #run(session: Session, command: Command): Promise<void> {
    return command.kind === "more" ? session.loadMore() : session.do(command.op);
  }

  // Leading and following

  /** Which inbox this is: tabs with the same key share it. */
  #place(): { key: string; url: string } {
    const { url = globalThis.location?.origin, path = "/socket.io", token } = this.options;
    if (!url) throw new TypeError("an inbox outside of a page needs a url");
    return { key: JSON.stringify([new URL(url).origin, path, token]), url };
  }

  readonly #resume = () => {
    if (this.#tabs || this.#session) return;
    const { key, url } = this.#place();
    const isShared = this.options.shareTabs !== false && Tabs.possible();
    // Meanwhile another tab may have sent what was not confirmed yet; if none has, it is in the storage.
    const ops = isShared ? [] : (this.#heard?.ops ?? []);
    this.#heard = { known: this.#heard?.known, ops, status: { name: "connecting" } };
    if (isShared) this.#tabs = this.#join(key, url);
    else this.#session = this.#lead(key, url, { changed: this.#changed, message: this.#message, error: this.#error });
    this.#changed();
  };

  /** A page that is left must not lead: it may be frozen, to be shown again later. */
  readonly #suspend = () => {
    this.#session?.stop();
    this.#heard = { ops: [], ...this.#state(), status: { name: "offline", reason: "closed" } };
    this.#tabs?.close();
    this.#session = this.#tabs = undefined;
    this.#changed();
  };

  #join(key: string, url: string): Tabs {
    const tabs = new Tabs(`tidings ${key}`, {
      lead: () => {
        const changed = () => {
          this.#changed();
          tabs.tell();
        };
        const audience = { changed, message: (item: Item) => tabs.message(item), error: tabs.error.bind(tabs) };
        this.#session = this.#lead(key, url, audience);
      },
      follow: (state) => {
        this.#heard = state;
        this.#changed();
      },
      message: (item, toast) => this.#message(item, toast),
      error: this.#error,
      state: () => this.#session && this.#state(),
      command: (command) =>
        this.#session ? this.#run(this.#session, command) : Promise.reject(new Refused("closed", "the client was closed")),
    });
    return tabs;
  }

  #lead(key: string, url: string, audience: Audience): Session {
    const session = new Session({ ...this.options, url }, key, this.#storage, audience, this.#heard);
    void session.start();
    return session;
  }

  #state(): Shared | undefined {
    if (!this.#session) return this.#heard;
    const { known, ops, status } = this.#session;
    return { known, ops, status };
  }

  // Telling

  readonly #message = (item: Item, toast = true) => {
    this.#emit("message", item);
    if (toast) this.#emit("toast", item);
  };

  readonly #error = (error: { code: string; message: string }) => this.#emit("error", error);

  /** However much changes at once, the page hears of it once. */
  readonly #changed = () => {
    this.#snapshot = undefined;
    if (this.#announcing) return;
    this.#announcing = true;
    queueMicrotask(() => {
      this.#announcing = false;
      this.#emit("change");
    });
  };

  #emit<E extends keyof InboxEvents>(event: E, ...args: InboxEvents[E]): void {
    for (const handler of [...this.#handlers[event]]) {
      try {
        handler(...args);
      } catch (error) {
        // One handler's fault is not the others'; the page hears of it as of any other uncaught error.
        queueMicrotask(() => {
          throw error;
        });
      }
    }
  }
}

/** `crypto.randomUUID` is there on secure origins only. */
function newId(): string {
  return Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) => part.toString(36)).join("-");
}
