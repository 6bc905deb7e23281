// What goes in and out of the client. Names are those of the wire.

/** A notification in the inbox. */
export interface Item {
  readonly id: string;
  /** Where it stands in the inbox: higher is newer. 0 for one that was sent live only and is not in the inbox. */
  readonly seq: number;
  readonly entityType: string;
  /** What the backend posted: any JSON. */
  readonly data: unknown;
  /** RFC 3339, in UTC. */
  readonly createdAt: string;
  readonly read: boolean;
  /** What it stands for if several pushes share it. */
  readonly group?: Group;
}

export interface Group {
  readonly key: string;
  /** Distinct actors; a push without one counts as one more. */
  readonly count: number;
  /** The last three, newest first. */
  readonly actors: readonly string[];
}

/**
 * `connecting`: no connection yet. `catching-up`: logged in, what was missed is coming. `live`: up to date.
 * `offline`: no connection, with a `reason` such as `transport close`, `unauthorized`, `closed` or a network error.
 */
export interface Status {
  readonly name: "connecting" | "catching-up" | "live" | "offline";
  readonly reason?: string;
}

/** What shows that a page may open an inbox: a signature, or a JWT. */
export type Credential = { exp: number; kid: string; sig: string } | { jwt: string };

export interface InboxOptions {
  /** Where the server is, with the path below which a proxy has it if there is one; this page's origin unless given. */
  url?: string;
  /** The server's socket path, `/socket.io` unless given. */
  path?: string;
  /** Whose inbox. */
  token: string;
  /** What the user logs in with, or a function that fetches it: at the first login and before the last one expires. */
  credential?: Credential | (() => Credential | Promise<Credential>);
  /** Whether the tabs of a browser share one socket; true unless given. */
  shareTabs?: boolean;
  /** Items of a page, 20 unless given. */
  pageSize?: number;
  /** Where what is known is kept over reloads; in IndexedDB unless given. */
  storage?: InboxStorage;
}

/** Something was refused, rolled back or not possible. */
export interface InboxError {
  /** A stable code: one of the server's, or `network`, `timeout`, `credential`, `storage`, `too_many_pending`, `outdated`, `closed`. */
  readonly code: string;
  readonly message: string;
}

export interface InboxEvents {
  /** `items`, `unread`, `hasMore`, `loaded` or `status` changed. */
  change: [];
  /** A new notification came live; in every tab. */
  message: [item: Item];
  /** The same, in exactly one tab of the browser. */
  toast: [item: Item];
  /** Something was refused and taken back, could not be loaded, or keeps the client from logging in. */
  error: [error: InboxError];
}

/** What the user marked. */
export type Mark =
  | { readonly kind: "read" | "unread"; readonly ids: readonly string[] }
  | { readonly kind: "read"; readonly upTo: number };

/** The same with a name, by which it is done once, and the data set that the user saw: a `seq` means nothing in another. */
export type Op = Mark & { readonly id: string; readonly epoch?: string };

/** What the server said last, as far as it is kept. */
export interface Known {
  /** The data set that `rev` belongs to. */
  readonly epoch: string;
  /** Every event of the inbox up to here is in it. */
  readonly rev: number;
  readonly unread: number;
  /** The rev that `unread` is true at. */
  readonly unreadRev: number;
  /** Newest first; every row of the inbox from `next` on. */
  readonly items: readonly Item[];
  /** The `seq` below which there are rows that were not loaded; null if all were. */
  readonly next: number | null;
}

/**
 * Keeps what is known of an inbox, and the changes that the server has not confirmed yet, in the order they were made. What
 * changes it resolves when that is kept for good: a change that is not there any more was sent, or given up.
 */
export interface InboxStorage {
  load(key: string): Promise<{ known?: Known; ops: Op[] }>;
  save(key: string, known: Known): Promise<void>;
  addOp(key: string, op: Op): Promise<void>;
  removeOp(key: string, id: string): Promise<void>;
  forget(key: string): Promise<void>;
}
