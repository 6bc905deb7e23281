//! Tidings: a persistent notification service with an offline inbox.
pub mod app;
pub mod bus;
pub mod config;
pub mod http;
pub mod inbox;
pub mod notification;
pub mod realtime;
pub mod store;
