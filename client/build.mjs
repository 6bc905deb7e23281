// Builds the client: dist/ is what the server embeds and serves below /client/, for pages without a bundler, and lib/ is what
// npm publishes, modules with types and, in lib/cjs/, the same as CommonJS in ES2017 for tools that take nothing newer. The Socket.IO bundles go to dist/ too: the server offers them below its socket
// path, where pages written for the Node server look for them.

import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

import { build, transformSync } from "esbuild";

const path = (relative) => fileURLToPath(new URL(relative, import.meta.url));

// What an earlier build left would be embedded too.
mkdirSync(path("dist/"), { recursive: true });
for (const file of readdirSync(path("dist/"))) if (file !== ".gitkeep") rmSync(path(`dist/${file}`));
for (const bundle of ["socket.io.js", "socket.io.min.js", "socket.io.esm.min.js"]) {
  for (const file of [bundle, `${bundle}.map`]) {
    copyFileSync(path(`node_modules/socket.io-client/dist/${file}`), path(`dist/${file}`));
  }
}

// The page /docs of the server.
copyFileSync(path("node_modules/rapidoc/dist/rapidoc-min.js"), path("dist/rapidoc.js"));

// The sheet of the element is a string, which no minifier looks into.
const withSmallSheet = (code) => {
  const small = (css) => transformSync(css, { loader: "css", minify: true, target: ["chrome123", "firefox125", "safari17.5"] }).code.trim();
  return code.replace(/(?<=const CSS = )`\n([^`]+)`/, (_, css) => JSON.stringify(small(css)));
};
const smallSheet = {
  name: "small sheet",
  setup: ({ onLoad }) =>
    onLoad({ filter: /(style|alerts)\.ts$/ }, ({ path }) => ({ contents: withSmallSheet(readFileSync(path, "utf8")), loader: "ts" })),
};

const common = { bundle: true, minify: true, sourcemap: true, target: "es2022", logLevel: "warning" };

await build({ ...common, entryPoints: [path("src/index.ts")], format: "esm", outfile: path("dist/tidings.js") });

// The element takes the client from the file beside it, so that a page that loads both has it once, and the
// parts that not every page needs from theirs, when it does.
const external = (filter, pathOf) => ({
  name: `external ${filter}`,
  setup: ({ onResolve }) => onResolve({ filter }, ({ path }) => ({ path: pathOf(path), external: true })),
});
const besides = external(/^\.\.\/client\.js$/, () => "./tidings.js");
const LATER = /^\.\/(languages\/|alerts\.js$)/;
const later = external(LATER, (path) => path.replace(/^\.\/(languages\/)?/, "./tidings-inbox."));
const entryPoints = [path("src/inbox/index.ts")];
await build({ ...common, entryPoints, plugins: [besides, later, smallSheet], format: "esm", outfile: path("dist/tidings-inbox.js") });

const LAZY = ["alerts.ts", ...readdirSync(path("src/inbox/languages/")).map((file) => `languages/${file}`)];
for (const file of LAZY) {
  const outfile = path(`dist/tidings-inbox.${file.replace(/^languages\//, "").replace(/ts$/, "js")}`);
  await build({ ...common, entryPoints: [path(`src/inbox/${file}`)], plugins: [smallSheet], format: "esm", outfile });
}

// A script of another origin that is no module has no address to import from but that of its tag.
const laterByScript = {
  name: "later, by the address of the script",
  setup: ({ onLoad }) =>
    onLoad({ filter: /inbox\/(messages|element)\.ts$/ }, ({ path }) => {
      const code = readFileSync(path, "utf8").replace(/(?<!typeof )import\("\.\/(?:languages\/)?(.+?)"\)/g, 'import(new URL("./tidings-inbox.$1", script).href)');
      return { contents: `const script = (globalThis.document?.currentScript as HTMLScriptElement | null)?.src;\n${code}`, loader: "ts" };
    }),
};

const all = ["./src/index.ts", "./src/inbox/index.ts"];
await build({
  ...common,
  stdin: { contents: all.map((file) => `export * from "${file}";`).join("\n"), resolveDir: path("."), loader: "ts" },
  plugins: [laterByScript, smallSheet],
  format: "iife",
  globalName: "Tidings",
  outfile: path("dist/tidings.global.js"),
});

// For browsers that take them compressed, which are all.
for (const file of readdirSync(path("dist/"))) {
  if (file !== ".gitkeep") writeFileSync(path(`dist/${file}.gz`), gzipSync(readFileSync(path(`dist/${file}`)), { level: 9 }));
}

rmSync(path("lib/"), { recursive: true, force: true });
execFileSync(process.execPath, [path("node_modules/typescript/bin/tsc"), "-p", path("tsconfig.lib.json")], { stdio: "inherit" });

for (const file of ["style", "alerts"]) {
  const sheet = path(`lib/inbox/${file}.js`);
  writeFileSync(sheet, withSmallSheet(readFileSync(sheet, "utf8")));
}

// File by file, so that all entries have the same InboxClient. Named .js: React Native's bundler passes over .cjs.
const sources = readdirSync(path("src/"), { recursive: true }).filter((file) => file.endsWith(".ts"));
await build({
  entryPoints: sources.map((file) => path(`src/${file}`)),
  plugins: [smallSheet],
  format: "cjs",
  platform: "node", // so that its names can be told by `import` as well
  target: "es2017",
  sourcemap: true,
  outdir: path("lib/cjs/"),
  logLevel: "warning",
});
for (const file of sources) {
  const types = file.replace(/\.ts$/, ".d.ts");
  copyFileSync(path(`lib/${types}`), path(`lib/cjs/${types}`));
}
writeFileSync(path("lib/cjs/package.json"), '{ "type": "commonjs" }\n');

for (const licence of ["LICENSE-APACHE", "LICENSE-MIT"]) copyFileSync(path(`../${licence}`), path(`lib/${licence}`));
