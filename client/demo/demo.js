// The demo page, and a small but whole client: it acks what it has, drops what it knows, and keeps an exact count of
// what is unread.

const ACK_AFTER_MS = 50; // one ack for all that came in this time
const RETRY_MS = 1000;
const SHOWN = 200; // more than the server sends unacked, so what comes again is still known

const element = (id) => document.getElementById(id);
const [enter, list, readAll] = ["enter", "messages", "read-all"].map(element);
const tokenField = element("login").elements.token;
const pushForm = element("push");

const SENTENCES = new Map([
  ["like", (from) => `${from} liked your post`],
  ["comment", (from, text) => `${from} commented: ${text}`],
  ["follow", (from) => `${from} follows you`],
]);

let token = null; // who is logged in, or about to be
let owner = null; // whose messages are shown
let loggedIn = false;
let epoch = null; // another one means another database: nothing known counts any more
let counted = { rev: 0, unread: 0 }; // the newest count that the server gave
let newer = []; // revs of live messages that it did not include yet, ascending
let readUpTo = 0;
let comeBackMs = RETRY_MS;
let acks = [];
const shown = new Map(); // id -> { message, item }, oldest first

// The bundle comes from the server; without it there is only the form to send.
const socket = globalThis.io?.({ path: document.documentElement.dataset.socketPath, autoConnect: false });

function say(text) {
  element("status").textContent = text;
}

/** Takes a count of the server, unless a newer one is known. */
function count({ rev, unread }) {
  if (rev < counted.rev) return;
  counted = { rev, unread };
  newer = newer.filter((one) => one > rev);
  showCount();
}

function showCount() {
  const unread = counted.unread + newer.length;
  element("unread").textContent = unread;
  document.title = unread ? `(${unread}) Tidings` : "Tidings";
  readAll.disabled = !loggedIn || unread === 0;
}

function forget() {
  shown.clear();
  list.replaceChildren();
  counted = { rev: 0, unread: 0 };
  newer = [];
  readUpTo = 0;
}

function sentence({ entityType, data }) {
  const { from, text = "" } = data ?? {};
  const known = typeof from === "string" && typeof text === "string" && SENTENCES.get(entityType);
  return known ? known(from, text) : `${entityType || "notification"} ${JSON.stringify(data)}`;
}

function show(message) {
  const item = element("message").content.cloneNode(true).firstElementChild;
  const parts = [".text", ".tag", "time", ".rev", "button"];
  const [text, tag, time, rev, button] = parts.map((part) => item.querySelector(part));
  text.textContent = sentence(message);
  tag.textContent = message.replay ? "Replayed" : "Live";
  tag.classList.toggle("replayed", message.replay);
  time.textContent = new Date(message.createdAt).toLocaleString();
  time.dateTime = message.createdAt;
  rev.textContent = `#${message.rev}`;
  button.ariaLabel = `Mark read: ${text.textContent}`;
  button.addEventListener("click", () => read({ ids: [message.id] }));
  list.prepend(item);
  shown.set(message.id, { message, item });
  if (message.read || message.rev <= readUpTo) markRead(message.id);
  if (shown.size > SHOWN) {
    const [id, oldest] = shown.entries().next().value;
    oldest.item.remove();
    shown.delete(id);
  }
}

function markRead(id) {
  const item = shown.get(id)?.item;
  if (!item) return;
  item.classList.add("read");
  const button = item.querySelector("button");
  button.disabled = true;
  button.textContent = button.ariaLabel = "Read";
}

function markReadUpTo(rev) {
  readUpTo = Math.max(readUpTo, rev);
  for (const [id, { message }] of shown) if (message.rev <= rev) markRead(id);
}

/** Marks read what `selection` names; it counts when the server has stored it. */
function read(selection) {
  if (!loggedIn) return say("Log in to mark something read.");
  socket.emit("read", selection, (answer) => {
    if (!answer.ok) return say(`Not marked read: ${answer.message}`);
    selection.ids?.forEach(markRead);
    if (selection.upTo) markReadUpTo(selection.upTo);
    count(answer);
  });
}

function ack(id) {
  if (acks.push(id) === 1) setTimeout(sendAcks, ACK_AFTER_MS);
}

function sendAcks() {
  const ids = acks;
  acks = [];
  // What cannot be acked now comes again at the next login.
  if (!loggedIn || ids.length === 0) return;
  socket.emit("ack", { ids }, (answer) => answer.ok || setTimeout(() => ids.forEach(ack), RETRY_MS));
}

function receive(message) {
  ack(message.id); // also what is known: it came again because the last ack was lost
  if (shown.has(message.id)) return;
  show(message);
  if (message.rev > counted.rev) newer.push(message.rev);
  showCount();
}

function logIn(name) {
  if (name !== owner) forget();
  token = owner = tokenField.value = pushForm.elements.tokens.value = name;
  sessionStorage.setItem("token", name);
  tokenField.readOnly = true;
  enter.textContent = "Log out";
  say("Connecting…");
  socket.connect();
}

function logOut(reason) {
  sendAcks();
  token = null;
  loggedIn = false;
  sessionStorage.removeItem("token");
  socket.disconnect();
  tokenField.readOnly = false;
  enter.textContent = "Log in";
  showCount();
  say(reason);
}

function listen() {
  socket.on("connect", () => {
    socket.emit("user_login", { tokenId: token }, (answer) => {
      if (!answer.ok) return; // login_error says it
      if (answer.epoch !== epoch) forget();
      epoch = answer.epoch;
      loggedIn = true;
      count(answer);
      if (answer.unread === 0) markReadUpTo(answer.rev);
      say(`Logged in as ${token}.`);
    });
  });
  socket.on("receive_message", receive);
  socket.on("replay_complete", (done) => {
    count(done);
    say(`Logged in as ${token}. ${done.count || "Nothing"} waited; from now on it is live.`);
  });
  socket.on("inbox_changed", (change) => {
    change.changes?.forEach(({ id, readAt }) => readAt && markRead(id));
    if (change.readUpTo) markReadUpTo(change.readUpTo);
    count(change);
  });
  socket.on("login_error", ({ message }) => logOut(`Not logged in: ${message}.`));
  socket.on("server_draining", (drain) => (comeBackMs = drain.retryMs));
  socket.on("connect_error", () => say("The server does not answer, trying again…"));
  socket.on("disconnect", (reason) => {
    loggedIn = false;
    showCount();
    if (!token) return;
    say("The connection is lost, trying again…");
    // After this one the client library does not come back by itself.
    if (reason === "io server disconnect") setTimeout(() => token && socket.connect(), comeBackMs);
  });
  if (sessionStorage.getItem("token")) logIn(sessionStorage.getItem("token"));
}

element("login").addEventListener("submit", (event) => {
  event.preventDefault();
  if (token) logOut("Logged out. What is sent now waits in the database.");
  else logIn(tokenField.value);
});
readAll.addEventListener("click", () => read({ upTo: newer.at(-1) ?? counted.rev }));

pushForm.elements.entityType.addEventListener("change", ({ target }) => {
  element("comment").hidden = target.value !== "comment";
});
pushForm.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { tokens, entityType, from, text } = Object.fromEntries(new FormData(pushForm));
  const data = entityType === "comment" ? { from, text } : { from };
  const named = tokens.split(",").map((one) => one.trim()).filter(Boolean);
  element("pushed").textContent = await push({ tokens: named, entityType, data });
});

/** What a backend does. Says what became of it. */
async function push(body) {
  try {
    const headers = { "Content-Type": "application/json" };
    const response = await fetch("/api", { method: "POST", headers, body: JSON.stringify(body) });
    const answer = await response.json();
    if (!response.ok) return `Refused: ${answer.detail}.`;
    return `Stored: ${answer.results.map(({ token, seq }) => `#${seq} of ${token}`).join(", ") || "for nobody"}.`;
  } catch {
    return "The server did not answer, so it is not known whether this was stored.";
  }
}

if (socket) listen();
element("missing").hidden = Boolean(socket);
enter.disabled = !socket;
