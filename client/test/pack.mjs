// What npm would publish: these files, and no other.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const CORE = ["client", "credentials", "index", "patience", "react", "session", "state", "storage", "tabs", "types"];
const INBOX = ["announcer", "dom", "element", "index", "place", "row", "strings", "style", "time"];

const root = fileURLToPath(new URL("..", import.meta.url));
const modules = [...CORE.map((name) => `lib/${name}`), ...INBOX.map((name) => `lib/inbox/${name}`)];
const wanted = ["README.md", "package.json", "lib/LICENSE-APACHE", "lib/LICENSE-MIT", ...modules.flatMap((name) => [`${name}.d.ts`, `${name}.js`, `${name}.js.map`])];

const listed = execFileSync("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], { cwd: root, encoding: "utf8" });
const [{ files }] = JSON.parse(listed);
assert.deepEqual(files.map(({ path }) => path).sort(), wanted.sort());

const { exports, dependencies } = JSON.parse(readFileSync(`${root}/package.json`, "utf8"));
assert.deepEqual(Object.keys(dependencies), ["socket.io-client"]);
for (const entry of Object.values(exports).flatMap((entry) => (typeof entry === "string" ? entry : Object.values(entry)))) {
  assert.ok(existsSync(`${root}/${entry}`), `${entry} is exported and not there`);
}
// A source map that cannot be followed is none.
for (const name of modules) {
  const { sourcesContent } = JSON.parse(readFileSync(`${root}/${name}.js.map`, "utf8"));
  assert.equal(sourcesContent?.length, 1, `${name}.js.map has its source`);
}

console.log(`package: ${files.length} files`);
