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
//! - Only a pump sends events to a session, and its cursor only grows: no duplicates, no disorder.
//! - Attach, then read: whatever is committed after a login's read wakes its pump. Hints only save time.
//! - Every queue, page and buffer is bounded, and what happens when it is full stands where it is made.
//!
//! # One push
//! 1. `http::push` reads at most the body limit, `http::body` checks it into a [`notification::NewPush`].
//! 2. [`inbox::Inbox::push`] guards its idempotency key and queues it at the [`store::Writer`].
//! 3. The writer takes all that is queued; the committer raises each inbox's `rev`, inserts the rows and commits.
//! 4. The events go to the bus and the [`inbox::Hub`], which fills the rings and wakes the pumps of the tokens.
//! 5. The producer is answered with the id and each token's `seq`; each pump sends `receive_message`.
//!
//! # One login
//! 1. `realtime::client` takes `user_login` from the socket's queue, after whatever came before it.
//! 2. [`inbox::Inbox::login`] attaches a session to the hub, and only then reads the head, together with other logins.
//! 3. The undelivered rows up to that head are read, a page at a time and when it is this reader's turn; for a client with a
//!    cursor up to that, and then every event beyond it.
//! 4. The callback gets `{ok, epoch, rev, unread, undelivered}`, then the pump starts and replays.
//! 5. After `replay_complete` its cursor stands at the head; everything beyond comes from the ring or the table.
//!
//! # One ack
//! 1. `realtime::client` takes `ack`, together with the acks that wait behind it.
//! 2. [`inbox::Inbox::receipt`] makes room in the session's window, which may wake its pump, and queues at the writer.
//! 3. In the next transaction the rows are marked delivered and the inbox's low-water mark follows.
//! 4. A read also changes `unread`, takes a `rev` of its own and is told to the other sessions as `inbox_changed`.
//! 5. After the commit the client's callback is called.

pub mod access;
pub mod app;
pub mod bus;
pub mod config;
#[cfg(test)]
mod fuzzed;
pub mod http;
pub mod inbox;
pub mod limits;
pub mod metrics;
pub mod notification;
pub mod realtime;
pub mod store;
