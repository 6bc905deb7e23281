// Every client version over every transport: replay, live, receipts, several tabs, and the upgrade during pushes.

import assert from "node:assert/strict";
import { after, test } from "node:test";

import { Page, TRANSPORTS, VERSIONS } from "./page.mjs";
import { Server } from "./server.mjs";

const server = await Server.start();
after(() => server.stop());

const ISO_UTC = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/;

let tokens = 0;
const newToken = () => `token-${(tokens += 1)}`;

/** What a client must get of a push as its inbox' number `seq`. */
function message({ id }, seq, data, replay) {
  return { entityType: "like", data, id, seq, rev: seq, replay, read: false };
}

function withoutTime({ createdAt, ...rest }) {
  assert.match(createdAt, ISO_UTC);
  return rest;
}

for (const version of VERSIONS) {
  for (const [how, transports] of Object.entries(TRANSPORTS)) {
    const client = `client ${version} with ${how}`;
    const open = (t, token) => Page.open(t, { version, url: server.url, token, transports });

    test(`${client} gets what waited in order, then what happens, and later only what it did not ack`, async (t) => {
      const token = newToken();
      const pushed = [];
      for (const n of [1, 2, 3]) pushed.push(await server.push(token, { n }));

      const [page, login] = await open(t, token);
      assert.match(login.epoch, /./);
      assert.deepEqual(login, { ok: true, epoch: login.epoch, rev: 3, unread: 3, undelivered: 3 });
      for (const n of [1, 2, 3]) {
        assert.deepEqual(withoutTime(await page.next("receive_message")), message(pushed[n - 1], n, { n }, true));
      }
      assert.deepEqual(await page.next("replay_complete"), { count: 3, rev: 3, unread: 3 });
      if (transports.length === 2) await page.upgraded;
      for (const n of [4, 5, 6]) {
        pushed.push(await server.push(token, { n, text: "¿ünï😀?" }));
        const live = withoutTime(await page.next("receive_message"));
        assert.deepEqual(live, message(pushed[n - 1], n, { n, text: "¿ünï😀?" }, false));
      }

      const [first, second, third, fourth] = pushed.map(({ id }) => id);
      assert.deepEqual(await page.call("ack", { ids: [first] }), { ok: true });
      assert.deepEqual(await page.call("ack", second), { ok: true });
      assert.deepEqual(await page.call("ack", [first, third]), { ok: true });
      assert.deepEqual(await page.call("read", { upTo: 2 }), { ok: true, rev: 7, unread: 4 });
      assert.deepEqual(await page.call("read", { ids: [fourth] }), { ok: true, rev: 8, unread: 3 });
      const refused = await page.call("ack", { ids: ["not an id"] });
      assert.deepEqual([refused.ok, refused.code], [false, "invalid_payload"]);
      await page.expectNothingMore(token);
      page.close();

      const [later, again] = await open(t, token);
      assert.deepEqual(again, { ok: true, epoch: login.epoch, rev: 8, unread: 3, undelivered: 2 });
      assert.deepEqual((await later.messages(2)).map(({ seq, replay }) => [seq, replay]), [[5, true], [6, true]]);
      assert.deepEqual(await later.next("replay_complete"), { count: 2, rev: 8, unread: 3 });
      assert.deepEqual(await later.call("read", { all: true }), { ok: true, rev: 9, unread: 0 });
      await later.expectNothingMore(token);
    });

    test(`${client} in two tabs gets everything in both, and one learns what the other read`, async (t) => {
      const token = newToken();
      const tabs = [];
      for (let tab = 0; tab < 2; tab += 1) {
        const [page, login] = await open(t, token);
        assert.equal(login.ok, true);
        assert.deepEqual(await page.next("replay_complete"), { count: 0, rev: 0, unread: 0 });
        tabs.push(page);
      }
      for (const n of [1, 2, 3]) {
        const pushed = await server.push(token, { n });
        for (const tab of tabs) {
          assert.deepEqual(withoutTime(await tab.next("receive_message")), message(pushed, n, { n }, false));
        }
        if (n < 3) assert.deepEqual(await tabs[0].call("ack", { ids: [pushed.id] }), { ok: true });
      }
      assert.deepEqual(await tabs[1].call("read", { all: true }), { ok: true, rev: 4, unread: 0 });
      const { rev, unread, ...what } = await tabs[0].next("inbox_changed");
      assert.deepEqual([rev, unread], [4, 0]);
      assert.ok(what.readUpTo === 3 || what.changes?.length === 3, JSON.stringify(what));
      for (const tab of tabs) await tab.expectNothingMore(token);
    });

    test(`${client} loses, doubles and disorders nothing when it comes amid pushes at full speed`, async (t) => {
      // Every push goes to three inboxes. Their pages come one by one, so each connects and upgrades amid pushes.
      const visits = [];
      const pushed = [];
      const everyone = [newToken(), newToken(), newToken()];
      let settled = transports.length === 1;
      for (let n = 1; n <= 300 || (!settled && n <= 3000); n += 1) {
        if (n % 100 === 1 && visits.length < everyone.length) {
          const token = everyone[visits.length];
          const page = new Page(version, server.url, { transports });
          t.after(() => page.close());
          const acks = visits.length === 1;
          page.socket.on("receive_message", ({ id }) => acks && page.socket.emit("ack", { ids: [id] }));
          visits.push({ token, page, login: page.login(token) });
        }
        if (n === 300) Promise.all(visits.map(({ page }) => page.upgraded)).then(() => (settled = true));
        pushed.push((await server.push(everyone, { n })).id);
      }
      assert.ok(settled, "every client upgraded while pushes went on");
      for (const { token, page, login } of visits) {
        const { undelivered, rev } = await login;
        assert.equal(undelivered, rev);
        const seen = await page.messages(undelivered);
        assert.equal((await page.next("replay_complete")).count, undelivered);
        seen.push(...(await page.messages(pushed.length - rev)));
        assert.deepEqual(seen.map((message) => [message.rev, message.id]), pushed.map((id, at) => [at + 1, id]));
        await page.expectNothingMore(token);
      }
    });
  }

  test(`client ${version} logs out and in again on one socket and gets what it missed`, async (t) => {
    const token = newToken();
    const [page] = await Page.open(t, { version, url: server.url, token });
    assert.deepEqual(await page.next("replay_complete"), { count: 0, rev: 0, unread: 0 });
    assert.deepEqual(await page.call("user_logout"), { ok: true });
    const pushed = await server.push(token, "while logged out");
    assert.equal((await page.login(token)).undelivered, 1);
    const missed = withoutTime(await page.next("receive_message"));
    assert.deepEqual(missed, message(pushed, 1, "while logged out", true));
    assert.deepEqual(await page.next("replay_complete"), { count: 1, rev: 1, unread: 1 });
  });
}
