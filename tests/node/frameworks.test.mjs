// The element and the hooks in pages of React 18 and 19, Vue and Svelte, bundled as such pages are.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { dirname } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { isLive, open, push, row, script, server, untilRead } from "./element.mjs";
import { until } from "./server.mjs";

const CLIENT = fileURLToPath(new URL("../../client/", import.meta.url));
const require = createRequire(CLIENT);
const own = (name) => dirname(createRequire(import.meta.url).resolve(`${name}/package.json`));
const { build } = require("esbuild");

/** Bundles a page's code, which finds packages as one of the client's own files does. */
async function bundle(contents, { loader = "js", ...options } = {}) {
  const { outputFiles } = await build({
    stdin: { contents, resolveDir: CLIENT, loader },
    bundle: true,
    format: "iife",
    tsconfigRaw: {}, // that of the client leads to its sources
    jsx: "automatic",
    define: { "process.env.NODE_ENV": '"production"', __VUE_OPTIONS_API__: "true", __VUE_PROD_DEVTOOLS__: "false", __VUE_PROD_HYDRATION_MISMATCH_DETAILS__: "false" },
    write: false,
    logLevel: "error",
    ...options,
  });
  return outputFiles[0].text;
}

/** Opens a page that runs this, with the server's address in `globalThis.server` and room in #room. */
const run = async (t, code) => {
  const init = `globalThis.server = ${JSON.stringify(server.url)}`;
  return await open(t, '<div id="room"></div>', { init, script: script(code) });
};

const REACT = `
  import { createRoot } from "react-dom/client";
  import { StrictMode, useRef, useState } from "react";
  import { InboxClient } from "tidings-client";
  import { useInbox } from "tidings-client/react";
  import { TidingsInbox } from "tidings-client/react/inbox";

  const client = new InboxClient({ url: server, token: "TOKEN" });
  client.connect();
  globalThis.told = [];
  function Page() {
    const [n, setN] = useState(0);
    const inbox = useRef(null);
    globalThis.inbox = inbox;
    const { unread } = useInbox(client);
    return (
      <>
        <button id="next" onClick={() => setN(n + 1)}>{unread} unread, {n}</button>
        <TidingsInbox ref={inbox} className="mine" theme="warm" client={n < 3 ? client : undefined} inline={n !== 1} silent={false}
          strings={n === 2 ? { title: "Mine" } : undefined} renderItem={n === 2 ? (item) => "Item " + item.data.from : undefined}
          onItem={({ detail }) => globalThis.told.push([n, detail.data.from])}
          onNavigate={(event) => { event.preventDefault(); globalThis.told.push(new URL(event.detail.url).pathname); }} />
      </>
    );
  }
  createRoot(document.getElementById("room")).render(<StrictMode><Page /></StrictMode>);
`;

for (const [version, alias] of [
  ["19", {}],
  ["18", { react: own("react"), "react-dom": own("react-dom") }],
]) {
  test(`the element and the hook in a page of React ${version}`, async (t) => {
    const token = `react ${version}`;
    assert.ok(require(`${alias.react ?? "react"}/package.json`).version.startsWith(`${version}.`));
    await push(token, { entityType: "like", data: { from: "Bob", url: "/orders/7" } });
    const page = await run(t, await bundle(REACT.replace("TOKEN", token), { loader: "jsx", alias }));
    await row(page, "Bob liked your post").waitFor();
    await isLive(page);
    const state = () =>
      page.evaluate(() => {
        const { client, inline, silent, strings } = globalThis.inbox.current;
        const { className, localName } = globalThis.inbox.current;
        return [localName, className, globalThis.inbox.current.getAttribute("theme"), Boolean(client), inline, silent, strings?.title];
      });
    assert.deepEqual(await state(), ["tidings-inbox", "mine", "warm", true, true, false, undefined]);
    const next = page.locator("#next");
    await next.getByText("1 unread, 0").click();
    await next.getByText("1 unread, 1").waitFor();
    assert.equal((await state())[4], false, "a property that is false is off");
    await next.click();
    await row(page, "Item Bob").waitFor();
    await page.getByText("Mine", { exact: true }).waitFor();
    await page.getByRole("link", { name: "Item Bob" }).click();
    await untilRead(token, 0);
    await next.getByText("0 unread, 2").waitFor();
    assert.deepEqual(await page.evaluate(() => globalThis.told), [[2, "Bob"], "/orders/7"], "the newest handler is called");
    await next.click();
    await page.getByText("Nothing here yet").or(page.getByText("This could not be loaded")).waitFor();
    assert.deepEqual((await state()).slice(3), [false, true, false, undefined], "what is not given any more is taken back");
  });
}

test("a component of React logs in once, however often it is rendered", async (t) => {
  const page = await run(
    t,
    await bundle(
      `
      import { createRoot } from "react-dom/client";
      import { useState } from "react";
      import { TidingsInbox } from "tidings-client/react/inbox";
      globalThis.clients = new Set();
      function Page() {
        const [n, setN] = useState(0);
        return (
          <>
            <button id="next" onClick={() => setN(n + 1)}>{n}</button>
            <TidingsInbox url={server} token="rendered" credential={() => ({ jwt: "of " + n })} inline ref={(inbox) => (globalThis.inbox = inbox)} />
          </>
        );
      }
      createRoot(document.getElementById("room")).render(<Page />);`,
      { loader: "jsx" },
    ),
  );
  await isLive(page);
  await page.evaluate(() => (globalThis.before = globalThis.inbox.client));
  for (const n of ["0", "1"]) await page.locator("#next", { hasText: n }).click();
  await page.locator("#next", { hasText: "2" }).waitFor();
  const same = () => page.evaluate(async () => (await Promise.resolve(), [globalThis.before === globalThis.inbox.client, globalThis.inbox.credential().jwt]));
  assert.deepEqual(await same(), [true, "of 2"]);
});

test("useInbox in a page of Vue", async (t) => {
  for (const token of ["vue one", "vue two"]) await push(token, { entityType: "like", data: { from: token } });
  const page = await run(
    t,
    await bundle(`
      import { createApp, h, ref } from "vue";
      import { useInbox } from "tidings-client/vue";
      const token = ref(undefined);
      globalThis.token = token;
      const app = createApp({
        setup() {
          const { items, unread, status, client } = useInbox(() => ({ url: server, token: token.value }));
          globalThis.client = client;
          return () => h("button", { onClick: () => client.value.markAllRead() }, [status.value.name, unread.value, ...items.value.map(({ data }) => data.from)].join(" "));
        },
      });
      app.mount("#room");
      globalThis.app = app;
    `),
  );
  const button = page.locator("#room button");
  await button.getByText("offline 0").waitFor();
  await page.evaluate(() => (globalThis.token.value = "vue one"));
  await button.getByText("live 1 vue one").click();
  await button.getByText("live 0 vue one").waitFor();
  await untilRead("vue one", 0);
  await page.evaluate(() => {
    globalThis.before = globalThis.client.value;
    globalThis.token.value = "vue two";
  });
  await button.getByText("live 1 vue two").waitFor();
  assert.equal(await page.evaluate(() => globalThis.before.status.name), "offline", "the one before is closed");
  const after = await page.evaluate(() => {
    const client = globalThis.client.value;
    globalThis.app.unmount();
    return client.status;
  });
  assert.deepEqual(after, { name: "offline", reason: "closed" });
});

test("useInbox of Vue takes a client of the page, also from a reactive object, and leaves it open", async (t) => {
  await push("vue given", { entityType: "like", data: { from: "Bob" } });
  const page = await run(
    t,
    await bundle(`
      import { createApp, h, reactive } from "vue";
      import { InboxClient } from "tidings-client";
      import { useInbox } from "tidings-client/vue";
      const client = new InboxClient({ url: server, token: "vue given" });
      globalThis.client = client;
      client.connect();
      const state = reactive({ client });
      globalThis.app = createApp({
        setup() {
          const { unread, status } = useInbox(() => state.client);
          return () => h("p", status.value.name + " " + unread.value);
        },
      });
      globalThis.app.mount("#room");
    `),
  );
  await page.locator("#room").getByText("live 1").waitFor();
  assert.equal(await page.evaluate(() => (globalThis.app.unmount(), globalThis.client.status.name)), "live");
});

test("an inbox as a store in a page of Svelte", async (t) => {
  await push("svelte", { entityType: "like", data: { from: "Bob" } });
  const { compile } = require("svelte/compiler");
  const component = `
    <script>
      import { inboxStore } from "tidings-client/svelte";
      const inbox = inboxStore({ url: globalThis.server, token: "svelte" });
      globalThis.client = inbox.client;
    </script>
    <button onclick={() => inbox.client.markAllRead()}>{$inbox.status.name} {$inbox.unread} {$inbox.items.map(({ data }) => data.from).join()}</button>
  `;
  const { js } = compile(component, { generate: "client", name: "Bell", filename: "Bell.svelte" });
  const code = `${js.code.replace("export default function Bell", "function Bell")}
    import { mount, unmount } from "svelte";
    const app = mount(Bell, { target: document.getElementById("room") });
    globalThis.leave = () => unmount(app);`;
  const page = await run(t, await bundle(code, { conditions: ["svelte", "browser"] }));
  const button = page.locator("#room button");
  await button.getByText("live 1 Bob").click();
  await button.getByText("live 0 Bob").waitFor();
  await untilRead("svelte", 0);
  await page.evaluate(() => globalThis.leave());
  await until(() => page.evaluate(() => globalThis.client.status.reason === "closed"), "it is closed");
});
