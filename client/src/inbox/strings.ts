// Every text of <tidings-inbox>, in English and Chinese, and how a notification becomes a sentence. All of it is plain
// text: nothing here may produce markup, for half of it was written by other users.

import type { InboxError, Item } from "../types.js";
import { bodyOf, humanized } from "./content.js";
import { isolated } from "./isolate.js";

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

/** What one person said; of a group it is not known. */
const said = (item: Item): string => ((item.group?.count ?? 1) > 1 ? "" : bodyOf(item.data));

/** Why something failed, by the code of the error: for those that users meet. */
type Reasons = Readonly<Record<string, string>>;

const ENGLISH_REASONS: Reasons = { network: "the server cannot be reached" };

const CHINESE_REASONS: Reasons = {
  closed: "连接已关闭",
  network: "无法连接服务器",
  outdated: "内容已变化，请重新加载",
  rate_limited: "请求过于频繁",
  storage_unavailable: "服务器暂时不可用",
  timeout: "服务器没有响应",
  too_many_pending: "待发送的操作过多",
  unavailable: "服务器暂时不可用",
};

const reason = (reasons: Reasons, code: string) => (Object.hasOwn(reasons, code) ? reasons[code] : undefined);

const english: Strings = {
  title: "Notifications",
  bell: (unread) => (unread === 0 ? "Notifications" : `Notifications, ${unread} unread`),
  arrived: (count) => `${count} new notifications`,
  markAllRead: "Mark all read",
  markRead: (sentence) => `Mark read: ${sentence}`,
  markUnread: (sentence) => `Mark unread: ${sentence}`,
  unread: "Unread",
  loadMore: "Load more",
  loading: "Loading…",
  empty: "Nothing here yet",
  notLoaded: "This could not be loaded",
  dismiss: "Dismiss",
  showMore: "Show more",
  showLess: "Show less",
  notify: "Notify me when this page is hidden",
  connecting: "Connecting…",
  catchingUp: "Catching up…",
  live: "Up to date",
  offline: "Offline. What comes meanwhile waits for you.",
  refused: "Signed out. Sign in again to see what is new.",
  failed: ({ code, message }) => `That did not work: ${reason(ENGLISH_REASONS, code) ?? message}`,
  who([first = "Someone", second], count) {
    if (count <= 1) return first;
    if (count === 2) return second === undefined ? `${first} and 1 other` : `${first} and ${second}`;
    return `${first} and ${count - 1} others`;
  },
  sentences: {
    like: (who) => who && `${who} liked your post`,
    comment: (who, item) => who && (said(item) ? `${who} commented: ${isolated(said(item))}` : `${who} commented on your post`),
    follow: (who, item) => who && ((item.group?.count ?? 1) > 1 ? `${who} follow you` : `${who} follows you`),
  },
  other: (entityType, text) => text || humanized(entityType) || "Notification",
};

const chinese: Strings = {
  title: "通知",
  bell: (unread) => (unread === 0 ? "通知" : `通知，${unread} 条未读`),
  arrived: (count) => `${count} 条新通知`,
  markAllRead: "全部标为已读",
  markRead: (sentence) => `标为已读：${sentence}`,
  markUnread: (sentence) => `标为未读：${sentence}`,
  unread: "未读",
  loadMore: "加载更多",
  loading: "正在加载…",
  empty: "暂无通知",
  notLoaded: "暂时无法加载",
  dismiss: "关闭",
  showMore: "展开",
  showLess: "收起",
  notify: "页面在后台时提醒我",
  connecting: "正在连接…",
  catchingUp: "正在同步…",
  live: "已是最新",
  offline: "已离线。期间的通知会为你保留。",
  refused: "登录已失效。请重新登录以查看新通知。",
  failed: ({ code }) => `操作失败：${reason(CHINESE_REASONS, code) ?? code}`,
  who([first = "有人", second], count) {
    if (count <= 1) return first;
    if (count === 2 && second !== undefined) return `${first}和${second}`;
    return `${first}等 ${count} 人`;
  },
  sentences: {
    like: (who) => who && `${who}赞了你的帖子`,
    comment: (who, item) => who && (said(item) ? `${who}评论：${isolated(said(item))}` : `${who}评论了你的帖子`),
    follow: (who) => who && `${who}关注了你`,
  },
  other: (entityType, text) => text || humanized(entityType) || "通知",
};

const SHIPPED: Readonly<Record<string, Strings>> = { en: english, zh: chinese };

/** The language that is shown for a language tag, and its strings with `patch` over them. */
export function stringsFor(tag: string, patch?: StringsPatch): { locale: string; strings: Strings } {
  const language = tag.toLowerCase().split("-")[0] ?? "";
  const shipped = Object.hasOwn(SHIPPED, language) ? SHIPPED[language] : undefined;
  const base = shipped ?? english;
  // Times follow the sentences: an English sentence with an Arabic time helps nobody, unless the page brings its own.
  const locale = shipped || patch ? canonical(tag) : "en";
  if (!patch) return { locale, strings: base };
  return { locale, strings: { ...base, ...patch, sentences: { ...base.sentences, ...patch.sentences } } };
}

function canonical(tag: string): string {
  try {
    return Intl.getCanonicalLocales(tag)[0] ?? "en";
  } catch {
    return "en"; // whatever stands in a lang attribute must not break the page
  }
}
