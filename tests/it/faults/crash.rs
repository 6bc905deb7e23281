//! The process dies or is told to stop, at the worst moments.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::api::Api;
use crate::load::{Load, Seeded};
use crate::proxy::ChaosProxy;
use crate::server::{PATIENCE, TestServer};
use crate::socket::Dial;

#[tokio::test]
async fn killed_twenty_times_under_load_it_loses_nothing_that_was_answered() {
    let mut chance = Seeded::announced();
    let mut server = TestServer::start().await;
    let load = Load::start(&server, &mut chance, 4, 12);
    let mut slowest = Duration::ZERO;
    for round in 1..=20 {
        // A random moment, counted in pushes so that a slow machine has its load as well.
        load.recorder.accepts_more(chance.between(5, 100)).await;
        server.kill_9().await;
        server.start_again().await;
        slowest = slowest.max(server.ready_after());
        assert!(server.ready_after() < Duration::from_secs(15), "round {round}: {:?}", server.ready_after());
        assert_eq!(server.table().integrity().await, "ok", "round {round}");
    }
    println!("ready again within {slowest:?}");
    load.recorder.accepts_more(50).await;
    let (recorder, tokens) = load.finish().await;
    recorder.settle(&server, &tokens).await;
}

#[tokio::test]
async fn killed_between_commit_and_answer_a_keyed_retry_finds_the_row_and_an_unkeyed_one_makes_a_second() {
    for key in [Some("order-1"), None] {
        let mut server = TestServer::start().await;
        let proxy = ChaosProxy::in_front_of(server.address()).await;
        proxy.set(|faults| faults.swallow_answers = true);
        let api = Api::new(proxy.address);
        let body = r#"{"tokens":["1"],"entityType":"like","data":{"n":1}}"#;
        let push = async { api.try_post(key, body).await };
        let fault = async {
            proxy.swallowed_something().await;
            server.kill_9().await;
            proxy.cut();
        };
        let (answer, ()) = tokio::join!(push, fault);
        assert!(answer.is_err(), "the answer was swallowed: {answer:?}");

        server.start_again().await;
        let rows = server.table().rows("1").await;
        assert_eq!(rows.len(), 1, "what was about to be answered is in the table");
        let retry = server.api().try_post(key, body).await.unwrap().pushed();
        let (id, seq) = (retry.id.as_str(), retry.results[0].seq);
        let rows_after = server.table().rows("1").await;
        if key.is_some() {
            assert_eq!((id, seq, rows_after.len()), (rows[0].id.as_str(), 1, 1));
        } else {
            assert_eq!((id, seq, rows_after.len()), (rows_after[1].id.as_str(), 2, 2));
            assert_ne!(rows_after[0].id, rows_after[1].id);
        }
        assert_eq!(server.login("1").await.replay().await.messages.len(), rows_after.len());
    }
}

#[tokio::test]
async fn killed_after_the_emit_and_before_the_ack_was_written_it_delivers_once_more_with_the_same_id() {
    let mut server = TestServer::start().await;
    let mut socket = server.login_empty("1").await;
    let acked = server.api().push("1", r#""acked in time""#).await;
    let unacked = server.api().push("1", r#""ack lost""#).await;
    socket.expect_messages(2).await;
    socket.receipt("ack", &[&acked.id]).await;

    server.freeze().await;
    let lost = socket.call_later(&format!(r#"["ack",{{"ids":["{}"]}}]"#, unacked.id)).await.unwrap();
    server.kill_9().await;
    assert!(socket.answer(lost).await.is_err(), "nobody confirmed it");

    server.start_again().await;
    let mut socket = server.login("1").await;
    let replay = socket.replay().await;
    assert_eq!(replay.messages.len(), 1);
    assert_eq!((replay.messages[0].id.as_str(), replay.messages[0].seq), (unacked.id.as_str(), 2));
    socket.receipt("ack", &[&unacked.id]).await;
    assert_eq!(server.login("1").await.replay().await.count, 0);
}

#[tokio::test]
async fn a_pause_of_the_whole_process_loses_nothing() {
    let mut chance = Seeded::announced();
    let server = TestServer::start().await;
    let load = Load::start(&server, &mut chance, 2, 4);
    for _ in 0..3 {
        load.recorder.accepts_more(chance.between(5, 50)).await;
        server.freeze().await;
        sleep(Duration::from_millis(300)).await;
        server.thaw().await;
    }
    load.recorder.accepts_more(20).await;
    let (recorder, tokens) = load.finish().await;
    recorder.settle(&server, &tokens).await;
}

#[tokio::test]
async fn asked_to_stop_under_load_it_drains_and_ends_with_zero_in_time() {
    let mut chance = Seeded::announced();
    let mut server = TestServer::with(&["--drain-timeout-secs=10"]).await;
    for _ in 0..3 {
        let mut watcher = server.login_empty("nobody").await;
        let load = Load::start(&server, &mut chance, 4, 8);
        load.recorder.accepts_more(chance.between(30, 200)).await;
        let began = Instant::now();
        server.ask_to_stop().await;
        let told = watcher.expect_event("server_draining").await;
        assert!(told["retryMs"].is_u64(), "{told}");
        let (status, _) = server.ended().await;
        assert_eq!(status.code(), Some(0));
        assert!(began.elapsed() < Duration::from_secs(13), "stopping took {:?}", began.elapsed());
        watcher.expect_end().await;
        let (recorder, tokens) = load.finish().await;
        server.start_again().await;
        recorder.settle(&server, &tokens).await;
        // Each round has a database of its own.
        server.stop().await;
        server = TestServer::with(&["--drain-timeout-secs=10"]).await;
    }
}

#[tokio::test]
async fn idle_clients_and_silent_connections_do_not_hold_up_a_stop() {
    let mut server = TestServer::start().await;
    let mut sockets = Vec::new();
    for n in 0..20 {
        sockets.push(server.login_empty(&format!("user-{n}")).await);
    }
    let polling = Dial::new(server.address()).polling().connect().await;
    let silent = TcpStream::connect(server.address()).await.unwrap();
    let keep_alive = server.api();
    keep_alive.get("/api").await;
    let began = Instant::now();
    server.stop().await;
    assert!(began.elapsed() < Duration::from_secs(5), "nothing was to be waited for: {:?}", began.elapsed());
    drop((polling, silent, keep_alive));
    for socket in &mut sockets {
        timeout(PATIENCE, socket.expect_end()).await.unwrap();
    }
}

#[tokio::test]
async fn who_enters_while_it_stops_is_hung_up_on_and_so_comes_again() {
    let mut server = TestServer::with(&["--drain-timeout-secs=30"]).await;
    let mut late = Dial::new(server.address()).open().await.unwrap();
    let mut early = server.login_empty("1").await;
    // A push that is on its way holds up the end.
    let mut slow = TcpStream::connect(server.address()).await.unwrap();
    let head = "POST /api HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n";
    slow.write_all(head.as_bytes()).await.unwrap();
    assert!(slow.read(&mut [0; 64]).await.unwrap() > 0, "it is asked to go on");
    server.ask_to_stop().await;
    early.expect_end().await;
    late.send("40").await.unwrap();
    let told = late.expect_end().await;
    assert!(told.is_empty(), "a client that is refused the namespace gives up: {told:?}");
    slow.write_all(b"{}").await.unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "it was still there: {answer}");
    assert_eq!(server.ended().await.0.code(), Some(0));
}

#[tokio::test]
async fn interrupted_from_the_keyboard_it_stops_as_well() {
    let mut server = TestServer::start().await;
    server.api().push("1", &json!("kept").to_string()).await;
    server.interrupt().await;
    let (status, _) = server.ended().await;
    assert_eq!(status.code(), Some(0));
    assert_eq!(server.table().rows("1").await.len(), 1);
}
