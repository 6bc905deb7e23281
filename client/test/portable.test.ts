// What pages, phones and engines differ in: whether a page is seen, and what of the browser is there at all.

import { expect, onTestFinished, test, vi } from "vitest";

import { newId, placeOf } from "../src/portable.js";
import { Memory, open } from "./open.js";
import { Line, Server } from "./server.js";

/** A document that is shown and hidden. */
function page(): { show(): void; hide(): void } {
  const document = Object.assign(new EventTarget(), { visibilityState: "visible" });
  vi.stubGlobal("document", document);
  onTestFinished(() => void vi.unstubAllGlobals());
  const turn = (state: string) => {
    document.visibilityState = state;
    document.dispatchEvent(new Event("visibilitychange"));
  };
  return { show: () => turn("visible"), hide: () => turn("hidden") };
}

test("a line that broke without a word is left when the page is seen again", async () => {
  const { show, hide } = page();
  const server = await Server.start();
  const line = await Line.to(server);
  const ada = await open(line.url, "ada");
  hide();
  line.hush();
  await server.push("ada", { n: 1 });
  const opened = line.opened;
  show();
  await ada.until(({ items }) => items.length === 1, "what came meanwhile is there");
  await ada.live();
  expect(line.opened).toBe(opened + 1);
  expect([ada.errors, ada.messages]).toEqual([[], []]);
});

test("a line that works is kept however often the page is hidden and seen", async () => {
  const { show, hide } = page();
  const server = await Server.start();
  const line = await Line.to(server);
  const ada = await open(line.url, "ada");
  const opened = line.opened;
  for (let n = 0; n < 10; n += 1) {
    hide();
    show();
    ada.checkConnection();
  }
  // The answers come before that of a mark which is sent after them.
  await server.push("ada", { n: 1 });
  await ada.until(({ items }) => items.length === 1, "a message comes");
  await ada.markAllRead();
  expect([line.opened, ada.status, ada.errors]).toEqual([opened, { name: "live" }, []]);
});

test("an app without a document says when it is in the foreground again", async () => {
  const server = await Server.start();
  const line = await Line.to(server);
  const ada = await open(line.url, "ada");
  line.hush();
  await server.push("ada", { n: 1 });
  ada.checkConnection();
  await ada.until(({ items }) => items.length === 1, "what came meanwhile is there");
});

test("everything works without crypto, which React Native has not", async () => {
  vi.stubGlobal("crypto", undefined);
  onTestFinished(() => void vi.unstubAllGlobals());
  const server = await Server.start("--socket-path=/deep/socket.io");
  await server.pushMany("ada", 25);
  const ada = await open(server.url, "ada", { path: "/deep/socket.io", storage: new Memory() });
  await ada.loadMore();
  expect(ada.items.length).toBe(25);
  await ada.markRead([ada.items[0]!.id, ada.items[1]!.id]);
  expect([ada.unread, ada.errors]).toEqual([23, []]);
});

test("ids are unique", () => {
  expect(new Set(Array.from({ length: 10_000 }, newId)).size).toBe(10_000);
});

test("the url of a server is an origin with or without a path", () => {
  for (const [url, origin, path] of [
    ["https://notify.example.com", "https://notify.example.com", ""],
    ["https://Notify.Example.com/", "https://notify.example.com", ""],
    ["HTTP://localhost:4001/a/b//", "http://localhost:4001", "/a/b"],
    ["http://[::1]:4001/A?b=c#d", "http://[::1]:4001", "/A"],
    ["https://bücher.example?x", "https://bücher.example", ""],
  ] as const) {
    expect(placeOf(url)).toEqual({ origin, path });
  }
  for (const url of ["", "notify.example.com", "/notify", "ftp://a", "https://", "https:///a"]) {
    expect(() => placeOf(url)).toThrow(TypeError);
  }
});
