//! Inboxes in which much is retracted, delivered, read or of another type between what a reader looks for: logins and lists
//! find all of it, a step of rows at a time.

use serde_json::{Value, json};

use crate::receipts::insert_rows;
use crate::server::TestServer;

/// More than a few steps, fewer than one request takes.
const ROWS: usize = 9_000;

async fn undelivered(server: &TestServer, token: &str) -> Vec<i64> {
    let mut socket = server.connect().await;
    let login = socket.login_batch(token).await;
    let replay = socket.replay().await;
    let seqs: Vec<i64> = replay.messages.iter().map(|message| message.seq).collect();
    assert_eq!(login.undelivered, seqs.len() as i64, "the login says how many come");
    seqs
}

/// Every row of a list, page by page, and how many pages that took.
async fn list(server: &TestServer, token: &str, query: &str) -> (Vec<i64>, usize) {
    let (mut seqs, mut next, mut pages) = (Vec::new(), i64::MAX, 0);
    loop {
        let page = server.api().list(token, &format!("before={next}&limit=10&{query}")).await;
        seqs.extend(
            page["items"].as_array().expect("a list has items").iter().map(|item| item["seq"].as_i64().expect("a seq")),
        );
        pages += 1;
        match page["next"].as_i64() {
            Some(below) => next = below,
            None => return (seqs, pages),
        }
    }
}

#[tokio::test]
async fn what_is_retracted_delivered_or_read_in_between_hides_nothing() {
    let server = TestServer::start().await;
    for token in ["retracted", "delivered", "read"] {
        insert_rows(&server, token, ROWS).await;
    }
    let sql =
        "update notification set retracted_at = created_at where token = 'retracted' and seq not in (1, 4000, 9000);
        update inbox set unread = 3 where token = 'retracted';
        update notification set delivered_at = created_at where token = 'delivered' and seq not in (2, 8999);
        update notification set delivered_at = created_at, read_at = created_at
            where token = 'read' and seq not in (3, 5000);
        update inbox set unread = 2 where token = 'read';
        update notification set entity_type = 'rare' where token = 'delivered' and seq = 7;";
    server.table().change(sql).await;
    server.table().expect_sound().await;
    // What the first read found is known to the second.
    for _ in 0..2 {
        assert_eq!(undelivered(&server, "retracted").await, [1, 4000, 9000]);
        assert_eq!(undelivered(&server, "delivered").await, [2, 8999]);
        assert_eq!(undelivered(&server, "read").await, [3, 5000]);
        for query in ["", "unread=true", "entityType=like"] {
            assert_eq!(list(&server, "retracted", query).await, (vec![9000, 4000, 1], 1), "{query}");
        }
        assert_eq!(list(&server, "retracted", "unread=false").await, (vec![], 1));
        assert_eq!(list(&server, "read", "unread=true").await, (vec![5000, 3], 1));
        assert_eq!(list(&server, "delivered", "entityType=rare").await, (vec![7], 1));
        for (token, unread) in [("retracted", json!({"like": 3})), ("read", json!({"like": 2}))] {
            let counts = server.api().ask("GET", &format!("/api/inbox/{token}/counts"), &Value::Null).await;
            assert_eq!(counts["byType"], unread, "{token}");
        }
    }
    let counts = server.api().ask("GET", "/api/inbox/delivered/counts", &Value::Null).await;
    assert_eq!(counts, json!({"unread": ROWS, "byType": {"like": ROWS - 1, "rare": 1}}));
    // What comes afterwards is found behind the gaps.
    server.api().push("retracted", "{}").await;
    assert_eq!(undelivered(&server, "retracted").await, [1, 4000, 9000, 9001]);
    assert_eq!(list(&server, "retracted", "").await, (vec![9001, 9000, 4000, 1], 1));
}

#[tokio::test]
async fn a_list_that_looks_for_little_in_very_much_is_shorter_and_says_where_to_go_on() {
    let server = TestServer::start().await;
    insert_rows(&server, "1", 120_000).await;
    server.table().change("update notification set entity_type = 'rare' where seq in (1, 119000)").await;
    let page = server.api().list("1", "entityType=rare").await;
    assert_eq!(page["items"].as_array().unwrap().len(), 1, "{page}");
    assert_eq!(page["next"], json!(20_001), "it looked at a hundred thousand rows");
    assert_eq!(list(&server, "1", "entityType=rare").await, (vec![119_000, 1], 2));
}
