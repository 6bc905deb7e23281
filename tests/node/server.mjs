// Starts the binary on a free port with a database of its own, pushes to it, and stops it again.

import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

const BUILT = fileURLToPath(new URL("../../target/debug/tidings", import.meta.url));
export const BINARY = resolve(process.env.TIDINGS_BIN ?? BUILT);

// How long anything that must happen may take: far more than it does on a busy machine.
export const PATIENCE_MS = 15_000;

/** Waits for `promise`, but not for ever. */
export async function within(promise, what, ms = PATIENCE_MS) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited ${ms} ms in vain for ${what}`)), ms);
  });
  return await Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

const POLL_MS = 100;

/** Waits for something that no event tells, such as a row in the table. */
export async function until(condition, what, ms = PATIENCE_MS) {
  for (const since = Date.now(); !(await condition()); ) {
    assert.ok(Date.now() - since < ms, `waited ${ms} ms in vain until ${what}`);
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

export class Server {
  /** Starts a server with these flags on an empty database. */
  static async start(...flags) {
    const server = new Server();
    server.folder = await mkdtemp(join(tmpdir(), "tidings-test-"));
    server.database = join(server.folder, "tidings.db");
    await server.run("--listen=127.0.0.1:0", "--admin-listen=off", ...flags);
    return server;
  }

  async run(...flags) {
    // Settings of whoever runs the tests must not leak in.
    const isSetting = (name) => name.startsWith("TIDINGS_") || name === "DATABASE_URL";
    const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !isSetting(name)));
    const args = [`--database-url=sqlite://${this.database}`, "--log=warn", ...flags];
    this.child = spawn(BINARY, args, { env, stdio: ["ignore", "pipe", "inherit"] });
    this.ended = once(this.child, "exit").catch((error) => [error.message]);
    process.once("exit", () => this.child.kill("SIGKILL"));
    const ready = once(createInterface(this.child.stdout), "line").then(([line]) => line);
    const gone = this.ended.then(([code]) => Promise.reject(new Error(`${BINARY} did not start: ${code}`)));
    const line = await within(Promise.race([ready, gone]), "the ready line");
    this.url = line.match(/http:\/\/[^\s,;]+/)[0];
  }

  /** Stops as an operator would, which must end well. */
  async end() {
    this.child.kill("SIGTERM");
    assert.deepEqual(await within(this.ended, "the server to stop"), [0, null]);
  }

  async stop() {
    await this.end();
    await rm(this.folder, { recursive: true });
  }

  /** Starts again where it was: same address, same database. */
  async startAgain(...flags) {
    await this.run(`--listen=${new URL(this.url).host}`, "--admin-listen=off", ...flags);
  }

  fetch(path, options = {}) {
    return fetch(new URL(path, this.url), { signal: AbortSignal.timeout(PATIENCE_MS), ...options });
  }

  /** Pushes and returns the answer; `tokens` is one or several. */
  async push(tokens, data, entityType = "like") {
    const headers = { "Content-Type": "application/json" };
    const response = await this.fetch("/api", {
      method: "POST",
      headers,
      body: JSON.stringify({ tokens, entityType, data }),
    });
    const answer = await response.json();
    assert.deepEqual([response.status, answer.responseCode, answer.data], [200, 0, "OK!"]);
    return answer;
  }

  /** How many rows of a token still wait to be delivered, as an admin sees it beside the running server. */
  async undelivered(token) {
    const sql = `select count(*) from notification where token = '${token}' and delivered_at is null`;
    const { stdout } = await promisify(execFile)("sqlite3", ["-readonly", this.database, sql]);
    return Number(stdout);
  }

  /** Waits until every row of a token is delivered. */
  untilDelivered(token, ms) {
    return until(async () => (await this.undelivered(token)) === 0, `everything for ${token} is delivered`, ms);
  }
}
