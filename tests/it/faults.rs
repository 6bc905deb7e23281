//! Faults and abuse, each test one thing that goes wrong in earnest: killed processes, swallowed answers, full and broken
//! disks, races, hostile clients and hostile text. What may be seen then is decided by the oracle wherever load is involved.

mod churn;
mod crash;
mod database;
mod disk;
mod files;
mod packets;
mod races;
mod steps;
mod text;
mod transports;
mod unread;
mod wal;
