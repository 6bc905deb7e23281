//! What time does to inboxes, and what is told of it: history that is purged, rows that expire, pushes that come due.

use chrono::{TimeDelta, Utc};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::{Duration, Instant, interval, timeout, timeout_at};

use crate::server::{PATIENCE, Place, TestServer};

const PURGING: [&str; 2] = ["--keep-history-days=1", "--retention-interval-secs=1"];

/// Runs SQL as an admin beside the service.
async fn sql(server: &TestServer, sql: &str) {
    match server.place() {
        Place::Postgres(database) => drop(database.sql(sql)),
        Place::File(path) => {
            let mut command = Command::new("sqlite3");
            let status = command
                .args(["-cmd", ".timeout 10000"])
                .arg(path)
                .arg(sql)
                .status()
                .await
                .expect("sqlite3 is installed");
            assert!(status.success());
        }
    }
}

/// Makes all history older than it is kept.
async fn age(server: &TestServer) {
    sql(server, "update inbox_change set at = '2020-01-02T03:04:05.678Z'").await;
}

/// Waits until an inbox's history is gone up to that rev.
async fn purged(server: &TestServer, token: &str, rev: i64) {
    let mut pause = interval(Duration::from_millis(50));
    let purged = async {
        while server.table().count(&format!("select purged_rev from inbox where token = '{token}'")).await != rev {
            pause.tick().await;
        }
    };
    timeout(PATIENCE, purged).await.expect("the history goes in time");
}

#[tokio::test]
async fn a_cursor_from_before_the_purged_history_is_told_to_start_over() {
    let server = TestServer::with(&PURGING).await;
    let api = server.api();
    let ids: Vec<_> = api.push_numbers("1", 3).await.into_iter().map(|pushed| pushed.id).collect();
    for id in &ids[..2] {
        api.ask("POST", "/api/inbox/1/read", &json!({"ids": [id]})).await; // 4, 5
    }
    api.push("1", "{}").await; // 6
    age(&server).await;
    purged(&server, "1", 5).await;
    for (rev, starts_over) in [(0, true), (3, true), (4, true), (5, false), (6, false)] {
        let mut socket = server.connect().await;
        let epoch = api.list("1", "").await["epoch"].clone();
        let login = json!(["user_login", {"tokenId": "1", "rev": rev, "epoch": epoch}]);
        socket.login_with(&login.to_string()).await;
        let first = socket.event().await;
        assert_eq!(first.name == "resync", starts_over, "{rev}: {}", first.text());
        if starts_over {
            assert_eq!(first.value(), json!({"epoch": epoch, "rev": 6, "unread": 2}));
        }
    }
    assert_eq!(server.table().rows("1").await.len(), 4, "rows are kept");
    server.table().expect_sound().await;
}

#[tokio::test]
async fn a_session_that_falls_behind_the_purged_history_is_told_to_start_over() {
    let flags = [&PURGING[..], &["--window=2", "--ring=1"]].concat();
    let server = TestServer::with(&flags).await;
    let api = server.api();
    let mut stuck = server.connect().await;
    stuck.login_batch("1").await;
    stuck.expect_event("replay_complete").await;
    let mut ids: Vec<String> = Vec::new();
    for n in 0..6 {
        ids.push(api.push("1", &n.to_string()).await.id);
        if n % 2 == 1 {
            api.ask("POST", "/api/inbox/1/read", &json!({"ids": [ids.last()]})).await; // 3, 6, 9
        }
    }
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(stuck.event().await.messages().iter().map(|message| message.seq));
    }
    assert_eq!(seen, [1, 2], "its window is full");
    age(&server).await;
    purged(&server, "1", 9).await;
    stuck.ack_up_to(2).await;
    loop {
        let event = stuck.event().await;
        if event.name == "resync" {
            assert_eq!((&event.value()["rev"], &event.value()["unread"]), (&json!(9), &json!(3)));
            break;
        }
        // What it had been read before the history went.
        assert!(matches!(event.name.as_str(), "inbox_changed" | "receive_messages"), "{}", event.text());
        if let Some(message) = event.messages().last() {
            stuck.ack_up_to(message.rev).await;
        }
    }
    let pushed = api.push("1", "{}").await;
    assert_eq!(stuck.event().await.messages()[0].id, pushed.id, "and goes on from there");
}

#[tokio::test]
async fn much_history_goes_in_small_transactions_until_it_is_gone() {
    const REVS: i64 = 4500;
    let server = TestServer::with(&PURGING).await;
    let pushed = server.api().push("1", "{}").await;
    let change = json!({"unread": 1, "unreadAgain": [pushed.id]}).to_string();
    let counter = format!("with recursive n (rev) as (select 2 union all select rev + 1 from n where rev < {REVS})");
    let cast = if matches!(server.place(), Place::Postgres(_)) { "::json" } else { "" };
    sql(
        &server,
        &format!(
            "begin; {counter} insert into inbox_change (token, rev, change, at)
            select '1', rev, '{change}'{cast}, '2020-01-02T03:04:05.678Z' from n;
            update inbox set rev = {REVS}, delivered_upto = 0; commit"
        ),
    )
    .await;
    let mut pause = interval(Duration::from_millis(20));
    let purged = async {
        while server.table().count("select purged_rev from inbox").await != REVS {
            // Whenever one looks, it is sound.
            server.table().expect_sound().await;
            pause.tick().await;
        }
    };
    timeout(PATIENCE, purged).await.expect("the history goes in time");
    assert_eq!(server.table().count("select count(*) from inbox_change").await, 0);
    assert_eq!(server.api().push("1", "{}").await.results[0].seq, REVS + 1);
    server.table().expect_sound().await;
}

#[tokio::test]
async fn history_that_cannot_be_removed_holds_up_nothing_behind_it() {
    let server = TestServer::with(&PURGING).await;
    let api = server.api();
    // More than are looked at in one go.
    let tokens: Vec<_> = (0..250).map(|n| format!("{n:03}")).collect();
    api.push_as(json!({"tokens": tokens})).await;
    let (fail, repair) = match server.place() {
        Place::File(_) => (
            "create trigger fail before delete on inbox_change when old.token = '000'
            begin select raise(abort, 'told to fail'); end",
            "drop trigger fail",
        ),
        Place::Postgres(_) => (
            "create function fail() returns trigger language plpgsql as 'begin raise ''told to fail''; end';
            create trigger fail before delete on inbox_change for each row when (old.token = '000')
            execute function fail()",
            "drop trigger fail on inbox_change",
        ),
    };
    sql(&server, fail).await;
    for token in ["000", "249"] {
        api.ask("POST", &format!("/api/inbox/{token}/read"), &json!({"all": true})).await;
    }
    age(&server).await;
    purged(&server, "249", 2).await;
    assert_eq!(server.table().count("select purged_rev from inbox where token = '000'").await, 0);
    sql(&server, repair).await;
    purged(&server, "000", 2).await;
    server.table().expect_sound().await;
}

#[tokio::test]
async fn expired_rows_leave_the_counts_within_seconds_though_much_is_due_at_once() {
    let server = TestServer::start().await;
    let api = server.api();
    let tokens: Vec<_> = (0..2000).map(|n| n.to_string()).collect();
    let due = (Utc::now() + TimeDelta::seconds(1)).to_rfc3339();
    for _ in 0..3 {
        api.push_as(json!({"tokens": tokens, "deliverAt": due})).await;
    }
    api.push_as(json!({"tokens": "1", "ttl": 1})).await;
    // Five seconds are what is promised, and as many again for a machine that does other things too.
    let deadline = Instant::now() + Duration::from_secs(1 + 5 + 5);
    let mut pause = interval(Duration::from_millis(50));
    let gone = async {
        while server.table().count("select count(*) from notification where expires_at is not null").await > 0 {
            pause.tick().await;
        }
    };
    timeout_at(deadline, gone).await.expect("it leaves in time");
    let released = async {
        while server.table().count("select count(*) from scheduled").await > 0 {
            pause.tick().await;
        }
    };
    timeout(PATIENCE, released).await.expect("what is due enters in time");
    let counts = api.ask("GET", "/api/inbox/1/counts", &Value::Null).await;
    assert_eq!((&counts["unread"], &api.list("1", "").await["unread"]), (&json!(3), &json!(3)));
    server.table().expect_sound().await;
}

#[tokio::test]
async fn a_push_that_is_cancelled_while_it_comes_due_is_in_all_inboxes_or_in_none() {
    const PUSHES: usize = 12;
    let server = TestServer::start().await;
    let api = server.api();
    let due = Utc::now() + TimeDelta::seconds(2);
    let mut ids = Vec::new();
    for n in 0..PUSHES {
        let push = json!({"tokens": ["1", "2", "3"], "data": n, "deliverAt": due.to_rfc3339()});
        ids.push(api.push_as(push).await["id"].as_str().unwrap().to_owned());
    }
    let mut socket = server.login_empty("1").await;
    let cancels = ids.iter().zip(0..).map(|(id, n)| {
        let api = api.clone();
        async move {
            // Some before, some after, most just while it happens.
            let at = due + TimeDelta::milliseconds(n * 120 - 200);
            tokio::time::sleep((at - Utc::now()).to_std().unwrap_or_default()).await;
            api.ask("DELETE", &format!("/api/notifications/{id}"), &Value::Null).await["retracted"].clone()
        }
    });
    for retracted in futures_util::future::join_all(cancels).await {
        assert_eq!(retracted, json!(3), "each of its rows once, wherever it was");
    }
    let table = server.table();
    assert_eq!(table.count("select count(*) from scheduled").await, 0);
    assert_eq!(table.count("select count(*) from notification where retracted_at is null").await, 0);
    let head = api.list("1", "").await;
    assert_eq!((&head["unread"], &head["items"]), (&json!(0), &json!([])));
    // What was told is taken back.
    let mut known = std::collections::HashSet::new();
    let mut rev = 0;
    while rev < head["rev"].as_i64().unwrap() {
        let value = socket.event().await.value();
        rev = value["rev"].as_i64().unwrap();
        known.extend(value["id"].as_str().map(str::to_owned));
        for gone in value["changes"].as_array().into_iter().flatten() {
            known.remove(gone["id"].as_str().unwrap());
        }
    }
    assert!(known.is_empty(), "{known:?}");
    table.expect_sound().await;
}
