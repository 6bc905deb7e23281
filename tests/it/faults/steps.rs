//! Changes of many rows: done in steps, between which others have their turn, and complete when they are answered, also if
//! the process was killed half way.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::api::Answer;
use crate::server::{Place, TestServer};

/// Rows of the inbox `big`: three times as many as the first transaction of a receipt marks.
const ROWS: i64 = 30_000;

/// Inboxes with a row of one wide push.
const INBOXES: i64 = 12_000;

const WIDE: &str = "00000000-0000-7000-8000-000000000000";

/// Fills the tables as an admin would, which is quicker than to push.
async fn fill(server: &TestServer) {
    let (id, wide) = match server.place() {
        Place::File(_) => ("'00000000-0000-7000-8001-' || (100000000000 + i)", format!("'{WIDE}'")),
        Place::Postgres(_) => ("('00000000-0000-7000-8001-' || (100000000000 + i))::uuid", format!("'{WIDE}'::uuid")),
    };
    let upto = |last: i64| format!("with recursive n (i) as (select 1 union all select i + 1 from n where i < {last})");
    let (rows, inboxes) = (upto(ROWS), upto(INBOXES));
    let at = "2026-01-02T03:04:05.678Z";
    let life = "(select erasures from meta)";
    server
        .table()
        .change(&format!(
            "insert into inbox (token, rev, unread, created_at, life) values ('big', {ROWS}, {ROWS}, '{at}', {life});
            {rows} insert into notification (token, seq, id, entity_type, created_at, data)
            select 'big', i, {id}, 'like', '{at}', '{{}}' from n;
            {inboxes} insert into inbox (token, rev, unread, created_at, life) select 'user ' || i, 1, 1, '{at}', {life} from n;
            {inboxes} insert into notification (token, seq, id, entity_type, created_at, data)
            select 'user ' || i, 1, {wide}, 'like', '{at}', '{{}}' from n;
            {inboxes} insert into scheduled (id, token, due_at, entity_type, created_at, data)
            select {wide}, 'late ' || i, '2099-01-02T03:04:05.678Z', 'like', '{at}', '{{}}' from n;"
        ))
        .await;
    if matches!(server.place(), Place::Postgres(_)) {
        // Or the check goes through all of a table for each row of another.
        server.table().change("analyze").await;
    }
    server.table().expect_sound().await;
}

/// A change, what is left of it, and what its answer says when it is done.
const CHANGES: [(&str, &str, Option<&str>, &str); 3] = [
    (
        "POST",
        "/api/inbox/big/read",
        Some(r#"{"all":true}"#),
        "select count(*) from notification where token = 'big' and read_at is null",
    ),
    (
        "DELETE",
        "/api/notifications/00000000-0000-7000-8000-000000000000",
        None,
        "select (select count(*) from scheduled) + count(*) from notification where token like 'user %' and retracted_at is null",
    ),
    ("DELETE", "/api/inbox/big", None, "select count(*) from notification where token = 'big'"),
];

async fn ask(server: &TestServer, method: &str, path: &str, body: Option<&str>) -> Answer {
    let json: &[_] = if body.is_some() { &[("content-type", "application/json")] } else { &[] };
    server.api().send(method, path, json, body.unwrap_or_default()).await.expect("an answer")
}

#[tokio::test]
async fn killed_in_the_middle_of_a_large_change_it_is_completed_by_the_same_request_again() {
    let mut server = TestServer::with(&["--step-ms=20"]).await;
    fill(&server).await;
    let mut middles = 0;
    for (method, path, body, left) in CHANGES {
        let all = server.table().count(left).await;
        let some_are_done = async {
            loop {
                let count = server.table().count(left).await;
                if count < all {
                    return count;
                }
                // Nothing else runs while a command is waited for.
                sleep(Duration::from_millis(1)).await;
            }
        };
        let rest = tokio::select! {
            rest = some_are_done => rest,
            answer = ask(&server, method, path, body) => {
                assert_eq!(answer.status, 200, "{}", answer.text);
                0
            }
        };
        middles += usize::from(rest > 0);
        server.kill_9().await;
        server.start_again().await;
        server.table().expect_sound().await;
        // What came after the crash is not what the request was about, unless that comes again.
        let mut socket = server.connect().await;
        let login = socket.login("big").await;
        assert!(login.unread <= ROWS);
        let answer = ask(&server, method, path, body).await;
        assert!([200, 404].contains(&answer.status), "{}", answer.text);
        assert_eq!(server.table().count(left).await, 0, "{method} {path}");
        server.table().expect_sound().await;
    }
    assert_eq!(server.table().count("select count(*) from inbox where token = 'big'").await, 0);
    assert!(middles > 0, "nothing was large enough to be met half way");
}

#[tokio::test]
async fn pushes_are_stored_and_counts_are_exact_while_a_large_change_goes_on() {
    let server = TestServer::with(&["--step-ms=20"]).await;
    fill(&server).await;
    let (mut watcher, api) = (server.login_empty("watcher").await, server.api());
    for (method, path, body, left) in CHANGES {
        let change = ask(&server, method, path, body);
        tokio::pin!(change);
        let mut between = 0;
        let answer = loop {
            // In this order: where both have come before this task has its turn, the push came while the change went on.
            tokio::select! {
                biased;
                pushed = api.push("watcher", "{}") => drop(pushed),
                answer = &mut change => break answer,
            }
            between += 1;
            watcher.expect_message().await;
            sleep(Duration::from_millis(1)).await;
        };
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert!(between > 0, "{between} pushes while {method} {path} went on");
        assert_eq!(server.table().count(left).await, 0, "it is answered when it is done");
        server.table().expect_sound().await;
    }
    let page: Value = server.api().list("big", "").await;
    assert_eq!((&page["items"], &page["unread"], &page["rev"]), (&json!([]), &json!(0), &json!(0)));
}
