// Tabs of one browser that share an inbox: one socket, one toast, and a leader that can go. The page is only a client; what
// it shows is asked of it.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { after, test } from "node:test";
import { promisify } from "node:util";

import { chromium } from "playwright-core";

import { BINARY, PATIENCE_MS, Server, until } from "./server.mjs";

const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
assert.ok(existsSync(executablePath), `no browser at ${executablePath}: run scripts/tools, or set CHROMIUM`);

const FLAGS = [
  "--headless=new",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

// What a crashed page was is not to be kept.
const browser = await chromium.launch({ executablePath, args: [...FLAGS, "--disable-breakpad"] });
after(() => browser.close());

// It runs in whatever the server answers at /api. A page that the test itself answered would not do: Chromium lets such a
// page open no websocket to this machine. What it may load is not what is tested here.
const SCRIPT = `
  if (location.hash) import(location.origin + "/client/tidings.js").then(({ InboxClient }) => {
    const options = JSON.parse(decodeURIComponent(location.hash.slice(1)));
    const client = new InboxClient({ token: "ada", ...options });
    Object.assign(window, { client, messages: [], toasts: [], errors: [] });
    client.on("message", ({ data }) => messages.push(data.n));
    client.on("toast", ({ data }) => toasts.push(data.n));
    client.on("error", (error) => errors.push(error));
    client.connect();
  });
`;

/** A browser profile of its own, and how many sockets its tabs have open and had. */
async function newContext(t, server) {
  const context = await browser.newContext({ bypassCSP: true });
  context.setDefaultTimeout(PATIENCE_MS);
  t.after(() => context.close());
  await context.addInitScript(SCRIPT);
  if (process.env.TIDINGS_CLIENT_FROM_DISK) {
    const body = readFileSync(new URL("../../client/dist/tidings.js", import.meta.url));
    await context.route("**/client/tidings.js", (route) => route.fulfill({ contentType: "text/javascript", body }));
  }
  const sockets = { open: 0, ever: 0 };
  context.on("page", (page) =>
    page.on("websocket", (socket) => {
      sockets.open += 1;
      sockets.ever += 1;
      // The sockets of a page that is gone have no event of their own.
      Promise.race([once(socket, "close"), once(page, "close")]).then(() => (sockets.open -= 1));
    }),
  );
  const open = async (options = {}, until = live) => {
    const tab = await context.newPage();
    await tab.goto(`${server.url}/api#${encodeURIComponent(JSON.stringify(options))}`);
    await until(tab);
    return tab;
  };
  return { context, open, sockets };
}

const live = (tab) => tab.waitForFunction(() => window.client?.status.name === "live");

/** Waits until a tab shows these, newest first, and this unread count. */
async function shows(tab, numbers, unread) {
  const wanted = JSON.stringify([numbers, unread]);
  const isShown = (wanted) => JSON.stringify([client.items.map(({ data }) => data.n), client.unread]) === wanted;
  await tab.waitForFunction(isShown, wanted).catch(async () => {
    const found = await tab.evaluate(() => JSON.stringify([client.items.map(({ data }) => data.n), client.unread, client.status]));
    assert.fail(`${found} is shown, not ${wanted}`);
  });
}

/** In a page: whether a mark is kept. */
const kept = () =>
  new Promise((resolve) => {
    indexedDB.open("tidings").onsuccess = ({ target: { result } }) => {
      result.transaction("ops").objectStore("ops").count().onsuccess = ({ target }) => resolve(target.result > 0);
    };
  });

const heard = (tab) => tab.evaluate(() => ({ messages, toasts, errors }));

async function start(t, ...flags) {
  const server = await Server.start(...flags);
  t.after(() => server.stop());
  return server;
}

test("tabs share one socket; all hear a message, one shows it as a toast", async (t) => {
  const server = await start(t);
  await server.push("ada", { n: 1 });
  const { open, sockets } = await newContext(t, server);
  const tabs = [await open(), await open(), await open()];
  for (const tab of tabs) await shows(tab, [1], 1);
  for (const n of [2, 3]) await server.push("ada", { n });
  for (const tab of tabs) await shows(tab, [3, 2, 1], 3);
  const all = await Promise.all(tabs.map(heard));
  for (const { messages, errors } of all) assert.deepEqual([messages, errors], [[2, 3], []]);
  assert.deepEqual(all.flatMap(({ toasts }) => toasts), [2, 3]);
  assert.deepEqual(sockets, { open: 1, ever: 1 });
  await server.untilDelivered("ada");
});

test("whichever tab marks, all show it and the server has it; what is refused rejects where it was asked", async (t) => {
  const server = await start(t);
  for (let n = 1; n <= 6; n += 1) await server.push("ada", { n });
  const { open } = await newContext(t, server);
  const [leader, follower] = [await open({ pageSize: 3 }), await open({ pageSize: 3 })];
  await follower.evaluate(() => client.markRead(client.items[0].id));
  await shows(leader, [6, 5, 4], 5);
  await leader.evaluate(() => client.markUnread(client.items[0].id));
  await shows(follower, [6, 5, 4], 6);
  await follower.evaluate(() => client.loadMore());
  await shows(follower, [6, 5, 4, 3, 2, 1], 6);
  assert.equal(await leader.evaluate(() => client.hasMore), false);
  const refusal = await follower.evaluate(() => client.markRead("no id").catch(({ code }) => code));
  assert.equal(refusal, "invalid_payload");
  await follower.evaluate(() => client.markAllRead());
  for (const tab of [leader, follower]) await shows(tab, [6, 5, 4, 3, 2, 1], 0);
  const inbox = await (await server.fetch("/api/inbox/ada")).json();
  assert.equal(inbox.unread, 0);
});

test("when the leader is closed the next tab goes on, with nothing lost and nothing twice", async (t) => {
  const server = await start(t);
  const { open, sockets } = await newContext(t, server);
  const tabs = [await open(), await open(), await open()];
  const pushed = [];
  const push = async () => {
    await server.push("ada", { n: pushed.length });
    pushed.unshift(pushed.length);
  };
  await push();
  for (const tab of tabs) await shows(tab, pushed, 1);
  while (tabs.length > 1) {
    const closed = tabs.shift().close();
    await push();
    await closed;
    await push();
    for (const tab of tabs) await shows(tab, pushed, pushed.length);
    await Promise.all(tabs.map(live));
  }
  await push();
  await shows(tabs[0], pushed, pushed.length);
  const { messages, toasts } = await heard(tabs[0]);
  assert.equal(new Set(messages).size, messages.length);
  assert.equal(new Set(toasts).size, toasts.length);
  assert.equal(toasts.at(-1), pushed[0]);
  assert.deepEqual(sockets, { open: 1, ever: 3 });
  await server.untilDelivered("ada");
});

test("when the leader crashes its followers' requests are done by the next", async (t) => {
  const server = await start(t);
  await server.push("ada", { n: 1 });
  const { context, open } = await newContext(t, server);
  const leader = await open();
  const follower = await open();
  await shows(follower, [1], 1);
  const session = await context.newCDPSession(leader);
  const crashed = leader.waitForEvent("crash");
  session.send("Page.crash").catch(() => {}); // it does not answer
  await follower.evaluate(() => client.markAllRead());
  await crashed;
  await shows(follower, [1], 0);
  await server.push("ada", { n: 2 });
  await shows(follower, [2, 1], 1);
  const inbox = await (await server.fetch("/api/inbox/ada")).json();
  assert.deepEqual([inbox.unread, inbox.items[1].readAt !== null], [1, true]);
});

test("offline the tabs show what they know and keep what is marked; online they send it and catch up", async (t) => {
  const server = await start(t);
  await server.push("ada", { n: 1 });
  const { context, open } = await newContext(t, server);
  const tabs = [await open(), await open()];
  await context.setOffline(true);
  for (const tab of tabs) await tab.waitForFunction(() => client.status.name === "offline");
  assert.equal(await tabs[1].evaluate(() => client.status.reason), "no network");
  await tabs[1].evaluate(() => client.markAllRead());
  for (const tab of tabs) await shows(tab, [1], 0);
  await server.push("ada", { n: 2 });
  await context.setOffline(false);
  await Promise.all(tabs.map(live));
  for (const tab of tabs) await shows(tab, [2, 1], 1);
  const isRead = async () => (await (await server.fetch("/api/inbox/ada")).json()).items[1].readAt !== null;
  await until(isRead, "what was marked offline is stored");
  for (const { toasts } of await Promise.all(tabs.map(heard))) assert.deepEqual(toasts, []);
});

test("after a reload a tab goes on from what it kept, offline too", async (t) => {
  const server = await start(t);
  await server.push("ada", { n: 1 });
  const { context, open } = await newContext(t, server);
  const tab = await open();
  await server.push("ada", { n: 2 });
  await shows(tab, [2, 1], 2);
  // As a page that a service worker has: it comes without a line too.
  const page = "**/api";
  const script = "**/client/tidings.js";
  const body = await (await server.fetch("/client/tidings.js")).text();
  await context.route(page, (route) => route.fulfill({ contentType: "text/html", body: "<!doctype html>" }));
  if (!process.env.TIDINGS_CLIENT_FROM_DISK) {
    await context.route(script, (route) => route.fulfill({ contentType: "text/javascript", body }));
  }
  await context.setOffline(true);
  await tab.reload(); // what came a moment ago is saved as the page goes
  await tab.waitForFunction(() => window.client?.status.name === "offline");
  await shows(tab, [2, 1], 2);
  assert.equal(await tab.evaluate(() => client.loaded), true);
  await tab.evaluate(() => client.markRead(client.items[0].id));
  await shows(tab, [2, 1], 1);

  await server.push("ada", { n: 3 });
  await context.setOffline(false);
  await context.unroute(page);
  const lists = [];
  context.on("request", (request) => request.url().includes("/api/inbox/") && lists.push(request.url()));
  await tab.reload();
  await live(tab);
  await shows(tab, [3, 2, 1], 2);
  assert.deepEqual([lists, (await heard(tab)).messages], [[], []]);
  const isRead = async () => (await (await server.fetch("/api/inbox/ada")).json()).items[1].readAt !== null;
  await until(isRead, "what was marked offline is stored");
});

test("when a leader that is offline crashes the next tab sends what it had not", async (t) => {
  const server = await start(t);
  await server.push("ada", { n: 1 });
  const { context, open } = await newContext(t, server);
  const [leader, follower] = [await open(), await open()];
  await shows(follower, [1], 1);
  await context.setOffline(true);
  await leader.waitForFunction(() => client.status.name === "offline");
  await leader.evaluate(() => client.markAllRead());
  await shows(follower, [1], 0);
  const session = await context.newCDPSession(leader);
  const crashed = leader.waitForEvent("crash");
  session.send("Page.crash").catch(() => {}); // it does not answer
  await crashed;
  await leader.close(); // the browser's tab, which the page is not in any more
  await context.setOffline(false);
  await live(follower);
  await shows(follower, [1], 0);
  await until(async () => (await (await server.fetch("/api/inbox/ada")).json()).unread === 0, "it is stored");
});

test("the toast is where somebody looks", async (t) => {
  const server = await start(t);
  const { open } = await newContext(t, server);
  const hide = (tab, state) =>
    tab.evaluate((state) => {
      Object.defineProperty(document, "visibilityState", { configurable: true, get: () => state });
      document.dispatchEvent(new Event("visibilitychange"));
    }, state);
  const [leader, hidden, seen] = [await open(), await open(), await open()];
  await hide(leader, "hidden");
  await hide(hidden, "hidden");
  await server.push("ada", { n: 1 });
  for (const tab of [leader, hidden, seen]) await shows(tab, [1], 1);
  assert.deepEqual((await heard(seen)).toasts, [1]);
  await seen.close();
  await server.push("ada", { n: 2 });
  for (const tab of [leader, hidden]) await shows(tab, [2, 1], 2);
  assert.deepEqual([(await heard(leader)).toasts, (await heard(hidden)).toasts], [[2], []]);
});

for (const [what, away, back] of [
  ["put aside", "pagehide", "pageshow"],
  ["frozen", "freeze", "resume"],
]) {
  test(`a page that is ${what} leaves the lead to another, and follows when it is back`, async (t) => {
    const server = await start(t);
    await server.push("ada", { n: 1 });
    const { open, sockets } = await newContext(t, server);
    const [first, second] = [await open(), await open()];
    const turn = (type) => first.evaluate((type) => void document.dispatchEvent(new Event(type, { bubbles: true })), type);
    await turn(away);
    assert.equal(await first.evaluate(() => client.status.name), "offline");
    await server.push("ada", { n: 2 });
    await shows(second, [2, 1], 2);
    await second.evaluate(() => client.markAllRead());
    await turn(back);
    await live(first);
    await shows(first, [2, 1], 0);
    assert.deepEqual(sockets, { open: 1, ever: 2 });
  });
}

test("from a leader that does not answer a tab that is looked at takes the lead", async (t) => {
  const server = await start(t);
  const { context, open, sockets } = await newContext(t, server);
  const [stuck, seen, other] = [await open(), await open(), await open()];
  const session = await context.newCDPSession(stuck);
  await session.send("Debugger.enable");
  const paused = once(session, "Debugger.paused");
  const over = stuck.evaluate(() => {
    debugger;
  });
  await paused;
  await server.push("ada", { n: 1 });
  await seen.evaluate(() => void document.dispatchEvent(new Event("visibilitychange")));
  await shows(seen, [1], 1);
  assert.equal(sockets.ever, 2);
  await server.push("ada", { n: 2 });
  for (const tab of [seen, other]) await shows(tab, [2, 1], 2);
  await session.send("Debugger.resume");
  await over;
  await seen.evaluate(() => client.markAllRead());
  await shows(stuck, [2, 1], 0);
  await until(() => sockets.open === 1, "the socket of the first is closed");
  await server.push("ada", { n: 3 });
  for (const tab of [stuck, seen, other]) await shows(tab, [3, 2, 1], 1);
  const [first, ...others] = await Promise.all([stuck, seen, other].map(heard));
  assert.deepEqual([first, ...others].flatMap(({ toasts }) => toasts).filter((n) => n === 3), [3]);
  for (const { messages } of others) assert.deepEqual(messages, [2, 3], "what the first had still to say is no news");
  assert.deepEqual(first.messages, [...new Set(first.messages)]);
  assert.equal(sockets.ever, 2);
});

test("what a tab marked while nobody leads is shown there at once, and outlives it", async (t) => {
  const server = await start(t);
  await server.push("ada", { n: 1 });
  const { context, open } = await newContext(t, server);
  const leader = await open();
  const idle = await context.newPage(); // the next in line, which has the lock then and does nothing
  await idle.goto(`${server.url}/api`);
  await idle.evaluate(async () => {
    const { held } = await navigator.locks.query();
    const { name } = held.find(({ name }) => !name.includes(" tab "));
    void navigator.locks.request(name, () => new Promise(() => (window.leads = true)));
  });
  const tab = await open();
  await shows(tab, [1], 1);
  await leader.close();
  await idle.waitForFunction(() => window.leads);
  const unread = await tab.evaluate(() => {
    void client.markAllRead();
    return client.unread;
  });
  assert.equal(unread, 0);
  await until(() => tab.evaluate(kept), "it is kept");
  await Promise.all([tab.close(), idle.close()]);
  const next = await open();
  await shows(next, [1], 0);
  await until(async () => (await (await server.fetch("/api/inbox/ada")).json()).unread === 0, "it is stored");
});

test("a tab that cannot log in leaves the lead to one that can", async (t) => {
  const secret = "k1=a-secret-of-more-than-thirty-two-letters";
  const server = await start(t, `--login-keys=${secret}`);
  await server.push("ada", { n: 1 });
  const args = ["sign", `--login-keys=${secret}`, "--token", "ada", "--ttl", "1h"];
  const { exp, kid, sig } = JSON.parse((await promisify(execFile)(BINARY, args)).stdout);
  const refused = (tab) => tab.waitForFunction(() => window.client?.status.reason === "unauthorized");
  const { open } = await newContext(t, server);
  const old = await open({ credential: { exp: exp - 7200, kid, sig } }, refused);
  const other = await open({ credential: { exp: exp - 7200, kid, sig } }, refused);
  const good = await open({ credential: { exp, kid, sig } });
  for (const tab of [old, other, good]) await shows(tab, [1], 1);
  await old.evaluate(() => client.markAllRead());
  await shows(good, [1], 0);
  const codes = (await Promise.all([old, good].map(heard))).map(({ errors }) => errors.map(({ code }) => code));
  assert.deepEqual(codes, [["unauthorized"], []]);
});

for (const [what, without] of [
  ["cannot talk to each other", () => delete Navigator.prototype.locks],
  ["may not", () => (LockManager.prototype.request = () => Promise.reject(new DOMException("denied", "SecurityError")))],
]) {
  test(`where tabs ${what} each has its own socket, and the rest works`, async (t) => {
    const server = await start(t);
    const { context, open, sockets } = await newContext(t, server);
    await context.addInitScript(without);
    await context.addInitScript(() => delete window.indexedDB);
    const tabs = [await open(), await open()];
    await server.push("ada", { n: 1 });
    for (const tab of tabs) await shows(tab, [1], 1);
    await tabs[0].evaluate(() => client.markAllRead());
    await shows(tabs[1], [1], 0);
    assert.deepEqual(sockets, { open: 2, ever: 2 });
    await tabs[0].reload();
    await live(tabs[0]);
    await shows(tabs[0], [1], 0);
  });
}

test("tabs of different users share nothing, and those that are not to share have a socket each", async (t) => {
  const server = await start(t);
  const { open, sockets } = await newContext(t, server);
  const [ada, bob] = [await open({ token: "ada" }), await open({ token: "bob" })];
  assert.equal(sockets.open, 2);
  await server.push("bob", { n: 1 });
  await shows(bob, [1], 1);
  await shows(ada, [], 0);
  const alone = [await open({ token: "eve", shareTabs: false }), await open({ token: "eve", shareTabs: false })];
  assert.equal(sockets.open, 4);
  await server.push("eve", { n: 2 });
  for (const tab of alone) await shows(tab, [2], 1);
  for (const { toasts } of await Promise.all(alone.map(heard))) assert.deepEqual(toasts, [2]);
});
