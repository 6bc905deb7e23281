// Every language says all that there is to say, in the same form.

import { readFileSync } from "node:fs";
import { expect, test } from "vitest";

import { english, languageOf, load, type Messages, messagesOf } from "../src/inbox/messages.js";
import { stringsFor } from "../src/inbox/strings.js";
import type { Item } from "../src/types.js";

const LANGUAGES = ["ar", "de", "es", "fr", "hi", "ja", "ko", "pt-BR", "ru", "zh-Hans", "zh-Hant"];

/** Every text of a message, with its name. */
function texts(messages: Messages): [string, string][] {
  const flat = (name: string, value: unknown): [string, string][] =>
    typeof value === "string" ? [[name, value]] : Object.entries(value as object).flatMap(([key, one]) => flat(`${name}.${key}`, one));
  return Object.entries(messages).flatMap(([name, value]) => flat(name, value));
}

const item = (entityType: string, count: number, data: unknown = {}): Item => ({
  id: "1",
  seq: 1,
  entityType,
  data,
  createdAt: "",
  read: false,
  ...(count > 1 && { group: { key: "g", count, actors: ["A", "B"].slice(0, count) } }),
});

test.each(LANGUAGES)("%s says all that English says", async (language) => {
  await load(language);
  const messages = messagesOf(language)!;
  expect(Object.keys(messages)).toEqual(Object.keys(english));
  for (const [name, text] of texts(messages)) {
    expect(text.trim(), name).toBe(text);
    expect(text, name).not.toBe("");
  }
  const { locale, strings } = stringsFor(language);
  expect(locale).toBe(language);
  const said = [0, 1, 2, 3, 5, 11, 21, 100, 1234].flatMap((n) => {
    const who = strings.who(["A", "B"].slice(0, n), n);
    if (n > 0) expect(who, `${n}`).toContain("A");
    const group = n > 2 ? new Intl.NumberFormat(language).format(n > 100 ? n : n - 1) : undefined;
    const sentences = ["like", "comment", "follow"].map((type) => strings.sentences[type]!(who, item(type, n)));
    for (const sentence of sentences) expect(sentence).toContain(who);
    if (n === 100 && !["ja", "ko", "zh-Hans", "zh-Hant"].includes(language)) expect(who).toContain(group);
    return [strings.bell(n), strings.arrived(n), who, ...sentences];
  });
  said.push(strings.sentences.comment!("A", item("comment", 1, { text: "a text" })), strings.markRead("a text"), strings.markUnread("a text"));
  for (const text of said.slice(-3)) expect(text).toContain("a text");
  for (const text of said) expect(text).not.toMatch(/[{}]|undefined/);
});

test.each(LANGUAGES)("%s has its own words for what the server and the client refuse", async (language) => {
  await load(language);
  const { strings } = stringsFor(language);
  const page = readFileSync(new URL("../../docs/reference/errors.md", import.meta.url), "utf8");
  const rows = [...page.matchAll(/^\| (?:401|403|429|503) \| (.+?) \|/gm)].flatMap(([, codes]) => codes!.match(/\w+/g)!);
  expect(rows).toContain("outcome_unknown");
  const own = ["network", "timeout", "credential", "storage", "too_many_pending", "outdated", "closed", "login_expired", "not_logged_in", "too_many_events", "unavailable"];
  for (const code of [...rows, ...own]) {
    const failed = strings.failed({ code, message: "An English message" });
    expect(failed, code).not.toContain(code);
    expect(failed).not.toContain("English");
  }
  expect(strings.failed({ code: "__proto__", message: "An English message" })).toContain("__proto__");
});

test("a language tag is shown in the language that its reader knows", () => {
  const tags = {
    en: "en", "en-GB": "en", zh: "zh-Hans", "zh-CN": "zh-Hans", "zh-SG": "zh-Hans", "zh-Hans-TW": "zh-Hans", "ZH-tw": "zh-Hant",
    "zh-HK": "zh-Hant", "zh-MO": "zh-Hant", "zh-Hant": "zh-Hant", "zh-Hant-CN": "zh-Hant", pt: "pt-BR", "pt-PT": "pt-BR", "de-AT": "de",
    "es-419": "es", "ar-EG": "ar", th: undefined, "x_!": undefined, "": undefined, constructor: undefined, "zh-Latn": undefined,
  };
  for (const [tag, language] of Object.entries(tags)) expect(languageOf(tag), tag).toBe(language);
});

test("numbers choose the form that the language has for them", async () => {
  await Promise.all(["ru", "ar", "fr"].map(load));
  const arrived = (language: string, numbers: number[]) => numbers.map(stringsFor(language).strings.arrived);
  expect(arrived("ru", [1, 3, 5, 21])).toEqual(["1 новое уведомление", "3 новых уведомления", "5 новых уведомлений", "21 новое уведомление"]);
  expect(arrived("ar", [2, 3, 11])).toEqual(["إشعاران جديدان", "3 إشعارات جديدة", "11 إشعارًا جديدًا"]);
  expect(arrived("fr", [0, 1, 2])).toEqual(["0 nouvelle notification", "1 nouvelle notification", "2 nouvelles notifications"]);
  expect(stringsFor("en").strings.who(["A"], 2)).toBe("A and 1 other");
});
