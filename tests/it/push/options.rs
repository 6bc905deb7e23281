//! What a push may ask for: a time to live, to replace or to join an earlier one, to come later.

use chrono::{TimeDelta, Utc};
use serde_json::{Value, json};
use std::time::Duration;

use crate::server::TestServer;

#[tokio::test]
async fn a_row_whose_time_is_over_leaves_lists_counts_replays_and_then_the_table() {
    let server = TestServer::start().await;
    let api = server.api();
    let mut live = server.login_empty("1").await;
    let id = api.push_as(json!({"tokens": "1", "ttl": 2})).await["id"].clone();
    api.push("1", "{}").await;
    assert_eq!(api.list("1", "").await["items"][1]["id"], id, "it is there before");
    live.expect_messages(2).await;
    let change = live.expect_event("inbox_changed").await;
    assert_eq!(change, json!({"rev": 3, "changes": [{"id": id, "retracted": true, "expired": true}], "unread": 1}));
    assert_eq!(server.table().rows("1").await.len(), 1);
    assert_eq!(api.ask("GET", "/api/inbox/1/counts", &Value::Null).await["unread"], 1);
    assert_eq!(server.login("1").await.replay().await.messages.len(), 1);
    server.table().expect_sound().await;
}

#[tokio::test]
async fn with_a_ttl_of_0_it_is_for_whoever_is_there_now() {
    let server = TestServer::start().await;
    let mut live = server.login_empty("1").await;
    let pushed = server.api().push_as(json!({"tokens": ["1", "2"], "entityType": "typing", "ttl": 0})).await;
    assert_eq!(pushed["results"], json!([{"token": "1"}, {"token": "2"}]));
    let message = live.expect_event("receive_message").await;
    assert_eq!((&message["id"], &message["entityType"]), (&pushed["id"], &json!("typing")));
    assert!(message.get("seq").is_none() && message.get("rev").is_none(), "{message}");
    assert_eq!(server.table().count("select count(*) as n from notification").await, 0);
    server.login_empty("2").await;
}

#[tokio::test]
async fn a_newer_push_takes_the_place_of_the_unread_one_with_its_key() {
    let server = TestServer::start().await;
    let api = server.api();
    let push = async |n: i32| api.push_as(json!({"tokens": "1", "data": n, "collapseKey": "score"})).await;
    let first = push(1).await["id"].clone();
    let mut live = server.login("1").await;
    live.replay().await;
    push(2).await;
    let change = live.expect_event("inbox_changed").await;
    assert_eq!(change, json!({"rev": 2, "changes": [{"id": first, "retracted": true}], "unread": 0}));
    assert_eq!(live.expect_message().await.data.get(), "2");
    api.ask("POST", "/api/inbox/1/read", &json!({"all": true})).await;
    push(3).await;
    let data: Vec<i64> = api.list("1", "").await["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["data"].as_i64().unwrap())
        .collect();
    assert_eq!(data, [3, 2], "one that was read is left alone");
    assert_eq!(server.login("1").await.replay().await.data(), ["3"], "what was replaced is not replayed");
}

#[tokio::test]
async fn a_group_is_one_row_announced_once_and_told_quietly() {
    let server = TestServer::start().await;
    let api = server.api();
    let like = async |actor: &str| {
        api.push_as(json!({"tokens": "1", "entityType": "like", "groupKey": "post 7", "actor": actor})).await
    };
    let unlike = async |actor: &str| {
        api.ask("DELETE", &format!("/api/groups/1/post%207/actors/{actor}"), &Value::Null).await["removed"].clone()
    };
    let mut live = server.login_empty("1").await;
    let id = like("Alice").await["id"].clone();
    let announced = live.expect_event("receive_message").await;
    assert_eq!(announced["group"], json!({"key": "post 7", "count": 1, "actors": ["Alice"]}));
    for (rev, actor, count, actors) in [
        (2, "Bob", 2, json!(["Bob", "Alice"])),
        (3, "Carol", 3, json!(["Carol", "Bob", "Alice"])),
        (4, "Dave", 4, json!(["Dave", "Carol", "Bob"])),
        (5, "Bob", 4, json!(["Bob", "Dave", "Carol"])),
    ] {
        let joined = like(actor).await;
        assert_eq!(joined["results"], json!([{"token": "1", "seq": 1, "groupedInto": id}]), "{actor}");
        let group = json!({"key": "post 7", "count": count, "actors": actors});
        let change = live.expect_event("inbox_changed").await;
        assert_eq!(change, json!({"rev": rev, "changes": [{"id": id, "group": group}], "unread": 1}));
    }
    like("Bob").await;
    assert_eq!((unlike("Bob").await, unlike("Bob").await), (json!(true), json!(false)));
    let group = json!({"key": "post 7", "count": 3, "actors": ["Dave", "Carol", "Alice"]});
    let change = live.expect_event("inbox_changed").await;
    assert_eq!((&change["rev"], &change["changes"][0]["group"]), (&json!(6), &group), "the same again told nothing");

    let mut offline = server.login("1").await;
    assert_eq!(offline.event().await.value()["group"], group, "one row, as it is now");
    for actor in ["Dave", "Carol", "Alice"] {
        assert_eq!(unlike(actor).await, json!(true));
    }
    assert_eq!(api.list("1", "").await["unread"], 0, "the last one took the row");
    let next = like("Erin").await;
    assert_eq!(next["results"][0]["groupedInto"], Value::Null, "and the next one makes a new one");
    api.ask("POST", "/api/inbox/1/read", &json!({"all": true})).await;
    assert_eq!(like("Frank").await["results"][0]["groupedInto"], Value::Null, "so it does once that is read");
    server.table().expect_sound().await;
}

#[tokio::test]
async fn a_push_for_later_is_in_the_table_at_once_and_in_the_inbox_when_it_is_due() {
    let mut server = TestServer::start().await;
    let due = (Utc::now() + TimeDelta::seconds(5)).to_rfc3339();
    let pushed = server.api().push_as(json!({"tokens": ["1", "2"], "data": "later", "deliverAt": due})).await;
    assert_eq!(pushed["results"], json!([{"token": "1"}, {"token": "2"}]));
    assert_eq!(server.table().count("select count(*) as n from scheduled").await, 2);
    let path = format!("/api/notifications/{}", pushed["id"].as_str().unwrap());
    let shown = server.api().ask("GET", &path, &Value::Null).await;
    assert!(shown["deliverAt"].is_string() && shown["recipients"][1]["seq"].is_null(), "{shown}");
    server.kill_9().await;
    server.start_again().await;
    let mut live = server.login_empty("1").await;
    let message = live.expect_message().await;
    assert_eq!((json!(message.id), message.data.get(), message.seq), (pushed["id"].clone(), r#""later""#, 1));
    live.expect_quiet(Duration::from_millis(1500)).await;
    assert_eq!(server.table().count("select count(*) as n from scheduled").await, 0);
    assert_eq!(server.login("2").await.replay().await.messages.len(), 1);
    server.table().expect_sound().await;
}

#[tokio::test]
async fn a_push_for_later_can_be_cancelled_and_one_for_before_is_one_for_now() {
    let server = TestServer::start().await;
    let api = server.api();
    let at = |delta: TimeDelta| (Utc::now() + delta).to_rfc3339();
    let pushed = api.push_as(json!({"tokens": "1", "deliverAt": at(TimeDelta::days(29))})).await;
    let path = format!("/api/notifications/{}", pushed["id"].as_str().unwrap());
    assert_eq!(api.ask("DELETE", &path, &Value::Null).await, json!({"retracted": 1}));
    assert_eq!(server.table().count("select count(*) as n from scheduled").await, 0);
    assert_eq!(api.push_as(json!({"tokens": "1", "deliverAt": at(TimeDelta::days(-1))})).await["results"][0]["seq"], 1);
    for bad in [
        json!({"tokens": "1", "deliverAt": at(TimeDelta::days(31))}),
        json!({"tokens": "1", "ttl": 0, "groupKey": "g"}),
        json!({"tokens": "1", "actor": "Alice"}),
        json!({"tokens": "1", "groupKey": "g", "collapseKey": "c"}),
    ] {
        api.post(&bad.to_string()).await.problem(400, "invalid_body");
    }
}
