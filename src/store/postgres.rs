//! Postgres: one connection for each writer, a pool for reading.
//!
//! Statements are set-based: a batch of any size is a few arrays, read with `unnest`. Whoever changes an inbox holds the
//! lock of its row until the commit, so revs are gapless and in commit order; whoever takes several locks takes them in
//! token order, so nobody deadlocks.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};
use tracing::warn;
use uuid::Uuid;

use super::commit::SHARED;
use super::schema::Owner;
use super::{
    Committer, Due, Entry, Error, Heads, Keep, ListQuery, OpenError, Opened, PURGED, Page, PageBuilder, Place, READS,
    Recipient, Sent, Settings, Stale, Store, StoredKey, Totals, TypeCount, Undelivered, fill_in, group, lost_payload,
    schema, shared_ids, unreadable,
};
use crate::notification::{Content, Event, Head, Notification, Rev, Token};

mod commit;
mod edit;
#[cfg_attr(not(feature = "sqlite"), expect(dead_code, reason = "there is nothing to copy from"))]
pub(super) mod import;
pub(super) mod keys;
mod readers;

use commit::PostgresCommitter;
use readers::Readers;

/// The oldest version that knows every setting and statement used here; as `server_version_num` has it.
const FIRST_VERSION: i32 = 140_000;

struct PostgresStore {
    readers: Readers,
    page_bytes: usize,
}

/// Connects to, checks and migrates the database that `url` names.
pub(super) async fn open(url: &str, settings: &Settings) -> Result<Opened, OpenError> {
    let options = options(url)?;
    let mut connection = options.connect().await?;
    let epoch = prepare(&mut connection, settings).await?;
    connection.close().await?;

    let readers = Readers::new(options.clone(), settings.readers, settings.timeout);
    // One more, for acks.
    let committers = (0..=settings.writers)
        .map(|_| Box::new(PostgresCommitter::new(options.clone(), readers.clone(), settings)) as Box<dyn Committer>)
        .collect();
    let place = format!("postgres://{}:{}/{}", options.get_host(), options.get_port(), database(&options));
    let store = Arc::new(PostgresStore { readers, page_bytes: settings.page_bytes });
    Ok(Opened { committers, store, epoch, place })
}

pub(super) fn options(url: &str) -> Result<PgConnectOptions, OpenError> {
    Ok(tuned(parse_url(url).map_err(OpenError::Url)?).application_name("tidings"))
}

/// The options of a URL that the library knows. It passes over any other, and so over a demand such as `channel_binding`.
const URL_OPTIONS: [&str; 18] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

/// Reads the URL of a database, of which every option must be one that counts.
///
/// # Errors
/// Says what is wrong with it, and shows no value.
fn parse_url(url: &str) -> Result<PgConnectOptions, String> {
    let query = url.split_once('?').map_or("", |(_, query)| query.split('#').next().unwrap_or(query));
    for option in query.split('&').filter(|option| !option.is_empty()) {
        let name = option.split('=').next().unwrap_or(option);
        let name = percent_encoding::percent_decode_str(name).decode_utf8_lossy();
        let is_known = URL_OPTIONS.contains(&&*name) || (name.starts_with("options[") && name.ends_with(']'));
        if !is_known {
            // If there is an @ the name may be part of a password.
            return Err(match query.contains('@') {
                true => "a ? in a password is written %3F".to_owned(),
                false => format!("it has the option {name:?}, which this service cannot honour: remove it"),
            });
        }
    }
    PgConnectOptions::from_str(url).map_err(|error| error.to_string())
}

/// Without what a pooler refuses in a connection's first message, as PgBouncer does unless it is told otherwise; no
/// floating-point number is ever asked for.
fn tuned(options: PgConnectOptions) -> PgConnectOptions {
    options.extra_float_digits(None).disable_statement_logging()
}

/// Checks and migrates the database and returns its epoch.
pub(super) async fn prepare(connection: &mut PgConnection, settings: &Settings) -> Result<String, OpenError> {
    if !check(connection, settings.allow_fsync_off).await? {
        warn!("The database has fsync=off: what is answered 200 is only as safe as this server keeps it without that");
    }
    refuse_foreign(connection).await?;
    schema::apply(connection, sqlx::migrate!("migrations/postgres")).await?;
    epoch(connection).await
}

/// Applies the migrations that are pending, or only says which are.
pub(super) async fn migrate(url: &str, settings: &Settings, check_only: bool) -> Result<Vec<String>, OpenError> {
    let mut connection = options(url)?.connect().await?;
    check(&mut connection, settings.allow_fsync_off).await?;
    refuse_foreign(&mut connection).await?;
    let migrator = sqlx::migrate!("migrations/postgres");
    if check_only {
        return Ok(schema::pending(&mut connection, &migrator).await);
    }
    Ok(schema::apply(&mut connection, migrator).await?)
}

pub(super) async fn renew_epoch(url: &str, renew: bool) -> Result<String, OpenError> {
    let mut connection = options(url)?.connect().await?;
    refuse_foreign(&mut connection).await?;
    if renew {
        let fresh = Uuid::new_v4().simple().to_string();
        sqlx::query!("update meta set epoch = $1 -- renewed", fresh).execute(&mut connection).await?;
    }
    epoch(&mut connection).await
}

fn database(options: &PgConnectOptions) -> &str {
    options.get_database().unwrap_or_else(|| options.get_username())
}

/// Refuses a database in which another program has what the migrations would make, or a list of migrations of its own.
/// Tables of other names are no hindrance: a program may share its database.
async fn refuse_foreign(connection: &mut PgConnection) -> Result<(), OpenError> {
    let migrator = sqlx::migrate!("migrations/postgres");
    let object = match schema::owner(connection, &migrator).await {
        Owner::Tidings => None,
        Owner::Other => Some(schema::MIGRATIONS.to_owned()),
        Owner::Unknown => {
            let names = schema::creates(&migrator);
            sqlx::query_scalar!(
                r#"select relname::text as "name!" from pg_class
                where relnamespace = (select oid from pg_namespace where nspname = current_schema())
                    and relname::text = any($1)
                order by 1 limit 1"#,
                &names
            )
            .fetch_optional(connection)
            .await?
        }
    };
    match object {
        None => Ok(()),
        Some(object) => Err(OpenError::Foreign { place: "the database".to_owned(), object }),
    }
}

/// Refuses a server that is too old, that says a commit is durable before it is, or that takes none. Returns whether it
/// has `fsync` on.
async fn check(connection: &mut PgConnection, allow_fsync_off: bool) -> Result<bool, OpenError> {
    let server = sqlx::query!(
        r#"select current_setting('server_version_num')::int as "number!", current_setting('server_version') as "version!",
            current_setting('fsync') as "fsync!", current_setting('synchronous_commit') as "synchronous_commit!",
            current_setting('server_encoding') as "encoding!", pg_is_in_recovery() as "standby!""#
    )
    .fetch_one(connection)
    .await?;
    if server.standby {
        return Err(OpenError::Standby);
    }
    // The second is no encoding at all: it holds what it is given.
    if !["UTF8", "SQL_ASCII"].contains(&server.encoding.as_str()) {
        return Err(OpenError::Encoding(server.encoding));
    }
    let syncs = server.fsync == "on";
    fit(server.number, server.version, server.fsync, server.synchronous_commit, allow_fsync_off)?;
    Ok(syncs)
}

/// Checks the server that a connection leads to now, and prepares it for writing.
pub(super) async fn prepare_to_write(
    connection: &mut PgConnection,
    patience: Duration,
    allow_fsync_off: bool,
) -> Result<(), sqlx::Error> {
    check(connection, allow_fsync_off).await.map_err(|error| sqlx::Error::Configuration(error.into()))?;
    bound(connection, patience).await?;
    let settings = [
        // What a plan made for many ids and yesterday's statistics expects can be wrong by the size of the table. The one
        // made for any finds each row by its key.
        ("plan_cache_mode", "force_generic_plan".to_owned()),
        // Nor may it be made from what a table without statistics seems to be: small enough to be read as a whole, for each
        // ack anew, and kept until the table has grown by millions.
        ("enable_seqscan", "off".to_owned()),
        // A table without an index then seems to cost so much that the statement would be compiled, for each execution.
        ("jit", "off".to_owned()),
    ];
    set(connection, settings).await
}

/// Has the server give up what its client does: what waits for a lock, or for a node that is gone, must not hold on to its
/// rows and its place.
async fn bound(connection: &mut PgConnection, patience: Duration) -> Result<(), sqlx::Error> {
    let millis = |share: f32| patience.mul_f32(share).as_millis().to_string();
    let settings = [
        // First the lock, so that the answer says what it was.
        ("lock_timeout", millis(0.8)),
        ("statement_timeout", millis(0.9)),
        ("idle_in_transaction_session_timeout", millis(2.0)),
        ("tcp_keepalives_idle", "10".to_owned()),
        ("tcp_keepalives_interval", "5".to_owned()),
        ("tcp_keepalives_count", "3".to_owned()),
    ];
    set(connection, settings).await?;
    // Servers on some systems cannot.
    set(connection, [("client_connection_check_interval", "1s".to_owned())]).await.or_else(|error| match error {
        sqlx::Error::Database(_) => Ok(()),
        error => Err(error),
    })
}

async fn set<const N: usize>(connection: &mut PgConnection, settings: [(&str, String); N]) -> Result<(), sqlx::Error> {
    let (names, values): (Vec<&str>, Vec<String>) = settings.into_iter().unzip();
    sqlx::query!(
        "select set_config(name, value, false) from unnest($1::text[], $2::text[]) as wanted (name, value)",
        &names[..] as &[&str],
        &values[..]
    )
    .fetch_all(connection)
    .await?;
    Ok(())
}

fn fit(
    number: i32,
    version: String,
    fsync: String,
    synchronous_commit: String,
    allow_fsync_off: bool,
) -> Result<(), OpenError> {
    if number < FIRST_VERSION {
        return Err(OpenError::PostgresVersion(version));
    }
    if fsync != "on" && !allow_fsync_off {
        return Err(OpenError::NotDurable { setting: "fsync", value: fsync });
    }
    if !["on", "remote_apply"].contains(&synchronous_commit.as_str()) {
        return Err(OpenError::NotDurable { setting: "synchronous_commit", value: synchronous_commit });
    }
    Ok(())
}

/// The id of the data set, made when there is none; of several nodes that make one at once, one wins.
async fn epoch(connection: &mut PgConnection) -> Result<String, OpenError> {
    let fresh = Uuid::new_v4().simple().to_string();
    sqlx::query!("insert into meta (epoch) values ($1) on conflict do nothing", fresh)
        .execute(&mut *connection)
        .await?;
    Ok(sqlx::query_scalar!("select epoch from meta limit 1 -- postgres").fetch_one(connection).await?)
}

#[async_trait]
impl Store for PostgresStore {
    async fn heads(&self, tokens: &[Token]) -> Result<Heads, Error> {
        let tokens: Vec<&str> = tokens.iter().map(Token::as_str).collect();
        // The epoch with them: the table may have been taken back to an earlier state at any time.
        let rows = sqlx::query!(
            r#"select epoch, erasures, token as "token?", rev as "rev?", unread as "unread?",
                delivered_upto as "delivered_upto?", purged_rev as "purged_rev?", life as "life?"
            from meta left join inbox on token = any($1)"#,
            &tokens[..] as &[&str]
        )
        .fetch_all(&self.readers)
        .await
        .map_err(unavailable)?;
        let meta = rows.first().map(|row| (row.epoch.as_str().into(), row.erasures));
        let (epoch, erasures) = meta.ok_or_else(|| unreadable("meta", "without an epoch"))?;
        let heads = rows.into_iter().filter_map(|row| {
            let (rev, unread) = (row.rev?, row.unread?);
            let (delivered_upto, purged_rev) = (row.delivered_upto?, row.purged_rev?);
            let head = Head { rev, unread, delivered_upto, purged_rev };
            Some((Token::stored(&row.token?), (head, row.life?)))
        });
        Ok(Heads { epoch, erasures, of: heads.collect() })
    }

    async fn undelivered(&self, page: &Undelivered<'_>) -> Result<Page<Notification>, Error> {
        for _ in 0..READS {
            let mut rows = sqlx::query!(
                r#"select seq as "seq!", id as "id!", entity_type as "entity_type!", created_at as "created_at!",
                data as "data!", read as "read!", group_key as "group_key?", group_count as "group_count?",
                group_actors as "group_actors?"
            from (
                select *, sum(octet_length(data)) over (order by seq rows unbounded preceding) as bytes from (
                    select seq, id, entity_type, created_at, data::text as data, read_at is not null as read, group_key,
                        group_count, group_actors::text as group_actors
                    from notification
                    where token = $1 and seq > $2 and seq <= $3 and delivered_at is null and retracted_at is null
                        and (expires_at is null or expires_at > $4)
                    order by seq limit $5
                ) as wanted
            ) as page where bytes - octet_length(data) < $6 order by seq"#,
                page.token.as_str(),
                page.after,
                page.upto,
                page.now,
                i64::from(page.limit) + 1,
                self.page_bytes()
            )
            .fetch_all(&self.readers)
            .await
            .map_err(unavailable)?;
            if !self.fill_in(&mut rows, |row| shared_slot(row.id, &mut row.data)).await? {
                continue;
            }
            let mut builder = PageBuilder::new(page.limit, self.page_bytes);
            for row in rows {
                let weight = row.data.len();
                let notification = Notification {
                    seq: row.seq,
                    content: Arc::new(content(row.id, row.entity_type, row.created_at, row.data)?),
                    read: row.read,
                    group: group(row.group_key.as_deref(), row.group_count, row.group_actors.as_deref())?,
                };
                builder.add(notification, weight);
            }
            return Ok(builder.page);
        }
        Err(lost_payload(page.token))
    }

    async fn count_undelivered(&self, page: &Undelivered<'_>) -> Result<u64, Error> {
        let count = sqlx::query_scalar!(
            r#"select count(*) as "count!" from notification
            where token = $1 and seq > $2 and seq <= $3 and delivered_at is null and retracted_at is null
                and (expires_at is null or expires_at > $4)"#,
            page.token.as_str(),
            page.after,
            page.upto,
            page.now
        )
        .fetch_one(&self.readers)
        .await
        .map_err(unavailable)?;
        Ok(count.unsigned_abs())
    }

    async fn events(&self, token: &Token, after: Rev, limit: u32, now: DateTime<Utc>) -> Result<Page<Event>, Error> {
        for _ in 0..READS {
            // One statement, so that both tables are read from one snapshot: a rev that is missing here does not exist yet.
            let mut rows = sqlx::query!(
                r#"select rev as "rev!", at as "at!", id as "id?", entity_type as "entity_type?", data as "data!",
                read as "read!", group_key as "group_key?", group_count as "group_count?",
                group_actors as "group_actors?", change as "change?"
            from (
                select *, sum(greatest(octet_length(data), octet_length(change)))
                    over (order by rev rows unbounded preceding) as bytes
                from (
                    select * from (
                        select seq as rev, created_at as at, id, entity_type, data::text as data,
                            read_at is not null as read, group_key, group_count, group_actors::text as group_actors,
                            case when retracted_at is not null or expires_at <= $5 then $6::text end as change
                        from notification where token = $1 and seq > $2 order by seq limit $3
                    ) as pushed
                    union all
                    select * from (
                        select rev, at, null::uuid, null, '', false, null, null::bigint, null, change::text
                        from inbox_change where token = $1 and rev > $2 order by rev limit $3
                    ) as changed
                    order by rev limit $3
                ) as wanted
            ) as page where bytes - greatest(octet_length(data), octet_length(change)) < $4 order by rev"#,
                token.as_str(),
                after,
                i64::from(limit) + 1,
                self.page_bytes(),
                now,
                PURGED
            )
            .fetch_all(&self.readers)
            .await
            .map_err(unavailable)?;
            // What is gone needs no data.
            let is_filled = self
                .fill_in(&mut rows, |row| match (row.id, &row.change) {
                    (Some(id), None) => shared_slot(id, &mut row.data),
                    _ => None,
                })
                .await?;
            if !is_filled {
                continue;
            }
            let mut builder = PageBuilder::new(limit, self.page_bytes);
            for row in rows {
                let weight = row.data.len().max(row.change.as_ref().map_or(0, String::len));
                let event = match (row.change, row.id, row.entity_type) {
                    (Some(change), ..) => super::change_event(row.rev, &change, row.at),
                    (None, Some(id), Some(entity_type)) => Event::New(Notification {
                        seq: row.rev,
                        content: Arc::new(content(id, entity_type, row.at, row.data)?),
                        read: row.read,
                        group: group(row.group_key.as_deref(), row.group_count, row.group_actors.as_deref())?,
                    }),
                    _ => return Err(unreadable("row at rev", &row.rev.to_string())),
                };
                builder.add(event, weight);
            }
            return Ok(builder.page);
        }
        Err(lost_payload(token))
    }

    async fn list(&self, query: &ListQuery<'_>) -> Result<Page<Entry>, Error> {
        for _ in 0..READS {
            let mut rows = sqlx::query!(
                r#"select seq as "seq!", id as "id!", entity_type as "entity_type!", created_at as "created_at!",
                data as "data!", group_key as "group_key?", group_count as "group_count?",
                group_actors as "group_actors?", delivered_at as "delivered_at?", read_at as "read_at?",
                expires_at as "expires_at?"
            from (
                select *, sum(octet_length(data)) over (order by seq desc rows unbounded preceding) as bytes from (
                    select seq, id, entity_type, created_at, data::text as data, group_key, group_count,
                        group_actors::text as group_actors, delivered_at, read_at, expires_at
                    from notification
                    where token = $1 and seq < $2 and seq > $8 and retracted_at is null
                        and (expires_at is null or expires_at > $3)
                        and ($4::bool is null or (read_at is null) = $4) and ($5::text is null or entity_type = $5)
                    order by seq desc limit $6
                ) as wanted
            ) as page where bytes - octet_length(data) < $7 order by seq desc"#,
                query.token.as_str(),
                query.before,
                query.now,
                query.unread,
                query.entity_type,
                i64::from(query.limit) + 1,
                self.page_bytes(),
                query.above
            )
            .fetch_all(&self.readers)
            .await
            .map_err(unavailable)?;
            if !self.fill_in(&mut rows, |row| shared_slot(row.id, &mut row.data)).await? {
                continue;
            }
            let mut builder = PageBuilder::new(query.limit, self.page_bytes);
            for row in rows {
                let weight = row.data.len();
                let notification = Notification {
                    seq: row.seq,
                    content: Arc::new(content(row.id, row.entity_type, row.created_at, row.data)?),
                    read: row.read_at.is_some(),
                    group: group(row.group_key.as_deref(), row.group_count, row.group_actors.as_deref())?,
                };
                let (delivered_at, read_at, expires_at) = (row.delivered_at, row.read_at, row.expires_at);
                builder.add(Entry { notification, delivered_at, read_at, expires_at }, weight);
            }
            return Ok(builder.page);
        }
        Err(lost_payload(query.token))
    }

    async fn counts(&self, token: &Token, after: Rev, upto: Rev, now: DateTime<Utc>) -> Result<Vec<TypeCount>, Error> {
        sqlx::query_as!(
            TypeCount,
            r#"select entity_type, count(*) as "unread!" from notification
            where token = $1 and seq > $2 and seq <= $3 and read_at is null and retracted_at is null
                and (expires_at is null or expires_at > $4)
            group by entity_type"#,
            token.as_str(),
            after,
            upto,
            now
        )
        .fetch_all(&self.readers)
        .await
        .map_err(unavailable)
    }

    async fn unread_span(&self, token: &Token) -> Result<Option<(Rev, Rev)>, Error> {
        let span = sqlx::query!("select read_upto, rev from inbox where token = $1 and unread > 0", token.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(unavailable)?;
        Ok(span.map(|span| (span.read_upto, span.rev)))
    }

    async fn newest_row(&self, token: &Token, upto: Rev) -> Result<Option<(Rev, Uuid)>, Error> {
        let row = sqlx::query!(
            "select seq, id from notification where token = $1 and seq <= $2 order by seq desc limit 1",
            token.as_str(),
            upto
        )
        .fetch_optional(&self.readers)
        .await
        .map_err(unavailable)?;
        Ok(row.map(|row| (row.seq, row.id)))
    }

    async fn sent(&self, id: Uuid, after: &str, limit: u32) -> Result<Option<Sent>, Error> {
        let found = sqlx::query!(
            r#"select push.entity_type as "entity_type!", push.created_at as "created_at!",
                case when push.data = 'null ' then (select payload.data::text from notification_payload as payload where payload.id = $1)
                    else push.data end as "data!",
                push.due_at as "due_at?", stored.sent + later.sent as "sent!", stored.delivered as "delivered!",
                stored.read as "read!", stored.retracted as "retracted!"
            from (
                select entity_type, created_at, data::text as data, null::timestamptz as due_at
                from notification where id = $1
                union all select entity_type, created_at, data::text, due_at from scheduled where id = $1
                limit 1
            ) as push, (
                select count(*) as sent, count(delivered_at) as delivered, count(read_at) as read,
                    count(retracted_at) as retracted
                from notification where id = $1
            ) as stored, (select count(*) as sent from scheduled where id = $1) as later"#,
            id
        )
        .fetch_optional(&self.readers)
        .await
        .map_err(unavailable)?;
        let Some(found) = found else { return Ok(None) };
        let recipients = sqlx::query!(
            r#"select token as "token!", seq as "seq?", delivered_at as "delivered_at?", read_at as "read_at?",
                retracted_at as "retracted_at?"
            from (
                select token, seq, delivered_at, read_at, retracted_at from notification where id = $1 and token > $2
                union all select token, null, null, null, null from scheduled where id = $1 and token > $2
            ) as recipient order by token limit $3"#,
            id,
            after,
            i64::from(limit) + 1
        )
        .fetch_all(&self.readers)
        .await
        .map_err(unavailable)?;
        let mut builder = PageBuilder::new(limit, usize::MAX);
        for row in recipients {
            let recipient = Recipient {
                token: Token::stored(&row.token),
                seq: row.seq,
                delivered_at: row.delivered_at,
                read_at: row.read_at,
                retracted_at: row.retracted_at,
            };
            builder.add(recipient, 0);
        }
        Ok(Some(Sent {
            content: content(id, found.entity_type, found.created_at, found.data)?,
            deliver_at: found.due_at,
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
        sqlx::query_as!(
            Due,
            r#"select exists (select 1 from notification where expires_at <= $1) as "expired!",
                exists (select 1 from scheduled where due_at <= $1) as "scheduled!""#,
            now
        )
        .fetch_one(&self.readers)
        .await
        .map_err(unavailable)
    }

    async fn stale(&self, after: &Place, inboxes: u32, rows: u32, keep: &Keep) -> Result<Stale, Error> {
        let (after, after_rev) = after;
        let last = sqlx::query!(
            r#"select max(token) as last, count(*) as "inboxes!" from (
                select token from inbox where token >= $1 order by token limit $2) as page"#,
            after,
            i64::from(inboxes) + 1
        )
        .fetch_one(&self.readers)
        .await
        .map_err(unavailable)?;
        let Some(last_token) = last.last else { return Ok(Stale::default()) };
        let stale = sqlx::query_scalar!(
            r#"with oldest as materialized (
                select token, (select seq from notification where notification.token = inbox.token
                    order by seq desc limit 1 offset $7) as seq
                from inbox where token >= $1 and token <= $2 and $7::bigint is not null and rev > $7
            ), looked as materialized (
                select token, seq, created_at, read_at, retracted_at from notification
                where ($4::timestamptz is not null or $5::timestamptz is not null or $7 is not null)
                    and (token, seq) > ($1, $8) and token <= $2
                order by token, seq limit $3
            ), hidden as materialized (
                select token, seq, retracted_at from notification
                where $6::timestamptz is not null and retracted_at is not null and (token, seq) > ($1, $8) and token <= $2
                order by token, seq limit $3
            ), changed as materialized (
                select token, rev, at from inbox_change
                where $6 is not null and (token, rev) > ($1, $8) and token <= $2 order by token, rev limit $3
            ), old as (
                select token, seq from hidden where retracted_at < $6
                union all
                select looked.token, looked.seq from looked left join oldest on oldest.token = looked.token
                where (read_at < $4 or (read_at is null and created_at < $5) or looked.seq <= oldest.seq)
                    and (retracted_at is null or $6 is null or retracted_at >= $6)
            ), history as (
                select inbox.token, purged_rev, max(changed.rev) as upto
                from changed join inbox on inbox.token = changed.token where at < $6 group by inbox.token
            ), ends as (
                select * from (select token, seq from looked order by token desc, seq desc limit 1) as end_of_looked
                    where (select count(*) from looked) = $3
                union all select * from (select token, seq from hidden order by token desc, seq desc limit 1) as end_of_hidden
                    where (select count(*) from hidden) = $3
                union all select * from (select token, rev from changed order by token desc, rev desc limit 1) as end_of_changed
                    where (select count(*) from changed) = $3
            )
            select json_build_object(
                'rows', (select coalesce(json_agg(json_build_array(token, seq)), '[]') from old),
                'history', (select coalesce(json_agg(json_build_array(token, purged_rev, upto)), '[]') from history),
                'ends', (select coalesce(json_agg(json_build_array(token, seq)), '[]') from ends)
            )::text as "stale!""#,
            after,
            last_token,
            i64::from(rows),
            keep.read_before,
            keep.unread_before,
            keep.history_before,
            keep.rows.map(i64::from),
            after_rev
        )
        .fetch_one(&self.readers)
        .await
        .map_err(unavailable)?;
        let found = serde_json::from_str(&stale).map_err(|error| unreadable("row", &error.to_string()))?;
        Ok(Stale::new(found, Some(last_token).filter(|_| last.inboxes > i64::from(inboxes))))
    }

    async fn api_keys(&self) -> Result<Vec<StoredKey>, Error> {
        keys::list(&self.readers).await
    }

    async fn epoch(&self) -> Result<String, Error> {
        let epoch = sqlx::query_scalar!("select epoch from meta limit 1 -- postgres").fetch_one(&self.readers).await;
        epoch.map_err(unavailable)
    }
}

impl PostgresStore {
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
        let found = sqlx::query!(
            r#"select id as "id!", data::text as "data!" from (
                select payload.id, data, octet_length(data::text) as size,
                    sum(octet_length(data::text)) over (order by place rows unbounded preceding) as upto
                from unnest($1::uuid[]) with ordinality as wanted (id, place) join notification_payload as payload on payload.id = wanted.id
            ) as sized where upto - size < $2"#,
            ids,
            self.page_bytes()
        )
        .fetch_all(&self.readers)
        .await
        .map_err(unavailable)?;
        Ok(found.into_iter().map(|row| (row.id, row.data)).collect())
    }

    fn page_bytes(&self) -> i64 {
        i64::try_from(self.page_bytes).unwrap_or(i64::MAX)
    }
}

/// The id and the `data` of a row, if that is stored elsewhere.
fn shared_slot(id: Uuid, data: &mut String) -> Option<(Uuid, &mut String)> {
    (*data == SHARED).then_some((id, data))
}

fn content(id: Uuid, entity_type: String, created_at: DateTime<Utc>, data: String) -> Result<Content, Error> {
    let data = RawValue::from_string(data).map_err(|_| unreadable("notification.data of id", &id.to_string()))?;
    Ok(Content { id, entity_type, data, created_at })
}

/// Maps an error of a statement: whatever it is, nothing was written.
#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn unavailable(error: sqlx::Error) -> Error {
    const DISK_FULL: &str = "53100";
    match error.as_database_error().and_then(|error| error.code()) {
        Some(code) if code == DISK_FULL => Error::StorageFull,
        _ => Error::Unavailable(error.to_string().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_are_too_old_or_not_durable_are_refused() {
        let refusal_if = |allow_fsync_off, number, version: &str, fsync: &str, commit: &str| {
            let result = fit(number, version.into(), fsync.into(), commit.into(), allow_fsync_off);
            result.err().map(|error| error.to_string()).unwrap_or_default()
        };
        let refusal = |number, version, fsync, commit| refusal_if(false, number, version, fsync, commit);
        assert_eq!(refusal(140_000, "14.0", "on", "on"), "");
        assert_eq!(refusal(180_001, "18.1", "on", "remote_apply"), "");
        assert!(refusal(130_014, "13.14", "on", "on").contains("13.14"));
        let unsynced = refusal(160_000, "16.0", "off", "on");
        assert!(unsynced.contains("fsync=off") && unsynced.contains("--allow-fsync-off"), "{unsynced}");
        assert_eq!(refusal_if(true, 160_000, "16.0", "off", "on"), "");
        let local = refusal_if(true, 160_000, "16.0", "off", "local");
        assert!(local.contains("synchronous_commit=local") && !local.contains("--allow-fsync-off"), "{local}");
        assert!(refusal_if(true, 130_014, "13.14", "off", "on").contains("13.14"));
        for weak in ["off", "local", "remote_write"] {
            assert!(refusal(160_000, "16.0", "on", weak).contains(weak));
        }
    }

    #[test]
    fn options_of_a_url_that_would_be_passed_over_are_refused_by_name() {
        for known in [
            "",
            "?",
            "?sslmode=verify-full&sslrootcert=/ca.pem",
            "?host=/run/postgresql&application_name=a%3Fb",
            "?options[search_path]=tidings",
            "?options%5Bsearch_path%5D=tidings",
            "?options=-c%20search_path%3Dtidings",
        ] {
            assert!(parse_url(&format!("postgres://u:p@db.example/x{known}")).is_ok(), "{known}");
        }
        for (unknown, name) in [
            ("?channel_binding=require", "channel_binding"),
            ("?sslmode=require&channel_binding=secret", "channel_binding"),
            ("?pgbouncer=true", "pgbouncer"),
            ("?SSLMODE=require", "SSLMODE"),
            ("?ssl%6Dode2=x", "sslmode2"),
            ("?schema=tidings#sslmode=disable", "schema"),
        ] {
            let problem = parse_url(&format!("postgres://u:p@db.example/x{unknown}")).unwrap_err();
            assert!(problem.contains(name) && !problem.contains("secret"), "{unknown}: {problem}");
        }
        assert!(parse_url("postgres://u:p@db.example/x?sslmode=yes").is_err());
        let problem = parse_url("postgres://u:sec?ret@db.example/x").unwrap_err();
        assert!(problem.contains("%3F") && !problem.contains("ret"), "{problem}");
    }

    #[test]
    fn everything_that_the_migrations_make_is_known() {
        let names = schema::creates(&sqlx::migrate!("migrations/postgres"));
        for name in ["inbox", "notification", "undelivered", "push", "meta_has_one_row", "api_key", "scheduled_due"] {
            assert!(names.iter().any(|known| known == name), "{name} of {names:?}");
        }
    }
}
