// Pages written for the server without a database: client 2.0.3, which logs in, listens, and never acks.

import assert from "node:assert/strict";
import { after, test } from "node:test";

import { Page, TRANSPORTS, VERSIONS } from "./page.mjs";
import { PATIENCE_MS, Server, within } from "./server.mjs";

const version = "2.0.3";
// As short as they can be configured, in seconds.
const [PING_INTERVAL, PING_TIMEOUT] = [1, 1];
// A row counts as delivered when its socket is alive ping interval + ping timeout + 5 s after it was sent.
const DELIVERED_AFTER_MS = (PING_INTERVAL + PING_TIMEOUT + 5) * 1000;

const replaying = await Server.start();
const heartbeat = await Server.start(
  "--unacked=heartbeat",
  `--ping-interval-secs=${PING_INTERVAL}`,
  `--ping-timeout-2x-secs=${PING_TIMEOUT}`,
);
after(() => Promise.all([replaying.stop(), heartbeat.stop()]));

test("an old page that never acks gets everything again at its next login", async (t) => {
  for (let visit = 1; visit <= 3; visit += 1) {
    const [page, login] = await Page.open(t, { version, url: replaying.url, token: "7" });
    const waited = 2 * (visit - 1);
    assert.deepEqual([login.undelivered, login.unread], [waited, waited]);
    const replayed = await page.messages(waited);
    for (const [at, { data, replay }] of replayed.entries()) assert.deepEqual([data, replay], [{ n: at + 1 }, true]);
    assert.equal((await page.next("replay_complete")).count, waited);
    for (const n of [waited + 1, waited + 2]) {
      await replaying.push("7", { n });
      const { entityType, data, replay } = await page.next("receive_message");
      assert.deepEqual([entityType, data, replay], ["like", { n }, false]);
    }
    page.close();
  }
});

test("an old page may log in with a number, without a callback, and be pushed to with a form", async (t) => {
  const page = new Page(version, replaying.url);
  t.after(() => page.close());
  page.socket.on("connect", () => {
    page.socket.emit("user_login", { tokenId: 42, userId: 42, socketId: page.socket.id });
  });
  assert.equal((await page.next("replay_complete")).count, 0);
  const body = new URLSearchParams("tokens=42&tokens=43&entityType=like&data=%7B%22who%22%3A%22Bob%22%7D");
  const answer = await (await replaying.fetch("/api", { method: "POST", body })).json();
  assert.deepEqual([answer.responseCode, answer.data, answer.accepted], [0, "OK!", 2]);
  const message = await page.next("receive_message");
  assert.deepEqual([message.entityType, message.id], ["like", answer.id]);
});

// The original page asks its user for a name, and its socket is there long before.
const hasty = await Server.start("--login-timeout-secs=1");
after(() => hasty.stop());
for (const version of VERSIONS) {
  for (const [how, transports] of Object.entries(TRANSPORTS)) {
    test(`a page that logs in long after its socket was closed for that is back by itself, ${version}, ${how}`, async (t) => {
      const options = { transports, reconnection: true, reconnectionDelay: 10, reconnectionDelayMax: 50 };
      const page = new Page(version, hasty.url, options);
      t.after(() => page.close());
      for (let closed = 0; closed < 2; closed += 1) {
        await within(new Promise((resolve) => page.socket.once("disconnect", resolve)), "the end of the time to log in");
        await page.reconnected();
      }
      const token = `${version}, ${how}`;
      page.socket.emit("user_login", { tokenId: token });
      await page.next("replay_complete");
      await hasty.push(token, { n: 1 });
      assert.deepEqual((await page.next("receive_message")).data, { n: 1 });
      await page.expectNothingMore(token);
    });
  }
}

for (const [how, transports] of Object.entries(TRANSPORTS)) {
  const token = how;
  test(`with --unacked heartbeat a row counts as delivered when an old page outlives it, ${how}`, async (t) => {
    const [page] = await Page.open(t, { version, url: heartbeat.url, token, transports });
    await page.next("replay_complete");
    const since = Date.now();
    await heartbeat.push([token, `${token}, offline`], {});
    await page.next("receive_message");
    await heartbeat.untilDelivered(token, DELIVERED_AFTER_MS + PATIENCE_MS);
    assert.ok(Date.now() - since >= DELIVERED_AFTER_MS, "and not before the heartbeat proves it");
    await page.expectNothingMore(token);
    assert.equal(await heartbeat.undelivered(`${token}, offline`), 1);
    const [, login] = await Page.open(t, { version, url: heartbeat.url, token, transports });
    assert.deepEqual([login.undelivered, login.unread], [0, 1]);
  });
}

test("with --unacked heartbeat a page that left before is sent its rows again", async (t) => {
  const [page] = await Page.open(t, { version, url: heartbeat.url, token: "gone" });
  await page.next("replay_complete");
  await heartbeat.push("gone", {});
  await page.next("receive_message");
  page.close();
  // A row of someone who stayed is counted meanwhile, so the time for this one has passed too.
  const [stayed] = await Page.open(t, { version, url: heartbeat.url, token: "stayed" });
  await stayed.next("replay_complete");
  await heartbeat.push("stayed", {});
  await heartbeat.untilDelivered("stayed", DELIVERED_AFTER_MS + PATIENCE_MS);
  const [, login] = await Page.open(t, { version, url: heartbeat.url, token: "gone" });
  assert.equal(login.undelivered, 1);
});
