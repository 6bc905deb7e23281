//! Read, unread, retract and erase, over HTTP and sockets: the other sessions hear of it once, in order, with exact counts.

use serde_json::{Value, json};

use crate::server::TestServer;
use crate::socket::Socket;

/// The rev, what changed and the unread rows of the next `inbox_changed`.
async fn change(socket: &mut Socket) -> (i64, Value, i64) {
    let mut event = socket.expect_event("inbox_changed").await;
    let number = |name: &str| event[name].as_i64().unwrap_or_else(|| panic!("no {name} in {event}"));
    let (rev, unread) = (number("rev"), number("unread"));
    let what = if event["changes"].is_null() { event["readUpTo"].take() } else { event["changes"].take() };
    (rev, what, unread)
}

#[tokio::test]
async fn what_one_tab_or_the_backend_marks_the_others_hear_once_and_in_order() {
    let server = TestServer::start().await;
    let (mut tab, mut phone) = (server.login_empty("1").await, server.login_empty("1").await);
    let api = server.api();
    let ids: Vec<String> = api.push_numbers("1", 4).await.into_iter().map(|pushed| pushed.id).collect();
    tab.expect_messages(4).await;
    phone.expect_messages(4).await;

    assert_eq!(tab.receipt("read", &[&ids[1]]).await, json!({"ok": true, "rev": 5, "unread": 3}));
    let (rev, what, unread) = change(&mut phone).await;
    assert_eq!((rev, &what[0]["id"], unread), (5, &json!(ids[1]), 3));
    assert!(what[0]["readAt"].is_string(), "{what}");

    assert_eq!(tab.receipt("unread", &[&ids[1]]).await, json!({"ok": true, "rev": 6, "unread": 4}));
    assert_eq!(change(&mut phone).await, (6, json!([{"id": ids[1], "readAt": null}]), 4));

    let read = api.ask("POST", "/api/inbox/1/read", &json!({"upTo": 2})).await;
    assert_eq!(read, json!({"rev": 7, "unread": 2}));
    for socket in [&mut tab, &mut phone] {
        assert_eq!(change(socket).await, (7, json!(2), 2));
    }
    let unread = api.ask("POST", "/api/inbox/1/unread", &json!({"ids": [ids[0], ids[0]]})).await;
    assert_eq!(unread, json!({"rev": 8, "unread": 3}));
    let all = api.ask("POST", "/api/inbox/1/read", &json!({"all": true})).await;
    assert_eq!(all, json!({"rev": 9, "unread": 0}));
    let again = api.ask("POST", "/api/inbox/1/read", &json!({"all": true})).await;
    assert_eq!(again, json!({"rev": 9, "unread": 0}), "nothing changed, so nothing is told");
    for socket in [&mut tab, &mut phone] {
        assert_eq!(change(socket).await, (8, json!([{"id": ids[0], "readAt": null}]), 3));
        assert_eq!(change(socket).await, (9, json!(8), 0));
    }
    let rows = server.table().rows("1").await;
    assert!(rows.iter().all(|row| row.read_at.is_some() && row.delivered_at <= row.read_at), "{rows:?}");
    server.table().expect_sound().await;
}

#[tokio::test]
async fn unread_again_stays_delivered_and_ids_of_others_change_nothing() {
    let server = TestServer::start().await;
    let api = server.api();
    let (mine, foreign) = (api.push("1", "{}").await.id, api.push("2", "{}").await.id);
    api.ask("POST", "/api/inbox/1/read", &json!({"ids": [mine]})).await;
    assert_eq!(api.ask("POST", "/api/inbox/1/unread", &json!({"ids": [mine, foreign]})).await["unread"], 1);
    assert_eq!(api.ask("POST", "/api/inbox/1/read", &json!({"ids": [foreign]})).await, json!({"rev": 3, "unread": 1}));
    let row = &server.table().rows("1").await[0];
    assert!(row.delivered_at.is_some() && row.read_at.is_none(), "{row:?}");
    assert!(server.table().rows("2").await[0].read_at.is_none());
    assert!(server.login("1").await.replay().await.messages.is_empty(), "it was delivered");
    for (path, body) in [("read", json!({})), ("read", json!([mine])), ("unread", json!({"all": true}))] {
        let path = format!("/api/inbox/1/{path}");
        let answer = api.send("POST", &path, &[("content-type", "application/json")], body.to_string()).await.unwrap();
        answer.problem(400, "invalid_body");
    }
}

#[tokio::test]
async fn what_is_retracted_is_gone_everywhere_and_never_comes_back() {
    let server = TestServer::start().await;
    let api = server.api();
    let mut live = server.login_empty("1").await;
    let id = api.push_as(json!({"tokens": ["1", "2"], "entityType": "like"})).await["id"].as_str().unwrap().to_owned();
    live.expect_message().await;
    api.ask("POST", "/api/inbox/2/read", &json!({"all": true})).await;
    let path = format!("/api/notifications/{id}");
    assert_eq!(api.ask("DELETE", &path, &Value::Null).await, json!({"retracted": 2}));
    assert_eq!(change(&mut live).await, (2, json!([{"id": id, "retracted": true}]), 0));
    assert_eq!(api.ask("DELETE", &path, &Value::Null).await, json!({"retracted": 0}), "again it changes nothing");
    for token in ["1", "2"] {
        let list = api.list(token, "").await;
        assert_eq!((&list["items"], &list["unread"]), (&json!([]), &json!(0)));
        assert!(server.login(token).await.replay().await.messages.is_empty());
    }
    let shown = api.ask("GET", &path, &Value::Null).await;
    assert_eq!((&shown["sent"], &shown["read"], &shown["retracted"]), (&json!(2), &json!(1), &json!(2)));
    assert!(shown["recipients"][0]["retractedAt"].is_string(), "{shown}");
    for unknown in ["0198c0de-0000-7000-8000-000000000001", "no-id"] {
        let answer = api.send("DELETE", &format!("/api/notifications/{unknown}"), &[], "").await.unwrap();
        answer.problem(404, "not_found");
    }
    server.table().expect_sound().await;
}

#[tokio::test]
async fn an_erased_user_leaves_nothing_behind_and_their_sockets_are_closed() {
    let server = TestServer::start().await;
    let api = server.api();
    let mut socket = server.login_empty("gone").await;
    let keyed = r#"{"tokens":["gone","stays"],"data":1}"#;
    let first = api.post_keyed("k", keyed).await.pushed();
    api.push_as(json!({"tokens": "gone", "groupKey": "g", "actor": "Alice"})).await;
    let later = chrono::Utc::now() + chrono::TimeDelta::hours(1);
    api.push_as(json!({"tokens": "gone", "deliverAt": later.to_rfc3339()})).await;
    assert_eq!(api.ask("DELETE", "/api/inbox/gone", &Value::Null).await, json!({"erased": 3}));
    socket.expect_end().await;
    let columns = [
        ("inbox", "token"),
        ("notification", "token"),
        ("inbox_change", "token"),
        ("notification_key", "token"),
        ("notification_actor", "token"),
        ("scheduled", "token"),
        ("idempotency", "cast(response as text)"),
    ];
    for (table, column) in columns {
        let left = format!("select count(*) as n from {table} where {column} like '%gone%'");
        assert_eq!(server.table().count(&left).await, 0, "{table}");
    }
    assert_eq!(api.post_keyed("k", keyed).await.pushed(), first, "a retry still gets its answer, and makes no row");
    assert_eq!(api.push("gone", "{}").await.results[0].seq, 1, "a new life starts at 1");
    assert_eq!(server.table().rows("stays").await.len(), 1);
    server.table().expect_sound().await;
}
