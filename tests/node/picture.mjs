// Makes docs/images/inbox.png, the picture of the README: the inbox element in two browsers, and the table below them.

import { execFile } from "node:child_process";
import { mkdir } from "node:fs/promises";
import { createServer } from "node:http";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import { launch } from "./chromium.mjs";
import { Server } from "./server.mjs";

const PICTURE = fileURLToPath(new URL("../../docs/images/inbox.png", import.meta.url));
const QUERY = `select token, seq, entity_type, data, created_at, delivered_at, read_at
  from notification where token in ('alice', 'bob') order by created_at desc, token limit 7`;

const escaped = (text) => String(text ?? "null").replaceAll("&", "&amp;").replaceAll("<", "&lt;");

/** A page of some application, with the element in its corner. */
const page = (url, token) => `<!doctype html>
<meta charset="utf-8">
<style>
  body { margin: 0; font: 15px/1.5 system-ui, sans-serif; color: #1c2430; background: #f5f6f8; height: 100vh; }
  header { display: flex; align-items: center; gap: 1rem; padding: 0.6rem 1.2rem; background: #fff; border-bottom: 1px solid #dde1e7; }
  header b { flex: 1; }
</style>
<script type="module" src="${url}/client/tidings-inbox.js"></script>
<header><b>Photos</b> ${token} <tidings-inbox url="${url}" token="${token}"></tidings-inbox></header>`;

const server = await Server.start();
const browser = await launch();
const app = createServer((request, response) => {
  response.setHeader("content-type", "text/html; charset=utf-8");
  response.end(page(server.url, request.url.slice(1)));
}).listen(0, "127.0.0.1");
try {
  await mkdir(new URL("../../docs/images/", import.meta.url), { recursive: true });
  const both = ["alice", "bob"];
  await server.push(both, { title: "Welcome to Photos", body: "Your first album is ready." }, "welcome");
  await server.push(both, { title: "Mia commented on your photo", body: "What a view!", actor: { name: "Mia" } }, "comment");
  await server.push(["alice"], { title: "Noah follows you", actor: { name: "Noah" } }, "follow");

  const shots = [];
  for (const token of both) {
    const context = await browser.newContext({ viewport: { width: 560, height: 470 }, deviceScaleFactor: 2 });
    const tab = await context.newPage();
    await tab.goto(`http://127.0.0.1:${app.address().port}/${token}`);
    await tab.locator("tidings-inbox").getByRole("button").first().click();
    await tab.getByText("Welcome to Photos").waitFor();
    shots.push({ token, tab });
  }
  await server.push(both, { title: "Ada liked your photo", actor: { name: "Ada" } }, "like");
  const images = [];
  for (const { token, tab } of shots) {
    await tab.getByText("Ada liked your photo").first().waitFor();
    if (token === "bob") await tab.getByText("Welcome to Photos").click();
    await tab.waitForTimeout(500);
    images.push((await tab.screenshot()).toString("base64"));
  }

  const { stdout } = await promisify(execFile)("sqlite3", ["-readonly", "-json", server.database, QUERY]);
  const rows = JSON.parse(stdout);
  const columns = Object.keys(rows[0]);
  const cells = (row) => columns.map((column) => `<td>${escaped(row[column])}</td>`).join("");
  const context = await browser.newContext({ viewport: { width: 1180, height: 800 }, deviceScaleFactor: 1.5 });
  const sheet = await context.newPage();
  await sheet.setContent(`<!doctype html><meta charset="utf-8">
    <style>
      body { margin: 0; padding: 20px; background: #fff; font: 13px/1.5 system-ui, sans-serif; color: #1c2430; }
      .browsers { display: flex; gap: 20px; }
      figure { margin: 0; flex: 1; border: 1px solid #c9ced6; border-radius: 10px; overflow: hidden; }
      figure::before { content: "● ● ●"; display: block; padding: 2px 12px; color: #b3bac5; background: #e8ebef; letter-spacing: 2px; }
      img { display: block; width: 100%; }
      pre { margin: 18px 0 0; padding: 10px 14px; background: #16202c; color: #cfe3d6; border-radius: 10px; font: 12px/1.6 ui-monospace, monospace; overflow: hidden; }
      td, th { text-align: left; padding: 0 14px 0 0; white-space: nowrap; font-weight: normal; max-width: 330px; overflow: hidden; text-overflow: ellipsis; }
      th { color: #8fb3ff; }
    </style>
    <div class="browsers">${images.map((data) => `<figure><img src="data:image/png;base64,${data}"></figure>`).join("")}</div>
    <pre>sqlite&gt; select token, seq, entity_type, data, created_at, delivered_at, read_at from notification;
<table><tr>${columns.map((name) => `<th>${name}</th>`).join("")}</tr>${rows.map((row) => `<tr>${cells(row)}</tr>`).join("")}</table></pre>`);
  await sheet.locator("img").last().evaluate((image) => image.decode());
  await sheet.screenshot({ path: PICTURE, fullPage: true });
  console.log(PICTURE);
} finally {
  await browser.close();
  app.close();
  await server.stop();
}
