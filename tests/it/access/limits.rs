//! How often and how many: each limit has its answer, holds exactly, and locks nobody else out.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::Command;
use tokio::time::timeout;

use crate::api::Answer;
use crate::server::{PATIENCE, TestServer};
use crate::socket::Dial;

const API_KEYS: &str = "--api-keys=backend=0123456789abcdef,other=fedcba9876543210";
const LOGIN_KEYS: &str = "--login-keys=k1=the first secret of all";

async fn push(server: &TestServer, headers: &[(&str, &str)]) -> Answer {
    let headers = [&[("content-type", "application/json")], headers].concat();
    server.api().send("POST", "/api", &headers, r#"{"tokens":["1"]}"#).await.expect("an answer")
}

/// What a 429 must be: when to come back, and which policy it is.
fn expect_limited(answer: &Answer, policy: &str) {
    answer.problem(429, "rate_limited");
    assert_eq!(answer.header("retry-after"), Some("1"), "{answer:?}");
    assert_eq!(answer.header("ratelimit-policy"), Some(&*format!("\"{policy}\";q=2;w=2")), "{answer:?}");
    assert_eq!(answer.header("ratelimit"), Some(&*format!("\"{policy}\";r=0;t=1")), "{answer:?}");
}

#[tokio::test]
async fn a_key_has_its_rate_and_another_key_its_own() {
    let server = TestServer::with(&[API_KEYS, "--key-rate=1"]).await;
    let key = [("x-api-key", "0123456789abcdef")];
    let answers = join_all((0..6).map(|_| push(&server, &key))).await;
    let (stored, limited): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    assert_eq!(stored.len(), 2, "one a second, two at once: {answers:?}");
    assert!(stored.iter().all(|answer| answer.header("ratelimit").is_some()), "also who is let through is told");
    limited.iter().for_each(|answer| expect_limited(answer, "key"));
    assert_eq!(server.table().count("select count(*) from notification").await, 2);
    assert_eq!(push(&server, &[("x-api-key", "fedcba9876543210")]).await.status, 200, "another key");
    let again = timeout(PATIENCE, async {
        while push(&server, &key).await.status != 200 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    again.await.expect("it is let through again");
    assert!(server.metric(r#"tidings_limited_total{limit="key"}"#).await >= 4.0);
}

#[tokio::test]
async fn an_address_without_a_key_has_its_rate_and_others_have_theirs() {
    let flags = [API_KEYS, LOGIN_KEYS, "--address-rate=1", "--trusted-proxies=127.0.0.1"];
    let server = TestServer::with(&flags).await;
    let from = |address| [("x-forwarded-for", address), ("x-api-key", "a guess")];
    let answers = join_all((0..5).map(|_| async { push(&server, &from("203.0.113.7")).await })).await;
    let (denied, limited): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 401);
    assert_eq!((denied.len(), limited.len()), (2, 3), "{answers:?}");
    limited.iter().for_each(|answer| expect_limited(answer, "address"));
    assert_eq!(push(&server, &from("203.0.113.8")).await.status, 401, "another address");
    let key = [("x-forwarded-for", "203.0.113.7"), ("x-api-key", "0123456789abcdef")];
    assert_eq!(push(&server, &key).await.status, 200, "who has a key is not held up by who guesses");
    let shake = async |address: &str| {
        let path = "/socket.io/?EIO=4&transport=polling";
        server.api().send("GET", path, &[("x-forwarded-for", address)], "").await.expect("an answer")
    };
    expect_limited(&shake("203.0.113.7").await, "address");
    assert_eq!(shake("203.0.113.9").await.status, 200);
}

#[tokio::test]
async fn an_address_has_a_bounded_number_of_sockets_and_gets_them_back() {
    let server = TestServer::with(&["--max-sockets-per-address=3", "--login-timeout-secs=100"]).await;
    let mut sockets = vec![server.connect().await, server.connect().await];
    sockets.push(Dial::new(server.address()).polling().connect().await);
    let refused = server.api().get("/socket.io/?EIO=4&transport=polling").await;
    refused.problem(429, "too_many_sockets");
    assert_eq!(refused.header("retry-after"), Some("10"));
    let gone = Dial::new(server.address()).try_connect().await.err().expect("there is no seat");
    assert!(gone.0.contains("429"), "{gone}");
    assert!(server.stderr().contains("--max-sockets-per-address"), "the log names the flag");
    server.api().push("1", "1").await;
    sockets[0].login("1").await;
    assert_eq!(sockets[0].replay().await.messages.len(), 1, "who is there is served");
    drop(sockets.remove(0));
    let again = async {
        while Dial::new(server.address()).try_connect().await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, again).await.expect("the seat is free again");
}

/// Connects from this address of this machine.
async fn connect_from(address: &str, server: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .bind(SocketAddr::new(address.parse().expect("an address of this machine"), 0))
        .expect("an address of this machine");
    socket.connect(server).await.expect("the kernel accepts")
}

#[tokio::test]
async fn a_flood_of_connections_from_one_address_leaves_others_alone() {
    let server = TestServer::with(&["--max-connections-per-address=20"]).await;
    let mut live = server.login_empty("1").await;
    let mut flood = Vec::new();
    for _ in 0..2_000 {
        flood.push(connect_from("127.0.0.2", server.address()).await);
    }
    let closed = join_all(flood[20..].iter_mut().map(|line| async { line.read(&mut [0]).await }));
    timeout(PATIENCE, closed).await.expect("all but those it may have are closed");
    assert_eq!(server.metric(r#"tidings_limited_total{limit="connections"}"#).await, 1_980.0);
    for line in &mut flood[..20] {
        line.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, line.read_to_string(&mut answer)).await.expect("in time").unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    server.api().push("1", "1").await;
    live.expect_message().await;
}

#[tokio::test]
async fn a_socket_that_says_more_than_it_may_waits_or_is_refused_and_others_do_not_notice() {
    let server = TestServer::with(&["--socket-rate=20", "--event-queue=4"]).await;
    let (mut busy, mut other) = (server.login_empty("1").await, server.login_empty("2").await);
    let pushed = server.api().push("1", "1").await;
    busy.expect_message().await;
    let mut calls = Vec::new();
    for n in 0..40 {
        let event = match n % 4 {
            0 => format!(r#"["read",{{"ids":["{}"]}}]"#, pushed.id),
            1 => format!(r#"["unread",{{"ids":["{}"]}}]"#, pushed.id),
            _ => r#"["user_login",{"tokenId":"1"}]"#.to_owned(),
        };
        calls.push((n % 4 < 2, busy.call_later(&event).await.unwrap()));
    }
    server.api().push("2", "2").await;
    other.expect_message().await;
    let mut done = 0;
    for (is_receipt, call) in calls {
        match busy.answer(call).await.unwrap() {
            answer if answer["ok"] == json!(true) => done += usize::from(!is_receipt),
            answer => {
                assert!(!is_receipt, "receipts wait, and are merged: {answer}");
                assert_eq!(answer["code"], json!("too_many_events"), "{answer}");
            }
        }
    }
    assert!((4..20).contains(&done), "every event is answered: {done} logins were done");
    server.table().expect_sound().await;
}

#[tokio::test]
async fn a_receipt_names_a_bounded_number_of_ids() {
    let server = TestServer::with(&["--max-receipt-ids=2"]).await;
    let ids: Vec<_> = server.api().push_numbers("1", 3).await.into_iter().map(|pushed| pushed.id).collect();
    let mut socket = server.login("1").await;
    socket.replay().await;
    for event in ["ack", "read", "unread"] {
        let answer = socket.call(&json!([event, {"ids": ids}]).to_string()).await;
        assert_eq!(answer["code"], json!("invalid_payload"), "{answer}");
        assert!(answer["message"].as_str().is_some_and(|message| message.contains("at most 2 ids")), "{answer}");
        assert_eq!(socket.call(&json!([event, ids[..2]]).to_string()).await["ok"], json!(true), "{event}");
    }
    for path in ["/api/inbox/1/read", "/api/inbox/1/unread"] {
        let body = json!({"ids": ids}).to_string();
        let answer = server.api().send("POST", path, &[("content-type", "application/json")], body).await.unwrap();
        assert!(answer.problem(413, "too_many_ids").contains("at most 2"), "{}", answer.text);
        server.api().ask("POST", path, &json!({"ids": ids[1..]})).await;
    }
}

#[tokio::test]
async fn what_takes_too_long_to_arrive_is_cut_off_at_its_time() {
    let server = TestServer::with(&["--header-timeout-secs=1", "--body-timeout-secs=1"]).await;
    let sid = server.api().get("/socket.io/?EIO=4&transport=polling").await.text;
    let sid = sid.split('"').nth(3).expect("a session id").to_owned();
    let head = |path: &str, kind: &str| {
        format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\ncontent-length: 1000\r\n\r\n")
    };
    let poll = format!("/socket.io/?EIO=4&transport=polling&sid={sid}");
    for (start, answer) in [
        ("GET / HT".to_owned(), ""),
        ("GET /healthz HTTP/1.1\r\nhost: loc".to_owned(), ""),
        (head("/api", "application/json"), "HTTP/1.1 408"),
        (head("/api/inbox/1/read", "application/json"), "HTTP/1.1 408"),
        (head(&poll, "text/plain"), "HTTP/1.1 4"),
    ] {
        let mut line = TcpStream::connect(server.address()).await.unwrap();
        line.write_all(start.as_bytes()).await.unwrap();
        let (mut read, mut write) = line.split();
        let mut heard = Vec::new();
        // A byte now and then, as slow lines and attackers do.
        let trickle = async {
            while write.write_all(b" ").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            std::future::pending::<()>().await;
        };
        let ended = async {
            tokio::select! { result = read.read_to_end(&mut heard) => drop(result), () = trickle => {} }
        };
        timeout(PATIENCE, ended).await.unwrap_or_else(|_| panic!("it goes on for ever: {start}"));
        let heard = String::from_utf8_lossy(&heard);
        assert!(heard.starts_with(answer), "{start} was answered {heard}");
        assert!(!heard.contains("408") || heard.contains("body_timeout"), "{heard}");
    }
    server.api().push("1", "1").await;
}

#[tokio::test]
async fn who_says_nothing_is_cut_off_at_its_time() {
    const LOOSELY: Duration = Duration::from_secs(8);
    let flags = ["--header-timeout-secs=1", "--idle-timeout-secs=1", "--login-timeout-secs=1"];
    let server = TestServer::with(&flags).await;
    let upgrade = "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\n\
        upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    for (what, said, heard) in [
        ("a silent connection", "", ""),
        ("an idle connection", "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n", "HTTP/1.1 200"),
        ("an engine without a namespace", upgrade, "HTTP/1.1 101"),
    ] {
        let mut line = TcpStream::connect(server.address()).await.unwrap();
        line.write_all(said.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let ended = timeout(LOOSELY, line.read_to_end(&mut answer)).await;
        ended.unwrap_or_else(|_| panic!("{what} goes on for ever")).ok();
        assert!(String::from_utf8_lossy(&answer).starts_with(heard), "{what}");
    }
}

/// Three connections of a server whose header timeout is a second: the idle one must outlive the others.
pub(crate) async fn an_idle_connection_outlives_half_a_request<S>(connect: impl AsyncFn() -> S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    const REQUEST: &[u8] = b"GET /api HTTP/1.1\r\nhost: localhost\r\n\r\n";
    const ANSWER: &[u8] = b"\r\n\r\n.";
    let ask = async |line: &mut S| {
        line.write_all(REQUEST).await.expect("it is open");
        let mut answer = Vec::new();
        while !answer.ends_with(ANSWER) {
            assert!(line.read_buf(&mut answer).await.expect("it is open") > 0, "closed before the answer");
        }
    };
    let (mut idle, mut half, mut silent) = (connect().await, connect().await, connect().await);
    ask(&mut idle).await;
    ask(&mut half).await;
    half.write_all(&REQUEST[..20]).await.expect("it is open");
    for line in [&mut half, &mut silent] {
        timeout(PATIENCE, line.read_to_end(&mut Vec::new())).await.expect("it is closed in time").ok();
    }
    ask(&mut idle).await;
}

#[tokio::test]
async fn an_idle_connection_outlives_the_header_timeout_but_half_a_request_does_not() {
    let server = TestServer::with(&["--header-timeout-secs=1"]).await;
    an_idle_connection_outlives_half_a_request(async || TcpStream::connect(server.address()).await.unwrap()).await;
}

#[tokio::test]
async fn the_documented_limits_of_sockets_and_connections_hold() {
    let server = TestServer::with(&["--max-sockets-per-address=200"]).await;
    let mut sockets = Vec::new();
    for n in 0..200 {
        let mut socket = server.connect().await;
        let answer = socket.call(r#"["user_login",{"tokenId":"1"}]"#).await;
        match n < 50 {
            true => assert_eq!(answer["ok"], json!(true), "{n}: {answer}"),
            false => assert_eq!(answer["code"], json!("too_many_sockets"), "{n}: {answer}"),
        }
        sockets.push(socket);
    }
    let gone = Dial::new(server.address()).try_connect().await.err().expect("there is no seat");
    assert!(gone.0.contains("429"), "{gone}");
    let mut lines = Vec::new();
    for _ in 0..1_100 {
        lines.push(connect_from("127.0.0.2", server.address()).await);
    }
    let closed = join_all(lines[1_000..].iter_mut().map(|line| async { line.read(&mut [0]).await }));
    timeout(PATIENCE, closed).await.expect("all beyond a thousand are closed");
    assert_eq!(server.metric(r#"tidings_limited_total{limit="connections"}"#).await, 100.0);
    server.api().push("1", "1").await;
    for socket in &mut sockets[..50] {
        while !socket.event().await.messages().iter().any(|message| message.data.get() == "1") {}
    }
}

#[tokio::test]
async fn a_socket_is_worked_for_at_its_rate_and_never_locked_out() {
    let server = TestServer::with(&["--socket-rate=10", "--event-queue=10"]).await;
    let id = server.api().push("1", "1").await.id;
    let (mut busy, mut other) = (server.login("1").await, server.login_empty("2").await);
    let began = std::time::Instant::now();
    let mut done = 1.0;
    while began.elapsed() < Duration::from_secs(2) {
        let event = if f64::rem_euclid(done, 2.0) == 0.0 { "read" } else { "unread" };
        assert_eq!(busy.call(&format!(r#"["{event}",["{id}"]]"#)).await["ok"], json!(true));
        done += 1.0;
    }
    // As many at once as may wait, and then the rate; a slow machine does less.
    let most = 10.0 + 10.0 * began.elapsed().as_secs_f64() + 1.0;
    assert!((15.0..=most).contains(&done), "{done} of at most {most}");
    other.ack_up_to(0).await;
    busy.ack_up_to(1).await;
}

#[tokio::test]
async fn without_descriptors_it_accepts_again_when_there_are_some() {
    let server = TestServer::start().await;
    let mut live = server.login_empty("1").await;
    let api = server.api();
    api.push("1", "0").await;
    live.expect_message().await;
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count();
    let limit = descriptors() + 4;
    let status = Command::new("prlimit")
        .args(["--pid", &server.pid().to_string(), &format!("--nofile={limit}:{limit}")])
        .status()
        .await
        .expect("prlimit is there");
    assert!(status.success());
    let mut idle = Vec::new();
    let exhausted = async {
        while !server.stderr().contains("Cannot accept a connection") {
            idle.push(TcpStream::connect(server.address()).await.expect("the kernel accepts"));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, exhausted).await.expect("it runs out of descriptors");
    let pushed = api.push("1", "1").await;
    assert_eq!(live.expect_message().await.id, pushed.id, "who is there is served on");
    drop(idle);
    let mut late = timeout(PATIENCE, server.connect()).await.expect("it accepts again");
    late.login("1").await;
    assert_eq!(late.replay().await.messages.len(), 2);
}

#[tokio::test]
async fn the_limit_of_descriptors_is_raised_or_said_to_be_too_low() {
    for (limits, raised, warned) in [("256:4096", 4096, false), ("256:512", 512, true)] {
        let folder = tempfile::tempdir().unwrap();
        let said = folder.path().join("stderr");
        let mut command = Command::new("prlimit");
        command.args([&format!("--nofile={limits}"), env!("CARGO_BIN_EXE_tidings"), "--listen=127.0.0.1:0"]);
        command.args(["--admin-listen=off", "--database-url", "sqlite://tidings.db"]).current_dir(folder.path());
        command.stdout(std::process::Stdio::piped()).stderr(std::fs::File::create(&said).unwrap()).kill_on_drop(true);
        let mut child = command.spawn().expect("prlimit is there");
        let mut stdout = child.stdout.take().expect("it is piped");
        timeout(PATIENCE, stdout.read(&mut [0; 10])).await.expect("ready in time").unwrap();
        let text = std::fs::read_to_string(format!("/proc/{}/limits", child.id().expect("it runs"))).unwrap();
        let line = text.lines().find(|line| line.starts_with("Max open files")).expect("it is there");
        assert_eq!(line.split_whitespace().nth(3), Some(raised.to_string().as_str()), "{line}");
        let said = std::fs::read_to_string(said).unwrap();
        assert_eq!(said.contains("--max-connections-per-address"), warned, "{said}");
    }
}

#[tokio::test]
async fn five_hundred_readers_that_read_nothing_cost_bounded_memory_and_resume_whole() {
    const READERS: usize = 500;
    const ROWS: usize = 300;
    let patient = ["--stuck-timeout-secs=300", "--ping-interval-secs=100", "--ping-timeout-secs=100"];
    let server = TestServer::with(&patient).await;
    let tokens: Vec<String> = (0..READERS).map(|n| format!("slow {n}")).collect();
    let mut slow = Vec::new();
    for token in &tokens {
        slow.push(server.login_empty(token).await);
    }
    let mut quick = server.login_empty("quick").await;
    let before = server.resident_kib();
    let text = "x".repeat(4_000);
    let api = server.api();
    let mut everybody = tokens.clone();
    everybody.push("quick".to_owned());
    let body = json!({"tokens": everybody, "data": text}).to_string();
    let (mut most, mut waits) = (0, Vec::new());
    for n in 1..=ROWS {
        assert_eq!(api.post(&body).await.status, 200);
        assert_eq!(quick.expect_message().await.seq, i64::try_from(2 * n - 1).unwrap(), "others get theirs meanwhile");
        let began = Instant::now();
        api.push("quick", "1").await;
        assert_eq!(quick.expect_message().await.seq, i64::try_from(2 * n).unwrap());
        waits.push(began.elapsed());
        most = most.max(server.resident_kib());
    }
    waits.sort_unstable();
    assert!(waits[waits.len() * 99 / 100] < Duration::from_secs(2), "{:?}", waits.last());
    // 600 MB were sent; each reader may hold a queue of 128 packets (512 KiB) and the ring of its token (256 KiB).
    let each = (most - before) / u64::try_from(READERS).unwrap();
    assert!(each < 1_024, "{each} KiB a reader");
    // A fifth of them: all would read 600 MB, beside other tests.
    for mut reader in slow.into_iter().step_by(5) {
        let heard = reader.expect_messages(ROWS).await;
        assert!(heard.iter().map(|message| message.seq).eq(1..=i64::try_from(ROWS).unwrap()));
    }
}
