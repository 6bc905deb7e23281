// What <tidings-inbox> tells of a notification beyond the list: toasts, sound, and notifications of the browser.

import assert from "node:assert/strict";
import { test } from "node:test";

import { expectAccessible, openPage, shot } from "./chromium.mjs";
import { isLive, open, push, row, server, tag, untilRead } from "./element.mjs";
import { until } from "./server.mjs";

const toasts = (page) => page.locator("tidings-inbox .toasts").getByRole("listitem");
const toast = (page, text) => toasts(page).filter({ hasText: text });
const like = (token, from, more) => server.push(token, { from, ...more }, "like");

/** Waits until what the page has asked for is there. */
const isReady = (page) => page.waitForFunction(() => performance.getEntriesByType("resource").some(({ name }) => name.endsWith("alerts.js")));

test("without being asked nothing is loaded, shown or played", async (t) => {
  const page = await open(t, tag("off"));
  const asked = [];
  page.on("request", (request) => asked.push(request.url()));
  await isLive(page);
  await like("off", "Bob");
  await page.locator("button.bell", { hasText: "1" }).waitFor();
  assert.equal(await toasts(page).count(), 0);
  assert.deepEqual(asked.filter((url) => url.includes("alerts")), []);
  await page.evaluate(() => document.querySelector("tidings-inbox").setAttribute("toasts", ""));
  await isReady(page);
  await like("off", "Eve");
  await toast(page, "Eve liked your post").waitFor();
});

test("a toast says what came, leads where it leads, and goes after a while", async (t) => {
  const page = await open(t, tag("toast", "toasts"));
  await isLive(page);
  await isReady(page);
  await page.clock.install();
  await like("toast", "Ann", { body: "A body", url: "#there", actions: [{ label: "Do" }] });
  await toast(page, "Ann liked your post").waitFor();
  await expectAccessible(page, "a toast");
  await page.screenshot({ path: shot("toast") });
  for (const from of ["Bob", "Cid", "Dan"]) {
    await like("toast", from);
    await toast(page, from).waitFor();
  }
  assert.equal(await toasts(page).count(), 3, "the oldest gives way");
  await toast(page, "Bob").getByRole("button", { name: "Dismiss" }).click();
  await toast(page, "Bob").waitFor({ state: "detached" });
  await toast(page, "Cid").hover();
  await page.clock.runFor(10_000);
  assert.deepEqual(await toasts(page).locator("[part=text]").allTextContents(), ["Cid liked your post"], "it stays under the pointer");
  await toast(page, "Cid").click({ position: { x: 60, y: 20 } });
  await untilRead("toast", 1);
  await toast(page, "Cid").waitFor({ state: "detached" });

  await like("toast", "Eve", { url: "#there" });
  await toast(page, "Eve").getByRole("link").click();
  await page.waitForURL("**#there");
  await untilRead("toast", 0);

  // In the open panel it is seen anyway.
  await page.evaluate(() => document.querySelector("tidings-inbox").show());
  await like("toast", "Fay");
  await row(page, "Fay").waitFor();
  assert.equal(await toasts(page).count(), 0);
});

test("what was sent live only can be followed from its toast, and not be marked", async (t) => {
  const page = await open(t, tag("live only", "toasts"));
  await isLive(page);
  await isReady(page);
  await push("live only", { data: { title: "Ann is typing", url: "#there" }, ttl: 0 });
  await toast(page, "Ann is typing").waitFor();
  assert.equal(await toasts(page).getByRole("button", { name: /^Mark/ }).count(), 0);
  await toast(page, "Ann is typing").getByRole("link").click();
  await page.waitForURL("**#there");
  assert.equal(await page.getByRole("alert").count(), 0);
});

test("one tab of a browser shows the toast, and one of its elements", async (t) => {
  const first = await open(t, tag("one tab", "toasts") + tag("one tab", "toasts"));
  await isReady(first);
  const second = await openPage(first.context(), first.url());
  await isReady(second);
  for (const page of [first, second]) await page.locator("button.bell").nth(1).waitFor();
  await until(async () => (await first.evaluate(() => document.querySelector("tidings-inbox").client.status.name)) === "live", "live");
  await until(async () => (await second.evaluate(() => document.querySelector("tidings-inbox").client.status.name)) === "live", "live");
  // Two clients of a page are as two tabs; here both elements have the same.
  for (const page of [first, second]) {
    await page.evaluate(() => {
      const [one, other] = document.querySelectorAll("tidings-inbox");
      other.client = one.client;
    });
  }
  await push("one tab", { entityType: "like", data: { from: "Bob" } });
  for (const page of [first, second]) await page.locator("button.bell", { hasText: "1" }).nth(1).waitFor();
  const count = async () => (await toasts(first).count()) + (await toasts(second).count());
  await until(async () => (await count()) === 1, "one toast");
  await push("one tab", { entityType: "like", data: { from: "Eve" } });
  await until(async () => (await count()) === 2, "one more");
});

/** An AudioContext that notes its tones, in a page that nobody has clicked in: what tests evaluate counts as a click. */
function fakeAudio() {
  globalThis.tones = [];
  let hasBeenActive = false;
  Object.defineProperty(navigator, "userActivation", { get: () => ({ hasBeenActive }) });
  addEventListener("click", () => (hasBeenActive = true));
  const param = { setValueAtTime: () => param, linearRampToValueAtTime: () => param };
  globalThis.AudioContext = class {
    state = "suspended";
    currentTime = 0;
    resume = async () => void (this.state = "running");
  };
  globalThis.GainNode = class {
    gain = param;
    connect() {}
  };
  globalThis.OscillatorNode = class {
    constructor(_, { frequency }) {
      globalThis.tones.push(frequency);
    }
    connect() {}
    start() {}
    stop() {}
  };
}

test("a sound is played once for what comes live, after the first click", async (t) => {
  const page = await open(t, tag("sound", "sound toasts inline"), { init: fakeAudio });
  await isLive(page);
  await isReady(page);
  const tones = () => page.evaluate(() => globalThis.tones);
  await like("sound", "Ann");
  await toast(page, "Ann").waitFor();
  assert.deepEqual(await tones(), []);
  await page.locator("#outside").click();
  await page.evaluate(() => {
    const [first, second] = [document.querySelector("tidings-inbox"), document.createElement("tidings-inbox")];
    Object.assign(second, { client: first.client, sound: true });
    first.after(second);
  });
  await like("sound", "Bob");
  await until(async () => (await tones()).length > 0, "it sounds");
  assert.deepEqual(await tones(), [660, 880]);
});

/** A browser as on Android: pages may ask for the permission, but only a service worker shows notifications. */
function android() {
  globalThis.made = 0;
  globalThis.shown = [];
  globalThis.Notification = class {
    static permission = "default";
    static requestPermission = async () => (this.permission = "granted");
    constructor() {
      globalThis.made += 1;
      throw new TypeError("Illegal constructor");
    }
  };
}

function withWorker() {
  const registration = { showNotification: async (title, { body, data }) => void globalThis.shown.push([title, body, data.url]) };
  Object.defineProperty(navigator, "serviceWorker", { value: { ready: Promise.resolve(registration), getRegistration: async () => registration } });
}

const hide = (page) => page.evaluate(() => Object.defineProperty(document, "visibilityState", { value: "hidden", configurable: true }));

test("where only a service worker may show notifications, none are offered without one", async (t) => {
  const page = await open(t, tag("no worker", "notify inline"), { init: android });
  await isLive(page);
  await page.waitForFunction(() => globalThis.made > 0);
  await like("no worker", "Bob"); // by then all that follows is done
  await row(page, "Bob").waitFor();
  assert.equal(await page.getByRole("button", { name: "Notify me" }).count(), 0);
});

test("where only a service worker may show notifications, the page's does", async (t) => {
  const page = await open(t, tag("worker", "notify inline"), { init: `(${android})(); (${withWorker})();` });
  await isLive(page);
  await page.getByRole("button", { name: "Notify me when this page is hidden" }).click();
  await page.getByRole("button", { name: "Notify me" }).waitFor({ state: "hidden" });
  await hide(page);
  await push("worker", { data: { title: "Your order", body: "is here", url: "/orders/7" } });
  await like("worker", "Bob");
  const shown = () => page.evaluate(() => globalThis.shown);
  await until(async () => (await shown()).length === 2, "both are shown");
  const url = new URL("/orders/7", page.url()).href;
  assert.deepEqual(await shown(), [
    ["Your order", "is here", url],
    ["Notifications", "Bob liked your post", undefined],
  ]);
});
