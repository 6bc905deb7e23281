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

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection, SqlitePool};
use tracing::info;
use uuid::Uuid;

use super::commit::SHARED;
use super::{
    Due, Entry, Error, Heads, Keep, ListQuery, OpenError, Opened, PURGED, Page, PageBuilder, Place, READS, Recipient,
    Sent, Settings, Stale, Store, StoredKey, Totals, TypeCount, Undelivered, fill_in, group, json, lost_payload,
    schema, shared_ids, unreadable,
};
use crate::notification::{Content, Event, Head, Notification, Rev, Token, timestamp};

mod checkpointer;
mod commit;
mod edit;
#[cfg_attr(not(feature = "postgres"), expect(dead_code, reason = "there is nothing to copy to"))]
pub(super) mod export;
pub(super) mod keys;
mod recovery;
#[cfg(test)]
mod tests;

use checkpointer::Checkpointer;
use commit::SqliteCommitter;

/// The first version without the bug that lets a checkpoint corrupt a write-ahead log (present since 3.7.0).
const FIRST_SAFE_VERSION: &str = "3.51.3";

/// A commit writes every page it touched, and a small one touches about two pages a row whatever their size: 4 KiB
/// measured 1.1 to 1.2 times the rows a second of 8 KiB at 32 rows a commit, and as many at 1,000.
const PAGE_SIZE: u32 = 4096;

/// The writer copies the log back into the file only when it reaches this many pages (80 MiB): the checkpointer has
/// then copied nearly all of it, so the commit that does it is hardly slower than others.
const WRITER_CHECKPOINT_PAGES: u32 = 20_000;

struct SqliteStore {
    readers: SqlitePool,
    page_bytes: usize,
    /// It is renewed only while nobody has the file open.
    epoch: Arc<str>,
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
    // How a file is opened is up to the service; `mode=rwc` is what it does anyway.
    if url.split_once('?').is_some_and(|(_, query)| !["", "mode=rwc"].contains(&query)) {
        return Err(OpenError::Url("a SQLite file has no option behind the ? but mode=rwc".to_owned()));
    }
    Ok((options, path))
}

/// A negative one is in KiB, any other in pages.
fn cache_kib(kib: u64) -> String {
    format!("-{kib}")
}

/// Opens, checks and migrates the file that `url` names.
pub(super) async fn connect(url: &str, settings: &Settings) -> Result<Connected, OpenError> {
    let (options, path) = locate(url)?;
    let lock = recovery::lock(&path)?;
    let promised = recovery::promised_frames(&path);
    recovery::refuse_foreign(&options, &path).await?;
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
        .pragma("journal_size_limit", checkpointer::MAX_IDLE_BYTES.to_string())
        .pragma("cache_size", cache_kib(settings.sqlite_cache_kib))
        // What undoes a statement that fails half way would go into a file of its own, once a commit.
        .pragma("temp_store", "memory")
        .disable_statement_logging();

    let mut connection = options.connect().await.map_err(|error| damaged_or(error, &path))?;
    check_version(&mut connection).await?;
    recovery::check(&mut connection, &path, promised, settings.startup_check_bytes).await?;
    schema::apply(&mut connection, sqlx::migrate!("migrations/sqlite")).await?;
    Ok(Connected { connection, lock, options, path })
}

/// Opens a file as [`connect`] does if it is there and up to date, so that it stays as it is.
#[cfg_attr(not(feature = "postgres"), expect(dead_code, reason = "there is nothing to copy to"))]
pub(super) async fn connect_current(url: &str, settings: &Settings) -> Result<Connected, OpenError> {
    let (_, path) = locate(url)?;
    if let Err(source) = std::fs::metadata(&path) {
        return Err(OpenError::Io { path, source });
    }
    let pending = migrate(url, settings, true).await?;
    if !pending.is_empty() {
        return Err(OpenError::Behind(pending.join(", ")));
    }
    connect(url, settings).await
}

pub(super) async fn renew_epoch(url: &str, settings: &Settings, renew: bool) -> Result<String, OpenError> {
    let Connected { mut connection, lock: _lock, .. } = connect(url, settings).await?;
    if renew {
        let fresh = Uuid::new_v4().simple().to_string();
        sqlx::query!("update meta set epoch = ?1 -- renewed", fresh).execute(&mut connection).await?;
    }
    let epoch = epoch(&mut connection).await?;
    connection.close().await?;
    Ok(epoch)
}

/// A connection beside those of a service that may be running.
pub(super) async fn connect_to_read(url: &str) -> Result<SqliteConnection, OpenError> {
    let (options, path) = locate(url)?;
    options.filename(&path).read_only(true).connect().await.map_err(|error| damaged_or(error, &path))
}

/// Applies the migrations that are pending, or only says which are; a file that is in use or not there is not touched.
pub(super) async fn migrate(url: &str, settings: &Settings, check_only: bool) -> Result<Vec<String>, OpenError> {
    let (options, path) = locate(url)?;
    let migrator = sqlx::migrate!("migrations/sqlite");
    let mut pending = migrator.iter().map(schema::name).collect();
    if path.exists() {
        recovery::refuse_foreign(&options, &path).await?;
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
        // Else each read that waits long for its turn is a line of the log.
        .acquire_slow_threshold(std::time::Duration::MAX)
        .test_before_acquire(false)
        .connect_with(options.clone().read_only(true).pragma("cache_size", cache_kib(settings.sqlite_cache_kib / 4)))
        .await?;
    let checkpointer = tokio::spawn(Checkpointer::new(options.clone().connect().await?, path.clone()).run());
    Ok(Opened {
        committers: vec![Box::new(SqliteCommitter {
            connection,
            readers: readers.clone(),
            checkpointer,
            idempotency_ttl: settings.idempotency_ttl,
            _lock: lock,
        })],
        store: Arc::new(SqliteStore { readers, page_bytes: settings.page_bytes, epoch: epoch.as_str().into() }),
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

impl SqliteStore {
    /// Fills in the `data` of rows whose push has it stored once, as [`fill_in`] does.
    async fn fill_in<R>(
        &self,
        rows: &mut Vec<R>,
        slot: impl Fn(&mut R) -> Option<(Uuid, &mut String)>,
    ) -> Result<bool, Error> {
        let payloads = self.payloads(&shared_ids(rows, &slot)).await?;
        Ok(fill_in(rows, payloads, self.page_bytes, slot))
    }

    /// What is stored once for all rows of a push, for the first pushes up to the bytes of a page. Most pages have nothing of
    /// the kind.
    async fn payloads(&self, ids: &[Uuid]) -> Result<HashMap<Uuid, String>, Error> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let (wanted, bytes) = (json(&ids), i64::try_from(self.page_bytes).unwrap_or(i64::MAX));
        let found = sqlx::query_scalar!(
            r#"select json_group_array(json_array(id, (select data from notification_payload as payload where payload.id = sized.id)))
                as "payloads!: String"
            from (
                select *, sum(size) over (order by place rows unbounded preceding) as upto from (
                    select wanted.key as place, payload.id, octet_length(payload.data) as size
                    from json_each(?1) as wanted cross join notification_payload as payload on payload.id = wanted.value
                )
            ) as sized where upto - size < ?2"#,
            wanted,
            bytes
        )
        .fetch_one(&self.readers)
        .await
        .map_err(unavailable)?;
        Ok(parse::<Vec<(Uuid, String)>>(&found)?.into_iter().collect())
    }
}

/// The id and the `data` of a row, if that is stored elsewhere.
fn shared_slot<'r>(id: &str, data: &'r mut String) -> Option<(Uuid, &'r mut String)> {
    if *data == SHARED { Some((Uuid::parse_str(id).ok()?, data)) } else { None }
}

#[async_trait]
impl Store for SqliteStore {
    async fn heads(&self, tokens: &[Token]) -> Result<Heads, Error> {
        let wanted = json(&tokens);
        let found = sqlx::query!(
            r#"select json_group_array(json_array(token, rev, unread, delivered_upto, purged_rev, life)) as "rows!: String",
                (select erasures from meta) as "erasures!: i64"
            from inbox where token in (select value from json_each(?1))"#,
            wanted
        )
        .fetch_one(&self.readers)
        .await
        .map_err(unavailable)?;
        let rows: Vec<(Cow<'_, str>, Rev, i64, Rev, Rev, i64)> = parse(&found.rows)?;
        let head = |(token, rev, unread, delivered_upto, purged_rev, life): (Cow<'_, str>, _, _, _, _, _)| {
            (Token::stored(&token), (Head { rev, unread, delivered_upto, purged_rev }, life))
        };
        let (epoch, erasures) = (Arc::clone(&self.epoch), found.erasures);
        Ok(Heads { epoch, erasures, of: rows.into_iter().map(head).collect() })
    }

    async fn undelivered(&self, page: &Undelivered<'_>) -> Result<Page<Notification>, Error> {
        let (token, now) = (page.token.as_str(), timestamp(page.now));
        let (limit, bytes) = (page.limit + 1, i64::try_from(self.page_bytes).unwrap_or(i64::MAX));
        for _ in 0..READS {
            let rows = sqlx::query_scalar!(
            r#"select json_group_array(json_array(seq, id, entity_type, created_at, data, read_at is not null, group_key,
                group_count, group_actors)) as "rows!: String"
            from (
                select seq, id, entity_type, created_at, data, read_at, group_key, group_count, group_actors
                from notification
                where token = ?1 and seq > ?2 and seq <= ?3 and delivered_at is null and retracted_at is null
                    and (expires_at is null or expires_at > ?4)
                order by seq
                -- Nearly always all of them are within the bytes of a page, and then no running sum is needed.
                limit iif((
                    select sum(octet_length(data)) from (
                        select data from notification
                        where token = ?1 and seq > ?2 and seq <= ?3 and delivered_at is null and retracted_at is null
                            and (expires_at is null or expires_at > ?4)
                        order by seq limit ?5
                    )
                ) <= ?6, ?5, (
                    select count(*) from (
                        select bytes, sum(bytes) over (order by seq rows unbounded preceding) as upto from (
                            select seq, octet_length(data) as bytes from notification
                            where token = ?1 and seq > ?2 and seq <= ?3 and delivered_at is null
                                and retracted_at is null and (expires_at is null or expires_at > ?4)
                            order by seq limit ?5
                        )
                    ) where upto - bytes < ?6
                ))
            )"#,
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
            let mut rows: Vec<NotificationRow<'_>> = parse(&rows)?;
            if !self.fill_in(&mut rows, |row| shared_slot(&row.1, &mut row.4)).await? {
                continue;
            }
            let mut builder = PageBuilder::new(page.limit, self.page_bytes);
            for row in rows {
                let weight = row.4.len();
                builder.add(notification(row)?, weight);
            }
            return Ok(builder.page);
        }
        Err(lost_payload(page.token))
    }

    async fn count_undelivered(&self, page: &Undelivered<'_>) -> Result<u64, Error> {
        let (token, now) = (page.token.as_str(), timestamp(page.now));
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

    async fn events(&self, token: &Token, after: Rev, limit: u32, now: DateTime<Utc>) -> Result<Page<Event>, Error> {
        let (name, limit_rows, bytes) = (token.as_str(), limit + 1, i64::try_from(self.page_bytes).unwrap_or(i64::MAX));
        let now = timestamp(now);
        type Row<'a> = (
            Rev,
            Option<Cow<'a, str>>,
            Option<String>,
            Cow<'a, str>,
            String,
            u8,
            Option<Cow<'a, str>>,
            Option<i64>,
            Option<Cow<'a, str>>,
            Option<Cow<'a, str>>,
        );
        for _ in 0..READS {
            // One statement, so that both tables are read from one snapshot: a rev that is missing here does not exist yet.
            let rows = sqlx::query_scalar!(
                r#"select json_group_array(json_array(rev, id, entity_type, at, data, read_at is not null, group_key,
                group_count, group_actors, change)) as "rows!: String"
            from (
                select *, sum(max(octet_length(data), octet_length(coalesce(change, ''))))
                    over (order by rev rows unbounded preceding) as bytes
                from (
                    select seq as rev, created_at as at, id, entity_type, data, read_at, group_key, group_count,
                        group_actors, iif(retracted_at is not null or expires_at <= ?5, ?6, null) as change
                    from notification where token = ?1 and seq > ?2
                    union all
                    select rev, at, null, null, '', null, null, null, null, change
                    from inbox_change where token = ?1 and rev > ?2
                    order by 1 limit ?3
                )
            ) where bytes - max(octet_length(data), octet_length(coalesce(change, ''))) < ?4"#,
                name,
                after,
                limit_rows,
                bytes,
                now,
                PURGED
            )
            .fetch_one(&self.readers)
            .await
            .map_err(unavailable)?;
            let mut rows: Vec<Row<'_>> = parse(&rows)?;
            // What is gone needs no data.
            let is_filled = self
                .fill_in(&mut rows, |row| match (&row.1, &row.9) {
                    (Some(id), None) => shared_slot(id, &mut row.4),
                    _ => None,
                })
                .await?;
            if !is_filled {
                continue;
            }
            let mut builder = PageBuilder::new(limit, self.page_bytes);
            for (rev, id, entity_type, at, data, read, key, count, actors, change) in rows {
                let weight = data.len().max(change.as_ref().map_or(0, |change| change.len()));
                let event = match (change, id, entity_type) {
                    (Some(change), ..) => super::change_event(rev, &change, time(&at)?),
                    (None, Some(id), Some(entity_type)) => {
                        Event::New(notification((rev, id, entity_type, at, data, read, key, count, actors))?)
                    }
                    _ => return Err(unreadable("row at rev", &rev.to_string())),
                };
                builder.add(event, weight);
            }
            return Ok(builder.page);
        }
        Err(lost_payload(token))
    }

    async fn list(&self, query: &ListQuery<'_>) -> Result<Page<Entry>, Error> {
        let (token, now, limit) = (query.token.as_str(), timestamp(query.now), query.limit + 1);
        let bytes = i64::try_from(self.page_bytes).unwrap_or(i64::MAX);
        type Time<'a> = Option<Cow<'a, str>>;
        for _ in 0..READS {
            let rows = sqlx::query_scalar!(
                r#"select json_group_array(json_array(
                json_array(seq, id, entity_type, created_at, data, read_at is not null, group_key, group_count,
                    group_actors),
                delivered_at, read_at, expires_at)) as "rows!: String"
            from (
                select *, sum(octet_length(data)) over (order by seq desc rows unbounded preceding) as bytes from (
                    select * from notification
                    where token = ?1 and seq < ?2 and seq > ?8 and retracted_at is null
                        and (expires_at is null or expires_at > ?3)
                        and (?4 is null or (read_at is null) = ?4) and (?5 is null or entity_type = ?5)
                    order by seq desc limit ?6
                )
            ) where bytes - octet_length(data) < ?7"#,
                token,
                query.before,
                now,
                query.unread,
                query.entity_type,
                limit,
                bytes,
                query.above
            )
            .fetch_one(&self.readers)
            .await
            .map_err(unavailable)?;
            let mut rows: Vec<(NotificationRow<'_>, Time<'_>, Time<'_>, Time<'_>)> = parse(&rows)?;
            if !self.fill_in(&mut rows, |row| shared_slot(&row.0.1, &mut row.0.4)).await? {
                continue;
            }
            let mut builder = PageBuilder::new(query.limit, self.page_bytes);
            for (row, delivered_at, read_at, expires_at) in rows {
                let (at, weight) = (|text: Time<'_>| text.map(|text| time(&text)).transpose(), row.4.len());
                let entry = Entry {
                    notification: notification(row)?,
                    delivered_at: at(delivered_at)?,
                    read_at: at(read_at)?,
                    expires_at: at(expires_at)?,
                };
                builder.add(entry, weight);
            }
            return Ok(builder.page);
        }
        Err(lost_payload(query.token))
    }

    async fn counts(&self, token: &Token, after: Rev, upto: Rev, now: DateTime<Utc>) -> Result<Vec<TypeCount>, Error> {
        let (token, now) = (token.as_str(), timestamp(now));
        let counts = sqlx::query_scalar!(
            r#"select json_group_array(json_array(entity_type, unread)) as "rows!: String" from (
                select entity_type, count(*) as unread from notification
                where token = ?1 and seq > ?2 and seq <= ?3 and read_at is null and retracted_at is null
                    and (expires_at is null or expires_at > ?4)
                group by entity_type)"#,
            token,
            after,
            upto,
            now
        )
        .fetch_one(&self.readers)
        .await
        .map_err(unavailable)?;
        let counts: Vec<(String, i64)> = parse(&counts)?;
        Ok(counts.into_iter().map(|(entity_type, unread)| TypeCount { entity_type, unread }).collect())
    }

    async fn unread_span(&self, token: &Token) -> Result<Option<(Rev, Rev)>, Error> {
        let token = token.as_str();
        let span = sqlx::query!("select read_upto, rev from inbox where token = ?1 and unread > 0", token)
            .fetch_optional(&self.readers)
            .await
            .map_err(unavailable)?;
        Ok(span.map(|span| (span.read_upto, span.rev)))
    }

    async fn newest_row(&self, token: &Token, upto: Rev) -> Result<Option<(Rev, Uuid)>, Error> {
        let token = token.as_str();
        let row = sqlx::query!(
            "select seq, id from notification where token = ?1 and seq <= ?2 order by seq desc limit 1",
            token,
            upto
        )
        .fetch_optional(&self.readers)
        .await
        .map_err(unavailable)?;
        let id = |id: &str| Uuid::parse_str(id).map_err(|_| unreadable("notification.id", id));
        row.map(|row| Ok((row.seq, id(&row.id)?))).transpose()
    }

    async fn sent(&self, id: Uuid, after: &str, limit: u32) -> Result<Option<Sent>, Error> {
        let (id_text, rows) = (id.to_string(), limit + 1);
        let found = sqlx::query!(
            r#"select entity_type as "entity_type!", created_at as "created_at!",
                iif(data = 'null ', (select payload.data from notification_payload as payload where payload.id = ?1), data) as "data!: String", due_at as "due_at?: String",
                (select count(*) from notification where id = ?1)
                    + (select count(*) from scheduled where id = ?1) as "sent!: i64",
                (select count(delivered_at) from notification where id = ?1) as "delivered!: i64",
                (select count(read_at) from notification where id = ?1) as "read!: i64",
                (select count(retracted_at) from notification where id = ?1) as "retracted!: i64"
            from (
                select entity_type, created_at, data, null as due_at from notification where id = ?1
                union all select entity_type, created_at, data, due_at from scheduled where id = ?1
            ) limit 1"#,
            id_text
        )
        .fetch_optional(&self.readers)
        .await
        .map_err(unavailable)?;
        let Some(found) = found else { return Ok(None) };
        let recipients = sqlx::query!(
            r#"select token as "token!", seq as "seq?: i64", delivered_at, read_at, retracted_at from (
                select token, seq, delivered_at, read_at, retracted_at from notification where id = ?1 and token > ?2
                union all select token, null, null, null, null from scheduled where id = ?1 and token > ?2
            ) order by token limit ?3"#,
            id_text,
            after,
            rows
        )
        .fetch_all(&self.readers)
        .await
        .map_err(unavailable)?;
        let at = |text: Option<String>| text.map(|text| time(&text)).transpose();
        let mut builder = PageBuilder::new(limit, usize::MAX);
        for row in recipients {
            let recipient = Recipient {
                token: Token::stored(&row.token),
                seq: row.seq,
                delivered_at: at(row.delivered_at)?,
                read_at: at(row.read_at)?,
                retracted_at: at(row.retracted_at)?,
            };
            builder.add(recipient, 0);
        }
        Ok(Some(Sent {
            content: content(&id_text, found.entity_type, &found.created_at, found.data)?,
            deliver_at: at(found.due_at)?,
            totals: Totals {
                sent: found.sent,
                delivered: found.delivered,
                read: found.read,
                retracted: found.retracted,
            },
            recipients: builder.page,
        }))
    }

    async fn due(&self, now: DateTime<Utc>) -> Result<Due, Error> {
        let now = timestamp(now);
        let due = sqlx::query!(
            r#"select exists (select 1 from notification where expires_at <= ?1) as "expired!: bool",
                exists (select 1 from scheduled where due_at <= ?1) as "scheduled!: bool""#,
            now
        )
        .fetch_one(&self.readers)
        .await
        .map_err(unavailable)?;
        Ok(Due { expired: due.expired, scheduled: due.scheduled })
    }

    async fn stale(&self, after: &Place, inboxes: u32, rows: u32, keep: &Keep) -> Result<Stale, Error> {
        let (after, after_rev) = after;
        let last = sqlx::query!(
            r#"select max(token) as last, count(*) as inboxes from (
                select token from inbox where token >= ?1 order by token limit ?2 + 1)"#,
            after,
            inboxes
        )
        .fetch_one(&self.readers)
        .await
        .map_err(unavailable)?;
        let Some(last_token) = last.last else { return Ok(Stale::default()) };
        let (read, unread) = (keep.read_before.map(timestamp), keep.unread_before.map(timestamp));
        let history = keep.history_before.map(timestamp);
        let stale = sqlx::query_scalar!(
            r#"with oldest as materialized (
                select token, (select seq from notification where notification.token = inbox.token
                    order by seq desc limit 1 offset ?7) as seq
                from inbox where token >= ?1 and token <= ?2 and ?7 is not null and rev > ?7
            ), looked as materialized (
                select token, seq, created_at, read_at, retracted_at from notification
                where (?4 is not null or ?5 is not null or ?7 is not null) and (token, seq) > (?1, ?8) and token <= ?2
                order by token, seq limit ?3
            ), hidden as materialized (
                select token, seq, retracted_at from notification
                where ?6 is not null and retracted_at is not null and (token, seq) > (?1, ?8) and token <= ?2
                order by token, seq limit ?3
            ), changed as materialized (
                select token, rev, at from inbox_change
                where ?6 is not null and (token, rev) > (?1, ?8) and token <= ?2 order by token, rev limit ?3
            )
            select json_object(
                'rows', (select json_group_array(json_array(token, seq)) from (
                    select token, seq from hidden where retracted_at < ?6
                    union all
                    select looked.token, looked.seq from looked left join oldest on oldest.token = looked.token
                    where (read_at < ?4 or (read_at is null and created_at < ?5) or looked.seq <= oldest.seq)
                        and (retracted_at is null or ?6 is null or retracted_at >= ?6))),
                'history', (select json_group_array(json_array(token, purged_rev, upto)) from (
                    select inbox.token, purged_rev, max(changed.rev) as upto
                    from changed cross join inbox on inbox.token = changed.token where at < ?6 group by inbox.token)),
                'ends', (select json_group_array(json_array(token, seq)) from (
                    select * from (select token, seq from looked order by token desc, seq desc limit 1)
                        where (select count(*) from looked) = ?3
                    union all select * from (select token, seq from hidden order by token desc, seq desc limit 1)
                        where (select count(*) from hidden) = ?3
                    union all select * from (select token, rev from changed order by token desc, rev desc limit 1)
                        where (select count(*) from changed) = ?3))
            ) as "stale!: String""#,
            after,
            last_token,
            rows,
            read,
            unread,
            history,
            keep.rows,
            after_rev
        )
        .fetch_one(&self.readers)
        .await
        .map_err(unavailable)?;
        let more = last.inboxes > i64::from(inboxes);
        Ok(Stale::new(parse(&stale)?, Some(last_token).filter(|_| more)))
    }

    async fn api_keys(&self) -> Result<Vec<StoredKey>, Error> {
        keys::list(&mut *self.readers.acquire().await.map_err(unavailable)?).await
    }

    async fn epoch(&self) -> Result<String, Error> {
        let epoch = sqlx::query_scalar!("select epoch from meta limit 1 -- sqlite").fetch_one(&self.readers).await;
        epoch.map_err(unavailable)
    }
}

/// seq, id, entity_type, created_at, data, whether read, group_key, group_count, group_actors.
type NotificationRow<'a> =
    (Rev, Cow<'a, str>, String, Cow<'a, str>, String, u8, Option<Cow<'a, str>>, Option<i64>, Option<Cow<'a, str>>);

fn notification(row: NotificationRow<'_>) -> Result<Notification, Error> {
    let (seq, id, entity_type, created_at, data, read, key, count, actors) = row;
    Ok(Notification {
        seq,
        content: Arc::new(content(&id, entity_type, &created_at, data)?),
        read: read != 0,
        group: group(key.as_deref(), count, actors.as_deref())?,
    })
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
