//! `--unacked heartbeat`: for pages that never ack, a row counts as delivered when its socket outlived it.

use std::time::{Duration, Instant};

use tokio::time::{interval, timeout};

use crate::server::{PATIENCE, TestServer};
use crate::socket::{Dial, Engine};

#[tokio::test]
async fn with_heartbeat_a_row_counts_as_delivered_once_the_socket_has_outlived_it() {
    let server = TestServer::with(&["--unacked=heartbeat", "--ping-interval-secs=1", "--ping-timeout-secs=1"]).await;
    let mut socket = server.login_empty("1").await;
    server.api().push("1", "{}").await;
    server.api().push("offline", "{}").await;
    let seen = socket.expect_message().await;
    let table = server.table();
    let delivered = async {
        let mut pause = interval(Duration::from_millis(250));
        loop {
            // Reading answers the server's pings; nothing else is expected.
            tokio::select! {
                _ = pause.tick() => {}
                event = socket.event_at_last() => panic!("{event:?}"),
            }
            if table.rows("1").await[0].delivered_at.is_some() {
                break;
            }
        }
    };
    timeout(PATIENCE, delivered).await.expect("counted as delivered in time");
    assert_eq!(server.table().rows("1").await[0].id, seen.id);
    assert!(server.table().rows("1").await[0].read_at.is_none(), "delivered is not read");
    assert!(server.table().rows("offline").await[0].delivered_at.is_none());
    let replay = server.login("1").await.replay().await;
    assert_eq!((replay.count, replay.unread), (0, 1));
}

#[tokio::test]
async fn with_heartbeat_a_row_whose_socket_died_is_replayed() {
    let server = TestServer::with(&["--unacked=heartbeat", "--ping-interval-secs=1", "--ping-timeout-secs=1"]).await;
    let mut socket = server.login_empty("1").await;
    let pushed = server.api().push("1", "{}").await;
    socket.expect_message().await;
    drop(socket);
    let replay = server.login("1").await.replay().await;
    assert_eq!(replay.messages[0].id, pushed.id);
}

#[tokio::test]
async fn clients_of_either_protocol_may_be_silent_for_as_long_as_they_are_used_to() {
    let told = async |server: &TestServer, engine| {
        let socket = Dial::new(server.address()).engine(engine).connect().await;
        let handshake: serde_json::Value = serde_json::from_str(&socket.handshake).unwrap();
        [handshake["pingInterval"].as_u64(), handshake["pingTimeout"].as_u64()].map(|millis| millis.expect("a number"))
    };
    let server = TestServer::start().await;
    assert_eq!(told(&server, Engine::V3).await, [25_000, 60_000]);
    assert_eq!(told(&server, Engine::V4).await, [25_000, 20_000]);

    let flags = ["--ping-interval-secs=1", "--ping-timeout-secs=1", "--ping-timeout-2x-secs=5"];
    let server = TestServer::with(&flags).await;
    assert_eq!(told(&server, Engine::V3).await, [1000, 5000]);
    let began = Instant::now();
    for dial in [Dial::new(server.address()), Dial::new(server.address()).polling()] {
        let mut old = dial.engine(Engine::V3).connect().await;
        old.login("1").await;
        old.replay().await;
        // It says nothing for longer than a new client may, then pings, and lives on.
        old.expect_quiet(Duration::from_secs(3)).await;
        old.send("2").await.unwrap();
        old.expect_quiet(Duration::from_secs(4)).await;
        server.api().push("1", "1").await;
        assert_eq!(old.expect_message().await.data.get(), "1");
        old.ack_up_to(i64::MAX).await;
        old.expect_end().await;
    }
    assert!(began.elapsed() > Duration::from_secs(12), "each was silent for 6 seconds at its end");
}

#[tokio::test]
async fn with_heartbeat_an_old_client_has_to_outlive_its_own_patience() {
    let flags = ["--unacked=heartbeat", "--ping-interval-secs=1", "--ping-timeout-secs=1", "--ping-timeout-2x-secs=4"];
    let server = TestServer::with(&flags).await;
    let mut old = Dial::new(server.address()).engine(Engine::V3).connect().await;
    let mut new = server.login_empty("new").await;
    old.login("old").await;
    old.replay().await;
    for token in ["new", "old"] {
        server.api().push(token, "{}").await;
    }
    let (mut pause, mut counted) = (interval(Duration::from_millis(250)), [None, None]);
    let began = Instant::now();
    let both = async {
        while counted.contains(&None) {
            tokio::select! {
                _ = pause.tick() => old.send("2").await.unwrap(),
                event = new.event_at_last() => assert_eq!(event.unwrap().name, "receive_message"),
            }
            for (at, token) in ["new", "old"].into_iter().enumerate() {
                if counted[at].is_none() && server.table().rows(token).await[0].delivered_at.is_some() {
                    counted[at] = Some(began.elapsed());
                }
            }
        }
    };
    timeout(PATIENCE, both).await.expect("both count as delivered in time");
    let [Some(new), Some(old)] = counted else { unreachable!() };
    assert!(new < old && old >= Duration::from_secs(10), "{new:?} {old:?}");
}
