// @vitest-environment happy-dom
// useInbox() in components, against a real server.

import type { DetachedWindowAPI } from "happy-dom";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { renderToString } from "react-dom/server";
import { expect, onTestFinished, test, vi } from "vitest";

import type { Credential } from "../src/index.js";
import { useInbox } from "../src/react.js";
import { Memory, open } from "./open.js";
import { eventually, Line, Server } from "./server.js";

// The page of the tests is of another origin than the server; what a browser makes of that is not what is tested here.
(globalThis as unknown as { happyDOM: DetachedWindowAPI }).happyDOM.settings.fetch.disableSameOriginPolicy = true;

let renders = 0;

type Source = Parameters<typeof useInbox>[0];

function Bell({ source }: { source: Source }) {
  const { items, unread, status, client } = useInbox(source);
  renders += 1;
  return (
    <button onClick={() => void client?.markAllRead()}>
      {status.name} {unread} of {items.length}
    </button>
  );
}

/** Renders as a page does, until the end of the test. */
function mount() {
  const place = document.createElement("main");
  const root = createRoot(place);
  onTestFinished(() => root.unmount());
  return {
    render: (source: Source) => root.render(<StrictMode><Bell source={source} /></StrictMode>),
    unmount: () => root.unmount(),
    click: () => place.querySelector("button")!.click(),
    shows: (text: string) => eventually(async () => place.textContent === text, `"${text}" is shown`),
  };
}

test("a component shows an inbox while it is mounted, and changes it", async () => {
  const server = await Server.start();
  await server.pushMany("ada", 2);
  const page = mount();
  page.render({ url: server.url, token: "ada" });
  await page.shows("live 2 of 2");
  await server.push("ada", { n: 2 });
  await page.shows("live 3 of 3");
  page.click();
  await page.shows("live 0 of 3");
  await eventually(async () => (await server.inbox("ada")).unread === 0, "it is stored");
});

test("mounting twice, as StrictMode does, leaves one socket, and unmounting none", async () => {
  const server = await Server.start();
  const line = await Line.to(server);
  const page = mount();
  page.render({ url: line.url, token: "ada" });
  await page.shows("live 0 of 0");
  expect(line.opened).toBeGreaterThan(1); // the list has a connection of its own
  await eventually(async () => line.open === 1, "one connection is left");
  await server.push("ada", { n: 1 });
  await page.shows("live 1 of 1");
  page.unmount();
  await eventually(async () => line.open === 0, "none is left");
});

test("while nobody is logged in it shows an empty inbox that is offline", async () => {
  const server = await Server.start();
  await server.push("ada", { n: 1 });
  const page = mount();
  page.render({ url: server.url, token: undefined });
  await page.shows("offline 0 of 0");
  page.render({ url: server.url, token: "ada" });
  await page.shows("live 1 of 1");
  page.render({ url: server.url, token: "" });
  await page.shows("offline 0 of 0");
});

test("rendering again is no other inbox; another token is", async () => {
  const server = await Server.start();
  await server.push("bob", { n: 1 });
  const page = mount();
  const credential = vi.fn(async (): Promise<Credential> => ({ exp: 4e9, kid: "k", sig: "s" }));
  page.render({ url: server.url, token: "ada", credential: () => credential(), storage: new Memory() });
  await page.shows("live 0 of 0");
  const [before, fetched] = [renders, credential.mock.calls.length];
  for (let n = 1; n <= 3; n += 1) {
    page.render({ url: server.url, token: "ada", credential: () => credential(), storage: new Memory() });
    await eventually(async () => renders === before + 2 * n, "it is rendered, which is twice in StrictMode");
  }
  await page.shows("live 0 of 0");
  expect(credential.mock.calls.length).toBe(fetched);
  page.render({ url: server.url, token: "bob", credential: () => credential() });
  await page.shows("live 1 of 1");
});

test("a client of the page is shown, and is the page's to close", async () => {
  const server = await Server.start();
  const ada = await open(server.url, "ada");
  const page = mount();
  page.render(ada);
  await page.shows("live 0 of 0");
  await server.push("ada", { n: 1 });
  await page.shows("live 1 of 1");
  page.unmount();
  expect(ada.status.name).toBe("live");
});

test("on a server it renders as not connected", () => {
  expect(renderToString(<Bell source={{ token: "ada" }} />)).toContain("connecting");
});
