//! A device that was away comes back with the rev it knows, and catches up on everything: in order, once, and quietly.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::server::TestServer;
use crate::socket::{Login, Socket};

async fn login_since(socket: &mut Socket, token: &str, rev: i64, epoch: &str) -> Login {
    socket.login_with(&json!(["user_login", {"tokenId": token, "rev": rev, "epoch": epoch}]).to_string()).await
}

/// Every event up to `replay_complete`, in short.
async fn caught_up(socket: &mut Socket) -> Vec<String> {
    let mut told = Vec::new();
    loop {
        let event = socket.event().await;
        let value = event.value();
        told.push(match event.name.as_str() {
            "receive_message" => {
                assert_eq!(value["replay"], true, "{value}");
                format!("{} {} read {}", value["rev"], value["entityType"].as_str().unwrap_or_default(), value["read"])
            }
            "inbox_changed" => format!("{} changed, {} unread", value["rev"], value["unread"]),
            "replay_complete" => {
                told.push(format!("complete: {}, {} unread", value["rev"], value["unread"]));
                return told;
            }
            other => format!("{other} {}", value["rev"]),
        });
    }
}

#[tokio::test]
async fn what_happened_while_it_was_away_comes_in_order_and_nothing_that_is_gone() {
    let server = TestServer::start().await;
    let api = server.api();
    let push = async |kind: &str, more: Value| {
        let mut body = json!({"tokens": "1", "entityType": kind});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        api.push_as(body).await["id"].as_str().unwrap().to_owned()
    };
    push("known", json!({})).await;
    let mut phone = server.connect().await;
    let epoch = phone.login("1").await.epoch;
    phone.replay().await;
    phone.ack_up_to(1).await;
    drop(phone);

    let seen_elsewhere = push("seen elsewhere", json!({})).await; // 2
    let gone = push("gone", json!({})).await; // 3
    push("first", json!({"collapseKey": "c"})).await; // 4
    push("second", json!({"collapseKey": "c"})).await; // 5 takes the first back, 6
    push("liked", json!({"groupKey": "g", "actor": "Alice"})).await; // 7
    push("liked", json!({"groupKey": "g", "actor": "Bob"})).await; // 8
    api.ask("POST", "/api/inbox/1/read", &json!({"ids": [seen_elsewhere]})).await; // 9
    api.ask("DELETE", &format!("/api/notifications/{gone}"), &Value::Null).await; // 10

    let mut phone = server.connect().await;
    let login = login_since(&mut phone, "1", 1, &epoch).await;
    assert_eq!((login.rev, login.unread), (10, 3));
    let expected = [
        "2 seen elsewhere read true",
        "5 changed, 3 unread",
        "6 second read false",
        "7 liked read false",
        "8 changed, 5 unread",
        "9 changed, 4 unread",
        "10 changed, 3 unread",
        "complete: 10, 3 unread",
    ];
    assert_eq!(caught_up(&mut phone).await, expected);
    let pushed = api.push("1", "{}").await;
    let message = phone.expect_message().await;
    assert_eq!((message.id, message.replay), (pushed.id, false), "then it is live");

    let mut again = server.connect().await;
    login_since(&mut again, "1", 11, &epoch).await;
    // What it never acked comes all the same, and once.
    let expected = ["6 second read false", "7 liked read false", "11 like read false", "complete: 11, 4 unread"];
    assert_eq!(caught_up(&mut again).await, expected);
}

#[tokio::test]
async fn a_cursor_that_cannot_be_true_is_told_to_start_over() {
    let server = TestServer::start().await;
    server.api().push_numbers("1", 3).await;
    let epoch = server.connect().await.login("1").await.epoch;
    for (rev, of) in [(2, "another"), (4, &*epoch), (i64::MAX, &*epoch)] {
        let mut socket = server.connect().await;
        let login = login_since(&mut socket, "1", rev, of).await;
        assert_eq!((login.epoch.as_str(), login.rev, login.undelivered), (epoch.as_str(), 3, 3));
        let told = caught_up(&mut socket).await;
        assert_eq!(told.first().map(String::as_str), Some("resync 3"), "{rev} of {of}: {told:?}");
        assert_eq!(told.len(), 5, "what is undelivered comes all the same: {told:?}");
    }
    let mut socket = server.connect().await;
    let answer = socket.call(r#"["user_login",{"tokenId":"1","rev":-1,"epoch":"x"}]"#).await;
    assert_eq!(answer["code"], "invalid_payload");
}

#[tokio::test]
async fn reading_all_beside_pushes_touches_nothing_newer_and_counts_exactly() {
    let server = TestServer::start().await;
    let api = server.api();
    let pushes = (0..4).map(|_| async { drop(api.push_numbers("1", 40).await) });
    let reads = async {
        for _ in 0..20 {
            let read = api.ask("POST", "/api/inbox/1/read", &json!({"all": true})).await;
            assert_eq!(read["unread"], 0, "as of its own rev");
        }
    };
    tokio::join!(join_all(pushes), reads);
    let rows = server.table().rows("1").await;
    let unread = rows.iter().filter(|row| row.read_at.is_none()).count();
    assert_eq!(rows.len(), 160);
    let inbox = server.table().inbox("1").await.unwrap();
    assert_eq!(usize::try_from(inbox.unread), Ok(unread));
    let first_unread = rows.iter().position(|row| row.read_at.is_none()).unwrap_or(rows.len());
    assert!(rows[first_unread..].iter().all(|row| row.read_at.is_none()), "a read covers a beginning of the inbox");
    server.table().expect_sound().await;
}

#[tokio::test]
async fn reading_all_on_one_node_beside_pushes_on_two_touches_nothing_newer_and_counts_exactly() {
    let first = TestServer::builder().on_postgres().flag("--bus=postgres").start().await;
    let second = TestServer::builder().at(first.place().clone()).flag("--bus=postgres").start().await;
    let mut device = second.login_empty("1").await;
    let apis = [first.api(), second.api()];
    let pushes = apis.iter().cycle().take(6).map(|api| async { drop(api.push_numbers("1", 25).await) });
    let reads = async {
        for n in 0..30 {
            let read = apis[n % 2].ask("POST", "/api/inbox/1/read", &json!({"all": true})).await;
            assert_eq!(read["unread"], 0, "as of its own rev");
        }
    };
    tokio::join!(join_all(pushes), reads);
    let table = first.table();
    let inbox = table.inbox("1").await.unwrap();
    let mut unread = std::collections::BTreeSet::new();
    let mut rev = 0;
    while rev < inbox.rev {
        let event = device.event().await;
        let value = event.value();
        rev = value["rev"].as_i64().unwrap();
        if let Some(upto) = value["readUpTo"].as_i64() {
            unread.retain(|seq| *seq > upto);
            assert_eq!(value["unread"], json!(unread.len()), "{value}");
        } else {
            unread.insert(value["seq"].as_i64().unwrap());
        }
    }
    let rows = table.rows("1").await;
    assert_eq!(rows.len(), 150);
    let expected = rows.iter().filter(|row| row.read_at.is_none()).map(|row| row.seq);
    assert!(unread.iter().copied().eq(expected), "a device that followed knows what is unread: {unread:?}");
    assert_eq!(usize::try_from(inbox.unread), Ok(unread.len()));
    table.expect_sound().await;
}

#[tokio::test]
async fn what_a_device_kept_of_an_erased_inbox_is_worth_nothing_for_the_one_in_its_place() {
    let server = TestServer::start().await;
    let api = server.api();
    api.push_numbers("1", 3).await;
    api.push_numbers("2", 3).await;
    let before = server.connect().await.login("1").await.epoch;
    let other = server.connect().await.login("2").await.epoch;
    api.ask("DELETE", "/api/inbox/1", &Value::Null).await;
    // It counts the same numbers again, for other rows.
    api.push_numbers("1", 5).await;
    let mut device = server.connect().await;
    let login = login_since(&mut device, "1", 3, &before).await;
    assert_ne!(login.epoch, before);
    assert_eq!(device.expect_event("resync").await, json!({"epoch": login.epoch, "rev": 5, "unread": 5}));
    assert_eq!(api.list("1", "").await["epoch"], login.epoch);
    drop(device);
    let mut device = server.connect().await;
    assert_eq!(login_since(&mut device, "1", 5, &login.epoch).await.rev, 5);
    assert_ne!(device.event().await.name, "resync", "from here on it is known");
    // Nobody else notices.
    let mut device = server.connect().await;
    assert_eq!(login_since(&mut device, "2", 3, &other).await.epoch, other);
    assert_ne!(device.event().await.name, "resync");
    server.table().expect_sound().await;
}
