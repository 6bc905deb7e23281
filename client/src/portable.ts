// What is done here by hand because an engine lacks it: React Native has no `crypto`, and of `URL` not much more than the name.

/** Unique, but no secret. */
export function newId(): string {
  return Array.from({ length: 4 }, () => Math.random().toString(36).slice(2)).join("-");
}

/** The origin of a server, and the path below which it is. */
export function placeOf(url: string): { origin: string; path: string } {
  const [, origin, path = ""] = /^(https?:\/\/[^/?#]+)([^?#]*)/i.exec(url) ?? [];
  if (!origin) throw new TypeError(`not the url of a server: ${url}`);
  return { origin: origin.toLowerCase(), path: path.replace(/\/+$/, "") };
}
