// useInbox(): an inbox in a React component.

import { useEffect, useMemo, useRef, useSyncExternalStore } from "react";

import { InboxClient, type Snapshot } from "./client.js";
import type { Credential, InboxOptions } from "./types.js";

/** What a component shows, and the client to change it by. */
export interface Inbox extends Snapshot {
  readonly client: InboxClient;
}

/**
 * The inbox of a client that the page opens and closes itself; or, with options, one that is open while the component is
 * mounted. Another `url`, `path`, `token`, `shareTabs` or `pageSize` is another inbox; of `credential` the newest is used.
 */
export function useInbox(source: InboxOptions | InboxClient): Inbox {
  const given = source instanceof InboxClient ? source : undefined;
  const { url, path, token, shareTabs, pageSize, storage, credential } = given ? ({} as InboxOptions) : (source as InboxOptions);

  const newest = useRef(credential);
  useEffect(() => void (newest.current = credential));

  const isSigned = credential !== undefined;
  const client = useMemo(() => {
    const login = () => (typeof newest.current === "function" ? newest.current() : (newest.current as Credential));
    const options = { url, path, token, shareTabs, pageSize, storage, credential: isSigned ? login : undefined };
    return given ?? new InboxClient(defined(options) as InboxOptions);
  }, [given, url, path, token, shareTabs, pageSize, storage, isSigned]);

  useEffect(() => {
    if (given) return;
    client.connect();
    return () => client.close();
  }, [given, client]);

  const { subscribe, read } = useMemo(
    () => ({ subscribe: (changed: () => void) => client.on("change", changed), read: () => client.snapshot }),
    [client],
  );
  const snapshot = useSyncExternalStore(subscribe, read, read);
  return useMemo(() => ({ ...snapshot, client }), [snapshot, client]);
}

const defined = (options: object) => Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
