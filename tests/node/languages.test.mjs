// The languages of <tidings-inbox>: which one is shown, when it changes, and what happens while it is not there.

import assert from "node:assert/strict";
import { test } from "node:test";

import { expectAccessible, shot } from "./chromium.mjs";
import { isLive, open, push, row, server, tag } from "./element.mjs";
import { until } from "./server.mjs";

/** What the button that marks all says, and the language that the panel is marked with. */
const shown = (page) =>
  page.evaluate(() => {
    const root = document.querySelector("tidings-inbox").shadowRoot;
    return [root.querySelector("[part=mark-all]").textContent, root.querySelector("#panel").lang];
  });

async function expectShown(page, text, lang) {
  let found;
  const isSo = async () => (found = await shown(page))[0] === text && found[1] === lang;
  await until(isSo, text).catch(() => assert.deepEqual(found, [text, lang]));
}

const MARK_ALL = {
  en: "Mark all read",
  de: "Alle als gelesen markieren",
  es: "Marcar todo como leído",
  fr: "Tout marquer comme lu",
  "pt-BR": "Marcar tudo como lido",
  ja: "すべて既読にする",
  ko: "모두 읽음으로 표시",
  ru: "Отметить все как прочитанные",
  ar: "تعليم الكل كمقروء",
  hi: "सभी को पढ़ा हुआ चिह्नित करें",
  "zh-Hans": "全部标为已读",
  "zh-Hant": "全部設為已讀",
};

test("each language is shown, with the variants that are spoken elsewhere", async (t) => {
  await push("tongues", { entityType: "like", data: { from: "Bob" } });
  const page = await open(t, tag("tongues", "inline"));
  await isLive(page);
  const tags = [...Object.keys(MARK_ALL).map((name) => [name, name])];
  tags.push(["zh-TW", "zh-Hant"], ["zh-HK", "zh-Hant"], ["zh-CN", "zh-Hans"], ["pt-PT", "pt-BR"], ["de-CH", "de"]);
  for (const [lang, language] of tags) {
    await page.evaluate((lang) => (document.documentElement.lang = lang), lang);
    await expectShown(page, MARK_ALL[language], lang);
    await expectAccessible(page, lang);
  }
  await page.evaluate(() => (document.documentElement.lang = "th"));
  await expectShown(page, MARK_ALL.en, "en");
});

test("a change of the language is followed: of the page, of what is around, of the element, beyond shadow roots", async (t) => {
  const page = await open(t, `<div id="around"><div id="host"></div></div>${tag("change", "inline")}`, { lang: "ja" });
  await expectShown(page, MARK_ALL.ja, "ja");
  await page.evaluate(() => {
    const root = document.getElementById("host").attachShadow({ mode: "open" });
    root.append(document.createElement("section"));
    const inbox = document.querySelector("tidings-inbox");
    globalThis.inbox = inbox;
    root.firstChild.append(inbox);
  });
  const set = (what, lang) =>
    page.evaluate(
      ([what, lang]) => {
        const host = document.getElementById("host");
        const at = { page: document.documentElement, around: host.parentElement, host, within: host.shadowRoot.firstChild, own: globalThis.inbox }[what];
        if (lang === "") at.removeAttribute("lang");
        else at.lang = lang;
      },
      [what, lang],
    );
  const expectInbox = async (text) => {
    const title = () => page.evaluate(() => globalThis.inbox.shadowRoot.querySelector("[part=title]").textContent);
    await until(async () => (await title()) === text, `the title is ${text}`);
  };
  for (const [what, lang, text] of [
    ["page", "de", "Benachrichtigungen"],
    ["around", "ru", "Уведомления"],
    ["host", "fr", "Notifications"],
    ["within", "es", "Notificaciones"],
    ["own", "ko", "알림"],
    ["own", "", "Notificaciones"],
    ["within", "", "Notifications"],
    ["host", "", "Уведомления"],
    ["around", "", "Benachrichtigungen"],
  ]) {
    await set(what, lang);
    await expectInbox(text);
  }
});

test("who did something is counted by the rules of the language", async (t) => {
  const group = async (count) => {
    for (let n = 1; n <= count; n += 1) {
      await push("plurals", { entityType: "follow", data: {}, groupKey: `${count}`, actor: n === count ? "Анна" : `${n}` });
    }
  };
  for (const count of [1, 2, 4, 7]) await group(count);
  const page = await open(t, tag("plurals", "inline"), { lang: "ru" });
  for (const text of ["Новый подписчик: Анна", "Новые подписчики: Анна и 1", "Анна и ещё 3 человека", "Анна и ещё 6 человек"]) await row(page, text).waitFor();
  await page.getByRole("group", { name: "Уведомления, 4 непрочитанных" }).waitFor();
});

test("Arabic reads from right to left, with isolated names in other scripts", async (t) => {
  await push("arabic", { entityType: "comment", data: { from: "Bob", text: "Hello!" } });
  for (const actor of ["عمر", "نور", "Ann", "ليلى"]) await push("arabic", { entityType: "like", data: {}, groupKey: "a", actor });
  const page = await open(t, tag("arabic", "inline"), { lang: "ar", dir: "rtl" });
  await row(page, "أعجب ليلى و3 أشخاص آخرين بمنشورك").waitFor();
  await row(page, "علّق Bob: Hello!").waitFor();
  const directions = await page.locator("tidings-inbox .text").evaluateAll((all) => all.map((text) => getComputedStyle(text).direction));
  assert.deepEqual(directions, ["rtl", "rtl"]);
  await expectAccessible(page, "Arabic");
  await page.screenshot({ path: shot("arabic-own") });
});

test("until its language is there nothing is shown in another, and if it does not come, English is", async (t) => {
  await push("late", { entityType: "like", data: { from: "Bob" } });
  const page = await open(t, "<p id='room'></p>", { lang: "de", silent: false });
  let answer;
  const asked = new Promise((resolve) => {
    void page.route("**/tidings-inbox.*.js", (route) => {
      answer = () => route.abort();
      resolve();
    });
  });
  await page.evaluate((html) => (document.getElementById("room").innerHTML = html), tag("late", "inline"));
  await asked;
  assert.deepEqual(await shown(page), ["", ""]);
  answer();
  await expectShown(page, MARK_ALL.en, "en");
  await row(page, "Bob liked your post").waitFor();
  await page.unroute("**/tidings-inbox.*.js");
  await page.evaluate(() => (document.documentElement.lang = "fr"));
  await expectShown(page, MARK_ALL.fr, "fr");
});

test("a page without modules has the languages too", async (t) => {
  const page = await open(t, tag("global tongue", "inline"), { script: "tidings.global.js", lang: "ko" });
  await expectShown(page, MARK_ALL.ko, "ko");
  assert.ok(await page.evaluate((url) => document.scripts[0].src.startsWith(url), server.url));
});
