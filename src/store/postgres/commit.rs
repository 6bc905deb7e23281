//! One transaction: reads and unreads first, then pushes. The usual batch, of pushes alone, is one statement.
//!
//! A batch with reads or unreads locks all its inboxes with its first statement, so that the statements after it see
//! everything that was committed before the locks were taken.
//!
//! Acks come before all of that, each kind as a statement and so as a transaction of its own: they change rows that no push
//! and no counter is about, need no lock of an inbox, and may be stored though the rest of the batch is not.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info};
use uuid::Uuid;

use super::readers::Readers;
use super::unavailable;
use crate::limits::log_due;
use crate::notification::{Event, Head, Pushed, ReceiptKind, Rev, Token};
use crate::store::commit::{self, Changed, EXPIRED_KEYS_PER_COMMIT, Fresh, Progress, Reached, Selected, Turned, UpTo};
use crate::store::pending::ADVANCE_REVS;
use crate::store::{
    Batch, Committed, Committer, Edit, Edited, Error, HeadRow, KeyName, KeyedPush, PushOutcome, Settings, json, plan,
};

/// How often a transaction is run again that lost a deadlock or a race: our own take their locks in order, but others
/// may have theirs in the database.
const ATTEMPTS: u32 = 5;

/// The part of the timeout that a batch of pushes and receipts may take, so that enough of it is left to try the pushes alone;
/// unless it may commit by then.
const MIXED_SHARE: f32 = 0.4;

/// One writing connection, made anew whenever it breaks.
pub(super) struct PostgresCommitter {
    options: PgConnectOptions,
    connection: Option<PgConnection>,
    readers: Readers,
    timeout: Duration,
    allow_fsync_off: bool,
    idempotency_ttl: Duration,
    /// Whether what was sent last may commit: if its answer is lost, nobody knows.
    in_doubt: Arc<AtomicBool>,
}

impl PostgresCommitter {
    pub(super) fn new(options: PgConnectOptions, readers: Readers, settings: &Settings) -> Self {
        Self {
            options,
            connection: None,
            readers,
            timeout: settings.timeout,
            allow_fsync_off: settings.allow_fsync_off,
            idempotency_ttl: settings.idempotency_ttl,
            in_doubt: Arc::default(),
        }
    }

    /// Says what became of a transaction that failed, and makes the connection fit for the next one.
    async fn failed(&mut self, error: sqlx::Error) -> Error {
        if broke(&error) {
            // And with the connection every transaction that was not committed.
            self.connection = None;
            let text = error.to_string();
            return if self.in_doubt.load(Ordering::Relaxed) {
                Error::OutcomeUnknown(text.into())
            } else {
                Error::Unavailable(text.into())
            };
        }
        if code(&error).is_some_and(|code| code == READ_ONLY) {
            // Of a server that another took the place of: a new connection may lead there.
            self.connection = None;
        }
        let rollback = match &mut self.connection {
            Some(connection) => sqlx::query!("rollback -- postgres").execute(connection).await.map(drop),
            None => Ok(()),
        };
        if rollback.is_err() {
            self.connection = None;
        }
        unavailable(error)
    }

    /// A connection that works, if there was one or one can be made.
    async fn connect(&mut self, now: DateTime<Utc>) -> Result<Transaction<'_>, sqlx::Error> {
        self.in_doubt.store(false, Ordering::Relaxed);
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let mut connection = self.options.connect().await?;
                super::prepare_to_write(&mut connection, self.timeout, self.allow_fsync_off).await?;
                if let Some(left_out) = log_due("connected_for_writing") {
                    info!(left_out, "Connected to the database for writing");
                }
                connection
            }
        };
        let connection = self.connection.insert(connection);
        Ok(Transaction { connection, in_doubt: &self.in_doubt, now, events: Vec::new() })
    }

    async fn transaction(&mut self, batch: &Batch, now: DateTime<Utc>) -> Result<Committed, sqlx::Error> {
        let keys_expire = now + self.idempotency_ttl;
        let mut transaction = self.connect(now).await?;
        let acked = transaction.ack(batch).await?;
        transaction.advance(&batch.advances).await?;
        if batch.pushes.is_empty() && batch.receipts.iter().all(|receipt| receipt.kind == ReceiptKind::Ack) {
            let receipts = commit::told(&batch.receipts, &HashMap::new());
            let unfinished = commit::unfinished(&batch.receipts, &acked, &HashMap::new());
            return Ok(Committed { pushes: Vec::new(), receipts, events: Vec::new(), unfinished });
        }
        let keyed = batch.pushes.iter().any(|push| push.key.is_some());
        let depends = batch.pushes.iter().any(plan::depends);
        let shares = batch.pushes.iter().any(|push| push.push.data.is_shared());
        if batch.receipts.iter().all(|receipt| receipt.kind == ReceiptKind::Ack) && !keyed && !depends && !shares {
            let fresh = commit::fresh(&batch.pushes, &HashMap::new(), now);
            // A statement outside of a transaction is one of its own.
            transaction.in_doubt.store(true, Ordering::Relaxed);
            let stored = transaction.insert(&fresh).await?;
            let pushes = commit::outcomes(&batch.pushes, &HashMap::new(), stored);
            let receipts = commit::told(&batch.receipts, &HashMap::new());
            let unfinished = commit::unfinished(&batch.receipts, &acked, &HashMap::new());
            return Ok(Committed { pushes, receipts, events: transaction.events, unfinished });
        }
        sqlx::query!("begin -- postgres").execute(&mut *transaction.connection).await?;
        let earlier = transaction.claim_keys(&batch.pushes, keys_expire).await?;
        let fresh = commit::fresh(&batch.pushes, &earlier, now);
        let depends = fresh.iter().any(|fresh| plan::depends(fresh.push));
        let (receipts, heads, read) = transaction.receipts(batch, &fresh, depends).await?;
        let unfinished = commit::unfinished(&batch.receipts, &acked, &read);
        let stored = if depends {
            let plan = transaction.plan(&fresh, heads).await?;
            transaction.write(&fresh, plan).await?
        } else {
            transaction.insert_payloads(&commit::shared(&fresh)).await?;
            transaction.insert(&fresh).await?
        };
        if keyed {
            transaction.remember(&fresh, &stored).await?;
        }
        transaction.in_doubt.store(true, Ordering::Relaxed);
        sqlx::query!("commit -- postgres").execute(&mut *transaction.connection).await?;
        let pushes = commit::outcomes(&batch.pushes, &earlier, stored);
        Ok(Committed { pushes, receipts, events: transaction.events, unfinished })
    }

    async fn edit_transaction(&mut self, edit: &Edit, rows: u32, now: DateTime<Utc>) -> Result<Edited, sqlx::Error> {
        let mut transaction = self.connect(now).await?;
        sqlx::query!("begin -- postgres").execute(&mut *transaction.connection).await?;
        let (rows, next) = transaction.edit(edit, i64::from(rows.max(1))).await?;
        transaction.in_doubt.store(true, Ordering::Relaxed);
        sqlx::query!("commit -- postgres").execute(&mut *transaction.connection).await?;
        Ok(Edited { rows, events: transaction.events, next })
    }

    /// Says whether a transaction that failed, or took too long, is worth another try, and if not what became of it.
    async fn again(&mut self, result: Result<sqlx::Error, Elapsed>, attempt: u32) -> Result<(), Error> {
        let error = result.unwrap_or_else(|_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()));
        let again = attempt < ATTEMPTS && lost_a_race(&error);
        debug!(%error, attempt, again, "A transaction failed");
        let failed = self.failed(error).await;
        if again { Ok(()) } else { Err(failed) }
    }
}

/// Waits for a transaction until `deadline`, or only until `early` while it is sure that it does not commit.
async fn in_time<T>(
    early: Option<Instant>,
    deadline: Instant,
    in_doubt: &AtomicBool,
    transaction: impl Future<Output = T>,
) -> Result<T, Elapsed> {
    let mut transaction = pin!(transaction);
    if let Some(early) = early {
        match timeout_at(early, &mut transaction).await {
            Ok(done) => return Ok(done),
            Err(elapsed) if !in_doubt.load(Ordering::Relaxed) => return Err(elapsed),
            Err(_) => {}
        }
    }
    timeout_at(deadline, transaction).await
}

#[async_trait]
impl Committer for PostgresCommitter {
    async fn commit(&mut self, batch: &Batch, now: DateTime<Utc>) -> Result<Committed, Error> {
        let began = Instant::now();
        let early = batch.is_mixed().then(|| began + self.timeout.mul_f32(MIXED_SHARE));
        let (deadline, in_doubt) = (began + self.timeout, Arc::clone(&self.in_doubt));
        for attempt in 1.. {
            match in_time(early, deadline, &in_doubt, self.transaction(batch, now)).await {
                Ok(Ok(committed)) => return Ok(committed),
                Ok(Err(error)) => self.again(Ok(error), attempt).await?,
                Err(elapsed) => self.again(Err(elapsed), attempt).await?,
            }
        }
        unreachable!("the last attempt returns")
    }

    async fn edit(&mut self, edit: &Edit, rows: u32, now: DateTime<Utc>) -> Result<Edited, Error> {
        let deadline = Instant::now() + self.timeout;
        for attempt in 1.. {
            match timeout_at(deadline, self.edit_transaction(edit, rows, now)).await {
                Ok(Ok(edited)) => return Ok(edited),
                Ok(Err(error)) => self.again(Ok(error), attempt).await?,
                Err(elapsed) => self.again(Err(elapsed), attempt).await?,
            }
        }
        unreachable!("the last attempt returns")
    }

    async fn close(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.close().await.ok();
        }
        self.readers.close().await;
    }
}

/// Rows in the order in which everybody locks them.
fn in_order<'r>(ids: &HashSet<(&'r str, Uuid)>) -> (Vec<&'r str>, Vec<Uuid>) {
    let mut rows: Vec<(Uuid, &str)> = ids.iter().map(|(token, id)| (*id, *token)).collect();
    rows.sort_unstable();
    rows.into_iter().map(|(id, token)| (token, id)).unzip()
}

/// Nothing can be written there.
const READ_ONLY: &str = "25006";

/// Whether there is no connection any more. A server that stops says so before it closes it, and a pooler answers for a
/// server that is gone; what was sent last may be committed all the same.
fn broke(error: &sqlx::Error) -> bool {
    const CONNECTION: &str = "08";
    const STOPPING: &str = "57P";
    if error.as_database_error().is_none() {
        return true;
    }
    code(error).is_some_and(|code| code.starts_with(CONNECTION) || code.starts_with(STOPPING))
}

/// Whether the server gave up a transaction that may well work the next time.
fn lost_a_race(error: &sqlx::Error) -> bool {
    const SERIALIZATION_FAILURE: &str = "40001";
    const DEADLOCK: &str = "40P01";
    code(error).is_some_and(|code| code == SERIALIZATION_FAILURE || code == DEADLOCK)
}

fn code(error: &sqlx::Error) -> Option<Cow<'_, str>> {
    error.as_database_error().and_then(|error| error.code())
}

/// One transaction; the statements of its steps.
pub(super) struct Transaction<'c> {
    pub(super) connection: &'c mut PgConnection,
    in_doubt: &'c AtomicBool,
    pub(super) now: DateTime<Utc>,
    pub(super) events: Vec<(Token, Event)>,
}

impl Transaction<'_> {
    /// Claims the keys that nobody used before and returns the outcomes of the pushes whose keys somebody did. Another
    /// transaction that just uses one is waited for. Keys come before inboxes, and in order, so nobody deadlocks.
    async fn claim_keys(
        &mut self,
        pushes: &[KeyedPush],
        expires: DateTime<Utc>,
    ) -> Result<HashMap<KeyName, PushOutcome>, sqlx::Error> {
        let keys = commit::keyed(pushes);
        if keys.is_empty() {
            return Ok(HashMap::new());
        }
        let owners: Vec<&str> = keys.values().map(|(key, _)| key.owner.as_str()).collect();
        let names: Vec<&str> = keys.values().map(|(key, _)| key.key.as_str()).collect();
        let bodies: Vec<&str> = keys.values().map(|(key, _)| key.body_sha256.as_str()).collect();
        let claimed = sqlx::query!(
            r#"insert into idempotency (key_owner, key, body_sha256, response, expires_at)
            select key_owner, key, body_sha256, 'null', $4
            from unnest($1::text[], $2::text[], $3::text[]) as given (key_owner, key, body_sha256)
            order by key_owner collate "C", key collate "C"
            on conflict (key_owner, key) do update
                set body_sha256 = excluded.body_sha256, response = excluded.response, expires_at = excluded.expires_at
                where idempotency.expires_at <= $5
            returning key_owner, key"#,
            &owners[..] as &[&str],
            &names[..] as &[&str],
            &bodies[..] as &[&str],
            expires,
            self.now
        )
        .fetch_all(&mut *self.connection)
        .await?;
        let claimed: HashSet<KeyName> = claimed.into_iter().map(|row| (row.key_owner, row.key)).collect();
        let used: Vec<&KeyName> = keys.keys().filter(|name| !claimed.contains(*name)).collect();
        if used.is_empty() {
            return Ok(HashMap::new());
        }
        let owners: Vec<&str> = used.iter().map(|name| name.0.as_str()).collect();
        let names: Vec<&str> = used.iter().map(|name| name.1.as_str()).collect();
        let rows = sqlx::query!(
            r#"select key_owner, key, body_sha256, response::text as "response!" from idempotency
            where (key_owner, key) in (select * from unnest($1::text[], $2::text[]))"#,
            &owners[..] as &[&str],
            &names[..] as &[&str]
        )
        .fetch_all(&mut *self.connection)
        .await?;
        let outcome = |name: KeyName, body_sha256: &str, response: &str| {
            let outcome = commit::earlier(keys[&name].1, body_sha256, response)
                .map_err(|error| sqlx::Error::Decode(error.into()))?;
            Ok((name, outcome))
        };
        rows.into_iter().map(|row| outcome((row.key_owner, row.key), &row.body_sha256, &row.response)).collect()
    }

    /// Marks what the receipts of a batch select and returns what their senders are told, the heads of all inboxes of the
    /// batch if there are receipts or `depends` says that the pushes need them, and how far the reads came.
    async fn receipts(
        &mut self,
        batch: &Batch,
        pushes: &[Fresh<'_>],
        depends: bool,
    ) -> Result<(Vec<Option<Head>>, HashMap<String, Head>, Progress), sqlx::Error> {
        let receipts = &batch.receipts;
        let mut reads = Selected::of(receipts, ReceiptKind::Read);
        let mut unreads = Selected::of(receipts, ReceiptKind::Unread);
        if reads.is_empty() && unreads.is_empty() && !depends {
            return Ok((commit::told(receipts, &HashMap::new()), HashMap::new(), Progress::new()));
        }
        let mut progress = Progress::new();
        let present = pushes.iter().filter(|fresh| !fresh.is_for_later(self.now));
        let targets: BTreeSet<&str> = present.flat_map(|fresh| &fresh.push.push.tokens).map(Token::as_str).collect();
        let receivers: Vec<&str> = reads.tokens().union(&unreads.tokens()).copied().collect();
        let mut heads = self.lock(&receivers, &targets).await?;
        [&mut reads, &mut unreads].into_iter().for_each(|selected| selected.keep_locked(&heads));
        if !reads.is_empty() || !unreads.is_empty() {
            let read_by_id = self.read_ids(&reads).await?;
            let (read_by_mark, reached) = self.read_upto(&reads, batch.mark_limit()).await?;
            let turned = Turned { read_by_id, read_by_mark, unread_by_id: self.unread_ids(&unreads).await? };
            progress = reached;
            let changes = commit::changes(&reads, &unreads, &turned, &mut heads);
            self.change(changes, &heads).await?;
        }
        Ok((commit::told(receipts, &heads), heads, progress))
    }

    /// Locks inboxes in token order and returns their heads: of the receivers where they exist, and of the targets, which
    /// are made where they do not.
    pub(super) async fn lock(
        &mut self,
        receivers: &[&str],
        targets: &BTreeSet<&str>,
    ) -> Result<HashMap<String, Head>, sqlx::Error> {
        if targets.is_empty() {
            return self.lock_existing(receivers).await;
        }
        let targets: Vec<&str> = targets.iter().copied().collect();
        // An update that changes nothing: with `for update` the new inboxes would be locked apart from the others, which
        // is no order.
        let rows = sqlx::query_as!(
            HeadRow,
            r#"insert into inbox (token, created_at, life)
            select token, $3, (select erasures from meta) from (
                select target collate "C" from unnest($1::text[]) as target union
                select inbox.token from inbox where inbox.token = any($2::text[])
            ) as wanted (token)
            order by token collate "C"
            on conflict (token) do update set rev = inbox.rev
            returning token, rev, unread, delivered_upto, purged_rev"#,
            &targets[..] as &[&str],
            receivers as &[&str],
            self.now
        )
        .fetch_all(&mut *self.connection)
        .await?;
        Ok(rows.into_iter().map(HeadRow::named).collect())
    }

    /// Makes none, so that an inbox that somebody else just erases stays erased.
    async fn lock_existing(&mut self, tokens: &[&str]) -> Result<HashMap<String, Head>, sqlx::Error> {
        if tokens.is_empty() {
            return Ok(HashMap::new());
        }
        let rows = sqlx::query_as!(
            HeadRow,
            "select token, rev, unread, delivered_upto, purged_rev from inbox where token = any($1)
            order by token for update",
            tokens as &[&str]
        )
        .fetch_all(&mut *self.connection)
        .await?;
        Ok(rows.into_iter().map(HeadRow::named).collect())
    }

    /// Marks what clients have delivered. Rows are locked in one order, as reads lock theirs.
    async fn ack(&mut self, batch: &Batch) -> Result<Progress, sqlx::Error> {
        let mut progress = Progress::new();
        let acks = Selected::of(&batch.receipts, ReceiptKind::Ack);
        let acked = batch.acked.iter().map(|(token, id)| (*id, token.as_str()));
        let mut rows: Vec<(Uuid, &str)> = acks.ids.iter().map(|(token, id)| (*id, *token)).chain(acked).collect();
        if !rows.is_empty() {
            rows.sort_unstable();
            rows.dedup();
            let (ids, tokens): (Vec<Uuid>, Vec<&str>) = rows.into_iter().unzip();
            sqlx::query!(
                "update notification set delivered_at = $3 from unnest($1::text[], $2::uuid[]) as acked (token, id)
                where notification.id = acked.id and notification.token = acked.token and delivered_at is null",
                &tokens[..] as &[&str],
                &ids[..],
                self.now
            )
            .execute(&mut *self.connection)
            .await?;
        }
        if !acks.upto.is_empty() {
            let limit = batch.mark_limit();
            let is_large = |rows: &UpTo| rows.life.is_some() || rows.upto.saturating_sub(rows.after) > limit;
            if acks.upto.values().any(is_large) {
                progress = self.reach(&acks, limit).await?;
            }
            let rows = acks.upto.iter().filter_map(|(token, rows)| match (progress.get(*token), rows.life) {
                (Some(reached), _) => Some((*token, (rows.after, reached.reached))),
                (None, None) => Some((*token, (rows.after, rows.upto))),
                (None, Some(_)) => None,
            });
            let (tokens, rows): (Vec<&str>, Vec<(Rev, Rev)>) = rows.unzip();
            let (after, upto): (Vec<Rev>, Vec<Rev>) = rows.into_iter().unzip();
            sqlx::query!(
                "update notification set delivered_at = $4
                from unnest($1::text[], $2::bigint[], $3::bigint[]) as acked (token, after, upto), inbox
                where inbox.token = acked.token and notification.token = acked.token
                    and seq > greatest(inbox.delivered_upto, acked.after) and seq <= acked.upto and delivered_at is null",
                &tokens[..] as &[&str],
                &after[..],
                &upto[..],
                self.now
            )
            .execute(&mut *self.connection)
            .await?;
        }
        Ok(progress)
    }

    /// How far acks up to a rev come if each looks at so many rows.
    async fn reach(&mut self, acks: &Selected<'_>, limit: i64) -> Result<Progress, sqlx::Error> {
        let (tokens, rows): (Vec<&str>, Vec<&UpTo>) = acks.upto.iter().map(|(token, rows)| (*token, rows)).unzip();
        let after: Vec<Rev> = rows.iter().map(|rows| rows.after).collect();
        let upto: Vec<Rev> = rows.iter().map(|rows| rows.upto).collect();
        let lives: Vec<Option<i64>> = rows.iter().map(|rows| rows.life).collect();
        let rows = sqlx::query!(
            r#"select token, life, top as "top!", coalesce(
                (select seq - 1 from notification as row
                where row.token = acked.token and row.seq > after and row.seq <= top
                order by row.seq limit 1 offset $5),
                top) as "reached!"
            from (
                select inbox.token, inbox.life, greatest(delivered_upto, given.after) as after, least(given.upto, rev) as top
                from unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[]) as given (token, after, upto, life)
                join inbox on inbox.token = given.token and (given.life is null or given.life = inbox.life)
            ) as acked"#,
            &tokens[..] as &[&str],
            &after[..],
            &upto[..],
            &lives[..] as &[Option<i64>],
            limit
        )
        .fetch_all(&mut *self.connection)
        .await?;
        let rows = rows.into_iter();
        Ok(rows.map(|row| (row.token, Reached { reached: row.reached, top: row.top, life: row.life })).collect())
    }

    async fn read_ids(&mut self, reads: &Selected<'_>) -> Result<HashMap<String, Vec<Uuid>>, sqlx::Error> {
        let mut changed: HashMap<String, Vec<Uuid>> = HashMap::new();
        if reads.ids.is_empty() {
            return Ok(changed);
        }
        let (tokens, ids) = in_order(&reads.ids);
        let rows = sqlx::query!(
            "update notification set read_at = $3, delivered_at = coalesce(delivered_at, $3)
            from unnest($1::text[], $2::uuid[]) as seen (token, id)
            where notification.id = seen.id and notification.token = seen.token and read_at is null
                and retracted_at is null
            returning notification.token, notification.id",
            &tokens[..] as &[&str],
            &ids[..],
            self.now
        )
        .fetch_all(&mut *self.connection)
        .await?;
        for row in rows {
            changed.entry(row.token).or_default().push(row.id);
        }
        Ok(changed)
    }

    /// Marks everything up to the marks read, `limit` rows of each inbox at most; returns how many rows of each token that
    /// changed, and how far it came.
    async fn read_upto(
        &mut self,
        reads: &Selected<'_>,
        limit: i64,
    ) -> Result<(HashMap<String, (i64, Rev)>, Progress), sqlx::Error> {
        if reads.upto.is_empty() {
            return Ok((HashMap::new(), Progress::new()));
        }
        let (tokens, rows): (Vec<&str>, Vec<&UpTo>) = reads.upto.iter().map(|(token, rows)| (*token, rows)).unzip();
        let upto: Vec<Rev> = rows.iter().map(|rows| rows.upto).collect();
        let lives: Vec<Option<i64>> = rows.iter().map(|rows| rows.life).collect();
        let rows = sqlx::query!(
            r#"with given as materialized (
                select inbox.token, unread, read_upto as after, least(given.upto, rev) as top, inbox.life
                from unnest($1::text[], $2::bigint[], $5::bigint[]) as given (token, upto, life)
                join inbox on inbox.token = given.token and (given.life is null or given.life = inbox.life)
            ), seen as materialized (
                select token, unread, after, top, life, case when unread = 0 or top - after <= $4 then top else coalesce(
                    (select seq - 1 from notification as row
                    where row.token = given.token and row.seq > after and row.seq <= top
                    order by row.seq limit 1 offset $4),
                    top) end as upto
                from given
            ), marked as (
                update inbox set read_upto = seen.upto from seen where inbox.token = seen.token and read_upto < seen.upto
            ), changed as (
                update notification set read_at = $3, delivered_at = coalesce(delivered_at, $3)
                from seen
                where seen.unread > 0 and notification.token = seen.token and seq > seen.after and seq <= seen.upto
                    and read_at is null and retracted_at is null
                returning notification.token
            ), counted as (
                select token, count(*) as rows from changed group by token
            )
            select seen.token, greatest(after, upto) as "reached!", top as "top!", life, coalesce(rows, 0) as "rows!"
            from seen left join counted on counted.token = seen.token"#,
            &tokens[..] as &[&str],
            &upto[..],
            self.now,
            limit,
            &lives[..] as &[Option<i64>]
        )
        .fetch_all(&mut *self.connection)
        .await?;
        let (mut changed, mut progress) = (HashMap::new(), Progress::new());
        for row in rows {
            if row.rows > 0 {
                changed.insert(row.token.clone(), (row.rows, row.reached));
            }
            progress.insert(row.token, Reached { reached: row.reached, top: row.top, life: row.life });
        }
        Ok((changed, progress))
    }

    async fn unread_ids(&mut self, unreads: &Selected<'_>) -> Result<HashMap<String, Vec<Uuid>>, sqlx::Error> {
        let mut changed: HashMap<String, Vec<Uuid>> = HashMap::new();
        if unreads.ids.is_empty() {
            return Ok(changed);
        }
        let (tokens, ids) = in_order(&unreads.ids);
        // At once, or the trigger would lower the mark row by row, and each of its versions would pass all those before.
        sqlx::query!(
            "update inbox set read_upto = turned.first - 1 from (
                select notification.token, min(seq) as first
                from unnest($1::text[], $2::uuid[]) as unseen (token, id)
                join notification on notification.id = unseen.id and notification.token = unseen.token
                where read_at is not null and retracted_at is null group by notification.token
            ) as turned where inbox.token = turned.token and inbox.read_upto >= turned.first",
            &tokens[..] as &[&str],
            &ids[..]
        )
        .execute(&mut *self.connection)
        .await?;
        let rows = sqlx::query!(
            "update notification set read_at = null from unnest($1::text[], $2::uuid[]) as unseen (token, id)
            where notification.id = unseen.id and notification.token = unseen.token and read_at is not null
                and retracted_at is null
            returning notification.token, notification.id",
            &tokens[..] as &[&str],
            &ids[..]
        )
        .fetch_all(&mut *self.connection)
        .await?;
        for row in rows {
            changed.entry(row.token).or_default().push(row.id);
        }
        Ok(changed)
    }

    /// Writes down changes and the heads of their inboxes after them.
    pub(super) async fn change(
        &mut self,
        changes: Vec<Changed>,
        heads: &HashMap<String, Head>,
    ) -> Result<(), sqlx::Error> {
        if changes.is_empty() {
            return Ok(());
        }
        self.insert_changes(&changes).await?;
        let tokens: BTreeSet<&str> = changes.iter().map(|changed| changed.token.as_str()).collect();
        self.set_heads(tokens.into_iter().filter_map(|token| Some((token, heads.get(token)?)))).await?;
        self.events.extend(changes.iter().map(|changed| changed.event(self.now)));
        Ok(())
    }

    pub(super) async fn insert_changes(&mut self, changes: &[Changed]) -> Result<(), sqlx::Error> {
        if changes.is_empty() {
            return Ok(());
        }
        let tokens: Vec<&str> = changes.iter().map(|changed| changed.token.as_str()).collect();
        let revs: Vec<Rev> = changes.iter().map(|changed| changed.rev).collect();
        let texts: Vec<String> = changes.iter().map(|changed| json(&changed.change)).collect();
        sqlx::query!(
            "insert into inbox_change (token, rev, change, at)
            select token, rev, change::json, $4 from unnest($1::text[], $2::bigint[], $3::text[]) as made (token, rev, change)",
            &tokens[..] as &[&str],
            &revs[..],
            &texts[..],
            self.now
        )
        .execute(&mut *self.connection)
        .await?;
        Ok(())
    }

    /// Writes down the heads of inboxes that are locked.
    pub(super) async fn set_heads<'h>(
        &mut self,
        heads: impl Iterator<Item = (&'h str, &'h Head)>,
    ) -> Result<(), sqlx::Error> {
        let (mut tokens, mut revs, mut unread) = (Vec::new(), Vec::new(), Vec::new());
        for (token, head) in heads {
            tokens.push(token);
            revs.push(head.rev);
            unread.push(head.unread);
        }
        if tokens.is_empty() {
            return Ok(());
        }
        sqlx::query!(
            "update inbox set rev = changed.rev, unread = changed.unread
            from unnest($1::text[], $2::bigint[], $3::bigint[]) as changed (token, rev, unread)
            where inbox.token = changed.token",
            &tokens[..] as &[&str],
            &revs[..],
            &unread[..]
        )
        .execute(&mut *self.connection)
        .await?;
        Ok(())
    }

    /// Moves the watermarks of inboxes, each over what is delivered up to a rev that the inbox had before. Everything up to
    /// there was committed before the statement's snapshot, so none of it can be passed over. It waits for its turn: the
    /// inboxes that need it most are those that are pushed to all the time.
    async fn advance(&mut self, advances: &[(Token, Rev)]) -> Result<(), sqlx::Error> {
        if advances.is_empty() {
            return Ok(());
        }
        // In token order, as everybody locks inboxes.
        let advances: BTreeMap<&str, Rev> = advances.iter().map(|(token, upto)| (token.as_str(), *upto)).collect();
        let (tokens, upto): (Vec<&str>, Vec<Rev>) = advances.into_iter().unzip();
        sqlx::query!(
            "with moved as materialized (
                select inbox.token, least(given.upto, inbox.delivered_upto + $3) as upto
                from unnest($1::text[], $2::bigint[]) as given (token, upto)
                join inbox on inbox.token = given.token
                where given.upto > inbox.delivered_upto and given.upto <= inbox.rev
                order by inbox.token for no key update of inbox
            )
            update inbox set delivered_upto = greatest(inbox.delivered_upto, coalesce(
                (select seq - 1 from notification
                where notification.token = moved.token and seq > inbox.delivered_upto and seq <= moved.upto
                    and delivered_at is null and retracted_at is null
                order by seq limit 1),
                moved.upto))
            from moved where inbox.token = moved.token",
            &tokens[..] as &[&str],
            &upto[..],
            ADVANCE_REVS
        )
        .execute(&mut *self.connection)
        .await?;
        Ok(())
    }

    /// Stores what is not stored in each row of its push. It may be there already, if some of the rows are.
    pub(super) async fn insert_payloads(&mut self, payloads: &[(Uuid, &str)]) -> Result<(), sqlx::Error> {
        if payloads.is_empty() {
            return Ok(());
        }
        let (ids, data): (Vec<Uuid>, Vec<&str>) = payloads.iter().copied().unzip();
        sqlx::query!(
            "insert into notification_payload (id, data) select id, data::json from unnest($1::uuid[], $2::text[]) as made (id, data)
            on conflict (id) do nothing",
            &ids[..],
            &data[..] as &[&str]
        )
        .execute(&mut *self.connection)
        .await?;
        Ok(())
    }

    /// Adds the rows to their inboxes and stores them.
    async fn insert(&mut self, pushes: &[Fresh<'_>]) -> Result<Vec<Pushed>, sqlx::Error> {
        if pushes.iter().all(|fresh| fresh.push.push.tokens.is_empty()) {
            return Ok(commit::number(pushes, |_| unreachable!("there is no row"), &mut self.events));
        }
        // In token order: so inboxes are locked, and so the rows of one come into its index side by side.
        let all = (1_i32..)
            .zip(pushes)
            .flat_map(|(push, fresh)| fresh.push.push.tokens.iter().map(move |token| (token, push)));
        let mut rows: Vec<(&str, usize, i32)> =
            all.enumerate().map(|(at, (token, push))| (token.as_str(), at, push)).collect();
        rows.sort_unstable();
        let (mut inboxes, mut counts) = (Vec::new(), Vec::new());
        let (mut tokens, mut of, mut places, mut after) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (place, inbox) in (1_i32..).zip(rows.chunk_by(|one, next| one.0 == next.0)) {
            let count = i64::try_from(inbox.len()).unwrap_or(i64::MAX);
            inboxes.push(inbox[0].0);
            counts.push(count);
            // The n-th of `count` rows of an inbox gets its new rev less the rows after it.
            for ((token, _, push), left) in inbox.iter().zip((0..count).rev()) {
                tokens.push(*token);
                of.push(*push);
                places.push(place);
                after.push(left);
            }
        }
        let ids: Vec<Uuid> = pushes.iter().map(|fresh| fresh.content.id).collect();
        let types: Vec<&str> = pushes.iter().map(|fresh| fresh.content.entity_type.as_str()).collect();
        let data: Vec<&str> = pushes.iter().map(Fresh::row_data).collect();
        let expiries: Vec<Option<DateTime<Utc>>> =
            pushes.iter().map(|fresh| fresh.push.push.options.expires_at(self.now)).collect();
        // The series says that there are more rows than pushes. So the planner looks these up in a hash, instead of those,
        // which would come out of it in another order. And each push's data is read once as JSON, not once a row: that is
        // what the offset is for.
        let made = sqlx::query!(
            r#"with target as (
                insert into inbox (token, rev, unread, created_at, life)
                select token, rows, rows, $10, (select erasures from meta) from unnest($1::text[], $2::bigint[]) as added (token, rows)
                order by token collate "C"
                on conflict (token) do update
                    set rev = inbox.rev + excluded.rev, unread = inbox.unread + excluded.unread
                returning token, rev
            ), made as materialized (
                select array_agg(rev order by token collate "C") as revs from target
            ), stored as (
                insert into notification (token, seq, id, entity_type, created_at, expires_at, data)
                select row.token, ((select revs from made))[row.place] - row.after, push.id, push.entity_type, $10,
                    push.expires_at, push.data
                from rows from (
                    unnest($3::text[]), unnest($4::int[]), unnest($5::bigint[]), unnest($6::int[]),
                    generate_series(1, cardinality($3::text[]))
                ) as row (token, place, after, push, number)
                join (
                    select number, id, entity_type, expires_at, data::json as data
                    from unnest($7::uuid[], $8::text[], $9::text[], $11::timestamptz[])
                        with ordinality as push (id, entity_type, data, expires_at, number)
                    offset 0
                ) as push on push.number = row.push
            )
            select revs as "revs!" from made"#,
            &inboxes[..] as &[&str],
            &counts[..],
            &tokens[..] as &[&str],
            &places[..],
            &after[..],
            &of[..],
            &ids[..],
            &types[..] as &[&str],
            &data[..] as &[&str],
            self.now,
            &expiries[..] as &[Option<DateTime<Utc>>]
        )
        .fetch_one(&mut *self.connection)
        .await?;
        let mut seqs = vec![0; rows.len()];
        for (((_, at, _), place), after) in rows.iter().zip(&places).zip(&after) {
            seqs[*at] = made.revs[usize::try_from(*place - 1).unwrap_or(0)] - after;
        }
        let mut seqs = seqs.into_iter();
        Ok(commit::number(pushes, |_| seqs.next().expect("one for each row"), &mut self.events))
    }

    /// Keeps the answers of keyed pushes, and deletes some that expired.
    async fn remember(&mut self, pushes: &[Fresh<'_>], stored: &[Pushed]) -> Result<(), sqlx::Error> {
        let keyed = pushes.iter().zip(stored).filter_map(|(fresh, pushed)| Some((fresh.push.key.as_ref()?, pushed)));
        let (mut owners, mut names, mut responses) = (Vec::new(), Vec::new(), Vec::new());
        for (key, pushed) in keyed {
            owners.push(key.owner.as_str());
            names.push(key.key.as_str());
            responses.push(commit::kept(pushed));
        }
        sqlx::query!(
            "update idempotency set response = given.response::json
            from unnest($1::text[], $2::text[], $3::text[]) as given (key_owner, key, response)
            where idempotency.key_owner = given.key_owner and idempotency.key = given.key",
            &owners[..] as &[&str],
            &names[..] as &[&str],
            &responses[..]
        )
        .execute(&mut *self.connection)
        .await?;
        sqlx::query!(
            "with expired as materialized (
                select key_owner, key from idempotency where expires_at <= $1
                order by expires_at limit $2 for update skip locked
            )
            delete from idempotency as kept using expired
            where kept.key_owner = expired.key_owner and kept.key = expired.key",
            self.now,
            EXPIRED_KEYS_PER_COMMIT
        )
        .execute(&mut *self.connection)
        .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_transaction_that_may_commit_is_not_given_up_early() {
        let [early, needs, deadline] = [2, 3, 5].map(Duration::from_secs);
        for (in_doubt, commits) in [(false, false), (true, true)] {
            let began = Instant::now();
            let slow = tokio::time::sleep(needs);
            let done = in_time(Some(began + early), began + deadline, &AtomicBool::new(in_doubt), slow).await;
            assert_eq!(done.is_ok(), commits);
            assert_eq!(began.elapsed(), if commits { needs } else { early });
        }
        let began = Instant::now();
        let endless = tokio::time::sleep(deadline * 2);
        assert!(in_time(None, began + deadline, &AtomicBool::new(false), endless).await.is_err());
        assert_eq!(began.elapsed(), deadline);
    }
}
