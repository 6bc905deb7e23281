// A real browser for the tests: what it needs to start, profiles that are gone after their test, pages whose complaints
// are collected, and pictures in target/screenshots for people to look at.

import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";

import axe from "axe-core";
import { chromium } from "playwright-core";

import { PATIENCE_MS } from "./server.mjs";

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

const CLIENT = fileURLToPath(new URL("../../client/", import.meta.url));

// While the client is worked on: its pages and bundles come from the disk instead of from the binary, which holds those
// that it was built with. "1" is client/dist; anything else is the folder of the bundles.
const fromDisk = process.env.TIDINGS_CLIENT_FROM_DISK;
const bundles = fromDisk === "1" ? join(CLIENT, "dist") : fromDisk;

// A page that comes from the disk has no address, so the browser would take the server for a stranger on its network.
if (bundles) FLAGS.push("--disable-features=LocalNetworkAccessChecks,LocalNetworkAccessChecksWebSockets");

export const launch = () => chromium.launch({ executablePath, args: FLAGS });

export const shot = (name) => fileURLToPath(new URL(`../../target/screenshots/${name}.png`, import.meta.url));

/** A new browser profile, gone at the end of the test `t`. */
export async function newContext(t, browser, options) {
  const context = await browser.newContext(options);
  context.setDefaultTimeout(PATIENCE_MS);
  t.after(() => context.close());
  if (!bundles) return context;
  await context.route(/\/client\/[^/]+$/, async (route) => {
    const path = join(bundles, basename(new URL(route.request().url()).pathname));
    const headers = { "access-control-allow-origin": "*", "content-type": "text/javascript; charset=utf-8" };
    if (existsSync(path)) await route.fulfill({ path, headers });
    else await route.continue();
  });
  await context.route(/^http:\/\/[^/]+\/(demo\.(js|css))?(\?.*)?$/, async (route) => {
    const response = await route.fetch(); // for its headers
    if (!response.headers()["content-security-policy"]) return await route.fulfill({ response }); // somebody else's page
    const name = basename(new URL(route.request().url()).pathname) || "index.html";
    const [, socketPath = ""] = (await response.text()).match(/data-socket-path="([^"]+)"/) ?? [];
    const body = readFileSync(join(CLIENT, "demo", name), "utf8").replace("{{SOCKET_PATH}}", socketPath);
    await route.fulfill({ response, body });
  });
  return context;
}

/** Opens a page; what its console complains about is collected in `complaints`. */
export async function openPage(context, url, complaints = []) {
  const page = await context.newPage();
  // Browsers ask for an icon on their own, and there is none.
  const isIcon = (message) => message.location().url.endsWith("/favicon.ico");
  page.on("console", (message) => message.type() === "error" && !isIcon(message) && complaints.push(message.text()));
  page.on("pageerror", (error) => complaints.push(String(error)));
  await page.goto(url);
  return page;
}

/** Asserts that axe finds nothing wrong for WCAG 2.2 AA or by its own best practice. */
export async function expectAccessible(page, what) {
  await page.evaluate(axe.source);
  // Colours that are still moving are not those to judge.
  await page.evaluate(() => document.getAnimations().forEach((animation) => animation.finish()));
  // The size of what is hit is the one rule of 2.2 that axe leaves out unless it is asked for.
  const options = { resultTypes: ["violations"], rules: { "target-size": { enabled: true } } };
  const { violations } = await page.evaluate((options) => globalThis.axe.run(document, options), options);
  const found = violations.map(({ id, help, nodes }) => ({
    id,
    help,
    at: nodes.map(({ target, any }) => [target, any[0]?.message]),
  }));
  assert.deepEqual(found, [], what);
}
