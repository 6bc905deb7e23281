// Keeps inboxes over reloads, in IndexedDB. Where there is none, or it fails, nothing is kept: then an inbox is listed
// anew after a reload, and what was marked without a connection lasts as long as the page.

import { within } from "./patience.js";
import type { InboxStorage, Known, Op } from "./types.js";

const PATIENCE_MS = 3_000;
const NAME = "tidings";
const VERSION = 1;
const KEPT_INBOXES = 20; // of users who logged in here; the rest are forgotten, the longest unused first

interface Kept {
  key: string;
  at: number;
  known: Known;
}

export class IndexedDb implements InboxStorage {
  #opened: Promise<IDBDatabase> | undefined;

  async load(key: string): Promise<{ known?: Known; ops: Op[] }> {
    const { inboxes, ops } = await this.#stores("readonly");
    const [kept, waiting] = await Promise.all([
      done<Kept | undefined>(inboxes.get(key)),
      done<{ op: Op }[]>(ops.index("key").getAll(key)),
    ]);
    return { ...(kept && { known: kept.known }), ops: waiting.map(({ op }) => op) };
  }

  async save(key: string, known: Known): Promise<void> {
    const { inboxes, committed } = await this.#stores("readwrite");
    inboxes.put({ key, at: Date.now(), known } satisfies Kept);
    const oldestFirst = await done(inboxes.index("at").getAllKeys());
    for (const old of oldestFirst.slice(0, -KEPT_INBOXES)) inboxes.delete(old);
    await committed;
  }

  async addOp(key: string, op: Op): Promise<void> {
    const { ops, committed } = await this.#stores("readwrite");
    ops.put({ key, op });
    await committed;
  }

  async removeOp(key: string, id: string): Promise<void> {
    const { ops, committed } = await this.#stores("readwrite");
    const at = await done(ops.index("id").getKey([key, id]));
    if (at !== undefined) ops.delete(at);
    await committed;
  }

  async forget(key: string): Promise<void> {
    const { inboxes, ops, committed } = await this.#stores("readwrite");
    const waiting = await done(ops.index("key").getAllKeys(key));
    inboxes.delete(key);
    for (const at of waiting) ops.delete(at);
    await committed;
  }

  async #stores(mode: IDBTransactionMode) {
    this.#opened ??= this.#open();
    const transaction = (await this.#opened).transaction(["inboxes", "ops"], mode);
    // Until then what was put can still be lost: there may be no room for it.
    const committed = new Promise<void>((resolve, reject) => {
      transaction.oncomplete = () => resolve();
      transaction.onabort = () => reject(transaction.error);
    });
    committed.catch(() => {}); // a reader does not wait for it
    return { inboxes: transaction.objectStore("inboxes"), ops: transaction.objectStore("ops"), committed };
  }

  async #open(): Promise<IDBDatabase> {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("inboxes", { keyPath: "key" }).createIndex("at", "at");
      const ops = request.result.createObjectStore("ops", { autoIncrement: true });
      ops.createIndex("key", "key");
      ops.createIndex("id", ["key", "op.id"]);
    };
    const database = await done(request);
    const reopen = () => (this.#opened = undefined);
    database.onclose = reopen;
    // A newer version of this file in another tab.
    database.onversionchange = () => {
      database.close();
      reopen();
    };
    return database;
  }
}

function done<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** Keeps nothing. */
export const NOTHING: InboxStorage = {
  load: async () => ({ ops: [] }),
  save: async () => {},
  addOp: async () => {},
  removeOp: async () => {},
  forget: async () => {},
};

/** The same, but what does not answer in time is given up. */
export function patient(storage: InboxStorage): InboxStorage {
  let isSilent = false;
  const ask = async <T>(call: () => Promise<T>): Promise<T> => {
    if (isSilent) throw new Error("the storage does not answer");
    let isOver = false;
    const answer = call().finally(() => {
      isOver = true;
      isSilent = false; // it answers, if late
    });
    return await within(PATIENCE_MS, "the storage", answer).catch((error: unknown) => {
      isSilent = !isOver;
      throw error;
    });
  };
  return {
    load: (key) => ask(() => storage.load(key)),
    save: (key, known) => ask(() => storage.save(key, known)),
    addOp: (key, op) => ask(() => storage.addOp(key, op)),
    removeOp: (key, id) => ask(() => storage.removeOp(key, id)),
    forget: (key) => ask(() => storage.forget(key)),
  };
}

export const defaultStorage = (): InboxStorage => (globalThis.indexedDB ? new IndexedDb() : NOTHING);
