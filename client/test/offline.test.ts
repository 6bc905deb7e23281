// What the user marks without a connection, what is kept over reloads, and what is taken back.

import { IDBFactory, IDBObjectStore } from "fake-indexeddb";
import { afterEach, beforeEach, expect, onTestFinished, test, vi } from "vitest";

import { IndexedDb, patient } from "../src/storage.js";
import { make, Memory, open } from "./open.js";
import { eventually, Line, Server } from "./server.js";

beforeEach(() => void (globalThis.indexedDB = new IDBFactory()));
afterEach(() => void Reflect.deleteProperty(globalThis, "indexedDB"));

const keyOf = ({ url }: Line) => JSON.stringify([url, "/socket.io", "ada"]);

const readOf = async (server: Server) => (await server.inbox("ada")).items.map(({ readAt }) => readAt !== null);

test("what is marked offline is shown at once, kept, and sent in order when the line is back", async () => {
  const server = await Server.start();
  const line = await Line.to(server);
  await server.pushMany("ada", 4);
  const ada = await open(line.url, "ada");
  const [d, c, b] = ada.items.map(({ id }) => id);
  line.cut();
  await ada.offline();
  await ada.markRead([c!, b!]);
  await ada.markAllRead();
  await ada.markUnread(d!);
  await ada.markUnread(b!);
  await ada.markRead(b!);
  expect([ada.unread, ada.items.map(({ read }) => read)]).toEqual([1, [false, true, true, true]]);
  await server.push("ada", { n: "unseen" });
  line.mend();
  await ada.live();
  const waiting = async () => (await new IndexedDb().load(keyOf(line))).ops.length;
  await eventually(async () => (await waiting()) === 0, "all that was marked is sent");
  expect(await readOf(server)).toEqual([false, false, true, true, true]);
  await ada.until(({ unread }) => unread === 2, "the exact count");
  expect(ada.items.map(({ read }) => read)).toEqual([false, false, true, true, true]);
  expect(ada.errors).toEqual([]);
});

test("what is marked offline outlives the page", async () => {
  const server = await Server.start();
  const line = await Line.to(server);
  await server.pushMany("ada", 2);
  const page = await open(line.url, "ada");
  line.cut();
  await page.offline();
  await page.markRead(page.items[0]!.id);
  page.close();

  const next = make(line.url, "ada");
  next.connect();
  await next.offline();
  expect([next.unread, next.items.map(({ read }) => read)]).toEqual([1, [true, false]]);
  line.mend();
  await next.live();
  await eventually(async () => (await readOf(server))[0] === true, "the read is stored");
  await eventually(async () => (await new IndexedDb().load(keyOf(line))).ops.length === 0, "it is no longer kept");
  expect((await new IndexedDb().load(keyOf(line))).known?.rev).toEqual(expect.any(Number));
});

for (const kept of ["kept", "not kept"]) {
  test(`what is marked on a closed client is shown, ${kept}, and sent when it is opened again`, async () => {
    if (kept !== "kept") Reflect.deleteProperty(globalThis, "indexedDB");
    const server = await Server.start();
    const line = await Line.to(server);
    await server.pushMany("ada", 3);
    const ada = await open(line.url, "ada");
    ada.close();
    const [newest, middle] = ada.items.map(({ id }) => id);
    const marked = [ada.markAllRead(), ada.markUnread(newest!)];
    const seen = [1, [false, true, true]];
    expect([ada.unread, ada.items.map(({ read }) => read)]).toEqual(seen);
    await Promise.all(marked);
    expect([ada.unread, ada.status]).toEqual([1, { name: "offline", reason: "closed" }]);
    if (kept === "kept") expect((await new IndexedDb().load(keyOf(line))).ops.length).toBe(2);
    expect((await server.inbox("ada")).unread).toBe(3);
    ada.connect();
    await ada.live();
    await eventually(async () => (await server.inbox("ada")).unread === 1, "it is stored");
    expect(await readOf(server)).toEqual([false, true, true]);
    await ada.markUnread(middle!);
    expect([ada.unread, await readOf(server)]).toEqual([2, [false, false, true]]);
    expect(ada.errors).toEqual([]);
  });
}

test("what is marked on a closed client outlives the page", async () => {
  const server = await Server.start();
  await server.pushMany("ada", 1);
  const page = await open(server.url, "ada");
  page.close();
  await page.markAllRead();
  const next = await open(server.url, "ada");
  expect(next.unread).toBe(0);
  await eventually(async () => (await server.inbox("ada")).unread === 0, "it is stored");
});

test("what was marked on a closed client and sent by another does not undo what was marked after it", async () => {
  const server = await Server.start();
  await server.pushMany("ada", 2);
  const page = await open(server.url, "ada");
  page.close();
  const [newest, oldest] = page.items.map(({ id }) => id);
  await page.markRead(newest!);
  const next = await open(server.url, "ada");
  await eventually(async () => (await server.inbox("ada")).unread === 1, "it is stored");
  await next.markUnread(newest!);
  page.connect();
  await page.live();
  await page.markRead(oldest!); // after all that was made before
  expect([page.unread, await readOf(server)]).toEqual([1, [false, true]]);
});

test("after a reload only what is new is sent, and none of it toasts", async () => {
  const server = await Server.start();
  const line = await Line.to(server);
  await server.pushMany("ada", 5);
  const page = await open(line.url, "ada", { pageSize: 3 });
  page.close();
  await server.push("ada", { n: 5 });
  const paths: string[] = [];
  const original = globalThis.fetch;
  globalThis.fetch = (...args) => (paths.push(String(args[0])), original(...args));
  try {
    const next = await open(line.url, "ada", { pageSize: 3 });
    expect(paths).toEqual([]);
    expect([next.numbers, next.unread, next.hasMore]).toEqual([[5, 4, 3, 2], 6, true]);
    expect(next.messages).toEqual([]);
    await next.loadMore();
    expect(next.numbers).toEqual([5, 4, 3, 2, 1, 0]);
    expect(paths.length).toBe(1);
  } finally {
    globalThis.fetch = original;
  }
});

test("what another device did while the line was down does not undo what was marked after it", async () => {
  const server = await Server.start();
  const line = await Line.to(server);
  await server.pushMany("ada", 2);
  const ada = await open(line.url, "ada");
  const [newer, older] = ada.items.map(({ id }) => id);
  line.cut();
  await ada.offline();
  await server.mark("ada", "read", { all: true });
  await server.mark("ada", "unread", { ids: [newer, older] });
  await ada.markRead(newer!);
  line.mend();
  await ada.live();
  await eventually(async () => (await server.inbox("ada")).unread === 1, "the read is stored");
  await ada.until(({ unread }) => unread === 1, "the exact count");
  await server.push("ada", { n: "last" }); // whatever was still on the way is here before it
  await ada.until(({ items }) => items.length === 3, "the last");
  expect(ada.items.map(({ read }) => read)).toEqual([false, true, false]);
  expect(await readOf(server)).toEqual([false, true, false]);
});

test("what the server refuses is taken back, told, and does not hold up what comes after", async () => {
  const server = await Server.start();
  const ada = await open(server.url, "ada");
  await server.pushMany("ada", 2);
  await ada.until(({ items }) => items.length === 2, "both");
  const [newer, older] = ada.items.map(({ id }) => id);
  const [refused, done] = [ada.markRead([newer!, "no id"]), ada.markRead(older!)];
  expect(ada.unread).toBe(0);
  await expect(refused).rejects.toMatchObject({ code: "invalid_payload" });
  await done;
  expect([ada.unread, ada.items.map(({ read }) => read)]).toEqual([1, [false, true]]);
  expect(ada.errors).toEqual([{ code: "invalid_payload", message: "ids[1] is not an id" }]);
});

test("what was on the way when the server was killed is sent again", async () => {
  const server = await Server.start();
  await server.pushMany("ada", 1);
  const ada = await open(server.url, "ada");
  const [marked] = [ada.markAllRead(), server.kill()];
  await marked;
  await ada.offline();
  expect(ada.unread).toBe(0);
  await server.startAgain();
  await ada.live();
  await eventually(async () => (await server.inbox("ada")).unread === 0, "the read is stored");
});

test("only so much is kept to be sent", async () => {
  const server = await Server.start();
  const line = await Line.to(server);
  await server.push("ada", { n: 1 });
  const ada = await open(line.url, "ada", { storage: new Memory() });
  line.cut();
  await ada.offline();
  const { id } = ada.items[0]!;
  for (let n = 0; n < 1000; n += 1) await (n % 2 ? ada.markUnread(id) : ada.markRead(id));
  await expect(ada.markRead(id)).rejects.toMatchObject({ code: "too_many_pending" });
  expect([ada.unread, ada.errors.map(({ code }) => code)]).toEqual([1, ["too_many_pending"]]);
});

test("many ids at once are sent in parts", async () => {
  const server = await Server.start();
  await Promise.all(Array.from({ length: 6 }, (_, part) => server.pushMany("ada", 100, part * 100)));
  const ada = await open(server.url, "ada", { pageSize: 100 });
  while (ada.hasMore) await ada.loadMore();
  await ada.markRead(ada.items.map(({ id }) => id));
  expect([ada.unread, (await server.inbox("ada")).unread]).toEqual([0, 0]);
});

test("what is kept can be forgotten", async () => {
  const server = await Server.start();
  const line = await Line.to(server);
  await server.pushMany("ada", 1);
  const ada = await open(line.url, "ada");
  line.cut();
  await ada.offline();
  await ada.markAllRead();
  await ada.forget();
  expect([ada.items, ada.loaded, ada.status]).toEqual([[], false, { name: "offline", reason: "closed" }]);
  expect(await new IndexedDb().load(keyOf(line))).toEqual({ ops: [] });
  line.mend();
  expect((await open(line.url, "ada")).unread).toBe(1);
});

test("where nothing can be kept everything else works", async () => {
  const server = await Server.start();
  await server.push("ada", { n: 1 });
  const broken = () => Promise.reject(new Error("no room"));
  const ada = await open(server.url, "ada", { storage: { load: broken, save: broken, addOp: broken, removeOp: broken, forget: broken } });
  await ada.markRead(ada.items[0]!.id);
  expect((await server.inbox("ada")).unread).toBe(0);
  Reflect.deleteProperty(globalThis, "indexedDB");
  expect((await open(server.url, "ada")).numbers).toEqual([1]);
});

test("what cannot be kept while it cannot be sent either is told", async () => {
  const server = await Server.start();
  const line = await Line.to(server);
  await server.pushMany("ada", 1);
  const storage = new Memory();
  const ada = await open(line.url, "ada", { storage });
  storage.addOp = () => Promise.reject(new Error("no room"));
  await ada.markRead(ada.items[0]!.id);
  expect(ada.errors).toEqual([]);
  line.cut();
  await ada.offline();
  await ada.markUnread(ada.items[0]!.id);
  expect([ada.unread, ada.errors]).toEqual([1, [{ code: "storage", message: "what was marked is lost at a reload: Error: no room" }]]);
  line.mend();
  await eventually(async () => (await server.inbox("ada")).unread === 1, "it is stored");
});

test("a mark counts as kept when it is stored for good, not before", async () => {
  const storage = new IndexedDb();
  await storage.load("ada");
  const { put } = IDBObjectStore.prototype;
  onTestFinished(() => void (IDBObjectStore.prototype.put = put));
  IDBObjectStore.prototype.put = function (...args) {
    const request = put.apply(this, args);
    request.addEventListener("success", () => this.transaction.abort()); // as when the disk is full
    return request;
  };
  await expect(storage.addOp("ada", { id: "1", kind: "read", ids: ["a"] })).rejects.toBeDefined();
});

test("a storage that never answers holds nothing up", async () => {
  const server = await Server.start();
  await server.push("ada", { n: 1 });
  const silent = () => new Promise<never>(() => {});
  const ada = await open(server.url, "ada", { storage: { load: silent, save: silent, addOp: silent, removeOp: silent, forget: silent } });
  await ada.markRead(ada.items[0]!.id);
  expect((await server.inbox("ada")).unread).toBe(0);
});

test("inboxes of different users and servers are kept apart, and only some of them", async () => {
  const storage = new IndexedDb();
  const known = { epoch: "e", rev: 1, unread: 0, unreadRev: 1, items: [], next: null };
  for (let n = 0; n < 25; n += 1) await storage.save(`inbox ${n}`, { ...known, rev: n });
  await storage.addOp("inbox 24", { id: "1", kind: "read", upTo: 3 });
  await storage.addOp("inbox 23", { id: "1", kind: "unread", ids: ["a"] });
  await storage.addOp("inbox 24", { id: "0", kind: "unread", ids: ["b"] });
  expect((await storage.load("inbox 24")).ops.map(({ id }) => id)).toEqual(["1", "0"]);
  await storage.removeOp("inbox 24", "1");
  expect(await storage.load("inbox 24")).toEqual({ known: { ...known, rev: 24 }, ops: [{ id: "0", kind: "unread", ids: ["b"] }] });
  expect((await storage.load("inbox 23")).ops.length).toBe(1);
  const kept = await Promise.all(Array.from({ length: 25 }, (_, n) => storage.load(`inbox ${n}`)));
  expect(kept.filter((inbox) => inbox.known).length).toBe(20);
});

test("a storage that answered late is asked again", async () => {
  vi.useFakeTimers();
  try {
    let answer = () => {};
    const asked: string[] = [];
    const storage = patient({
      load: () => new Promise((resolve) => (answer = () => resolve({ ops: [] }))),
      save: async () => {},
      addOp: async () => {},
      removeOp: async (_key, id) => void asked.push(id),
      forget: async (key) => void asked.push(key),
    });
    const refused = expect(storage.load("inbox")).rejects.toThrow();
    await vi.advanceTimersByTimeAsync(10_000);
    await refused;
    await expect(storage.forget("inbox")).rejects.toThrow();
    answer();
    await vi.advanceTimersByTimeAsync(0);
    await storage.removeOp("inbox", "op");
    await storage.forget("inbox");
    expect(asked).toEqual(["op", "inbox"]);
  } finally {
    vi.useRealTimers();
  }
});
