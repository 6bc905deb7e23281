// <tidings-inbox> in a page of another origin, which allows no inline scripts or styles, against the real server.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { promisify } from "node:util";

import { expectAccessible, shot } from "./chromium.mjs";
import { bell, expectFocus, isLive, listed, open, push, row, rows, server, tag, texts, untilRead } from "./element.mjs";
import { BINARY, Server, until } from "./server.mjs";

test("the bell counts what is unread, and opens and closes a panel that takes the focus and gives it back", async (t) => {
  await server.push("bell", { from: "Bob" }, "like");
  const page = await open(t, tag("bell"));
  await bell(page, "Notifications, 1 unread").waitFor();
  const panel = page.getByRole("dialog", { name: "Notifications, 1 unread" });
  assert.equal(await bell(page, "Notifications, 1 unread").getAttribute("aria-expanded"), "false");
  assert.equal(await panel.count(), 0);

  await page.evaluate(() => {
    globalThis.opened = 0;
    document.addEventListener("tidings-open", () => (globalThis.opened += 1));
  });
  await page.locator("button.bell").click();
  await panel.waitFor();
  assert.equal(await page.locator("button.bell").getAttribute("aria-expanded"), "true");
  await expectFocus(page, "Unread: Bob liked your post");
  assert.equal(await page.evaluate(() => globalThis.opened), 1);

  await page.keyboard.press("Escape");
  await panel.waitFor({ state: "detached" });
  await expectFocus(page, "Notifications, 1 unread");
  assert.equal(await page.locator("button.bell").getAttribute("aria-expanded"), "false");

  await page.locator("button.bell").click();
  await panel.waitFor();
  await page.locator("#outside").click();
  await panel.waitFor({ state: "detached" });
  await expectFocus(page, "Notifications, 1 unread");

  await page.locator("button.bell").click();
  await panel.waitFor();
  await page.locator("button.bell").click();
  await panel.waitFor({ state: "detached" });

  await server.push("bell", { from: "Eve" }, "follow");
  await bell(page, "Notifications, 2 unread").waitFor();
  assert.equal(await page.locator("button.bell .badge").textContent(), "2");
});

test("an element that is moved shows the inbox of the token that it got on the way", async (t) => {
  const page = await open(t, tag("before the move"));
  await isLive(page);
  const token = await page.evaluate(() => {
    const element = document.querySelector("tidings-inbox");
    const { parentNode } = element;
    element.remove();
    element.setAttribute("token", "after the move");
    parentNode.append(element);
    return new Promise((resolve) => setTimeout(() => resolve(element.client.options.token)));
  });
  assert.equal(token, "after the move");
});

test("an open element that leaves the page lets go of it, and is closed when it comes back", async (t) => {
  const page = await open(t, tag("leaves"), {
    init: () => {
      globalThis.listening = [];
      for (const target of [window, document]) {
        const { addEventListener: add, removeEventListener: remove } = target;
        target.addEventListener = (name, ...rest) => {
          if (name === "resize" || name === "scroll") globalThis.listening.push(name);
          add.call(target, name, ...rest);
        };
        target.removeEventListener = (name, ...rest) => {
          const at = globalThis.listening.indexOf(name);
          if (at >= 0) globalThis.listening.splice(at, 1);
          remove.call(target, name, ...rest);
        };
      }
    },
  });
  await isLive(page);
  await page.evaluate(() => document.querySelector("tidings-inbox").show());
  await page.getByRole("dialog").waitFor();
  const listening = () => page.evaluate(() => globalThis.listening.toSorted());
  await until(async () => (await listening()).join() === "resize,scroll", "the panel follows its bell");
  await page.evaluate(() => {
    globalThis.inbox = document.querySelector("tidings-inbox");
    globalThis.inbox.remove();
  });
  assert.deepEqual(await listening(), []);
  await page.evaluate(() => document.querySelector("main").append(globalThis.inbox));
  assert.equal(await page.locator("button.bell").getAttribute("aria-expanded"), "false");
  assert.equal(await page.getByRole("dialog").count(), 0);
});

test("a page opens and closes the panel itself", async (t) => {
  const page = await open(t, tag("itself"));
  const isOpen = () => page.evaluate(() => document.querySelector("tidings-inbox").open);
  assert.equal(await isOpen(), false);
  for (const call of ["hide", "show", "show", "hide"]) {
    await page.evaluate((call) => document.querySelector("tidings-inbox")[call](), call);
    assert.equal(await isOpen(), call === "show");
  }
  await page.evaluate(() => document.querySelector("tidings-inbox").setAttribute("inline", ""));
  assert.equal(await isOpen(), true);
});

test("a boolean attribute that says false is off, and so is its property, however a framework sets it", async (t) => {
  const page = await open(t, tag("off", 'inline="false" notify="false" silent="False"') + "<div id='room'></div>");
  await bell(page, "Notifications").waitFor();
  const state = () =>
    page.evaluate(() => {
      const element = document.querySelector("tidings-inbox");
      const isSeen = (part) => element.shadowRoot.querySelector(part).checkVisibility();
      const { inline, notify, silent, open } = element;
      return { inline, notify, silent, open, bell: isSeen("button.bell"), panel: isSeen("#panel") };
    });
  const off = { inline: false, notify: false, silent: false, open: false, bell: true, panel: false };
  const inline = { ...off, inline: true, open: true, bell: false, panel: true };
  assert.deepEqual(await state(), off);
  const set = (how, value) =>
    page.evaluate(
      ([how, value]) => {
        const element = document.querySelector("tidings-inbox");
        if (how === "property") element.inline = value;
        else if (value === null) element.removeAttribute("inline");
        else element.setAttribute("inline", value);
      },
      [how, value],
    );
  for (const value of ["", "inline", "true", "TRUE"]) {
    await set("attribute", value);
    assert.deepEqual(await state(), inline, `inline="${value}"`);
    await set("attribute", "false");
    assert.deepEqual(await state(), off, `inline="false" after "${value}"`);
  }
  for (const value of [true, "", "true"]) {
    await set("attribute", "false");
    await set("property", value);
    assert.deepEqual(await state(), inline, `.inline = ${JSON.stringify(value)}`);
    for (const none of [false, "false", null, undefined]) {
      await set("property", true);
      await set("property", none);
      assert.deepEqual(await state(), off, `.inline = ${String(none)}`);
    }
  }
  // Set before the element is there, as a framework does that renders while the script is loading.
  const early = await page.evaluate(async () => {
    const element = document.createElement("tidings-inbox");
    Object.defineProperty(element, "inline", { value: true, writable: true, configurable: true, enumerable: true });
    document.getElementById("room").append(element);
    return [element.hasAttribute("inline"), Object.hasOwn(element, "inline"), element.inline];
  });
  assert.deepEqual(early, [true, false, true]);
});

test("more than 99 unread ones are 99+, and older ones are loaded a page at a time", async (t) => {
  for (let n = 1; n <= 105; n += 1) await server.push("many", { from: `User ${n}` }, "like");
  await open(t, tag("many", "inline"));
  await server.untilDelivered("many"); // so that another browser is given a page of them, and no more
  const page = await open(t, tag("many"));
  await bell(page, "Notifications, 105 unread").click();
  assert.equal(await page.locator("button.bell .badge").textContent(), "99+");
  const more = page.getByRole("button", { name: "Load more" });
  for (let shown = 20; shown < 105; shown += 20) {
    const names = Array.from({ length: shown }, (_, at) => `User ${105 - at} liked your post`);
    await rows(page)
      .nth(shown - 1)
      .waitFor();
    assert.deepEqual(await texts(page), names);
    await more.focus();
    await page.keyboard.press("Enter");
    await rows(page).nth(shown).waitFor();
  }
  await more.waitFor({ state: "hidden" });
  await expectFocus(page, "Unread: User 5 ");
  assert.equal(await rows(page).count(), 105);
});

test("everything can be done with the keyboard alone", async (t) => {
  for (const from of ["Ann", "Bob", "Cid"]) await server.push("keys", { from }, "like");
  const page = await open(t, tag("keys"));
  await isLive(page);
  await page.keyboard.press("Tab");
  await expectFocus(page, "Notifications, 3 unread");
  await page.keyboard.press("Enter");
  await expectFocus(page, "Unread: Cid");
  await page.keyboard.press("ArrowDown");
  await expectFocus(page, "Unread: Bob");
  await page.keyboard.press("End");
  await expectFocus(page, "Unread: Ann");
  await page.keyboard.press("ArrowDown");
  await expectFocus(page, "Unread: Ann");
  await page.keyboard.press("Home");
  await expectFocus(page, "Unread: Cid");
  await page.keyboard.press("ArrowUp");
  await expectFocus(page, "Unread: Cid");

  await page.keyboard.press("Enter");
  await bell(page, "Notifications, 2 unread").waitFor();
  await expectFocus(page, "Cid liked");
  await untilRead("keys", 0);

  await page.keyboard.press("Tab");
  await expectFocus(page, "Mark unread: Cid liked your post");
  await page.keyboard.press("ArrowDown");
  await expectFocus(page, "Mark read: Bob liked your post");
  await page.keyboard.press("Space");
  await bell(page, "Notifications, 1 unread").waitFor();
  await page.keyboard.press("ArrowUp");
  await page.keyboard.press("Space");
  await expectFocus(page, "Mark read: Cid liked your post");
  await untilRead("keys", 0, false);

  await page.keyboard.press("Shift+Tab");
  await page.keyboard.press("Shift+Tab");
  await expectFocus(page, "Mark all read");
  await page.keyboard.press("Enter");
  await bell(page, "Notifications").waitFor();
  for (const at of [0, 1, 2]) await untilRead("keys", at);
  await page.keyboard.press("Escape");
  await expectFocus(page, "Notifications");
});

test("a row is marked read by a click, unread by its dot, and a page can do something else instead", async (t) => {
  await server.push("click", { from: "Bob" }, "like");
  const page = await open(t, tag("click", "inline"));
  await row(page, "Bob").click();
  await untilRead("click", 0);
  await page.getByRole("button", { name: "Mark unread: Bob liked your post" }).click();
  await untilRead("click", 0, false);

  await page.evaluate(() => {
    document.addEventListener("tidings-item", (event) => {
      event.preventDefault();
      document.querySelector("#outside").textContent = `${event.detail.entityType} ${event.detail.data.from}`;
    });
  });
  await row(page, "Bob").click();
  await page.getByText("like Bob", { exact: true }).waitFor();
  await server.push("click", { from: "Eve" }, "like"); // behind a read, had one been sent
  await row(page, "Eve").waitFor();
  assert.equal((await listed("click"))[1].readAt, null);
});

test("a group grows in place, what is retracted goes, and the focus stays where people read", async (t) => {
  const grouped = (actor) => push("group", { entityType: "like", data: { from: actor }, groupKey: "post-7", actor });
  await server.push("group", { from: "Old" }, "follow");
  const retracted = await server.push("group", { from: "Gone" }, "follow");
  await grouped("Ann");
  const page = await open(t, tag("group", "inline"));
  await row(page, "Ann liked your post").waitFor();
  await row(page, "Gone follows you").getByRole("button").first().focus();

  await grouped("Bob");
  await row(page, "Bob and Ann liked your post").waitFor();
  for (const actor of ["Cid", "Dan", "Eve"]) await grouped(actor);
  await row(page, "Eve and 4 others liked your post").waitFor();
  await expectFocus(page, "Unread: Gone");

  const answer = await server.fetch(`/api/notifications/${retracted.id}`, { method: "DELETE" });
  assert.equal(answer.status, 200);
  await row(page, "Gone").waitFor({ state: "detached" });
  await expectFocus(page, "Unread: Old");
  assert.deepEqual(await texts(page), ["Eve and 4 others liked your post", "Old follows you"]);
  assert.equal(await page.locator("tidings-inbox [part=count]").textContent(), "2");
});

test("what comes live is read out, several as one; what waited is not", async (t) => {
  await server.push("aloud", { from: "Waited" }, "like");
  const page = await open(t, tag("aloud"));
  await isLive(page);
  const aloud = page.locator("tidings-inbox [role=status]");
  assert.equal(await aloud.textContent(), "");
  await page.evaluate(() => {
    globalThis.toasts = [];
    document.addEventListener("tidings-toast", ({ target, detail }) => globalThis.toasts.push(target.textOf(detail)));
  });
  await server.push("aloud", { from: "Bob" }, "like");
  await aloud.getByText("Bob liked your post").waitFor({ state: "attached" });
  await Promise.all(["Cid", "Dan"].map((from) => server.push("aloud", { from }, "follow")));
  await aloud.getByText("2 new notifications").waitFor({ state: "attached" });
  const toasts = await page.evaluate(() => globalThis.toasts);
  assert.deepEqual(
    [toasts[0], toasts.slice(1).sort()],
    ["Bob liked your post", ["Cid follows you", "Dan follows you"]],
  );
});

test("a silent element reads nothing out, and toasts all the same", async (t) => {
  const page = await open(t, tag("hush", "silent inline"));
  await isLive(page);
  await page.evaluate(() => {
    globalThis.toasts = globalThis.said = 0;
    document.addEventListener("tidings-toast", () => (globalThis.toasts += 1));
    const aloud = document.querySelector("tidings-inbox").shadowRoot.querySelector("[role=status]");
    new MutationObserver(() => (globalThis.said += 1)).observe(aloud, { childList: true });
  });
  await page.clock.install();
  await server.push("hush", { from: "Bob" }, "like");
  await row(page, "Bob").waitFor();
  await page.clock.runFor("00:05");
  assert.deepEqual(await page.evaluate(() => [globalThis.toasts, globalThis.said]), [1, 0]);
});

test("a lost server is told, and what was sent meanwhile comes by itself", async (t) => {
  // A server that stops asks its clients to stay away for as long as it may take.
  const own = await Server.start("--drain-timeout-secs=1");
  t.after(() => own.stop());
  await own.push("away", { from: "Bob" }, "like");
  const page = await open(t, tag("away", "inline", "", own), { from: own });
  await isLive(page);
  await own.end();
  await isLive(page, "Offline. What comes meanwhile waits for you.");
  await page.locator("tidings-inbox [role=status]", { hasText: "Offline" }).waitFor({ state: "attached" });
  assert.deepEqual(await texts(page), ["Bob liked your post"]);
  // A refused connection is noted by the browser itself.
  page.removeAllListeners("console");
  await own.startAgain();
  await own.push("away", { from: "Eve" }, "follow");
  await row(page, "Eve follows you").waitFor();
  await isLive(page);
});

test("logins are signed by what the page hands in, and a refused one is told", async (t) => {
  const secret = "a secret of at least thirty-two characters";
  const own = await Server.start(`--login-keys=k1=${secret}`);
  t.after(() => own.stop());
  const sign = [`--login-keys=k1=${secret}`, "sign", "--token=signed", "--ttl=1h"];
  const credential = JSON.parse((await promisify(execFile)(BINARY, sign)).stdout);

  const page = await open(t, `<tidings-inbox url="${own.url}" inline></tidings-inbox>`, { from: own });
  page.removeAllListeners("console"); // the browser notes refused requests itself
  await page.evaluate((credential) => {
    const inbox = document.querySelector("tidings-inbox");
    inbox.credential = { ...credential, sig: "00".repeat(32) };
    inbox.setAttribute("token", "signed");
  }, credential);
  await isLive(page, "Signed out. Sign in again to see what is new.");
  await page.evaluate((credential) => {
    document.querySelector("tidings-inbox").credential = async () => credential;
  }, credential);
  await isLive(page);
});

/** A client as the element needs it, whose changes are all refused; of some of them it tells that by `error` too. */
function refusing() {
  const handlers = {};
  const refused = Object.assign(new Error("<b>no disk</b>"), { code: "unavailable" });
  const refuse = async () => Promise.reject(refused);
  const tellAndRefuse = () => {
    handlers.error?.forEach((handler) => handler(refused));
    return refuse();
  };
  const item = {
    id: "1",
    seq: 1,
    entityType: "like",
    data: { from: "Bob" },
    createdAt: new Date().toISOString(),
    read: false,
  };
  document.querySelector("tidings-inbox").client = {
    items: [item],
    unread: 1,
    hasMore: true,
    loaded: true,
    status: { name: "live" },
    on(name, handler) {
      (handlers[name] ??= new Set()).add(handler);
      return () => handlers[name].delete(handler);
    },
    markRead: refuse,
    markUnread: refuse,
    markAllRead: tellAndRefuse,
    loadMore: tellAndRefuse,
  };
}

test("what was refused is told until it is dismissed or tried again", async (t) => {
  const page = await open(t, "<tidings-inbox inline></tidings-inbox>");
  await page.evaluate(refusing);
  const alert = page.getByRole("alert");
  for (const name of ["Mark all read", "Load more", "Mark read: Bob liked your post"]) {
    await page.getByRole("button", { name, exact: true }).click();
    await alert.getByText("That did not work: <b>no disk</b>").waitFor();
    await page.getByRole("button", { name: "Dismiss" }).click();
    await alert.waitFor({ state: "hidden" });
  }
  // What the server says is English, so other languages go by its code.
  await page.evaluate(() => document.querySelector("tidings-inbox").setAttribute("lang", "zh"));
  await page.getByRole("button", { name: "全部标为已读" }).click();
  await alert.getByText("操作失败：服务器暂时不可用", { exact: true }).waitFor();
});

test("an empty list and one that could not be loaded are told apart, also by axe", async (t) => {
  const own = await Server.start("--drain-timeout-secs=1");
  t.after(() => own.stop());
  await own.end();
  const [english, chinese] = [tag("unloaded", "inline", "", own), tag("unloaded", 'inline lang="zh"', "", own)];
  const page = await open(t, `${english}<h2>In Chinese</h2>${chinese}`);
  page.removeAllListeners("console"); // a refused connection is noted by the browser itself
  const empty = page.locator("tidings-inbox .empty");
  await empty.first().getByText("This could not be loaded").waitFor();
  await empty.last().getByText("暂时无法加载").waitFor();
  await page.screenshot({ path: shot("not-loaded") });
  await expectAccessible(page, "not loaded");
  await own.startAgain();
  await empty.first().getByText("Nothing here yet").waitFor();
  await empty.last().getByText("暂无通知").waitFor();
});

test("texts are in the language of the page, in Chinese too, or the page's own", async (t) => {
  await push("words", { entityType: "like", data: { from: "小红" }, groupKey: "a", actor: "小红" });
  await push("words", { entityType: "like", data: {}, groupKey: "a", actor: "小明" });
  await push("words", { entityType: "like", data: {}, groupKey: "a", actor: "小刚" });
  const page = await open(t, `<div lang="zh-CN">${tag("words")}</div>`);
  await bell(page, "通知，1 条未读").click();
  await row(page, "小刚等 3 人赞了你的帖子").waitFor();
  await isLive(page, "已是最新");
  assert.match(await page.locator("tidings-inbox time").textContent(), /现在|刚刚|前/);
  await page.getByRole("button", { name: "全部标为已读" }).waitFor();
  await page.getByRole("button", { name: "标为已读：小刚等 3 人赞了你的帖子" }).waitFor();

  await page.evaluate(() => document.querySelector("tidings-inbox").setAttribute("lang", "en-GB"));
  await row(page, "小刚 and 2 others liked your post").waitFor();
  await page.evaluate(() => {
    const inbox = document.querySelector("tidings-inbox");
    inbox.setAttribute("lang", "de");
    inbox.strings = {
      title: "Neues",
      bell: (unread) => `Neues: ${unread}`,
      who: (names, count) => (count > 1 ? `${names[0]} und ${count - 1} andere` : names[0]),
      sentences: { like: (who) => `${who} mögen das` },
    };
  });
  await row(page, "小刚 und 2 andere mögen das").waitFor();
  await bell(page, "Neues: 1").waitFor({ state: "attached" });
  assert.match(await page.locator("tidings-inbox time").textContent(), /jetzt|vor/);
  // Whatever stands in lang must not break the page.
  await page.evaluate(() => document.querySelector("tidings-inbox").setAttribute("lang", "x_!"));
  assert.match(await page.locator("tidings-inbox time").textContent(), /now|ago/);
});

test("times are told anew while the page is open", async (t) => {
  await server.push("clock", { from: "Bob" }, "like");
  const page = await open(t, tag("clock", "inline"));
  await row(page, "Bob").getByText("now", { exact: true }).waitFor();
  await page.clock.install();
  // The element's clock starts with the page's, so it is put in again.
  await page.evaluate(() => {
    const inbox = document.querySelector("tidings-inbox");
    inbox.client = inbox.client;
    inbox.replaceWith(inbox);
  });
  await page.clock.fastForward("05:10");
  await row(page, "Bob").getByText("5 minutes ago").waitFor();
  await page.clock.setFixedTime(Date.now() + 30 * 86_400_000);
  await page.clock.fastForward("00:31");
  await row(page, "Bob")
    .getByText(/20\d\d/)
    .waitFor();
});

/** What a page in Arabic sets. */
function arabic() {
  document.querySelector("tidings-inbox").strings = {
    title: "الإشعارات",
    bell: (unread) => `الإشعارات، ${unread} غير مقروءة`,
    markAllRead: "تعليم الكل كمقروء",
    live: "محدَّث",
    who: (names, count) => (count > 1 ? `${names[0]} و${count - 1} آخرون` : names[0]),
    sentences: {
      like: (who) => `أعجب ${who} بمنشورك`,
      comment: (who, { data }) => `علّق ${who}: ${data.text}`,
      follow: (who) => `بدأ ${who} بمتابعتك`,
    },
  };
}

test("from right to left the panel opens along the other edge, within the window", async (t) => {
  await server.push("rtl", { from: "كريم" }, "follow");
  await server.push("rtl", { from: "سارة", text: "صورة جميلة جدًا، أين التُقطت؟" }, "comment");
  for (const actor of ["عمر", "نور", "ليلى"]) {
    await push("rtl", { entityType: "like", data: { from: actor }, groupKey: "post-7", actor });
  }
  const page = await open(t, tag("rtl"), { lang: "ar", dir: "rtl", viewport: { width: 700, height: 500 } });
  await page.evaluate(arabic);
  await bell(page, "الإشعارات، 3 غير مقروءة").click();
  await row(page, "أعجب ليلى و2 آخرون بمنشورك").waitFor();
  const boxOf = (part) => page.locator(`tidings-inbox .${part}`).first().boundingBox();
  const [panel, icon, text, dot] = await Promise.all(["panel", "icon", "text", "dot"].map(boxOf));
  assert.ok(panel.x >= 0 && panel.x + panel.width <= 700, JSON.stringify(panel));
  assert.ok(icon.x > text.x && text.x > dot.x, "the icon stands first");
  await page.screenshot({ path: shot("arabic") });
  await expectAccessible(page, "from right to left, open");
});

for (const [name, options] of Object.entries({
  "a phone": { viewport: { width: 360, height: 640 }, isMobile: true, hasTouch: true },
  "a low window": { viewport: { width: 900, height: 320 } },
})) {
  test(`the panel fits ${name}, and everything in it is large enough to hit`, async (t) => {
    const token = `fits ${name}`;
    for (let n = 1; n <= 25; n += 1)
      await server.push(token, { from: `User ${n}`, text: "word ".repeat(40) }, "comment");
    const page = await open(t, tag(token), options);
    await page.locator("button.bell", { hasText: "25" }).click();
    const { width, height } = options.viewport;
    await rows(page).first().waitFor();
    const box = await page.getByRole("dialog").boundingBox();
    assert.ok(
      box.x >= 0 && box.y >= 0 && box.x + box.width <= width && box.y + box.height <= height,
      JSON.stringify(box),
    );
    assert.equal(await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth), 0);
    const buttons = await page
      .locator("tidings-inbox button:visible")
      .evaluateAll((all) =>
        all.map((one) => [one.getAttribute("aria-label") ?? one.textContent, one.getBoundingClientRect()]),
      );
    assert.ok(buttons.length > 25);
    for (const [label, { width, height }] of buttons)
      assert.ok(width >= 24 && height >= 24, `${label}: ${width} × ${height}`);
  });
}

test("a page shows items in its own way, as text or as nodes in its own tree", async (t) => {
  await server.push("own", { from: "Bob", to: "#there" }, "like");
  const page = await open(t, tag("own", "inline"));
  await page.evaluate(() => {
    document.querySelector("tidings-inbox").renderItem = ({ data }) => `<i>${data.from}</i> says hello`;
  });
  await row(page, "<i>Bob</i> says hello").waitFor();
  assert.equal(await page.locator("tidings-inbox i").count(), 0);

  await page.evaluate(() => {
    document.querySelector("tidings-inbox").renderItem = ({ data }) => {
      const link = document.createElement("a");
      link.href = data.to;
      link.textContent = `See ${data.from}`;
      return link;
    };
  });
  await page.locator("tidings-inbox > [slot] > a", { hasText: "See Bob" }).click();
  assert.equal(new URL(page.url()).hash, "#there");
  await server.push("own", { from: "Eve", to: "#" }, "like");
  await page.getByRole("link", { name: "See Eve" }).waitFor();
  assert.equal((await listed("own"))[1].readAt, null, "the link is the page's, it does not open the row");
  await page.getByRole("button", { name: "Unread: See Bob" }).press("Enter");
  await untilRead("own", 1);
  await expectAccessible(page, "nodes of the page");

  page.removeAllListeners("pageerror");
  const errors = page.waitForEvent("pageerror");
  await page.evaluate(() => {
    document.querySelector("tidings-inbox").renderItem = () => {
      throw new Error("a mistake of the page");
    };
  });
  assert.match(String(await errors), /a mistake of the page/);
  assert.deepEqual(await texts(page), ["Eve liked your post", "Bob liked your post"]);
  assert.equal(await page.locator("tidings-inbox > [slot]").count(), 0);
});

test("what a page renders keeps the focus while nothing about it changes, and leaves it to the row", async (t) => {
  const { id } = await push("stays", { entityType: "like", data: { from: "Bob" } });
  const page = await open(t, tag("stays", "inline"));
  await page.evaluate(() => {
    document.querySelector("tidings-inbox").renderItem = ({ data }) => {
      const link = document.createElement("a");
      link.href = "#there";
      link.textContent = `See ${data.from}`;
      return link;
    };
  });
  await page.getByRole("link", { name: "See Bob" }).focus();
  await page.evaluate(() => (document.querySelector("tidings-inbox").strings = { title: "News" }));
  await page.getByText("News", { exact: true }).waitFor();
  await expectFocus(page, "See Bob");
  await server.push("stays", { from: "Eve" }, "like");
  await page.getByRole("link", { name: "See Eve" }).waitFor();
  await expectFocus(page, "See Bob");

  const body = JSON.stringify({ ids: [id] });
  const headers = { "content-type": "application/json" };
  await server.fetch("/api/inbox/stays/read", { method: "POST", headers, body });
  await page.getByRole("button", { name: "Mark unread: See Bob" }).waitFor();
  const isOnRow = () => page.evaluate(() => document.querySelector("tidings-inbox").shadowRoot.activeElement?.matches("li:last-child .open"));
  await until(isOnRow, "the row has the focus");

  // A page that gives the same node again keeps it.
  await page.evaluate(() => {
    const nodes = new Map();
    document.querySelector("tidings-inbox").renderItem = ({ id, data }) => {
      if (!nodes.has(id)) nodes.set(id, Object.assign(document.createElement("a"), { href: "#", textContent: `Same ${data.from}` }));
      return nodes.get(id);
    };
  });
  await page.getByRole("link", { name: "Same Bob" }).focus();
  await page.getByRole("button", { name: "Mark unread: Same Bob" }).evaluate((button) => button.click());
  await page.getByRole("button", { name: "Mark read: Same Bob" }).waitFor();
  await expectFocus(page, "Same Bob");

  // What has the focus and is retracted leaves it to the next one.
  await page.getByRole("link", { name: "Same Eve" }).focus();
  await server.fetch(`/api/notifications/${(await listed("stays"))[0].id}`, { method: "DELETE" });
  await page.getByRole("link", { name: "Same Eve" }).waitFor({ state: "detached" });
  await until(isOnRow, "the row that is left has the focus");
});

/** How much two colours that the browser computed differ, as WCAG counts it. */
function contrast([one, other]) {
  const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d");
  const luminance = (colour) => {
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [high, low] = [luminance(one), luminance(other)].sort((a, b) => b - a);
  return (high + 0.05) / (low + 0.05);
}

for (const colorScheme of ["light", "dark"]) {
  test(`the dots of read and unread rows can be seen, under a finger too: ${colorScheme}`, async (t) => {
    const token = `dots ${colorScheme}`;
    for (const from of ["Ann", "Bob"]) await server.push(token, { from }, "like");
    const page = await open(t, tag(token, "inline"), { colorScheme, isMobile: true, hasTouch: true });
    await row(page, "Ann").click();
    await page.getByRole("button", { name: "Mark unread: Ann liked your post" }).waitFor();
    await page.mouse.move(0, 0); // nothing is pointed at
    for (const from of ["Ann", "Bob"]) {
      const colours = await row(page, from)
        .locator(".dot")
        .evaluate((dot) => {
          const { backgroundColor } = getComputedStyle(dot.closest(".row"));
          const isClear = backgroundColor === "rgba(0, 0, 0, 0)";
          const behind = isClear ? getComputedStyle(dot.closest(".panel")).backgroundColor : backgroundColor;
          return [getComputedStyle(dot).borderTopColor, behind];
        });
      const found = await page.evaluate(contrast, colours);
      assert.ok(found >= 3, `${from}: ${found} between ${colours}`);
    }
  });
}

const README = readFileSync(new URL("../../client/README.md", import.meta.url), "utf8");

/** What stands in that column too, in the same way. */
const VALUES = ["light", "dark", "auto", "neutral", "warm", "contrast"];

/** What the first column of the README's table with this head names. */
function documented(head) {
  const [, table] = README.match(new RegExp(`\\| ${head} \\|.*\\n\\|[-|]+\\n((?:\\|.*\\n)+)`));
  return [...table.matchAll(/^\| (.+?) \|/gm)].flatMap(([, names]) => names.match(/(?<=`)[\w-]+(?=[`(])/g)).sort();
}

test("a page styles it by custom properties and parts, and the README has all of them", async (t) => {
  await server.push("style", { from: "Bob", icon: "/image.svg", actions: [{ label: "Do" }] }, "like");
  const page = await open(t, tag("style", "inline toasts"), { policy: "img-src 'self'" });
  await row(page, "Bob").waitFor();
  await isLive(page);
  await server.push("style", { from: "Toast" }, "like");
  await page.locator("tidings-inbox .toasts").getByText("Toast").waitFor();
  await page.evaluate(() => {
    const sheet = new CSSStyleSheet(); // the page's policy allows no other
    sheet.replaceSync(`
      tidings-inbox { --tidings-accent: rgb(1, 2, 3); --tidings-radius: 7px; --tidings-font-size: 21px; }
      tidings-inbox::part(row unread) { background-color: rgb(4, 5, 6); }
      tidings-inbox::part(mark-all) { letter-spacing: 3px; }`);
    document.adoptedStyleSheets = [sheet];
  });
  const style = (part, name) =>
    page.locator(`tidings-inbox [part~=${part}]`).first().evaluate((element, name) => getComputedStyle(element)[name], name);
  assert.equal(await style("mark-all", "color"), "rgb(1, 2, 3)");
  assert.equal(await style("mark-all", "letterSpacing"), "3px");
  assert.equal(await style("panel", "borderTopLeftRadius"), "7px");
  assert.equal(await style("text", "fontSize"), "21px");
  assert.equal(await style("row", "backgroundColor"), "rgb(4, 5, 6)");

  const sheet = readFileSync(new URL("../../client/src/inbox/style.ts", import.meta.url), "utf8");
  assert.deepEqual(documented("custom property"), [...new Set(sheet.match(/--tidings-[a-z-]+/g))].sort());
  await page.evaluate(() => {
    document.querySelector("tidings-inbox").renderItem = () => document.createElement("p");
  });
  const parts = () =>
    page.evaluate(() => [...document.querySelector("tidings-inbox").shadowRoot.querySelectorAll("[part]")].flatMap(({ part }) => [...part]));
  const found = new Set(await parts());
  await page.evaluate(() => (document.querySelector("tidings-inbox").renderItem = undefined));
  for (const part of await parts()) found.add(part);
  assert.deepEqual(documented("`::part\\(\\)`"), [...found].sort());
});

test("the README has every attribute, slot, event and text", async (t) => {
  const page = await open(t, "<tidings-inbox></tidings-inbox>");
  const [slots, attributes] = await page.evaluate(() => {
    const inbox = document.querySelector("tidings-inbox");
    const slots = [...inbox.shadowRoot.querySelectorAll("slot")].map(({ name }) => name);
    return [slots, [...inbox.constructor.observedAttributes, "silent", "mode", "theme"]];
  });
  assert.deepEqual(documented("slot"), slots.sort());
  assert.deepEqual(documented("attribute").filter((name) => !VALUES.includes(name)), attributes.sort());
  const source = (name) => readFileSync(new URL(`../../client/src/inbox/${name}.ts`, import.meta.url), "utf8");
  const [, texts] = source("strings").match(/export interface Strings \{\n(.+?)\n\}/s);
  assert.deepEqual(documented("text"), texts.match(/(?<=^ {2})\w+(?=[:(])/gm).sort());
  const events = source("element").match(/(?<=")tidings-\w+(?=": CustomEvent)/g);
  assert.deepEqual(documented("event \\| `detail`"), events.sort());
});

test("a page puts its own heading, bell, footer and empty state into the slots", async (t) => {
  const content = `<b slot="header">My heading</b><b slot="bell">My bell</b><a slot="footer" href="#all">See all</a>
    <b slot="empty">All quiet</b>`;
  const page = await open(t, tag("slots", "", content));
  await isLive(page);
  await bell(page, "My bell, Notifications").waitFor();
  await page.getByText("My bell").click();
  for (const text of ["My heading", "See all", "All quiet"]) await page.getByText(text).waitFor();
  await server.push("slots", { from: "Bob" }, "like");
  await row(page, "Bob").waitFor();
  await page.getByText("All quiet").waitFor({ state: "hidden" });
  await page.evaluate(() => (document.querySelector("[slot=bell]").slot = ""));
  await bell(page, "Notifications, 1 unread").waitFor();
});

test("nothing that users write becomes part of the page", async (t) => {
  const evil = "<img src=x onerror=globalThis.pwned=1>";
  await server.push("evil", { from: evil, text: evil }, "comment");
  await server.push("evil", { [evil]: evil }, evil);
  await server.push("evil", evil, "__proto__");
  await push("evil", { entityType: "like", data: { from: evil }, groupKey: evil, actor: evil });
  await push("evil", { entityType: "like", data: { from: evil }, groupKey: evil, actor: `${evil}2` });
  const page = await open(t, tag("evil", "inline"));
  await rows(page).nth(3).waitFor();
  assert.deepEqual(await texts(page), [
    `${evil}2 and ${evil} liked your post`,
    evil,
    evil,
    `${evil} commented: ${evil}`,
  ]);
  assert.deepEqual(await page.evaluate(() => [globalThis.pwned, {}.polluted]), [undefined, undefined]);
  assert.equal(await page.locator("tidings-inbox img").count(), 0);
});

test("the client may be one of the page's, which the element neither opens nor closes", async (t) => {
  await server.push("shared", { from: "Bob" }, "like");
  const page = await open(
    t,
    "<tidings-inbox id='one' inline></tidings-inbox><tidings-inbox id='two' inline silent></tidings-inbox>",
  );
  await page.evaluate(async (url) => {
    const { InboxClient } = await import(`${url}/client/tidings.js`);
    globalThis.client = new InboxClient({ url, token: "shared" });
    for (const inbox of document.querySelectorAll("tidings-inbox")) inbox.client = globalThis.client;
    globalThis.client.connect();
  }, server.url);
  for (const id of ["#one", "#two"]) await page.locator(`${id} .text`, { hasText: "Bob" }).waitFor();
  await page.evaluate(() => {
    globalThis.toasts = [];
    document.addEventListener("tidings-toast", ({ detail }) => globalThis.toasts.push(detail.data.from));
  });
  await server.push("shared", { from: "Zoe" }, "like");
  for (const id of ["#one", "#two"]) await page.locator(`${id} .text`, { hasText: "Zoe" }).waitFor();
  await page.locator("#one").getByRole("button", { name: "Mark read: Bob liked your post" }).click();
  await page.locator("#two").getByRole("button", { name: "Mark unread: Bob liked your post" }).waitFor();
  await page.evaluate(() => document.querySelector("#one").remove());
  await server.push("shared", { from: "Eve" }, "like");
  await page.locator("#two .text", { hasText: "Eve" }).waitFor();
  assert.deepEqual(await page.evaluate(() => globalThis.toasts), ["Zoe", "Eve"], "one of the two toasts");
  assert.equal(await page.evaluate(() => globalThis.client.status.name), "live");
});

test("a page that loads no modules has the element and the client in one script", async (t) => {
  await server.push("global", { from: "Bob" }, "like");
  const page = await open(t, tag("global", "inline"), { script: "tidings.global.js" });
  await row(page, "Bob liked your post").waitFor();
  assert.ok(
    await page.evaluate(() => document.querySelector("tidings-inbox").client instanceof globalThis.Tidings.InboxClient),
  );
});

test("what the attributes say may change, and an element that leaves the page closes its client", async (t) => {
  await server.push("first", { from: "Ann" }, "like");
  await server.push("second", { from: "Bob" }, "like");
  const page = await open(t, tag("first", "inline"));
  await row(page, "Ann").waitFor();
  await page.evaluate(() => {
    globalThis.before = document.querySelector("tidings-inbox").client;
    document.querySelector("tidings-inbox").setAttribute("token", "second");
  });
  await row(page, "Bob").waitFor();
  assert.deepEqual(await texts(page), ["Bob liked your post"]);
  const names = () =>
    page.evaluate(() => [
      globalThis.before.status.name,
      globalThis.inbox?.client,
      document.querySelector("tidings-inbox")?.client.status.name,
    ]);
  assert.deepEqual(await names(), ["offline", undefined, "live"]);
  await page.evaluate(() => {
    globalThis.inbox = document.querySelector("tidings-inbox");
    globalThis.before = globalThis.inbox.client;
    globalThis.inbox.remove();
  });
  await until(async () => (await names())[0] === "offline", "the client is closed");
});

test("a hidden page shows a browser notification, once the user has allowed it by a click", async (t) => {
  const init = () => {
    globalThis.shown = [];
    globalThis.Notification = class {
      static permission = "default";
      static requestPermission = async () => (this.permission = "granted");
      constructor(title, { body } = {}) {
        if (globalThis.Notification.permission === "granted") globalThis.shown.push([title, body]);
      }
    };
  };
  const page = await open(t, tag("hidden", "notify inline"), { init });
  await isLive(page);
  const hide = (state) =>
    page.evaluate(
      (state) => Object.defineProperty(document, "visibilityState", { value: state, configurable: true }),
      state,
    );
  const arrive = async (from) => {
    await server.push("hidden", { from }, "like");
    await row(page, from).first().waitFor();
  };
  await hide("hidden");
  await arrive("Ann");
  await page.getByRole("button", { name: "Notify me when this page is hidden" }).click();
  await page.getByRole("button", { name: "Notify me" }).waitFor({ state: "hidden" });
  await page.evaluate(() => {
    const [first, second] = [document.querySelector("tidings-inbox"), document.createElement("tidings-inbox")];
    Object.assign(second, { client: first.client }).toggleAttribute("notify", true);
    first.after(second); // notifies of nothing that the first one has told
  });
  await arrive("Bob");
  await hide("visible");
  await arrive("Cid");
  assert.deepEqual(await page.evaluate(() => globalThis.shown), [["Notifications", "Bob liked your post"]]);
});

for (const colorScheme of ["light", "dark"]) {
  test(`axe finds nothing wrong: ${colorScheme}, closed, open, empty and offline`, async (t) => {
    const token = `axe ${colorScheme}`;
    const types = ["like", "comment", "follow", "other"];
    for (let n = 1; n <= 21; n += 1) await server.push(token, { from: `User ${n}`, text: "Hello" }, types[n % 4]);
    const others = `<h2>Empty</h2>${tag(`${token} empty`, "inline")}<h2>Offline</h2><tidings-inbox inline></tidings-inbox>`;
    const page = await open(t, tag(token) + others, { colorScheme });
    await page.locator("button.bell .badge", { hasText: "21" }).waitFor();
    await expectAccessible(page, "closed");
    await page.getByRole("button", { name: "Notifications, 21 unread" }).click();
    await rows(page).first().click();
    await page.getByRole("button", { name: "Notifications, 20 unread" }).waitFor();
    await expectAccessible(page, "open");
  });

  test(`axe finds nothing wrong: ${colorScheme}, in Chinese, loading, refused and with an error`, async (t) => {
    const page = await open(t, "<tidings-inbox lang='zh'></tidings-inbox>", { colorScheme });
    await page.evaluate(refusing);
    await page.locator("button.bell").click();
    await page.getByRole("button", { name: "全部标为已读" }).click();
    await page.getByRole("alert").waitFor();
    await page.screenshot({ path: shot(`error-${colorScheme}`) });
    await expectAccessible(page, "an error, in Chinese");
    for (const status of [{ name: "offline", reason: "unauthorized" }, { name: "connecting" }]) {
      await page.evaluate((status) => {
        const inbox = document.querySelector("tidings-inbox");
        inbox.client = { ...inbox.client, status, items: [], unread: 0, hasMore: false, loaded: false };
      }, status);
      await page.locator(`tidings-inbox .status.${status.name}`).waitFor();
      await expectAccessible(page, `${status.name}, in Chinese`);
      await page.evaluate(() => document.querySelector("tidings-inbox").setAttribute("lang", "en"));
    }
  });
}

test("nothing moves for those who asked for that", async (t) => {
  for (const [reducedMotion, moves] of [
    ["no-preference", true],
    ["reduce", false],
  ]) {
    const page = await open(t, "<tidings-inbox></tidings-inbox>", { reducedMotion });
    await page.evaluate(refusing); // a client that never gets anywhere
    const moving = await page.evaluate(() => {
      const inbox = document.querySelector("tidings-inbox");
      inbox.client.status = { name: "connecting" };
      inbox.strings = {};
      inbox.show();
      return inbox.shadowRoot.getAnimations().length > 0;
    });
    assert.equal(moving, moves, reducedMotion);
  }
});

test("older rows come by themselves at the end of the list, while the button does not have the focus", async (t) => {
  for (let n = 1; n <= 45; n += 1) await server.push("scrolls", { from: `User ${n}` }, "like");
  await open(t, tag("scrolls", "inline"));
  await server.untilDelivered("scrolls"); // so that another browser is given a page of them, and no more
  const page = await open(t, tag("scrolls", "inline"));
  await rows(page).nth(19).waitFor();
  assert.equal(await rows(page).count(), 20);
  const toEnd = () => page.locator("tidings-inbox .scroll").evaluate((scroll) => scroll.scrollTo({ top: scroll.scrollHeight }));
  await toEnd();
  await rows(page).nth(39).waitFor();
  await toEnd();
  await rows(page).nth(44).waitFor();
  await page.getByRole("button", { name: "Load more" }).waitFor({ state: "hidden" });
});

test("rows that come above a list that is scrolled down are told, until they are seen", async (t) => {
  for (let n = 1; n <= 15; n += 1) await server.push("fresh", { from: `User ${n}` }, "like");
  const page = await open(t, tag("fresh", "inline"));
  await rows(page).nth(14).waitFor();
  await isLive(page);
  const fresh = page.locator("tidings-inbox .fresh");
  await server.push("fresh", { from: "At the top" }, "like");
  await row(page, "At the top").waitFor();
  assert.equal(await fresh.isVisible(), false);
  const scroll = page.locator("tidings-inbox .scroll");
  await scroll.evaluate((scroll) => scroll.scrollTo({ top: 300 }));
  for (const from of ["Ann", "Bob"]) await server.push("fresh", { from }, "like");
  await fresh.getByText("2 new notifications", { exact: true }).waitFor();
  await expectAccessible(page, "new rows above");
  await page.screenshot({ path: shot("fresh") });
  await fresh.click();
  await expectFocus(page, "Unread: Bob liked your post");
  await fresh.waitFor({ state: "hidden" });
  assert.equal(await scroll.evaluate(({ scrollTop }) => scrollTop < 40), true);
});

test("what failed can be tried again", async (t) => {
  const page = await open(t, "<tidings-inbox inline></tidings-inbox>");
  await page.evaluate(refusing);
  const retry = page.getByRole("button", { name: "Try again" });
  await page.getByRole("button", { name: "Mark read: Bob liked your post" }).click();
  await page.getByRole("alert").waitFor();
  const asked = await page.evaluate(() => {
    const { client } = document.querySelector("tidings-inbox");
    return new Promise((resolve) => {
      client.markRead = async (id) => resolve(id);
      document.querySelector("tidings-inbox").shadowRoot.querySelector("[role=alert] [part=retry]").click();
    });
  });
  assert.equal(asked, "1");
  await page.getByRole("alert").waitFor({ state: "hidden" });

  // Nothing is there, and nothing comes: the user may ask for it.
  await page.evaluate(() => {
    const inbox = document.querySelector("tidings-inbox");
    const status = { name: "offline", reason: "network" };
    const again = { ...inbox.client, status, items: [], unread: 0, hasMore: false, loaded: false };
    again.checkConnection = () => (globalThis.checked = true);
    inbox.client = again;
  });
  await retry.click();
  assert.equal(await page.evaluate(() => globalThis.checked), true);
});

test("a list that is loading shows where its rows will be", async (t) => {
  const page = await open(t, "<tidings-inbox inline><b slot='empty'>All quiet</b></tidings-inbox>");
  await page.evaluate(refusing);
  await page.evaluate(() => {
    const inbox = document.querySelector("tidings-inbox");
    inbox.client = { ...inbox.client, status: { name: "connecting" }, items: [], unread: 0, hasMore: false, loaded: false };
  });
  await page.locator("tidings-inbox .skeleton").waitFor();
  assert.equal(await page.getByText("All quiet").isVisible(), false);
  await page.evaluate(() => {
    const inbox = document.querySelector("tidings-inbox");
    inbox.client = { ...inbox.client, status: { name: "live" }, loaded: true };
  });
  await page.getByText("All quiet").waitFor();
  await page.locator("tidings-inbox .skeleton").waitFor({ state: "hidden" });
});
