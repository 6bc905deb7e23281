// What <tidings-inbox> shows of a notification's data, and where it leads.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { expectAccessible, shot } from "./chromium.mjs";
import { isLive, listed, open, pages, push, row, rows, tag, texts, untilRead } from "./element.mjs";
import { until } from "./server.mjs";

/** The texts of each row: its first line, and what stands below it. */
const shown = (page) =>
  rows(page).evaluateAll((all) =>
    all.map((one) => {
      const [text, message] = ["text", "message"].map((part) => one.querySelector(`[part=${part}]`));
      return message.checkVisibility() ? [text.textContent, message.textContent] : [text.textContent];
    }),
  );

/** Shows an inbox with one row for each `[data, entityType, more]`, in this order. */
async function show(t, token, pushed, options) {
  for (const [data, entityType, more] of pushed.toReversed()) await push(token, { data, entityType, ...more });
  const page = await open(t, tag(token, "inline"), options);
  if (pushed.length > 0) await rows(page).nth(pushed.length - 1).waitFor();
  return page;
}

test("title and body are shown as written, else a sentence, a text, or the type: never JSON", async (t) => {
  const line = "first line\nsecond line";
  const cases = [
    [{ title: "Your order is on its way", body: line }, "order.shipped", ["Your order is on its way", line]],
    [{ title: "T", text: "X" }, "", ["T", "X"]],
    [{ title: "T", message: "M", other: { deep: [1] } }, "", ["T", "M"]],
    [{ body: "Only a body" }, "order.shipped", ["Only a body"]],
    ["You shall not pass!!!", "like", ["You shall not pass!!!"]],
    [{ from: "Bob", body: "Well done" }, "like", ["Bob liked your post", "Well done"]],
    [{ from: "Bob", title: "Bob likes it" }, "like", ["Bob likes it"]],
    [{ actor: { name: "Ada" } }, "follow", ["Ada follows you"]],
    [{ from: "Bob", text: "See you" }, "comment", ["Bob commented: See you"]],
    [{}, "like", ["Like"]],
    [{}, "order.shipped", ["Order shipped"]],
    [{ id: 7 }, "newFollower", ["New follower"]],
    [[1, [2]], "PASSWORD_CHANGED", ["Password changed"]],
    [{ title: 5, body: ["b"], actor: "Ada", url: {}, icon: true }, "a/b-c", ["A b c"]],
    [{ title: " ", actor: { name: {} }, actions: "all" }, "", ["Notification"]],
    [7, "is something else, written out", ["is something else, written out"]],
    [null, "", ["Notification"]],
  ];
  const page = await show(t, "shapes", cases);
  assert.deepEqual(
    await shown(page),
    cases.map(([, , wanted]) => wanted),
  );
  const weights = await row(page, "on its way").evaluate((one) =>
    ["text", "message"].map((part) => getComputedStyle(one.querySelector(`[part=${part}]`)).fontWeight),
  );
  assert.deepEqual(weights, ["600", "400"]);
  const lines = await row(page, "on its way")
    .locator("[part=message]")
    .evaluate((message) => Math.round(message.clientHeight / parseFloat(getComputedStyle(message).lineHeight)));
  assert.equal(lines, 2);
  const plain = await page.evaluate(() => {
    const inbox = document.querySelector("tidings-inbox");
    return inbox.textOf(inbox.client.items[0]);
  });
  assert.equal(plain, `Your order is on its way\n${line}`);
  await expectAccessible(page, "every shape");
  await page.screenshot({ path: shot("shapes"), fullPage: true });
});

test("a group speaks of all who are in it, whatever its first push said", async (t) => {
  const group = (type, data) => ["Ann", "Bob", "Cid"].map((actor) => ({ type, data: { ...data, n: actor }, groupKey: type, actor }));
  for (const { type, ...body } of [
    ...group("like", { title: "Ann liked it", body: "A body of Ann's" }),
    ...group("invoice.paid", { title: "An invoice was paid" }),
    ...group("build.done", {}),
  ])
    await push("grouped shapes", { entityType: type, ...body });
  const page = await open(t, tag("grouped shapes", "inline"), { policy: "img-src 'self'" });
  await rows(page).nth(2).waitFor();
  assert.deepEqual(await shown(page), [
    ["Build done", "Cid and 2 others"],
    ["An invoice was paid", "Cid and 2 others"],
    ["Cid and 2 others liked your post"],
  ]);
  const icons = () => rows(page).locator("[part=icon]").evaluateAll((all) => all.map((icon) => icon.textContent || icon.className));
  assert.deepEqual(await icons(), ["icon bell", "icon bell", "icon like"]);
  for (const name of ["Dan", "Eve"]) await push("grouped shapes", { entityType: "merge", data: { actor: { name: "Dan", avatar: "/image.svg" } }, groupKey: "m", actor: name });
  await row(page, "Eve and Dan").locator("[part=icon]", { hasText: "E" }).waitFor();
});

test("a page's own sentence needs nobody's name", async (t) => {
  const page = await show(t, "named", [[{ version: "2.1" }, "release"]]);
  await page.evaluate(() => {
    document.querySelector("tidings-inbox").strings = { sentences: { release: (who, { data }) => `Version ${data.version} is out` } };
  });
  await row(page, "Version 2.1 is out").waitFor();
});

test("an image is the avatar or icon, and where none loads there are initials", async (t) => {
  const address = () => `http://127.0.0.1:${pages.address().port}`;
  const [image, missing] = [`${address()}/image.svg`, `${address()}/no-such.svg`];
  const page = await show(
    t,
    "images",
    [
      [{ title: "avatar", actor: { name: "Ada King Lovelace", avatar: image } }],
      [{ title: "icon", icon: "/image.svg" }],
      [{ title: "image", image }],
      [{ title: "none", actor: { name: "Ada King Lovelace" } }],
      [{ title: "missing", actor: { name: "小红", avatar: missing } }],
      [{ title: "missing icon", icon: missing }, "follow"],
      [{ title: "script", icon: "javascript:alert(1)", actor: { name: "Bob", avatar: "data:image/svg+xml,<svg/>" } }],
      [{ from: "Eve" }, "like"],
    ],
    { policy: "img-src 'self'", silent: false }, // the browser notes what is missing itself
  );
  const icons = () =>
    rows(page).evaluateAll((all) =>
      all.map((one) => {
        const icon = one.querySelector("[part=icon]");
        const image = icon.querySelector("img");
        if (!image) return [icon.textContent || icon.className, icon.getAttribute("aria-label")];
        return [image.naturalWidth > 0 && new URL(image.src).pathname, icon.getAttribute("aria-label")];
      }),
    );
  const wanted = [
    ["/image.svg", "Ada King Lovelace"],
    ["/image.svg", null],
    ["/image.svg", null],
    ["AL", "Ada King Lovelace"],
    ["小", "小红"],
    ["icon follow", null],
    ["B", "Bob"],
    ["icon like", null],
  ];
  let found;
  const isSo = async () => JSON.stringify((found = await icons())) === JSON.stringify(wanted);
  await until(isSo, "the images are right").catch(() => assert.deepEqual(found, wanted));
  const [policy, alt] = await page.locator("tidings-inbox img").first().evaluate((image) => [image.referrerPolicy, image.alt]);
  assert.deepEqual([policy, alt], ["no-referrer", ""]);
  await expectAccessible(page, "images");
  await page.screenshot({ path: shot("images") });
});

test("a page whose policy allows no images shows initials", async (t) => {
  await push("no images", { data: { title: "T", actor: { name: "Ada", avatar: "/image.svg" } } });
  const page = await open(t, tag("no images", "inline"), { silent: false }); // the browser notes what the policy refuses
  await row(page, "T").locator("[part=icon]", { hasText: /^A$/ }).waitFor();
});

test("a long text is cut after three lines, and can be read in full", async (t) => {
  const long = "a long text ".repeat(60).trim();
  const page = await show(t, "long", [[{ title: "Long", body: long }], [{ title: "Short", body: "text" }], ["endless ".repeat(80)]]);
  const more = row(page, "Long").getByRole("button", { name: "Show more", exact: true });
  await more.waitFor();
  await page.getByRole("button", { name: "Show more", exact: true }).nth(1).waitFor();
  assert.equal(await row(page, "Short").getByRole("button", { name: "Show" }).count(), 0);
  assert.equal(await more.getAttribute("aria-expanded"), "false");
  const isCut = () =>
    row(page, "Long").locator("[part=message]").evaluate((text) => text.scrollHeight > text.clientHeight + 1);
  assert.equal(await isCut(), true);
  await expectAccessible(page, "long texts");
  await more.focus();
  await page.keyboard.press("Enter");
  const less = row(page, "Long").getByRole("button", { name: "Show less", exact: true });
  await less.waitFor();
  assert.deepEqual([await isCut(), await less.getAttribute("aria-expanded")], [false, "true"]);
  // Expanded it stays, with the focus, when the row changes; and expanding reads nothing.
  await row(page, "Long").getByRole("button", { name: "Mark read: Long" }).click();
  await row(page, "Long").getByRole("button", { name: "Mark unread: Long" }).waitFor();
  assert.equal(await isCut(), false);
  await less.press("Space");
  await more.waitFor();
  assert.equal(await isCut(), true);
  const label = await row(page, "endless").getByRole("button", { name: /^Mark read/ }).getAttribute("aria-label");
  assert.ok(label.length < 200, "what is read out of a long text is short");
});

test("the documented push with fields for people looks as the page says", async (t) => {
  const guide = readFileSync(new URL("../../docs/guides/push.md", import.meta.url), "utf8");
  const body = JSON.parse(guide.match(/## What a notification says[^]*?^ {4}(\{[^]*?\})\n\n/m)[1]);
  const page = await show(t, "readme", []);
  await isLive(page);
  await push("readme", { entityType: body.entityType, data: body.data });
  await row(page, body.data.title).waitFor();
  assert.deepEqual(await shown(page), [[body.data.title, body.data.body]]);
  assert.deepEqual(await texts(page), [body.data.title]);
});

/** Where the rows lead, and what may be done beside. */
const links = (page) =>
  rows(page).evaluateAll((all) =>
    all.map((one) => {
      const [open, ...actions] = one.querySelectorAll("[part=item], [part=action]");
      const link = (at) => (at.matches("a") ? [new URL(at.href).pathname, at.rel] : at.localName);
      return [link(open), ...actions.map((action) => [action.textContent, link(action)])];
    }),
  );

test("a row is a link where its URL is one to follow, and so are at most two actions", async (t) => {
  const foreign = "https://example.com/x";
  const own = ["/orders/7", "noopener"];
  const page = await show(t, "links", [
    [{ title: "a path", url: "/orders/7" }],
    [{ title: "another site", url: foreign, actions: [{ label: "Track", url: "/orders/7" }, { label: "Archive", id: 5 }] }],
    [{ title: "three", actions: [{ label: "1" }, { label: "2" }, { label: "3" }] }],
    [{ title: "script", url: "javascript:alert(1)", actions: [{ label: "run", url: " jAvascript:alert(1)" }, { label: "" }, 7, null] }],
    [{ title: "data", url: "data:text/html,x" }],
    [{ title: "user", url: "https://bank.example@example.com/" }],
    [{ title: "no label", url: { href: "/" }, actions: [{ url: "/orders/7" }, { label: "A", url: null }] }],
  ]);
  assert.deepEqual(await links(page), [
    [own],
    [["/x", "noopener noreferrer"], ["Track", own], ["Archive", "button"]],
    ["button", ["1", "button"], ["2", "button"]],
    ["button"],
    ["button"],
    ["button"],
    ["button", ["A", "button"]],
  ]);
  await expectAccessible(page, "links and actions");
  await page.screenshot({ path: shot("actions") });
});

test("following a link marks the row read, in this tab or another, with the keyboard too", async (t) => {
  const actions = [{ label: "Track", url: "/track" }];
  const page = await show(t, "follow", ["Ann", "Bob", "Cid", "Dan"].map((title) => [{ title, url: "/orders/7", actions }]), { silent: false });
  const home = page.url();
  const link = (title) => row(page, title).getByRole("link", { name: title });
  const opened = async (click) => {
    const [tab] = await Promise.all([page.context().waitForEvent("page"), click()]);
    await tab.waitForURL("**/orders/7");
    await tab.close();
    assert.equal(page.url(), home);
  };
  await opened(() => link("Ann").click({ button: "middle" }));
  await untilRead("follow", 0);
  await opened(() => link("Bob").click({ modifiers: ["ControlOrMeta"] }));
  await untilRead("follow", 1);
  // A page lives until the answer to its navigation begins, and that comes here when the mark is stored.
  const answersWhenRead = (path, seq) =>
    page.route(`**${path}`, async (route) => {
      await untilRead("follow", seq);
      await route.continue();
    });
  await answersWhenRead("/orders/7", 2);
  await link("Cid").press("Enter");
  await page.waitForURL("**/orders/7");
  await page.goBack();
  await isLive(page);
  await answersWhenRead("/track", 3);
  await row(page, "Dan").getByRole("link", { name: "Track" }).click();
  await page.waitForURL("**/track");
});

test("a page routes by itself, or does something else altogether", async (t) => {
  const actions = [{ label: "Track", url: "/track" }, { label: "Archive", id: 5 }];
  const page = await show(t, "route", [[{ title: "Ann", url: "/orders/7", actions }], [{ title: "Bob", url: "/orders/8", actions }]]);
  const home = page.url();
  await page.evaluate(() => {
    globalThis.told = [];
    document.addEventListener("tidings-navigate", (event) => {
      event.preventDefault();
      globalThis.told.push([event.detail.item.data.title, new URL(event.detail.url).pathname]);
    });
    document.addEventListener("tidings-action", ({ detail }) => globalThis.told.push([detail.action.label, detail.action.id]));
  });
  const told = () => page.evaluate(() => globalThis.told.splice(0));
  await row(page, "Ann").getByRole("link", { name: "Ann" }).click();
  await untilRead("route", 0);
  assert.deepEqual(await told(), [["Ann", "/orders/7"]]);
  await row(page, "Ann").getByRole("link", { name: "Track" }).click();
  assert.deepEqual(await told(), [["Track", undefined], ["Ann", "/track"]]);
  await row(page, "Bob").getByRole("button", { name: "Archive" }).click();
  await untilRead("route", 1);
  assert.deepEqual(await told(), [["Archive", 5]]);

  await page.getByRole("button", { name: "Mark unread: Bob" }).click();
  await untilRead("route", 1, false);
  await page.evaluate(() => {
    for (const name of ["tidings-item", "tidings-action"]) document.addEventListener(name, (event) => event.preventDefault());
  });
  await row(page, "Bob").getByRole("link", { name: "Bob" }).click();
  await row(page, "Bob").getByRole("link", { name: "Track" }).click();
  await push("route", { data: { title: "Later" } }); // behind a read, had one been sent
  await row(page, "Later").waitFor();
  assert.deepEqual(await told(), [["Track", undefined]]);
  assert.deepEqual([(await listed("route"))[2].readAt, page.url()], [null, home]);
});

test("a panel that led somewhere closes, and a node of the page leads there too", async (t) => {
  await push("closes", { data: { title: "Ann", url: "#there" } });
  const page = await open(t, tag("closes"));
  await page.locator("button.bell", { hasText: "1" }).click();
  await row(page, "Ann").getByRole("link").click();
  await page.waitForURL("**#there");
  await page.getByRole("dialog").waitFor({ state: "detached" });
  await page.evaluate(() => {
    location.hash = "";
    document.querySelector("tidings-inbox").renderItem = ({ data }) => Object.assign(document.createElement("p"), { textContent: `My ${data.title}` });
  });
  await page.locator("button.bell").click();
  await page.getByText("My Ann").click();
  await page.waitForURL("**#there");
});
