//! Black-box tests: every test starts the real binary on a free port with a database of its own and talks to it over
//! loopback, as a backend, a browser, an admin and a fault would. Nothing here imports the crate. The database is SQLite,
//! or Postgres where TIDINGS_TEST_DATABASE says so.
//!
//! The pieces: [`server`] (the child process), [`api`] (pushing), [`socket`] and [`polling`] (a Socket.IO client that can
//! misbehave), [`table`] (the database as an admin sees it), [`proxy`] (a network that fails), [`load`] (seeded producers
//! and readers) and [`oracle`] (what must hold of everything they saw). The tests: [`start`], [`push`], [`inbox`],
//! [`receipts`], [`faults`], [`nodes`], [`access`], [`commands`].

mod api;
mod commands;
mod documentation;
mod load;
mod oracle;
mod polling;
#[path = "../support/postgres.rs"]
mod postgres;
mod proxy;
mod redis;
mod server;
mod socket;
mod table;

mod access;
mod faults;
mod inbox;
mod nodes;
mod push;
mod receipts;
mod start;
