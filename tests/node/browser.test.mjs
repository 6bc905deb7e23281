// The demo page in a real browser, and an old page of another origin. Leaves pictures in target/screenshots.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { after, before, test } from "node:test";
import { promisify } from "node:util";

import { expectAccessible, launch, newContext, openPage, shot } from "./chromium.mjs";
import { BINARY, Server, until } from "./server.mjs";

let server, browser;
before(async () => ([server, browser] = await Promise.all([Server.start(), launch()])));
after(async () => {
  await browser?.close();
  await server?.stop();
});

/** Opens the demo page for these two users; its console must stay silent until the test is over. */
async function openDemo(t, context, users, { from = server, silent = true } = {}) {
  const complaints = [];
  const page = await openPage(context, `${from.url}/${users ? `?users=${users.join()}` : ""}`, complaints);
  if (silent) t.after(() => assert.deepEqual(complaints, []));
  return page;
}

/** The card of a user. */
const card = (page, user) => page.getByRole("region", { name: user, exact: true });
const online = (page, user) => page.getByRole("switch", { name: `${user} is online` });
const texts = (page, user) => card(page, user).locator("tidings-inbox .text").allTextContents();
const isLive = (page, user) =>
  card(page, user)
    .locator(".state", { hasText: /^online$/ })
    .waitFor();
const hears = (page, user, text) =>
  card(page, user).locator("tidings-inbox").getByText(text, { exact: true }).first().waitFor();
const unread = (page, user, count) =>
  card(page, user)
    .locator("[part=count]", { hasText: new RegExp(`^${count}$`) })
    .waitFor();

/** The rows of the table that is shown: the cells that `columns` names. */
const table = (page, ...columns) =>
  page.locator("#rows tr").evaluateAll((rows, columns) => {
    const heads = [...document.querySelectorAll("thead th")].map(({ textContent }) => textContent);
    const time = /^\d+:\d\d:\d\d/; // of whatever clock
    const text = (cell) => (time.test(cell.textContent) ? "a time" : cell.textContent);
    return rows.map((row) => columns.map((column) => text(row.cells[heads.indexOf(column)])));
  }, columns);

async function expectTable(page, columns, rows) {
  let shown;
  const isSo = async () => JSON.stringify((shown = await table(page, ...columns))) === JSON.stringify(rows);
  await until(isSo, "the table is right").catch(() => assert.deepEqual(shown, rows));
}

async function send(page, { to, what = "Like", from, comment, group = false }) {
  for (const box of await page.getByRole("group", { name: "To" }).getByRole("checkbox").all()) {
    await box.setChecked(to.includes(await box.getAttribute("value")));
  }
  await page.getByRole("radio", { name: what }).check();
  if (from !== undefined) await page.getByLabel("From").fill(from);
  if (comment !== undefined) await page.getByRole("textbox", { name: "Comment" }).fill(comment);
  await page.getByLabel("Group").setChecked(group);
  await page.getByRole("button", { name: "Send" }).click();
}

const wide = { viewport: { width: 1280, height: 900 } };

test("what is sent to someone offline waits in the table, comes at their return, and is read", async (t) => {
  const context = await newContext(t, browser, wide);
  const page = await openDemo(t, context);
  for (const user of ["Alice", "Bob"]) await isLive(page, user);
  await online(page, "Bob").click();
  await card(page, "Bob")
    .locator(".state", { hasText: /^offline$/ })
    .waitFor();
  assert.equal(await online(page, "Bob").getAttribute("aria-checked"), "false");

  await send(page, { to: ["alice", "bob"], from: "Mia" });
  await page.getByText("Stored: #1 of alice, #1 of bob.").waitFor();
  await hears(page, "Alice", "Mia liked your post");
  await card(page, "Alice").locator(".toast", { hasText: "Mia liked your post" }).waitFor();
  const columns = ["token", "seq", "entity_type", "data", "delivered", "read"];
  const [type, data] = ["like", '{"from":"Mia"}'];
  await expectTable(page, columns, [
    ["alice", "1", type, data, "a time", "unread"],
    ["bob", "1", type, data, "waits", "unread"],
  ]);
  assert.deepEqual(await texts(page, "Bob"), []);
  assert.equal(await server.undelivered("bob"), 1);

  await online(page, "Bob").click();
  await hears(page, "Bob", "Mia liked your post");
  assert.equal(await card(page, "Bob").locator(".toast").count(), 0, "what waited is no news");
  await expectTable(page, columns, [
    ["alice", "1", type, data, "a time", "unread"],
    ["bob", "1", type, data, "a time", "unread"],
  ]);

  await card(page, "Bob").getByRole("button", { name: "Mark read: Mia liked your post" }).click();
  await expectTable(page, columns, [
    ["alice", "1", type, data, "a time", "unread"],
    ["bob", "1", type, data, "a time", "a time"],
  ]);
  assert.equal(await page.title(), "(1) Tidings");
});

test("what someone reads while they are offline is read in the table at their return", async (t) => {
  const page = await openDemo(t, await newContext(t, browser, wide), ["olga", "paul"]);
  for (const user of ["Olga", "Paul"]) await isLive(page, user);
  await send(page, { to: ["olga"], from: "Mia" });
  await hears(page, "Olga", "Mia liked your post");
  await expectTable(page, ["token", "delivered", "read"], [["olga", "a time", "unread"]]);
  await online(page, "Olga").click();
  await card(page, "Olga").getByRole("button", { name: "Mark read: Mia liked your post" }).click();
  await card(page, "Olga").getByRole("button", { name: "Mark unread: Mia liked your post" }).waitFor();
  await expectTable(page, ["token", "delivered", "read"], [["olga", "a time", "unread"]]);
  await online(page, "Olga").click();
  await expectTable(page, ["token", "delivered", "read"], [["olga", "a time", "a time"]]);
});

test("what changes in the table lights up, for a while", async (t) => {
  const page = await openDemo(t, await newContext(t, browser, wide), ["glow", "dim"]);
  for (const user of ["Glow", "Dim"]) await isLive(page, user);
  await send(page, { to: ["glow"], from: "Mia" });
  await expectTable(page, ["delivered", "read"], [["a time", "unread"]]);
  await page.evaluate(() => document.getAnimations().forEach((animation) => animation.finish()));
  const lit = () => page.evaluate(() => document.querySelector("#rows tr").cells[6].getAnimations().length);
  assert.equal(await lit(), 0);
  await card(page, "Glow").getByRole("button", { name: "Mark all read" }).click();
  await until(async () => (await lit()) > 0, "the cell lights up");
  assert.deepEqual(await table(page, "delivered", "read"), [["a time", "a time"]]);
  await server.push("glow", { from: "Noah" }, "like");
  await expectTable(
    page,
    ["seq", "delivered"],
    [
      ["3", "a time"],
      ["1", "a time"],
    ],
  );
  await page.evaluate(() => document.getAnimations().forEach((animation) => animation.finish()));
  const colours = () =>
    [...document.querySelectorAll("#rows td")].map((cell) => getComputedStyle(cell).backgroundColor);
  assert.deepEqual([...new Set(await page.evaluate(colours))], ["rgba(0, 0, 0, 0)"]);
});

test("likes, comments and follows come to the users they are sent to, several as one if they are grouped", async (t) => {
  const page = await openDemo(t, await newContext(t, browser, wide), ["ada", "ben"]);
  for (const user of ["Ada", "Ben"]) await isLive(page, user);
  await send(page, { to: ["ada"], what: "Follow", from: "Mia" });
  await hears(page, "Ada", "Mia follows you");
  await send(page, { to: ["ada", "ben"], what: "Comment", from: "Mia", comment: "See you there" });
  for (const user of ["Ada", "Ben"]) await hears(page, user, "Mia commented: See you there");
  for (const from of ["Mia", "Noah", "Lina"]) await send(page, { to: ["ben"], from, group: true });
  await hears(page, "Ben", "Lina and 2 others liked your post");
  assert.deepEqual(await texts(page, "Ben"), ["Lina and 2 others liked your post", "Mia commented: See you there"]);
  assert.deepEqual(await texts(page, "Ada"), ["Mia commented: See you there", "Mia follows you"]);
  await page.getByText("Stored: into #2 of ben.").waitFor();
  await send(page, { to: [] });
  await page.getByText("Stored: for nobody.").waitFor();
});

test("every tab shows it and one of them toasts, and what is read in one is read in the others", async (t) => {
  const context = await newContext(t, browser, wide);
  const users = ["tab", "other"];
  await server.push("tab", { from: "Waited" }, "like");
  const first = await openDemo(t, context, users);
  await hears(first, "Tab", "Waited liked your post");
  const second = await openDemo(t, context, users);
  await hears(second, "Tab", "Waited liked your post");
  for (const page of [first, second]) {
    await isLive(page, "Tab");
    await page.evaluate(() => {
      globalThis.toasts = 0;
      // Not from the bell: it shows the same client as the card.
      document.querySelector("#users").addEventListener("tidings-toast", () => (globalThis.toasts += 1));
    });
  }
  await send(second, { to: ["tab"], from: "Mia" });
  for (const page of [first, second]) {
    await hears(page, "Tab", "Mia liked your post");
    await unread(page, "Tab", 2);
    assert.equal(await page.title(), "(2) Tidings");
  }
  const toasts = await Promise.all([first, second].map((page) => page.evaluate(() => globalThis.toasts)));
  assert.equal(toasts[0] + toasts[1], 1);

  await first.getByRole("button", { name: "Mark read: Mia liked your post" }).click();
  await unread(second, "Tab", 1);
  await card(second, "Tab").getByRole("button", { name: "Mark all read" }).click();
  for (const page of [first, second]) {
    await card(page, "Tab").locator("[part=count]").waitFor({ state: "hidden" });
    await page.waitForFunction(() => document.title === "Tidings");
  }
  await first.reload();
  await isLive(first, "Tab");
  assert.deepEqual(await texts(first, "Tab"), ["Mia liked your post", "Waited liked your post"]);
});

test("the README's first push comes to the users that its address names", async (t) => {
  const readme = readFileSync(new URL("../../README.md", import.meta.url), "utf8");
  const [, query] = readme.match(/Open <http:\/\/127\.0\.0\.1:4001\/\?users=([^>]+)>/);
  const [, body] = readme.match(/curl -X POST \S+\/api .*\n +-d '(.+)'/);
  const users = query.split(",");
  const page = await openDemo(t, await newContext(t, browser, wide), users);
  for (const user of users) await isLive(page, user);
  const headers = { "Content-Type": "application/json" };
  assert.ok((await server.fetch("/api", { method: "POST", headers, body })).ok);
  for (const user of users) await hears(page, user, "Gandalf liked your post");
});

test("the page works below another socket path", async (t) => {
  const own = await Server.start("--socket-path=/ws/socket.io");
  const page = await openDemo(t, await newContext(t, browser, wide), undefined, { from: own });
  t.after(() => own.stop()); // after its page, which would complain
  for (const user of ["Alice", "Bob"]) await isLive(page, user);
  await send(page, { to: ["alice", "bob"], from: "Mia" });
  for (const user of ["Alice", "Bob"]) await hears(page, user, "Mia liked your post");
});

test("the bell that the page embeds shows the first user's inbox", async (t) => {
  const page = await openDemo(t, await newContext(t, browser, wide), ["bella", "other"]);
  await isLive(page, "Bella");
  await send(page, { to: ["bella"], from: "Mia" });
  await page.getByRole("button", { name: "Notifications, 1 unread" }).click();
  const panel = page.getByRole("dialog");
  await panel.getByText("Mia liked your post").click();
  await card(page, "Bella").getByRole("button", { name: "Mark unread: Mia liked your post" }).waitFor();
});

test("an order shows what a notification can be, and leads to the table", async (t) => {
  const page = await openDemo(t, await newContext(t, browser, wide), ["orla", "other"]);
  await isLive(page, "Orla");
  await send(page, { to: ["orla"], what: "Order", from: "Mia" });
  await hears(page, "Orla", "Your order is on its way");
  await hears(page, "Orla", "Mia has packed it, and it arrives on Tuesday.");
  await card(page, "Orla").getByRole("link", { name: "Track it" }).click();
  await page.waitForURL("**#table-title");
  await card(page, "Orla").getByRole("button", { name: "Mark unread: Your order is on its way" }).waitFor();
});

test("a server that restarts loses nothing, and the page comes back by itself", async (t) => {
  // A server that stops asks its clients to stay away for as long as it may take.
  const own = await Server.start("--drain-timeout-secs=1");
  t.after(() => own.stop());
  const page = await openDemo(t, await newContext(t, browser, wide), undefined, { from: own, silent: false });
  await isLive(page, "Alice");
  await send(page, { to: ["alice"], from: "Mia" });
  await hears(page, "Alice", "Mia liked your post");
  await own.end();
  await card(page, "Alice").locator(".state", { hasText: "trying to come back" }).waitFor();
  await page.getByRole("button", { name: "Send" }).click();
  await page.getByText("The server did not answer, so it is not known whether this was stored.").waitFor();
  await own.startAgain();
  await own.push("alice", { from: "Meanwhile" }, "follow");
  await hears(page, "Alice", "Meanwhile follows you");
  assert.deepEqual(await texts(page, "Alice"), ["Meanwhile follows you", "Mia liked your post"]);
});

test("what users write stays text, and what the server refuses is told", async (t) => {
  const page = await openDemo(t, await newContext(t, browser, wide), ["eve", "<b>mallory</b>"], { silent: false });
  const evil = "<img src=x onerror=globalThis.pwned=1>";
  await isLive(page, "Eve");
  await send(page, { to: ["eve"], what: "Comment", from: evil, comment: evil });
  await hears(page, "Eve", `${evil} commented: ${evil}`);
  await expectTable(page, ["data"], [[JSON.stringify({ from: evil, text: evil })]]);
  assert.deepEqual(await page.evaluate(() => [globalThis.pwned, document.querySelectorAll("img, b").length]), [
    undefined,
    0,
  ]);
  await card(page, "<b>mallory</b>").waitFor();

  await send(page, { to: ["eve"], what: "Comment", comment: "x".repeat(110_000) });
  await page.locator("#pushed", { hasText: /^Refused: .+102,?400/ }).waitFor();
  assert.equal((await texts(page, "Eve")).length, 1);
});

test("without the client bundle the page says what is missing, can still send, and shows the table", async (t) => {
  const context = await newContext(t, browser);
  await context.route("**/client/*", (route) => route.fulfill({ status: 404, body: "" }));
  const page = await openDemo(t, context, ["none", "neither"], { silent: false });
  await page.getByRole("alert").getByText("make client").waitFor();
  assert.ok(await online(page, "None").isDisabled());
  await page.getByRole("button", { name: "Send" }).click();
  await page.getByText("Stored: #1 of none, #1 of neither.").waitFor();
  await expectTable(
    page,
    ["token", "delivered"],
    [
      ["neither", "waits"],
      ["none", "waits"],
    ],
  );
});

test("on a server with keys the page asks for them, and works with them", async (t) => {
  const [key, secret] = ["an-api-key-of-at-least-32-characters", "a-secret-of-at-least-32-characters"];
  const own = await Server.start(`--api-keys=demo=${key}`, `--login-keys=k1=${secret}`);
  t.after(() => own.stop());
  const sign = async (token) =>
    (await promisify(execFile)(BINARY, [`--login-keys=k1=${secret}`, "sign", `--token=${token}`])).stdout;
  const page = await openDemo(t, await newContext(t, browser, wide), undefined, { from: own, silent: false });
  await page.getByText("This server asks who comes.").waitFor();
  await expectAccessible(page, "asking for keys");
  await page.getByRole("button", { name: "Send" }).click();
  await page.locator("#pushed", { hasText: "Refused:" }).waitFor();
  await page.screenshot({ path: shot("keys") });
  await page.getByLabel("API key").fill(key);
  for (const user of ["Alice", "Bob"]) await page.getByLabel(`Login of ${user}`).fill(await sign(user.toLowerCase()));
  await page.getByRole("button", { name: "Use them" }).click();
  for (const user of ["Alice", "Bob"]) await isLive(page, user);
  await page.getByRole("button", { name: "Send" }).click();
  for (const user of ["Alice", "Bob"]) await hears(page, user, /liked your post/);
  await expectTable(
    page,
    ["token", "delivered"],
    [
      ["alice", "a time"],
      ["bob", "a time"],
    ],
  );
});

/** Fills the inboxes of both with something of each kind, as a person would who tries the page. */
async function fill(page, users, names) {
  for (const user of names) await isLive(page, user);
  await send(page, { to: users, what: "Follow", from: "Omar" });
  await send(page, {
    to: users.slice(0, 1),
    what: "Comment",
    from: "Lina",
    comment: "Where was this taken? The light is wonderful.",
  });
  await server.push(users, { version: "3.1", text: "Version 3.1 is out" }, "release");
  for (const from of ["Zoe", "Jun", "Mia"]) await send(page, { to: users, from, group: true });
  for (const user of names) await hears(page, user, "Mia and 2 others liked your post");
  await card(page, names[0]).getByRole("button", { name: "Mark read: Omar follows you" }).click();
  await online(page, names[1]).click();
  await send(page, { to: users, what: "Comment", from: "Noah", comment: "Well said!" });
  await hears(page, names[0], "Noah commented: Well said!");
  const untilSettled = async () =>
    (await table(page, "delivered")).filter(([delivered]) => delivered === "waits").length === 1;
  await until(untilSettled, "one row waits");
}

for (const [name, { users, dir = "ltr", ...options }] of Object.entries({
  light: { ...wide, users: ["anna", "bert"] },
  dark: { ...wide, users: ["carla", "dino"], colorScheme: "dark" },
  "right-to-left": { ...wide, users: ["ella", "finn"], dir: "rtl" },
  phone: { viewport: { width: 390, height: 844 }, isMobile: true, hasTouch: true, users: ["gina", "hugo"] },
})) {
  test(`the page looks as it should and is accessible: ${name}`, async (t) => {
    const titles = users.map((user) => user.charAt(0).toUpperCase() + user.slice(1));
    const page = await openDemo(t, await newContext(t, browser, { ...options, reducedMotion: "reduce" }), users);
    await page.evaluate((dir) => (document.documentElement.dir = dir), dir);
    await fill(page, users, titles);
    await page.screenshot({ path: shot(name), fullPage: true });
    await expectAccessible(page, `${name}, closed`);
    await page.locator("#bell").getByRole("button").first().click();
    await page.getByRole("dialog").waitFor();
    await page.screenshot({ path: shot(`${name}-open`) });
    await expectAccessible(page, `${name}, open`);
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
    assert.ok(overflow <= 0, `${overflow} pixels wider than the window`);
  });
}

test("an old page of another origin, with client 2.0.3 that polls with credentials, is served", async (t) => {
  const library = readFileSync(new URL("node_modules/sioc203/dist/socket.io.js", import.meta.url));
  const pages = createServer((request, response) => {
    response.setHeader("Content-Type", request.url === "/" ? "text/html" : "text/javascript");
    response.end(request.url === "/" ? '<script src="/socket.io.js"></script>' : library);
  }).listen(0, "127.0.0.1");
  t.after(() => pages.close());
  await once(pages, "listening");
  await server.push("old", { n: 1 });

  const context = await newContext(t, browser);
  const tab = await context.newPage();
  await tab.goto(`http://127.0.0.1:${pages.address().port}/`);
  for (const transports of [["polling"], ["polling", "websocket"]]) {
    const first = await tab.evaluate(
      ([url, transports]) =>
        new Promise((resolve, reject) => {
          const socket = window.io(url, { transports, forceNew: true });
          socket.on("connect", () => socket.emit("user_login", { tokenId: "old", userId: "old", socketId: socket.id }));
          socket.on("receive_message", ({ data }) => resolve(data));
          socket.on("connect_error", (error) => reject(error));
        }),
      [server.url, transports],
    );
    assert.deepEqual(first, { n: 1 });
  }
});

test("a page of another origin that loads the library from the server is served", async (t) => {
  await server.push("served", { n: 2 });
  const pages = createServer((request, response) => {
    response.setHeader("Content-Type", "text/html");
    response.end(`<script src="${server.url}/socket.io/socket.io.js"></script>`);
  }).listen(0, "127.0.0.1");
  t.after(() => pages.close());
  await once(pages, "listening");
  const tab = await (await newContext(t, browser)).newPage();
  await tab.goto(`http://127.0.0.1:${pages.address().port}/page`);
  const data = await tab.evaluate(
    (url) =>
      new Promise((resolve, reject) => {
        const socket = window.io(url);
        socket.on("connect", () => socket.emit("user_login", { tokenId: "served" }));
        socket.on("receive_message", (message) => resolve(message.data));
        socket.on("connect_error", reject);
      }),
    server.url,
  );
  assert.deepEqual(data, { n: 2 });
});

test("the page of the HTTP interface lists, searches and tries operations, and loads nothing from elsewhere", async (t) => {
  const context = await newContext(t, browser, wide);
  const requests = [];
  context.on("request", (request) => requests.push(request.url()));
  const complaints = [];
  const page = await openPage(context, `${server.url}/docs`, complaints);
  const entry = (id) => page.locator(`[data-content-id="${id}"]`);
  await entry("get-/api/inbox/-token-/counts").click();
  await page.getByText("Python", { exact: true }).waitFor();
  await page.getByRole("textbox", { name: "token" }).or(page.locator("input[data-pname=token]")).fill("1");
  await page.getByRole("button", { name: "Try" }).click();
  await page.getByText('"byType"').first().waitFor();
  await page.screenshot({ path: shot("http-interface") });
  await page.getByPlaceholder("Filter").fill("disconnect");
  await page.getByPlaceholder("Filter").press("Enter");
  await entry("get-/api/inbox/-token-/counts").waitFor({ state: "detached" });
  await entry("post-/api/sessions/-token-/disconnect").waitFor();
  assert.deepEqual(requests.filter((url) => !url.startsWith(server.url) && !/^(data|blob):/.test(url)), []);
  assert.deepEqual(complaints, []);
});
