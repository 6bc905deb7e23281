// JSON Web Tokens made with another library than the one that checks them: of each kind of key, in each place where
// they may stand, and everything that is wrong with one.

import assert from "node:assert/strict";
import { constants, createHmac, generateKeyPairSync, randomBytes, sign } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";

import { Page } from "./page.mjs";
import { Server } from "./server.mjs";

const TOKEN = "user 7";
const SECRET = randomBytes(32);
const PAIRS = {
  EdDSA: generateKeyPairSync("ed25519"),
  ES256: generateKeyPairSync("ec", { namedCurve: "P-256" }),
  RS256: generateKeyPairSync("rsa", { modulusLength: 2048 }),
};
const UNKNOWN = generateKeyPairSync("ed25519");

const publicJwk = (alg) => ({ ...PAIRS[alg].publicKey.export({ format: "jwk" }), kid: alg, alg, use: "sig" });
const KEY_SET = {
  keys: [
    { kty: "oct", kid: "HS256", alg: "HS256", k: SECRET.toString("base64url") },
    ...Object.keys(PAIRS).map(publicJwk),
    // As identity providers have them beside the keys for logins.
    { ...publicJwk("RS256"), kid: "encryption", use: "enc", alg: "RSA-OAEP" },
    { ...publicJwk("RS256"), kid: "no algorithm", alg: undefined, x5c: ["AA"], issuer: "https://login.example.com" },
    { ...publicJwk("RS256"), kid: "another algorithm", alg: "PS256" },
    { kty: "AKP", kid: "of tomorrow", alg: "ML-DSA-44", pub: "AA" },
  ],
};

const folder = await mkdtemp(join(tmpdir(), "tidings-jwks-"));
await writeFile(join(folder, "jwks.json"), JSON.stringify(KEY_SET));
const server = await Server.start(`--jwks-file=${join(folder, "jwks.json")}`);
after(async () => {
  await server.stop();
  await rm(folder, { recursive: true });
});

const SIGNERS = {
  HS256: (text) => createHmac("sha256", SECRET).update(text).digest(),
  EdDSA: (text, key = PAIRS.EdDSA.privateKey) => sign(null, Buffer.from(text), key),
  ES256: (text) => sign("sha256", Buffer.from(text), { key: PAIRS.ES256.privateKey, dsaEncoding: "ieee-p1363" }),
  RS256: (text) => sign("sha256", Buffer.from(text), PAIRS.RS256.privateKey),
  PS256: (text) => {
    const padding = { padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: 32 };
    return sign("sha256", Buffer.from(text), { key: PAIRS.RS256.privateKey, ...padding });
  },
};

const inAMinute = () => Math.floor(Date.now() / 1000) + 60;
const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");

/** A JWT; `header`, `claims` and `signer` replace what a good one has. */
function jwt(alg, { header = {}, claims = {}, signer = SIGNERS[alg] } = {}) {
  const signed = `${part({ alg, kid: alg, ...header })}.${part({ sub: TOKEN, aud: "tidings", exp: inAMinute(), ...claims })}`;
  return `${signed}.${signer(signed).toString("base64url")}`;
}

function open(t, options) {
  const page = new Page("4.8.4", server.url, { transports: ["websocket"], ...options });
  t.after(() => page.close());
  return page;
}

const login = (page, jwt, tokenId = TOKEN) => page.call("user_login", { tokenId, jwt });

/** The answers to a login and of an inbox, which must agree. */
async function show(t, credential) {
  const page = open(t);
  const answer = await login(page, credential);
  page.close();
  const listed = await server.fetch(`/api/inbox/${encodeURIComponent(TOKEN)}`, {
    headers: { Authorization: `Bearer ${credential}` },
  });
  return { login: answer, status: listed.status, text: await listed.text() };
}

for (const alg of Object.keys(SIGNERS).slice(0, 4)) {
  test(`a login with ${alg} is let in`, async (t) => {
    const { login, status } = await show(t, jwt(alg, { claims: { aud: ["other", "tidings"] } }));
    assert.deepEqual([login.ok, status], [true, 200]);
  });
}

const LIBERTIES = {
  "a fraction of a second": jwt("HS256", { claims: { exp: inAMinute() + 0.5, nbf: inAMinute() - 100.25 } }),
  "no key id, where one key fits": jwt("EdDSA", { header: { kid: undefined, typ: "JWT" } }),
  "a key without an algorithm": jwt("RS256", { header: { kid: "no algorithm" } }),
};

for (const [what, credential] of Object.entries(LIBERTIES)) {
  test(`a login with ${what} is let in`, async (t) => {
    const { login, status } = await show(t, credential);
    assert.deepEqual([login.ok, status], [true, 200]);
  });
}

test("a subject may be a number", async () => {
  for (const sub of [42, "42"]) {
    const headers = { Authorization: `Bearer ${jwt("ES256", { claims: { sub } })}` };
    assert.equal((await server.fetch("/api/inbox/42", { headers })).status, 200);
    assert.equal((await server.fetch("/api/inbox/43", { headers })).status, 401);
  }
});

test("a JWT may stand in the handshake", async (t) => {
  const page = open(t, { auth: { jwt: jwt("EdDSA") } });
  assert.equal((await login(page)).ok, true);
  const other = await login(page, undefined, "user 8");
  assert.deepEqual([other.ok, other.code], [false, "unauthorized"]);
});

const none = () => Buffer.alloc(0);
const hmacWith = (key) => (text) => createHmac("sha256", key).update(text).digest();
const pem = (alg) => PAIRS[alg].publicKey.export({ format: "pem", type: "spki" });
const WRONG = {
  "the algorithm none": jwt("EdDSA", { header: { alg: "none" }, signer: none }),
  "the algorithm none and a signature": jwt("EdDSA", { header: { alg: "none" } }),
  "no signature": jwt("RS256", { signer: none }),
  "HS256 with the public key as the secret": jwt("RS256", { header: { alg: "HS256" }, signer: hmacWith(pem("RS256")) }),
  "HS256 with the bytes of a public key": jwt("EdDSA", {
    header: { alg: "HS256" },
    signer: hmacWith(Buffer.from(publicJwk("EdDSA").x, "base64url")),
  }),
  "HS256 with another secret": jwt("HS256", { signer: hmacWith("another secret") }),
  "another algorithm of the same key": jwt("RS256", { header: { alg: "PS256" }, signer: SIGNERS.PS256 }),
  "the id of another key": jwt("EdDSA", { header: { kid: "ES256" } }),
  "an unknown key": jwt("EdDSA", { header: { kid: "k9" } }),
  "no key id, and two keys that fit": jwt("RS256", { header: { kid: undefined } }),
  "an extension that must be understood": jwt("HS256", { header: { crit: ["bork"], bork: true } }),
  "an extension that need not be there": jwt("HS256", { header: { crit: [] } }),
  "the id of a key for encryption": jwt("RS256", { header: { kid: "encryption" } }),
  "a time in milliseconds": jwt("HS256", { claims: { exp: inAMinute() * 1000 } }),
  "a time that is a string": jwt("HS256", { claims: { exp: String(inAMinute()) } }),
  "somebody else's signature": jwt("EdDSA", { signer: (text) => SIGNERS.EdDSA(text, UNKNOWN.privateKey) }),
  "the key in its own header": jwt("EdDSA", {
    header: { jwk: UNKNOWN.publicKey.export({ format: "jwk" }) },
    signer: (text) => SIGNERS.EdDSA(text, UNKNOWN.privateKey),
  }),
  "a time that is past": jwt("ES256", { claims: { exp: Math.floor(Date.now() / 1000) - 1 } }),
  "no time": jwt("ES256", { claims: { exp: undefined } }),
  "a time that is still to come": jwt("ES256", { claims: { nbf: inAMinute() + 3600 } }),
  "another audience": jwt("HS256", { claims: { aud: "elsewhere" } }),
  "no audience": jwt("HS256", { claims: { aud: undefined } }),
  "another subject": jwt("HS256", { claims: { sub: "user 8" } }),
  "no subject": jwt("HS256", { claims: { sub: undefined } }),
  "claims changed after it was signed": jwt("RS256").replace(/\.[^.]+\./, `.${part({ sub: TOKEN, aud: "tidings", exp: 9e9 })}.`),
  "half of it": jwt("RS256").slice(0, 200),
  "nothing": "",
  "too much": jwt("HS256", { claims: { more: "x".repeat(10_000) } }),
};

test("whatever is wrong with one, the answer is the same", async (t) => {
  const answers = new Set();
  for (const [what, credential] of Object.entries(WRONG)) {
    const { login, status, text } = await show(t, credential);
    assert.deepEqual([login.ok, login.code, status], [false, "unauthorized", 401], what);
    answers.add(JSON.stringify(login)).add(text);
  }
  assert.equal(answers.size, 2, [...answers].join("\n"));
});

test("one of a megabyte ends its connection, and nobody else notices", async (t) => {
  const other = open(t);
  assert.equal((await login(other, jwt("ES256"))).ok, true);
  const huge = jwt("HS256", { claims: { more: "x".repeat(1_000_000) } });
  const page = open(t);
  page.socket.emit("user_login", { tokenId: TOKEN, jwt: huge });
  await page.next("disconnect");
  const listed = await server.fetch("/api/inbox/1", { headers: { Authorization: `Bearer ${huge}` } });
  assert.equal(listed.status, 431);
  assert.equal((await login(other, jwt("ES256"))).ok, true);
});
