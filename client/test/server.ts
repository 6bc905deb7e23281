// Starts the real binary on a free port with a database of its own, pushes to it, stops it, kills it and starts it again;
// and a line to it that can be slow, cut or blocked.

import assert from "node:assert/strict";
import { execFile, spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { copyFile, mkdtemp, rm } from "node:fs/promises";
import { type AddressInfo, connect, createServer, type Server as TcpServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { promisify } from "node:util";

import { onTestFinished } from "vitest";

import type { Credential } from "../src/types.js";

const BUILT = join(import.meta.dirname, "../../target/debug/tidings");
const BINARY = resolve(process.env["TIDINGS_BIN"] ?? BUILT);

// How long anything that must happen may take: far more than it does on a busy machine.
export const PATIENCE_MS = 15_000;

/** Waits for `promise`, but not for ever. */
export async function within<T>(promise: Promise<T>, what: string): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited ${PATIENCE_MS} ms in vain for ${what}`)), PATIENCE_MS);
  });
  return await Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

const POLL_MS = 50;

/** Waits for something that no event tells, such as a row in the table. */
export async function eventually(condition: () => Promise<boolean>, what: string): Promise<void> {
  for (const since = Date.now(); !(await condition()); ) {
    assert.ok(Date.now() - since < PATIENCE_MS, `waited ${PATIENCE_MS} ms in vain until ${what}`);
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

// Settings of whoever runs the tests must not leak in.
const isSetting = (name: string) => name.startsWith("TIDINGS_") || name === "DATABASE_URL";
const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !isSetting(name)));

// None outlives the tests, whatever becomes of them.
const running = new Set<ChildProcess>();
process.once("exit", () => {
  for (const child of running) child.kill("SIGKILL");
});

export interface Row {
  id: string;
  seq: number;
  data: unknown;
  deliveredAt: string | null;
  readAt: string | null;
}

export class Server {
  url = "";
  readonly #folder: string;
  readonly #database: string;
  readonly #flags: readonly string[];
  #child!: ChildProcess;
  #ended!: Promise<unknown[]>;
  headers: Record<string, string> = {};

  private constructor(folder: string, flags: readonly string[]) {
    this.#folder = folder;
    this.#database = `--database-url=sqlite://${join(folder, "tidings.db")}`;
    this.#flags = ["--admin-listen=off", "--log=warn", "--drain-timeout-secs=1", ...flags];
  }

  /** Starts a server with these flags on an empty database; it stops with the test. */
  static async start(...flags: string[]): Promise<Server> {
    const folder = await mkdtemp(join(tmpdir(), "tidings-client-"));
    const server = new Server(folder, flags);
    onTestFinished(async () => {
      server.#child.kill("SIGKILL");
      await server.#ended;
      await rm(folder, { recursive: true });
    });
    await server.#run("127.0.0.1:0");
    return server;
  }

  async #run(listen: string): Promise<void> {
    const child = spawn(BINARY, [this.#database, `--listen=${listen}`, ...this.#flags], {
      env,
      stdio: ["ignore", "pipe", "inherit"],
    });
    running.add(child);
    child.once("exit", () => running.delete(child));
    this.#child = child;
    this.#ended = once(child, "exit").catch((error: Error) => [error.message]);
    const ready = once(createInterface(child.stdout), "line").then(([line]) => String(line));
    const gone = this.#ended.then(([code]) => Promise.reject(new Error(`${BINARY} did not start: ${String(code)}`)));
    const line = await within(Promise.race([ready, gone]), "the ready line");
    this.url = line.match(/http:\/\/[^\s,;]+/)?.[0] ?? assert.fail(line);
  }

  /** Ends it without warning. */
  async kill(): Promise<void> {
    this.#child.kill("SIGKILL");
    await within(this.#ended, "the server's end");
  }

  /** Ends it as an operator would. */
  async stop(): Promise<void> {
    this.#child.kill("SIGTERM");
    assert.deepEqual(await within(this.#ended, "the server to stop"), [0, null]);
  }

  /** Starts it where it was: same address, same database. */
  async startAgain(): Promise<void> {
    await this.#run(new URL(this.url).host);
  }

  /** What the binary prints when it does something else than serve. */
  async command(...args: string[]): Promise<string> {
    return (await promisify(execFile)(BINARY, args, { env, timeout: PATIENCE_MS })).stdout.trim();
  }

  /** Copies the data, or takes the copy back. The server must not run. */
  async copy(direction: "save" | "restore"): Promise<void> {
    const [from, to] = direction === "save" ? ["tidings", "copy"] : ["copy", "tidings"];
    for (const part of ["db", "db-wal", "db-shm"]) {
      await rm(join(this.#folder, `${to}.${part}`), { force: true });
      const file = join(this.#folder, `${from}.${part}`);
      if (existsSync(file)) await copyFile(file, join(this.#folder, `${to}.${part}`));
    }
  }

  /** Says that the data set is another one now, as after a restored backup. The server must not run. */
  renewEpoch(): Promise<string> {
    return this.command("epoch", "--renew", this.#database);
  }

  async fetch<T>(path: string, method = "GET", body?: unknown): Promise<T> {
    const response = await fetch(new URL(path, this.url), {
      method,
      headers: { "content-type": "application/json", ...this.headers },
      signal: AbortSignal.timeout(PATIENCE_MS),
      ...(body !== undefined && { body: JSON.stringify(body) }),
    });
    const answer = await response.json();
    assert.equal(response.status, 200, JSON.stringify(answer));
    return answer as T;
  }

  /** Pushes to one inbox and returns the notification's id. */
  async push(token: string, data: unknown, more: object = {}): Promise<string> {
    const body = { tokens: [token], entityType: "like", data, ...more };
    return (await this.fetch<{ id: string }>("/api", "POST", body)).id;
  }

  /** Pushes `count` with data `{n}`, one after the other from `first` on. */
  async pushMany(token: string, count: number, first = 0): Promise<void> {
    for (let n = first; n < first + count; n += 1) await this.push(token, { n });
  }

  /** What another device of the user does. */
  async mark(token: string, kind: "read" | "unread", rows: object): Promise<void> {
    await this.fetch(`/api/inbox/${token}/${kind}`, "POST", rows);
  }

  /** The inbox as the table has it: the newest hundred, and the count of all that is unread. */
  async inbox(token: string): Promise<{ items: Row[]; unread: number }> {
    return await this.fetch(`/api/inbox/${token}?limit=100`);
  }

  /** Waits until every row of the newest hundred is delivered. */
  async untilDelivered(token: string): Promise<void> {
    const delivered = async () => (await this.inbox(token)).items.every(({ deliveredAt }) => deliveredAt);
    await eventually(delivered, `everything for ${token} is delivered`);
  }
}

/** A login for `token` that is good for `ttl`, under the secret `k1=secret` and so on. */
export async function sign(server: Server, keys: string, token: string, ttl: string): Promise<Credential> {
  const { exp, kid, sig } = JSON.parse(await server.command("sign", `--login-keys=${keys}`, "--token", token, "--ttl", ttl));
  return { exp, kid, sig };
}

/** A TCP line to a server. */
export class Line {
  /** Bytes a turn to the client, and the turn's length: as slow as that. */
  pace: { bytes: number; ms: number } | undefined;
  url = "";
  opened = 0;
  #blocked = false;
  #listener!: TcpServer;
  readonly #pairs = new Set<Socket>();

  static async to(server: Server): Promise<Line> {
    const line = new Line();
    line.#listener = createServer((near) => line.#carry(near, new URL(server.url)));
    line.#listener.listen(0, "127.0.0.1");
    await once(line.#listener, "listening");
    line.url = `http://127.0.0.1:${(line.#listener.address() as AddressInfo).port}`;
    onTestFinished(() => {
      line.cut();
      line.#listener.close();
    });
    return line;
  }

  /** Connections at this moment. */
  get open(): number {
    return this.#pairs.size / 2;
  }

  /** Ends every connection, and lets none come until `mend`. */
  cut(): void {
    this.#blocked = true;
    for (const socket of this.#pairs) socket.destroy();
  }

  /** From now on nothing comes through the connections that there are, and neither end hears of it. */
  hush(): void {
    for (const socket of this.#pairs) socket.unpipe().pause();
  }

  mend(): void {
    this.#blocked = false;
  }

  #carry(near: Socket, { hostname, port }: URL): void {
    if (this.#blocked) return void near.destroy();
    this.opened += 1;
    const far = connect(Number(port), hostname);
    for (const [from, to] of [[near, far], [far, near]] as const) {
      this.#pairs.add(from);
      from.on("error", () => to.destroy());
      from.on("close", () => {
        this.#pairs.delete(from);
        to.destroy();
      });
    }
    near.pipe(far);
    far.on("data", (data) => void this.#trickle(far, near, data));
  }

  async #trickle(far: Socket, near: Socket, data: Buffer): Promise<void> {
    if (!this.pace) return void near.write(data);
    far.pause();
    const { bytes, ms } = this.pace;
    for (let at = 0; at < data.length; at += bytes) {
      await new Promise((resolve) => setTimeout(resolve, ms));
      near.write(data.subarray(at, at + bytes));
    }
    far.resume();
  }
}
