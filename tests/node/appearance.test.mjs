// How <tidings-inbox> looks: directions of text, narrow and enlarged pages, forced colours, modes and themes.

import assert from "node:assert/strict";
import { test } from "node:test";

import { expectAccessible, newContext, openPage, shot } from "./chromium.mjs";
import { browser, isLive, open, push, row, rows, server, tag } from "./element.mjs";

const [RTL, OVERRIDE] = ["علي", "Eve\u202egnp"];

/** Where each of these stands, from the left: of the first text node in the shadow tree's part that holds it. */
const lefts = (page, text, part, needles) =>
  row(page, text)
    .locator(`[part=${part}]`)
    .evaluate((element, needles) => {
      const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
      const nodes = [];
      while (walker.nextNode()) nodes.push(walker.currentNode);
      return needles.map((needle) => {
        const node = nodes.find(({ data }) => data.includes(needle));
        const range = document.createRange();
        range.setStart(node, node.data.indexOf(needle));
        range.setEnd(node, node.data.indexOf(needle) + 1);
        return range.getBoundingClientRect().left;
      });
    }, needles);

const isRising = (numbers) => numbers.every((number, at) => at === 0 || number > numbers[at - 1]);

for (const dir of ["ltr", "rtl"]) {
  test(`a name in another direction turns no sentence round, in a page that is ${dir}`, async (t) => {
    const token = `names ${dir}`;
    await push(token, { entityType: "like", groupKey: "a", actor: RTL });
    await push(token, { entityType: "like", groupKey: "a", actor: OVERRIDE });
    await push(token, { entityType: "comment", data: { from: RTL, text: "שלום 123" } });
    await push(token, { data: { title: RTL, body: "Plain text, to the left." } });
    const page = await open(t, tag(token, "inline lang=en"), { dir });
    await rows(page).nth(2).waitFor();
    for (const [text, part, needles] of [
      ["liked", "text", ["E", "and", "ع", "liked", "post"]],
      ["commented", "text", ["ع", "commented"]],
      ["Plain", "message", ["Plain", "text", "left."]],
    ]) {
      const found = await lefts(page, text, part, needles);
      assert.ok(isRising(found), `${needles}: ${found}`);
    }
    assert.ok(isRising((await lefts(page, "commented", "text", ["1", "ש"]))), "a text of their own keeps its direction");
    const plain = await page.evaluate(() => {
      const inbox = document.querySelector("tidings-inbox");
      return inbox.client.items.map((item) => inbox.textOf(item));
    });
    assert.equal(plain.at(-1), `\u2068Evegnp\u2069 and \u2068${RTL}\u2069 liked your post`);
    assert.doesNotMatch(plain.join(), /\u202e/);
  });
}

test("from right to left an English sentence and time read from the left", async (t) => {
  await push("times", { entityType: "like", data: { from: "Bob" } });
  const page = await open(t, tag("times", "inline lang=en"), { dir: "rtl" });
  await isLive(page);
  await page.evaluate(() => {
    const { client } = document.querySelector("tidings-inbox");
    const [item] = client.items;
    const past = { ...item, createdAt: new Date(Date.now() - 5 * 60_000).toISOString() };
    document.querySelector("tidings-inbox").client = { items: [past], unread: 1, hasMore: false, loaded: true, status: { name: "offline" }, on: () => () => {} };
  });
  await row(page, "5 minutes ago").waitFor();
  for (const [part, needles] of [
    ["time", ["5", "minutes", "ago"]],
    ["text", ["Bob", "liked", "post"]],
  ]) {
    assert.ok(isRising(await lefts(page, "5 minutes", part, needles)), part);
  }
  const [first, last] = await page.locator("tidings-inbox .status span").evaluate(({ firstChild }) => {
    const leftOf = (at) => {
      const range = document.createRange();
      range.setStart(firstChild, at);
      range.setEnd(firstChild, at + 1);
      return range.getBoundingClientRect().left;
    };
    return [leftOf(0), leftOf(firstChild.data.length - 1)];
  });
  assert.ok(first < last, "the sentence ends with its point");
});

/** Asserts that nothing is wider than the page, and that no text is cut off at a side. */
async function expectFits(page, what) {
  const found = await page.evaluate(() => {
    const inbox = document.querySelector("tidings-inbox");
    const over = document.documentElement.scrollWidth - document.documentElement.clientWidth;
    const cut = [...inbox.shadowRoot.querySelectorAll("*")].filter((one) => {
      if (one.matches(".unseen, .image")) return false;
      const box = one.getBoundingClientRect();
      return one.checkVisibility() && box.width > 0 && (box.left < -0.5 || box.right > document.documentElement.clientWidth + 0.5);
    });
    const spilled = [...inbox.shadowRoot.querySelectorAll(".header, .footer, .row, button")].filter((one) => one.scrollHeight > one.clientHeight + 1 && one.clientHeight > 0);
    return [over, [...cut, ...spilled].map((one) => one.className)];
  });
  assert.deepEqual(found, [0, []], what);
}

test("in a narrow page, with text of twice the size and long words, everything has room", async (t) => {
  for (let n = 0; n < 2; n += 1) {
    const data = { title: "Eine Benachrichtigung", body: "Donaudampfschifffahrtsgesellschaft ".repeat(3), actions: [{ label: "Sendungsverfolgung" }, { label: "Archivieren" }] };
    await push("narrow", { data });
  }
  const narrow = { viewport: { width: 320, height: 640 } };
  const page = await open(t, `<p align="right">${tag("narrow")}</p>`, narrow);
  await page.locator("button.bell", { hasText: "2" }).waitFor();
  await page.evaluate(() => {
    document.querySelector("tidings-inbox").strings = {
      title: "Benachrichtigungen", markAllRead: "Alle als gelesen markieren", live: "Auf dem neuesten Stand", notify: "Benachrichtigen, wenn diese Seite im Hintergrund ist",
    };
    document.querySelector("tidings-inbox").show();
  });
  for (const size of [16, 32]) {
    await page.evaluate((size) => {
      const sheet = new CSSStyleSheet();
      sheet.replaceSync(`html { font-size: ${size}px; }`);
      document.adoptedStyleSheets = [sheet];
      window.dispatchEvent(new Event("resize"));
    }, size);
    await expectFits(page, `${size} pixels`);
    await page.screenshot({ path: shot(`narrow-${size}`) });
  }
});

test("the badge leaves the bell to be seen and the page as wide as it is", async (t) => {
  const page = await open(t, `<p align="right"><tidings-inbox></tidings-inbox></p>`, { viewport: { width: 320, height: 200 } });
  for (const [unread, text] of [[0, "0"], [5, "5"], [42, "42"], [100, "99+"]]) {
    await page.evaluate((unread) => {
      document.querySelector("tidings-inbox").client = { items: [], unread, hasMore: false, loaded: true, status: { name: "live" }, on: () => () => {} };
    }, unread);
    await page.locator("button.bell .badge", { hasText: text }).waitFor({ state: unread ? "visible" : "hidden" });
    await expectFits(page, text);
    if (unread === 0) continue;
    const [bell, badge, button] = await Promise.all([".bell svg", ".bell .badge", "button.bell"].map((part) => page.locator(`tidings-inbox ${part}`).boundingBox()));
    const hidden = Math.max(0, Math.min(bell.x + bell.width, badge.x + badge.width) - Math.max(bell.x, badge.x));
    assert.ok(hidden <= bell.width / 2, `${text} hides ${hidden} of ${bell.width}`);
    assert.ok(badge.x + badge.width <= button.x + button.width + 0.5, `${text} stays in the button`);
  }
});

/** The parts with this selector that cannot be told from what is behind them: no text, border, icon or colour. */
const invisible = (page, selector) =>
  page.evaluate((selector) => {
    const all = [document, ...[...document.querySelectorAll("tidings-inbox")].map(({ shadowRoot }) => shadowRoot)];
    const behind = getComputedStyle(document.body).backgroundColor;
    return all
      .flatMap((root) => [...root.querySelectorAll(selector)])
      .filter((one) => one.checkVisibility() && one.getBoundingClientRect().width > 0)
      .filter((one) => {
        const style = getComputedStyle(one);
        const hasBorder = parseFloat(style.borderTopWidth) > 0 && style.borderTopColor !== behind && style.borderTopStyle !== "none";
        const hasText = !one.matches(".send") && one.textContent.trim() !== "" && style.color !== behind;
        const isFilled = style.backgroundColor !== behind && style.backgroundColor !== "rgba(0, 0, 0, 0)";
        return !hasBorder && !hasText && !isFilled && !one.querySelector("svg, .dot");
      })
      .map((one) => one.className);
  }, selector);

test("with forced colours every control can be seen, in the demo too", async (t) => {
  const forced = { forcedColors: "active" };
  for (const from of ["Ann", "Bob"]) await server.push("forced", { from, actions: [{ label: "Do" }] }, "like");
  const page = await open(t, tag("forced", "inline"), forced);
  await row(page, "Ann").click();
  await page.getByRole("button", { name: "Mark unread: Ann liked your post" }).waitFor();
  assert.deepEqual(await invisible(page, "button, a, .dot, .badge"), []);
  const dots = await page.locator("tidings-inbox .dot").evaluateAll((all) => all.map((dot) => getComputedStyle(dot).backgroundColor));
  assert.notEqual(dots[0], dots[1], "read and unread differ");
  await page.screenshot({ path: shot("forced-colours") });

  const context = await newContext(t, browser, forced);
  const demo = await openPage(context, `${server.url}/?users=forced,other`);
  await demo.getByRole("switch").first().waitFor();
  assert.deepEqual(await invisible(demo, "button, a, .dot, .badge, .knob, .chip, .send"), []);
  const chips = await demo.locator(".chip:has([type=radio])").evaluateAll((all) => all.map((chip) => getComputedStyle(chip).backgroundColor));
  assert.notEqual(chips[0], chips[1], "what is chosen can be told");
  await demo.screenshot({ path: shot("forced-colours-demo") });
});

test("its mode is the page's, or its own", async (t) => {
  const surface = (page) => page.locator("tidings-inbox .panel").evaluate((panel) => getComputedStyle(panel).backgroundColor);
  const [light, dark] = ["rgb(255, 255, 255)", "rgb(26, 31, 42)"];
  for (const [colorScheme, own] of [["light", light], ["dark", dark]]) {
    const page = await open(t, "<tidings-inbox inline></tidings-inbox>", { colorScheme });
    const set = (mode, scheme) =>
      page.evaluate(([mode, scheme]) => {
        document.documentElement.style.colorScheme = scheme;
        document.querySelector("tidings-inbox").setAttribute("mode", mode);
      }, [mode, scheme]);
    for (const [mode, scheme, wanted] of [
      ["", "light dark", own],
      ["", "dark", dark],
      ["", "light", light],
      ["dark", "light", dark],
      ["light", "dark", light],
      ["auto", "light", own],
      ["auto", "dark", own],
    ]) {
      await set(mode, scheme);
      assert.equal(await surface(page), wanted, `mode="${mode}" in a page of ${scheme}, ${colorScheme}`);
    }
  }
});

for (const theme of ["neutral", "warm", "contrast"]) {
  test(`the theme ${theme} is accessible in both modes, and gives way to the page's own colours`, async (t) => {
    const token = `theme ${theme}`;
    for (const from of ["Ann", "Bob", "Cid"]) await server.push(token, { from, body: "A body", actions: [{ label: "Do" }] }, "like");
    for (const mode of ["light", "dark"]) {
      const page = await open(t, tag(token, `inline theme=${theme} mode=${mode}`));
      await row(page, "Ann").waitFor();
      await page.getByRole("button", { name: /^Mark (un)?read: Ann/ }).click();
      await expectAccessible(page, `${theme}, ${mode}`);
      await page.screenshot({ path: shot(`theme-${theme}-${mode}`) });
      const accent = () => page.locator("tidings-inbox [part=mark-all]").evaluate((button) => getComputedStyle(button).color);
      await page.evaluate(() => document.querySelector("tidings-inbox").style.setProperty("--tidings-accent", "rgb(1, 2, 3)"));
      assert.equal(await accent(), "rgb(1, 2, 3)");
    }
  });
}
