// The one connection of an inbox: it lists, logs in, follows the server's events, acks them, sends what the user marks, and
// comes back when it is lost. What it knows is in `known`, `ops` and `status`; who shows it is told when they change.
//
// One login: 1. the socket connects; 2. without a cursor the newest page is listed, whose `rev` is one; 3. `user_login`
// with the cursor; 4. the server sends what is undelivered, then every event since, then `replay_complete`; 5. live events.

import { Manager, type Socket } from "socket.io-client";

import { authorization, Credentials } from "./credentials.js";
import { placeOf } from "./portable.js";
import {
  type Change,
  changed,
  changeOf,
  itemOfListed,
  itemOfMessage,
  type Message,
  type Page,
  withMessages,
  withUnread,
} from "./state.js";
import type { Credential, InboxError, InboxOptions, InboxStorage, Item, Known, Op, Status } from "./types.js";

const ANSWER_MS = 10_000; // a server that is not asked too much answers sooner
const SIGN_MS = 4_000; // for a sign of life, which takes the server no time
const RETRY_MS = { first: 1_000, most: 30_000 }; // doubled each time, the half of it by chance
const REFUSED_RETRY_MS = 10_000; // at least; what was refused once is refused again, most likely
const ACK_MS = 200; // messages that come within this time are acked together
const ACK_AT = 32; // half of the server's window, so it never waits for the timer
const SAVE_MS = 200;
const KEPT_ITEMS = 100; // over a reload
const ROOM = 500; // items in memory; what the user loads beyond it is added
const RECENT = 256; // changes that a page which was read before them may lack, and marks that may be handed in again
const CALM_MS = 3_000; // of being live, after which a connection counts as good
const BUSY = ["unavailable", "too_many_events", "not_logged_in"]; // refusals that say nothing about the request
const BROKEN = ["network", "timeout", "failed"]; // are no refusals at all

const TIMERS = ["connect", "calm", "ack", "save", "send", "renew"] as const;

/** What a session passes on to the one that takes its place. */
export interface Heritage {
  readonly known?: Known | undefined;
  readonly ops: readonly Op[];
  /** The code that keeps it from logging in, which the page has heard already. */
  readonly refused?: string | undefined;
}

/** Who shows what a session knows. */
export interface Audience {
  changed(): void;
  /** Something new came live. */
  message(item: Item): void;
  error(error: InboxError): void;
}

interface Answer {
  ok: boolean;
  code: string;
  message: string;
  epoch: string;
  rev: number;
  unread: number;
}

/** An error with a code that says what to do about it. */
export class Refused extends Error implements InboxError {
  constructor(
    readonly code: string,
    message: string,
    readonly retryMs?: number,
  ) {
    super(message);
  }
}

/** A mark up to a place in the inbox means nothing in another data set. */
const isOf = (op: Op, epoch: string | undefined) => !("upTo" in op) || op.epoch === epoch;
const foreign = () => new Refused("outdated", "all was marked as read in a data set that is no more");

export class Session {
  known: Known | undefined;
  ops: Op[] = []; // not yet confirmed, in the order they were made
  status: Status = { name: "connecting" };
  refused: string | undefined;

  readonly #credentials: Credentials;
  readonly #socket: Socket;
  #room: number;
  #stopped = false;
  #turn = 0; // of the connection; what an earlier one still waits for is void
  #loggedIn = false;
  #renewing = 0; // the turn in which a login that renews is not answered yet
  #attempts = 0;
  #refusals = 0;
  #drainMs: number | undefined;
  #notBefore = 0; // as the server wants it
  #outdated = false; // `known` is to be listed anew
  #sending = false;
  #unacked = 0;
  #ackTo = 0;
  #recent: Change[] = []; // by rev; those of this session too, of which the server sends none
  #over: string[] = []; // ids of marks that were confirmed or refused here
  readonly #lists = new Map<AbortController, number>(); // that are under way, and the turns they began in
  #loading: Promise<void> | undefined;
  readonly #waiting = new Map<string, { settled: Promise<void>; resolve(): void; reject(error: Error): void }>();
  readonly #timers: Partial<Record<(typeof TIMERS)[number], ReturnType<typeof setTimeout>>> = {};

  constructor(
    private readonly options: InboxOptions & { url: string },
    private readonly key: string,
    private readonly storage: InboxStorage,
    private readonly audience: Audience,
    heritage: Heritage,
  ) {
    this.known = heritage.known;
    this.ops = [...heritage.ops];
    this.refused = heritage.refused;
    this.#room = Math.max(ROOM, this.known?.items.length ?? 0);
    this.#credentials = new Credentials(options.credential);
    const { origin, path } = placeOf(options.url);
    const manager = new Manager(origin, {
      path: path + (options.path ?? "/socket.io"),
      autoConnect: false,
      reconnection: false, // it gives up when the server closes or refuses a socket; see #lost
      timeout: ANSWER_MS,
      transports: ["websocket", "polling"],
      tryAllTransports: true,
    });
    this.#socket = manager.socket("/");
    this.#listen();
  }

  /** Goes on from what it inherited or from what is stored, whichever is newer. */
  async start(): Promise<void> {
    const stored = await this.storage.load(this.key).catch(() => ({ known: undefined, ops: [] }));
    if (this.#stopped) return;
    if (!this.known || (stored.known?.epoch === this.known.epoch && stored.known.rev > this.known.rev)) {
      this.known = stored.known;
    }
    this.ops = [...new Map([...stored.ops, ...this.ops].map((op) => [op.id, op])).values()];
    this.#changed();
    this.#connect();
  }

  /** Closes the connection for good. */
  stop(): void {
    if (this.#stopped) return;
    this.#stopped = true;
    for (const list of this.#lists.keys()) list.abort();
    this.#ack();
    this.#leave();
    this.#refresh({ name: "offline", reason: "closed" });
  }

  /**
   * The page is seen again, or has a network again: a connection that broke meanwhile may look as if it were there until the
   * next ping is late, and who waits for the next attempt should not.
   */
  check(): void {
    if (this.status.name === "offline" && Date.now() >= this.#notBefore) this.#connect();
    const turn = this.#turn;
    // Behind a login the sign would wait for the database, which may be slow while the connection is good.
    if (!this.#loggedIn || turn === this.#renewing) return;
    // An ack of nothing is refused, by every server and without a question to its database. The refusal is the sign.
    this.#ask("ack", {}, undefined, SIGN_MS).catch((error: unknown) => {
      if (turn === this.#turn && refusal(error).code === "timeout") this.#lost("ping timeout", 0);
    });
  }

  /**
   * Does what the user did, and what is kept already. Resolves when the server has confirmed it, or without a connection, as
   * it is sent later then; rejects when it was refused and taken back.
   */
  async do(op: Op): Promise<void> {
    if (this.#over.includes(op.id)) return;
    if (!this.ops.some(({ id }) => id === op.id)) {
      this.ops = [...this.ops, op];
      this.#changed();
    }
    if (!this.#loggedIn) return;
    let waiting = this.#waiting.get(op.id);
    if (!waiting) {
      let [resolve, reject] = [() => {}, (_: Error) => {}];
      const settled = new Promise<void>((...both) => ([resolve, reject] = both));
      this.#waiting.set(op.id, (waiting = { settled, resolve, reject }));
    }
    void this.#send();
    await waiting.settled;
  }

  /** Loads the next page of older items. */
  loadMore(): Promise<void> {
    this.#loading ??= this.#loadMore()
      .catch((error: unknown) => (this.#stopped ? undefined : Promise.reject(this.#told(refusal(error)))))
      .finally(() => (this.#loading = undefined));
    return this.#loading;
  }

  // Coming and going

  #listen(): void {
    this.#socket
      .on("connect", () => void this.#logIn())
      .on("connect_error", (error: Error) => this.#lost(error.message))
      .on("disconnect", (reason) => reason !== "io client disconnect" && this.#lost(reason))
      .on("receive_message", (message: Message) => this.#take([message]))
      .on("receive_messages", (messages: Message[]) => this.#take(messages))
      .on("inbox_changed", (change: Change & { unread: number }) => this.#change(change))
      .on("replay_complete", ({ rev }: { rev: number }) => this.#complete(rev))
      .on("resync", () => this.#resync())
      .on("server_draining", ({ retryMs }: { retryMs: number }) => (this.#drainMs = retryMs * (1 + Math.random() / 2)))
      .on("login_expiring", ({ exp }: { exp: number }) => this.#renewBefore(exp))
      // A login that was refused is answered too; this one comes on its own.
      .on("login_error", ({ code, message }: InboxError) => {
        if (code === "login_expired") this.#fail(new Refused("unauthorized", message));
      });
  }

  #connect(): void {
    this.#clear("connect");
    this.#socket.connect();
  }

  async #logIn(): Promise<void> {
    const turn = ++this.#turn;
    try {
      const credential = await this.#credential();
      if (turn !== this.#turn) return;
      if (!this.known || this.#outdated) {
        const page = await this.#list(credential);
        if (turn !== this.#turn) return;
        const { items, next, rev, unread, epoch } = page;
        this.known = { epoch, rev, unread, unreadRev: rev, items: items.map(itemOfListed), next };
        this.#outdated = false;
        this.#recent = [];
        this.#changed(true);
      }
      const { rev, epoch } = this.known;
      for (const op of this.ops) if (!isOf(op, epoch)) this.#takeBack(op, foreign());
      const login = { tokenId: this.options.token, batch: true, rev, epoch, ...credential };
      await this.#ask("user_login", login, (greeting) => turn === this.#turn && this.#follow(greeting));
    } catch (error) {
      if (turn === this.#turn) this.#fail(error);
    }
  }

  #follow({ rev, unread, epoch }: Answer): void {
    this.#refusals = 0;
    this.refused = undefined;
    if (!this.known) return;
    if (epoch !== this.known.epoch) return this.#resync(); // before anything is marked there by the seqs of here
    this.known = withUnread(this.known, rev, unread);
    this.#loggedIn = true;
    this.#refresh({ name: "catching-up" });
    void this.#send();
  }

  #complete(rev: number): void {
    if (!this.known || !this.#loggedIn) return;
    this.known = { ...this.known, rev: Math.max(this.known.rev, rev) };
    for (const [list, turn] of this.#lists) if (turn < this.#turn - 1) list.abort("it has stopped");
    this.#timers.calm ??= setTimeout(() => (this.#attempts = 0), CALM_MS);
    this.#ack();
    this.#refresh({ name: "live" }, true);
  }

  /** What is known is not true any more. It stays to be seen until it is listed anew. */
  #resync(): void {
    this.#outdated = true;
    this.#leave();
    // A new connection, so that nothing of this one comes into the new list.
    const isFirst = this.#attempts === 0;
    const pause = this.#backoff();
    this.#connectIn(isFirst ? 0 : pause);
    this.#refresh({ name: "catching-up" });
  }

  /** The login did not work out. */
  #fail(error: unknown): void {
    const reason = refusal(error);
    const { code, retryMs } = reason;
    if (code === "unauthorized") {
      this.#credentials.drop();
      if (this.#refusals++ === 0 && this.#credentials.renewable) {
        this.#leave();
        return this.#connect();
      }
    }
    if (BUSY.includes(code) || BROKEN.includes(code)) return this.#lost(code, retryMs);
    // The page has to do something about it; to hear of it once is enough.
    if (this.refused !== code) this.#told(reason);
    this.refused = code;
    this.#lost(code, code === "credential" ? undefined : Math.max(REFUSED_RETRY_MS, retryMs ?? 0, this.#backoff()));
  }

  /** There is no connection now; there will be another attempt. */
  #lost(reason: string, retryMs = this.#drainMs): void {
    if (this.#stopped) return;
    this.#drainMs = undefined;
    this.#notBefore = Date.now() + (retryMs ?? 0);
    this.#leave();
    const backoff = this.#backoff();
    this.#connectIn(retryMs ?? backoff);
    this.#refresh({ name: "offline", reason: globalThis.navigator?.onLine === false ? "no network" : reason });
  }

  #backoff(): number {
    const most = Math.min(RETRY_MS.most, RETRY_MS.first * 2 ** this.#attempts++);
    return most * (0.5 + Math.random() / 2);
  }

  #connectIn(ms: number): void {
    this.#timers.connect = setTimeout(() => this.#connect(), ms);
  }

  /** Ends this connection and everything that waits for it. */
  #leave(): void {
    this.#turn += 1;
    this.#loggedIn = false;
    this.#unacked = this.#ackTo = 0;
    if (this.#timers.save !== undefined) this.#save();
    for (const name of TIMERS) this.#clear(name);
    this.#socket.disconnect();
    // They are kept, and go out with the next login.
    for (const { resolve } of this.#waiting.values()) resolve();
    this.#waiting.clear();
  }

  // The login's end

  /** Not at once: all tabs of all users were let in together, perhaps. */
  #renewBefore(exp: number): void {
    const left = Math.min(60_000, exp * 1000 - Date.now());
    this.#clear("renew");
    this.#timers.renew = setTimeout(() => void this.#renew(), Math.max(500, left * (0.1 + 0.4 * Math.random())));
  }

  /** If it fails the server ends the login, and that is dealt with then. */
  async #renew(): Promise<void> {
    if (!this.#credentials.renewable) return;
    this.#credentials.drop();
    try {
      const credential = await this.#credential();
      if (!this.#loggedIn) return;
      this.#renewing = this.#turn;
      await this.#ask("user_login", { tokenId: this.options.token, batch: true, ...credential });
    } catch (error) {
      this.#told(refusal(error));
    } finally {
      this.#renewing = 0;
    }
  }

  async #credential(): Promise<Credential | undefined> {
    try {
      return await this.#credentials.get();
    } catch (error) {
      throw new Refused("credential", `no credential: ${String(error)}`);
    }
  }

  // What the server sends

  #take(messages: readonly Message[]): void {
    if (!this.known || !this.#loggedIn) return;
    const had = new Set(this.known.items.map(({ id }) => id));
    this.known = withMessages(this.known, messages, this.#room);
    const stored = messages.filter(({ seq }) => seq !== undefined);
    const newest = stored.at(-1)?.seq;
    if (newest !== undefined) {
      this.#reapply(newest); // of something that was known already an earlier state came
      this.#ackTo = Math.max(this.#ackTo, newest);
      this.#unacked += stored.length;
      if (this.#unacked >= ACK_AT || stored.length > 1) this.#ack();
      else this.#timers.ack ??= setTimeout(() => this.#ack(), ACK_MS);
    }
    this.#changed(true);
    for (const message of messages) {
      if (!message.replay && !had.has(message.id)) this.audience.message(itemOfMessage(message));
    }
  }

  #change(change: Change & { unread: number }): void {
    if (!this.known || !this.#loggedIn) return;
    const { rev, unread } = change;
    const items = changed(this.known.items, change);
    this.known = withUnread({ ...this.known, items, rev: Math.max(this.known.rev, rev) }, rev, unread);
    this.#reapply(rev);
    this.#remember(change);
    this.#changed(true);
  }

  /** What came late does not undo what was confirmed at a later rev. */
  #reapply(rev: number): void {
    const later = this.#recent.filter((change) => change.rev > rev);
    if (this.known && later.length > 0) this.known = { ...this.known, items: later.reduce(changed, this.known.items) };
  }

  #remember(change: Change): void {
    this.#recent = [...this.#recent, change].sort((a, b) => a.rev - b.rev).slice(-RECENT);
  }

  #ack(): void {
    this.#clear("ack");
    if (this.#unacked === 0 || !this.#socket.connected) return;
    const [count, turn] = [this.#unacked, this.#turn];
    this.#unacked = 0;
    // Within a login everything up to here has come.
    this.#ask("ack", { upTo: this.#ackTo }).catch((error: unknown) => {
      if (turn !== this.#turn || !BUSY.includes(refusal(error).code)) return;
      this.#unacked += count;
      this.#timers.ack ??= setTimeout(() => this.#ack(), RETRY_MS.first);
    });
  }

  // What the user does

  /** Sends what waits, one after the other. */
  async #send(): Promise<void> {
    if (this.#sending) return;
    this.#sending = true;
    for (let op = this.ops[0]; op && this.#loggedIn; op = this.ops[0]) {
      const turn = this.#turn;
      if (!isOf(op, this.known?.epoch)) {
        this.#takeBack(op, foreign());
        continue;
      }
      try {
        const rows = "upTo" in op ? { upTo: op.upTo } : { ids: op.ids };
        await this.#ask(op.kind, rows, ({ rev, unread }) => this.#settle(op, rev, unread));
      } catch (error) {
        const reason = refusal(error);
        if (turn !== this.#turn) continue; // whatever came of it, it is sent again
        if (reason.code === "timeout") this.#lost("timeout");
        else if (BUSY.includes(reason.code)) {
          this.#timers.send = setTimeout(() => void this.#send(), RETRY_MS.first);
          break;
        } else this.#takeBack(op, reason);
      }
    }
    this.#sending = false;
  }

  #settle(op: Op, rev: number, unread: number): void {
    const change = changeOf(op, rev);
    if (this.known) {
      this.known = withUnread({ ...this.known, items: changed(this.known.items, change) }, rev, unread);
    }
    this.#reapply(rev);
    this.#remember(change);
    this.#forget(op);
    this.#waiting.get(op.id)?.resolve();
    this.#waiting.delete(op.id);
    this.#changed(true);
  }

  #takeBack(op: Op, reason: Refused): void {
    this.#forget(op);
    this.#changed();
    this.#told(reason);
    this.#waiting.get(op.id)?.reject(reason);
    this.#waiting.delete(op.id);
  }

  #forget(op: Op): void {
    this.#over = [...this.#over, op.id].slice(-RECENT);
    this.ops = this.ops.filter(({ id }) => id !== op.id);
    this.storage.removeOp(this.key, op.id).catch(() => {});
  }

  /** Calls `done` with the answer before anything is heard that the server sent after it. */
  #ask(event: string, payload: object, done?: (answer: Answer) => void, ms = ANSWER_MS): Promise<void> {
    return new Promise((resolve, reject) => {
      if (!this.#socket.connected) throw new Refused("network", "there is no connection");
      this.#socket.timeout(ms).emit(event, payload, (late: Error | null, answer: Answer) => {
        if (late) return reject(new Refused("timeout", `${event} was not answered`));
        if (!answer.ok) return reject(new Refused(answer.code, answer.message));
        done?.(answer);
        resolve();
      });
    });
  }

  // Pages

  async #loadMore(): Promise<void> {
    const { epoch, next } = this.known ?? {};
    if (next == null) return;
    const page = await this.#list(await this.#credential(), next);
    // Listed anew, or so much came that the end fell off: this page does not fit any more.
    if (this.#stopped || !this.known || this.known.epoch !== epoch || this.known.next !== next || page.epoch !== epoch) return;
    const since = this.#recent.filter(({ rev }) => rev > page.rev);
    if (since.length === RECENT) throw new Refused("outdated", "too much changed meanwhile, load again");
    const older = since.reduce(changed, page.items.map(itemOfListed));
    const had = new Set(this.known.items.map(({ id }) => id));
    const items = [...this.known.items, ...older.filter(({ id }) => !had.has(id))];
    this.#room = Math.max(this.#room, items.length + ROOM);
    this.known = { ...this.known, items, next: page.next };
    this.#changed(true);
  }

  async #list(credential: Credential | undefined, before?: number): Promise<Page> {
    const inbox = `${this.options.url}/api/inbox/${encodeURIComponent(this.options.token)}`;
    const url = `${inbox}?limit=${this.options.pageSize ?? 20}${before === undefined ? "" : `&before=${before}`}`;
    const headers = authorization(credential);
    const broken = (error: unknown) => Promise.reject(new Refused("network", String(error)));
    const list = new AbortController();
    this.#lists.set(list, this.#turn);
    // Once it answers it may take as long as it likes, but what began before the last connection was lost
    // has stopped when the next one is there.
    const timer = setTimeout(() => list.abort("the list was not answered"), ANSWER_MS);
    try {
      const answer = fetch(url, { headers, signal: list.signal, cache: "no-store" }).finally(() => clearTimeout(timer));
      const response = await answer.catch(broken);
      if (response.ok) return (await response.json().catch(broken)) as Page;
      const { code = "unavailable", detail = "the list was refused" } = await response.json().catch(() => ({}));
      const retrySecs = Number(response.headers.get("retry-after"));
      throw new Refused(code, detail, retrySecs > 0 ? retrySecs * 1000 : undefined);
    } finally {
      this.#lists.delete(list);
    }
  }

  // Telling

  #told(reason: Refused): Refused {
    this.audience.error({ code: reason.code, message: reason.message });
    return reason;
  }

  #refresh(status: Status, save = false): void {
    this.status = status;
    this.#changed(save);
  }

  #clear(timer: (typeof TIMERS)[number]): void {
    clearTimeout(this.#timers[timer]);
    delete this.#timers[timer];
  }

  #changed(save = false): void {
    if (save) this.#timers.save ??= setTimeout(() => this.#save(), SAVE_MS);
    this.audience.changed();
  }

  #save(): void {
    this.#clear("save");
    if (!this.known || this.#outdated) return;
    const items = this.known.items.slice(0, KEPT_ITEMS);
    const next = items.length < this.known.items.length ? (items.at(-1)?.seq ?? null) : this.known.next;
    this.storage.save(this.key, { ...this.known, items, next }).catch(() => {});
  }
}

export function refusal(error: unknown): Refused {
  return error instanceof Refused ? error : new Refused("failed", String(error));
}
