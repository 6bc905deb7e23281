//! What statements cost, counted in steps of SQLite's machine: an inbox that is large must not make small things slow.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chrono::Utc;
use sqlx::SqliteConnection;

use super::commit::Transaction;
use crate::notification::{ReceiptKind, Rev, Selection, Token};
use crate::store::commit::Selected;
use crate::store::{Edit, Receipt, Settings};

/// An inbox of 20,000 rows, each unread and with a collapse key.
async fn large_inbox(folder: &tempfile::TempDir) -> SqliteConnection {
    let settings = Settings {
        readers: 1,
        writers: 1,
        page_bytes: 1000,
        timeout: Duration::from_secs(5),
        idempotency_ttl: Duration::from_secs(60),
        sqlite_cache_kib: 1024,
        allow_fsync_off: false,
        startup_check_bytes: 0,
    };
    let url = format!("sqlite://{}", folder.path().join("tidings.db").display());
    let mut connection = super::connect(&url, &settings).await.unwrap().connection;
    let rows = "insert into inbox (token, rev, unread, created_at) values ('1', 20000, 20000, '2026-01-02T03:04:05.678Z');
        with recursive row (seq) as (select 1 union all select seq + 1 from row where seq < 20000)
        insert into notification (token, seq, id, entity_type, collapse_key, created_at, data)
        select '1', seq, printf('00000000-0000-7000-8000-%012d', seq), '', 'key ' || seq, '2026-01-02T03:04:05.678Z', '{}'
        from row;
        insert into notification_key (token, kind, key, seq) select token, 'collapse', collapse_key, seq from notification";
    sqlx::raw_sql(rows).execute(&mut connection).await.unwrap();
    connection
}

/// Counts steps from now on.
async fn count_steps(connection: &mut SqliteConnection) -> Arc<AtomicU64> {
    const EVERY: i32 = 100;
    let steps = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&steps);
    connection.lock_handle().await.unwrap().set_progress_handler(EVERY, move || {
        counted.fetch_add(EVERY.unsigned_abs().into(), Ordering::Relaxed);
        true
    });
    steps
}

#[tokio::test]
async fn removing_rows_looks_at_their_own_keys_only() {
    const ROWS: u64 = 500;
    let folder = tempfile::tempdir().unwrap();
    let mut connection = large_inbox(&folder).await;
    let steps = count_steps(&mut connection).await;
    let rows = (1..=ROWS).map(|seq| (Token::stored("1"), seq.cast_signed())).collect();
    let purge = Edit::Purge { rows, history: Vec::new(), seen: Utc::now() };
    let edited = Transaction::new(&mut connection, Utc::now()).edit(&purge, 1_000).await.unwrap();
    assert_eq!(edited.rows, ROWS);
    assert!(steps.load(Ordering::Relaxed) < 1_000 * ROWS, "{steps:?} steps");
    let keys = "select count(*) from notification_key";
    let left: i64 = sqlx::query_scalar(keys).fetch_one(&mut connection).await.unwrap();
    assert_eq!(left, 19_500);
}

#[tokio::test]
async fn reading_all_looks_behind_what_was_read_before_only() {
    let folder = tempfile::tempdir().unwrap();
    let mut connection = large_inbox(&folder).await;
    let read = async |connection: &mut SqliteConnection, selection| {
        let receipt = Receipt {
            token: Token::stored("1"),
            kind: ReceiptKind::Read,
            selection,
            after: 0,
            origin: None,
            life: None,
        };
        let (receipts, nothing) = ([receipt], []);
        let (reads, none) = (Selected::of(&receipts, ReceiptKind::Read), Selected::of(&nothing, ReceiptKind::Unread));
        let heads = Transaction::new(connection, Utc::now()).turn(&reads, &none, 1_000_000).await.unwrap();
        heads.0["1"].unread
    };
    assert_eq!(read(&mut connection, Selection::UpTo(19_990)).await, 10);
    let steps = count_steps(&mut connection).await;
    assert_eq!(read(&mut connection, Selection::UpTo(Rev::MAX)).await, 0);
    assert_eq!(read(&mut connection, Selection::All).await, 0);
    assert!(steps.load(Ordering::Relaxed) < 5_000, "{steps:?} steps");
}
