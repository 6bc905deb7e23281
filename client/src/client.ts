// InboxClient: an inbox, live, for pages. It shows what a session knows, its own or that of the tab that leads, with what the
// user marked here since.

import { newId, placeOf } from "./portable.js";
import { type Audience, refusal, Refused, Session } from "./session.js";
import { shown } from "./state.js";
import { defaultStorage, NOTHING, patient } from "./storage.js";
import { type Command, isVisible, type Shared, Tabs } from "./tabs.js";
import type { InboxError, InboxEvents, InboxOptions, InboxStorage, Item, Mark, Op, Status } from "./types.js";

const MAX_OPS = 1_000; // that wait to be sent
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
  readonly #keeps: boolean;
  #open = false; // as the page wishes
  #session: Session | undefined; // of the leader
  #tabs: Tabs | undefined;
  #heard: Shared | undefined; // from the leader, or what the last session knew
  #made: readonly Op[] = []; // here, by the user, and not yet taken over by a session
  readonly #unkept = new Set<string>(); // the ids of those that the storage did not take
  #keeping: Promise<void> = Promise.resolve(); // them, one after the other
  #handing: Promise<void> = Promise.resolve(); // what was made while there was no session
  #refused: string | undefined; // the code by which this tab could not log in when it led
  #snapshot: Snapshot | undefined;
  #announcing = false;

  /** Does nothing yet: see `connect`. */
  constructor(private readonly options: InboxOptions) {
    if (!options.token) throw new TypeError("an inbox needs a token");
    const storage = options.storage ?? defaultStorage();
    this.#keeps = storage !== NOTHING;
    this.#storage = patient(storage);
  }

  /** Opens the inbox, unless it is open. */
  connect(): void {
    if (this.#open) return;
    this.#open = true;
    this.#watch("addEventListener");
    this.#resume();
  }

  /** Closes it; what is known stays to be seen, and to be marked: that is sent when it is opened again. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#watch("removeEventListener");
    this.#suspend();
  }

  /**
   * Asks the server for a sign of life, and comes back at once when there is none or no connection; not while the page is
   * hidden. Pages need not call it: that happens when one is seen again. An app without a `document` calls it when it comes
   * to the foreground.
   */
  readonly checkConnection = (): void => {
    if (isVisible()) this.#session?.check();
  };

  /** Closes it and deletes what this browser keeps of it: at a logout, in the last tab that has it open. */
  async forget(): Promise<void> {
    const { key } = this.#place();
    this.close();
    this.#heard = { ops: [], status: { name: "offline", reason: "closed" } };
    this.#made = [];
    this.#changed();
    await this.#keeping;
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
      const { known, status = { name: "connecting" as const } } = this.#state() ?? {};
      this.#snapshot = { ...shown(known, this.#ops()), status };
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

  /** Shows it at once, keeps it, and has it sent if this is open. */
  async #do(mark: Mark): Promise<void> {
    if (this.#ops().length >= MAX_OPS) throw this.#told("too_many_pending", "too much waits to be sent already");
    const { key } = this.#place();
    const epoch = this.#state()?.known?.epoch;
    const op: Op = { id: newId(), ...(epoch && { epoch }), ...mark };
    this.#made = [...this.#made, op];
    this.#changed();
    const kept = this.#keeping.then(() => this.#storage.addOp(key, op));
    this.#keeping = kept.catch((error: unknown) => {
      this.#unkept.add(op.id);
      const { name } = this.status;
      // Else it is sent now.
      if (name === "offline" || name === "connecting") this.#told("storage", `what was marked is lost at a reload: ${String(error)}`);
    });
    await this.#keeping;
    await this.#handing; // what was made before
    await this.#hand(op);
  }

  /** To the session. Closed, it stays here until there is one. */
  async #hand(op: Op): Promise<void> {
    if (!this.#made.includes(op)) return;
    const refused = await this.#command({ kind: "do", op }).catch(refusal);
    if (refused?.code === "closed") return;
    this.#made = this.#made.filter(({ id }) => id !== op.id);
    this.#changed();
    if (refused) throw refused;
  }

  /** What was made while there was no session, once it is kept, but for what another tab found in the storage and had done. */
  async #handAll(): Promise<void> {
    const made = this.#made;
    if (made.length === 0) return;
    await this.#keeping;
    const kept = this.#keeps ? await this.#storage.load(this.#place().key).catch(() => undefined) : undefined;
    const waiting = new Set(kept?.ops.map(({ id }) => id));
    const isDone = ({ id }: Op) => kept && !waiting.has(id) && !this.#unkept.has(id);
    this.#made = this.#made.filter((op) => !made.includes(op) || !isDone(op));
    this.#changed();
    for (const op of made) this.#hand(op).catch(() => {}); // it was told
  }

  /** All that the server has not confirmed. */
  #ops(): readonly Op[] {
    const { ops = [] } = this.#state() ?? {};
    const ids = new Set(ops.map(({ id }) => id));
    return [...ops, ...this.#made.filter(({ id }) => !ids.has(id))];
  }

  async #command(command: Command): Promise<void> {
    if (this.#tabs) return await this.#tabs.ask(command);
    if (!this.#session) throw new Refused("closed", "the client is not connected");
    await this.#run(this.#session, command);
  }

  #run(session: Session, command: Command): Promise<void> {
    return command.kind === "more" ? session.loadMore() : session.do(command.op);
  }

  #watch(change: "addEventListener" | "removeEventListener"): void {
    globalThis[change]?.("pagehide", this.#suspend);
    globalThis[change]?.("pageshow", this.#resume);
    globalThis[change]?.("online", this.checkConnection);
    globalThis.document?.[change]("visibilitychange", this.checkConnection);
    globalThis.document?.[change]("freeze", this.#suspend);
    globalThis.document?.[change]("resume", this.#resume);
  }

  // Leading and following

  /** Which inbox this is: tabs with the same key share it. */
  #place(): { key: string; url: string } {
    const { url = globalThis.location?.origin, path = "/socket.io", token } = this.options;
    if (!url) throw new TypeError("an inbox outside of a page needs a url");
    const place = placeOf(url);
    const base = place.origin + place.path;
    return { key: JSON.stringify([base, path, token]), url: base };
  }

  readonly #resume = () => {
    if (this.#tabs || this.#session) return;
    this.#refused = undefined;
    const { key, url } = this.#place();
    const isShared = this.options.shareTabs !== false && Tabs.possible();
    // Meanwhile another tab may have sent what was not confirmed yet; if none has, it is in the storage, if that took it.
    const ops = (this.#heard?.ops ?? []).filter(({ id }) => !isShared || !this.#keeps || this.#unkept.has(id));
    this.#heard = { known: this.#heard?.known, ops, status: { name: "connecting" } };
    if (isShared) this.#tabs = this.#join(key, url);
    else this.#goAlone(key, url);
    this.#changed();
    this.#handing = this.#handAll();
  };

  #goAlone(key: string, url: string): void {
    this.#session = this.#lead(key, url, { changed: this.#changed, message: this.#message, error: this.#error });
  }

  /** A page that is left or frozen must not lead: it may be shown again later. */
  readonly #suspend = () => {
    this.#session?.stop();
    this.#heard = { ops: [], ...this.#state(), status: { name: "offline", reason: "closed" } };
    this.#tabs?.close();
    this.#session = this.#tabs = undefined;
    this.#changed();
  };

  #join(key: string, url: string): Tabs {
    const tabs = new Tabs(key, {
      lead: () => {
        const changed = () => {
          this.#changed();
          tabs.tell();
        };
        const audience = { changed, message: (item: Item) => tabs.message(item), error: (error: InboxError) => tabs.error(error) };
        this.#session = this.#lead(key, url, audience);
      },
      check: () => this.#session?.check(),
      rest: () => {
        this.#heard = this.#state();
        this.#refused = this.#session?.refused;
        this.#session?.stop();
        this.#session = undefined;
        this.#changed();
      },
      alone: () => {
        tabs.close();
        this.#tabs = undefined;
        this.#goAlone(key, url);
        this.#handing = this.#handAll();
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
    const session = new Session({ ...this.options, url }, key, this.#storage, audience, {
      ops: [],
      ...this.#heard,
      refused: this.#refused,
    });
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

  #told(code: string, message: string): Refused {
    this.#error({ code, message });
    return new Refused(code, message);
  }

  readonly #error = (error: InboxError) => this.#emit("error", error);

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
