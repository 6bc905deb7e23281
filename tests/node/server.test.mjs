// What clients meet besides the events: the client bundle, the socket path, CORS, and a server that restarts.

import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { after, describe, test } from "node:test";

import { Page, VERSIONS } from "./page.mjs";
import { Server } from "./server.mjs";

const DIST = new URL("../../client/dist/", import.meta.url);
const CLIENT = ["tidings.js", "tidings-inbox.js", "tidings.global.js"].flatMap((file) => [file, `${file}.map`]);
const BUNDLES = ["socket.io.js", "socket.io.min.js", "socket.io.esm.min.js"].flatMap((file) => [file, `${file}.map`]);
const NO_BUNDLES = !existsSync(new URL(BUNDLES[0], DIST)) && "no client/dist: run `make client` and build again";
const ORIGIN = "https://old-page.example:8443";

// How long a stop may take if something hangs; the default of --drain-timeout-secs.
const DRAIN_TIMEOUT_MS = 10_000;

const server = await Server.start(`--origins=${ORIGIN}`);
const moved = await Server.start("--socket-path=/ws/socket.io");
after(() => Promise.all([server.stop(), moved.stop()]));

describe("a client bundle", { skip: NO_BUNDLES }, () => {
  for (const [where, at, files] of [
    [server, "/socket.io/", BUNDLES],
    [moved, "/ws/socket.io/", BUNDLES],
    [server, "/client/", CLIENT],
  ]) {
    for (const file of files) {
      test(`${at}${file} is the file that npm has`, async () => {
        const response = await where.fetch(at + file);
        assert.equal(response.status, 200, "404 here means: built before there was client/dist");
        const type = file.endsWith(".map") ? /^application\/json/ : /^text\/javascript/;
        assert.match(response.headers.get("content-type"), type);
        assert.ok(Buffer.from(await response.arrayBuffer()).equals(readFileSync(new URL(file, DIST))));
      });
    }
  }

  test("it is sent compressed to whoever takes that, and not at all to whoever has it", async () => {
    const get = (headers) => server.fetch("/client/tidings.js", { headers: { "accept-encoding": "identity", ...headers } });
    const tags = new Map();
    for (const [accepted, encoding] of [
      ["identity", null],
      ["gzip;q=0, br", null],
      ["deflate, GZIP;q=0.5", "gzip"],
      ["gzip, deflate, br, zstd", "gzip"],
    ]) {
      const response = await get({ "accept-encoding": accepted });
      assert.equal(response.headers.get("content-encoding"), encoding, accepted);
      assert.match(response.headers.get("vary"), /accept-encoding/);
      tags.set(encoding, response.headers.get("etag"));
      assert.ok(Buffer.from(await response.arrayBuffer()).equals(readFileSync(new URL("tidings.js", DIST))));
    }
    const [plain, gzip] = [tags.get(null), tags.get("gzip")];
    assert.notEqual(plain, gzip);
    for (const [known, status] of [
      [plain, 304],
      [`W/${plain}`, 304],
      [`"another", W/"third" , ${plain}`, 304],
      ["*", 304],
      [gzip, 200],
      ['"another"', 200],
    ]) {
      const response = await get({ "if-none-match": known });
      assert.deepEqual([response.status, response.headers.get("etag")], [status, plain], known);
    }
    const response = await get({ "accept-encoding": "gzip", "if-none-match": `W/${gzip}` });
    assert.deepEqual([response.status, response.headers.get("etag")], [304, gzip]);
  });
});

test("the page has an icon, so that a browser need not ask for one in vain", async () => {
  const html = await (await server.fetch("/")).text();
  const [, icon] = html.match(/<link rel="icon" href="([^"]+)">/);
  const response = await server.fetch(icon);
  assert.deepEqual([response.status, response.headers.get("content-type")], [200, "image/svg+xml"]);
});

for (const version of VERSIONS) {
  test(`client ${version} works below another socket path`, async (t) => {
    const [page, { ok }] = await Page.open(t, { version, url: moved.url, path: "/ws/socket.io", token: version });
    assert.ok(ok);
    assert.equal((await page.next("replay_complete")).count, 0);
    await page.upgraded;
    const { id } = await moved.push(version, {});
    assert.equal((await page.next("receive_message")).id, id);
  });
}

test("the page at / knows the socket path and brings no script or style of its own", async () => {
  const html = await (await moved.fetch("/")).text();
  assert.match(html, /data-socket-path="\/ws\/socket\.io"/);
  assert.doesNotMatch(html, /\{\{|<style|<script(?![^>]* src=)| style=| on[a-z]+=/);
});

/** What a browser checks before a page of another origin sees the answer to a request with credentials. */
function assertMayBeRead({ headers }) {
  assert.equal(headers.get("access-control-allow-origin"), ORIGIN);
  assert.equal(headers.get("access-control-allow-credentials"), "true");
  assert.match(headers.get("vary") ?? "", /origin/i);
}

for (const [version, packet] of [[3, "1:2"], [4, "40"]]) {
  test(`polls of protocol ${version} from another origin, sent with credentials, may be read by it`, async () => {
    const headers = { Origin: ORIGIN, Cookie: "session=1" };
    const path = `/socket.io/?EIO=${version}&transport=polling`;
    const opened = await server.fetch(path, { headers });
    assert.equal(opened.status, 200);
    assertMayBeRead(opened);
    const [, sid] = (await opened.text()).match(/"sid":"([^"]+)"/);
    const posted = await server.fetch(`${path}&sid=${sid}`, {
      method: "POST",
      headers: { ...headers, "Content-Type": "text/plain;charset=UTF-8" },
      body: packet,
    });
    assert.deepEqual([posted.status, await posted.text()], [200, "ok"]);
    assertMayBeRead(posted);
    const polled = await server.fetch(`${path}&sid=${sid}`, { headers });
    assert.equal(polled.status, 200);
    assertMayBeRead(polled);
  });
}

test("a preflight from another origin is answered with leave to poll", async () => {
  const headers = {
    Origin: ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "content-type,x-session",
  };
  const answer = await server.fetch("/socket.io/?EIO=3&transport=polling", { method: "OPTIONS", headers });
  assert.ok(answer.ok, `status ${answer.status}`);
  assertMayBeRead(answer);
  assert.match(answer.headers.get("access-control-allow-methods"), /POST/);
  assert.match(answer.headers.get("access-control-allow-headers"), /content-type.*x-session/i);
});

test("clients of every version come back by themselves after a restart and get what they did not ack", async (t) => {
  const restarting = await Server.start();
  t.after(() => restarting.stop());
  const visits = [];
  for (const version of VERSIONS) {
    const options = { version, url: restarting.url, token: version, reconnection: true, reconnectionDelay: 100 };
    const [page] = await Page.open(t, options);
    assert.equal((await page.next("replay_complete")).count, 0);
    await page.upgraded;
    visits.push([version, page]);
  }
  const { id } = await restarting.push(VERSIONS, {});
  for (const [, page] of visits) assert.equal((await page.next("receive_message")).id, id);
  const asked = Date.now();
  await restarting.end();
  assert.ok(Date.now() - asked < DRAIN_TIMEOUT_MS / 2, "open pages do not hold up the stop");
  for (const [version, page] of visits) {
    assert.equal(typeof (await page.next("server_draining")).retryMs, "number");
    const reason = await page.next("disconnect");
    assert.notEqual(reason, "io server disconnect", `client ${version} does not come back after that`);
  }
  await restarting.startAgain();
  for (const [version, page] of visits) {
    await page.reconnected();
    assert.equal((await page.login(version)).undelivered, 1);
    assert.equal((await page.next("receive_message")).id, id);
    assert.equal((await page.next("replay_complete")).count, 1);
  }
});
