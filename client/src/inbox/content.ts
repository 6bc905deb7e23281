// What a notification shows, read from its `data`. A backend may have put texts of other users into it, and any JSON: a
// field of the wrong type counts as missing, and nothing but text and checked URLs leaves this module.

import type { Item } from "../types.js";
import { isolated, plain } from "./isolate.js";
import type { Strings } from "./strings.js";

/** What the data offers to do beside opening it, with all that it says of it. */
export interface Action {
  readonly label: string;
  /** Checked, and absolute. Without one the page does what the action says. */
  readonly url?: string | undefined;
  readonly [name: string]: unknown;
}

export interface Content {
  /** The first line: never empty. Names in a sentence are isolated. */
  readonly title: string;
  /** What stands below it; "" if there is nothing. */
  readonly message: string;
  /** An avatar or icon. */
  readonly image: string | undefined;
  /** Who it is from: their initials stand where there is no image. */
  readonly name: string | undefined;
  /** Where it leads. */
  readonly url: string | undefined;
  readonly actions: readonly Action[];
}

export function contentOf(item: Item, strings: Strings): Content {
  const { data, group, entityType } = item;
  const actor = field(data, "actor");
  const own = textOf(actor, "name");
  const name = own ?? textOf(data, "from");
  const names = group && group.actors.length > 0 ? group.actors : name === undefined ? [] : [name];
  const count = group?.count ?? 1;
  const who = names.length > 0 ? strings.who(names.map(isolated), count) : "";
  const sentence = Object.hasOwn(strings.sentences, entityType) ? strings.sentences[entityType] : undefined;
  const said = sentence?.(who, item) || undefined;
  const head = textOf(data, "title");
  const body = bodyOf(data);
  // The data of a group are those of its first push, so they do not speak for the others.
  const isGroup = count > 1;
  const title = (isGroup ? (said ?? head) : (head ?? said)) ?? strings.other(entityType, body);
  const below = !isGroup ? body : title === said ? "" : who;
  const shown = own && isGroup ? names[0] : own;
  return {
    title,
    message: title.includes(below) ? "" : below,
    image: [shown === own ? textOf(actor, "avatar") : "", textOf(data, "icon"), textOf(data, "image")].map(urlOf).find(Boolean),
    name: shown,
    url: urlOf(textOf(data, "url")),
    actions: actionsOf(field(data, "actions")),
  };
}

const MAX_ACTIONS = 2;

function actionsOf(actions: unknown): Action[] {
  const all = (Array.isArray(actions) ? actions : []).flatMap((action: object) => {
    const label = textOf(action, "label");
    const url = urlOf(textOf(action, "url"));
    // One that leads to where it must not is none: it would do nothing.
    if (label === undefined || (url === undefined && (field(action, "url") ?? "") !== "")) return [];
    return [{ ...action, label, url }];
  });
  return all.slice(0, MAX_ACTIONS);
}

const SHORT = 140;

/** The same as one plain text, of which long parts are cut. */
export function plainText({ title, message }: Content): string {
  return [title, message].filter(Boolean).map(shortened).join("\n");
}

export function shortened(text: string): string {
  const points = [...plain(text).slice(0, 2 * SHORT)]; // whole characters, so that none is cut in half
  return points.length > SHORT ? `${points.slice(0, SHORT).join("")}…` : points.join("");
}

/** "order.shipped" as people write it: "Order shipped". What is no identifier stays as it is. */
export function humanized(entityType: string): string {
  if (!/^[\p{L}\p{N}._:/-]+$/u.test(entityType)) return entityType;
  const words = entityType.replace(/(\p{Ll})(\p{Lu})/gu, "$1 $2").split(/[ ._:/-]+/);
  const text = words.filter(Boolean).join(" ").toLowerCase();
  return text.replace(/^./u, (first) => first.toUpperCase());
}

/** "Ada King Lovelace": "AL". */
export function initialsOf(name: string): string {
  const firsts = name.match(/(?<!\S)[\p{L}\p{N}]/gu) ?? [];
  return firsts.filter((_, at) => at % (firsts.length - 1 || 1) === 0).join("").toUpperCase();
}

/** The text of `data` beside its title. */
export function bodyOf(data: unknown): string {
  if (typeof data === "string") return data.trim();
  return textOf(data, "body") ?? textOf(data, "text") ?? textOf(data, "message") ?? "";
}

/** An address to open or load: http or https, or a path of this page's origin. */
function urlOf(url: string | undefined): string | undefined {
  if (!url || !URL.canParse(url, document.baseURI)) return undefined;
  const { protocol, username, password, href } = new URL(url, document.baseURI);
  // What stands before the @ only makes an address look like another.
  return /^https?:$/.test(protocol) && username + password === "" ? href : undefined;
}

function field(data: unknown, name: string): unknown {
  return typeof data === "object" && data !== null && Object.hasOwn(data, name) ? (data as Record<string, unknown>)[name] : undefined;
}

/** A text that says something. */
function textOf(data: unknown, name: string): string | undefined {
  const value = field(data, name);
  return typeof value === "string" && value.trim() !== "" ? value.trim() : undefined;
}
