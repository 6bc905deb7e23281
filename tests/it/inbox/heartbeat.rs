//! `--unacked heartbeat`: for pages that never ack, a row counts as delivered when its socket outlived it.

use std::time::Duration;

use tokio::time::{interval, timeout};

use crate::server::{PATIENCE, TestServer};

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
