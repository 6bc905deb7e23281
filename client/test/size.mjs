// What the core costs a page that bundles it, and the element beside it: minified, compressed, without socket.io-client. And that importing the core does
// nothing, so that a bundler can leave out what is not used. And that it names nothing that React Native lacks.

import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

import { build } from "esbuild";

const BUDGET = 8_448;
const ELEMENT_BUDGET = 12_288;

const bundled = async (contents, options) => {
  const resolveDir = fileURLToPath(new URL("..", import.meta.url));
  const { outputFiles } = await build({
    stdin: { contents, resolveDir },
    external: ["socket.io-client", "react", "vue"],
    bundle: true,
    minify: true,
    format: "esm",
    write: false,
    logLevel: "error",
    ...options,
  });
  return outputFiles[0].text;
};

// By the package's own name, as a page does: this also goes through `exports`.
const code = await bundled('export * from "tidings-client"');
// What React Native has not, or has by the name alone. No test shows that: node and browsers need it themselves.
assert.doesNotMatch(code, /\b(crypto|URL|URLSearchParams|structuredClone)\b/);
const core = gzipSync(code, { level: 9 }).length;
assert.ok(core < BUDGET, `the core has ${core} bytes, and may have ${BUDGET}`);

const besides = {
  name: "besides",
  setup: ({ onResolve }) => onResolve({ filter: /\/client\.js$|\/languages\/|\/alerts\.js$/ }, ({ path }) => ({ path, external: true })),
};
// Without its languages and what tells of a notification beyond the list, which a bundler that splits code loads when they are needed, as pages without one do.
const beside = await bundled('export * from "tidings-client/inbox"', { plugins: [besides] });
const element = gzipSync(beside, { level: 9 }).length;
assert.ok(element < ELEMENT_BUDGET, `the element has ${element} bytes, and may have ${ELEMENT_BUDGET}`);

// Here `sideEffects` counts for nothing, so what is left is what the modules really do.
for (const entry of ["tidings-client", "tidings-client/react", "tidings-client/svelte", "tidings-client/vue"]) {
  const left = await bundled(`import "${entry}"`, { ignoreAnnotations: true });
  const done = left.replaceAll(/import[^"]*"(socket\.io-client|react|vue)";?/g, "").trim();
  assert.equal(done, "", `importing ${entry} does something`);
}
assert.match(await bundled('import "tidings-client/inbox"'), /customElements/, "importing the element registers it");

console.log(`core: ${core} bytes of ${BUDGET}, element: ${element} of ${ELEMENT_BUDGET}`);
