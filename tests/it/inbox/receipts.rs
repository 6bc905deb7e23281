//! `ack` and `read`: every form, idempotent, monotone, never beyond what they name, counted exactly, told to other tabs.

use std::time::Duration;

use serde_json::{Value, json};

use crate::server::TestServer;
use crate::socket::Socket;

/// (delivered, read) of each row of a token.
async fn marks(server: &TestServer, token: &str) -> Vec<(bool, bool)> {
    let rows = server.table().rows(token).await;
    rows.iter().map(|row| (row.delivered_at.is_some(), row.read_at.is_some())).collect()
}

async fn five_rows() -> (TestServer, Socket, Vec<String>) {
    let server = TestServer::start().await;
    let ids = server.api().push_numbers("1", 5).await.into_iter().map(|pushed| pushed.id).collect();
    let mut socket = server.login("1").await;
    socket.replay().await;
    (server, socket, ids)
}

const OPEN: (bool, bool) = (false, false);
const ACKED: (bool, bool) = (true, false);
const READ: (bool, bool) = (true, true);

#[tokio::test]
async fn an_ack_takes_every_documented_form() {
    let (server, mut socket, ids) = five_rows().await;
    for (event, expected) in [
        (format!(r#"["ack",{{"ids":["{}"]}}]"#, ids[4]), [OPEN, OPEN, OPEN, OPEN, ACKED]),
        (format!(r#"["ack","{}"]"#, ids[2]), [OPEN, OPEN, ACKED, OPEN, ACKED]),
        (format!(r#"["ack",["{}","{}"]]"#, ids[0], ids[2]), [ACKED, OPEN, ACKED, OPEN, ACKED]),
        (r#"["ack",{"upTo":2}]"#.to_owned(), [ACKED, ACKED, ACKED, OPEN, ACKED]),
        (r#"["ack",{"ids":[]}]"#.to_owned(), [ACKED, ACKED, ACKED, OPEN, ACKED]),
        (r#"["ack",[]]"#.to_owned(), [ACKED, ACKED, ACKED, OPEN, ACKED]),
        (r#"["ack",{"upTo":0}]"#.to_owned(), [ACKED, ACKED, ACKED, OPEN, ACKED]),
    ] {
        assert_eq!(socket.call(&event).await, json!({"ok": true}), "{event}");
        assert_eq!(marks(&server, "1").await, expected, "{event}");
    }
    let inbox = server.table().inbox("1").await.unwrap();
    assert_eq!((inbox.rev, inbox.unread), (5, 5), "an ack changes no count and takes no rev");
}

#[tokio::test]
async fn a_read_takes_every_documented_form_and_marks_both() {
    let (server, mut socket, ids) = five_rows().await;
    for (event, rev, unread, expected) in [
        (format!(r#"["read",{{"ids":["{}"]}}]"#, ids[4]), 6, 4, [OPEN, OPEN, OPEN, OPEN, READ]),
        (format!(r#"["read","{}"]"#, ids[3]), 7, 3, [OPEN, OPEN, OPEN, READ, READ]),
        (format!(r#"["read",["{}"]]"#, ids[0]), 8, 2, [READ, OPEN, OPEN, READ, READ]),
        (r#"["read",{"upTo":2}]"#.to_owned(), 9, 1, [READ, READ, OPEN, READ, READ]),
        (r#"["read",{"all":true}]"#.to_owned(), 10, 0, [READ, READ, READ, READ, READ]),
    ] {
        assert_eq!(socket.call(&event).await, json!({"ok": true, "rev": rev, "unread": unread}), "{event}");
        assert_eq!(marks(&server, "1").await, expected, "{event}");
    }
    let changes: Vec<i64> = server.table().snapshot().await.changes.iter().map(|change| change.rev).collect();
    assert_eq!(changes, [6, 7, 8, 9, 10], "one change of the inbox each");
}

#[tokio::test]
async fn repeating_a_receipt_changes_nothing() {
    let (server, mut socket, ids) = five_rows().await;
    socket.receipt("read", &[&ids[0], &ids[1]]).await;
    socket.receipt("ack", &[&ids[2]]).await;
    let before = server.table().query("select token, seq, delivered_at, read_at from notification").await;
    let rev = server.table().inbox("1").await.unwrap().rev;
    for event in [
        format!(r#"["read",["{}","{}"]]"#, ids[0], ids[1]),
        format!(r#"["read",["{0}","{0}"]]"#, ids[0]),
        r#"["read",{"upTo":2}]"#.to_owned(),
        format!(r#"["ack",["{}","{}"]]"#, ids[0], ids[2]),
        r#"["ack",{"upTo":3}]"#.to_owned(),
    ] {
        assert_eq!(socket.call(&event).await["ok"], json!(true), "{event}");
    }
    let after = server.table().query("select token, seq, delivered_at, read_at from notification").await;
    assert_eq!(after, before, "the first time stands");
    assert_eq!(server.table().inbox("1").await.unwrap().rev, rev, "nothing changed, so no rev was used");
}

#[tokio::test]
async fn reading_or_acking_up_to_a_rev_never_touches_anything_newer() {
    let (server, mut socket, _) = five_rows().await;
    assert_eq!(socket.call(r#"["ack",{"upTo":3}]"#).await, json!({"ok": true}));
    assert_eq!(socket.call(r#"["read",{"upTo":2}]"#).await["unread"], json!(3));
    assert_eq!(marks(&server, "1").await, [READ, READ, ACKED, OPEN, OPEN]);
    // Far ahead of the inbox: what is there now, and nothing that comes later.
    assert_eq!(socket.call(r#"["ack",{"upTo":4611686018427387904}]"#).await, json!({"ok": true}));
    assert_eq!(socket.call(r#"["read",{"upTo":1000}]"#).await["unread"], json!(0));
    server.api().push("1", r#""newer""#).await;
    assert_eq!(socket.expect_message().await.data.get(), r#""newer""#);
    assert_eq!(marks(&server, "1").await, [READ, READ, READ, READ, READ, OPEN]);
    let replay = server.login("1").await.replay().await;
    assert_eq!((replay.data(), replay.unread), (vec![r#""newer""#], 1));
}

#[tokio::test]
async fn a_receipt_that_is_not_one_is_refused_and_changes_nothing() {
    let (server, mut socket, ids) = five_rows().await;
    let good = &ids[0];
    for payload in [
        "null".to_owned(),
        "7".to_owned(),
        "true".to_owned(),
        "{}".to_owned(),
        r#""""#.to_owned(),
        r#""not-an-id""#.to_owned(),
        r#"{"ids":"x"}"#.to_owned(),
        r#"{"ids":[1]}"#.to_owned(),
        r#"{"ids":null}"#.to_owned(),
        format!(r#"["{good}",null]"#),
        format!(r#"[["{good}"]]"#),
        r#"{"upTo":"5"}"#.to_owned(),
        r#"{"upTo":-1}"#.to_owned(),
        r#"{"upTo":1.5}"#.to_owned(),
        r#"{"upTo":null}"#.to_owned(),
        r#"{"upTo":1e400}"#.to_owned(),
        r#"{"upTo":99999999999999999999}"#.to_owned(),
    ] {
        for event in ["ack", "read"] {
            let answer = socket.call(&format!(r#"["{event}",{payload}]"#)).await;
            let refused = (&answer["ok"], &answer["code"]) == (&json!(false), &json!("invalid_payload"));
            assert!(refused && answer["message"].is_string(), "{event} {payload}: {answer}");
        }
    }
    for event in [r#"["ack"]"#, r#"["read"]"#, r#"["ack",{"all":true}]"#, r#"["read",{"all":false}]"#] {
        let answer = socket.call(event).await;
        assert_eq!(answer["code"], json!("invalid_payload"), "{event}: {answer}");
    }
    assert_eq!(marks(&server, "1").await, [OPEN; 5]);
    assert_eq!(socket.call(&format!(r#"["ack","{good}"]"#)).await, json!({"ok": true}), "the session goes on");
}

#[tokio::test]
async fn other_tabs_are_told_what_was_read_and_the_reader_is_not() {
    let (server, mut reader, ids) = five_rows().await;
    let mut other = server.login("1").await;
    other.replay().await;
    let mut stranger = server.login_empty("2").await;

    reader.receipt("read", &[&ids[1], &ids[3]]).await;
    let mut changed = other.expect_event("inbox_changed").await;
    let read_at = server.table().rows("1").await[1].read_at.clone().unwrap();
    changed["changes"].as_array_mut().unwrap().sort_by_key(|change| change["id"].as_str().map(str::to_owned));
    assert_eq!(
        changed,
        json!({"rev": 6, "changes": [{"id": ids[1], "readAt": read_at}, {"id": ids[3], "readAt": read_at}], "unread": 3})
    );
    reader.call(r#"["read",{"upTo":3}]"#).await;
    assert_eq!(other.expect_event("inbox_changed").await, json!({"rev": 7, "readUpTo": 3, "unread": 1}));
    reader.call(r#"["read",{"all":true}]"#).await;
    let changed = other.expect_event("inbox_changed").await;
    assert_eq!((&changed["rev"], &changed["unread"]), (&json!(8), &json!(0)), "{changed}");

    // An ack is nobody else's business, and none of it was the reader's news or the stranger's.
    reader.ack_up_to(8).await;
    server.api().post(r#"{"tokens":["1","2"],"data":"sentinel"}"#).await.pushed();
    for socket in [&mut reader, &mut other, &mut stranger] {
        assert_eq!(socket.expect_message().await.data.get(), r#""sentinel""#);
        socket.expect_quiet(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_row_read_before_it_was_emitted_to_a_tab_says_so() {
    let server = TestServer::start().await;
    let pushed = server.api().push("1", "{}").await;
    let mut tab = server.login("1").await;
    assert!(!tab.replay().await.messages[0].read);
    tab.receipt("read", &[&pushed.id]).await;
    // Read implies delivered, so a login after it replays nothing and counts nothing.
    let mut later = server.connect().await;
    let login = later.login("1").await;
    assert_eq!((login.rev, login.unread, login.undelivered), (2, 0, 0));
    assert_eq!(later.expect_event("replay_complete").await, json!({"count": 0, "rev": 2, "unread": 0}));
}

#[tokio::test]
async fn unread_is_told_exactly_at_every_step() {
    let server = TestServer::start().await;
    let mut reader = server.login_empty("1").await;
    let mut other = server.login_empty("1").await;
    let recount = || async { server.table().count("select count(*) from notification where read_at is null").await };
    let told = |value: &Value| value["unread"].as_i64().unwrap();
    for round in 0..10 {
        for _ in 0..=round % 3 {
            server.api().push("1", "{}").await;
            let message = reader.expect_message().await;
            other.expect_message().await;
            if message.seq % 2 == 0 {
                let answer = reader.receipt("read", &[&message.id]).await;
                assert_eq!(told(&answer), recount().await);
                assert_eq!(other.expect_event("inbox_changed").await["unread"], answer["unread"]);
            }
        }
        let mut tab = server.connect().await;
        let login = tab.login("1").await;
        assert_eq!((login.unread, tab.replay().await.unread), (recount().await, recount().await));
        assert_eq!(server.table().inbox("1").await.unwrap().unread, login.unread);
    }
}

#[tokio::test]
async fn a_receipt_is_done_even_if_its_client_leaves_at_once() {
    let server = TestServer::start().await;
    server.api().push_numbers("1", 20).await;
    for n in 1..=20 {
        let mut socket = server.login("1").await;
        socket.replay().await;
        socket.emit(&format!(r#"["ack",{{"upTo":{n}}}]"#)).await;
        match n % 3 {
            0 => socket.send("41").await.unwrap(),
            1 => socket.send("1").await.unwrap(),
            _ => drop(socket),
        }
        let table = server.table();
        let done = async {
            let undelivered = format!("select count(*) from notification where seq <= {n} and delivered_at is null");
            while table.count(&undelivered).await > 0 {}
        };
        tokio::time::timeout(crate::server::PATIENCE, done).await.expect("done in time");
    }
}

#[tokio::test]
async fn a_read_of_a_thousand_rows_is_one_change() {
    let server = TestServer::with(&["--max-message-bytes=131072"]).await;
    let mut ids = Vec::new();
    for _ in 0..10 {
        let api = server.api();
        let pushes = futures_util::future::join_all((0..100).map(|_| api.push("1", "{}"))).await;
        ids.extend(pushes.into_iter().map(|pushed| pushed.id));
    }
    let mut socket = server.login("1").await;
    socket.replay().await;
    let answer = socket.call(&format!(r#"["read",{}]"#, json!(ids))).await;
    assert_eq!(answer, json!({"ok": true, "rev": 1001, "unread": 0}));
    assert_eq!(server.table().count("select count(*) from inbox_change").await, 1);
    assert_eq!(server.table().count("select count(*) from notification where read_at is null").await, 0);
}
