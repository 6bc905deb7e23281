// The texts of <tidings-inbox> in English, the shape that each language gives its own in (languages/), and how the one that
// a page asks for is found and loaded. A language is a module of data, loaded when it is first needed.

/** A text for each category that Intl.PluralRules has in the language, or one for all. `{n}` is the number. */
export type Plural = string | ({ readonly [Rule in Intl.LDMLPluralRule]?: string } & { readonly other: string });

export interface Messages {
  readonly title: string;
  readonly bell: Plural;
  readonly arrived: Plural;
  readonly markAllRead: string;
  readonly markRead: string;
  readonly markUnread: string;
  readonly unread: string;
  readonly loadMore: string;
  readonly loading: string;
  readonly empty: string;
  readonly notLoaded: string;
  readonly dismiss: string;
  readonly retry: string;
  readonly showMore: string;
  readonly showLess: string;
  readonly notify: string;
  readonly connecting: string;
  readonly catchingUp: string;
  readonly live: string;
  readonly offline: string;
  readonly refused: string;
  readonly failed: string;
  /** Why something failed, by the code of the error. Of others English has the server's message. */
  readonly reasons: Readonly<Record<string, string>>;
  /** Who did something: nobody known, one, two, one and `n` others, who are `total`. */
  readonly who: readonly [string, string, string, Plural];
  readonly like: Plural;
  readonly comment: Plural;
  /** What one person said. */
  readonly commented: string;
  readonly follow: Plural;
  /** A notification of which nothing is known. */
  readonly other: string;
}

export const english: Messages = {
  title: "Notifications",
  bell: "Notifications, {n} unread",
  arrived: { one: "{n} new notification", other: "{n} new notifications" },
  markAllRead: "Mark all read",
  markRead: "Mark read: {text}",
  markUnread: "Mark unread: {text}",
  unread: "Unread",
  loadMore: "Load more",
  loading: "Loading…",
  empty: "Nothing here yet",
  notLoaded: "This could not be loaded",
  dismiss: "Dismiss",
  retry: "Try again",
  showMore: "Show more",
  showLess: "Show less",
  notify: "Notify me when this page is hidden",
  connecting: "Connecting…",
  catchingUp: "Catching up…",
  live: "Up to date",
  offline: "Offline. What comes meanwhile waits for you.",
  refused: "Signed out. Sign in again to see what is new.",
  failed: "That did not work: {reason}",
  reasons: { network: "the server cannot be reached" },
  who: ["Someone", "{a}", "{a} and {b}", { one: "{a} and {n} other", other: "{a} and {n} others" }],
  like: "{who} liked your post",
  comment: "{who} commented on your post",
  commented: "{who} commented: {text}",
  follow: { one: "{who} follows you", other: "{who} follow you" },
  other: "Notification",
};

type Module = Promise<{ readonly messages: Messages }>;

// Written out, so that bundlers see them.
const LANGUAGES: Readonly<Record<string, () => Module>> = {
  ar: () => import("./languages/ar.js"),
  de: () => import("./languages/de.js"),
  es: () => import("./languages/es.js"),
  fr: () => import("./languages/fr.js"),
  hi: () => import("./languages/hi.js"),
  ja: () => import("./languages/ja.js"),
  ko: () => import("./languages/ko.js"),
  "pt-BR": () => import("./languages/pt-BR.js"),
  ru: () => import("./languages/ru.js"),
  "zh-Hans": () => import("./languages/zh-Hans.js"),
  "zh-Hant": () => import("./languages/zh-Hant.js"),
};

const loaded = new Map<string, Messages>([["en", english]]);

/** The language that is shown for a language tag, undefined if it is not among them. */
export function languageOf(tag: string): string | undefined {
  const { language = "", script } = locale(tag)?.maximize() ?? {};
  const name = language === "zh" ? `zh-${script}` : language === "pt" ? "pt-BR" : language;
  return loaded.has(name) || Object.hasOwn(LANGUAGES, name) ? name : undefined;
}

/** Whatever stands in a lang attribute must not break the page. */
export function locale(tag: string): Intl.Locale | undefined {
  try {
    return new Intl.Locale(tag);
  } catch {
    return undefined;
  }
}

/** What is loaded of a language. */
export const messagesOf = (language: string) => loaded.get(language);

/** Loads a language; where that fails nothing is changed, and it can be tried again. */
export async function load(language: string): Promise<void> {
  try {
    const module = await LANGUAGES[language]?.();
    if (module) loaded.set(language, module.messages);
  } catch {
    // The network, or the page's policy; the browser's console says which.
  }
}
