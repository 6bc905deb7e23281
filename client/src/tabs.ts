// The tabs of a browser that have the same inbox open. One of them leads: it has the socket, tells the others what it knows
// and does what they ask. Who holds a Web Lock leads, so when it is gone, for whatever reason, the next in line does. A leader
// that cannot log in lets the others try; from one that is there but does not answer the lock is taken.

import { newId } from "./portable.js";
import { type Heritage, Refused } from "./session.js";
import type { InboxError, Item, Op, Status } from "./types.js";

/** What the leader knows. */
export interface Shared extends Heritage {
  readonly status: Status;
}

export type Command = { readonly kind: "do"; readonly op: Op } | { readonly kind: "more" };

/** Of the notes, and so of the names: tabs that do not understand each other have a leader each. */
const VERSION = 2;
const PING_MS = 10_000; // between the questions of a visible tab whether the leader is there
const ANSWER_MS = 5_000; // after which it is not
const REST_MS = 10_000; // before a tab that could not log in wants to lead again
const FORMER = 8; // leaders that are remembered
const UNFIT: readonly (string | undefined)[] = ["unauthorized", "credential"]; // by its own login; another tab may have a better one

type Note =
  | { kind: "hello"; tab: string; visible: boolean }
  | { kind: "here" }
  | { kind: "bye"; tab: string }
  | { kind: "state"; leader: string; state: Shared }
  | { kind: "message"; leader: string; item: Item; toast: string }
  | { kind: "error"; error: InboxError }
  | { kind: "command"; tab: string; id: number; command: Command }
  | { kind: "done"; tab: string; id: number; error?: InboxError };

/** What a tab does with it. */
export interface Member {
  /** This tab leads from now on. */
  lead(): void;
  /** It does not any more. */
  rest(): void;
  /** It may not take part: locks are denied here. */
  alone(): void;
  follow(state: Shared): void;
  message(item: Item, toast: boolean): void;
  error(error: InboxError): void;
  /** As the leader: another tab is seen again, so whether the connection is there is to be asked. */
  check(): void;
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

export const isVisible = () => globalThis.document?.visibilityState !== "hidden";

export class Tabs {
  /** Whether this browser has what it takes. */
  static readonly possible = () => Boolean(globalThis.navigator?.locks && globalThis.BroadcastChannel);

  leads = false;
  readonly #name: string;
  readonly #id = newId();
  readonly #channel: BroadcastChannel;
  readonly #closed = new AbortController();
  readonly #others = new Map<string, boolean>(); // as the leader: tab -> whether it is visible
  readonly #asked = new Map<number, Asked>(); // of the leader, and not yet answered
  #place = new AbortController(); // in the line for the lock, and with it: aborted, it is given up
  #leader: string | undefined; // or rather its time as one
  #former: readonly string[] = []; // whose time is over, though they may not know it
  #term = "";
  readonly #pinging: ReturnType<typeof setInterval>;
  #answer: ReturnType<typeof setTimeout> | undefined; // of the leader, is late when this is over
  #resting: ReturnType<typeof setTimeout> | undefined;
  #count = 0;
  #telling = false;

  constructor(
    key: string,
    private readonly member: Member,
  ) {
    this.#name = `tidings ${VERSION} ${key}`;
    this.#channel = new BroadcastChannel(this.#name);
    this.#channel.onmessage = ({ data }) => this.#hear(data as Note);
    globalThis.document?.addEventListener("visibilitychange", this.#ping);
    this.#pinging = setInterval(() => isVisible() && this.#ping(), PING_MS);
    // The leader waits for this lock to learn that the tab is gone.
    const { signal } = this.#closed;
    const held = aborted(signal);
    request(this.#lockOf(this.#id), { signal }, () => {
      this.#hello();
      return held;
    }).catch(() => {});
    this.#queue();
  }

  close(): void {
    globalThis.document?.removeEventListener("visibilitychange", this.#ping);
    clearInterval(this.#pinging);
    clearTimeout(this.#resting);
    this.#clear();
    this.#post({ kind: "bye", tab: this.#id }); // sooner than the end of its lock tells it
    this.#closed.abort();
    this.#place.abort();
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
    this.#post({ kind: "message", leader: this.#term, item, toast: seen ?? this.#id });
    this.member.message(item, seen === undefined);
  }

  error(error: InboxError): void {
    if (!UNFIT.includes(error.code)) this.#post({ kind: "error", error }); // they log in by themselves
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
    // One that was asleep when its lock was taken may still speak, and says what was heard already.
    if ("leader" in note && this.#former.includes(note.leader)) return;
    if (note.kind === "bye") return void this.#others.delete(note.tab);
    if (note.kind !== "hello" && note.kind !== "command") this.#clear(); // only a leader says that
    if (note.kind === "hello" && this.leads) this.#meet(note.tab, note.visible);
    else if (note.kind === "command" && this.leads) void this.#obey(note.tab, note.id, note.command);
    else if (note.kind === "state" && !this.leads) {
      this.member.follow(note.state);
      if (note.leader !== this.#leader) this.#greet(note.leader);
    } else if (note.kind === "message") {
      if (note.leader === this.#leader) this.member.message(note.item, note.toast === this.#id);
    } else if (note.kind === "error") this.member.error(note.error);
    else if (note.kind === "done" && note.tab === this.#id) {
      const asked = this.#asked.get(note.id);
      this.#asked.delete(note.id);
      if (note.error) asked?.reject(new Refused(note.error.code, note.error.message));
      else asked?.resolve();
    }
  }

  /** A new leader knows nobody, and not what was asked of the old one. */
  #greet(leader: string): void {
    this.#obeyed(leader);
    this.#hello();
    for (const [id, { command }] of this.#asked) this.#post({ kind: "command", tab: this.#id, id, command });
  }

  #obeyed(leader: string | undefined): void {
    if (this.#leader) this.#former = [...this.#former, this.#leader].slice(-FORMER);
    this.#leader = leader;
  }

  readonly #hello = () => this.#post({ kind: "hello", tab: this.#id, visible: isVisible() });

  /** Says that it is here, and asks whether the leader is. */
  readonly #ping = () => {
    this.#hello();
    if (this.leads || this.#place.signal.aborted || !isVisible()) return;
    this.#answer ??= setTimeout(() => isVisible() && this.#queue(true), ANSWER_MS);
  };

  #clear(): void {
    clearTimeout(this.#answer);
    this.#answer = undefined;
  }

  /** Waits for the lock, or takes it from the tab that has it. */
  #queue(steal = false): void {
    this.#clear();
    this.#place.abort();
    this.#place = new AbortController();
    const { signal } = this.#place;
    request(this.#name, steal ? { steal } : { signal }, () => {
      if (signal.aborted) return;
      const given = aborted(signal);
      this.#lead();
      return given;
    }).catch(() => {
      if (signal.aborted) return;
      if (!this.leads) return this.member.alone();
      this.#stop(); // it was taken, and what the other said of it was not for a leader
      this.#queue();
      this.#ping();
    });
  }

  #lead(): void {
    this.#clear();
    this.leads = true;
    this.#obeyed(undefined);
    this.#term = newId();
    this.member.lead();
    this.#tellNow();
    for (const { command, resolve, reject } of this.#asked.values()) this.member.command(command).then(resolve, reject);
    this.#asked.clear();
  }

  #stop(): void {
    this.leads = false;
    this.#others.clear();
    this.member.rest();
  }

  #meet(tab: string, visible: boolean): void {
    const isNew = !this.#others.has(tab);
    if (visible && !this.#others.get(tab)) this.member.check();
    this.#others.set(tab, visible);
    if (!isNew) return this.#post({ kind: "here" });
    const { signal } = this.#place; // no longer than this leads
    this.#tellNow();
    request(this.#lockOf(tab), { signal }, () => void this.#others.delete(tab)).catch(() => {});
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
    if (!this.leads || !state) return;
    this.#post({ kind: "state", leader: this.#term, state });
    if (this.#others.size === 0 || !UNFIT.includes(state.status.reason)) return;
    this.#place.abort();
    this.#stop();
    this.#resting = setTimeout(() => this.#queue(), REST_MS);
  }

  #post(note: Note): void {
    if (!this.#closed.signal.aborted) this.#channel.postMessage(note);
  }

  readonly #lockOf = (tab: string) => `${this.#name} tab ${tab}`;
}

const aborted = (signal: AbortSignal) => new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve()));

/** Rejects also where it would throw. */
async function request(lock: string, options: LockOptions, then: () => Promise<void> | void): Promise<void> {
  await navigator.locks.request(lock, options, then);
}
