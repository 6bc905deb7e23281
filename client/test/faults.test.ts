// What goes wrong between a client and its server: lines that are cut or slow, servers that are killed, stopped, restored.

import { expect, onTestFinished, test } from "vitest";

import { make, Memory, open } from "./open.js";
import { eventually, Line, Server } from "./server.js";

test("a cut line is mended by itself; what came meanwhile is there, in order, and toasts nothing", async () => {
  const server = await Server.start();
  const line = await Line.to(server);
  await server.pushMany("ada", 2);
  const ada = await open(line.url, "ada");
  await server.untilDelivered("ada");
  line.cut();
  await ada.offline();
  expect(ada.status.reason).toMatch(/transport (close|error)/);
  expect([ada.numbers, ada.unread]).toEqual([[1, 0], 2]);
  await server.pushMany("ada", 3, 2);
  await server.mark("ada", "read", { ids: [ada.items[0]!.id] });
  line.mend();
  await ada.live();
  expect([ada.numbers, ada.unread]).toEqual([[4, 3, 2, 1, 0], 4]);
  expect(ada.items.map(({ read }) => read)).toEqual([false, false, false, true, false]);
  expect([ada.messages, ada.toasts]).toEqual([[], []]);
  await server.untilDelivered("ada");
});

test("a server that is killed and started again loses nothing and doubles nothing", async () => {
  const server = await Server.start();
  await server.pushMany("ada", 3);
  const ada = await open(server.url, "ada");
  for (let n = 3; n < 6; n += 1) {
    await server.kill();
    await ada.offline();
    await server.startAgain();
    await server.push("ada", { n });
    await ada.live();
    expect(ada.numbers).toEqual(Array.from({ length: n + 1 }, (_, at) => n - at));
    expect(ada.unread).toBe(n + 1);
  }
  await server.push("ada", { n: "live" });
  await ada.until(({ messages }) => messages.length === 1, "the live one");
});

test("a server that stops says when to come back, and its clients do", async () => {
  const server = await Server.start();
  const ada = await open(server.url, "ada");
  await server.stop();
  await ada.offline();
  await server.startAgain();
  await ada.live();
});

test("who opens before the server is there is connected when it comes", async () => {
  const server = await Server.start();
  const line = await Line.to(server);
  line.cut();
  const ada = make(line.url, "ada");
  ada.connect();
  await ada.offline();
  expect(ada.loaded).toBe(false);
  await expect(ada.loadMore()).resolves.toBeUndefined();
  line.mend();
  await ada.live();
  expect([ada.items, ada.loaded]).toEqual([[], true]);
});

test("a slow line is caught up with, however long it takes", async () => {
  const server = await Server.start();
  const line = await Line.to(server);
  await server.pushMany("ada", 60);
  line.pace = { bytes: 512, ms: 4 };
  const ada = await open(line.url, "ada", { pageSize: 100 });
  expect(ada.states).toContain("catching-up");
  expect([ada.items.length, ada.unread]).toEqual([60, 60]);
  await server.pushMany("ada", 10, 60);
  await ada.until(({ items }) => items.length === 70, "what came live");
  expect(ada.numbers).toEqual(Array.from({ length: 70 }, (_, n) => 69 - n));
  await server.untilDelivered("ada");
});

test("a line that breaks again and again in the middle loses nothing and doubles nothing", async () => {
  const server = await Server.start();
  const line = await Line.to(server);
  const ada = await open(line.url, "ada", { pageSize: 100 });
  for (let part = 0; part < 4; part += 1) {
    const pushed = server.pushMany("ada", 20, part * 20);
    await ada.until(({ items }) => items.length > part * 20 + 5, "some of them");
    line.cut();
    await ada.offline();
    line.mend();
    await Promise.all([pushed, ada.live()]);
  }
  await ada.until(({ items }) => items.length === 80, "all of them");
  expect(ada.numbers).toEqual(Array.from({ length: 80 }, (_, n) => 79 - n));
  expect(ada.unread).toBe(80);
  expect(new Set(ada.messages.map(({ id }) => id)).size).toBe(ada.messages.length);
});

test("a restored backup is another data set: the inbox is listed anew and misses nothing after it", async () => {
  const server = await Server.start();
  const kept = new Memory();
  await server.pushMany("ada", 3);
  await server.stop();
  await server.copy("save");
  await server.startAgain();
  await server.pushMany("ada", 2, 3);
  const ada = await open(server.url, "ada", { storage: kept });
  expect(ada.numbers).toEqual([4, 3, 2, 1, 0]);
  await server.untilDelivered("ada");
  await eventually(async () => kept.known?.rev === 5, "the cursor is kept");
  const { epoch } = kept.known!;

  await server.stop();
  await ada.offline();
  const [, , , older] = ada.items.map(({ id }) => id);
  await ada.markAllRead(); // up to a seq that is somebody else's then
  await ada.markRead(older!);
  await server.copy("restore");
  await server.renewEpoch();
  await server.startAgain();
  await server.push("ada", { n: "after" });
  await ada.until(({ items }) => items.length === 4, "the restored inbox");
  await ada.live();
  await eventually(async () => kept.ops.length === 0, "what was marked is sent or taken back");
  expect([ada.numbers, ada.unread]).toEqual([["after", 2, 1, 0], 3]);
  expect((await server.inbox("ada")).items.map(({ readAt }) => readAt !== null)).toEqual([false, false, true, false]);
  expect(ada.errors).toMatchObject([{ code: "outdated" }]);
  await eventually(async () => kept.known?.epoch !== epoch, "the new epoch is kept");
  await server.untilDelivered("ada");
});

test("a cursor that the server refuses is given up, with all that was known by it", async () => {
  const server = await Server.start();
  await server.pushMany("ada", 2);
  const first = new Memory();
  const before = await open(server.url, "ada", { storage: first });
  before.close();
  const ghost = { ...first.known!.items[0]!, id: "ghost" };
  const ahead = new Memory();
  ahead.known = { ...first.known!, rev: 99, unread: 7, unreadRev: 99, items: [ghost] };
  const ada = await open(server.url, "ada", { storage: ahead });
  await ada.until(({ items }) => items.length === 2, "the inbox listed anew");
  expect([ada.numbers, ada.unread]).toEqual([[1, 0], 2]);
});

test("a page of older items that stops half way is given up when the next connection is there, and can be loaded again", async () => {
  const server = await Server.start();
  const line = await Line.to(server);
  await server.pushMany("ada", 4);
  const ada = await open(line.url, "ada", { pageSize: 2 });
  const { fetch } = globalThis;
  globalThis.fetch = async (_, init) => {
    const signal = init!.signal!;
    const start = (stream: ReadableStreamDefaultController) =>
      signal.addEventListener("abort", () => stream.error(signal.reason));
    return new Response(new ReadableStream({ start }));
  };
  onTestFinished(() => void (globalThis.fetch = fetch));
  const more = ada.loadMore();
  const refused = expect(more).rejects.toMatchObject({ code: "network" });
  line.cut();
  globalThis.fetch = fetch;
  line.mend();
  await refused;
  await ada.loadMore();
  expect(ada.numbers).toEqual([3, 2, 1, 0]);
});
