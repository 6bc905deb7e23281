// inboxStore(): an inbox as a Svelte store. It is the contract of a store and no code of Svelte, so it fits every version.

import { InboxClient, type Snapshot } from "./client.js";
import type { InboxOptions } from "./types.js";

export interface InboxStore {
  /** To change the inbox by. */
  readonly client: InboxClient;
  subscribe(run: (snapshot: Snapshot) => void): () => void;
}

/**
 * The inbox of a client that the page opens and closes itself; or, with options, one that is open while somebody is
 * subscribed, in a browser.
 */
export function inboxStore(source: InboxOptions | InboxClient): InboxStore {
  const isOwn = !(source instanceof InboxClient);
  const client = isOwn ? new InboxClient(source) : source;
  let subscribers = 0;
  return {
    client,
    subscribe(run) {
      subscribers += 1;
      if (subscribers === 1 && isOwn && typeof document !== "undefined") client.connect();
      const off = client.on("change", () => run(client.snapshot));
      run(client.snapshot);
      let isOver = false;
      return () => {
        if (isOver) return;
        isOver = true;
        off();
        subscribers -= 1;
        if (subscribers === 0 && isOwn) client.close();
      };
    },
  };
}
