//! Receipts beside logins, logouts, disconnects and other tabs.

use serde_json::json;

use super::{expect_all_delivered, insert_rows, row_id};
use crate::server::TestServer;
use crate::socket::{Dial, Engine};

#[tokio::test]
async fn acks_sent_right_before_a_disconnect_are_stored() {
    const ROWS: usize = 500;
    let server = TestServer::start().await;
    for (number, (engine, polling)) in
        [(Engine::V3, false), (Engine::V4, false), (Engine::V3, true), (Engine::V4, true)].into_iter().enumerate()
    {
        for (way, last) in [None, Some("41"), Some("1")].into_iter().enumerate() {
            let token = format!("user-{number}-{way}");
            insert_rows(&server, &token, ROWS).await;
            let dial = Dial::new(server.address()).engine(engine);
            let mut socket = if polling { dial.polling() } else { dial }.connect().await;
            socket.login(&token).await;
            assert_eq!(socket.replay().await.messages.len(), ROWS);
            let acks = (1..=ROWS).map(|seq| format!("42{}", json!(["ack", row_id(seq)])));
            let packets = acks.chain(last.map(str::to_owned));
            socket.send_many(packets.collect()).await.unwrap();
        }
    }
    expect_all_delivered(&server).await;
}

#[tokio::test]
async fn two_tabs_that_ack_the_same_rows_both_get_all_of_them() {
    const ROWS: i64 = 300;
    let server = TestServer::start().await;
    insert_rows(&server, "1", 300).await;
    let (mut first, mut second) = (server.connect().await, server.connect().await);
    first.login("1").await;
    second.login_batch("1").await;
    let pushing = tokio::spawn({
        let api = server.api();
        async move { api.push_numbers("1", 50).await }
    });
    // One acks each message as it comes, the other all of a batch, the newest first.
    let first_tab = async {
        let mut seqs = Vec::new();
        while seqs.last() < Some(&(ROWS + 50)) {
            for message in first.event().await.messages() {
                seqs.push(message.seq);
                first.emit(&json!(["ack", message.id]).to_string()).await;
            }
        }
        seqs
    };
    let second_tab = async {
        let mut seqs = Vec::new();
        while seqs.last() < Some(&(ROWS + 50)) {
            let messages = second.event().await.messages();
            seqs.extend(messages.iter().map(|message| message.seq));
            let acks = messages.iter().rev().map(|message| format!("42{}", json!(["ack", [message.id]])));
            second.send_many(acks.collect()).await.unwrap();
        }
        seqs
    };
    let (first_seqs, second_seqs) = tokio::join!(first_tab, second_tab);
    assert!(first_seqs.into_iter().eq(1..=ROWS + 50), "every row, once and in order");
    assert!(second_seqs.into_iter().eq(1..=ROWS + 50), "every row, once and in order");
    pushing.await.unwrap();
    expect_all_delivered(&server).await;
    assert_eq!(server.table().inbox("1").await.unwrap().unread, ROWS + 50, "acked is not read");
}

#[tokio::test]
async fn receipts_on_their_way_at_a_logout_never_touch_the_rows_of_the_next_login() {
    const ROWS: usize = 300;
    let server = TestServer::start().await;
    // The same ids in both inboxes, as after pushes to both.
    for token in ["alice", "bob"] {
        insert_rows(&server, token, ROWS).await;
    }
    let mut socket = server.login("alice").await;
    socket.replay().await;
    let ids = |seqs: std::ops::RangeInclusive<usize>| seqs.map(row_id).collect::<Vec<_>>();
    let mut events: Vec<String> = Vec::new();
    events.extend(ids(1..=ROWS).iter().map(|id| json!(["ack", id]).to_string()));
    events.extend(ids(1..=100).iter().map(|id| json!(["read", {"ids": [id]}]).to_string()));
    events.push(r#"["user_logout"]"#.to_owned());
    events.push(r#"["ack",{"upTo":300}]"#.to_owned());
    events.push(r#"["user_login",{"tokenId":"bob"}]"#.to_owned());
    events.extend(ids(1..=10).iter().map(|id| json!(["read", [id]]).to_string()));
    let (calls, packets): (Vec<_>, Vec<_>) = events
        .iter()
        .map(|event| {
            let (call, packet) = socket.packet_of_call(event);
            ((call, event), packet)
        })
        .unzip();
    socket.send_many(packets).await.unwrap();
    for (call, event) in calls {
        let answer = socket.answer(call).await.unwrap();
        if event == r#"["ack",{"upTo":300}]"# {
            assert_eq!(answer["code"], json!("not_logged_in"), "between the two: {answer}");
        } else {
            assert_eq!(answer["ok"], json!(true), "{event}: {answer}");
        }
    }
    for (token, delivered, read) in [("alice", ROWS, 100), ("bob", 10, 10)] {
        let rows = server.table().rows(token).await;
        assert!(
            rows.iter().map(|row| row.delivered_at.is_some()).eq((1..=ROWS).map(|seq| seq <= delivered)),
            "{token}"
        );
        assert!(rows.iter().map(|row| row.read_at.is_some()).eq((1..=ROWS).map(|seq| seq <= read)), "{token}");
        assert_eq!(server.table().inbox(token).await.unwrap().unread, i64::try_from(ROWS - read).unwrap(), "{token}");
    }
}

#[tokio::test]
async fn receipts_sent_behind_a_login_without_waiting_for_its_answer_count() {
    let server = TestServer::start().await;
    server.api().push_numbers("1", 3).await;
    for (event, expected) in [
        (r#"["ack",{"upTo":3}]"#, json!({"ok": true})),
        (r#"["read",{"all":true}]"#, json!({"ok": true, "rev": 4, "unread": 0})),
    ] {
        let mut socket = server.connect().await;
        let (login, login_packet) = socket.packet_of_call(r#"["user_login",{"tokenId":"1","batch":true}]"#);
        let (receipt, receipt_packet) = socket.packet_of_call(event);
        socket.send_many(vec![login_packet, receipt_packet]).await.unwrap();
        assert_eq!(socket.answer(login).await.unwrap()["ok"], json!(true));
        assert_eq!(socket.answer(receipt).await.unwrap(), expected, "{event}");
    }
    assert!(server.table().rows("1").await.iter().all(|row| row.read_at.is_some()));
}

#[tokio::test]
async fn of_reads_and_unreads_of_one_row_the_last_one_stands() {
    let server = TestServer::start().await;
    let ids: Vec<String> = server.api().push_numbers("1", 2).await.into_iter().map(|pushed| pushed.id).collect();
    let mut socket = server.login("1").await;
    socket.replay().await;
    // The first row ends up unread, the second read.
    let rounds = (0..60).flat_map(|_| [("read", 0), ("unread", 0), ("unread", 1), ("read", 1)]);
    let (calls, packets): (Vec<_>, Vec<_>) =
        rounds.map(|(event, row)| socket.packet_of_call(&json!([event, {"ids": [ids[row]]}]).to_string())).unzip();
    socket.send_many(packets).await.unwrap();
    for call in calls {
        let answer = socket.answer(call).await.unwrap();
        assert_eq!(answer["ok"], json!(true), "{answer}");
    }
    let rows = server.table().rows("1").await;
    assert_eq!((rows[0].read_at.is_some(), rows[1].read_at.is_some()), (false, true));
    assert_eq!(server.table().inbox("1").await.unwrap().unread, 1);
    server.table().expect_sound().await;
}

#[tokio::test]
async fn receipts_of_every_form_that_wait_together_mark_what_they_name_and_nothing_else() {
    const ROWS: usize = 120;
    let server = TestServer::start().await;
    insert_rows(&server, "1", ROWS).await;
    let mut socket = server.login("1").await;
    socket.replay().await;
    let events = [
        json!(["ack", {"upTo": 50}]),
        json!(["read", {"upTo": 10}]),
        json!(["ack", {"upTo": 40}]),
        json!(["ack", row_id(60)]),
        json!(["read", {"ids": [row_id(70), row_id(71)]}]),
        json!(["unread", [row_id(3)]]),
        json!(["ack", {"ids": []}]),
    ];
    let mut calls = Vec::new();
    let mut packets = Vec::new();
    for _ in 0..30 {
        for event in &events {
            let (call, packet) = socket.packet_of_call(&event.to_string());
            calls.push(call);
            packets.push(packet);
        }
    }
    socket.send_many(packets).await.unwrap();
    for call in calls {
        let answer = socket.answer(call).await.unwrap();
        assert_eq!(answer["ok"], json!(true), "{answer}");
    }
    let rows = server.table().rows("1").await;
    let delivered = |seq: i64| seq <= 50 || [60, 70, 71].contains(&seq);
    let read = |seq: i64| (seq <= 10 && seq != 3) || [70, 71].contains(&seq);
    for row in rows {
        assert_eq!((row.delivered_at.is_some(), row.read_at.is_some()), (delivered(row.seq), read(row.seq)), "{row:?}");
    }
    assert_eq!(server.table().inbox("1").await.unwrap().unread, 109);
    server.table().expect_sound().await;
}

#[tokio::test]
async fn a_client_that_acks_ahead_of_what_it_was_sent_is_not_held_back() {
    let server = TestServer::start().await;
    for (token, batch) in [("old", false), ("batching", true)] {
        insert_rows(&server, token, 200).await;
        let mut socket = server.connect().await;
        let login = if batch { socket.login_batch(token).await } else { socket.login(token).await };
        // All that there was at its login, before any of it has come. It acks nothing of that again.
        socket.ack_up_to(login.rev).await;
        let replay = socket.replay().await;
        assert!(replay.messages.iter().map(|message| message.seq).is_sorted_by(|a, b| a < b));
        let pushed = server.api().push(token, r#""live""#).await;
        let message = socket.event().await.messages().remove(0);
        assert_eq!((message.id.as_str(), message.replay), (pushed.id.as_str(), false));
        socket.receipt("ack", &[&message.id]).await;
    }
    expect_all_delivered(&server).await;
}
