//! Far more receipts at once than a socket may have other events waiting.

use std::collections::BTreeSet;

use serde_json::json;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message as Frame;

use super::{insert_rows, row_id};
use crate::server::{PATIENCE, TestServer};

#[tokio::test]
async fn a_flood_of_receipts_is_confirmed_whole_and_the_socket_stays_usable() {
    const ROWS: usize = 5_000;
    let server = TestServer::start().await;
    insert_rows(&server, "1", ROWS).await;
    server.api().push("2", "{}").await;
    let mut socket = server.login("1").await;
    assert_eq!(socket.replay().await.messages.len(), ROWS);
    let mut bystander = server.login("2").await;
    let theirs = bystander.replay().await.messages.remove(0);
    let before = server.resident_kib();

    // Half of the rows are acked and read in turn, the others first acked and then read.
    let (half, ids) = (ROWS / 2, |seqs: std::ops::RangeInclusive<usize>| seqs.map(row_id));
    let one_by_one = ids(1..=half).flat_map(|id| [("ack", id.clone()), ("read", id)]);
    let acks = ids(half + 1..=ROWS).map(|id| ("ack", id));
    let reads = ids(half + 1..=ROWS).map(|id| ("read", id));
    let (calls, packets): (Vec<_>, Vec<_>) = one_by_one
        .chain(acks)
        .chain(reads)
        .map(|(event, id)| {
            let (call, packet) = socket.packet_of_call(&json!([event, {"ids": [id]}]).to_string());
            ((call, event), packet)
        })
        .unzip();
    assert_eq!(calls.len(), 2 * ROWS);
    let write = async {
        for packet in packets {
            socket.send_frame(Frame::text(packet)).await.expect("the connection stays");
        }
    };
    timeout(PATIENCE, write).await.expect("the server reads on, whether or not its client does");

    let renewal = socket.call_later(r#"["user_login",{"tokenId":"1"}]"#).await.unwrap();
    let logout = socket.call_later(r#"["user_logout"]"#).await.unwrap();
    let login = socket.call_later(r#"["user_login",{"tokenId":"2"}]"#).await.unwrap();
    for call in [renewal, logout, login] {
        let answer = socket.answer(call).await.unwrap();
        assert_eq!(answer["ok"], json!(true), "{answer}");
    }
    bystander.receipt("read", &[&theirs.id]).await;
    server.api().push("2", r#""not busy""#).await;
    assert_eq!(bystander.expect_message().await.data.get(), r#""not busy""#);

    for (call, event) in calls {
        let answer = socket.answer(call).await.unwrap();
        assert_eq!(answer["ok"], json!(true), "{event}: {answer}");
    }
    let open = "select count(*) from notification where token = '1' and (delivered_at is null or read_at is null)";
    assert_eq!(server.table().count(open).await, 0, "every callback came after its commit");
    let grown = server.resident_kib().saturating_sub(before);
    assert!(grown < 64 * 1024, "memory grew by {grown} KiB");
    server.table().expect_sound().await;
    let mut later = server.connect().await;
    let login = later.login("1").await;
    assert_eq!((login.unread, login.undelivered), (0, 0));
}

#[tokio::test]
async fn a_flood_of_one_receipt_again_and_again_is_confirmed_each_time() {
    let server = TestServer::with(&["--event-queue=4"]).await;
    let id = server.api().push("1", "{}").await.id;
    let mut socket = server.login("1").await;
    socket.replay().await;
    let events =
        [json!(["ack", id]), json!(["ack", {"upTo": 1}]), json!(["read", [id]]), json!(["read", {"all": true}])];
    let (calls, packets): (Vec<_>, Vec<_>) =
        (0..4_000).map(|n| socket.packet_of_call(&events[n % events.len()].to_string())).unzip();
    socket.send_many(packets).await.unwrap();
    for call in calls {
        let answer = socket.answer(call).await.unwrap();
        assert_eq!(answer["ok"], json!(true), "{answer}");
    }
    let inbox = server.table().inbox("1").await.unwrap();
    assert_eq!((inbox.rev, inbox.unread), (2, 0), "it was read once, whatever was said about it later");
}

#[tokio::test]
async fn receipts_do_not_take_the_room_of_other_events() {
    let server = TestServer::with(&["--event-queue=2", "--socket-rate=0"]).await;
    insert_rows(&server, "1", 500).await;
    let mut socket = server.login("1").await;
    socket.replay().await;
    for seqs in [1..=250, 251..=500] {
        let acks = seqs.map(|seq| format!("42{}", json!(["ack", row_id(seq)])));
        socket.send_many(acks.collect()).await.unwrap();
        let login = socket.login("1").await;
        assert_eq!(login.rev, 500);
    }
    super::expect_all_delivered(&server).await;
}

#[tokio::test]
async fn another_tab_is_told_of_every_row_in_a_flood_of_reads() {
    const ROWS: usize = 500;
    let server = TestServer::start().await;
    insert_rows(&server, "1", ROWS).await;
    let (mut reader, mut other) = (server.login("1").await, server.login("1").await);
    for tab in [&mut reader, &mut other] {
        assert_eq!(tab.replay().await.messages.len(), ROWS);
    }
    let reads = (1..=ROWS).map(|seq| format!("42{}", json!(["read", row_id(seq)])));
    reader.send_many(reads.collect()).await.unwrap();
    let (mut read, mut rev, mut unread) = (BTreeSet::new(), 0, 0);
    while read.len() < ROWS {
        let changed = other.expect_event("inbox_changed").await;
        assert!(changed["rev"].as_i64() > Some(rev), "rev rises: {changed}");
        rev = changed["rev"].as_i64().unwrap();
        for change in changed["changes"].as_array().expect("a change of rows") {
            assert!(change["readAt"].is_string(), "{change}");
            assert!(read.insert(change["id"].as_str().unwrap().to_owned()), "told twice: {change}");
        }
        unread = changed["unread"].as_i64().unwrap();
        assert_eq!(unread, i64::try_from(ROWS - read.len()).unwrap(), "the count as of that rev");
    }
    assert_eq!(unread, 0);
    assert!(read.into_iter().eq((1..=ROWS).map(row_id)));
    server.api().push("1", r#""next""#).await;
    assert_eq!(other.expect_message().await.data.get(), r#""next""#, "nothing is told twice");
}
