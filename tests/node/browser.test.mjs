// The demo page in a real browser, and an old page of another origin. Leaves pictures in target/screenshots.

import assert from "node:assert/strict";
import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { after, beforeEach, test } from "node:test";
import { fileURLToPath } from "node:url";

import { chromium } from "playwright-core";

import { PATIENCE_MS, Server } from "./server.mjs";

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

const server = await Server.start();
const browser = await chromium.launch({ executablePath, args: FLAGS });
after(async () => {
  await browser.close();
  await server.stop();
});

let complaints = [];
beforeEach(() => (complaints = []));

/** A new browser profile, gone at the end of the test `t`. */
async function newContext(t, options) {
  const context = await browser.newContext(options);
  context.setDefaultTimeout(PATIENCE_MS);
  t.after(() => context.close());
  return context;
}

/** Opens the demo page; what its console complains about is collected. */
async function openTab(context) {
  const tab = await context.newPage();
  // Browsers ask for an icon on their own, and there is none.
  const isIcon = (message) => message.location().url.endsWith("/favicon.ico");
  tab.on("console", (message) => message.type() === "error" && !isIcon(message) && complaints.push(message.text()));
  tab.on("pageerror", (error) => complaints.push(String(error)));
  await tab.goto(server.url);
  return tab;
}

async function logIn(tab, token) {
  await tab.getByLabel("Token", { exact: true }).fill(token);
  await tab.getByRole("button", { name: "Log in" }).click();
}

const shot = (name) => fileURLToPath(new URL(`../../target/screenshots/${name}.png`, import.meta.url));

/** Waits until the page shows this unread count, and these messages, newest first. */
async function expectInbox(tab, unread, messages) {
  await tab.locator("#unread", { hasText: new RegExp(`^${unread}$`) }).waitFor();
  if (messages.length > 0) await tab.locator("#messages li").nth(messages.length - 1).waitFor();
  const shown = await tab.locator("#messages li").evaluateAll((items) =>
    items.map((item) => [item.querySelector(".tag").textContent, item.querySelector(".text").textContent]),
  );
  assert.deepEqual(shown, messages);
}

test("the demo page shows what waited and what comes, in every tab, and counts what is unread", async (t) => {
  const context = await newContext(t);
  await server.push("ada", { from: "Bob" }, "like");
  await server.push("ada", { from: "Eve", text: "<img src=x onerror=alert(1)>" }, "comment");
  const waited = [
    ["Replayed", "Eve commented: <img src=x onerror=alert(1)>"],
    ["Replayed", "Bob liked your post"],
  ];

  const first = await openTab(context);
  await logIn(first, "ada");
  await first.getByText("Logged in as ada. 2 waited").waitFor();
  await expectInbox(first, 2, waited);

  const live = ["Live", "Mia follows you"];
  await server.push("ada", { from: "Mia" }, "follow");
  await expectInbox(first, 3, [live, ...waited]);

  await server.untilDelivered("ada");
  const second = await openTab(context);
  await logIn(second, "ada");
  await second.getByText("Logged in as ada.").waitFor();
  await expectInbox(second, 3, []); // the first tab has acked it all, and nobody has read any

  await second.getByLabel("To (tokens, separated by commas)").fill("ada, someone else");
  await second.getByLabel("Kind").selectOption("comment");
  await second.getByLabel("Comment", { exact: true }).fill("See you there");
  await second.getByRole("button", { name: "Send" }).click();
  await second.getByText(/Stored: #4 of ada, #1 of someone else/).waitFor();
  const sent = ["Live", "Bob commented: See you there"];
  await expectInbox(second, 4, [sent]);
  await expectInbox(first, 4, [sent, live, ...waited]);

  await first.getByRole("button", { name: "Mark read: Mia follows you" }).click();
  await expectInbox(second, 3, [sent]);
  await expectInbox(first, 3, [sent, live, ...waited]);
  assert.equal(await first.title(), "(3) Tidings");
  await first.screenshot({ path: shot("light"), fullPage: true });

  await second.getByRole("button", { name: "Mark all read" }).click();
  for (const tab of [second, first]) {
    await tab.locator("#unread", { hasText: /^0$/ }).waitFor();
    await tab.locator("#messages li:not(.read)").first().waitFor({ state: "detached" });
  }

  await first.reload();
  await first.getByText("Logged in as ada. Nothing waited").waitFor();
  await expectInbox(first, 0, []);
  assert.deepEqual(complaints, []);
});

test("who logs out gets at the next login what was sent meanwhile, in the dark and on a phone too", async (t) => {
  const viewport = { width: 390, height: 844 };
  const phone = await newContext(t, { viewport, colorScheme: "light", isMobile: true, hasTouch: true });
  const dark = await newContext(t, { colorScheme: "dark" });
  const tabs = [await openTab(phone), await openTab(dark)];
  for (const [at, tab] of tabs.entries()) {
    const token = `guest-${at}`;
    await logIn(tab, token);
    await tab.getByText(`Logged in as ${token}. Nothing waited`).waitFor();
    await server.push(token, { from: "Ann" }, "like");
    await expectInbox(tab, 1, [["Live", "Ann liked your post"]]);
    await server.untilDelivered(token);
    await tab.getByRole("button", { name: "Log out" }).click();
    await tab.getByText("Logged out.").waitFor();
    await server.push(token, { any: ["JSON", 1] }, "");
    await tab.getByRole("button", { name: "Log in" }).click();
    await tab.getByText(`Logged in as ${token}. 1 waited`).waitFor();
    await expectInbox(tab, 2, [["Replayed", 'notification {"any":["JSON",1]}'], ["Live", "Ann liked your post"]]);
    const overflow = await tab.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
    assert.ok(overflow <= 0, `${overflow} pixels wider than the window`);
  }
  await tabs[0].screenshot({ path: shot("phone"), fullPage: true });
  await tabs[1].screenshot({ path: shot("dark"), fullPage: true });
  assert.deepEqual(complaints, []);
});

test("without the client bundle the demo page says what is missing, and can still send", async (t) => {
  const context = await newContext(t);
  await context.route("**/socket.io.js", (route) => route.fulfill({ status: 404, body: "" }));
  const tab = await openTab(context);
  await tab.getByRole("alert").getByText("make client").waitFor();
  assert.ok(await tab.getByRole("button", { name: "Log in" }).isDisabled());
  await tab.getByRole("button", { name: "Send" }).click();
  await tab.getByText(/Stored: #1 of alice/).waitFor();
});

test("an old page of another origin, with client 2.0.3 that polls with credentials, is served", async (t) => {
  const library = readFileSync(new URL("node_modules/sioc203/dist/socket.io.js", import.meta.url));
  const pages = createServer((request, response) => {
    response.setHeader("Content-Type", request.url === "/" ? "text/html" : "text/javascript");
    response.end(request.url === "/" ? '<script src="/socket.io.js"></script>' : library);
  }).listen(0, "127.0.0.1");
  t.after(() => pages.close());
  await once(pages, "listening");
  await server.push("old", { n: 1 });

  const context = await newContext(t);
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
