//! Hostile frames and packets: huge, fragmented, malformed, too many. They are closed or limited; others are served, memory
//! stays flat, and nothing panics (every test fails when the server's stderr says so).

use std::time::Duration;

use serde_json::json;
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::tungstenite::protocol::frame::Frame as RawFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use crate::api::raw;
use crate::server::TestServer;
use crate::socket::{Dial, Engine, Socket};

/// Another client, before and after, that must not notice anything.
pub(super) struct Witness {
    socket: Socket,
    memory: u64,
}

impl Witness {
    pub(super) async fn of(server: &TestServer) -> Self {
        let mut socket = server.login_empty("witness").await;
        server.api().push("witness", "0").await;
        socket.expect_message().await;
        Self { socket, memory: server.resident_kib() }
    }

    pub(super) async fn is_unharmed(&mut self, server: &TestServer) {
        let pushed = server.api().push("witness", "1").await;
        assert_eq!(self.socket.expect_message().await.id, pushed.id);
        server.connect().await.login("witness").await;
        let grown = server.resident_kib().saturating_sub(self.memory);
        assert!(grown < 48 * 1024, "memory grew by {grown} KiB");
    }
}

#[tokio::test]
async fn a_frame_over_the_limit_closes_its_own_connection_only() {
    let server = TestServer::start().await;
    let mut witness = Witness::of(&server).await;
    for size in [70_000, 1_000_000, 20_000_000] {
        let mut socket = server.login_empty("1").await;
        let packet = format!(r#"42["ack",["{}"]]"#, "x".repeat(size));
        // The server may close before it has read all of it.
        let _ = socket.send(&packet).await;
        socket.expect_end().await;
    }
    let mut binary = server.login_empty("1").await;
    let _ = binary.send_frame(Frame::binary(vec![0; 1_000_000])).await;
    binary.expect_end().await;
    witness.is_unharmed(&server).await;
}

#[tokio::test]
async fn a_message_of_endless_fragments_is_limited() {
    let server = TestServer::start().await;
    let mut witness = Witness::of(&server).await;
    let fragment = |data: &'static [u8], first: bool, last: bool| {
        let code = if first { Data::Text } else { Data::Continue };
        Frame::Frame(RawFrame::message(data, OpCode::Data(code), last))
    };
    // Together over the limit, each far below it.
    let mut socket = server.login_empty("1").await;
    let parts = (0..1_000_000).map(|n| fragment(if n == 0 { b"4" } else { b"2" }, n == 0, false));
    let _ = socket.flood(parts).await;
    socket.expect_end().await;
    // Empty ones never add up to anything; they may be taken, but not kept.
    let mut socket = server.login_empty("1").await;
    let empty = (0..300_000).map(|n| fragment(if n == 0 { b"4" } else { b"" }, n == 0, false));
    let _ = socket.flood(empty).await;
    witness.is_unharmed(&server).await;
    drop(socket);

    // Within the limit fragments are an ordinary message.
    let pushed = server.api().push("2", "{}").await;
    let mut socket = server.login("2").await;
    socket.replay().await;
    let (call, packet) = socket.packet_of_call(&format!(r#"["ack","{}"]"#, pushed.id));
    let bytes: &'static [u8] = Box::leak(packet.into_bytes().into_boxed_slice());
    let last = bytes.len() - 1;
    let parts = (0..=last).map(|n| fragment(&bytes[n..=n], n == 0, n == last));
    socket.flood(parts).await.unwrap();
    assert_eq!(socket.answer(call).await.unwrap(), json!({"ok": true}));
}

#[tokio::test]
async fn bytes_that_are_not_utf_8_close_the_connection() {
    let server = TestServer::start().await;
    let mut witness = Witness::of(&server).await;
    for bytes in [&b"42[\"ack\",\"\xff\xfe\"]"[..], b"4\xc3", b"\xed\xa0\x80", b"4\xf4\x90\x80\x80"] {
        let mut socket = server.login_empty("1").await;
        let frame = RawFrame::message(bytes.to_vec(), OpCode::Data(Data::Text), true);
        let _ = socket.send_frame(Frame::Frame(frame)).await;
        socket.expect_end().await;
    }
    witness.is_unharmed(&server).await;
}

#[tokio::test]
async fn floods_of_pings_and_pongs_are_harmless() {
    let server = TestServer::start().await;
    let mut witness = Witness::of(&server).await;
    let mut socket = server.login_empty("1").await;
    let pings = (0..100_000)
        .map(|n| if n % 2 == 0 { Frame::Ping(vec![7; 100].into()) } else { Frame::Pong(vec![7; 100].into()) });
    let _ = socket.flood(pings).await;
    for (engine, packet) in [(Engine::V4, "3"), (Engine::V4, "2"), (Engine::V3, "2")] {
        let mut socket = Dial::new(server.address()).engine(engine).connect().await;
        socket.login("2").await;
        let _ = socket.flood((0..50_000).map(|_| Frame::text(packet))).await;
    }
    witness.is_unharmed(&server).await;
}

#[tokio::test]
async fn malformed_packets_are_closed_or_ignored_and_never_answered_with_someone_elses() {
    let server = TestServer::start().await;
    let mut witness = Witness::of(&server).await;
    let deep = format!("42[\"ack\",{}{}]", "[".repeat(20_000), "]".repeat(20_000));
    let name = format!("42[\"{}\"]", "n".repeat(60_000));
    let packets = [
        "",
        "0",
        "1",
        "2",
        "2probe",
        "3",
        "3probe",
        "4",
        "5",
        "6",
        "7",
        "9",
        "é",
        "4é",
        "\u{1e}",
        "b",
        "bé",
        "b4",
        "b4AQID",
        "bAQID",
        "40",
        "40{",
        "40{}",
        "40[",
        "40/admin",
        "40/admin,",
        "40/,",
        "40/é,{}",
        "41",
        "41/admin,",
        "42",
        "42[",
        "42[]",
        "42{}",
        "42null",
        "42\"ack\"",
        "42[1]",
        "42[null]",
        "42[[]]",
        "42[{}]",
        "42[\"ack\"",
        "42[\"ack\",",
        "42[\"ack\",]",
        "42[\"\"]",
        "42[\"connect\"]",
        "42[\"disconnect\"]",
        "42[\"error\"]",
        "42[\"unheard_of\",1,2,3]",
        "421",
        "421[",
        "42999999999999999999999999[\"ack\",\"x\"]",
        "42-1[\"ack\",\"x\"]",
        "421.5[\"ack\",\"x\"]",
        "42é[\"ack\"]",
        "42/admin,[\"ack\"]",
        "42/admin,1[\"ack\",\"x\"]",
        "43",
        "43[]",
        "431[]",
        "431",
        "43999999[{}]",
        "44",
        "44{}",
        "45",
        "451-",
        "451-[]",
        "451-[\"ack\",{\"_placeholder\":true,\"num\":0}]",
        "4599999999999-[\"ack\"]",
        "45-[\"ack\"]",
        "450-[\"ack\"]",
        "451-[\"ack\",{\"_placeholder\":true,\"num\":99}]",
        "46",
        "461-1[]",
        "461-",
        "47",
        "48[]",
        "4/",
        "42[\"ack\",NaN]",
        "42[\"ack\",\"\\ud800\"]",
        "42[\"ack\",\"\\u0000\"]",
        "42[\"ack\",1e999]",
        "42[\"user_login\"]",
        "42[\"ack\"] trailing",
        " 42[\"ack\"]",
        "42 [\"ack\"]",
        &deep,
        &name,
    ];
    for engine in [Engine::V4, Engine::V3] {
        for packet in packets {
            let mut socket = Dial::new(server.address()).engine(engine).connect().await;
            socket.login("1").await;
            socket.expect_event("replay_complete").await;
            let _ = socket.send(packet).await;
            // Still there or closed, but never news for this client.
            let (_, probe) = socket.packet_of_call(r#"["ack",{"upTo":0}]"#);
            let _ = socket.send(&probe).await;
            let next = tokio::time::timeout(Duration::from_millis(20), socket.event_at_last()).await;
            if let Ok(Ok(event)) = next {
                assert!(
                    ["disconnect", "login_error", "connect_error"].contains(&event.name.as_str()),
                    "{packet}: {event:?}"
                );
            }
        }
    }
    witness.is_unharmed(&server).await;
}

#[tokio::test]
async fn malformed_packets_before_the_login_and_instead_of_the_namespace_are_survived() {
    let server = TestServer::start().await;
    let mut witness = Witness::of(&server).await;
    for packet in [
        "40/nowhere,",
        "42[\"user_login\",{\"tokenId\":\"1\"}]",
        "41",
        "x",
        "40{\"token\":\"é\"}",
        "451-[\"user_login\"]",
    ] {
        let upgrade = "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        let mut bytes = upgrade.as_bytes().to_vec();
        // A masked text frame with the mask 0, then a masked close frame.
        bytes.extend([0x81, 0x80 | u8::try_from(packet.len()).unwrap(), 0, 0, 0, 0]);
        bytes.extend(packet.as_bytes());
        bytes.extend([0x88, 0x80, 0, 0, 0, 0]);
        let answer = raw(server.address(), &bytes).await;
        assert!(answer.starts_with("HTTP/1.1 101"), "{packet}: {answer}");
        assert!(!answer.contains("receive_message"), "{packet}: {answer}");
    }
    witness.is_unharmed(&server).await;
}

#[tokio::test]
async fn malformed_polling_is_refused() {
    let server = TestServer::start().await;
    let mut witness = Witness::of(&server).await;
    let api = server.api();
    for query in [
        "",
        "?",
        "?EIO=4",
        "?EIO=5&transport=polling",
        "?EIO=4&transport=telepathy",
        "?EIO=é&transport=polling",
        "?EIO=4&transport=polling&sid=unknown",
        "?EIO=4&transport=polling&sid=",
        "?EIO=4&transport=websocket",
        "?EIO=3&transport=polling&sid=AAAAAAAAAAAAAAAAAAAAAA",
        "?EIO=4&transport=polling&sid=%00",
    ] {
        let answer = api.get(&format!("/socket.io/{query}")).await;
        assert!((400..500).contains(&answer.status), "{query}: {answer:?}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let answer = api.send(method, "/socket.io/?EIO=4&transport=polling", &[], "40").await.unwrap();
        assert!(answer.status < 500, "{method}: {answer:?}");
    }
    let flood = "3\u{1e}".repeat(30_000);
    let large = "x".repeat(70_000);
    for (engine, bodies) in [
        (4, ["", "\u{1e}", "\u{1e}\u{1e}40", "9", "bé", "4", "42[", &flood, &large, "-1:40", "2:4", "1:\u{1e}"]),
        (
            3,
            [
                "",
                ":",
                "2:",
                "-1:40",
                "99999999999999999999:40",
                "5:40",
                "0:",
                "1:é",
                "é:40",
                &large,
                "1:41:41:4",
                "2:40garbage",
            ],
        ),
    ] {
        for body in bodies {
            let open = api.get(&format!("/socket.io/?EIO={engine}&transport=polling")).await.text;
            let sid = open.split_once(r#""sid":""#).and_then(|(_, rest)| rest.split('"').next()).expect("a session");
            let path = format!("/socket.io/?EIO={engine}&transport=polling&sid={sid}");
            let answer = api.send("POST", &path, &[("content-type", "text/plain")], body).await;
            assert!(answer.is_ok_and(|answer| answer.status < 500), "{body:.20}");
        }
    }
    witness.is_unharmed(&server).await;
}

#[tokio::test]
async fn a_websocket_of_another_version_is_told_which_one_there_is() {
    let server = TestServer::start().await;
    let begin = |path: &str, versions: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade, close\r\nupgrade: websocket\r\n{versions}\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
    };
    let open = server.api().get("/socket.io/?EIO=4&transport=polling").await.text;
    let sid = open.split_once(r#""sid":""#).and_then(|(_, rest)| rest.split('"').next()).expect("a session");
    let upgrade = format!("/socket.io/?EIO=4&transport=websocket&sid={sid}");
    for path in ["/socket.io/?EIO=4&transport=websocket", "/socket.io/?EIO=3&transport=websocket", &upgrade] {
        for versions in ["8", "14", "013", "", "13, 8", "13\r\nsec-websocket-version: 8"] {
            let header = format!("sec-websocket-version: {versions}\r\n");
            let answer = raw(server.address(), begin(path, &header).as_bytes()).await.to_lowercase();
            assert!(answer.starts_with("http/1.1 426 "), "{versions}: {answer}");
            for said in ["sec-websocket-version: 13\r\n", "\r\nupgrade: websocket\r\n", "connection: "] {
                assert!(answer.contains(said), "{versions}: {answer}");
            }
        }
    }
    let answer = raw(server.address(), begin("/socket.io/?EIO=4&transport=websocket", "").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 426 "), "without one: {answer}");
    server.connect().await.login("1").await;
}

#[tokio::test]
async fn malformed_http_is_refused_and_survived() {
    let server = TestServer::start().await;
    let mut witness = Witness::of(&server).await;
    let many = format!("GET /api HTTP/1.1\r\n{}\r\n", "x-filler: 0123456789\r\n".repeat(5000));
    let long = format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "a".repeat(200_000));
    for request in [
        "\r\n\r\n\r\n",
        "NONSENSE\r\n\r\n",
        "GET /api HTTP/9.9\r\n\r\n",
        "GET /api HTTP/1.1\r\nhost: localhost\r\n bad: fold\r\n\r\n",
        "POST /api HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
        "POST /api HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
        "POST /api HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\u{1}",
        &many,
        &long,
    ] {
        let answer = raw(server.address(), request.as_bytes()).await;
        let refused = answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.0 4");
        assert!(refused, "{request:.40}: {answer}");
    }
    witness.is_unharmed(&server).await;
}

#[tokio::test]
async fn connections_that_come_and_go_leave_nothing_behind() {
    let server = TestServer::start().await;
    let mut witness = Witness::of(&server).await;
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("a process has files").count();
    let before = descriptors();
    for round in 0..200 {
        let engine = if round % 2 == 0 { Engine::V4 } else { Engine::V3 };
        let dial = Dial::new(server.address()).engine(engine);
        let dial = if round % 5 == 0 { dial.polling() } else { dial };
        let mut socket = dial.connect().await;
        socket.login("1").await;
        match round % 3 {
            0 => {}
            1 => drop(socket.send("1").await),
            _ => drop(socket.send("41").await),
        }
    }
    let gone = async {
        while descriptors() > before + 60 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::server::PATIENCE, gone).await.expect("closed connections are let go");
    witness.is_unharmed(&server).await;
}
