//! Socket.IO: what is read from and written to a socket, and nothing of what it means.
//!
//! Speaks to clients of protocol v5 (socket.io-client 3 and 4) and v4 (2.x). Rooms and adapters of the library are not
//! used: they drop what does not fit a buffer and cannot say for whom.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use socketioxide::extract::{AckSender, Event, SocketRef, TryData};
use socketioxide::{ParserConfig, service::SocketIoService};
use socketioxide::{SocketIo, handler::ConnectHandler};

use crate::inbox::Inbox;

mod client;
mod lean;
mod wire;

pub use lean::lean;

use client::Client;

/// Every bound of the transport.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the engine answers, `/socket.io` unless configured; no slash at the end.
    pub path: String,
    /// The engine asks a socket for a sign of life this often.
    pub ping_interval: Duration,
    /// And closes it when none came for this long.
    pub ping_timeout: Duration,
    /// A socket that has not logged in by then is closed.
    pub login_timeout: Duration,
    /// Client events that may wait for a socket's worker.
    pub event_queue: usize,
    /// Bytes of one message of a client.
    pub max_message_bytes: usize,
    /// Bytes of a token.
    pub max_token_bytes: usize,
}

/// Read buffer of a websocket: clients send little, and each idle socket keeps it.
const WS_READ_BUFFER: usize = 512;

/// The Socket.IO side of the service.
#[derive(Clone)]
pub struct Realtime {
    io: SocketIo,
}

impl Realtime {
    /// Makes the engine and the service that answers below [`Settings::path`].
    #[must_use]
    pub fn new(inbox: &Arc<Inbox>, settings: Settings) -> (Self, SocketIoService<axum::Router>) {
        let (service, io) = SocketIo::builder()
            .req_path(settings.path.clone())
            .ping_interval(settings.ping_interval)
            .ping_timeout(settings.ping_timeout)
            .connect_timeout(settings.login_timeout)
            .max_payload(settings.max_message_bytes as u64)
            .ws_read_buffer_size(WS_READ_BUFFER)
            .ws_max_message_size(settings.max_message_bytes)
            .ws_max_frame_size(settings.max_message_bytes)
            .with_parser(ParserConfig::common().max_incoming_binary_buf_size(settings.max_message_bytes))
            .build_with_inner_svc(axum::Router::new());
        let settings = Arc::new(settings);
        let connected = |_: SocketRef| std::future::ready(());
        let inbox = Arc::clone(inbox);
        // As a middleware, because that runs before the client is told that it is connected: handlers registered later
        // would miss a login that comes at once.
        let register = move |socket: SocketRef| {
            listen(&socket, &inbox, &settings);
            std::future::ready(Ok::<(), Infallible>(()))
        };
        io.ns("/", connected.with(register));
        (Self { io }, service)
    }

    /// Tells every socket that the server goes away and when to come back.
    pub async fn announce_drain(&self, retry: Duration) {
        let retry_ms = u64::try_from(retry.as_millis()).unwrap_or(u64::MAX);
        // A socket whose buffer is full learns it by being closed.
        self.io.emit("server_draining", &json!({"retryMs": retry_ms})).await.ok();
    }

    /// Closes every socket.
    pub async fn close(&self) {
        self.io.close().await;
    }
}

/// Registers the handlers of one socket. The body of a handler runs in the order the events came, what it returns does
/// not: so the event goes into the socket's queue in the body. One handler for all events costs an idle socket less
/// memory than one each.
fn listen(socket: &SocketRef, inbox: &Arc<Inbox>, settings: &Arc<Settings>) {
    let client = Client::new(Arc::clone(inbox), Arc::clone(settings));
    Client::expect_login(&client, socket.clone());
    let gone = Arc::clone(&client);
    socket.on_fallback(move |socket: SocketRef, Event(name): Event, TryData(payload): TryData<_>, ack: AckSender| {
        client.take(socket, &name, payload, ack);
        std::future::ready(())
    });
    socket.on_disconnect(move || {
        gone.leave();
        std::future::ready(())
    });
}
