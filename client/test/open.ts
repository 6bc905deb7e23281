// Clients for tests: closed with the test, watched while it runs.

import { onTestFinished } from "vitest";

import {
  InboxClient,
  type InboxError,
  type InboxOptions,
  type InboxStorage,
  type Item,
  type Known,
  type Op,
} from "../src/index.js";
import { within } from "./server.js";

export class Watched extends InboxClient {
  readonly messages: Item[] = [];
  readonly toasts: Item[] = [];
  readonly errors: InboxError[] = [];
  readonly states: string[] = [];

  /** The `n` of what is shown, newest first. */
  get numbers(): unknown[] {
    return numbers(this.items);
  }

  /** Waits until `condition` is true of what is shown. */
  async until(condition: (client: this) => boolean, what: string): Promise<void> {
    if (condition(this)) return;
    let off = () => {};
    const met = new Promise<void>((resolve) => {
      off = this.on("change", () => condition(this) && resolve());
    });
    await within(met, `${what}; it is ${JSON.stringify(this.snapshot)}`).finally(off);
  }

  live(): Promise<void> {
    return this.until(({ status }) => status.name === "live", "the client to be live");
  }

  offline(): Promise<void> {
    return this.until(({ status }) => status.name === "offline", "the client to be offline");
  }
}

export const numbers = (items: readonly { data: unknown }[]) => items.map(({ data }) => (data as { n: unknown }).n);

/** A client that is not connected yet. */
export function make(url: string, token: string, options: Partial<InboxOptions> = {}): Watched {
  const client = new Watched({ url, token, shareTabs: false, ...options });
  client.on("message", (item) => client.messages.push(item));
  client.on("toast", (item) => client.toasts.push(item));
  client.on("error", (error) => client.errors.push(error));
  client.on("change", () => client.states.at(-1) !== client.status.name && client.states.push(client.status.name));
  onTestFinished(() => client.close());
  return client;
}

/** A client that is up to date. */
export async function open(url: string, token: string, options: Partial<InboxOptions> = {}): Promise<Watched> {
  const client = make(url, token, options);
  client.connect();
  await client.live();
  return client;
}

/** What is kept over reloads, for one inbox, to look into. */
export class Memory implements InboxStorage {
  known: Known | undefined;
  ops: Op[] = [];

  async load() {
    return { ...(this.known && { known: this.known }), ops: this.ops };
  }

  async save(_key: string, known: Known) {
    this.known = known;
  }

  async addOp(_key: string, op: Op) {
    this.ops = [...this.ops, op];
  }

  async removeOp(_key: string, id: string) {
    this.ops = this.ops.filter((op) => op.id !== id);
  }

  async forget() {
    this.known = undefined;
    this.ops = [];
  }
}
