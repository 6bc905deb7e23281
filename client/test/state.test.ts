// What is known of an inbox, as values.

import { expect, test } from "vitest";

import { changed, changeOf, type Message, shown, withMessages, withUnread } from "../src/state.js";
import type { Item, Known, Op } from "../src/types.js";

const item = (seq: number, read = false): Item => ({
  id: `id${seq}`,
  seq,
  entityType: "like",
  data: { n: seq },
  createdAt: "2026-01-02T03:04:05.678Z",
  read,
});

const message = (seq: number, more: object = {}): Message => ({ ...item(seq), replay: false, ...more });

const known = (more: Partial<Known> = {}): Known => ({
  epoch: "e",
  rev: 3,
  unread: 3,
  unreadRev: 3,
  items: [item(3), item(2), item(1)],
  next: null,
  ...more,
});

const seqs = ({ items }: { items: readonly Item[] }) => items.map(({ seq }) => seq);

test("messages stand by their seq, each once, as they came last", () => {
  const after = withMessages(known(), [message(2, { read: true }), message(5), message(4)], 10);
  expect(seqs(after)).toEqual([5, 4, 3, 2, 1]);
  expect(after.items[3]!.read).toBe(true);
  expect(after.rev).toBe(5);
});

test("what is below the loaded pages stays there", () => {
  const after = withMessages(known({ next: 2, items: [item(3), item(2)] }), [message(1), message(2), message(4)], 10);
  expect(seqs(after)).toEqual([4, 3, 2]);
});

test("what has no room can be loaded again", () => {
  const after = withMessages(known(), [message(4), message(5)], 4);
  expect([seqs(after), after.next]).toEqual([[5, 4, 3, 2], 2]);
});

test("a message counts as unread unless the count is newer, or it is read", () => {
  expect(withMessages(known(), [message(4), message(5)], 10)).toMatchObject({ unread: 5, unreadRev: 5 });
  expect(withMessages(known({ unreadRev: 4 }), [message(4), message(5)], 10)).toMatchObject({ unread: 4, unreadRev: 5 });
  expect(withMessages(known(), [message(4, { read: true })], 10)).toMatchObject({ unread: 3, unreadRev: 4 });
});

test("what is live only leaves everything as it is", () => {
  const { seq: _, ...passing } = message(0);
  expect(withMessages(known(), [passing], 10)).toEqual(known());
});

test("an older count does not replace a newer one", () => {
  expect(withUnread(known(), 2, 9).unread).toBe(3);
  expect(withUnread(known(), 3, 9)).toMatchObject({ unread: 9, unreadRev: 3 });
});

test("a change is made to its rows, and the others stay the same objects", () => {
  const { items } = known();
  const rev = 4;
  expect(changed(items, { rev, changes: [{ id: "elsewhere", readAt: "now" }] })).toBe(items);
  const read = changed(items, { rev, changes: [{ id: "id2", readAt: "now" }] });
  expect(read).toEqual([item(3), item(2, true), item(1)]);
  expect([read[0], read[2]]).toEqual([items[0], items[2]]);
  expect(read[0]).toBe(items[0]);
  expect(changed(read, { rev, changes: [{ id: "id2", readAt: null }] })).toEqual(items);
  expect(changed(items, { rev, readUpTo: 2 })).toEqual([item(3), item(2, true), item(1, true)]);
  expect(changed(items, { rev, changes: [{ id: "id3", retracted: true }] })).toEqual([item(2), item(1)]);
  const group = { key: "k", count: 2, actors: ["Bob"] };
  expect(changed(items, { rev, changes: [{ id: "id3", group }] })[0]).toEqual({ ...item(3), group });
});

test("what is shown is what is known with what the user did since, in order", () => {
  const read: Op = { id: "1", kind: "read", ids: ["id3", "id1"] };
  const unread: Op = { id: "2", kind: "unread", ids: ["id3"] };
  expect(shown(undefined, [read])).toEqual({ items: [], unread: 0, hasMore: false, loaded: false });
  expect(shown(known(), [])).toEqual({ items: known().items, unread: 3, hasMore: false, loaded: true });
  expect(shown(known({ next: 1 }), [read])).toMatchObject({ unread: 1, hasMore: true });
  const both = shown(known(), [read, unread]);
  expect([both.unread, both.items.map((item) => item.read)]).toEqual([2, [false, false, true]]);
  expect(shown(known(), [unread, read]).unread).toBe(1);
});

test("read-all counts what is not loaded too, and what came after it does not", () => {
  const all: Op = { id: "1", kind: "read", upTo: 3 };
  expect(shown(known({ unread: 50 }), [all]).unread).toBe(0);
  expect(shown(withMessages(known({ unread: 50 }), [message(4)], 10), [all]).unread).toBe(1);
});

test("a count of the server's that is ahead of its changes is shown as it is, and never below zero", () => {
  expect(shown(known({ unread: 0 }), []).unread).toBe(0);
  expect(shown(known({ unread: 0 }), [{ id: "1", kind: "read", ids: ["id1"] }]).unread).toBe(0);
});

test("what the user did is, confirmed, a change like any other", () => {
  const { items } = known();
  expect(changed(items, changeOf({ id: "1", kind: "read", ids: ["id1"] }, 4))[2]!.read).toBe(true);
  expect(changed([item(1, true)], changeOf({ id: "1", kind: "unread", ids: ["id1"] }, 4))[0]!.read).toBe(false);
  expect(changed(items, changeOf({ id: "1", kind: "read", upTo: 1 }, 4)).map(({ read }) => read)).toEqual([false, false, true]);
});
