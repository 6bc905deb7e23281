// How long ago something was, in words that get coarser, and the whole date once it is more than a week.

const UNITS: readonly [Intl.RelativeTimeFormatUnit, number][] = [
  ["day", 86_400],
  ["hour", 3_600],
  ["minute", 60],
];
const WEEK_SECS = 7 * 86_400;

/** "now", "5 minutes ago", "yesterday", "Nov 3, 2026". A clock that is behind the server's reads "now" too. */
export function ago(createdAt: string, locale: string, now = Date.now()): string {
  const then = new Date(createdAt);
  const secs = (now - then.getTime()) / 1000;
  if (Number.isNaN(secs)) return "";
  if (secs >= WEEK_SECS) return new Intl.DateTimeFormat(locale, { dateStyle: "medium" }).format(then);
  const format = new Intl.RelativeTimeFormat(locale, { numeric: "auto" });
  const [unit, size] = UNITS.find(([, size]) => secs >= size) ?? ["second", Infinity];
  return format.format(-Math.floor(secs / size) || 0, unit);
}

/** The whole date and time, for a tooltip. */
export function fullTime(createdAt: string, locale: string): string {
  const then = new Date(createdAt);
  if (Number.isNaN(then.getTime())) return "";
  return new Intl.DateTimeFormat(locale, { dateStyle: "full", timeStyle: "medium" }).format(then);
}
