// Logins that need a credential: refused, renewed, expired.

import { expect, onTestFinished, test, vi } from "vitest";

import { authorization, Credentials } from "../src/credentials.js";
import type { Credential } from "../src/types.js";
import { make, open } from "./open.js";
import { eventually, Server, sign } from "./server.js";

const SECRET = "a-secret-of-more-than-thirty-two-letters";
const KEYS = `k1=${SECRET}`;

async function guarded(): Promise<Server> {
  const server = await Server.start(`--login-keys=${KEYS}`, `--api-keys=backend=${SECRET}`);
  server.headers = { authorization: `Bearer ${SECRET}` };
  return server;
}

test("a signed login opens the inbox of its user, and no other", async () => {
  const server = await guarded();
  await server.push("ada", { n: 1 });
  const credential = await sign(server, KEYS, "ada", "1h");
  const ada = await open(server.url, "ada", { credential });
  expect(ada.numbers).toEqual([1]);
  const eve = make(server.url, "bob", { credential });
  eve.connect();
  await eve.offline();
  expect(eve.status.reason).toBe("unauthorized");
  expect(eve.errors).toMatchObject([{ code: "unauthorized" }]);
});

test("a refused credential is fetched once more, and then it is over for a while", async () => {
  const server = await guarded();
  const good = await sign(server, KEYS, "ada", "1h");
  const bad = { ...good, sig: "00" };
  const second = vi.fn().mockResolvedValueOnce(bad).mockResolvedValue(good);
  const ada = await open(server.url, "ada", { credential: second });
  expect([second.mock.calls.length, ada.errors]).toEqual([2, []]);

  const never = vi.fn().mockResolvedValue(bad);
  const eve = make(server.url, "ada", { credential: never });
  eve.connect();
  await eve.offline();
  expect([never.mock.calls.length, eve.status.reason]).toEqual([2, "unauthorized"]);
  expect(eve.errors).toMatchObject([{ code: "unauthorized" }]);
});

test("a login that ends soon is renewed on the same connection, and what comes after its end is still live", async () => {
  const server = await guarded();
  const short = await sign(server, KEYS, "ada", "3s");
  const long = await sign(server, KEYS, "ada", "1h");
  const credential = vi.fn().mockResolvedValueOnce(short).mockResolvedValue(long);
  const ada = await open(server.url, "ada", { credential });
  await eventually(async () => "exp" in short && Date.now() / 1000 > short.exp + 0.5, "the first login is over");
  await server.push("ada", { n: "live" });
  await ada.until(({ items }) => items.length === 1, "the message");
  expect(ada.states).not.toContain("offline");
  expect([ada.messages.length, credential.mock.calls.length]).toEqual([1, 2]);
});

test("a login that cannot be renewed ends, and that is said", async () => {
  const server = await guarded();
  await server.push("ada", { n: 1 });
  const ada = await open(server.url, "ada", { credential: await sign(server, KEYS, "ada", "2s") });
  await ada.offline();
  expect([ada.status.reason, ada.numbers]).toEqual(["unauthorized", [1]]);
  expect(ada.errors).toMatchObject([{ code: "unauthorized" }]);
});

test("a login that is refused for another reason is told once, with its code", async () => {
  const server = await Server.start();
  const ada = make(server.url, "a".repeat(10_000));
  ada.connect();
  await ada.offline();
  expect(ada.status.reason).toBe("token_too_long");
  expect(ada.errors).toMatchObject([{ code: "token_too_long" }]);
});

test("when no credential can be fetched it is tried again", async () => {
  const server = await guarded();
  const good = await sign(server, KEYS, "ada", "1h");
  const credential = vi.fn().mockRejectedValueOnce(new Error("backend is down")).mockResolvedValue(good);
  const ada = make(server.url, "ada", { credential });
  ada.connect();
  await ada.offline();
  expect([ada.status.reason, ada.errors]).toEqual([
    "credential",
    [{ code: "credential", message: "no credential: Error: backend is down" }],
  ]);
  await ada.live();
});

test("a credential is kept while it is good, and fetched once for all who ask", async () => {
  const jwt = (exp: unknown) => ({ jwt: `e30.${btoa(JSON.stringify({ exp, name: "~~??" })).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")}.sig` });
  const now = Date.now() / 1000;
  const cases: [Credential, number][] = [
    [{ exp: now + 3600, kid: "k", sig: "s" }, 1],
    [{ exp: now + 30, kid: "k", sig: "s" }, 3],
    [jwt(now + 3600), 1],
    [jwt(now + 30), 3],
    [jwt("soon"), 3],
    [{ jwt: "opaque" }, 3],
  ];
  for (const [credential, fetched] of cases) {
    const source = vi.fn(async () => credential);
    const credentials = new Credentials(source);
    await Promise.all([credentials.get(), credentials.get()]);
    await credentials.get();
    await credentials.get();
    expect(source.mock.calls.length, JSON.stringify(credential)).toBe(fetched);
  }
});

test("a fetch that never ends is given up, and the next one is another", async () => {
  vi.useFakeTimers();
  onTestFinished(() => void vi.useRealTimers());
  const good = { exp: 4e9, kid: "k", sig: "s" };
  const source = vi.fn<() => Promise<Credential>>().mockReturnValueOnce(new Promise(() => {})).mockResolvedValue(good);
  const credentials = new Credentials(source);
  const given = expect(credentials.get()).rejects.toThrow("the page did not answer for 30 s");
  await vi.advanceTimersByTimeAsync(30_000);
  await given;
  expect(await credentials.get()).toEqual(good);
});

test("a renewal that fails is told; when the login is over another credential is fetched", async () => {
  const server = await guarded();
  const short = await sign(server, KEYS, "ada", "3s");
  const long = await sign(server, KEYS, "ada", "1h");
  const credential = vi.fn().mockResolvedValueOnce(short).mockRejectedValueOnce(new Error("down")).mockResolvedValue(long);
  const ada = await open(server.url, "ada", { credential });
  await eventually(async () => credential.mock.calls.length === 3, "the third fetch");
  await ada.live();
  await server.push("ada", { n: "live" });
  await ada.until(({ items }) => items.length === 1, "the message");
  expect(ada.errors).toEqual([{ code: "credential", message: "no credential: Error: down" }]);
  expect(ada.states).not.toContain("offline");
});

test("over HTTP a credential is a header", () => {
  expect(authorization(undefined)).toEqual({});
  expect(authorization({ exp: 7, kid: "k1", sig: "ab" })).toEqual({ authorization: "Tidings kid=k1, exp=7, sig=ab" });
  expect(authorization({ jwt: "a.b.c" })).toEqual({ authorization: "Bearer a.b.c" });
});
