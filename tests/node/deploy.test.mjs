// docs/operate and deploy/: what they tell an operator to run works, and nginx passes on what it should. Commands run as
// they stand there; only folders, ports and the tools that need another user are replaced.

import assert from "node:assert/strict";
import { execFile, execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { chmodSync, cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { symlinkSync, writeFileSync } from "node:fs";
import https from "node:https";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import { Page, TRANSPORTS } from "./page.mjs";
import { BINARY, PATIENCE_MS, Server, until, within } from "./server.mjs";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const read = (path) => readFileSync(join(ROOT, path), "utf8");
const DEPLOY = read("docs/operate/deploy.md");
const BACKUP = read("docs/operate/backup.md");
// Of one address, for each way to connect and one more.
const SOCKETS = 4;
const SECRETS = { api: "a".repeat(32), login: "b".repeat(32) };

const folder = mkdtempSync(join(tmpdir(), "tidings-deploy-"));
// nginx drops its rights, and still has to come by.
chmodSync(folder, 0o711);
after(() => rmSync(folder, { recursive: true }));

const isThere = (command, ...args) => spawnSync(command, args).error === undefined;

/** The part of a page below a heading, up to the next one of the same level or above. */
function below(page, heading) {
  const [level] = heading.split(" ");
  const [, rest] = page.split(`\n${heading}\n`);
  assert.ok(rest, `the page has ${heading}`);
  return rest.split(new RegExp(`\n#{2,${level.length}} `))[0];
}

const blocksOf = (text) => [...text.matchAll(/```sh\n([^]*?)```/g)].map(([, block]) => block);

const HELP = execFileSync(BINARY, ["--help"], { encoding: "utf8" });

/** What a setting is unless it is set. */
function defaultOf(flag) {
  const [, found] = HELP.match(new RegExp(`${flag} <[^]*?\\[default: (\\d+)\\]`));
  return Number(found);
}

test("the limits of the files leave the service room", () => {
  const number = (text, name) => Number(text.match(new RegExp(`${name}[ =](\\d+)`))[1]);
  const [unit, nginx] = [read("deploy/tidings.service"), read("deploy/nginx.conf")];
  assert.ok(number(unit, "TimeoutStopSec") > defaultOf("--drain-timeout-secs"));
  assert.ok(number(nginx, "keepalive_timeout") < defaultOf("--idle-timeout-secs"));
  const silence = defaultOf("--ping-interval-secs") + defaultOf("--ping-timeout-secs");
  for (const name of ["proxy_read_timeout", "proxy_send_timeout"]) assert.ok(number(nginx, name) > silence, name);
  assert.equal(number(nginx, "client_max_body_size") * 1024 * 1024, defaultOf("--max-body-bytes"));
});

test("systemd takes the unit", (t) => {
  if (!isThere("systemd-analyze", "--version")) return t.skip("no systemd-analyze here");
  const unit = join(folder, "tidings.service");
  writeFileSync(unit, read("deploy/tidings.service").replace("/usr/local/bin/tidings", BINARY));
  const { status, stderr } = spawnSync("systemd-analyze", ["verify", unit], { encoding: "utf8", timeout: PATIENCE_MS });
  assert.deepEqual([status, stderr], [0, ""]);
});

test("the Containerfile takes everything that the build needs", () => {
  const context = join(folder, "context");
  const [, client, build] = read("deploy/Containerfile").split("\nFROM ");
  assert.match(client, /^COPY client \.\/$/m);
  for (const [, from, line] of build.matchAll(/^COPY (--from=\w+ )?(.+)$/gm)) {
    const [to, ...sources] = line.split(" ").reverse();
    if (from) mkdirSync(join(context, to), { recursive: true });
    else for (const source of sources) cpSync(join(ROOT, source), join(context, source), { recursive: true });
  }
  const metadata = ["metadata", "--no-deps", "--offline", "--locked", "--format-version=1"];
  execFileSync("cargo", metadata, { cwd: context, stdio: ["ignore", "ignore", "pipe"], timeout: 4 * PATIENCE_MS });
  const [, watched] = read("build.rs").match(/for watched in \[(.*)\]/);
  const needed = [...JSON.parse(`[${watched}]`), ".cargo/config.toml"];
  assert.deepEqual(needed.filter((path) => !existsSync(join(context, path))), []);
  for (const file of readdirSync(join(context, "src"), { recursive: true }).filter((file) => file.endsWith(".rs"))) {
    const [code] = readFileSync(join(context, "src", file), "utf8").split("#[cfg(test)]");
    for (const [, path] of code.matchAll(/include_(?:str|bytes)!\("([^"]+)"/g)) {
      assert.ok(existsSync(join(context, "src", dirname(file), path)), `${file} needs ${path}`);
    }
  }
});

test("the health check of the Containerfile tells a living service from none", async (t) => {
  const [, json] = read("deploy/Containerfile").replaceAll(/\\\n\s*/g, "").match(/^HEALTHCHECK .* CMD (\[.*\])$/m);
  const server = await Server.start();
  t.after(() => server.stop());
  const check = (port) => {
    const [command, ...args] = JSON.parse(json).map((arg) => arg.replace("/4001", `/${port}`));
    return spawnSync(command, args, { timeout: PATIENCE_MS }).status;
  };
  assert.equal(check(new URL(server.url).port), 0);
  assert.notEqual(check(await freePort()), 0);
});

async function freePort() {
  const taken = createServer().listen(0, "127.0.0.1");
  await once(taken, "listening");
  const { port } = taken.address();
  taken.close();
  await once(taken, "close");
  return port;
}

/** An operator's machine: the folders of the page in a place of their own, and the binary as `tidings`. */
class Machine {
  constructor(name) {
    this.home = join(folder, name);
    const places = ["lib", "backups", "etc", "bin"].map((place) => join(this.home, place));
    for (const place of places) mkdirSync(place, { recursive: true });
    this.database = join(this.home, "lib/tidings.db");
    symlinkSync(BINARY, join(this.home, "bin/tidings"));
    this.stub("sudo", 'shift 2\nexec "$@"');
    this.stub("systemctl", "true");
    // There is no user tidings here.
    this.stub("install", 'while [[ $1 == -[og] ]]; do shift 2; done\nexec /usr/bin/install "$@"');
  }

  stub(name, script) {
    writeFileSync(join(this.home, "bin", name), `#!/bin/bash\n${script}\n`, { mode: 0o755 });
  }

  /** Runs a block of the page and returns what it prints; each of its lines must succeed. */
  async run(block, replace = (text) => text) {
    const here = replace(block)
      .replaceAll("/var/lib/tidings", join(this.home, "lib"))
      .replaceAll("/var/backups/tidings", join(this.home, "backups"))
      .replaceAll("/etc/tidings", join(this.home, "etc"));
    const env = { ...process.env, PATH: `${join(this.home, "bin")}:${process.env.PATH}` };
    const options = { env, cwd: this.home, timeout: 4 * PATIENCE_MS };
    return (await promisify(execFile)("bash", ["-euo", "pipefail", "-c", here], options)).stdout;
  }

  /** Starts the service on its database. */
  async start(...flags) {
    const server = new Server();
    server.database = this.database;
    await server.run("--listen=127.0.0.1:0", "--admin-listen=off", ...flags);
    return server;
  }
}

const bearer = (key) => ({ authorization: `Bearer ${key}`, "content-type": "application/json" });

async function inboxStatus(server, secret, kid) {
  const args = ["sign", "--token=1", `--kid=${kid}`, `--login-keys=${kid}=${secret}`];
  const { exp, sig } = JSON.parse(execFileSync(BINARY, args, { encoding: "utf8" }));
  const headers = { authorization: `Tidings kid=${kid}, exp=${exp}, sig=${sig}` };
  return (await server.fetch("/api/inbox/1", { headers })).status;
}

test("keys are added, listed, revoked and rotated beside the running service as the page says", async (t) => {
  const machine = new Machine("keys");
  const [apiKeys, addLogin, dropLogin] = blocksOf(below(DEPLOY, "## Keys"));
  const file = join(machine.home, "etc/login-keys");
  writeFileSync(file, `k1=${SECRETS.login}\n`);
  const server = await machine.start(`--login-keys-file=${file}`, "--reload-interval-secs=1");
  t.after(() => server.end());

  const [add, list, revoke] = apiKeys.match(/^sudo.*$/gm).map((line) => apiKeys.match(/^url=.*\n/)[0] + line);
  const key = (await machine.run(add)).trim();
  const push = async (headers) => {
    const body = JSON.stringify({ tokens: ["1"] });
    return (await server.fetch("/api", { method: "POST", headers, body })).status;
  };
  await until(async () => (await push({})) === 401, "a key is needed");
  assert.equal(await push(bearer(key)), 200);
  assert.match(await machine.run(list), /^backend +push +active /m);
  await machine.run(revoke);
  await until(async () => (await push(bearer(key))) === 401, "the key is refused");
  assert.match(await machine.run(list), /^backend +push +revoked /m);

  assert.equal(await inboxStatus(server, SECRETS.login, "k1"), 200);
  await machine.run(addLogin);
  const [, second] = readFileSync(file, "utf8").match(/^k2=(.+)$/m);
  await until(async () => (await inboxStatus(server, second, "k2")) === 200, "the new login key counts");
  assert.equal(await inboxStatus(server, SECRETS.login, "k1"), 200);
  await machine.run(dropLogin);
  await until(async () => (await inboxStatus(server, SECRETS.login, "k1")) === 401, "the old login key is refused");
  assert.equal(await inboxStatus(server, second, "k2"), 200);
});

test("a SQLite database is backed up beside the running service and restored as the page says", async () => {
  const machine = new Machine("sqlite");
  const [backup, restore] = blocksOf(below(BACKUP, "## SQLite"));
  const before = await machine.start();
  for (const n of [1, 2, 3]) await before.push("1", { n });
  // Somebody writes all the time.
  let busy = true;
  const writing = (async () => {
    for (let n = 0; busy; n += 1) await before.push("2", { n });
  })();
  assert.match(await machine.run(backup), /^Everything holds/m);
  busy = false;
  await writing;
  await before.push("1", { n: 4 });
  const old = await (await before.fetch("/api/inbox/1")).json();
  // It leaves its log behind, which must not get at the restored database.
  before.child.kill("SIGKILL");
  await before.ended;

  await machine.run(restore);
  const restored = await machine.start();
  const { items, epoch } = await (await restored.fetch("/api/inbox/1")).json();
  assert.deepEqual(items.map(({ data }) => data.n), [3, 2, 1]);
  assert.notEqual(epoch, old.epoch);
  assert.equal((await restored.push("1", { n: 5 })).results[0].seq, 4);
  await restored.end();
});

test("a Postgres database is dumped and restored as the page says", async (t) => {
  const postgres = spawn(join(ROOT, "scripts/postgres"), { stdio: ["pipe", "pipe", "ignore"] });
  const ended = once(postgres, "exit").then(() => []);
  t.after(async () => {
    postgres.stdin.end();
    await within(ended, "Postgres to stop");
  });
  const ready = once(createInterface(postgres.stdout), "line");
  const [url] = await within(Promise.race([ready, ended]), "Postgres", 4 * PATIENCE_MS);
  if (!url) return t.skip("no Postgres server here");

  const machine = new Machine("postgres");
  const { host, hostname, port } = new URL(url);
  const here = (text) =>
    text
      .replaceAll("postgres@db.example", `tidings@${host}`)
      .replaceAll("@db.example", `@${host}`)
      .replaceAll("-h db.example", `-h ${hostname} -p ${port} -U tidings`);
  const [dump, restore] = blocksOf(below(BACKUP, "## Postgres"));
  const [, roles] = read("docs/operate/postgres.md").match(/```sql\n([^]*?)```/);
  const sql = (text, database) => machine.run(`psql -qXAt ${url.replace(/postgres$/, database)} -c "${text}"`);
  await sql("create database tidings", "postgres");
  await sql(roles, "tidings");
  await machine.run(here("tidings migrate --database-url postgres://tidings_owner@db.example/tidings"));
  const start = async () => {
    const server = new Server();
    server.databaseUrl = here("postgres://tidings_app@db.example/tidings");
    await server.run("--listen=127.0.0.1:0", "--admin-listen=off");
    return server;
  };
  const before = await start();
  await before.push("1", { n: 1 });
  await machine.run(dump, here);
  await before.push("1", { n: 2 });
  await before.end();
  const old = await sql("select * from meta", "tidings");

  assert.match(await machine.run(restore, here), /^Everything holds for 1 inboxes and 1 notifications/m);
  assert.notEqual(await sql("select * from meta", "tidings"), old);
  const restored = await start();
  assert.equal((await restored.push("1", { n: 3 })).results[0].seq, 2);
  await restored.end();
});

/** Runs nginx with the configuration of deploy/, in front of this server. */
async function nginxBefore(t, server) {
  const home = join(folder, "nginx");
  mkdirSync(home);
  const [cert, key] = [join(home, "cert.pem"), join(home, "key.pem")];
  const subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"];
  const curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-days", "2"];
  execFileSync("openssl", ["req", "-x509", ...curve, ...subject, "-keyout", key, "-out", cert], { stdio: "ignore" });
  const [plain, secure] = [await freePort(), await freePort()];
  const site = read("deploy/nginx.conf")
    .replace("listen 80;", `listen 127.0.0.1:${plain};`)
    .replace("listen 443 ssl;", `listen 127.0.0.1:${secure} ssl;`)
    .replaceAll(/listen \[::\].*;/g, "")
    .replace("server 127.0.0.1:4001;", `server ${new URL(server.url).host};`)
    .replace("/etc/ssl/tidings/cert.pem", cert)
    .replace("/etc/ssl/tidings/key.pem", key);
  writeFileSync(join(home, "site.conf"), site);
  const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map((of) => `${of}_temp_path ${home}/${of};`);
  const main = `daemon off; pid ${home}/pid; error_log stderr crit; events { worker_connections 256; }
http { access_log off; ${temporary.join(" ")} include ${home}/site.conf; }`;
  writeFileSync(join(home, "nginx.conf"), main);
  const args = ["-p", home, "-e", "stderr", "-c", join(home, "nginx.conf")];
  const tried = spawnSync("nginx", [...args, "-t"], { encoding: "utf8", timeout: PATIENCE_MS });
  assert.equal(tried.status, 0, tried.stderr);

  const nginx = spawn("nginx", args, { stdio: ["ignore", "ignore", "inherit"] });
  t.after(async () => {
    nginx.kill("SIGQUIT");
    await within(once(nginx, "exit"), "nginx to stop");
  });
  return { ca: readFileSync(cert), plain: `http://127.0.0.1:${plain}`, url: `https://127.0.0.1:${secure}` };
}

/** A request with Node's own client, which can be told what to trust and where to come from. */
function ask(url, { body, ...options }) {
  const answered = new Promise((resolve, reject) => {
    const request = https.request(url, options, async (response) => {
      const parts = await response.toArray();
      resolve({ status: response.statusCode, headers: response.headers, text: Buffer.concat(parts).toString() });
    });
    request.on("error", reject);
    request.end(body);
  });
  return within(answered, url);
}

test("through nginx pages log in by websocket and polling, and the service sees who asks", async (t) => {
  if (!isThere("nginx", "-v") || !isThere("openssl", "version")) return t.skip("no nginx or openssl here");
  const keys = [`--api-keys=backend=${SECRETS.api}`, `--login-keys=k1=${SECRETS.login}`];
  const server = await Server.start(...keys, "--trusted-proxies=127.0.0.1/32", `--max-sockets-per-address=${SOCKETS}`);
  t.after(() => server.stop());
  const { ca, plain, url } = await nginxBefore(t, server);
  await until(() => ask(url, { ca }).catch(() => false), "nginx answers");

  const headers = bearer(SECRETS.api);
  const push = (body) => ask(`${url}/api`, { ca, method: "POST", headers, body: JSON.stringify(body) });
  const signed = (token) => JSON.parse(execFileSync(BINARY, ["sign", `--token=${token}`, keys[1]]));
  for (const [how, transports] of Object.entries(TRANSPORTS)) {
    const page = new Page("4.8.4", url, { ca, transports });
    t.after(() => page.close());
    assert.equal((await page.call("user_login", signed(how))).ok, true, how);
    assert.equal((await page.next("replay_complete")).count, 0);
    if (transports.length > 1) await within(page.upgraded, "the upgrade");
    const pushed = await push({ tokens: [how], data: how });
    assert.equal(pushed.status, 200, pushed.text);
    assert.equal((await page.next("receive_message")).data, how);
  }

  const most = defaultOf("--max-body-bytes") - JSON.stringify({ tokens: [], data: "" }).length;
  const large = await push({ tokens: [], data: "x".repeat(most) });
  assert.deepEqual([large.status, JSON.parse(large.text).code], [413, "data_too_large"], "the service sees all of it");
  assert.equal((await push({ tokens: [], data: "x".repeat(most + 1) })).status, 413);
  const moved = await fetch(`${plain}/socket.io/?a=b`, { redirect: "manual", headers: { host: "notify.example.com" } });
  assert.equal(moved.status, 301);
  assert.match(moved.headers.get("location"), /^https:\/\/[^/]+\/socket\.io\/\?a=b$/);

  // Another address has sockets of its own, and what a client says about itself counts for nothing.
  const polling = `${url}/socket.io/?EIO=4&transport=polling`;
  const open = (localAddress, headers = {}) => ask(polling, { ca, localAddress, headers });
  for (let n = 0; n < SOCKETS; n += 1) assert.equal((await open("127.0.0.5")).status, 200);
  assert.notEqual((await open("127.0.0.5")).status, 200);
  assert.notEqual((await open("127.0.0.5", { "x-forwarded-for": "127.0.0.7" })).status, 200);
  assert.equal((await open("127.0.0.6")).status, 200);
});
