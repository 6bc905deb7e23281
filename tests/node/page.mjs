// A page of a user: a real Socket.IO client of some version, and everything that it was sent, in order.

import assert from "node:assert/strict";
import { createRequire } from "node:module";

import { within } from "./server.mjs";

const require = createRequire(import.meta.url);

const LIBRARIES = { "2.0.3": "sioc203", "2.5.0": "sioc2", "3.1.3": "sioc3", "4.8.4": "sioc4" };

export const VERSIONS = Object.keys(LIBRARIES);

export const TRANSPORTS = {
  "websocket only": ["websocket"],
  "polling only": ["polling"],
  "polling with an upgrade": ["polling", "websocket"],
};

const EVENTS = ["receive_message", "receive_messages", "replay_complete", "inbox_changed", "login_error"];
const ENDS = ["server_draining", "disconnect", "connect_error"];

export class Page {
  #arrived = [];
  #wake = () => {};

  constructor(version, url, options = {}) {
    const library = require(LIBRARIES[version]);
    this.socket = (library.io ?? library)(url, { forceNew: true, reconnection: false, ...options });
    for (const name of [...EVENTS, ...ENDS]) this.socket.on(name, (payload) => this.#arrive(name, payload));
    /** Resolves when the client has changed from polling to a websocket. */
    this.upgraded = new Promise((resolve) => this.socket.io.engine.once("upgrade", resolve));
  }

  /** Opens a page of `token`, closed at the end of the test `t`, and returns it with the answer to its login. */
  static async open(t, { version, url, token, ...options }) {
    const page = new Page(version, url, options);
    t.after(() => page.close());
    return [page, await page.login(token)];
  }

  #arrive(name, payload) {
    this.#arrived.push([name, payload]);
    this.#wake();
  }

  /** The next event, which must have this name. */
  async next(name) {
    if (this.#arrived.length === 0) await within(new Promise((resolve) => (this.#wake = resolve)), name);
    const [arrived, payload] = this.#arrived.shift();
    assert.equal(arrived, name, `instead of ${name}: ${arrived} ${JSON.stringify(payload)}`);
    return payload;
  }

  async messages(count) {
    const messages = [];
    while (messages.length < count) messages.push(await this.next("receive_message"));
    return messages;
  }

  call(name, ...payload) {
    return within(new Promise((resolve) => this.socket.emit(name, ...payload, resolve)), `the answer to ${name}`);
  }

  /** Waits until the client is connected again; what it noted of its failed attempts is forgotten. */
  async reconnected() {
    if (!this.socket.connected) {
      await within(new Promise((resolve) => this.socket.once("connect", resolve)), "the client to come back");
    }
    this.#arrived = [];
  }

  /** Logs in as the pages of old do. The answer goes through the same queue as all else: it must come first. */
  async login(token) {
    const login = () => {
      const payload = { tokenId: token, userId: token, socketId: this.socket.id };
      this.socket.emit("user_login", payload, (answer) => this.#arrive("login answer", answer));
    };
    if (this.socket.connected) login();
    else this.socket.once("connect", login);
    return await this.next("login answer");
  }

  /** Asserts that nothing was sent that was not looked at. A second login answers again, behind all that was sent. */
  async expectNothingMore(token) {
    assert.equal((await this.login(token)).ok, true);
    assert.deepEqual(this.#arrived, []);
  }

  close() {
    this.socket.close();
  }
}
