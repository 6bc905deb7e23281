//! Receipts under load. However a client acks, its replay completes, live messages follow and every receipt is stored; and
//! a receipt whose commit waits or fails holds back neither the messages nor the other events of its socket.

use tokio::time::timeout;

use crate::server::{PATIENCE, Place, TestServer};
use crate::table::{OpenTransaction, WriteLock};

mod backlog;
mod confirmation;
mod flood;
mod pending;
mod sessions;

/// The id of a row that [`insert_rows`] made.
fn row_id(seq: usize) -> String {
    format!("01900000-0000-7000-8000-{seq:012x}")
}

/// Gives a token an inbox of undelivered rows with one statement: as many pushes would take far longer.
pub(crate) async fn insert_rows(server: &TestServer, token: &str, count: usize) {
    let (id, at, data) = match server.place() {
        Place::File(_) => ("printf('01900000-0000-7000-8000-%012x', n)", "'2026-01-02T03:04:05.678Z'", "'{}'"),
        Place::Postgres(_) => (
            "('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid",
            "'2026-01-02T03:04:05.678Z'::timestamptz",
            "'{}'::json",
        ),
    };
    let sql = format!(
        "begin;
         insert into inbox (token, rev, unread, created_at) values ('{token}', {count}, {count}, {at});
         insert into notification (token, seq, id, entity_type, created_at, data)
         with recursive numbers (n) as (select 1 union all select n + 1 from numbers where n < {count})
         select '{token}', n, {id}, 'like', {at}, {data} from numbers;
         commit;"
    );
    server.table().change(&sql).await;
}

/// Waits until every row of every token is delivered.
async fn expect_all_delivered(server: &TestServer) {
    let table = server.table();
    let delivered = async {
        while table.count("select count(*) from notification where delivered_at is null").await > 0 {
            // psql is not awaited, so without this the deadline would never be looked at.
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, delivered).await.expect("every row is delivered in time");
}

/// A foreign transaction that keeps the receipts of one token from being committed until it is dropped: on SQLite it holds
/// the write lock, on Postgres locks on the rows.
struct RowLock {
    _file: Option<WriteLock>,
    _rows: Option<OpenTransaction>,
}

impl RowLock {
    async fn take(server: &TestServer, token: &str) -> Self {
        match server.place() {
            place @ Place::File(_) => Self { _file: Some(WriteLock::take(place).await), _rows: None },
            place @ Place::Postgres(_) => {
                let lock = format!("select seq from notification where token = '{token}' for update");
                Self { _file: None, _rows: Some(OpenTransaction::holding(place, &lock).await) }
            }
        }
    }
}
