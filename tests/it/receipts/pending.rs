//! Receipts whose commit waits, because somebody holds a lock in the database, or fails.

use serde_json::json;

use super::{RowLock, expect_all_delivered, insert_rows, row_id};
use crate::server::TestServer;
use crate::socket::Socket;

/// Longer than any test holds a lock.
const PATIENT: &str = "--store-timeout-secs=60";

/// Receives up to the end of the replay, and acks each message alone with a callback as it comes.
async fn replay_with_acks(socket: &mut Socket) -> (Vec<i64>, Vec<u64>) {
    let (mut seqs, mut calls) = (Vec::new(), Vec::new());
    loop {
        let event = socket.event().await;
        if event.name == "replay_complete" {
            return (seqs, calls);
        }
        for message in event.messages() {
            seqs.push(message.seq);
            let call = socket.call_later(&json!(["ack", message.id]).to_string()).await;
            calls.push(call.expect("the connection stays"));
        }
    }
}

async fn undelivered(server: &TestServer, token: &str) -> i64 {
    let sql = format!("select count(*) from notification where token = '{token}' and delivered_at is null");
    server.table().count(&sql).await
}

#[tokio::test]
async fn receipts_that_wait_in_memory_are_stored_before_a_stop_ends_the_process() {
    const ROWS: usize = 1_200;
    let mut server = TestServer::with(&[PATIENT]).await;
    insert_rows(&server, "1", ROWS).await;
    let mut socket = server.login("1").await;
    socket.replay().await;
    let lock = RowLock::take(&server, "1").await;
    // Those without a callback linger for company, the others are merged behind the one that waits for its commit.
    let acks = (1..=800).map(|seq| format!("42{}", json!(["ack", row_id(seq)])));
    socket.send_many(acks.collect()).await.unwrap();
    for seq in 801..=ROWS {
        let event = if seq % 2 == 0 { "ack" } else { "read" };
        socket.call_later(&json!([event, {"ids": [row_id(seq)]}]).to_string()).await.unwrap();
    }
    let refused = socket.call(r#"["ack",null]"#).await;
    assert_eq!(refused["code"], json!("invalid_payload"), "all before it was taken: {refused}");
    assert_eq!(undelivered(&server, "1").await, 1_200, "nothing is committed yet");
    server.ask_to_stop().await;
    drop(lock);
    let (status, _) = server.ended().await;
    assert_eq!(status.code(), Some(0));
    assert_eq!(undelivered(&server, "1").await, 0);
    assert_eq!(server.table().inbox("1").await.unwrap().unread, 1_000);
    server.table().expect_sound().await;
}

#[tokio::test]
async fn later_events_do_not_wait_for_an_ack_whose_commit_waits() {
    let server = TestServer::with(&[PATIENT]).await;
    server.api().push_numbers("1", 3).await;
    server.api().push("2", r#""for 2""#).await;
    let mut socket = server.login("1").await;
    socket.replay().await;
    let lock = RowLock::take(&server, "1").await;
    let ack = socket.call_later(r#"["ack",{"upTo":3}]"#).await.unwrap();

    let renewed = socket.login("1").await;
    assert_eq!((renewed.rev, renewed.undelivered), (3, 3), "nothing is committed yet");
    let refused = socket.call(r#"["ack",null]"#).await;
    assert_eq!(refused["code"], json!("invalid_payload"), "{refused}");
    assert_eq!(socket.call(r#"["user_logout"]"#).await, json!({"ok": true}));
    let refused = socket.call(r#"["ack",{"upTo":3}]"#).await;
    assert_eq!(refused["code"], json!("not_logged_in"), "{refused}");
    socket.login("2").await;
    assert_eq!(socket.replay().await.data(), [r#""for 2""#]);
    assert!(!socket.is_answered(ack), "the callback comes after the commit");
    assert_eq!(undelivered(&server, "1").await, 3);

    drop(lock);
    assert_eq!(socket.answer(ack).await.unwrap(), json!({"ok": true}), "it still comes, to whoever is logged in now");
    assert_eq!((undelivered(&server, "1").await, undelivered(&server, "2").await), (0, 1));
}

#[tokio::test]
async fn receipts_of_every_kind_wait_together_and_are_confirmed_after_their_commit() {
    const ROWS: usize = 200;
    let server = TestServer::with(&[PATIENT]).await;
    insert_rows(&server, "1", ROWS).await;
    let mut socket = server.login("1").await;
    socket.replay().await;
    socket.receipt("read", &[&row_id(1)]).await;
    let lock = RowLock::take(&server, "1").await;
    let mut calls = Vec::new();
    for seq in 1..=ROWS {
        let event = ["unread", "ack", "read"][seq.min(3) - 1];
        calls.push(socket.call_later(&json!([event, {"ids": [row_id(seq)]}]).to_string()).await.unwrap());
    }
    let renewed = socket.login("1").await;
    assert_eq!((renewed.unread, renewed.undelivered), (199, 199));
    assert!(calls.iter().all(|call| !socket.is_answered(*call)), "callbacks come after the commit");
    drop(lock);
    for call in calls {
        let answer = socket.answer(call).await.unwrap();
        assert_eq!(answer["ok"], json!(true), "{answer}");
    }
    let rows = server.table().rows("1").await;
    assert!(rows.iter().all(|row| row.delivered_at.is_some()));
    assert!(rows.iter().map(|row| row.read_at.is_some()).eq((1..=ROWS).map(|seq| seq > 2)));
    assert_eq!(server.table().inbox("1").await.unwrap().unread, 2);
}

#[tokio::test]
async fn a_replay_goes_on_while_the_commit_of_its_acks_waits() {
    const ROWS: usize = 1_000;
    let server = TestServer::with(&[PATIENT]).await;
    insert_rows(&server, "1", ROWS).await;
    for batch in [false, true] {
        let lock = RowLock::take(&server, "1").await;
        let mut socket = server.connect().await;
        let login = if batch { socket.login_batch("1").await } else { socket.login("1").await };
        assert_eq!(login.undelivered, 1_000);
        let (seqs, calls) = replay_with_acks(&mut socket).await;
        assert!(seqs.into_iter().eq(1..=1_000), "every row, once and in order");
        assert!(calls.iter().all(|call| !socket.is_answered(*call)), "callbacks come after the commit");
        assert_eq!(undelivered(&server, "1").await, 1_000);
        drop(lock);
        for call in calls {
            assert_eq!(socket.answer(call).await.unwrap(), json!({"ok": true}));
        }
        assert_eq!(undelivered(&server, "1").await, 0);
        server.table().change("update notification set delivered_at = null").await;
        server.table().change("update inbox set delivered_upto = 0").await;
    }
}

#[tokio::test]
async fn a_receipt_that_cannot_be_stored_frees_its_window_and_its_rows_come_again() {
    const ROWS: usize = 130;
    let server = TestServer::with(&["--store-timeout-secs=1"]).await;
    insert_rows(&server, "1", ROWS).await;
    for event in ["ack", "read"] {
        let lock = RowLock::take(&server, "1").await;
        let mut socket = server.connect().await;
        socket.login_batch("1").await;
        let mut seqs = Vec::new();
        // Confirms only what it has got, and only when the answer to what it confirmed before has come.
        loop {
            let mut ids = Vec::new();
            let mut complete = false;
            while ids.len() < 64 && !complete {
                let event = socket.event().await;
                complete = event.name == "replay_complete";
                ids.extend(event.messages().into_iter().map(|message| {
                    seqs.push(message.seq);
                    message.id
                }));
            }
            if complete {
                break;
            }
            let answer = socket.call(&json!([event, {"ids": ids}]).to_string()).await;
            assert_eq!((&answer["ok"], &answer["code"]), (&json!(false), &json!("unavailable")), "{answer}");
        }
        assert!(seqs.into_iter().eq(1..=130), "every row, once and in order");
        let mut again = server.connect().await;
        assert_eq!(again.login("1").await.undelivered, 130, "none is marked");
        assert!(again.replay().await.messages.iter().map(|message| message.seq).eq(1..=130), "all of them come again");

        drop(lock);
        let ack = async { while socket.call(r#"["ack",{"upTo":130}]"#).await["ok"] != json!(true) {} };
        tokio::time::timeout(crate::server::PATIENCE, ack).await.expect("the database works again");
        assert_eq!(undelivered(&server, "1").await, 0);
        if event == "ack" {
            server.table().change("update notification set delivered_at = null").await;
            server.table().change("update inbox set delivered_upto = 0").await;
        }
    }
    server.table().expect_sound().await;
}

#[tokio::test]
async fn receipts_that_wait_when_their_socket_leaves_are_stored() {
    const ROWS: usize = 300;
    let server = TestServer::with(&[PATIENT]).await;
    insert_rows(&server, "1", ROWS).await;
    let mut socket = server.login("1").await;
    socket.replay().await;
    let lock = RowLock::take(&server, "1").await;
    let acks = (1..=ROWS).map(|seq| format!("42{}", json!(["ack", row_id(seq)])));
    socket.send_many(acks.collect()).await.unwrap();
    // Answered, so all that was sent before has arrived.
    socket.login("1").await;
    drop(socket);
    let gone = async { while server.metric("tidings_sessions").await > 0.0 {} };
    tokio::time::timeout(crate::server::PATIENCE, gone).await.expect("the session ends with its socket");
    drop(lock);
    expect_all_delivered(&server).await;
}

#[tokio::test]
async fn receipts_that_wait_when_the_server_is_stopped_are_stored() {
    const ROWS: usize = 300;
    let mut server = TestServer::start().await;
    insert_rows(&server, "1", ROWS).await;
    let mut socket = server.login("1").await;
    socket.replay().await;
    let acks = (1..=ROWS).map(|seq| format!("42{}", json!(["ack", row_id(seq)])));
    socket.send_many(acks.collect()).await.unwrap();
    socket.login("1").await;
    server.stop().await;
    assert_eq!(undelivered(&server, "1").await, 0);
}
