// The store of a page that used to dispatch NEW_SOCKET_MSG from its own socket. It still does; only who listens changed.

import type { InboxClient, Item } from "tidings-client";
import type { Middleware, UnknownAction } from "redux";

export interface NewSocketMsg extends UnknownAction {
  type: "NEW_SOCKET_MSG";
  payload: Item;
}

/** What the page's reducer did before. */
export function messages(state: readonly Item[] = [], action: UnknownAction): readonly Item[] {
  return action.type === "NEW_SOCKET_MSG" ? [(action as NewSocketMsg).payload, ...state] : state;
}

/** The count for the badge, which the client keeps. */
export function unread(state = 0, action: UnknownAction): number {
  return action.type === "UNREAD" ? (action["payload"] as number) : state;
}

/** Dispatches what comes live and how much is unread; MARK_ALL_READ of the page marks it read. */
export function inboxMiddleware(client: InboxClient): Middleware {
  return ({ dispatch }) => {
    client.on("message", (item) => dispatch({ type: "NEW_SOCKET_MSG", payload: item } satisfies NewSocketMsg));
    client.on("change", () => dispatch({ type: "UNREAD", payload: client.unread }));
    return (next) => (action) => {
      if ((action as UnknownAction).type === "MARK_ALL_READ") void client.markAllRead().catch(() => {}); // see its "error"
      return next(action);
    };
  };
}
