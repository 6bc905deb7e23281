// What npm would publish: these files, and no other; and that a project which installs them can use them.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import { transformSync } from "esbuild";

const CORE = ["client", "credentials", "index", "patience", "portable", "react", "session", "state", "storage", "tabs", "types"];
const INBOX = ["announcer", "dom", "element", "index", "place", "row", "strings", "style", "time"];

// A page that uses all of it.
const PAGE = `
import { InboxClient, type InboxStorage, type Item } from "tidings-client";
import { TidingsInbox } from "tidings-client/inbox";
import { useInbox } from "tidings-client/react";

const storage: InboxStorage = {
  load: async () => ({ ops: [] }),
  save: async () => {},
  addOp: async () => {},
  removeOp: async () => {},
  forget: async () => {},
};
const client = new InboxClient({ token: "alice", url: "https://notify.example.com", storage });
client.on("message", ({ id, entityType }: Item) => console.log(id, entityType));

export function bell(): TidingsInbox {
  const inbox = document.createElement("tidings-inbox");
  inbox.client = client;
  inbox.strings = { failed: ({ code, message }) => code + message, sentences: { release: () => "A release" } };
  inbox.renderItem = (item) => inbox.textOf(item);
  inbox.addEventListener("tidings-toast", ({ detail }) => console.log(detail.seq));
  return inbox;
}

export function Count({ token }: { token: string }) {
  const { unread } = useInbox({ token });
  return <b>{unread}</b>;
}

export const List = ({ token }: { token: string }) => <tidings-inbox token={token} client={client} inline />;
`;

const root = fileURLToPath(new URL("..", import.meta.url));
const modules = [...CORE.map((name) => `lib/${name}`), ...INBOX.map((name) => `lib/inbox/${name}`)];
const wanted = ["README.md", "package.json", "examples/old-page.js", "examples/redux.ts", "lib/LICENSE-APACHE", "lib/LICENSE-MIT", ...modules.flatMap((name) => [`${name}.d.ts`, `${name}.js`, `${name}.js.map`])];

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

// A link to a file that is not in the package leads nowhere.
for (const [, target] of readFileSync(`${root}/README.md`, "utf8").matchAll(/\]\(([^)]+)\)/g)) {
  assert.match(target, /^(https:|#)/, `the README links ${target}`);
}

// Without the network: the package as it is packed, and what it needs from where it was built.
const project = mkdtempSync(join(tmpdir(), "tidings-pack-"));
try {
  const own = join(project, "node_modules/tidings-client");
  const packed = execFileSync("npm", ["pack", "--json", "--ignore-scripts", "--pack-destination", project], { cwd: root });
  const [{ filename }] = JSON.parse(String(packed));
  mkdirSync(own, { recursive: true });
  execFileSync("tar", ["-xzf", join(project, filename), "-C", own, "--strip-components=1"]);
  for (const name of ["socket.io-client", "react", "redux", "@types"]) {
    symlinkSync(join(root, "node_modules", name), join(project, "node_modules", name));
  }
  const compilerOptions = {
    target: "es2022",
    module: "nodenext",
    lib: ["es2023", "dom", "dom.iterable"],
    types: [],
    jsx: "react-jsx",
    strict: true,
    exactOptionalPropertyTypes: true,
    noEmit: true,
  };
  const files = ["jsx.d.ts", "page.tsx", "node_modules/tidings-client/examples/redux.ts"];
  writeFileSync(join(project, "package.json"), '{ "type": "module" }');
  writeFileSync(join(project, "tsconfig.json"), JSON.stringify({ compilerOptions, files }));
  writeFileSync(join(project, "page.tsx"), PAGE);
  const [, jsx] = readFileSync(`${root}/README.md`, "utf8").match(/```ts\n(.+?)```/s);
  writeFileSync(join(project, "jsx.d.ts"), jsx);
  const tsc = join(root, "node_modules/typescript/bin/tsc");
  execFileSync(process.execPath, [tsc, "-p", project], { stdio: "inherit" });
  const use = `
    const { InboxClient } = await import("tidings-client");
    const { TidingsInbox } = await import("tidings-client/inbox");
    const { useInbox } = await import("tidings-client/react");
    console.log([InboxClient, TidingsInbox, useInbox].map((one) => typeof one).join());`;
  const used = execFileSync(process.execPath, ["--input-type=module", "-e", use], { cwd: project, encoding: "utf8" });
  assert.equal(used.trim(), "function,function,function");
} finally {
  rmSync(project, { recursive: true });
}

console.log(`package: ${files.length} files`);
