// `make sbom`: it lists what is locked and in the binary, nothing else, and the same each time.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { test } from "node:test";

const at = (path) => new URL(`../../${path}`, import.meta.url);

function made() {
  execFileSync(at("scripts/sbom").pathname, { timeout: 60_000 });
  return readFileSync(at("target/sbom/tidings.cdx.json"), "utf8");
}

test("the list of components agrees with the lock files", () => {
  const text = made();
  const { metadata, components, dependencies } = JSON.parse(text);
  const lock = readFileSync(at("Cargo.lock"), "utf8");
  const npm = JSON.parse(readFileSync(at("client/package-lock.json"), "utf8")).packages;

  for (const { name, version, purl, hashes } of components.filter(({ purl }) => purl.startsWith("pkg:cargo/"))) {
    assert.ok(lock.includes(`name = "${name}"\nversion = "${version}"\n`), purl);
    assert.ok(lock.includes(`checksum = "${hashes[0].content}"`), purl);
  }
  for (const [path, { version, dev }] of Object.entries(npm)) {
    if (!path || dev) continue;
    const name = path.split("node_modules/").at(-1);
    assert.ok(components.some((found) => found.name === name && found.version === version), path);
  }
  const scope = (wanted) => components.find(({ name }) => name === wanted)?.scope;
  assert.deepEqual(["tokio", "sqlite", "socket.io-client"].map(scope), ["required", "required", "required"]);
  assert.equal(scope("cc"), "excluded", "it builds, and is not in the binary");
  assert.deepEqual(["proptest", "reqwest", "sqlx-mysql"].map(scope), [undefined, undefined, undefined]);

  const refs = [metadata.component, ...components].map((found) => found["bom-ref"]);
  assert.equal(new Set(refs).size, refs.length, "each stands once");
  assert.deepEqual(dependencies.flatMap(({ dependsOn }) => dependsOn).filter((ref) => !refs.includes(ref)), []);
  const needed = new Set(dependencies.flatMap(({ dependsOn }) => dependsOn));
  assert.deepEqual(refs.slice(1).filter((ref) => !needed.has(ref)), [], "something needs each of them");
  assert.equal(made(), text);
});
