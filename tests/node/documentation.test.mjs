// Everything that the documentation names exists: links and their anchors, commands, flags, variables, metrics and files.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync, readdirSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { BINARY } from "./server.mjs";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const read = (path) => readFileSync(join(ROOT, path), "utf8");

const PAGES = new Map(
  [
    "README.md",
    "SECURITY.md",
    "client/README.md",
    ...readdirSync(join(ROOT, "docs"), { recursive: true })
      .filter((path) => path.endsWith(".md"))
      .map((path) => join("docs", path)),
  ].map((path) => [path, read(path)]),
);
const FILES = readdirSync(join(ROOT, "deploy")).map((file) => read(`deploy/${file}`));

const blocksOf = (text) => [...text.matchAll(/```sh\n([^]*?)```/g)].map(([, block]) => block);
const withoutBlocks = (text) => text.replace(/^```[^]*?^```/gm, "");
const inlineOf = (text) => [...withoutBlocks(text).matchAll(/`([^`]+)`/g)].map(([, code]) => code);
const flagsOf = (text) => text.match(/(?<![\w-])--[a-z][a-z0-9-]*/g) ?? [];

const helps = new Map();
/** What `tidings WORDS --help` says. */
function help(words) {
  const key = words.join(" ");
  if (!helps.has(key)) helps.set(key, execFileSync(BINARY, [...words, "--help"], { encoding: "utf8" }));
  return helps.get(key);
}

/** The anchors that a renderer gives to the headings of a page. */
function anchorsOf(text) {
  const headings = [...withoutBlocks(text).matchAll(/^#+ (.+)$/gm)].map(([, heading]) => heading);
  return headings.map((heading) => heading.toLowerCase().replace(/[^\p{L}\p{N}\- _]/gu, "").replaceAll(" ", "-"));
}

test("every link of the documentation leads somewhere", () => {
  for (const [page, text] of PAGES) {
    for (const [, target] of withoutBlocks(text).matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^https?:/.test(target)) continue;
      const [path, anchor] = target.split("#");
      const file = path === "" ? page : normalize(join(dirname(page), path));
      assert.ok(existsSync(join(ROOT, file)), `${page} links ${target}`);
      if (anchor !== undefined && PAGES.has(file)) {
        assert.ok(anchorsOf(PAGES.get(file)).includes(anchor), `${page} links ${target}, a heading that is not there`);
      }
    }
  }
});

test("every page is linked by the README and by the index of the documentation", () => {
  for (const page of PAGES.keys()) {
    if (!page.startsWith("docs/") || page === "docs/README.md") continue;
    assert.ok(PAGES.get("README.md").includes(`](${page})`), `README.md links ${page}`);
    assert.ok(PAGES.get("docs/README.md").includes(`](${page.slice("docs/".length)})`), `docs/README.md links ${page}`);
  }
});

test("every command, flag, variable, metric and file that is named exists", () => {
  const texts = [...PAGES.values()];
  const commands = texts
    .flatMap((text) => [...blocksOf(text), ...inlineOf(text), ...(text.match(/^ {4}tidings .*$/gm) ?? [])])
    .flatMap((text) => text.replaceAll("\\\n", " ").split(/\n|&&/))
    .flatMap((line) => line.match(/^ *(?:sudo -u tidings |podman run --rm .* )?tidings +(.*)$/)?.[1] ?? []);
  assert.ok(commands.length >= 15, `${commands.length} commands`);
  for (const command of commands) {
    const words = command.match(/^[a-z ]*/)[0].split(" ").filter(Boolean);
    const known = flagsOf(help(words));
    assert.deepEqual(flagsOf(command.replace(/#.*/, "")).filter((flag) => !known.includes(flag)), [], `tidings ${command}`);
  }

  // Of other programs; the element's custom properties look like flags too.
  const foreign = ["--quick", "--only", "--rounds", "--features", "--no-default-features"];
  const inline = texts.flatMap(inlineOf).filter((code) => /^--(?!tidings-)/.test(code));
  const named = [...inline, ...FILES.flatMap((text) => text.match(/#.*/g))];
  const all = [[], ["migrate"], ["sign"], ["key", "add"], ["epoch"], ["copy"]].flatMap((words) => flagsOf(help(words)));
  const known = new Set([...all, ...foreign]);
  assert.deepEqual([...new Set(named.flatMap(flagsOf))].filter((flag) => !known.has(flag)), [], "flags");

  const variables = [...texts, ...FILES].join("\n").match(/\b(TIDINGS_[A-Z0-9_]+|DATABASE_URL)\b/g);
  const tests = ["TIDINGS_BIN"];
  const unknown = variables.filter((name) => !help([]).includes(`[env: ${name}`) && !tests.includes(name));
  assert.deepEqual(unknown, [], "variables");

  const metrics = texts.flatMap(inlineOf).flatMap((code) => code.match(/tidings_[a-z_]+/g) ?? []);
  const counted = read("src/metrics.rs");
  const roles = ["tidings_owner", "tidings_app", "tidings_admin"];
  assert.ok(metrics.length >= 20);
  const gone = metrics.filter((name) => !roles.includes(name) && !counted.includes(`"${name.replace(/_bucket$/, "")}"`));
  assert.deepEqual(gone, [], "metrics");

  for (const text of texts) {
    for (const [path] of text.matchAll(/(?<![\w./])deploy\/[A-Za-z]+(?:\.[a-z]+)?/g)) {
      if (path !== "deploy/tidings") assert.ok(existsSync(join(ROOT, path)), path);
    }
  }
});
