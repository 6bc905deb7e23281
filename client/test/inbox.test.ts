// The client against a real server that works.

import { expect, test, vi } from "vitest";

import { make, numbers, open } from "./open.js";
import { eventually, Line, Server } from "./server.js";

const UNREAD = { read: false };

test("a login shows what waited, acks it, and toasts none of it", async () => {
  const server = await Server.start();
  await server.pushMany("ada", 3);
  const ada = make(server.url, "ada");
  expect(ada.snapshot).toEqual({ items: [], unread: 0, hasMore: false, loaded: false, status: { name: "connecting" } });
  ada.connect();
  await ada.live();

  expect(ada.numbers).toEqual([2, 1, 0]);
  expect(ada.items[0]).toEqual({
    id: expect.stringMatching(/^[0-9a-f-]{36}$/),
    seq: 3,
    entityType: "like",
    data: { n: 2 },
    createdAt: expect.stringMatching(/^\d{4}-.*Z$/),
    read: false,
  });
  expect([ada.unread, ada.hasMore, ada.status]).toEqual([3, false, { name: "live" }]);
  expect([ada.states[0], ada.states.at(-1)]).toEqual(["connecting", "live"]);
  await server.untilDelivered("ada");
  expect([ada.messages, ada.toasts]).toEqual([[], []]);
});

test("what comes live comes in order, once, as message and toast, and is acked", async () => {
  const server = await Server.start();
  const ada = await open(server.url, "ada");
  await server.pushMany("ada", 100);
  await ada.until(({ items }) => items.length === 100, "all that was pushed");
  const upwards = Array.from({ length: 100 }, (_, n) => n);
  expect(numbers(ada.messages)).toEqual(upwards);
  expect(numbers(ada.toasts)).toEqual(upwards);
  expect(ada.numbers).toEqual(upwards.toReversed());
  expect(ada.unread).toBe(100);
  await server.untilDelivered("ada");
});

test("changes are told once for all that happens at once", async () => {
  const server = await Server.start();
  await server.pushMany("ada", 2);
  const ada = await open(server.url, "ada");
  let changes = 0;
  ada.on("change", () => (changes += 1));
  const before = ada.snapshot;
  expect(ada.snapshot).toBe(before);
  const marked = ada.items.map(({ id }) => ada.markRead(id));
  expect(changes).toBe(0);
  expect([ada.unread, ada.items.map(({ read }) => read)]).toEqual([0, [true, true]]);
  await Promise.resolve();
  expect(changes).toBe(1);
  await Promise.all(marked);
});

test("on() gives a function that ends it, and the fault of one handler is not the others'", async () => {
  const server = await Server.start();
  const ada = await open(server.url, "ada");
  const heard: string[] = [];
  const faults: unknown[] = [];
  const note = (error: unknown) => faults.push(error);
  const others = process.listeners("uncaughtException");
  process.removeAllListeners("uncaughtException").on("uncaughtException", note);
  try {
    ada.on("message", () => {
      throw new Error("a fault of the page");
    });
    const off = ada.on("message", () => heard.push("ended"));
    ada.on("message", () => heard.push("goes on"));
    off();
    await server.push("ada", { n: 1 });
    await ada.until(({ items }) => items.length === 1, "the message");
    expect(heard).toEqual(["goes on"]);
    await eventually(async () => faults.length === 1, "the page's fault is seen");
  } finally {
    process.off("uncaughtException", note);
    for (const other of others) process.on("uncaughtException", other);
  }
});

test("read, unread and read-all change the row, the count, and every other device", async () => {
  const server = await Server.start();
  await server.pushMany("ada", 4);
  const [phone, desk] = [await open(server.url, "ada"), await open(server.url, "ada")];
  const [newest, second] = [phone.items[0]!.id, phone.items[1]!.id];

  await phone.markRead([newest, second]);
  expect([phone.unread, phone.items.map(({ read }) => read)]).toEqual([2, [true, true, false, false]]);
  await desk.until(({ unread }) => unread === 2, "the reads of the phone");
  expect(desk.items.map(({ read }) => read)).toEqual([true, true, false, false]);

  await desk.markUnread(newest);
  await phone.until(({ unread }) => unread === 3, "the unread of the desk");
  expect(phone.items.map(({ read }) => read)).toEqual([false, true, false, false]);

  await phone.markAllRead();
  await desk.until(({ unread }) => unread === 0, "everything to be read");
  expect(desk.items.every(({ read }) => read)).toBe(true);
  expect((await server.inbox("ada")).items.every(({ readAt }) => readAt)).toBe(true);
});

test("read-all reads what is not loaded too, but nothing that comes after what was shown", async () => {
  const server = await Server.start();
  await server.pushMany("ada", 30);
  const ada = await open(server.url, "ada", { pageSize: 5 });
  expect([ada.items.length, ada.unread]).toEqual([5, 30]);
  const [, marked] = [await server.push("ada", { n: "later" }), ada.markAllRead()];
  const shown = ada.items[0]?.data;
  await marked;
  await ada.until(({ items }) => items.some(({ data }) => (data as { n: unknown }).n === "later"), "the later one");
  const { items, unread } = await server.inbox("ada");
  // Whether the later one was shown when all was read is chance; either way it is what was shown that counts.
  const isLaterRead = (shown as { n: unknown }).n === "later";
  expect([unread, items[0]!.readAt !== null, items.slice(1).every(({ readAt }) => readAt)]).toEqual([
    isLaterRead ? 0 : 1,
    isLaterRead,
    true,
  ]);
  expect([ada.unread, ada.items[0]!.read]).toEqual([unread, isLaterRead]);
});

test("older pages load while new ones come, each item once", async () => {
  const server = await Server.start();
  await server.pushMany("ada", 25);
  const ada = await open(server.url, "ada", { pageSize: 10 });
  expect([ada.items.length, ada.hasMore]).toEqual([10, true]);
  const lists = vi.spyOn(globalThis, "fetch");
  await Promise.all([ada.loadMore(), ada.loadMore(), server.pushMany("ada", 5, 25)]);
  expect(lists.mock.calls.filter(([url]) => String(url).includes("before=")).length).toBe(1);
  lists.mockRestore();
  await ada.until(({ items }) => items.length === 25, "the second page and what came");
  expect(ada.hasMore).toBe(true);
  await ada.loadMore();
  expect(ada.numbers).toEqual(Array.from({ length: 30 }, (_, n) => 29 - n));
  expect(ada.hasMore).toBe(false);
  await ada.loadMore();
  expect(ada.items.length).toBe(30);
});

test("what is read elsewhere while its page is on the way is shown as read", async () => {
  const server = await Server.start();
  await server.pushMany("ada", 20);
  const ada = await open(server.url, "ada", { pageSize: 10 });
  const oldest = (await server.inbox("ada")).items.at(-1)!;
  // The page was read before the row was, and comes after it was told.
  const original = globalThis.fetch;
  vi.stubGlobal("fetch", async (url: URL, options: RequestInit) => {
    const page = await original(url, options);
    vi.unstubAllGlobals();
    await server.mark("ada", "read", { ids: [oldest.id] });
    await ada.until(({ unread }) => unread === 19, "the read");
    return page;
  });
  await ada.loadMore();
  expect([ada.items.length, ada.unread]).toEqual([20, 19]);
  expect(ada.items.at(-1)).toMatchObject({ id: oldest.id, read: true });
});

test("what is retracted, collapsed or grouped changes where it stands", async () => {
  const server = await Server.start();
  const ada = await open(server.url, "ada");
  const gone = await server.push("ada", { n: "gone" });
  await server.push("ada", { n: "2 new" }, { collapseKey: "count" });
  await server.push("ada", { n: "3 new" }, { collapseKey: "count" });
  await server.push("ada", { n: "liked" }, { groupKey: "post", actor: "Alice" });
  await server.push("ada", { n: "liked" }, { groupKey: "post", actor: "Bob" });
  await server.fetch(`/api/notifications/${gone}`, "DELETE");
  const group = { key: "post", count: 2, actors: ["Bob", "Alice"] };
  await ada.until(({ items }) => items[0]?.group?.count === 2 && items.length === 2, "the group of two");
  expect(ada.items).toMatchObject([
    { data: { n: "liked" }, ...UNREAD, group },
    { data: { n: "3 new" }, ...UNREAD },
  ]);
  expect(ada.unread).toBe(2);
  expect(numbers(ada.messages)).toEqual(["gone", "2 new", "3 new", "liked"]);
});

test("a backlog of 500 rows is acked in batches, counted, and stands on its pages", async () => {
  const server = await Server.start();
  await Promise.all(Array.from({ length: 10 }, (_, part) => server.pushMany("ada", 50, part * 50)));
  const ada = await open(server.url, "ada");
  expect([ada.items.length, ada.unread, ada.messages.length]).toEqual([20, 500, 0]);
  // Acks are beyond the newest hundred too: nothing is replayed to another device.
  const undelivered = async () => {
    let [count, before] = [0, ""];
    for (let next: number | null = 0; next !== null; before = `&before=${next}`) {
      const page: { items: { deliveredAt: unknown }[]; next: number | null } = await server.fetch(
        `/api/inbox/ada?limit=100${before}`,
      );
      count += page.items.filter(({ deliveredAt }) => !deliveredAt).length;
      next = page.next;
    }
    return count;
  };
  await eventually(async () => (await undelivered()) === 0, "all 500 are delivered");
  while (ada.hasMore) await ada.loadMore();
  expect(new Set(ada.numbers).size).toBe(500);
  expect(ada.items.map(({ seq }) => seq)).toEqual(ada.items.map(({ seq }) => seq).toSorted((a, b) => b - a));
});

test("what is sent live only is told but not in the inbox", async () => {
  const server = await Server.start();
  const ada = await open(server.url, "ada");
  await server.push("ada", { n: "typing" }, { ttl: 0 });
  await server.push("ada", { n: 1 });
  await ada.until(({ items }) => items.length === 1, "the stored one");
  expect(ada.messages).toMatchObject([{ data: { n: "typing" }, seq: 0 }, { data: { n: 1 }, seq: 1 }]);
  expect([ada.numbers, ada.unread]).toEqual([[1], 1]);
});

test("data may be any JSON", async () => {
  const server = await Server.start();
  const ada = await open(server.url, "ada");
  const any: unknown[] = [null, false, 0, "", "text", [], [[null]], { constructor: "c", length: -1 }, { _placeholder: true, num: 0 }];
  for (const data of any) await server.push("ada", data);
  await ada.until(({ items }) => items.length === any.length, "all of them live");
  const other = await open(server.url, "ada");
  for (const { items } of [ada, other]) expect(items.map(({ data }) => data)).toEqual(any.toReversed());
});

test("tokens of any letters have their own inbox", async () => {
  const server = await Server.start();
  for (const token of ["a/b?c#d", "Zoë 你好", "100%"]) {
    await server.push(token, { n: token });
    const client = await open(server.url, token);
    expect(client.numbers).toEqual([token]);
  }
});

test("opening and closing twice is as once, and a closed inbox can be opened again", async () => {
  const server = await Server.start();
  await server.push("ada", { n: 1 });
  const ada = make(server.url, "ada");
  await expect(ada.markRead("any")).rejects.toMatchObject({ code: "closed" });
  ada.connect();
  ada.connect();
  await ada.live();
  ada.close();
  ada.close();
  expect([ada.status, ada.numbers]).toEqual([{ name: "offline", reason: "closed" }, [1]]);
  await server.push("ada", { n: 2 });
  ada.connect();
  await ada.live();
  expect([ada.numbers, ada.unread]).toEqual([[2, 1], 2]);
});

test("an older page that does not come is told, and can be asked for again", async () => {
  const server = await Server.start();
  const line = await Line.to(server);
  await server.pushMany("ada", 4);
  const ada = await open(line.url, "ada", { pageSize: 2 });
  line.cut();
  await expect(ada.loadMore()).rejects.toMatchObject({ code: "network" });
  expect(ada.errors).toMatchObject([{ code: "network" }]);
  expect([ada.numbers, ada.hasMore]).toEqual([[3, 2], true]);
  line.mend();
  await ada.loadMore();
  expect(ada.numbers).toEqual([3, 2, 1, 0]);
});

test("where tabs cannot talk to each other each has its own socket", async () => {
  const server = await Server.start();
  const line = await Line.to(server);
  const tabs = [await open(line.url, "ada", { shareTabs: true }), await open(line.url, "ada", { shareTabs: true })];
  await server.push("ada", { n: 1 });
  for (const tab of tabs) {
    await tab.until(({ items }) => items.length === 1, "the message");
    expect(tab.toasts.length).toBe(1);
  }
});

test("without a token, or outside of a page without a url, there is no inbox", () => {
  expect(() => make("http://127.0.0.1", "")).toThrow(TypeError);
  expect(() => make("", "ada").connect()).toThrow(TypeError);
});
