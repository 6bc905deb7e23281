//! SQLite: one file, one writing connection, several that only read.
//!
//! WAL with `synchronous=FULL`, so a commit is durable when it returns. Statements are set-based: a batch of any size is
//! one JSON parameter, read with `json_each`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use serde_json::value::RawValue;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, SqliteConnection, SqlitePool};
use tracing::{info, warn};
use uuid::Uuid;

use super::{Error, OpenError, Opened, Page, PageBuilder, Settings, Store, Undelivered};
use crate::notification::{Content, Event, Head, Notification, Rev, Token};

mod commit;
mod recovery;

use commit::SqliteCommitter;

/// The first version without the bug that lets a checkpoint corrupt a write-ahead log (present since 3.7.0).
const FIRST_SAFE_VERSION: &str = "3.51.3";

/// Rows per page of 8 KiB measured 1.2 to 1.4 times the inserts a second of the default 4 KiB.
const PAGE_SIZE: u32 = 8192;

/// The writer copies the log back into the file only when it reaches this many pages (160 MiB): the checkpointer has
/// then copied nearly all of it, so the commit that does it is hardly slower than others.
const WRITER_CHECKPOINT_PAGES: u32 = 20_000;

/// The checkpointer starts to copy when this many pages (16 MiB) are not in the file yet.
const CHECKPOINT_PAGES: i64 = 2_000;

const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);

/// Rows a reading connection hands over before it waits; the default of 50 makes two threads take turns within a page.
const ROW_BUFFER: usize = 512;

struct SqliteStore {
    readers: SqlitePool,
}

/// Opens, checks and migrates the file that `url` names.
pub(super) async fn open(url: &str, settings: &Settings) -> Result<Opened, OpenError> {
    let options = SqliteConnectOptions::from_str(url).map_err(|_| OpenError::Url(url.to_owned()))?;
    let path = std::path::absolute(options.get_filename())
        .map_err(|source| OpenError::Io { path: options.get_filename().to_owned(), source })?;
    if url.contains(":memory:") || url.contains("mode=memory") || path.file_name().is_none() {
        return Err(OpenError::Url(url.to_owned()));
    }
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
        .row_buffer_size(ROW_BUFFER)
        .disable_statement_logging();

    let mut connection = options.connect().await.map_err(|error| damaged_or(error, &path))?;
    check_version(&mut connection).await?;
    recovery::check(&mut connection, &path, promised, settings.startup_check_bytes).await?;
    sqlx::migrate!("migrations/sqlite").run(&mut connection).await?;
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
        committer: Box::new(SqliteCommitter {
            connection,
            readers: readers.clone(),
            checkpointer,
            idempotency_ttl: settings.idempotency_ttl,
            _lock: lock,
        }),
        store: Arc::new(SqliteStore { readers }),
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
        let rows = sqlx::query!(
            r#"select token, rev, unread, delivered_upto from inbox where token in (select value from json_each(?1))"#,
            wanted
        )
        .fetch_all(&self.readers)
        .await
        .map_err(unavailable)?;
        Ok(rows
            .into_iter()
            .map(|row| {
                let head = Head { rev: row.rev, unread: row.unread, delivered_upto: row.delivered_upto };
                (Token::stored(&row.token), head)
            })
            .collect())
    }

    async fn undelivered(&self, page: &Undelivered<'_>) -> Result<Page<Notification>, Error> {
        let (token, now) = (page.token.as_str(), crate::notification::timestamp(page.now));
        let mut rows = sqlx::query!(
            r#"select seq, id, entity_type, created_at, data from notification
            where token = ?1 and seq > ?2 and seq <= ?3 and delivered_at is null and retracted_at is null
                and (expires_at is null or expires_at > ?4)
            order by seq limit ?5"#,
            token,
            page.after,
            page.upto,
            now,
            page.limit
        )
        .fetch(&self.readers);
        let mut builder = PageBuilder::new(page.limit);
        while let Some(row) = rows.try_next().await.map_err(unavailable)? {
            let weight = row.data.len() + row.entity_type.len();
            let content = content(&row.id, row.entity_type, &row.created_at, row.data)?;
            if builder.add(Notification { seq: row.seq, content: Arc::new(content), read: false }, weight) {
                break;
            }
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
        let token = token.as_str();
        // One statement, so that both tables are read from one snapshot: a rev that is missing here does not exist yet.
        let mut rows = sqlx::query!(
            r#"select seq as "rev!: i64", id as "id?: String", entity_type as "entity_type?: String",
                created_at as "at!: String", read_at as "read_at?: String", data as "data?: String",
                null as "change?: String"
            from notification where token = ?1 and seq > ?2
            union all
            select rev, null, null, at, null, null, change from inbox_change where token = ?1 and rev > ?2
            order by 1 limit ?3"#,
            token,
            after,
            limit
        )
        .fetch(&self.readers);
        let mut builder = PageBuilder::new(limit);
        while let Some(row) = rows.try_next().await.map_err(unavailable)? {
            let event = match (row.id, row.entity_type, row.data, row.change) {
                (Some(id), Some(entity_type), Some(data), _) => Event::New(Notification {
                    seq: row.rev,
                    content: Arc::new(content(&id, entity_type, &row.at, data)?),
                    read: row.read_at.is_some(),
                }),
                (_, _, _, Some(change)) => Event::Changed {
                    rev: row.rev,
                    change: serde_json::from_str(&change).map_err(|_| unreadable("inbox_change.change", &change))?,
                    at: time(&row.at)?,
                    origin: None,
                },
                _ => return Err(unreadable("row", &row.rev.to_string())),
            };
            let weight = event.weight();
            if builder.add(event, weight) {
                break;
            }
        }
        Ok(builder.page)
    }

    async fn ping(&self) -> Result<(), Error> {
        sqlx::query!("select epoch from meta limit 1 -- sqlite").fetch_one(&self.readers).await.map_err(unavailable)?;
        Ok(())
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

/// A value that the service did not write, so somebody edited the table.
fn unreadable(what: &str, value: &str) -> Error {
    Error::Unavailable(format!("the table holds a {what} that cannot be read: {value:?}").into())
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("texts and numbers always serialise")
}

/// SQLite's primary result code: 13 no space, 11 and 26 a damaged file.
fn result_code(error: &sqlx::Error) -> Option<i32> {
    let code: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(code & 0xff)
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
        _ => OpenError::Sql(error),
    }
}

/// Logs what a person should know about the file that was opened.
fn log_opened(path: &Path, frames: i64) {
    if frames > 0 {
        info!(wal.pages = frames, "Recovered {frames} pages of {} from its write-ahead log", path.display());
    }
}
