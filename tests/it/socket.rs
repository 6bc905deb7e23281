//! A Socket.IO client: engine.io 3 (what 2.x clients speak) and 4 (3.x and 4.x), over a websocket or by polling, with
//! acknowledgement callbacks, and with every raw frame in reach of a test that wants to misbehave.
//!
//! It reads only when a test asks it to, so it can also be a client that reads slowly or not at all. What a client sends is
//! given as the JSON array that goes over the wire: `["user_login",{"tokenId":"1"}]`.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{FutureExt, SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message as Frame};

use crate::polling::Polling;
use crate::server::PATIENCE;

/// The version of the engine.io protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    /// Clients 2.x: they ping, and are in the namespace without asking.
    V3,
    /// Clients 3.x and 4.x: the server pings, and they ask for the namespace.
    V4,
}

impl Engine {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::V3 => 3,
            Self::V4 => 4,
        }
    }
}

/// How to connect.
#[derive(Debug, Clone)]
pub(crate) struct Dial {
    pub(crate) address: SocketAddr,
    pub(crate) engine: Engine,
    pub(crate) path: String,
    polling: bool,
    /// What goes with the namespace, as JSON.
    auth: String,
}

impl Dial {
    /// engine.io 4 over a websocket at the default path.
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, engine: Engine::V4, path: "/socket.io".to_owned(), polling: false, auth: String::new() }
    }

    pub(crate) fn engine(mut self, engine: Engine) -> Self {
        self.engine = engine;
        self
    }

    pub(crate) fn path(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    pub(crate) fn polling(mut self) -> Self {
        self.polling = true;
        self
    }

    /// Shows this when it asks for the namespace; engine.io 4 alone.
    pub(crate) fn auth(mut self, auth: &Value) -> Self {
        self.auth = auth.to_string();
        self
    }

    /// Connects and waits until the client is in the namespace.
    pub(crate) async fn connect(self) -> Socket {
        self.try_connect().await.unwrap_or_else(|gone| panic!("no connection: {gone}"))
    }

    pub(crate) async fn try_connect(self) -> Result<Socket, Gone> {
        let (engine, auth) = (self.engine, self.auth.clone());
        let mut socket = self.open().await?;
        if engine == Engine::V4 {
            socket.send(&format!("40{auth}")).await?;
        }
        match in_time("the namespace", socket.receive()).await? {
            Packet::Connected => Ok(socket),
            other => panic!("the namespace was expected, got {other:?}"),
        }
    }

    /// Connects, and leaves it at that: with engine.io 4 it is the client that asks for the namespace.
    pub(crate) async fn open(self) -> Result<Socket, Gone> {
        let engine = self.engine;
        let mut line = if self.polling {
            Line::Polling(Box::new(Polling::new(self)))
        } else {
            Line::websocket(&self, None).await?
        };
        let open = in_time("the open packet", line.receive()).await?;
        assert!(open.starts_with("0{"), "the first packet opens the session: {open}");
        if let Line::Polling(polling) = &mut line {
            let handshake: Value = serde_json::from_str(&open[1..]).expect("the open packet is JSON");
            polling.opened(handshake["sid"].as_str().expect("a session id"));
        }
        Ok(Socket {
            line,
            engine,
            handshake: open[1..].to_owned(),
            events: VecDeque::new(),
            answers: HashMap::new(),
            calls: 0,
        })
    }
}

/// The connection has ended, or never was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gone(pub(crate) String);

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Carries engine.io packets as text.
enum Line {
    Websocket { sink: SplitSink<WebSocketStream<TcpStream>, Frame>, stream: SplitStream<WebSocketStream<TcpStream>> },
    Polling(Box<Polling>),
}

impl Line {
    async fn websocket(dial: &Dial, session: Option<&str>) -> Result<Self, Gone> {
        let Dial { address, path, engine, .. } = dial;
        let session = session.map(|sid| format!("&sid={sid}")).unwrap_or_default();
        let url = format!("ws://{address}{path}/?EIO={}&transport=websocket{session}", engine.number());
        let tcp = TcpStream::connect(address).await.map_err(|error| Gone(error.to_string()))?;
        tcp.set_nodelay(true).map_err(|error| Gone(error.to_string()))?;
        let shake = tokio_tungstenite::client_async(url, tcp);
        let (websocket, _) = in_time("the websocket handshake", async {
            shake.await.map_err(|error| Gone(format!("websocket handshake: {error}")))
        })
        .await?;
        let (sink, stream) = websocket.split();
        Ok(Self::Websocket { sink, stream })
    }

    /// The next packet. Cancel safe.
    async fn receive(&mut self) -> Result<String, Gone> {
        match self {
            Self::Polling(polling) => polling.receive().await,
            Self::Websocket { stream, .. } => loop {
                match stream.next().await {
                    Some(Ok(Frame::Text(text))) => return Ok(text.to_string()),
                    Some(Ok(Frame::Close(frame))) => return Err(Gone(format!("closed by the server: {frame:?}"))),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(Gone(error.to_string())),
                    None => return Err(Gone("the connection has ended".to_owned())),
                }
            },
        }
    }

    async fn send(&mut self, packet: &str) -> Result<(), Gone> {
        match self {
            Self::Polling(polling) => polling.send(packet).await,
            Self::Websocket { sink, .. } => {
                sink.send(Frame::text(packet)).await.map_err(|error| Gone(error.to_string()))
            }
        }
    }
}

/// What came from the server.
#[derive(Debug)]
enum Packet {
    Connected,
    Event(Event),
    Answer(u64, Value),
    Disconnected,
    /// Heartbeats and the like.
    Nothing,
}

/// An event with its arguments as they came.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) args: Vec<Box<RawValue>>,
}

impl Event {
    /// The first argument.
    pub(crate) fn value(&self) -> Value {
        serde_json::from_str(self.text()).expect("an argument is JSON")
    }

    /// The first argument, byte for byte.
    pub(crate) fn text(&self) -> &str {
        self.args.first().map_or("null", |arg| arg.get())
    }

    /// The notifications it carries: one, many, or none when it is another event.
    pub(crate) fn messages(&self) -> Vec<Message> {
        let messages = match self.name.as_str() {
            "receive_message" => serde_json::from_str(self.text()).map(|message| vec![message]),
            "receive_messages" => serde_json::from_str(self.text()),
            _ => Ok(Vec::new()),
        };
        messages.unwrap_or_else(|error| panic!("{error} in {} {}", self.name, self.text()))
    }
}

/// A notification as a client gets it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Message {
    pub(crate) entity_type: String,
    /// Byte for byte.
    pub(crate) data: Box<RawValue>,
    pub(crate) id: String,
    pub(crate) seq: i64,
    pub(crate) rev: i64,
    pub(crate) created_at: String,
    pub(crate) replay: bool,
    pub(crate) read: bool,
}

/// The answer to a login.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Login {
    pub(crate) epoch: String,
    pub(crate) rev: i64,
    pub(crate) unread: i64,
    pub(crate) undelivered: i64,
}

/// A replay, from the login's answer to `replay_complete`.
#[derive(Debug)]
pub(crate) struct Replay {
    pub(crate) messages: Vec<Message>,
    pub(crate) count: i64,
    pub(crate) rev: i64,
    pub(crate) unread: i64,
}

impl Replay {
    pub(crate) fn data(&self) -> Vec<&str> {
        self.messages.iter().map(|message| message.data.get()).collect()
    }
}

/// A connected client.
pub(crate) struct Socket {
    line: Line,
    engine: Engine,
    /// The open packet's JSON.
    pub(crate) handshake: String,
    /// Came while something else was awaited.
    events: VecDeque<Event>,
    answers: HashMap<u64, Value>,
    calls: u64,
}

impl Socket {
    // What a test says.

    /// Sends an engine.io packet as it is.
    pub(crate) async fn send(&mut self, packet: &str) -> Result<(), Gone> {
        self.line.send(packet).await
    }

    /// Leaves the namespace and comes back to it on the same connection.
    pub(crate) async fn rejoin(&mut self) -> Result<(), Gone> {
        self.send("41").await?;
        self.send("40").await?;
        loop {
            if let Packet::Connected = in_time("the namespace", self.receive()).await? {
                return Ok(());
            }
        }
    }

    /// Posts the body of a poll as it is.
    pub(crate) async fn send_body(&mut self, body: String) -> Result<(), Gone> {
        match &mut self.line {
            Line::Polling(polling) => polling.send_body(body).await,
            Line::Websocket { .. } => panic!("a body needs polling"),
        }
    }

    /// Sends a websocket frame as it is.
    pub(crate) async fn send_frame(&mut self, frame: Frame) -> Result<(), Gone> {
        match &mut self.line {
            Line::Websocket { sink, .. } => sink.send(frame).await.map_err(|error| Gone(error.to_string())),
            Line::Polling(_) => panic!("frames need a websocket"),
        }
    }

    /// Sends many websocket frames without waiting for any answer, reading (and keeping events and answers) meanwhile so
    /// that neither side blocks the other.
    pub(crate) async fn flood(&mut self, frames: impl IntoIterator<Item = Frame>) -> Result<(), Gone> {
        let Line::Websocket { sink, stream } = &mut self.line else { panic!("frames need a websocket") };
        let mut read: Vec<String> = Vec::new();
        let write = async {
            for frame in frames {
                sink.feed(frame).await?;
            }
            sink.flush().await
        };
        let listen = async {
            loop {
                match stream.next().await {
                    Some(Ok(Frame::Text(text))) => read.push(text.to_string()),
                    Some(Ok(Frame::Close(_))) | None => break Err(tungstenite::Error::ConnectionClosed),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => break Err(error),
                }
            }
        };
        let outcome = tokio::select! { done = write => done, ended = listen => ended };
        for packet in read {
            let packet = self.understand(&packet).await?;
            self.keep(packet);
        }
        outcome.map_err(|error| Gone(error.to_string()))
    }

    /// Sends many packets at once, as a client does with all that one turn of its event loop emitted.
    pub(crate) async fn send_many(&mut self, packets: Vec<String>) -> Result<(), Gone> {
        match &mut self.line {
            Line::Polling(polling) => polling.send_many(&packets).await,
            Line::Websocket { .. } => self.flood(packets.into_iter().map(Frame::text)).await,
        }
    }

    /// Emits an event with a callback; what the callback gets.
    pub(crate) async fn try_call(&mut self, event: &str) -> Result<Value, Gone> {
        let call = self.call_later(event).await?;
        self.answer(call).await
    }

    pub(crate) async fn call(&mut self, event: &str) -> Value {
        self.try_call(event).await.unwrap_or_else(|gone| panic!("no answer to {event}: {gone}"))
    }

    /// Emits an event with a callback without waiting for it; the number of the callback.
    pub(crate) async fn call_later(&mut self, event: &str) -> Result<u64, Gone> {
        let (call, packet) = self.packet_of_call(event);
        self.send(&packet).await?;
        Ok(call)
    }

    /// The packet of an event with a callback, to be sent by the test itself, and the number of the callback.
    pub(crate) fn packet_of_call(&mut self, event: &str) -> (u64, String) {
        self.calls += 1;
        (self.calls, format!("42{}{event}", self.calls))
    }

    /// What a callback gets.
    pub(crate) async fn answer(&mut self, call: u64) -> Result<Value, Gone> {
        loop {
            if let Some(answer) = self.answers.remove(&call) {
                return Ok(answer);
            }
            let packet = in_time("an answer", self.receive()).await?;
            self.keep(packet);
            if let Some(Event { name, .. }) = self.events.back().filter(|event| event.name == "disconnect") {
                return Err(Gone(name.clone()));
            }
        }
    }

    /// Whether a callback that nobody has awaited yet has been called.
    pub(crate) fn is_answered(&self, call: u64) -> bool {
        self.answers.contains_key(&call)
    }

    /// Emits an event without a callback.
    pub(crate) async fn emit(&mut self, event: &str) {
        self.send(&format!("42{event}")).await.unwrap_or_else(|gone| panic!("cannot emit {event}: {gone}"));
    }

    /// Logs in as an old client and expects that to work.
    pub(crate) async fn login(&mut self, token: &str) -> Login {
        let token = json!(token);
        self.login_with(&format!(r#"["user_login",{{"tokenId":{token},"userId":{token},"socketId":"x"}}]"#)).await
    }

    /// Logs in as a client that takes batches.
    pub(crate) async fn login_batch(&mut self, token: &str) -> Login {
        self.login_with(&format!(r#"["user_login",{{"tokenId":{},"batch":true}}]"#, json!(token))).await
    }

    /// Logs in with that event and expects it to work.
    pub(crate) async fn login_with(&mut self, event: &str) -> Login {
        let answer = self.call(event).await;
        assert_eq!(answer["ok"], json!(true), "the login was refused: {answer}");
        serde_json::from_value(answer.clone()).unwrap_or_else(|error| panic!("{error} in the login's answer {answer}"))
    }

    /// Acks or reads (`event`) the rows with these ids; the answer, which must be `ok`.
    pub(crate) async fn receipt(&mut self, event: &str, ids: &[&str]) -> Value {
        let answer = self.call(&format!(r#"["{event}",{{"ids":{}}}]"#, json!(ids))).await;
        assert_eq!(answer["ok"], json!(true), "{event} was refused: {answer}");
        answer
    }

    /// Acks everything up to a rev.
    pub(crate) async fn ack_up_to(&mut self, rev: i64) {
        let answer = self.call(&format!(r#"["ack",{{"upTo":{rev}}}]"#)).await;
        assert_eq!(answer, json!({"ok": true}), "an ack is answered with ok");
    }

    // What a test hears.

    /// The next event; waits as long as `PATIENCE`.
    pub(crate) async fn try_event(&mut self) -> Result<Event, Gone> {
        in_time("an event", self.event_at_last()).await
    }

    /// The next event, however long it takes. Cancel safe.
    pub(crate) async fn event_at_last(&mut self) -> Result<Event, Gone> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            let packet = self.receive().await?;
            self.keep(packet);
        }
    }

    /// The next event, however long it takes, and all that have arrived with it. Cancel safe.
    pub(crate) async fn events_at_last(&mut self) -> Result<Vec<Event>, Gone> {
        let mut events = vec![self.event_at_last().await?];
        while let Some(event) = self.event_at_last().now_or_never() {
            events.push(event?);
        }
        Ok(events)
    }

    pub(crate) async fn event(&mut self) -> Event {
        self.try_event().await.unwrap_or_else(|gone| panic!("an event was expected: {gone}"))
    }

    /// The next event, which must be this one; its argument.
    pub(crate) async fn expect_event(&mut self, name: &str) -> Value {
        let event = self.event().await;
        assert_eq!(event.name, name, "another event was expected; got {}", event.text());
        event.value()
    }

    /// The next event, which must be one notification.
    pub(crate) async fn expect_message(&mut self) -> Message {
        let event = self.event().await;
        assert_eq!(event.name, "receive_message", "a notification was expected; got {}", event.text());
        event.messages().swap_remove(0)
    }

    /// The next `count` events, which must be notifications.
    pub(crate) async fn expect_messages(&mut self, count: usize) -> Vec<Message> {
        let mut messages = Vec::with_capacity(count);
        while messages.len() < count {
            messages.push(self.expect_message().await);
        }
        messages
    }

    /// Everything up to `replay_complete`.
    pub(crate) async fn replay(&mut self) -> Replay {
        let mut messages = Vec::new();
        loop {
            let event = self.event().await;
            if event.name == "replay_complete" {
                let end = event.value();
                let number = |name: &str| end[name].as_i64().unwrap_or_else(|| panic!("no {name} in {end}"));
                return Replay { messages, count: number("count"), rev: number("rev"), unread: number("unread") };
            }
            let more = event.messages();
            assert!(!more.is_empty(), "a replay holds only notifications, got {} {}", event.name, event.text());
            messages.extend(more);
        }
    }

    /// Nothing comes for that long.
    pub(crate) async fn expect_quiet(&mut self, long: Duration) {
        if let Ok(event) = timeout(long, self.event_at_last()).await {
            panic!("silence was expected, got {event:?}");
        }
    }

    /// Reads until the server ends the connection; the events on the way.
    pub(crate) async fn expect_end(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let end = async {
            while let Ok(event) = self.event_at_last().await {
                events.push(event)
            }
        };
        timeout(PATIENCE, end).await.expect("the server ends the connection in time");
        events
    }

    /// The next socket.io packet as it came over the wire. Mixes with no other way of reading.
    pub(crate) async fn raw_packet(&mut self) -> String {
        loop {
            let text = in_time("a packet", self.line.receive()).await.unwrap_or_else(|gone| panic!("{gone}"));
            match text.strip_prefix('4') {
                Some(packet) => return packet.to_owned(),
                None => drop(self.understand(&text).await),
            }
        }
    }

    /// Goes from polling to a websocket as the browser does: probes while it polls on, then switches.
    pub(crate) async fn upgrade(&mut self) {
        let Line::Polling(polling) = &mut self.line else { panic!("only polling can be upgraded") };
        let (dial, session) = (polling.dial().clone(), polling.session().to_owned());
        let probe = async {
            let mut websocket = Line::websocket(&dial, Some(&session)).await.expect("a websocket");
            websocket.send("2probe").await.expect("the probe goes out");
            let probed = in_time("the probe's answer", websocket.receive()).await.expect("an answer");
            assert_eq!(probed, "3probe");
            websocket
        };
        let mut probe = std::pin::pin!(probe);
        let mut websocket = loop {
            tokio::select! {
                websocket = &mut probe => break websocket,
                polled = polling.poll_once() => polled.expect("a poll is answered"),
            }
        };
        polling.finish().await;
        let last = polling.drain();
        websocket.send("5").await.expect("the upgrade goes out");
        self.line = websocket;
        for packet in last {
            let packet = self.understand(&packet).await.expect("what was polled last can be read");
            self.keep(packet);
        }
    }

    fn keep(&mut self, packet: Packet) {
        match packet {
            Packet::Event(event) => self.events.push_back(event),
            Packet::Answer(call, answer) => {
                let earlier = self.answers.insert(call, answer);
                assert!(earlier.is_none(), "callback {call} was called twice, first with {earlier:?}");
            }
            Packet::Disconnected => self.events.push_back(Event { name: "disconnect".to_owned(), args: Vec::new() }),
            Packet::Connected | Packet::Nothing => {}
        }
    }

    /// The next packet that says something. Cancel safe but for the answer to a heartbeat.
    async fn receive(&mut self) -> Result<Packet, Gone> {
        loop {
            let text = self.line.receive().await?;
            match self.understand(&text).await? {
                Packet::Nothing => {}
                packet => return Ok(packet),
            }
        }
    }

    async fn understand(&mut self, text: &str) -> Result<Packet, Gone> {
        match text.as_bytes().first() {
            Some(b'1') => Err(Gone("the server closed the session".to_owned())),
            Some(b'2') if self.engine == Engine::V4 => {
                self.send("3").await?;
                Ok(Packet::Nothing)
            }
            Some(b'3' | b'6') => Ok(Packet::Nothing),
            Some(b'4') => Ok(message_packet(&text[1..])),
            _ => panic!("not an engine.io packet: {text}"),
        }
    }
}

fn message_packet(text: &str) -> Packet {
    let args = |text: &str| -> Vec<Box<RawValue>> {
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in packet {text}"))
    };
    match text.as_bytes().first() {
        Some(b'0') => Packet::Connected,
        Some(b'1') => Packet::Disconnected,
        Some(b'2') => {
            let mut args = args(&text[1..]);
            let name = serde_json::from_str(args.remove(0).get()).expect("an event has a name");
            Packet::Event(Event { name, args })
        }
        Some(b'3') => {
            let digits = text[1..].bytes().take_while(u8::is_ascii_digit).count();
            let (call, rest) = text[1..].split_at(digits);
            let answer = args(rest).first().map_or(Value::Null, |arg| serde_json::from_str(arg.get()).expect("JSON"));
            Packet::Answer(call.parse().expect("a callback has a number"), answer)
        }
        Some(b'4') => {
            let error = RawValue::from_string(json!(text[1..]).to_string()).expect("a text is JSON");
            Packet::Event(Event { name: "connect_error".to_owned(), args: vec![error] })
        }
        _ => panic!("not a packet a server sends here: {text}"),
    }
}

async fn in_time<T>(what: &str, wait: impl Future<Output = Result<T, Gone>>) -> Result<T, Gone> {
    match timeout(PATIENCE, wait).await {
        Ok(outcome) => outcome,
        Err(_) => panic!("{what} did not come within {PATIENCE:?}"),
    }
}
