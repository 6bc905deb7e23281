// The old pages of examples/, with every major version of socket.io-client.

import { expect, onTestFinished, test } from "vitest";

import { listen, listenAndAck } from "../examples/old-page.js";
import { eventually, Server } from "./server.js";

test.each(["socket.io-client-2", "socket.io-client-3", "socket.io-client"])("an old page works with %s", async (library) => {
  const io = (await import(library)).default;
  const server = await Server.start();
  const visit = (how: typeof listen) => {
    const shown: unknown[] = [];
    const url = `${server.url}?visit=${Math.random()}`; // or version 2 would use the connection of the visit before
    const socket = how(io, url, "7", ({ data }: { data: unknown }) => shown.push(data));
    onTestFinished(() => void socket.close());
    const shows = (data: unknown[]) => eventually(async () => shown.length === data.length, `${data.length} are shown`);
    return { socket, shown, shows };
  };
  await server.push("7", "waited");
  for (let times = 0; times < 2; times += 1) {
    const { socket, shown, shows } = visit(listen);
    await shows(["waited"]);
    expect(shown).toEqual(["waited"]);
    socket.close();
  }
  const { socket, shown, shows } = visit(listenAndAck);
  await shows(["waited"]);
  await server.push("7", "live");
  await shows(["waited", "live"]);
  expect(shown).toEqual(["waited", "live"]);
  await server.untilDelivered("7");
  socket.close();
});
