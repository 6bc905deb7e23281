//! What an inbox keeps is bounded on request, and what goes is told, even to a client that is just catching up.

use serde_json::json;
use tokio::time::{Duration, interval, timeout};

use crate::server::{PATIENCE, TestServer};

/// Waits until an inbox has this many rows.
async fn rows_become(server: &TestServer, token: &str, rows: usize) {
    let mut pause = interval(Duration::from_millis(50));
    let shrinks = async {
        while server.table().rows(token).await.len() != rows {
            pause.tick().await;
        }
    };
    timeout(PATIENCE, shrinks).await.expect("the inbox shrinks in time");
}

#[tokio::test]
async fn an_inbox_keeps_its_newest_rows_and_live_clients_are_told_what_went() {
    let server = TestServer::with(&["--keep-rows=5", "--retention-interval-secs=1"]).await;
    let mut socket = server.login_empty("1").await;
    let pushed = server.api().push_numbers("1", 12).await;
    server.api().push("2", "{}").await;
    let mut gone: Vec<String> = Vec::new();
    let (mut unread, mut rev) = (0, 0);
    while gone.len() < 7 {
        let event = socket.event().await;
        if event.name == "receive_message" {
            continue;
        }
        assert_eq!(event.name, "inbox_changed", "{}", event.text());
        let change = event.value();
        for row in change["changes"].as_array().unwrap() {
            assert_eq!((&row["retracted"], &row["expired"]), (&json!(true), &json!(true)));
            gone.push(row["id"].as_str().unwrap().to_owned());
        }
        (unread, rev) = (change["unread"].as_i64().unwrap(), change["rev"].as_i64().unwrap());
    }
    let ids = |range: std::ops::Range<usize>| pushed[range].iter().map(|pushed| pushed.id.clone()).collect::<Vec<_>>();
    gone.sort();
    assert_eq!(gone, ids(0..7), "the oldest go");
    rows_become(&server, "1", 5).await;
    assert_eq!(server.table().rows("2").await.len(), 1, "a small inbox is left alone");
    server.table().expect_sound().await;
    let later = server.connect().await.login("1").await;
    assert_eq!((later.unread, later.rev), (unread, rev));
    assert_eq!(later.unread, 5);
}

#[tokio::test]
async fn a_purge_during_a_replay_leaves_out_what_is_gone_and_nothing_else() {
    let flags = ["--keep-rows=20", "--retention-interval-secs=1", "--window=5", "--replay-rows=5"];
    let server = TestServer::with(&flags).await;
    server.api().push_numbers("1", 60).await;
    let mut socket = server.connect().await;
    socket.login_batch("1").await;
    let mut seen = Vec::new();
    while seen.len() < 5 {
        seen.extend(socket.event().await.messages().into_iter().map(|message| message.seq));
    }
    // Its window is full, and while it stands still most of what it has not got is removed.
    rows_become(&server, "1", 20).await;
    loop {
        socket.ack_up_to(*seen.last().unwrap()).await;
        let event = socket.event().await;
        if event.name == "replay_complete" {
            assert_eq!(event.value()["count"], json!(seen.len()));
            break;
        }
        seen.extend(event.messages().into_iter().map(|message| message.seq));
    }
    assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "{seen:?}");
    assert!((41..=60).all(|seq| seen.contains(&seq)), "all that is kept came: {seen:?}");
    assert!(seen.len() < 40, "what is gone did not: {seen:?}");
    server.table().expect_sound().await;
}

#[tokio::test]
async fn upkeep_waits_while_another_node_does_it_and_pushes_do_not() {
    const UPKEEP: &str = "select pg_advisory_xact_lock(32766977284925299)";
    let flags = ["--keep-rows=5", "--retention-interval-secs=1"];
    let builder = flags.iter().fold(TestServer::builder().on_postgres(), |builder, flag| builder.flag(flag));
    let server = builder.start().await;
    let another = crate::table::OpenTransaction::holding(server.place(), UPKEEP).await;
    let mut socket = server.login_empty("1").await;
    for n in 1..=30 {
        server.api().push("1", "{}").await;
        assert_eq!(socket.expect_message().await.seq, n);
    }
    // Two rounds and more.
    socket.expect_quiet(Duration::from_millis(2500)).await;
    assert_eq!(server.table().rows("1").await.len(), 30);
    drop(another);
    rows_become(&server, "1", 5).await;
    server.table().expect_sound().await;
}
