// What the user logs in with: fetched when it is first needed, kept while it is good, fetched anew before it expires.

import { within } from "./patience.js";
import type { Credential, InboxOptions } from "./types.js";

const PATIENCE_MS = 30_000; // a user may have to log in for it
const MARGIN_SECS = 60; // as long before the end as the server gives notice

export class Credentials {
  /** Whether another one can be had when this one is refused. */
  readonly renewable: boolean;
  #fetching: Promise<Credential> | undefined;
  #current: Credential | undefined;

  constructor(private readonly source: InboxOptions["credential"]) {
    this.renewable = typeof source === "function";
  }

  /** One that is good for a while, if the page has given any; callers that come meanwhile wait for the same. */
  async get(): Promise<Credential | undefined> {
    if (typeof this.source !== "function") return this.source;
    if (this.#current && expiry(this.#current) > Date.now() / 1000 + MARGIN_SECS) return this.#current;
    this.#fetching ??= within(PATIENCE_MS, "the page", Promise.resolve(this.source())).finally(() => (this.#fetching = undefined));
    return (this.#current = await this.#fetching);
  }

  /** It was refused, or is about to expire. */
  drop(): void {
    this.#current = undefined;
  }
}

/** For HTTP. */
export function authorization(credential: Credential | undefined): Record<string, string> {
  if (!credential) return {};
  if ("jwt" in credential) return { authorization: `Bearer ${credential.jwt}` };
  const { kid, exp, sig } = credential;
  return { authorization: `Tidings kid=${kid}, exp=${exp}, sig=${sig}` };
}

/** In Unix seconds. One that cannot be read counts as over, so it is fetched anew each time. */
function expiry(credential: Credential): number {
  if (!("jwt" in credential)) return credential.exp;
  try {
    const payload = credential.jwt.split(".")[1] ?? "";
    return Number(JSON.parse(atob(payload.replaceAll("-", "+").replaceAll("_", "/"))).exp) || 0;
  } catch {
    return 0;
  }
}
