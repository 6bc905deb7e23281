// What is known of an inbox, as values: how messages and changes of the server make the next one of them, and what is shown
// when changes of the user are still under way. Nothing here waits or sends.

import type { Group, Item, Known, Op } from "./types.js";

/** An item of `receive_messages`. One without `seq` was sent live only. */
export interface Message extends Omit<Item, "seq"> {
  readonly seq?: number;
  readonly replay: boolean;
}

/** `inbox_changed`, as far as it is about rows. */
export interface Change {
  readonly rev: number;
  readonly readUpTo?: number;
  readonly changes?: readonly RowChange[];
}

interface RowChange {
  readonly id: string;
  readonly readAt?: string | null;
  readonly retracted?: boolean;
  readonly group?: Group;
}

/** A row of `GET /api/inbox/{token}`. */
export interface ListedItem extends Omit<Item, "read"> {
  readonly readAt: string | null;
}

export interface Page {
  readonly items: readonly ListedItem[];
  readonly next: number | null;
  readonly rev: number;
  readonly unread: number;
  readonly epoch: string;
}

export interface Shown {
  readonly items: readonly Item[];
  readonly unread: number;
  readonly hasMore: boolean;
  readonly loaded: boolean;
}

const itemOf = ({ id, seq, entityType, data, createdAt, read, group }: Item): Item => ({
  id,
  seq,
  entityType,
  data,
  createdAt,
  read,
  ...(group && { group }),
});

export const itemOfMessage = (message: Message): Item => itemOf({ ...message, seq: message.seq ?? 0 });

export const itemOfListed = (item: ListedItem): Item => itemOf({ ...item, read: item.readAt !== null });

/** Rows after a change; rows that it does not touch stay the same objects. */
export function changed(items: readonly Item[], change: Change): readonly Item[] {
  const { readUpTo } = change;
  if (readUpTo !== undefined) return items.map((item) => marked(item, item.read || item.seq <= readUpTo));
  const rows = new Map(change.changes?.map((row) => [row.id, row]));
  if (!items.some(({ id }) => rows.has(id))) return items;
  return items.flatMap((item) => {
    const { readAt, retracted, group } = rows.get(item.id) ?? {};
    if (retracted) return [];
    const next = readAt === undefined ? item : marked(item, readAt !== null);
    return [group ? { ...next, group } : next];
  });
}

const marked = (item: Item, read: boolean): Item => (item.read === read ? item : { ...item, read });

/** The change that a confirmed `op` made. */
export function changeOf(op: Op, rev: number): Change {
  if ("upTo" in op) return { rev, readUpTo: op.upTo };
  const readAt = op.kind === "read" ? "" : null;
  return { rev, changes: op.ids.map((id) => ({ id, readAt })) };
}

/**
 * Takes messages in, each once. Those below `next` are left for the page they are on, and at most `room` rows are kept:
 * what falls out at the end can be loaded again.
 */
export function withMessages(known: Known, messages: readonly Message[], room: number): Known {
  let { rev, unread, unreadRev, items, next } = known;
  const byId = new Map(items.map((item) => [item.id, item]));
  for (const message of messages) {
    const { seq } = message;
    if (seq === undefined) continue;
    if (next === null || seq >= next) byId.set(message.id, itemOfMessage(message));
    if (seq > unreadRev) {
      unreadRev = seq;
      if (!message.read) unread += 1;
    }
    rev = Math.max(rev, seq);
  }
  items = [...byId.values()].sort((a, b) => b.seq - a.seq);
  if (items.length > room) {
    items = items.slice(0, room);
    next = items.at(-1)?.seq ?? next;
  }
  return { ...known, rev, unread, unreadRev, items, next };
}

/** The server's count, unless a newer one is known. */
export function withUnread(known: Known, rev: number, unread: number): Known {
  return rev < known.unreadRev ? known : { ...known, unread, unreadRev: rev };
}

/** What the user sees: what is known, with what the user did since. */
export function shown(known: Known | undefined, ops: readonly Op[]): Shown {
  if (!known) return { items: [], unread: 0, hasMore: false, loaded: false };
  const before = countUnread(known.items);
  const items = ops.reduce((items, op) => changed(items, changeOf(op, 0)), known.items);
  // Everything older than what is loaded is read too.
  const elsewhere = ops.some((op) => "upTo" in op) ? Math.max(0, known.unread - before) : 0;
  const unread = Math.max(0, known.unread - elsewhere + countUnread(items) - before);
  return { items, unread, hasMore: known.next !== null, loaded: true };
}

const countUnread = (items: readonly Item[]): number => items.reduce((sum, { read }) => sum + (read ? 0 : 1), 0);
