//! Socket.IO: what is read from and written to a socket, and nothing of what it means.
//!
//! Speaks to clients of protocol v5 (socket.io-client 3 and 4) and v4 (2.x). Rooms and adapters of the library are not
//! used: they drop what does not fit a buffer and cannot say for whom.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::header::{CONNECTION, CONTENT_TYPE, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use socketioxide::extract::{SocketRef, TryData};
use socketioxide::handler::ConnectHandler;
use socketioxide::service::SocketIoService;
use socketioxide::socket::{DisconnectReason, Sid};
use socketioxide::{ParserConfig, ProtocolVersion, SocketIo, TransportType};
use tower::{Service, ServiceExt, service_fn};

use crate::access::{Access, ClientAddress, Credential};
use crate::inbox::Inbox;
use crate::limits::Seat;

mod announce;
mod client;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod lean;
mod line;
mod payload;
mod receipts;
mod wall_clock;
mod wire;

pub use line::{HangUp, Line};

use announce::Announcer;
use client::{Client, Incoming};
use line::{CurrentLine, EarlyLines};

/// Every bound of the transport.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the engine answers, `/socket.io` unless configured; no slash at the end.
    pub path: String,
    /// The engine asks a socket for a sign of life this often.
    pub ping_interval: Duration,
    /// And closes it when none came for this long.
    pub ping_timeout: Duration,
    /// The same for clients of protocol v4 (2.x), which ask for signs of life themselves and are used to more patience.
    pub ping_timeout_2x: Duration,
    /// How long a client may take to join the namespace, which it does at once.
    pub connect_timeout: Duration,
    /// A socket that has not logged in by then is hung up on; if it is just about to, after as long again.
    pub login_timeout: Option<Duration>,
    /// The least time between two `new_user`, which tell every socket that another one has come.
    pub announce: Option<Duration>,
    /// Client events that count for a connection each second, known or not; 0 for no limit.
    pub event_rate: u32,
    /// How long the body of a poll may take to arrive.
    pub body_timeout: Duration,
    /// Client events that may wait for a socket's worker.
    pub event_queue: usize,
    /// Bytes of one message of a client, over a websocket or by polling.
    pub max_message_bytes: usize,
    /// Bytes of a token.
    pub max_token_bytes: usize,
    /// Ids of a receipt.
    pub max_receipt_ids: usize,
}

/// Read buffer of a websocket: clients send little, and each idle socket keeps it.
const WS_READ_BUFFER: usize = 512;

/// How long a client that was disconnected may take to close its connection itself.
const HANG_UP_AFTER: Duration = Duration::from_secs(1);

/// The engine of one version of the protocol. It has one ping timeout for all its sockets, so each version has its own.
struct Engine {
    io: SocketIo,
    service: SocketIoService<axum::Router>,
}

/// The Socket.IO side of the service.
#[derive(Clone)]
pub struct Realtime {
    /// For EIO=3 and EIO=4.
    engines: Arc<[Engine; 2]>,
    inbox: Arc<Inbox>,
    access: Arc<Access>,
    settings: Arc<Settings>,
    early: EarlyLines,
    announcer: Option<Arc<Announcer>>,
}

impl Engine {
    fn new(settings: &Settings, ping_timeout: Duration) -> Self {
        let (service, io) = SocketIo::builder()
            .req_path(settings.path.clone())
            .ping_interval(settings.ping_interval)
            .ping_timeout(ping_timeout)
            .connect_timeout(settings.connect_timeout)
            .max_payload(payload::ENGINE_LIMIT.into())
            .ws_read_buffer_size(WS_READ_BUFFER)
            .ws_max_message_size(settings.max_message_bytes)
            .ws_max_frame_size(settings.max_message_bytes)
            .with_parser(ParserConfig::common().max_incoming_binary_buf_size(settings.max_message_bytes))
            .build_with_inner_svc(axum::Router::new());
        Self { io, service }
    }
}

impl Realtime {
    /// Makes the engine.
    #[must_use]
    pub fn new(inbox: &Arc<Inbox>, access: &Arc<Access>, settings: Settings) -> Self {
        let timeouts = [settings.ping_timeout_2x, settings.ping_timeout];
        let realtime = Self {
            engines: Arc::new(timeouts.map(|timeout| Engine::new(&settings, timeout))),
            inbox: Arc::clone(inbox),
            access: Arc::clone(access),
            announcer: settings.announce.map(|interval| Arc::new(Announcer::new(interval))),
            settings: Arc::new(settings),
            early: EarlyLines::default(),
        };
        realtime.engines.iter().for_each(|engine| realtime.open(&engine.io));
        realtime
    }

    /// Says what happens to clients that join the namespace.
    fn open(&self, io: &SocketIo) {
        let connected = {
            let realtime = self.clone();
            move |socket: SocketRef| {
                realtime.announce(socket.id);
                std::future::ready(())
            }
        };
        // As a middleware, because that runs before the client is told that it is connected: handlers registered later
        // would miss a login that comes at once.
        let register = {
            let realtime = self.clone();
            move |socket: SocketRef, TryData(auth): TryData<Value>| {
                realtime.listen(&socket, wire::credentials(auth.as_ref().ok()));
                std::future::ready(Ok::<(), Infallible>(()))
            }
        };
        io.ns("/", connected.with(register));
        // Where the engine looks when that one is closed. Else it would say that there is no such namespace, which a
        // client takes for final: hung up on, it comes again.
        let turn_away = {
            let realtime = self.clone();
            async move |socket: SocketRef| {
                realtime.hang_up(&socket).await;
                // Else a poll that waits would still get the refusal.
                tokio::time::sleep(HANG_UP_AFTER).await;
                Err::<(), _>("the service is stopping")
            }
        };
        let nobody = |_: SocketRef| std::future::ready(());
        io.dyn_ns("/", nobody.with(turn_away)).expect("it is the only one");
    }

    /// The engine of a version; the older one also answers those that name none, or one that is unknown.
    fn engine(&self, is_v4: bool) -> &Engine {
        &self.engines[usize::from(is_v4)]
    }

    fn engine_of(&self, query: &str) -> &Engine {
        self.engine(lean::parameter(query, "EIO") == Some("4"))
    }

    fn socket(&self, sid: Sid) -> Option<SocketRef> {
        self.engines.iter().find_map(|engine| engine.io.get_socket(sid))
    }

    /// How long a client of this version may stay silent at most.
    fn silence(&self, protocol: ProtocolVersion) -> Duration {
        let Settings { ping_interval, ping_timeout, ping_timeout_2x, .. } = *self.settings;
        ping_interval + if protocol == ProtocolVersion::V4 { ping_timeout_2x } else { ping_timeout }
    }

    /// The service that answers below [`Settings::path`]. It finds a [`HangUp`] for the connection in each request, and
    /// perhaps a [`Seat`], which it keeps as long as the socket is there.
    pub fn service(
        &self,
    ) -> impl Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static
    {
        let realtime = self.clone();
        service_fn(move |request| {
            let realtime = realtime.clone();
            async move { Ok(realtime.answer(request).await) }
        })
    }

    async fn answer(&self, request: Request) -> Response {
        if is_of_another_version(&request) {
            return version_needed();
        }
        let query = request.uri().query().unwrap_or_default();
        let opens_polling =
            lean::parameter(query, "sid").is_none() && lean::parameter(query, "transport") == Some("polling");
        let version = lean::parameter(query, "EIO");
        let limits = opens_polling.then(|| payload::Limits::new(version, None, self.settings.max_message_bytes));
        if let Some(sid) = lean::parameter(query, "sid").filter(|_| request.method() == Method::POST)
            && let Some(socket) = sid.parse().ok().and_then(|sid| self.engine_of(query).io.get_socket(sid))
            && let Some(line) = current_line(&socket)
        {
            // A connection that may be a proxy's is read on, but what a client posts waits until it may send more.
            line.released().await;
        }
        let engine = self.engine_of(query);
        let too_large = Arc::new(AtomicBool::new(false));
        let request = self.admit(request, &too_large);
        let answer = engine.service.clone().oneshot(request).await;
        let mut response = answer.unwrap_or_else(|never: Infallible| match never {}).into_response();
        if let Some(limits) = limits {
            response = payload::advertise(response, limits).await;
        }
        if too_large.load(Ordering::Relaxed) {
            // The engine only knows that it could not read the body.
            *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
        }
        response
    }

    /// Makes a request small, and notes which connection the socket uses from now on.
    fn admit(&self, request: Request, too_large: &Arc<AtomicBool>) -> Request {
        let line = request.extensions().get::<HangUp>().cloned();
        let seat = request.extensions().get::<Seat>().cloned();
        let address = request.extensions().get::<ClientAddress>().copied();
        let Settings { max_message_bytes, body_timeout, .. } = *self.settings;
        let mut request = lean::lean(request, max_message_bytes, body_timeout, too_large);
        let Some(line) = line else { return request };
        let query = request.uri().query().unwrap_or_default();
        let websocket = lean::parameter(query, "transport") == Some("websocket");
        let Some(session) = lean::parameter(query, "sid") else {
            request.extensions_mut().insert(CurrentLine::new(websocket.then_some(line), seat, address));
            return request;
        };
        if websocket && let Ok(sid) = session.parse() {
            match self.engine_of(query).io.get_socket(sid) {
                // It has one already: the engine will refuse this.
                Some(socket) if socket.transport_type() == TransportType::Websocket => {}
                Some(socket) => {
                    if let Some(current) = current_line(&socket) {
                        current.upgrade_to(line);
                    }
                }
                None => self.early.note(sid, line),
            }
        }
        request
    }

    /// Registers the handlers of one socket. The body of a handler runs in the order the events came, what it returns
    /// does not: so the event goes into the socket's queue in the body. One handler for all events costs an idle socket
    /// less memory than one each.
    fn listen(&self, socket: &SocketRef, handshake: Vec<Credential>) {
        let client = Client::new(self.clone(), handshake);
        Client::expect_login(&client, socket.id);
        let gone = Arc::clone(&client);
        socket.on_fallback(move |socket: SocketRef, event: Incoming| {
            client.take(socket, event);
            std::future::ready(())
        });
        socket.on_disconnect(move |socket: SocketRef, reason: DisconnectReason| {
            gone.leave();
            if reason == DisconnectReason::ClientNSDisconnect {
                gone.realtime().hang_up_later(&socket);
            }
            std::future::ready(())
        });
    }

    /// Ends the connection of a socket at once, whatever it is doing.
    async fn hang_up(&self, socket: &SocketRef) {
        if socket.transport_type() == TransportType::Websocket {
            self.early.hang_up(socket.id);
            if let Some(line) = current_line(socket) {
                line.hang_up();
            }
            return;
        }
        self.say_goodbye(socket.protocol(), socket.id).await;
    }

    /// Ends the connection of a client that has left the namespace, if it does not go: nothing else would. Does not keep
    /// the socket until then, nor its seat.
    fn hang_up_later(&self, socket: &SocketRef) {
        let (realtime, line) = (self.clone(), current_line(socket).map(CurrentLine::downgrade));
        let (polling, protocol, sid) =
            (socket.transport_type() == TransportType::Polling, socket.protocol(), socket.id);
        tokio::spawn(async move {
            tokio::time::sleep(HANG_UP_AFTER).await;
            realtime.early.hang_up(sid);
            if let Some(line) = line.and_then(|line| line.upgrade()) {
                line.hang_up();
            }
            if polling {
                realtime.say_goodbye(protocol, sid).await;
            }
        });
    }

    /// A polling session has no connection of its own; it ends like one whose client says goodbye.
    async fn say_goodbye(&self, protocol: ProtocolVersion, sid: Sid) {
        let (version, goodbye) = if protocol == ProtocolVersion::V4 { (3, "1:1") } else { (4, "1") };
        let uri = format!("{}/?EIO={version}&transport=polling&sid={sid}", self.settings.path);
        let request = Request::post(uri).body(Body::from(goodbye)).expect("the path was checked and ids are plain");
        self.engine(version == 4).service.clone().oneshot(request).await.ok();
    }

    /// Tells every socket that the server goes away and when to come back.
    pub async fn announce_drain(&self, retry: Duration) {
        let retry_ms = u64::try_from(retry.as_millis()).unwrap_or(u64::MAX);
        // A socket whose buffer is full learns it by being closed.
        for engine in &*self.engines {
            engine.io.emit("server_draining", &json!({"retryMs": retry_ms})).await.ok();
        }
    }

    /// Closes every socket.
    pub async fn close(&self) {
        for engine in &*self.engines {
            engine.io.close().await;
        }
    }
}

/// The only version of the websocket protocol there is (RFC 6455 section 4.1).
const WEBSOCKET_VERSION: &str = "13";

/// Whether a client begins a websocket in a version that the engine does not speak. It would not look.
fn is_of_another_version(request: &Request) -> bool {
    let mut versions = request.headers().get_all(SEC_WEBSOCKET_VERSION).iter();
    let is_known = versions.next().is_some_and(|version| version == WEBSOCKET_VERSION) && versions.next().is_none();
    request.headers().contains_key(SEC_WEBSOCKET_KEY) && !is_known
}

/// As RFC 6455 section 4.4 has it.
fn version_needed() -> Response {
    let headers = [
        (SEC_WEBSOCKET_VERSION, WEBSOCKET_VERSION),
        (UPGRADE, "websocket"),
        (CONNECTION, "Upgrade"),
        (CONTENT_TYPE, "application/json"),
    ];
    let body = r#"{"code":3,"message":"Sec-WebSocket-Version must be 13"}"#;
    (StatusCode::UPGRADE_REQUIRED, headers, body).into_response()
}

fn current_line(socket: &SocketRef) -> Option<&CurrentLine> {
    socket.req_parts().extensions.get()
}
