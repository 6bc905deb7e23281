// The tabs of a browser that have the same inbox open. One of them leads: it has the socket, tells the others what it knows
// and does what they ask. Who holds a Web Lock leads, so when it is gone, for whatever reason, the next in line does.

import { type Heritage, Refused } from "./session.js";
import type { InboxError, Item, Op, Status } from "./types.js";

/** What the leader knows. */
export interface Shared extends Heritage {
  readonly status: Status;
}

export type Command = { readonly kind: "do"; readonly op: Op } | { readonly kind: "more" };

type Note =
  | { kind: "hello"; tab: string; visible: boolean }
  | { kind: "state"; leader: string; state: Shared }
  | { kind: "message"; item: Item; toast: string }
  | { kind: "error"; error: InboxError }
  | { kind: "command"; tab: string; id: number; command: Command }
  | { kind: "done"; tab: string; id: number; error?: InboxError };

/** What a tab does with it. */
export interface Member {
  /** This tab leads from now on. */
  lead(): void;
  follow(state: Shared): void;
  message(item: Item, toast: boolean): void;
  error(error: InboxError): void;
  /** As the leader: what the others are to know. */
  state(): Shared | undefined;
  /** As the leader: does what another tab asks. */
  command(command: Command): Promise<void>;
}

interface Asked {
  command: Command;
  resolve(): void;
  reject(error: Refused): void;
}

const isVisible = () => globalThis.document?.visibilityState !== "hidden";

export class Tabs {
  /** Whether this browser has what it takes. */
  static readonly possible = () => Boolean(globalThis.navigator?.locks && globalThis.BroadcastChannel);

  leads = false;
  readonly #id = crypto.randomUUID();
  readonly #channel: BroadcastChannel;
  readonly #closed = new AbortController();
  readonly #others = new Map<string, boolean>(); // as the leader: tab -> whether it is visible
  readonly #asked = new Map<number, Asked>(); // of the leader, and not yet answered
  #leader: string | undefined;
  #count = 0;
  #telling = false;

  constructor(
    private readonly name: string,
    private readonly member: Member,
  ) {
    this.#channel = new BroadcastChannel(name);
    this.#channel.onmessage = ({ data }) => this.#hear(data as Note);
    globalThis.document?.addEventListener("visibilitychange", this.#hello);
    // The leader waits for this lock to learn that the tab is gone.
    this.#hold(this.#lockOf(this.#id), this.#hello);
    this.#hold(name, () => this.#lead());
  }

  close(): void {
    globalThis.document?.removeEventListener("visibilitychange", this.#hello);
    this.#closed.abort();
    this.#channel.close();
    for (const { reject } of this.#asked.values()) reject(new Refused("closed", "the client was closed"));
    this.#asked.clear();
  }

  /** Tells the others what is known, soon. */
  tell(): void {
    if (!this.leads || this.#telling || this.#others.size === 0) return;
    this.#telling = true;
    queueMicrotask(() => this.#telling && this.#tellNow());
  }

  /** Something new came: everybody hears of it, and one tab shows it. */
  message(item: Item): void {
    const seen = isVisible() ? undefined : [...this.#others].find(([, visible]) => visible)?.[0];
    if (this.#telling) this.#tellNow(); // so that it is there when its event comes
    this.#post({ kind: "message", item, toast: seen ?? this.#id });
    this.member.message(item, seen === undefined);
  }

  error(error: InboxError): void {
    this.#post({ kind: "error", error });
    this.member.error(error);
  }

  /** Asks the leader, whoever it is until there is an answer. */
  ask(command: Command): Promise<void> {
    if (this.leads) return this.member.command(command);
    return new Promise((resolve, reject) => {
      const id = this.#count++;
      this.#asked.set(id, { command, resolve, reject });
      // Without a leader it waits for one.
      if (this.#leader !== undefined) this.#post({ kind: "command", tab: this.#id, id, command });
    });
  }

  #hear(note: Note): void {
    if (note.kind === "hello" && this.leads) this.#meet(note.tab, note.visible);
    else if (note.kind === "command" && this.leads) void this.#obey(note.tab, note.id, note.command);
    else if (note.kind === "state" && !this.leads) {
      this.member.follow(note.state);
      if (note.leader !== this.#leader) this.#greet(note.leader);
    } else if (note.kind === "message") this.member.message(note.item, note.toast === this.#id);
    else if (note.kind === "error") this.member.error(note.error);
    else if (note.kind === "done" && note.tab === this.#id) {
      const asked = this.#asked.get(note.id);
      this.#asked.delete(note.id);
      if (note.error) asked?.reject(new Refused(note.error.code, note.error.message));
      else asked?.resolve();
    }
  }

  /** A new leader knows nobody, and not what was asked of the old one. */
  #greet(leader: string): void {
    this.#leader = leader;
    this.#hello();
    for (const [id, { command }] of this.#asked) this.#post({ kind: "command", tab: this.#id, id, command });
  }

  readonly #hello = () => this.#post({ kind: "hello", tab: this.#id, visible: isVisible() });

  #lead(): void {
    this.leads = true;
    this.member.lead();
    this.#tellNow();
    for (const { command, resolve, reject } of this.#asked.values()) this.member.command(command).then(resolve, reject);
    this.#asked.clear();
  }

  #meet(tab: string, visible: boolean): void {
    const isNew = !this.#others.has(tab);
    this.#others.set(tab, visible);
    if (!isNew) return;
    this.#tellNow();
    void this.#request(this.#lockOf(tab), () => void this.#others.delete(tab));
  }

  async #obey(tab: string, id: number, command: Command): Promise<void> {
    const error: InboxError | undefined = await this.member.command(command).then(
      () => undefined,
      ({ code = "failed", message }) => ({ code, message }),
    );
    if (this.#telling) this.#tellNow(); // so that what was asked for is there with the answer
    this.#post({ kind: "done", tab, id, ...(error && { error }) });
  }

  #tellNow(): void {
    this.#telling = false;
    const state = this.member.state();
    if (this.leads && state) this.#post({ kind: "state", leader: this.#id, state });
  }

  #post(note: Note): void {
    if (!this.#closed.signal.aborted) this.#channel.postMessage(note);
  }

  readonly #lockOf = (tab: string) => `${this.name} tab ${tab}`;

  /** Holds a lock until this is closed or the tab is gone. */
  #hold(lock: string, then: () => void): void {
    const closed = new Promise<void>((resolve) => this.#closed.signal.addEventListener("abort", () => resolve()));
    void this.#request(lock, () => {
      then();
      return closed;
    });
  }

  #request(lock: string, then: () => Promise<void> | void): Promise<unknown> {
    const { signal } = this.#closed;
    const granted = () => (signal.aborted ? undefined : then());
    return navigator.locks.request(lock, { signal }, granted).catch(() => {}); // it was closed while it waited
  }
}
