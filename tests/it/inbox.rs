//! The inbox over Socket.IO: login and replay, live delivery, receipts, the window, and who may do what.

mod announce;
mod flow;
mod gaps;
mod heartbeat;
mod list;
mod login;
mod model;
mod receipts;
mod replay;
mod retention;
mod state;
mod strangers;
mod sync;
mod time;
