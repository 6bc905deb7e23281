//! The write-ahead log of SQLite behind a transaction that somebody forgot: it grows, which is said, and comes back.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::server::{PATIENCE, TestServer};
use crate::table::OpenTransaction;

const MIB: u64 = 1024 * 1024;

fn log_of(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

fn size(log: &Path) -> u64 {
    std::fs::metadata(log).map_or(0, |meta| meta.len())
}

/// Pushes so much that the log must have grown by at least 70 MiB.
async fn grow(server: &TestServer) {
    let data = "x".repeat(60_000);
    // Less than a transaction's limit each: what has more is stored once.
    for batch in 0..13 {
        let tokens: Vec<_> = (0..100).map(|n| format!("{batch}-{n}")).collect();
        let answer = server.api().post(&json!({"tokens": tokens, "data": data}).to_string()).await;
        assert_eq!(answer.pushed().accepted, tokens.len());
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what} did not come true in time"));
}

fn warnings(server: &TestServer) -> Vec<String> {
    let said = server.stderr();
    said.lines().filter(|line| line.contains("WARN") && line.contains("write-ahead log")).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_log_behind_a_forgotten_transaction_is_told_and_shrinks_when_that_ends() {
    let server = TestServer::builder().on_sqlite().start().await;
    let log = log_of(server.database());
    server.api().push("1", "1").await;
    let forgotten = OpenTransaction::holding(server.place(), "select count(*) from notification").await;
    grow(&server).await;
    assert!(size(&log) > 70 * MIB);
    until("a warning", || !warnings(&server).is_empty()).await;
    let warning = warnings(&server).swap_remove(0);
    for word in [&*server.database().to_string_lossy(), "fuser", "end it"] {
        assert!(warning.contains(word), "{word} is not in {warning}");
    }
    assert!(server.metric("tidings_wal_bytes").await > 70e6);
    assert_eq!(warnings(&server).len(), 1, "it is not repeated at every look");

    drop(forgotten);
    until("a small log", || size(&log) < MIB).await;
    let measured = async {
        while server.metric("tidings_wal_bytes").await > 1e6 {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, measured).await.expect("the gauge follows");
    assert!(server.stderr().contains("can be emptied again"), "{}", server.stderr());
    server.api().push("1", "2").await;
    server.table().expect_sound().await;
}

#[tokio::test]
async fn a_log_that_a_killed_server_left_shrinks_after_the_start() {
    let mut server = TestServer::builder().on_sqlite().start().await;
    let log = log_of(server.database());
    let forgotten = OpenTransaction::holding(server.place(), "select count(*) from notification").await;
    grow(&server).await;
    server.kill_9().await;
    drop(forgotten);
    server.start_again().await;
    until("a small log", || size(&log) < MIB).await;
    assert_eq!(server.api().push("0-0", "1").await.results[0].seq, 2);
}

#[tokio::test]
async fn postgres_has_no_such_gauge() {
    let server = TestServer::builder().on_postgres().start().await;
    server.api().push("1", "1").await;
    let text = server.metrics_api().get("/metrics").await.text;
    assert!(text.contains("tidings_sessions") && !text.contains("tidings_wal_bytes"), "{text}");
}
