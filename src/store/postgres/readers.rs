//! Connections for reading, none of which is waited for longer than a read may take.
//!
//! A pool by itself asks its server for ever: a connection that died without a word would keep its caller, and then its
//! place in the pool. Here such a connection is dropped, and its place given to a new one.

use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Describe, Either, Error, Execute, Executor, PgPool, Postgres, SqlStr};
use tokio::time::timeout;

/// A pool in which every wait has an end.
#[derive(Debug, Clone)]
pub(super) struct Readers {
    pool: PgPool,
    timeout: Duration,
}

/// A connection that is closed, and not given back, unless it has answered.
struct Borrowed(Option<PoolConnection<Postgres>>);

impl Readers {
    /// At most `connections`, each made when it is needed; a read may wait `timeout` for one, and as long for its answer.
    pub(super) fn new(options: PgConnectOptions, connections: u32, timeout: Duration) -> Self {
        let pool = PgPoolOptions::new().max_connections(connections).acquire_timeout(timeout);
        // Else each read that waits long for its turn is a line of the log.
        let pool = pool.acquire_slow_threshold(Duration::MAX);
        let pool = pool.after_connect(move |connection, _| Box::pin(super::bound(connection, timeout)));
        Self { pool: pool.connect_lazy_with(options), timeout }
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }

    async fn borrow(&self) -> Result<Borrowed, Error> {
        Ok(Borrowed(Some(self.pool.acquire().await?)))
    }
}

impl Borrowed {
    fn connection(&mut self) -> &mut sqlx::PgConnection {
        self.0.as_mut().expect("it is there until it has answered")
    }

    fn has_answered(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        drop(self.0.take().map(PoolConnection::detach));
    }
}

fn silent<T>(_: T) -> Error {
    Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "the database does not answer"))
}

/// A read is a page, so its rows may as well be waited for together.
impl<'c> Executor<'c> for &'c Readers {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let rows = async move {
            let mut borrowed = self.borrow().await?;
            let rows = borrowed.connection().fetch_many(query).try_collect::<Vec<_>>();
            let rows = timeout(self.timeout, rows).await.map_err(silent)?;
            borrowed.has_answered();
            Ok::<_, Error>(stream::iter(rows?.into_iter().map(Ok)))
        };
        stream::once(rows).try_flatten().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(async move {
            let mut borrowed = self.borrow().await?;
            let row = timeout(self.timeout, borrowed.connection().fetch_optional(query)).await.map_err(silent)?;
            borrowed.has_answered();
            row
        })
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [PgTypeInfo]) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'c: 'e,
    {
        self.pool.prepare_with(sql, parameters)
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        'c: 'e,
    {
        self.pool.describe(sql)
    }
}
