//! Tidings: a persistent notification service with an offline inbox. This page is the map.
//!
//! Who may know whom (a script in the gate checks it):
//! `main -> app -> { http, realtime } -> inbox -> { store, bus } -> notification`
//!
//! - [`notification`]: the words as types; parsing is validation, no I/O.
//! - [`store`]: the only place with SQL: reads, and the group-committing writer that every write goes through.
//! - [`bus`]: hints between nodes, never the truth; a single node has nobody to tell.
//! - [`inbox`]: the use cases, the hub (who is here) and the pump (the one sender of each session).
//! - [`http`]: the push, the inbox and the pages. [`realtime`]: Socket.IO. Both are thin and do not know each other.
//! - [`access`]: who may do what: keys, signed logins, and whom to let in without.
//! - [`limits`]: how often and how many, by key, address and socket.
//! - [`metrics`]: every counter's name, unit and help.
//! - [`config`]: one struct of flags. [`app`]: puts everything together and takes it down in order.
//!
//! What always holds:
//! - A push is answered after its rows are durable; a receipt is confirmed after its commit.
//! - Every `rev` of an inbox is exactly one event, in `notification` or in `inbox_change`; no gap, no order but this.
//! - Only its pump sends events to a session, whoever holds it at the moment, and its cursor only grows: no duplicates, no
//!   disorder.
//! - Attach, then read: whatever is committed after a login's read wakes its pump. Hints only save time.
//! - Every queue, page and buffer is bounded, and what happens when it is full stands where it is made.
//! - A change of many rows is done in steps, so it holds up nobody's push for longer than one. All of this holds after each
//!   step, and a change that ends half way is completed by the same request again.
//!
//! # One push
//! 1. `http::push` reads at most the body limit, `http::body` checks it into a [`notification::NewPush`].
//! 2. [`inbox::Inbox::push`] guards its idempotency key and queues it at the [`store::Writer`].
//! 3. The writer takes all that is queued; the committer raises each inbox's `rev`, inserts the rows and commits. On SQLite
//!    the usual batch is one trip to the database's thread, on Postgres one statement.
//! 4. While the database works on the next batch, the events go to the bus and the [`inbox::Hub`], which fills the rings. An
//!    idle session's pump is parked in it: `receive_message` is sent right there, and no task wakes.
//! 5. The producer is answered with the id and each token's `seq`.
//!
//! # One login
//! 1. `realtime::client` takes `user_login` from the socket's queue, after whatever came before it.
//! 2. [`inbox::Inbox::login`] attaches a session to the hub, and only then reads the head, together with other logins.
//! 3. The undelivered rows up to that head are read, a page at a time and when it is this reader's turn; for a client with a
//!    cursor up to that, and then every event beyond it.
//! 4. The callback gets `{ok, epoch, rev, unread, undelivered}`, then the pump starts and replays. It has a task only while it
//!    reads or pauses.
//! 5. After `replay_complete` its cursor stands at the head; everything beyond comes from the ring or the table.
//!
//! # One ack
//! 1. `realtime::client` takes `ack` and hands it to `realtime::receipts` at once, unless a login is still being done before it.
//! 2. [`inbox::Inbox::received`] makes room in the session's window, and its pump sends what waited for that.
//! 3. Without a callback the ids go to the writer's pending acks, which nobody waits for; else it is merged with the receipts
//!    of this socket that wait, and queued at the writer when those before it are stored.
//! 4. In a transaction of the next moment the rows are marked delivered, and nothing else. The inbox's watermark
//!    `delivered_upto` is a lower bound that moves later: at a login, at the end of a session, after a thousand acks.
//! 5. A read also changes `unread`, takes a `rev` of its own and is told to the other sessions as `inbox_changed`.
//! 6. After the commit the client's callbacks are called.
//!
//! # One large change
//! 1. Reading all, acking up to a rev, retracting, erasing, releasing and expiring begin like any receipt or edit, with a
//!    transaction of a bounded number of rows.
//! 2. What is left goes on in [`store`]'s writer, a step at a time and in turns with others, between the jobs of the queue.
//!    Its rows adapt to `--step-ms`; counts are exact after each.
//! 3. The caller is answered after the last step. A repeat joins a change in progress, or completes it after a restart.

pub mod access;
pub mod app;
pub mod bus;
pub mod config;
#[cfg(test)]
mod docs;
#[cfg(test)]
mod fuzzed;
pub mod http;
pub mod inbox;
pub mod limits;
pub mod metrics;
pub mod notification;
pub mod realtime;
pub mod store;
