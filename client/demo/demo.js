// The demo page: two users side by side, each with an InboxClient of its own and a <tidings-inbox> that shows it; a form
// that pushes as a backend does; and the rows of the table as they change. `?users=carol,dave` takes others than Alice
// and Bob.

const ROWS = 12; // of both users together
const TOAST_MS = 5000;
const MARK_MS = 2500;
const AGAIN_MS = 400; // a receipt is stored a moment after its message came, and no event tells the page
const AGAIN_AT_MOST = 10;
const NAMES = ["Mia", "Noah", "Lina", "Omar", "Zoe", "Jun", "Ada", "Luis"];

const element = (id) => document.getElementById(id);
const [pushForm, keysForm] = [element("push"), element("keys")];
const socketPath = document.documentElement.dataset.socketPath;

const named = new Set((new URLSearchParams(location.search).get("users") || "alice,bob").split(",").filter(Boolean));
const users = [...named].slice(0, 2).map((token) => ({ token, online: true }));

// Without npm the server has no client to give; then there is only the form to send, and the table.
const modules = await Promise.all([import("/client/tidings.js"), import("/client/tidings-inbox.js")]).catch(
  () => undefined,
);
const InboxClient = modules?.[0].InboxClient;

const STATES = {
  connecting: "connecting…",
  "catching-up": "catching up…",
  live: "online",
  offline: "offline, trying to come back",
};

const titled = (token) => token.charAt(0).toUpperCase() + token.slice(1);

// The users

/** Makes the card of a user, without a client yet. */
function makeCard(user) {
  const card = element("user").content.cloneNode(true).firstElementChild;
  const parts = [".avatar", "h2", ".state", ".switch", "tidings-inbox"];
  const [avatar, name, state, toggle, inbox] = parts.map((part) => card.querySelector(part));
  Object.assign(user, { card, state, toggle, inbox });
  avatar.textContent = titled(user.token).charAt(0);
  name.textContent = titled(user.token);
  name.id = `user-${users.indexOf(user)}`;
  card.setAttribute("aria-labelledby", name.id);
  toggle.ariaLabel = `${titled(user.token)} is online`;
  toggle.disabled = !InboxClient;
  toggle.addEventListener("click", () => setOnline(user, !user.online));
  inbox.addEventListener("tidings-toast", ({ detail }) => toast(card.querySelector(".toasts"), inbox.textOf(detail)));
  element("users").append(card);
  showState(user);
}

/** Makes the box of the form that sends to this user. */
function makeChip({ token }) {
  const [label, box, text] = ["label", "input", "span"].map((name) => document.createElement(name));
  Object.assign(box, { type: "checkbox", name: "tokens", value: token, checked: true });
  text.textContent = titled(token);
  label.className = "chip";
  label.append(box, " ", text);
  element("to").append(label);
}

/** Gives the user a new client, which is connected unless the user is offline. */
function open(user) {
  user.client?.close();
  user.client = new InboxClient({ token: user.token, path: socketPath, credential: user.credential });
  user.client.on("change", () => {
    showState(user);
    refresh();
  });
  user.client.on("error", ({ code }) => code === "unauthorized" && askForKeys());
  user.inbox.client = user.client;
  if (user === users[0]) element("bell").client = user.client;
  setOnline(user, user.online);
}

function setOnline(user, online) {
  user.online = online;
  if (online) user.client.connect();
  else {
    user.client.close();
    user.card.querySelector(".toasts").replaceChildren();
  }
  showState(user);
  refresh();
}

function showState(user) {
  const { name, reason } = user.client?.status ?? { name: "offline" };
  user.toggle.ariaChecked = String(Boolean(InboxClient) && user.online);
  const isTrying = user.online && InboxClient;
  user.state.textContent = !isTrying ? "offline" : reason === "unauthorized" ? "not logged in" : STATES[name];
  user.card.dataset.state = user.online ? name : "away";
  const unread = users.reduce((sum, { client }) => sum + (client?.unread ?? 0), 0);
  document.title = unread ? `(${unread}) Tidings` : "Tidings";
}

/** The inbox reads it out already, so this is for the eye only. */
function toast(place, text) {
  const shown = document.createElement("p");
  shown.className = "toast";
  shown.ariaHidden = "true";
  shown.dir = "auto";
  shown.textContent = text;
  place.replaceChildren(shown);
  setTimeout(() => shown.remove(), TOAST_MS);
}

// The form

pushForm.addEventListener("change", () => {
  element("comment").hidden = pushForm.elements.entityType.value !== "comment";
});
pushForm.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { entityType, from, text, group } = Object.fromEntries(new FormData(pushForm));
  const tokens = new FormData(pushForm).getAll("tokens");
  const data = { comment: { from, text }, "order.shipped": orderOf(from) }[entityType] ?? { from };
  const grouped = group ? { groupKey: `${entityType}-7`, actor: from } : {};
  element("pushed").textContent = await push({ tokens, entityType, data, ...grouped });
  // The next one comes from somebody else, unless the visitor has somebody in mind.
  const at = NAMES.indexOf(from);
  if (at >= 0) pushForm.elements.from.value = NAMES[(at + 1) % NAMES.length];
  refresh();
});

/** A notification with all that the inbox shows of one. */
const orderOf = (name) => ({
  title: "Your order is on its way",
  body: `${name} has packed it, and it arrives on Tuesday.`,
  url: "#table-title",
  actor: { name },
  actions: [{ label: "Track it", url: "#table-title" }],
});

/** What a backend does. Says what became of it. */
async function push(body) {
  try {
    const headers = { "Content-Type": "application/json", ...producer() };
    const response = await fetch("/api", { method: "POST", headers, body: JSON.stringify(body) });
    const answer = await response.json();
    if (response.status === 401) askForKeys();
    if (!response.ok) return `Refused: ${answer.detail}.`;
    const stored = answer.results.map(
      ({ token, seq, groupedInto }) => `${groupedInto ? "into " : ""}#${seq} of ${token}`,
    );
    return `Stored: ${stored.join(", ") || "for nobody"}.`;
  } catch {
    return "The server did not answer, so it is not known whether this was stored.";
  }
}

// The table

let refreshing = false;
let wanted = false;
let again = 0;

/** Reads the rows anew; calls that come meanwhile are one more. */
async function refresh() {
  again = AGAIN_AT_MOST;
  await read();
}

async function read() {
  wanted = true;
  if (refreshing) return;
  refreshing = true;
  try {
    while (wanted) {
      wanted = false;
      const lists = await Promise.all(users.map(list));
      show(lists.flat().sort((a, b) => b.createdAt.localeCompare(a.createdAt) || a.token.localeCompare(b.token)));
    }
    element("listed").textContent = "";
  } catch (error) {
    element("listed").textContent =
      error instanceof Refused ? `Refused: ${error.message}.` : "The server does not answer.";
  }
  refreshing = false;
}

class Refused extends Error {}

async function list(user) {
  const path = `/api/inbox/${encodeURIComponent(user.token)}?limit=${ROWS}`;
  const response = await fetch(path, { headers: { ...signed(user.credential), ...producer() } });
  const answer = await response.json();
  if (response.status === 401) askForKeys();
  if (!response.ok) throw new Refused(answer.detail);
  return answer.items.map((item) => ({ token: user.token, ...item }));
}

const cells = new Map(); // "token/seq" -> the table row, for those that are shown

function show(items) {
  const shown = items.slice(0, ROWS);
  const keys = new Set(shown.map(({ token, seq }) => `${token}/${seq}`));
  for (const [key, row] of cells) {
    if (keys.has(key)) continue;
    row.remove();
    cells.delete(key);
  }
  const isFirst = cells.size === 0;
  let next = element("rows").firstElementChild;
  for (const item of shown) {
    const key = `${item.token}/${item.seq}`;
    const row = cells.get(key) ?? element("row").content.cloneNode(true).firstElementChild;
    cells.set(key, row);
    // In place first: what lights up must not be moved while it does.
    if (row === next) next = next.nextElementSibling;
    else element("rows").insertBefore(row, next);
    for (const [at, text] of facts(item).entries()) fill(row.cells[at], String(text), !isFirst);
  }
  // Whoever is online is about to confirm what came.
  const isPending = shown.some(
    ({ token, deliveredAt }) => !deliveredAt && users.some((user) => user.token === token && isLive(user)),
  );
  if (isPending && again-- > 0) setTimeout(read, AGAIN_MS);
}

const isLive = ({ client }) => client?.status.name === "live";

function facts({ token, seq, entityType, data, group, createdAt, deliveredAt, readAt }) {
  const joined = group ? `  (${group.count}: ${group.actors.join(", ")})` : "";
  return [
    token,
    seq,
    entityType,
    JSON.stringify(data) + joined,
    clock(createdAt),
    clock(deliveredAt, "waits"),
    clock(readAt, "unread"),
  ];
}

const clock = (time, none) => (time ? new Date(time).toLocaleTimeString() : none);

/** Shows a fact; one that is not what it was lights up for a while. */
function fill(cell, text, mark) {
  if (cell.textContent === text) return;
  cell.textContent = text;
  cell.dataset.fact = text;
  if (mark) cell.animate({ backgroundColor: ["var(--mark)", "transparent"] }, { duration: MARK_MS, easing: "ease-in" });
}

// Keys, on a server that asks for them

const producer = () => (keysForm.elements.api.value ? { Authorization: `Bearer ${keysForm.elements.api.value}` } : {});

function signed(credential) {
  if (!credential) return {};
  const { kid, exp, sig, jwt } = credential;
  return { Authorization: jwt ? `Bearer ${jwt}` : `Tidings kid=${kid}, exp=${exp}, sig=${sig}` };
}

/** Makes the field of this user's login. */
function makeKeyField({ token }) {
  const [label, input] = ["label", "input"].map((name) => document.createElement(name));
  Object.assign(input, {
    name: `login-${token}`,
    autocomplete: "off",
    spellcheck: false,
    placeholder: '{"exp":…,"kid":…,"sig":…}',
  });
  label.append(`Login of ${titled(token)} `, input);
  keysForm.lastElementChild.before(label);
}

function askForKeys() {
  keysForm.hidden = false;
}

/** A signed login as `tidings sign` prints it, or a JWT. */
function credentialFrom(text) {
  if (!text.trim()) return undefined;
  try {
    const { exp, kid, sig } = JSON.parse(text);
    return { exp, kid, sig };
  } catch {
    return { jwt: text.trim() };
  }
}

keysForm.addEventListener("submit", (event) => {
  event.preventDefault();
  keysForm.hidden = true;
  for (const user of users) {
    user.credential = credentialFrom(keysForm.elements[`login-${user.token}`].value);
    if (InboxClient) open(user);
  }
  refresh();
});

// The start

element("missing").hidden = Boolean(InboxClient);
for (const user of users) {
  makeCard(user);
  makeChip(user);
  makeKeyField(user);
  if (InboxClient) open(user);
}
document.querySelector(".embed .origin").textContent = location.origin;
document.querySelector(".embed .token").textContent = users[0].token;
element("whose").textContent = `${titled(users[0].token)}’s`;
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && refresh());
refresh();
