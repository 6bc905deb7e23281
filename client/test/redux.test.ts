// The Redux example, as it stands in examples/.

import { applyMiddleware, combineReducers, createStore } from "redux";
import { expect, test } from "vitest";

import { inboxMiddleware, messages, unread } from "../examples/redux.js";
import { make, numbers } from "./open.js";
import { eventually, Server } from "./server.js";

test("a store hears what comes as NEW_SOCKET_MSG, and keeps the count", async () => {
  const server = await Server.start();
  await server.push("ada", { n: "waited" });
  const client = make(server.url, "ada");
  const store = createStore(combineReducers({ messages, unread }), applyMiddleware(inboxMiddleware(client)));
  client.connect();
  await client.live();
  await server.push("ada", { n: "live" });
  await eventually(async () => store.getState().unread === 2, "the count");
  expect(numbers(store.getState().messages)).toEqual(["live"]);
  store.dispatch({ type: "MARK_ALL_READ" });
  await eventually(async () => store.getState().unread === 0, "all is read");
  expect((await server.inbox("ada")).unread).toBe(0);
});
