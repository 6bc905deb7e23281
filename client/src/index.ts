// An inbox of a Tidings server, without a look: see InboxClient.

export { InboxClient, type Snapshot } from "./client.js";
export type {
  Credential,
  Group,
  InboxError,
  InboxEvents,
  InboxOptions,
  InboxStorage,
  Item,
  Known,
  Mark,
  Op,
  Status,
} from "./types.js";
