//! The floor: the least code that stores a notification before the answer and delivers it at least once, with the crates
//! that the service has. It keeps no revs of an inbox, no counts, no limits and no idempotency; what the service costs
//! more is the price of those.
//!
//! One thread writes. Whatever waits when it begins a transaction goes into it; an ack updates a row.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, RwLock, mpsc};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::serve::ListenerExt;
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use socketioxide::extract::{AckSender, Data, SocketRef};
use socketioxide::handler::ConnectHandler;
use socketioxide::{SendError, SocketError, SocketIo};
use tokio::net::TcpSocket;
use tokio::sync::oneshot;

/// Pushes and acks of one transaction.
const BATCH: usize = 1000;

/// Packets that may wait for a socket: a whole replay, so that the answer to an ack always finds room.
const SEND_QUEUE: usize = 4096;

/// Connections that wait to be accepted, as many as the other servers allow.
const BACKLOG: u32 = 4096;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Push<'a> {
    tokens: Vec<String>,
    entity_type: String,
    #[serde(borrow)]
    data: &'a RawValue,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Message<'a> {
    entity_type: &'a str,
    data: &'a RawValue,
    id: String,
    rev: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Login {
    token_id: String,
}

enum Write {
    Push { tokens: Vec<String>, entity_type: String, data: String, stored: oneshot::Sender<i64> },
    Ack { token: String, rows: Value, callback: AckSender },
}

struct Floor {
    writes: mpsc::Sender<Write>,
    reader: Mutex<Connection>,
    sockets: RwLock<HashMap<String, Vec<SocketRef>>>,
}

/// Runs until the process is killed.
pub(crate) fn run(file: &Path) {
    let (writes, queue) = mpsc::channel();
    let writer = open(file);
    let floor = Arc::new(Floor { writes, reader: Mutex::new(open(file)), sockets: RwLock::default() });
    std::thread::spawn(move || write(&writer, &queue).expect("the database works"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(serve(floor));
}

fn open(file: &Path) -> Connection {
    let database = Connection::open(file).expect("the file can be opened");
    database
        .execute_batch(
            "pragma journal_mode = wal; pragma synchronous = full; pragma wal_autocheckpoint = 4000; pragma cache_size = -65536;
            create table if not exists message (
                id integer primary key, token text not null, entity_type text not null, data text not null,
                delivered integer not null default 0
            ) strict;
            create index if not exists undelivered on message (token, id) where delivered = 0;",
        )
        .expect("the schema can be made");
    database
}

fn write(database: &Connection, queue: &mpsc::Receiver<Write>) -> rusqlite::Result<()> {
    let (mut begin, mut commit) = (database.prepare("begin immediate")?, database.prepare("commit")?);
    let mut insert = database.prepare("insert into message (token, entity_type, data) values (?, ?, ?)")?;
    let mut ack = database.prepare("update message set delivered = 1 where id = ? and token = ?")?;
    let mut ack_upto =
        database.prepare("update message set delivered = 1 where id <= ? and token = ? and delivered = 0")?;
    while let Ok(first) = queue.recv() {
        let (mut pushed, mut acked) = (Vec::new(), Vec::new());
        begin.execute([])?;
        for write in std::iter::once(first).chain(queue.try_iter()).take(BATCH) {
            match write {
                Write::Push { tokens, entity_type, data, stored } => {
                    for token in &tokens {
                        insert.execute((token, &entity_type, &data))?;
                    }
                    let count = i64::try_from(tokens.len()).expect("a body holds fewer");
                    pushed.push((stored, database.last_insert_rowid() - count + 1));
                }
                Write::Ack { token, rows, callback } => {
                    match &rows {
                        Value::String(id) => ack.execute((id, &token))?,
                        rows => ack_upto.execute((rows["upTo"].as_i64(), &token))?,
                    };
                    acked.push(callback);
                }
            }
        }
        commit.execute([])?;
        for (stored, first) in pushed {
            stored.send(first).ok();
        }
        for callback in acked {
            callback.send(&json!({"ok": true})).ok();
        }
    }
    Ok(())
}

async fn serve(floor: Arc<Floor>) {
    let (layer, io) = SocketIo::builder().max_buffer_size(SEND_QUEUE).build_layer();
    let register = {
        let floor = Arc::clone(&floor);
        move |socket: SocketRef| {
            listen(&floor, &socket);
            std::future::ready(Ok::<(), Infallible>(()))
        }
    };
    // As a middleware: a handler that is registered when the client knows that it is connected may miss its login.
    io.ns("/", (async |_: SocketRef| {}).with(register));
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a port");
    let listener = socket.listen(BACKLOG).expect("it is bound");
    println!("Floor listens on http://{}", listener.local_addr().expect("it is bound"));
    let router = Router::new().route("/api", post(push)).with_state(floor).layer(layer);
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).expect("a new connection"));
    axum::serve(listener, router).await.expect("it serves");
}

async fn push(State(floor): State<Arc<Floor>>, body: Bytes) -> (StatusCode, &'static str) {
    let Ok(Push { tokens, entity_type, data }) = serde_json::from_slice(&body) else {
        return (StatusCode::BAD_REQUEST, "");
    };
    let (stored, answer) = oneshot::channel();
    let (rows, kind, text) = (tokens.clone(), entity_type.clone(), data.get().to_owned());
    floor.writes.send(Write::Push { tokens: rows, entity_type: kind, data: text, stored }).expect("the writer runs");
    let first = answer.await.expect("the writer answers");
    for (id, token) in (first..).zip(&tokens) {
        let sockets = floor.sockets.read().expect("no panics").get(token).cloned().unwrap_or_default();
        let message = Message { entity_type: &entity_type, data, id: id.to_string(), rev: id };
        for socket in sockets {
            emit(&socket, "receive_message", &message).await;
        }
    }
    (StatusCode::OK, r#"{"responseCode":0,"data":"OK!"}"#)
}

fn listen(floor: &Arc<Floor>, socket: &SocketRef) {
    let token: Arc<OnceLock<String>> = Arc::default();
    let (state, own) = (Arc::clone(floor), Arc::clone(&token));
    socket.on("user_login", async move |socket: SocketRef, Data(login): Data<Login>, callback: AckSender| {
        let token = own.get_or_init(|| login.token_id);
        state.sockets.write().expect("no panics").entry(token.clone()).or_default().push(socket.clone());
        let rows = undelivered(&state.reader.lock().expect("no panics"), token).expect("the database works");
        callback.send(&json!({"ok": true, "undelivered": rows.len()})).ok();
        for (id, entity_type, data) in &rows {
            let data = RawValue::from_string(data.clone()).expect("JSON was stored");
            let message = Message { entity_type, data: &data, id: id.to_string(), rev: *id };
            emit(&socket, "receive_message", &message).await;
        }
        emit(&socket, "replay_complete", &json!({"count": rows.len()})).await;
    });
    let (state, own) = (Arc::clone(floor), Arc::clone(&token));
    socket.on("ack", async move |Data(rows): Data<Value>, callback: AckSender| {
        let token = own.get().cloned().unwrap_or_default();
        state.writes.send(Write::Ack { token, rows, callback }).expect("the writer runs");
    });
    let floor = Arc::clone(floor);
    socket.on_disconnect(async move |socket: SocketRef| {
        let mut sockets = floor.sockets.write().expect("no panics");
        if let Some(sockets) = token.get().and_then(|token| sockets.get_mut(token)) {
            sockets.retain(|other| other.id != socket.id);
        }
    });
}

fn undelivered(database: &Connection, token: &str) -> rusqlite::Result<Vec<(i64, String, String)>> {
    let select = "select id, entity_type, data from message where token = ? and delivered = 0 order by id";
    let mut select = database.prepare(select)?;
    select.query_map([token], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect()
}

/// Waits while the buffer of the socket is full.
async fn emit(socket: &SocketRef, event: &str, message: &impl Serialize) {
    while let Err(SendError::Socket(SocketError::InternalChannelFull)) = socket.emit(event, message) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
