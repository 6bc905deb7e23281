// What npm would publish: these files, and no other; and that a project which installs them can use them.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createRequire } from "node:module";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import { transformSync } from "esbuild";

const CORE = ["client", "credentials", "empty", "index", "patience", "portable", "react", "react-inbox", "session", "state", "storage", "svelte", "tabs", "types", "vue"];
const LANGUAGES = ["ar", "de", "es", "fr", "hi", "ja", "ko", "pt-BR", "ru", "zh-Hans", "zh-Hant"];
const INBOX = ["alerts", "announcer", "content", "dom", "element", "index", "isolate", "messages", "place", "reasons", "row", "strings", "style", "time"];

// A page that uses all of it.
const PAGE = `
import { InboxClient, type InboxStorage, type Item } from "tidings-client";
import { TidingsInbox } from "tidings-client/inbox";
import { useInbox } from "tidings-client/react";
import { TidingsInbox as Inbox } from "tidings-client/react/inbox";
import { inboxStore } from "tidings-client/svelte";
import { useInbox as useInboxOfVue } from "tidings-client/vue";

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

export const Panel = () => (
  <Inbox client={client} inline mode="dark" className="mine" onNavigate={({ detail }) => console.log(detail.url)} onToast={({ detail }) => console.log(detail.seq)} />
);
export const all: [number, number] = [useInboxOfVue({ token: "alice" }).unread.value, inboxStore(client).client.unread];

export const List = ({ token }: { token: string }) => <tidings-inbox token={token} client={client} inline />;
`;

// And one in CommonJS.
const OLD = `
import tidings = require("tidings-client");
import react = require("tidings-client/react");
import inbox = require("tidings-client/inbox");
const client: tidings.InboxClient = new tidings.InboxClient({ token: "alice" });
export const shown = () => [react.useInbox(client).unread, new inbox.TidingsInbox().inline];
`;

// What is exported, and by what.
const MEMBERS = [
  ["", "InboxClient"],
  ["/inbox", "TidingsInbox"],
  ["/react", "useInbox"],
  ["/react/inbox", "TidingsInbox"],
  ["/svelte", "inboxStore"],
  ["/vue", "useInbox"],
];

const KIND = /^(function|object)$/; // a component of React may be an object

const root = fileURLToPath(new URL("..", import.meta.url));
const names = [...CORE, ...INBOX.map((name) => `inbox/${name}`), ...LANGUAGES.map((name) => `inbox/languages/${name}`)];
const modules = ["lib", "lib/cjs"].flatMap((folder) => names.map((name) => `${folder}/${name}`));
const folders = ["inbox", "lib/cjs", "react", "react/inbox", "svelte", "vue"].map((folder) => `${folder}/package.json`);
const wanted = ["README.md", "package.json", ...folders, "examples/old-page.js", "examples/redux.ts", "lib/LICENSE-APACHE", "lib/LICENSE-MIT", ...modules.flatMap((name) => [`${name}.d.ts`, `${name}.js`, `${name}.js.map`])];

const listed = execFileSync("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], { cwd: root, encoding: "utf8" });
const [{ files }] = JSON.parse(listed);
assert.deepEqual(files.map(({ path }) => path).sort(), wanted.sort());

const { main, types, exports, dependencies } = JSON.parse(readFileSync(`${root}/package.json`, "utf8"));
assert.deepEqual(Object.keys(dependencies), ["socket.io-client"]);
const leaves = (entry) => (typeof entry === "string" ? [entry] : Object.values(entry).flatMap(leaves));
for (const entry of [main, types, ...leaves(exports)]) {
  assert.ok(existsSync(`${root}/${entry}`), `${entry} is exported and not there`);
}
// Nothing is left in it that a tool of 2017 could not read.
for (const name of names) {
  const code = readFileSync(`${root}/lib/cjs/${name}.js`, "utf8");
  const [old, now] = ["es2017", "esnext"].map((target) => transformSync(code, { target, format: "cjs" }).code);
  assert.equal(old, now, `lib/cjs/${name}.js is newer than ES2017`);
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
  for (const name of ["socket.io-client", "react", "redux", "vue", "@types"]) {
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
  writeFileSync(join(project, "old.cts"), OLD);
  const [, jsx] = readFileSync(`${root}/README.md`, "utf8").match(/```ts\n(.+?)```/s);
  writeFileSync(join(project, "jsx.d.ts"), jsx);
  const tsc = join(root, "node_modules/typescript/bin/tsc");
  execFileSync(process.execPath, [tsc, "-p", project], { stdio: "inherit" });
  writeFileSync(join(project, "tsconfig.json"), JSON.stringify({ compilerOptions, files: ["old.cts"] }));
  execFileSync(process.execPath, [tsc, "-p", project], { stdio: "inherit" });
  const use = `
    const { InboxClient } = await import("tidings-client");
    const { TidingsInbox } = await import("tidings-client/inbox");
    const { useInbox } = await import("tidings-client/react");
    console.log([InboxClient, TidingsInbox, useInbox].map((one) => typeof one).join());`;
  const used = execFileSync(process.execPath, ["--input-type=module", "-e", use], { cwd: project, encoding: "utf8" });
  assert.equal(used.trim(), "function,function,function");

  // By require(), as Jest does; and without `exports`, as webpack 4 and React Native's bundler find their way.
  const { exports: _, ...old } = JSON.parse(readFileSync(join(own, "package.json"), "utf8"));
  for (const description of [undefined, old]) {
    if (description) writeFileSync(join(own, "package.json"), JSON.stringify(description));
    const require = createRequire(join(project, "page.cjs"));
    for (const [name, member] of MEMBERS) {
      const file = require.resolve(`tidings-client${name}`);
      assert.match(file, /lib.cjs/, `${file} is CommonJS`);
      assert.match(typeof require(file)[member], KIND);
      assert.match(typeof (await import(file))[member], KIND);
    }
  }
} finally {
  rmSync(project, { recursive: true });
}

console.log(`package: ${files.length} files`);
