// What a real server does only by chance: events and answers in every order that is possible. Here a script plays the server.

import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

import { Server as IoServer, type Socket } from "socket.io";
import { expect, onTestFinished, test } from "vitest";

import { open, type Watched } from "./open.js";
import { eventually } from "./server.js";

type Answer = (answer: object) => void;

const AT = "2026-01-02T03:04:05.678Z";

const row = (seq: number, readAt: string | null = null) => ({ id: `id${seq}`, seq, entityType: "", data: { n: seq }, createdAt: AT, readAt });
const message = (seq: number, replay = false) => ({ id: `id${seq}`, seq, rev: seq, entityType: "", data: { n: seq }, createdAt: AT, replay, read: false });

/** A server with an inbox of three unread rows, which does what a test says. */
class Script {
  epoch = "e1";
  rows = [row(3), row(2), row(1)];
  rev = 3;
  socket!: Socket; // of the newest login
  logins = 0;
  loginTimes: number[] = [];
  resyncs = false; // after every login
  holdsLogins = false; // until the test answers them
  lists: string[] = []; // the paths
  ackAnswers: object[] = []; // other than ok
  listMs = 0; // between the head of an answer and its body
  acks: unknown[] = [];
  asked: { event: string; rows: unknown; answer: Answer }[] = [];
  url = "";

  static async start(prefix = ""): Promise<Script> {
    const script = new Script();
    const http = createServer(({ url = "" }, response) => script.#list(url, response));
    const io = new IoServer(http, { serveClient: false, path: `${prefix}/socket.io` });
    io.on("connection", (socket) => script.#serve(socket));
    await new Promise<void>((resolve) => http.listen(0, "127.0.0.1", resolve));
    onTestFinished(() => void io.close());
    script.url = `http://127.0.0.1:${(http.address() as AddressInfo).port}`;
    return script;
  }

  #list(path: string, response: ServerResponse): void {
    this.lists.push(path);
    const page = { items: this.rows, next: null, rev: this.rev, unread: this.unread, epoch: this.epoch };
    response.flushHeaders();
    setTimeout(() => response.end(JSON.stringify(page)), this.listMs);
  }

  get unread(): number {
    return this.rows.filter(({ readAt }) => readAt === null).length;
  }

  #serve(socket: Socket): void {
    socket.on("user_login", (login: object, answer: Answer) => {
      this.logins += 1;
      this.loginTimes.push(Date.now());
      this.socket = socket;
      if (this.holdsLogins) return void this.asked.push({ event: "user_login", rows: login, answer });
      answer({ ok: true, epoch: this.epoch, rev: this.rev, unread: this.unread, undelivered: 0 });
      socket.emit("replay_complete", { count: 0, rev: this.rev, unread: this.unread });
      if (this.resyncs) socket.emit("resync", { epoch: this.epoch, rev: this.rev, unread: this.unread });
    });
    socket.on("ack", (rows: unknown, answer: Answer) => {
      this.acks.push(rows);
      answer(this.ackAnswers.shift() ?? { ok: true, rev: this.rev, unread: this.unread });
    });
    for (const event of ["read", "unread"]) {
      socket.on(event, (rows: unknown, answer: Answer) => this.asked.push({ event, rows, answer }));
    }
  }

  /** Waits for the next thing that the client asks. */
  async next(): Promise<{ event: string; rows: unknown; answer: Answer }> {
    await eventually(async () => this.asked.length > 0, "the client asks");
    return this.asked.shift()!;
  }
}

/** Waits until everything that the script sent so far has come. */
async function settled(script: Script, ada: Watched, n: number): Promise<void> {
  script.socket.emit("receive_message", { ...message(n), seq: undefined, rev: undefined });
  await eventually(async () => ada.messages.some(({ seq, data }) => seq === 0 && (data as { n: number }).n === n), "a message");
}

const reads = (ada: Watched) => ada.items.map(({ read }) => read);

test("an earlier change that comes after an answer does not undo what was confirmed", async () => {
  const script = await Script.start();
  const ada = await open(script.url, "ada");
  const marked = ada.markRead("id3");
  const { answer } = await script.next();
  answer({ ok: true, rev: 6, unread: 2 });
  await marked;
  script.socket.emit("inbox_changed", { rev: 4, changes: [{ id: "id3", readAt: AT }], unread: 2 });
  script.socket.emit("inbox_changed", { rev: 5, changes: [{ id: "id3", readAt: null }], unread: 3 });
  await settled(script, ada, 100);
  expect([reads(ada), ada.unread]).toEqual([[true, false, false], 2]);
});

test("an answer that comes after a later change does not undo it", async () => {
  const script = await Script.start();
  const ada = await open(script.url, "ada");
  const marked = ada.markRead("id3");
  const { answer } = await script.next();
  script.socket.emit("inbox_changed", { rev: 5, changes: [{ id: "id3", readAt: null }], unread: 3 });
  answer({ ok: true, rev: 4, unread: 2 });
  await marked;
  expect([reads(ada), ada.unread]).toEqual([[false, false, false], 3]);
});

test("a message that comes after the answer that counted it is not counted twice", async () => {
  const script = await Script.start();
  const ada = await open(script.url, "ada");
  const marked = ada.markRead("id3");
  const { answer } = await script.next();
  answer({ ok: true, rev: 5, unread: 3 });
  script.socket.emit("receive_message", message(4));
  await marked;
  await settled(script, ada, 100);
  expect([ada.numbers, ada.unread]).toEqual([[4, 3, 2, 1], 3]);
});

test("a busy server is asked again, in the same order", async () => {
  const script = await Script.start();
  const ada = await open(script.url, "ada");
  const both = [ada.markRead("id3"), ada.markUnread("id3")];
  (await script.next()).answer({ ok: false, code: "unavailable", message: "busy" });
  const again = await script.next();
  expect([again.event, again.rows]).toEqual(["read", { ids: ["id3"] }]);
  again.answer({ ok: true, rev: 4, unread: 2 });
  const last = await script.next();
  expect(last.event).toBe("unread");
  last.answer({ ok: true, rev: 5, unread: 3 });
  await Promise.all(both);
  expect([reads(ada), ada.errors]).toEqual([[false, false, false], []]);
});

test("no sign of life is asked for behind a login that is being renewed", async () => {
  const script = await Script.start();
  const ada = await open(script.url, "ada", { credential: async () => ({ exp: Date.now() / 1000 + 3600, kid: "k", sig: "s" }) });
  script.holdsLogins = true;
  script.socket.emit("login_expiring", { exp: 0 });
  const renewal = await script.next();
  expect(renewal.event).toBe("user_login");
  ada.checkConnection();
  void ada.markRead("id3");
  expect((await script.next()).event).toBe("read"); // which the client sent after a sign, had it asked for one
  expect(script.acks).toEqual([]);
  renewal.answer({ ok: true, epoch: script.epoch, rev: script.rev, unread: script.unread, undelivered: 0 });
  await settled(script, ada, 100);
  ada.checkConnection();
  await eventually(async () => script.acks.length === 1, "the sign of life");
  expect([script.acks, ada.status, ada.errors]).toEqual([[{}], { name: "live" }, []]);
});

test("messages are acked together, and up to what has come", async () => {
  const script = await Script.start();
  const ada = await open(script.url, "ada");
  for (let seq = 4; seq <= 40; seq += 1) script.socket.emit("receive_message", message(seq));
  script.socket.emit("receive_messages", [message(41), message(42)]);
  await eventually(async () => script.acks.length === 2, "the acks");
  await settled(script, ada, 100);
  expect(script.acks).toEqual([{ upTo: 35 }, { upTo: 42 }]); // 32 of them, then the batch and what waited
});

test("a resync in between lists anew on a new connection, and acks nothing of what was", async () => {
  const script = await Script.start();
  const ada = await open(script.url, "ada");
  script.socket.emit("receive_messages", [message(8), message(9)]);
  await ada.until(({ items }) => items.length === 5, "what came");
  await eventually(async () => script.acks.length === 1, "its ack");
  Object.assign(script, { epoch: "e2", rows: [row(2), row(1)], rev: 2 });
  script.socket.emit("resync", { epoch: "e2", rev: 2, unread: 2 });
  script.socket.emit("receive_message", message(9));
  await ada.until(({ items }) => items.length === 2, "the new list");
  await ada.live();
  expect([script.logins, script.lists.length, ada.numbers, ada.unread]).toEqual([2, 2, [2, 1], 2]);
  expect(ada.states).not.toContain("offline");
  script.socket.emit("receive_messages", [message(3), message(4)]);
  await eventually(async () => script.acks.length === 2, "the next ack");
  expect(script.acks).toEqual([{ upTo: 9 }, { upTo: 4 }]);
});

test("a server that sends nothing but resyncs is not asked without end", async () => {
  const script = await Script.start();
  const ada = await open(script.url, "ada");
  script.resyncs = true;
  script.socket.emit("resync", { epoch: "e1", rev: 3, unread: 3 });
  await eventually(async () => script.logins === 3, "the logins");
  script.resyncs = false;
  const [, second = 0, third = 0] = script.loginTimes; // the second is at once
  expect(third - second).toBeGreaterThanOrEqual(900);
  await ada.until(({ status }) => status.name === "live" && script.logins === 4, "the last login");
  expect([ada.numbers, ada.errors]).toEqual([[3, 2, 1], []]);
});

test("an ack that a busy server did not take is sent again", async () => {
  const script = await Script.start();
  await open(script.url, "ada");
  script.ackAnswers = [{ ok: false, code: "unavailable", message: "busy" }];
  script.socket.emit("receive_message", message(4));
  await eventually(async () => script.acks.length === 2, "the ack again");
  expect(script.acks).toEqual([{ upTo: 4 }, { upTo: 4 }]);
});

test("a server below a path of a proxy is reached there", async () => {
  const script = await Script.start("/notify");
  const ada = await open(`${script.url}/notify/`, "ada");
  expect([ada.numbers, script.lists]).toEqual([[3, 2, 1], ["/notify/api/inbox/ada?limit=20"]]);
});

test("a list that comes slowly is waited for as long as it comes", async () => {
  const script = await Script.start();
  script.listMs = 11_000; // more than a server has to answer
  const ada = await open(script.url, "ada");
  expect([ada.numbers, script.lists.length]).toEqual([[3, 2, 1], 1]);
});

test("a server that closes the socket is connected to again", async () => {
  const script = await Script.start();
  const ada = await open(script.url, "ada");
  script.socket.disconnect(true);
  await ada.offline();
  await ada.live();
  expect(script.logins).toBe(2);
});
