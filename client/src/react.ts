// useInbox(): an inbox in a React component.

import { useEffect, useMemo, useRef, useSyncExternalStore } from "react";

import { InboxClient, type Snapshot } from "./client.js";
import { EMPTY } from "./empty.js";
import type { Credential, InboxOptions } from "./types.js";

/** What a component shows, and the client to change it by. */
export interface Inbox extends Snapshot {
  readonly client: InboxClient;
}

/** As the user may not be known yet. */
type Someone = Omit<InboxOptions, "token"> & { token?: string | undefined };

/**
 * The inbox of a client that the page opens and closes itself; or, with options, one that is open while the component is
 * mounted. Another `url`, `path`, `token`, `shareTabs` or `pageSize` is another inbox; of `credential` and `storage` the
 * newest is used, of `storage` when another inbox is opened. Without a `token` there is none, and no client.
 */
export function useInbox(source: InboxOptions | InboxClient): Inbox;
export function useInbox(source: Someone | InboxClient): Snapshot & { readonly client: InboxClient | undefined };
export function useInbox(source: Someone | InboxClient): Snapshot & { readonly client: InboxClient | undefined } {
  const given = source instanceof InboxClient ? source : undefined;
  const options = given ? {} : (source as Someone);
  const { url, path, token, shareTabs, pageSize, credential } = options;

  const newest = useRef(options);
  useEffect(() => void (newest.current = options));

  const isSigned = credential !== undefined;
  const client = useMemo(() => {
    if (given || !token) return given;
    const login = () => {
      const { credential } = newest.current;
      return typeof credential === "function" ? credential() : (credential as Credential);
    };
    const { storage } = options;
    const all = { url, path, token, shareTabs, pageSize, storage, credential: isSigned ? login : undefined };
    return new InboxClient(defined(all) as InboxOptions);
  }, [given, url, path, token, shareTabs, pageSize, isSigned]);

  useEffect(() => {
    if (given || !client) return;
    client.connect();
    return () => client.close();
  }, [given, client]);

  const { subscribe, read } = useMemo(
    () => ({
      subscribe: (changed: () => void) => client?.on("change", changed) ?? (() => {}),
      read: () => client?.snapshot ?? EMPTY,
    }),
    [client],
  );
  const snapshot = useSyncExternalStore(subscribe, read, read);
  return useMemo(() => ({ ...snapshot, client }), [snapshot, client]);
}

const defined = (options: object) => Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
