//! What Postgres itself does with the statements that a push needs, without a server before it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::Figures;
use crate::load::Data;
use crate::server::{Kind, Server};

/// Tokens that rows go to.
const TOKENS: u64 = 10_000;

/// A number of connections run a statement as fast as they can: statements a second.
async fn bare(
    connections: u64,
    time: Duration,
    statement: &'static str,
    tokens: impl Fn(u64) -> Vec<String> + Clone + Send + 'static,
) -> f64 {
    // For its tables.
    let server = Server::start(Kind::TidingsOnPostgres, &[]);
    let pool = sqlx::postgres::PgPoolOptions::new()
        .max_connections(u32::try_from(connections).expect("few"))
        .connect(&server.place.url())
        .await
        .expect("connect");
    let numbers = Arc::new(AtomicU64::new(1));
    let (started, until) = (Instant::now(), Instant::now() + time);
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let (pool, numbers, tokens) = (pool.clone(), Arc::clone(&numbers), tokens.clone());
        tasks.spawn(async move {
            let mut done = 0;
            while Instant::now() < until {
                let number = numbers.fetch_add(1, Ordering::Relaxed);
                sqlx::query(statement)
                    .bind(tokens(number))
                    .bind(i64::try_from(number).expect("small"))
                    .bind(uuid::Uuid::now_v7())
                    .bind(Data { number, micros: 0 }.to_string())
                    .execute(&pool)
                    .await
                    .expect("the statement works");
                done += 1;
            }
            done
        });
    }
    let done: u64 = tasks.join_all().await.into_iter().sum();
    let rate = done as f64 / started.elapsed().as_secs_f64();
    let rows = sqlx::query_scalar::<_, i64>("select count(distinct seq) from notification").fetch_one(&pool).await;
    assert_eq!(rows.expect("the table is there"), i64::try_from(done).expect("small"), "rows are missing");
    pool.close().await;
    rate
}

/// Rows of 1,000 tokens a statement, without the inboxes.
pub(crate) async fn bare_unnest(connections: u64, time: Duration) -> Figures {
    let tokens = |number: u64| (0..1000).map(|n| ((number * 1000 + n) % TOKENS).to_string()).collect();
    let statement = "insert into notification (token, seq, id, entity_type, created_at, data)
        select token, $2, $3, 'like', now(), $4::json from unnest($1::text[]) as token";
    vec![("rows/s".to_owned(), bare(connections, time, statement, tokens).await * 1000.0)]
}

/// One row of one token a statement, each waiting for the row lock of the inbox.
pub(crate) async fn one_row_lock(time: Duration) -> Figures {
    let statement = "with target as (
            insert into inbox (token, rev, unread, created_at) select token, 1, 1, now() from unnest($1::text[]) as token
            on conflict (token) do update set rev = inbox.rev + 1, unread = inbox.unread + 1 returning token, rev
        )
        insert into notification (token, seq, id, entity_type, created_at, data)
        select token, rev, $3, 'like', now(), $4::json from target where $2::bigint > 0";
    vec![("pushes/s".to_owned(), bare(64, time, statement, |_| vec!["hot".to_owned()]).await)]
}
