//! Polling, websockets, and the way from one to the other while pushes arrive, for clients of both protocol versions; and
//! lines that are slow or cut.

use std::time::Duration;

use serde_json::json;

use crate::api::Api;
use crate::proxy::ChaosProxy;
use crate::server::TestServer;
use crate::socket::{Dial, Engine, Socket};

/// Pushes `{"n":..}` in the background, 1 to `count`.
fn pushing(api: Api, count: usize) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        api.push_numbers("1", count).await;
    })
}

/// Reads until the row with that seq has come; every seq on the way.
async fn seqs_until(socket: &mut Socket, last: i64) -> Vec<i64> {
    let mut seqs = Vec::new();
    while seqs.last() != Some(&last) {
        seqs.extend(socket.event().await.messages().iter().map(|message| message.seq));
    }
    seqs
}

#[tokio::test]
async fn a_polling_client_gets_replay_and_live_in_order_and_can_ack() {
    let server = TestServer::start().await;
    for engine in [Engine::V3, Engine::V4] {
        let token = format!("engine-{}", engine.number());
        let pushed = server.api().push_numbers(&token, 3).await;
        server.api().push(&token, r#""é😀 in UTF-16 is not as long""#).await;
        let mut socket = Dial::new(server.address()).engine(engine).polling().connect().await;
        socket.login(&token).await;
        assert_eq!(socket.replay().await.data()[..3], [r#"{"n":1}"#, r#"{"n":2}"#, r#"{"n":3}"#]);
        socket.receipt("ack", &[&pushed[0].id, &pushed[1].id]).await;
        server.api().push(&token, r#""😀 live""#).await;
        assert_eq!(socket.expect_message().await.data.get(), r#""😀 live""#);
        socket.receipt("read", &[&pushed[2].id]).await;
        let replay = server.login(&token).await.replay().await;
        assert_eq!(replay.messages.iter().map(|message| message.seq).collect::<Vec<_>>(), [4, 5]);
    }
}

#[tokio::test]
async fn a_request_without_a_protocol_version_is_taken_for_the_oldest() {
    let server = TestServer::start().await;
    let answer = server.api().get("/socket.io/?transport=polling").await;
    assert!(answer.status == 200 && answer.text.contains(r#":0{"sid":""#), "the framing of engine.io 3: {answer:?}");
}

#[tokio::test]
async fn polling_only_during_pushes_loses_doubles_and_disorders_nothing() {
    let server = TestServer::start().await;
    server.api().push_numbers("1", 100).await;
    let run = pushing(server.api(), 300);
    let mut old = Dial::new(server.address()).engine(Engine::V3).polling().connect().await;
    let mut new = Dial::new(server.address()).engine(Engine::V4).polling().connect().await;
    old.login("1").await;
    new.login("1").await;
    for socket in [&mut old, &mut new] {
        assert!(seqs_until(socket, 400).await.into_iter().eq(1..=400));
    }
    run.await.unwrap();
}

#[tokio::test]
async fn an_upgrade_during_pushes_loses_doubles_and_disorders_nothing() {
    let server = TestServer::start().await;
    for (round, engine) in [Engine::V3, Engine::V4].into_iter().cycle().take(12).enumerate() {
        let token = format!("round-{round}");
        let api = server.api();
        let mut socket = Dial::new(server.address()).engine(engine).polling().connect().await;
        socket.login(&token).await;
        let run = tokio::spawn(async move { api.push_numbers(&token, 120).await });
        // Some rounds upgrade at once, some with a poll that is open, some in the middle of the stream.
        let mut seqs = Vec::new();
        if round % 3 == 1 {
            assert_eq!(socket.event().await.name, "replay_complete");
        }
        if round % 3 == 2 {
            seqs = seqs_until(&mut socket, 40).await;
        }
        socket.upgrade().await;
        seqs.extend(seqs_until(&mut socket, 120).await);
        assert!(seqs.iter().copied().eq(1..=120), "round {round}, {engine:?}: {seqs:?}");
        run.await.unwrap();
    }
}

#[tokio::test]
async fn an_upgrade_in_the_middle_of_a_replay_larger_than_one_poll_loses_nothing() {
    let server = TestServer::start().await;
    let data = format!("\"{}\"", "x".repeat(25_000));
    for (round, engine) in [Engine::V4, Engine::V3].into_iter().cycle().take(6).enumerate() {
        let token = format!("round-{round}");
        for _ in 0..12 {
            server.api().push(&token, &data).await;
        }
        let mut socket = Dial::new(server.address()).engine(engine).polling().connect().await;
        socket.login(&token).await;
        let mut seqs: Vec<i64> = Vec::new();
        while seqs.len() < round {
            seqs.extend(socket.event().await.messages().iter().map(|message| message.seq));
        }
        socket.upgrade().await;
        seqs.extend(seqs_until(&mut socket, 12).await);
        assert!(seqs.iter().copied().eq(1..=12), "round {round}, {engine:?}: {seqs:?}");
    }
}

#[tokio::test]
async fn a_poll_of_more_than_one_answer_comes_in_order_and_whole() {
    let server = TestServer::with(&["--max-message-bytes=20000"]).await;
    let data = format!("\"{}\"", "é".repeat(4000));
    for _ in 0..60 {
        server.api().push("1", &data).await;
    }
    for engine in [Engine::V3, Engine::V4] {
        let mut socket = Dial::new(server.address()).engine(engine).polling().connect().await;
        socket.login("1").await;
        let replay = socket.replay().await;
        assert!(replay.messages.iter().map(|message| message.seq).eq(1..=60), "{engine:?}");
        assert!(replay.messages.iter().all(|message| message.data.get() == data), "{engine:?}");
    }
}

/// The packet of a `read` that has so many bytes, most of them blanks, and the number of its callback.
fn read_of(socket: &mut Socket, id: &str, bytes: usize) -> (u64, String) {
    let (call, packet) = socket.packet_of_call(&format!(r#"["read",["{id}"]]"#));
    let blanks = " ".repeat(bytes - packet.len());
    (call, packet.replacen('[', &format!("[{blanks}"), 1))
}

fn body_of(engine: Engine, packets: &[String]) -> String {
    match engine {
        Engine::V3 => packets.iter().map(|packet| format!("{}:{packet}", packet.len())).collect(),
        Engine::V4 => packets.join("\u{1e}"),
    }
}

#[tokio::test]
async fn a_message_has_one_limit_by_polling_and_by_websocket() {
    const LIMIT: usize = 2000;
    let server = TestServer::with(&[&format!("--max-message-bytes={LIMIT}")]).await;
    let id = server.api().push("1", "1").await.id;
    for engine in [Engine::V3, Engine::V4] {
        for dial in [Dial::new(server.address()), Dial::new(server.address()).polling()] {
            let dial = dial.engine(engine);
            let mut socket = dial.clone().connect().await;
            socket.login("1").await;
            let (call, packet) = read_of(&mut socket, &id, LIMIT);
            socket.send(&packet).await.expect("it is taken");
            assert_eq!(socket.answer(call).await.expect("an answer")["ok"], json!(true), "{dial:?}");
            let (_, packet) = read_of(&mut socket, &id, LIMIT + 1);
            if let Err(gone) = socket.send(&packet).await {
                assert!(gone.0.contains("413"), "{dial:?}: {gone}");
            }
            socket.expect_end().await;
        }
    }
}

#[tokio::test]
async fn a_poll_takes_as_many_bytes_as_the_handshake_says() {
    const LIMIT: usize = 2000;
    let server = TestServer::with(&[&format!("--max-message-bytes={LIMIT}"), "--socket-rate=0"]).await;
    let id = server.api().push("1", "1").await.id;
    for (engine, messages) in [(Engine::V4, 16), (Engine::V3, 64)] {
        let dial = Dial::new(server.address()).engine(engine).polling();
        let mut socket = dial.connect().await;
        let handshake: serde_json::Value = serde_json::from_str(&socket.handshake).expect("JSON");
        assert_eq!(handshake["maxPayload"], json!(messages * LIMIT), "{engine:?}");
        socket.login("1").await;
        socket.replay().await;
        let framing = if engine == Engine::V3 { "2000:".len() } else { "\u{1e}".len() };
        let reads: Vec<_> = (0..messages).map(|_| read_of(&mut socket, &id, LIMIT - framing)).collect();
        let (calls, packets): (Vec<_>, Vec<_>) = reads.into_iter().unzip();
        let mut body = body_of(engine, &packets);
        assert!(messages * LIMIT - body.len() < 2 * messages);
        socket.send_body(body.clone()).await.expect("it is taken");
        for call in calls {
            assert_eq!(socket.answer(call).await.expect("an answer")["ok"], json!(true), "{engine:?}");
        }
        body.push_str(&body_of(engine, &[String::new(), read_of(&mut socket, &id, 100).1]));
        let gone = socket.send_body(body).await.expect_err("it is too large");
        assert!(gone.0.contains("413"), "{engine:?}: {gone}");
        socket.expect_end().await;
    }
}

#[tokio::test]
async fn a_client_whose_line_is_cut_again_and_again_ends_up_with_everything_once() {
    let server = TestServer::start().await;
    let proxy = ChaosProxy::in_front_of(server.address()).await;
    let run = pushing(server.api(), 400);
    let (mut seen, mut cuts) = (std::collections::BTreeSet::new(), 0);
    while seen.len() < 400 {
        let Ok(mut socket) = Dial::new(proxy.address).try_connect().await else { continue };
        let mut open = socket.try_call(r#"["user_login",{"tokenId":"1"}]"#).await.is_ok();
        let mut session = Vec::new();
        while open && seen.len() < 400 {
            let Ok(event) = socket.try_event().await else { break };
            let messages = event.messages();
            session.extend(messages.iter().map(|message| message.seq));
            seen.extend(messages.iter().map(|message| message.seq));
            if let Some(top) = messages.last().map(|message| message.seq).filter(|top| top % 5 == 0) {
                open = socket.try_call(&format!(r#"["ack",{{"upTo":{top}}}]"#)).await.is_ok();
            }
            if session.len() > 30 && cuts < 10 {
                cuts += 1;
                proxy.cut();
            }
        }
        assert!(session.is_sorted_by(|a, b| a < b), "{session:?}");
    }
    run.await.unwrap();
    assert_eq!(cuts, 10);
    assert!(seen.into_iter().eq(1..=400));
}

#[tokio::test]
async fn a_half_closed_line_is_a_closed_one() {
    let server = TestServer::with(&["--max-sockets-per-token=1"]).await;
    let proxy = ChaosProxy::in_front_of(server.address()).await;
    let mut socket = Dial::new(proxy.address).connect().await;
    socket.login("1").await;
    socket.expect_event("replay_complete").await;
    proxy.half_close();
    socket.expect_end().await;
    // Its place is free, so the server let go of it.
    let place = async {
        while server.connect().await.call(r#"["user_login",{"tokenId":"1"}]"#).await["ok"] != serde_json::json!(true) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::server::PATIENCE, place).await.expect("a place is free again in time");
}

#[tokio::test]
async fn a_client_that_answers_no_ping_is_dropped_and_replayed_to_later() {
    let server = TestServer::with(&["--ping-interval-secs=1", "--ping-timeout-secs=1"]).await;
    let proxy = ChaosProxy::in_front_of(server.address()).await;
    let mut deaf = Dial::new(proxy.address).connect().await;
    deaf.login("1").await;
    deaf.expect_event("replay_complete").await;
    // The server's words vanish, so its pings are never answered; it sees an open connection.
    proxy.set(|faults| faults.swallow_answers = true);
    let began = std::time::Instant::now();
    let pushed = server.api().push("1", "{}").await;
    proxy.swallowed_something().await;
    deaf.expect_end().await;
    // Ping interval and timeout are two seconds together.
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(server.metric("tidings_sessions").await, 0.0);
    assert_eq!(server.table().count("select count(*) from notification where delivered_at is null").await, 1);
    assert_eq!(server.login("1").await.replay().await.messages[0].id, pushed.id);
}

#[tokio::test]
async fn a_client_that_polls_no_more_is_dropped_and_replayed_to_later() {
    let flags = ["--ping-interval-secs=1", "--ping-timeout-secs=1", "--ping-timeout-2x-secs=1"];
    let server = TestServer::with(&flags).await;
    for engine in [Engine::V3, Engine::V4] {
        let token = format!("engine-{}", engine.number());
        let mut deaf = Dial::new(server.address()).engine(engine).polling().connect().await;
        deaf.login(&token).await;
        deaf.expect_event("replay_complete").await;
        let pushed = server.api().push(&token, "{}").await;
        let dropped = async {
            while server.metric("tidings_sessions").await > 0.0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), dropped).await.expect("it is dropped in time");
        let sql = format!("select count(*) from notification where token = '{token}' and delivered_at is null");
        assert_eq!(server.table().count(&sql).await, 1);
        let mut back = server.login(&token).await;
        assert_eq!(back.replay().await.messages[0].id, pushed.id);
        back.call(r#"["user_logout"]"#).await;
    }
}

#[tokio::test]
async fn a_slow_line_only_delays() {
    let server = TestServer::start().await;
    let proxy = ChaosProxy::in_front_of(server.address()).await;
    proxy.set(|faults| faults.delay = Duration::from_millis(20));
    let mut socket = Dial::new(proxy.address).connect().await;
    socket.login("1").await;
    socket.expect_event("replay_complete").await;
    server.api().push_numbers("1", 50).await;
    assert!(seqs_until(&mut socket, 50).await.into_iter().eq(1..=50));
}
