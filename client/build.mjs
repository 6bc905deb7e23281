// Copies the Socket.IO client bundles to dist/, from where the Rust build embeds them. The server offers them below its
// socket path, where pages written for the Node server look for them.

import { copyFileSync, mkdirSync } from "node:fs";

const from = new URL("node_modules/socket.io-client/dist/", import.meta.url);
const to = new URL("dist/", import.meta.url);

mkdirSync(to, { recursive: true });
for (const bundle of ["socket.io.js", "socket.io.min.js", "socket.io.esm.min.js"]) {
  for (const file of [bundle, `${bundle}.map`]) copyFileSync(new URL(file, from), new URL(file, to));
}
