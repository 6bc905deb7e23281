// Pages of another origin with <tidings-inbox>, which allow no inline scripts or styles, and the real server behind them:
// for the tests of the element, which import this and have both started and stopped.

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { after, before } from "node:test";

import { launch, newContext, openPage } from "./chromium.mjs";
import { Server, until } from "./server.mjs";

export let server, browser, pages;
before(async () => {
  [server, browser] = await Promise.all([Server.start("--address-rate=0"), launch()]);
  pages = createServer(answer).listen(0, "127.0.0.1");
  await once(pages, "listening");
});
after(async () => {
  await browser?.close();
  pages?.close();
  await server?.stop();
});

const fixtures = new Map(); // path -> html and what is added to the policy

const IMAGE = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"><rect width="1" height="1" fill="teal"/></svg>';

function answer(request, response) {
  if (request.url === "/image.svg") return response.setHeader("content-type", "image/svg+xml").end(IMAGE);
  const [, at] = request.url.match(/^\/script-(\d+)\.js$/) ?? [];
  if (at) return response.setHeader("content-type", "text/javascript; charset=utf-8").end(scripts[at]);
  const { html, added } = fixtures.get(request.url) ?? {};
  response.setHeader("content-type", "text/html; charset=utf-8");
  const policy = `default-src 'none'; script-src ${server.url} http://127.0.0.1:*; connect-src http://127.0.0.1:* ws://127.0.0.1:*; ${added}`;
  response.setHeader("content-security-policy", policy);
  response.statusCode = html === undefined ? 404 : 200;
  response.end(html ?? "<!doctype html><title>Elsewhere</title>");
}

const scripts = [];

/** The address of a script with this code. */
export const script = (code) => `/script-${scripts.push(code) - 1}.js`;

/** Opens a page with this in it; its console must stay silent until the test is over, unless it is not `silent`. `policy` is added to the page's. */
export async function open(t, body, { from = server, script: bundle, lang = "en", dir = "ltr", init, policy = "", silent = true, ...options } = {}) {
  const load = bundle
    ? `<script src="${bundle.startsWith("/") ? "" : `${from.url}/client/`}${bundle}" defer></script>`
    : `<script type="module" src="${from.url}/client/tidings-inbox.js"></script>`;
  const path = `/${fixtures.size}`;
  const html = `<!doctype html><html lang="${lang}" dir="${dir}"><head><meta charset="utf-8"><title>A page</title>
     <meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">
     ${load}</head>
     <body><main><h1>A page</h1><p id="outside">Some text.</p>${body}</main></body></html>`;
  fixtures.set(path, { html, added: policy });
  const context = await newContext(t, browser, options);
  if (init) await context.addInitScript(init);
  const complaints = [];
  const page = await openPage(context, `http://127.0.0.1:${pages.address().port}${path}`, complaints);
  if (silent) t.after(() => assert.deepEqual(complaints, []));
  return page;
}

export const tag = (token, attributes = "", content = "", from = server) =>
  `<tidings-inbox url="${from.url}" token="${token}" ${attributes}>${content}</tidings-inbox>`;

export const bell = (page, name) => page.getByRole("button", { name, exact: true });
export const rows = (page) => page.locator("tidings-inbox").getByRole("listitem");
export const row = (page, text) => rows(page).filter({ hasText: text });
export const isLive = (page, text = "Up to date") =>
  page.locator("tidings-inbox .status", { hasText: text }).waitFor({ state: "attached" });
export const texts = (page) => page.locator("tidings-inbox .text").allTextContents();

/** What has the focus, within shadow trees too: its label or its text. */
export const focused = (page) =>
  page.evaluate(() => {
    let at = document.activeElement;
    while (at?.shadowRoot?.activeElement) at = at.shadowRoot.activeElement;
    return at === document.body ? "nothing" : (at.getAttribute("aria-label") ?? at.textContent);
  });

export async function expectFocus(page, name) {
  await until(async () => (await focused(page)).startsWith(name), `${name} has the focus, not ${await focused(page)}`);
}

export async function push(token, body) {
  const answer = await server.fetch("/api", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ tokens: token, ...body }),
  });
  assert.equal(answer.status, 200);
  return await answer.json();
}

export async function listed(token) {
  return (await (await server.fetch(`/api/inbox/${token}`)).json()).items;
}

/** Reads of this row have reached the table. */
export const untilRead = (token, at, read = true) =>
  until(
    async () => Boolean((await listed(token))[at].readAt) === read,
    `row ${at} of ${token} is ${read ? "read" : "unread"}`,
  );
