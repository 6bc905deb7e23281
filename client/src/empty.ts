// What is shown while it is not known whose inbox.

import type { Snapshot } from "./client.js";

export const EMPTY: Snapshot = { items: [], unread: 0, hasMore: false, loaded: false, status: { name: "offline", reason: "closed" } };
