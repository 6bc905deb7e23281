// Every text of <tidings-inbox>, as functions where it has parts, and what a page may put in their place. All of it is
// plain text: nothing here may produce markup, for half of it was written by other users.

import type { InboxError, Item } from "../types.js";
import { bodyOf, humanized } from "./content.js";
import { isolated } from "./isolate.js";
import { english, languageOf, locale, type Messages, messagesOf, type Plural } from "./messages.js";

/**
 * Says what happened; undefined if the data is not of the form that this sentence needs. `who` is "" if nobody is named.
 */
export type Sentence = (who: string, item: Item) => string | undefined;

export interface Strings {
  /** The heading of the panel, and of a browser notification. */
  title: string;
  /** What the bell is called, with the number of unread notifications. */
  bell(unread: number): string;
  /** What is said when several came at about the same time. */
  arrived(count: number): string;
  markAllRead: string;
  markRead(sentence: string): string;
  markUnread(sentence: string): string;
  unread: string;
  loadMore: string;
  loading: string;
  empty: string;
  /** Nothing could be loaded yet. */
  notLoaded: string;
  dismiss: string;
  /** The button that tries again what failed. */
  retry: string;
  /** Shows a long text in full, or no more of it than before. */
  showMore: string;
  showLess: string;
  /** The button that asks for permission to show browser notifications. */
  notify: string;
  connecting: string;
  catchingUp: string;
  live: string;
  offline: string;
  /** Offline because the login was refused or is over. */
  refused: string;
  /** Something was refused or taken back; the message is English. */
  failed(error: InboxError): string;
  /** "Alice", "Alice and Bob", "Alice and 12 others"; `names` are the newest, `count` is how many there are. */
  who(names: readonly string[], count: number): string;
  /** By `entityType`. */
  sentences: Readonly<Record<string, Sentence>>;
  /** A notification without a title that no sentence fits; `text` is what its data says, or "". */
  other(entityType: string, text: string): string;
}

/** What may be given to the `strings` property; sentences add to those that are there. */
export type StringsPatch = Partial<Strings>;

const fill = (template: string, values: Readonly<Record<string, string>>) => template.replace(/\{(\w+)\}/g, (_, name: string) => values[name] ?? "");

function stringsFrom(messages: Messages, tag: string): Strings {
  const [rules, numbers] = [new Intl.PluralRules(tag), new Intl.NumberFormat(tag)];
  const count = (plural: Plural, n: number, values: Readonly<Record<string, string>> = {}) => {
    const template = typeof plural === "string" ? plural : (plural[rules.select(n)] ?? plural.other);
    return fill(template, { ...values, n: numbers.format(n) });
  };
  const countOf = ({ group }: Item) => group?.count ?? 1;
  const [someone, one, two, many] = messages.who;
  return {
    ...messages,
    bell: (unread) => (unread === 0 ? messages.title : count(messages.bell, unread)),
    arrived: (n) => count(messages.arrived, n),
    markRead: (text) => fill(messages.markRead, { text }),
    markUnread: (text) => fill(messages.markUnread, { text }),
    failed({ code, message }) {
      const known = Object.hasOwn(messages.reasons, code) ? messages.reasons[code] : undefined;
      return fill(messages.failed, { reason: known ?? (messages === english ? message : code) });
    },
    who([a, b], total) {
      if (a === undefined) return someone;
      if (total <= 1) return fill(one, { a });
      if (total === 2 && b !== undefined) return fill(two, { a, b });
      return count(many, total - 1, { a, total: numbers.format(total) });
    },
    sentences: {
      like: (who, item) => who && count(messages.like, countOf(item), { who }),
      comment(who, item) {
        const text = countOf(item) > 1 ? "" : bodyOf(item.data); // of a group it is not known
        return who && (text ? fill(messages.commented, { who, text: isolated(text) }) : count(messages.comment, countOf(item), { who }));
      },
      follow: (who, item) => who && count(messages.follow, countOf(item), { who }),
    },
    other: (entityType, text) => text || humanized(entityType) || messages.other,
  };
}

/** The locale that is shown for a language tag, and its strings with `patch` over them: in English until they are loaded. */
export function stringsFor(tag: string, patch?: StringsPatch): { locale: string; strings: Strings } {
  const messages = messagesOf(languageOf(tag) ?? "");
  // Times follow the sentences: an English sentence with a Thai time helps nobody, unless the page brings its own.
  const shown = (messages ?? patch) ? (locale(tag)?.toString() ?? "en") : "en";
  const base = stringsFrom(messages ?? english, messages ? shown : "en");
  if (!patch) return { locale: shown, strings: base };
  return { locale: shown, strings: { ...base, ...patch, sentences: { ...base.sentences, ...patch.sentences } } };
}
