//! Clients that ask and do not read the answers. Such a connection is not read either: what waits for it in the service stays
//! small, however it asks, and others are served. One that only reads late or slowly gets everything.
//!
//! Sizes are counted, never times. On the way between two processes of this machine the kernel alone holds some 10 MB.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message as Frame;

use super::packets::Witness;
use crate::server::{PATIENCE, TestServer};
use crate::socket::{Dial, Engine};

/// What is sent at most, several times what the kernel holds.
const FLOOD_BYTES: usize = 48 << 20;

/// Where each piece makes work for the service, less is enough.
const WORK_BYTES: usize = 4 << 20;

/// Nothing of these tests answers the server's own pings.
const NO_HEARTBEAT: &str = "--ping-interval-secs=600";

/// A connection that takes nothing for so long is not read any more.
const STALLED: Duration = Duration::from_secs(2);

/// What the memory of the service may grow by meanwhile, buffers of the witness and of the database included.
const MOST_KIB: u64 = 20 * 1024;

/// The piece of a flood that has this number.
type Piece<'f> = &'f dyn Fn(usize) -> Vec<u8>;

/// A masked frame with the mask 0.
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).ok().filter(|length| *length < 126).expect("a short frame");
    [&[0x80 | opcode, 0x80 | length, 0, 0, 0, 0][..], payload].concat()
}

/// A websocket that nobody reads; of the answers only the head is known.
async fn websocket(server: &TestServer, engine: u8) -> TcpStream {
    let mut stream = TcpStream::connect(server.address()).await.expect("it connects");
    let request = format!(
        "GET /socket.io/?EIO={engine}&transport=websocket HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\n\
         upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("it is sent");
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.expect("an answer");
    assert_eq!(&head, b"HTTP/1.1 101");
    stream.write_all(&frame(1, b"40")).await.expect("it is sent");
    stream
}

/// Sends pieces that nobody waits for the answers of, until the service reads no more, hangs up, or it is enough.
async fn flood(stream: &mut TcpStream, most: usize, mut piece: impl FnMut(usize) -> Vec<u8>) -> usize {
    let (mut sent, mut number) = (0, 0);
    while sent < most {
        let mut chunk = Vec::new();
        while chunk.len() < 64 * 1024 {
            chunk.extend(piece(number));
            number += 1;
        }
        match timeout(STALLED, stream.write_all(&chunk)).await {
            Ok(Ok(())) => sent += chunk.len(),
            Ok(Err(_)) | Err(_) => break,
        }
    }
    sent
}

async fn expect_flat(server: &TestServer, witness: &mut Witness, before: u64, what: &str) {
    witness.is_unharmed(server).await;
    let grown = server.resident_kib().saturating_sub(before);
    assert!(grown < MOST_KIB, "{what}: memory grew by {grown} KiB");
}

#[tokio::test]
async fn a_websocket_that_asks_and_never_reads_costs_little_memory() {
    let server = TestServer::with(&["--socket-rate=0", NO_HEARTBEAT]).await;
    let mut witness = Witness::of(&server).await;
    let login = r#"["user_login",{"tokenId":"1"}]"#;
    let kinds: [(&str, u8, usize, Piece<'_>); 6] = [
        ("pings of the websocket", 4, FLOOD_BYTES, &|_| frame(9, &[b'p'; 125])),
        ("empty pings of the websocket", 4, FLOOD_BYTES, &|_| frame(9, b"")),
        ("pings of engine.io 3", 3, WORK_BYTES, &|_| frame(1, b"2")),
        ("logins with callbacks", 4, WORK_BYTES, &|n| frame(1, format!("42{n}{login}").as_bytes())),
        ("receipts with callbacks", 4, WORK_BYTES, &|n| {
            let event = if n == 0 { login } else { r#"["ack",{"upTo":0}]"# };
            frame(1, format!("42{n}{event}").as_bytes())
        }),
        ("namespaces that are not there", 4, WORK_BYTES, &|n| frame(1, format!("40/{n},").as_bytes())),
    ];
    for (what, engine, most, piece) in kinds {
        let before = server.resident_kib();
        let mut stream = websocket(&server, engine).await;
        let sent = flood(&mut stream, most, piece).await;
        println!("{what}: {} KiB were taken", sent / 1024);
        expect_flat(&server, &mut witness, before, what).await;
    }
}

#[tokio::test]
async fn a_connection_that_asks_over_http_and_never_reads_costs_little_memory() {
    let server = TestServer::with(&[NO_HEARTBEAT]).await;
    let mut witness = Witness::of(&server).await;
    let open = server.api().get("/socket.io/?EIO=4&transport=polling").await.text;
    let sid = open.split_once(r#""sid":""#).and_then(|(_, rest)| rest.split('"').next()).expect("a session");
    let request = |method: &str, path: &str, headers: &str, body: &str| {
        let length = body.len();
        let length = if length > 0 { format!("content-length: {length}\r\n") } else { String::new() };
        format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n{headers}{length}\r\n{body}").into_bytes()
    };
    let session = format!("/socket.io/?EIO=4&transport=polling&sid={sid}");
    let asks = "origin: http://localhost:3000\r\naccess-control-request-method: POST\r\n";
    let json = "content-type: application/json\r\n";
    let kinds = [
        ("answers without a body", request("HEAD", "/healthz", "", "")),
        ("preflights", request("OPTIONS", "/api", asks, "")),
        ("answers with a body", request("GET", "/openapi.json", "", "")),
        ("pushes to nobody", request("POST", "/api", json, r#"{"tokens":[]}"#)),
        ("polls that post", request("POST", &session, "", r#"421["ack",null]"#)),
        ("polls that wait", request("GET", &session, "", "")),
    ];
    for (what, request) in kinds {
        let before = server.resident_kib();
        let mut stream = TcpStream::connect(server.address()).await.expect("it connects");
        let sent = flood(&mut stream, FLOOD_BYTES, |_| request.clone()).await;
        println!("{what}: {} KiB were taken", sent / 1024);
        expect_flat(&server, &mut witness, before, what).await;
    }
}

#[tokio::test]
async fn a_connection_that_opens_sessions_and_never_reads_has_the_seats_of_its_address_and_no_more() {
    let server = TestServer::with(&["--max-sockets-per-address=100", NO_HEARTBEAT]).await;
    let mut witness = server.login_empty("witness").await;
    let before = server.resident_kib();
    let mut stream = TcpStream::connect(server.address()).await.expect("it connects");
    let request = b"GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nhost: localhost\r\n\r\n";
    flood(&mut stream, FLOOD_BYTES, |_| request.to_vec()).await;
    let pushed = server.api().push("witness", "1").await;
    assert_eq!(witness.expect_message().await.id, pushed.id);
    let grown = server.resident_kib().saturating_sub(before);
    assert!(grown < MOST_KIB, "memory grew by {grown} KiB");
}

#[tokio::test]
async fn who_reads_late_gets_every_answer() {
    const PINGS: usize = 150_000;
    const REQUESTS: usize = 100_000;
    let server = TestServer::with(&[NO_HEARTBEAT]).await;
    let pings = frame(9, &[b'p'; 125]).repeat(PINGS);
    let requests = b"HEAD /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(REQUESTS);
    let websocket = websocket(&server, 4).await;
    let http = TcpStream::connect(server.address()).await.expect("it connects");
    for (stream, asked, answer, count) in [
        (websocket, pings, &[&[0x8a, 125][..], &[b'p'; 125]].concat()[..], PINGS),
        (http, requests, &b"HTTP/1.1 200"[..], REQUESTS),
    ] {
        let (mut read, mut write) = stream.into_split();
        let mut writer = tokio::spawn(async move {
            write.write_all(&asked).await.expect("it is sent");
            write
        });
        // As long as nothing is read not all can be sent.
        let stalled = timeout(STALLED, &mut writer).await.is_err();
        println!("{count} questions stalled: {stalled}");
        let (mut heard, mut answers, finder) = (Vec::new(), 0, memchr::memmem::Finder::new(answer));
        while answers < count {
            let got = timeout(PATIENCE, read.read_buf(&mut heard)).await.expect("the answers come").expect("it reads");
            assert!(got > 0, "it ended after {answers} of {count} answers");
            let mut end = 0;
            for at in finder.find_iter(&heard) {
                (answers, end) = (answers + 1, at + answer.len());
            }
            // What is left may be the beginning of the next one.
            heard.drain(..end.max(heard.len().saturating_sub(answer.len() - 1)));
        }
        assert_eq!(answers, count);
    }
}

#[tokio::test]
async fn a_slow_client_is_sent_everything_in_order_while_its_acks_and_pings_are_taken() {
    const ROWS: i64 = 120;
    let server = TestServer::start().await;
    let data = format!("\"{}\"", "x".repeat(100_000));
    for _ in 0..ROWS {
        server.api().push("1", &data).await;
    }
    for engine in [Engine::V4, Engine::V3] {
        let mut socket = Dial::new(server.address()).engine(engine).connect().await;
        socket.login("1").await;
        let mut calls = Vec::new();
        for seq in 1..=ROWS {
            // Much waits for it whenever it says something.
            tokio::time::sleep(Duration::from_millis(5)).await;
            let message = socket.expect_message().await;
            assert_eq!(message.seq, seq);
            socket.send_frame(Frame::Ping(vec![7; 100].into())).await.unwrap();
            calls.push(socket.call_later(&format!(r#"["ack","{}"]"#, message.id)).await.unwrap());
        }
        assert_eq!(socket.expect_event("replay_complete").await["count"], ROWS);
        for call in calls {
            assert_eq!(socket.answer(call).await.unwrap()["ok"], true);
        }
        server.table().change("update notification set delivered_at = null").await;
        server.table().change("update inbox set delivered_upto = 0").await;
    }
}

#[tokio::test]
async fn a_connection_that_takes_nothing_is_closed_in_the_end() {
    let server = TestServer::with(&["--stuck-timeout-secs=1"]).await;
    let ping = frame(9, &[b'p'; 125]).repeat(500);
    let mut stream = websocket(&server, 4).await;
    let ended = async { while stream.write_all(&ping).await.is_ok() {} };
    timeout(PATIENCE * 2, ended).await.expect("it is closed");
}
