//! SQLite: one file, one writing connection, several that only read.
//!
//! WAL with `synchronous=FULL`, so a commit is durable when it returns. Statements are set-based: a batch of any size is
//! one JSON parameter, read with `json_each`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection, SqlitePool};
use tracing::{info, warn};
use uuid::Uuid;

use super::{Error, OpenError, Opened, Page, PageBuilder, Settings, Store, Undelivered, json, schema, unreadable};
use crate::notification::{Content, Event, Head, Notification, Rev, Token};

mod commit;
#[cfg_attr(not(feature = "postgres"), expect(dead_code, reason = "there is nothing to copy to"))]
pub(super) mod export;
mod recovery;

use commit::SqliteCommitter;

/// The first version without the bug that lets a checkpoint corrupt a write-ahead log (present since 3.7.0).
const FIRST_SAFE_VERSION: &str = "3.51.3";

/// A commit writes every page it touched, and a small one touches about two pages a row whatever their size: 4 KiB
/// measured 1.1 to 1.2 times the rows a second of 8 KiB at 32 rows a commit, and as many at 1,000.
const PAGE_SIZE: u32 = 4096;

/// The writer copies the log back into the file only when it reaches this many pages (80 MiB): the checkpointer has
/// then copied nearly all of it, so the commit that does it is hardly slower than others.
const WRITER_CHECKPOINT_PAGES: u32 = 20_000;

/// The checkpointer starts to copy when this many pages (8 MiB) are not in the file yet.
const CHECKPOINT_PAGES: i64 = 2_000;

const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);

struct SqliteStore {
    readers: SqlitePool,
    page_bytes: usize,
}

/// The writing connection of a file that was checked and migrated.
pub(super) struct Connected {
    pub(super) connection: SqliteConnection,
    /// Held while the file is in use.
    pub(super) lock: File,
    options: SqliteConnectOptions,
    path: PathBuf,
}

/// Where the file is that `url` names.
fn locate(url: &str) -> Result<(SqliteConnectOptions, PathBuf), OpenError> {
    let options = SqliteConnectOptions::from_str(url).map_err(|error| OpenError::Url(error.to_string()))?;
    let path = std::path::absolute(options.get_filename())
        .map_err(|source| OpenError::Io { path: options.get_filename().to_owned(), source })?;
    if url.contains(":memory:") || url.contains("mode=memory") || path.file_name().is_none() {
        return Err(OpenError::Url("it must name a file".to_owned()));
    }
    Ok((options, path))
}

/// Opens, checks and migrates the file that `url` names.
pub(super) async fn connect(url: &str, settings: &Settings) -> Result<Connected, OpenError> {
    let (options, path) = locate(url)?;
    let lock = recovery::lock(&path)?;
    let promised = recovery::promised_frames(&path);
    let options = options
        .filename(&path)
        .create_if_missing(true)
        .page_size(PAGE_SIZE)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        // Half of what a caller waits, so that a lock held by an admin is told as such.
        .busy_timeout(settings.timeout / 2)
        .foreign_keys(false)
        .pragma("wal_autocheckpoint", WRITER_CHECKPOINT_PAGES.to_string())
        .pragma("cache_size", "-65536")
        // What undoes a statement that fails half way would go into a file of its own, once a commit.
        .pragma("temp_store", "memory")
        .disable_statement_logging();

    let mut connection = options.connect().await.map_err(|error| damaged_or(error, &path))?;
    check_version(&mut connection).await?;
    recovery::check(&mut connection, &path, promised, settings.startup_check_bytes).await?;
    schema::apply(&mut connection, sqlx::migrate!("migrations/sqlite")).await?;
    Ok(Connected { connection, lock, options, path })
}

/// Applies the migrations that are pending, or only says which are; a file that is in use or not there is not touched.
pub(super) async fn migrate(url: &str, settings: &Settings, check_only: bool) -> Result<Vec<String>, OpenError> {
    let (options, path) = locate(url)?;
    let migrator = sqlx::migrate!("migrations/sqlite");
    let mut pending = migrator.iter().map(schema::name).collect();
    if path.exists() {
        let mut connection = options.filename(&path).read_only(true).connect().await?;
        pending = schema::pending(&mut connection, &migrator).await;
        connection.close().await?;
    }
    if !check_only && !pending.is_empty() {
        connect(url, settings).await?.connection.close().await?;
    }
    Ok(pending)
}

/// Opens the file for the service.
pub(super) async fn open(url: &str, settings: &Settings) -> Result<Opened, OpenError> {
    let Connected { mut connection, lock, options, path } = connect(url, settings).await?;
    let epoch = epoch(&mut connection).await?;
    let readers = SqlitePoolOptions::new()
        .max_connections(settings.readers)
        .min_connections(1)
        .acquire_timeout(settings.timeout)
        .test_before_acquire(false)
        .connect_with(options.clone().read_only(true).pragma("cache_size", "-16384"))
        .await?;
    let checkpointer = tokio::spawn(checkpoint(options.clone().connect().await?));
    Ok(Opened {
        committers: vec![Box::new(SqliteCommitter {
            connection,
            readers: readers.clone(),
            checkpointer,
            idempotency_ttl: settings.idempotency_ttl,
            _lock: lock,
        })],
        store: Arc::new(SqliteStore { readers, page_bytes: settings.page_bytes }),
        epoch,
        place: path.display().to_string(),
    })
}

async fn check_version(connection: &mut SqliteConnection) -> Result<(), OpenError> {
    let version =
        sqlx::query_scalar!(r#"select sqlite_version() as "version!: String" -- sqlite"#).fetch_one(connection).await?;
    let number = |text: &str| text.split('.').map(|part| part.parse().unwrap_or(0)).collect::<Vec<u32>>();
    if number(&version) < number(FIRST_SAFE_VERSION) {
        return Err(OpenError::Version(version));
    }
    Ok(())
}

/// The id of the data set, made when there is none.
async fn epoch(connection: &mut SqliteConnection) -> Result<String, OpenError> {
    let fresh = Uuid::new_v4().simple().to_string();
    sqlx::query!("insert into meta (epoch) select ?1 where not exists (select 1 from meta)", fresh)
        .execute(&mut *connection)
        .await?;
    Ok(sqlx::query_scalar!("select epoch from meta limit 1 -- sqlite").fetch_one(connection).await?)
}

/// Copies the log back into the file while the writer goes on, so that no commit has to wait for it.
async fn checkpoint(mut connection: SqliteConnection) {
    let mut ticks = tokio::time::interval(CHECKPOINT_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let pending = match recovery::log_state(&mut connection).await {
            Ok(state) => state.frames - state.checkpointed,
            Err(error) => {
                warn!(%error, "Cannot look at the write-ahead log");
                continue;
            }
        };
        if pending < CHECKPOINT_PAGES {
            continue;
        }
        // A pragma is not a query that the macros could describe.
        if let Err(error) = sqlx::query("pragma wal_checkpoint(passive)").execute(&mut connection).await {
            warn!(%error, "Cannot checkpoint, the write-ahead log grows until it works");
        } else {
            tracing::debug!(wal.pages = pending, "Checkpointed");
        }
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn heads(&self, tokens: &[Token]) -> Result<HashMap<Token, Head>, Error> {
        let wanted = json(&tokens);
        let rows = sqlx::query_scalar!(
            r#"select json_group_array(json_array(token, rev, unread, delivered_upto)) as "rows!: String"
            from inbox where token in (select value from json_each(?1))"#,
            wanted
        )
        .fetch_one(&self.readers)
        .await
        .map_err(unavailable)?;
        let rows: Vec<(Cow<'_, str>, Rev, i64, Rev)> = parse(&rows)?;
        let head = |(token, rev, unread, delivered_upto): (Cow<'_, str>, _, _, _)| {
            (Token::stored(&token), Head { rev, unread, delivered_upto })
        };
        Ok(rows.into_iter().map(head).collect())
    }

    async fn undelivered(&self, page: &Undelivered<'_>) -> Result<Page<Notification>, Error> {
        let (token, now) = (page.token.as_str(), crate::notification::timestamp(page.now));
        let (limit, bytes) = (page.limit + 1, i64::try_from(self.page_bytes).unwrap_or(i64::MAX));
        let rows = sqlx::query_scalar!(
            r#"select json_group_array(json_array(seq, id, entity_type, created_at, data)) as "rows!: String" from (
                select *, sum(octet_length(data)) over (order by seq rows unbounded preceding) as bytes from (
                    select seq, id, entity_type, created_at, data from notification
                    where token = ?1 and seq > ?2 and seq <= ?3 and delivered_at is null and retracted_at is null
                        and (expires_at is null or expires_at > ?4)
                    order by seq limit ?5
                )
            ) where bytes - octet_length(data) < ?6"#,
            token,
            page.after,
            page.upto,
            now,
            limit,
            bytes
        )
        .fetch_one(&self.readers)
        .await
        .map_err(unavailable)?;
        let rows: Vec<(Rev, Cow<'_, str>, String, Cow<'_, str>, String)> = parse(&rows)?;
        let mut builder = PageBuilder::new(page.limit, self.page_bytes);
        for (seq, id, entity_type, created_at, data) in rows {
            let weight = data.len();
            let content = content(&id, entity_type, &created_at, data)?;
            builder.add(Notification { seq, content: Arc::new(content), read: false }, weight);
        }
        Ok(builder.page)
    }

    async fn count_undelivered(&self, page: &Undelivered<'_>) -> Result<u64, Error> {
        let (token, now) = (page.token.as_str(), crate::notification::timestamp(page.now));
        let count = sqlx::query_scalar!(
            r#"select count(*) from notification
            where token = ?1 and seq > ?2 and seq <= ?3 and delivered_at is null and retracted_at is null
                and (expires_at is null or expires_at > ?4)"#,
            token,
            page.after,
            page.upto,
            now
        )
        .fetch_one(&self.readers)
        .await
        .map_err(unavailable)?;
        Ok(count.unsigned_abs())
    }

    async fn events(&self, token: &Token, after: Rev, limit: u32) -> Result<Page<Event>, Error> {
        let (token, rows, bytes) = (token.as_str(), limit + 1, i64::try_from(self.page_bytes).unwrap_or(i64::MAX));
        // One statement, so that both tables are read from one snapshot: a rev that is missing here does not exist yet.
        let rows = sqlx::query_scalar!(
            r#"select json_group_array(json_array(rev, at, id, entity_type, data, read_at is not null, change))
                as "rows!: String"
            from (
                select *, sum(octet_length(data)) over (order by rev rows unbounded preceding) as bytes from (
                    select seq as rev, created_at as at, id, entity_type, data, read_at, null as change
                    from notification where token = ?1 and seq > ?2
                    union all
                    select rev, at, null, null, '', null, change from inbox_change where token = ?1 and rev > ?2
                    order by 1 limit ?3
                )
            ) where bytes - octet_length(data) < ?4"#,
            token,
            after,
            rows,
            bytes
        )
        .fetch_one(&self.readers)
        .await
        .map_err(unavailable)?;
        type Row<'a> = (Rev, Cow<'a, str>, Option<Cow<'a, str>>, Option<String>, String, u8, Option<Cow<'a, str>>);
        let mut builder = PageBuilder::new(limit, self.page_bytes);
        for (rev, at, id, entity_type, data, read, change) in parse::<Vec<Row<'_>>>(&rows)? {
            let weight = data.len();
            let event = match (id, entity_type, change) {
                (Some(id), Some(entity_type), _) => Event::New(Notification {
                    seq: rev,
                    content: Arc::new(content(&id, entity_type, &at, data)?),
                    read: read != 0,
                }),
                (_, _, Some(change)) => Event::Changed {
                    rev,
                    change: serde_json::from_str(&change).map_err(|_| unreadable("inbox_change.change", &change))?,
                    at: time(&at)?,
                    origin: None,
                },
                _ => return Err(unreadable("row at rev", &rev.to_string())),
            };
            builder.add(event, weight);
        }
        Ok(builder.page)
    }

    async fn epoch(&self) -> Result<String, Error> {
        let epoch = sqlx::query_scalar!("select epoch from meta limit 1 -- sqlite").fetch_one(&self.readers).await;
        epoch.map_err(unavailable)
    }
}

fn content(id: &str, entity_type: String, created_at: &str, data: String) -> Result<Content, Error> {
    Ok(Content {
        id: Uuid::parse_str(id).map_err(|_| unreadable("notification.id", id))?,
        entity_type,
        data: RawValue::from_string(data).map_err(|_| unreadable("notification.data of id", id))?,
        created_at: time(created_at)?,
    })
}

fn time(text: &str) -> Result<DateTime<Utc>, Error> {
    DateTime::parse_from_rfc3339(text).map(|at| at.to_utc()).map_err(|_| unreadable("time", text))
}

/// Reads rows that a statement returned as one JSON text. Row by row they would cross from the connection's thread one at
/// a time, which measured about ten times the processor time.
fn parse<'a, T: serde::Deserialize<'a>>(rows: &'a str) -> Result<T, Error> {
    serde_json::from_str(rows).map_err(|error| unreadable("row", &error.to_string()))
}

/// SQLite's result code without what extends it: 10 an I/O error, 11 and 26 a damaged file, 13 no space.
fn result_code(error: &sqlx::Error) -> Option<i32> {
    let code: i32 = error.as_database_error()?.code()?.parse().ok()?;
    // The index of the log cannot grow, which SQLite does not tell from other I/O errors but by its extended code.
    const SHM_SIZE: i32 = 4874;
    Some(if code == SHM_SIZE { 13 } else { code & 0xff })
}

/// Maps an error of a statement: whatever it is, nothing was written.
#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn unavailable(error: sqlx::Error) -> Error {
    match result_code(&error) {
        Some(13) => Error::StorageFull,
        _ => Error::Unavailable(error.to_string().into()),
    }
}

fn damaged_or(error: sqlx::Error, path: &Path) -> OpenError {
    match result_code(&error) {
        Some(11 | 26) => OpenError::Damaged { path: PathBuf::from(path), problem: error.to_string() },
        Some(13) => OpenError::Full(PathBuf::from(path)),
        _ => OpenError::Sql(error),
    }
}

/// Logs what a person should know about the file that was opened.
fn log_opened(path: &Path, frames: i64) {
    if frames > 0 {
        info!(wal.pages = frames, "Recovered {frames} pages of {} from its write-ahead log", path.display());
    }
}
