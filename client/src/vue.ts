// useInbox(): an inbox in a Vue component.

import { computed, type ComputedRef, type MaybeRefOrGetter, type ShallowRef, shallowReadonly, shallowRef, toRaw, toValue, watch } from "vue";

import { InboxClient, type Snapshot } from "./client.js";
import { EMPTY } from "./empty.js";
import type { InboxOptions } from "./types.js";

/** What a component shows, each as a ref, and the client to change it by. */
export type Inbox = { readonly [Name in keyof Snapshot]: ComputedRef<Snapshot[Name]> } & {
  readonly client: Readonly<ShallowRef<InboxClient | undefined>>;
};

/** As the user may not be known yet. */
type Someone = Omit<InboxOptions, "token"> & { token?: string | undefined };

/**
 * The inbox of a client that the page opens and closes itself; or, with options, one that is open while the component, or
 * the effect scope, is there. They may be a ref or a getter: another `url`, `path`, `token`, `shareTabs` or `pageSize` is
 * another inbox, of `credential` the newest is used. Without a `token`, and on a server, it is empty.
 */
export function useInbox(source: MaybeRefOrGetter<Someone | InboxClient>): Inbox {
  const snapshot = shallowRef(EMPTY);
  const client = shallowRef<InboxClient>();
  // A client that was put into a reactive object is wrapped, which its private fields do not bear.
  const given = () => toRaw(toValue(source));
  const ofPage = () => {
    const client = given();
    return client instanceof InboxClient ? client : undefined;
  };
  const option = <Name extends keyof Someone>(name: Name) => () => {
    const options = given();
    return options instanceof InboxClient ? undefined : options[name];
  };
  const newest = () => {
    const credential = option("credential")();
    return typeof credential === "function" ? credential() : credential!;
  };
  const make = () => {
    const options = given() as Someone;
    if (!options.token || typeof document === "undefined") return undefined;
    const isSigned = options.credential !== undefined;
    const made = new InboxClient({ ...(options as InboxOptions), ...(isSigned && { credential: newest }) });
    made.connect();
    return made;
  };
  const isSigned = () => option("credential")() !== undefined;
  const names = ["url", "path", "token", "shareTabs", "pageSize"] as const;
  watch(
    [ofPage, isSigned, ...names.map(option)],
    (_now, _before, onCleanup) => {
      const isOwn = !ofPage();
      const shown = ofPage() ?? make();
      const off = shown?.on("change", () => (snapshot.value = shown.snapshot));
      client.value = shown;
      snapshot.value = shown?.snapshot ?? EMPTY;
      onCleanup(() => {
        off?.();
        if (isOwn) shown?.close();
      });
    },
    { immediate: true },
  );
  const part = <Name extends keyof Snapshot>(name: Name) => computed(() => snapshot.value[name]);
  return {
    items: part("items"),
    unread: part("unread"),
    hasMore: part("hasMore"),
    loaded: part("loaded"),
    status: part("status"),
    client: shallowReadonly(client),
  };
}
