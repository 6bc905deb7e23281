//! One transaction: receipts first, then pushes, each step one statement for the whole batch.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::{SqliteConnection, SqlitePool};
use tokio::task::JoinHandle;
use tracing::warn;
use uuid::Uuid;

use super::{json, result_code, unavailable};
use crate::notification::{
    Change, ChangeKind, Content, Event, Head, Notification, Pushed, ReceiptKind, Rev, Selection, SessionId, Token,
    timestamp,
};
use crate::store::{Batch, Committed, Committer, Error, IdempotencyKey, KeyName, KeyedPush, PushOutcome, Receipt};

/// A transaction with keyed pushes also deletes up to this many expired keys, so they never pile up.
const EXPIRED_KEYS_PER_COMMIT: i64 = 256;

/// The writing connection; closing it closes the whole database.
pub(super) struct SqliteCommitter {
    pub(super) connection: SqliteConnection,
    pub(super) readers: SqlitePool,
    pub(super) checkpointer: JoinHandle<()>,
    pub(super) idempotency_ttl: Duration,
    /// Held for its lock.
    pub(super) _lock: File,
}

#[async_trait]
impl Committer for SqliteCommitter {
    async fn commit(&mut self, batch: &Batch, now: DateTime<Utc>) -> Result<Committed, Error> {
        // Plain statements instead of sqlx's transaction: on a full disk SQLite rolls back by itself, after which that
        // one counts wrong and refuses every later transaction.
        let result = self.transaction(batch, now).await;
        if result.is_err() {
            // Fails when SQLite has rolled back by itself, which is as good.
            sqlx::query!("rollback -- sqlite").execute(&mut self.connection).await.ok();
        }
        result
    }

    async fn close(&mut self) {
        self.checkpointer.abort();
        (&mut self.checkpointer).await.ok();
        self.readers.close().await;
        // Leaves one file: the log is copied and removed when the last connection closes.
        if let Err(error) = sqlx::query("pragma wal_checkpoint(truncate)").execute(&mut self.connection).await {
            warn!(%error, "Cannot copy the write-ahead log into the file, the next start will");
        }
    }
}

impl SqliteCommitter {
    /// Each statement crosses to the connection's thread and back, which costs more than a small one does itself. So the
    /// usual batch is two: one from the begin to the revs, and one for the rows and the commit.
    async fn transaction(&mut self, batch: &Batch, now: DateTime<Utc>) -> Result<Committed, Error> {
        let acks = Selected::of(&batch.receipts, ReceiptKind::Ack);
        let reads = Selected::of(&batch.receipts, ReceiptKind::Read);
        let mut transaction =
            Transaction { connection: &mut self.connection, now, now_text: timestamp(now), events: Vec::new() };
        let mut revs = transaction.begin(&acks, &batch.pushes).await?;
        let heads = transaction.read(&reads).await.map_err(unavailable)?;
        revs.extend(heads.iter().map(|(token, head)| (token.clone(), head.rev)));
        let receipts = batch.receipts.iter().map(|receipt| match receipt.kind {
            ReceiptKind::Ack => None,
            ReceiptKind::Read => Some(heads.get(receipt.token.as_str()).copied().unwrap_or_default()),
        });
        let pushes = transaction.pushes(&batch.pushes, revs, now + self.idempotency_ttl).await?;
        Ok(Committed { pushes, receipts: receipts.collect(), events: transaction.events })
    }
}

struct Transaction<'c> {
    connection: &'c mut SqliteConnection,
    now: DateTime<Utc>,
    now_text: String,
    events: Vec<(Token, Event)>,
}

impl Transaction<'_> {
    /// Begins, marks what was acked delivered, and returns the revs of the inboxes that get something.
    async fn begin(&mut self, acks: &Selected<'_>, pushes: &[KeyedPush]) -> Result<HashMap<String, Rev>, Error> {
        let (ids, upto) = (json(&acks.ids), json(&acks.upto.iter().collect::<Vec<_>>()));
        let acked = json(&acks.tokens());
        let targets = json(&pushes.iter().flat_map(|push| &push.push.tokens).collect::<BTreeSet<_>>());
        let revs = sqlx::query_scalar!(
            r#"begin immediate;

            update notification set delivered_at = ?
            from (select value ->> 0 as token, value ->> 1 as id from json_each(?)) as acked
            where notification.id = acked.id and notification.token = acked.token and delivered_at is null;

            update notification set delivered_at = ?
            from (select value ->> 0 as token, value ->> 1 as upto from json_each(?)) as acked
            where notification.token = acked.token
                and seq > (select delivered_upto from inbox where inbox.token = acked.token) and seq <= acked.upto
                and delivered_at is null;

            -- Each step passes only rows that became delivered since the last: over an inbox's life that is its length.
            update inbox set delivered_upto = coalesce(
                (select seq - 1 from notification
                where notification.token = inbox.token and seq > inbox.delivered_upto and delivered_at is null
                order by seq limit 1),
                rev)
            where token in (select value from json_each(?));

            select json_group_array(json_array(token, rev)) as "revs!: String"
            from inbox where token in (select value from json_each(?));"#,
            self.now_text,
            ids,
            self.now_text,
            upto,
            acked,
            targets
        )
        .fetch_one(&mut *self.connection)
        .await
        .map_err(unavailable)?;
        Ok(super::parse::<Vec<(String, Rev)>>(&revs)?.into_iter().collect())
    }

    /// Marks rows read and returns the heads of the readers' inboxes; every inbox in which any changed takes one rev for
    /// the ids and one for the high-water mark.
    async fn read(&mut self, reads: &Selected<'_>) -> Result<HashMap<String, Head>, sqlx::Error> {
        if reads.origins.is_empty() {
            return Ok(HashMap::new());
        }
        let by_id = self.read_ids(reads).await?;
        let by_mark = self.read_upto(reads).await?;
        let mut heads = self.heads(&reads.tokens()).await?;
        let mut changes = Vec::new();
        for (token, head) in heads.iter_mut() {
            let top = head.rev;
            if let Some(ids) = by_id.get(token.as_str()) {
                head.unread -= count(ids.len());
                head.rev += 1;
                changes.push((token.as_str(), head.rev, ChangeKind::Read(ids.clone()), head.unread));
            }
            if let Some(rows) = by_mark.get(token.as_str()) {
                head.unread -= rows;
                head.rev += 1;
                let upto = top.min(reads.upto[token.as_str()]);
                changes.push((token.as_str(), head.rev, ChangeKind::ReadUpTo(upto), head.unread));
            }
        }
        if changes.is_empty() {
            return Ok(heads);
        }
        let mut rows = Vec::with_capacity(changes.len());
        for (token, rev, kind, unread) in changes {
            let change = Change { kind, unread };
            rows.push((token, rev, json(&change)));
            let origin = reads.origins[token];
            self.events.push((Token::stored(token), Event::Changed { rev, change, at: self.now, origin }));
        }
        let rows = json(&rows);
        sqlx::query!(
            "insert into inbox_change (token, rev, change, at)
            select value ->> 0, value ->> 1, value ->> 2, ?2 from json_each(?1)",
            rows,
            self.now_text
        )
        .execute(&mut *self.connection)
        .await?;
        let changed = json(&heads.iter().map(|(token, head)| (token, head.rev, head.unread)).collect::<Vec<_>>());
        sqlx::query!(
            "update inbox set rev = changed.rev, unread = changed.unread, delivered_upto = coalesce(
                (select seq - 1 from notification
                where notification.token = inbox.token and seq > inbox.delivered_upto and delivered_at is null
                order by seq limit 1),
                changed.rev)
            from (select value ->> 0 as token, value ->> 1 as rev, value ->> 2 as unread from json_each(?1)) as changed
            where inbox.token = changed.token",
            changed
        )
        .execute(&mut *self.connection)
        .await?;
        Ok(heads)
    }

    async fn heads(&mut self, tokens: &BTreeSet<&str>) -> Result<HashMap<String, Head>, sqlx::Error> {
        let tokens = json(tokens);
        let rows = sqlx::query!(
            "select token, rev, unread, delivered_upto from inbox where token in (select value from json_each(?1))",
            tokens
        )
        .fetch_all(&mut *self.connection)
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| (row.token, Head { rev: row.rev, unread: row.unread, delivered_upto: row.delivered_upto }))
            .collect())
    }

    async fn read_ids(&mut self, reads: &Selected<'_>) -> Result<HashMap<String, Vec<Uuid>>, sqlx::Error> {
        let mut changed: HashMap<String, Vec<Uuid>> = HashMap::new();
        if reads.ids.is_empty() {
            return Ok(changed);
        }
        let ids = json(&reads.ids);
        let rows = sqlx::query!(
            r#"update notification set read_at = ?2, delivered_at = coalesce(delivered_at, ?2)
            from (select value ->> 0 as token, value ->> 1 as id from json_each(?1)) as seen
            where notification.id = seen.id and notification.token = seen.token and read_at is null
            returning notification.token as "token!", notification.id as "id!""#,
            ids,
            self.now_text
        )
        .fetch_all(&mut *self.connection)
        .await?;
        for row in rows {
            let id = Uuid::parse_str(&row.id).map_err(|error| sqlx::Error::Decode(error.into()))?;
            changed.entry(row.token).or_default().push(id);
        }
        Ok(changed)
    }

    /// Marks everything up to the marks read and returns how many rows of each token that changed.
    async fn read_upto(&mut self, reads: &Selected<'_>) -> Result<HashMap<String, i64>, sqlx::Error> {
        let mut changed = HashMap::new();
        if reads.upto.is_empty() {
            return Ok(changed);
        }
        let upto = json(&reads.upto.iter().collect::<Vec<_>>());
        let rows = sqlx::query!(
            r#"update notification set read_at = ?2, delivered_at = coalesce(delivered_at, ?2)
            from (select value ->> 0 as token, value ->> 1 as upto from json_each(?1)) as seen
            where notification.token = seen.token and seq <= seen.upto and read_at is null
            returning notification.token as "token!""#,
            upto,
            self.now_text
        )
        .fetch_all(&mut *self.connection)
        .await?;
        for row in rows {
            *changed.entry(row.token).or_default() += 1;
        }
        Ok(changed)
    }

    /// Inserts the rows of the pushes and commits.
    async fn pushes(
        &mut self,
        pushes: &[KeyedPush],
        revs: HashMap<String, Rev>,
        expires: DateTime<Utc>,
    ) -> Result<Vec<PushOutcome>, Error> {
        let earlier = self.earlier_answers(pushes).await?;
        let known = |push: &KeyedPush| push.key.as_ref().and_then(|key| earlier.get(&key.name()).cloned());
        let fresh = pushes.iter().filter(|push| known(push).is_none()).collect::<Vec<_>>();
        let (stored, rows) = self.number(&fresh, revs);
        self.remember(&fresh, &stored, expires).await.map_err(unavailable)?;
        self.insert(&fresh, &stored, &rows).await?;
        let mut stored = stored.into_iter();
        Ok(pushes
            .iter()
            .map(|push| match known(push) {
                Some(outcome) => outcome,
                None => PushOutcome::Pushed(stored.next().expect("every fresh push was numbered")),
            })
            .collect())
    }

    /// The outcome of each push whose key was used before.
    async fn earlier_answers(&mut self, pushes: &[KeyedPush]) -> Result<HashMap<KeyName, PushOutcome>, Error> {
        let keys: HashMap<_, _> = keys(pushes).map(|key| (key.name(), key)).collect();
        if keys.is_empty() {
            return Ok(HashMap::new());
        }
        let wanted = json(&keys.keys().collect::<Vec<_>>());
        let rows = sqlx::query!(
            r#"select key_owner, idempotency.key, body_sha256, response from json_each(?1) as wanted
            cross join idempotency on key_owner = wanted.value ->> 0 and idempotency.key = wanted.value ->> 1
            where expires_at > ?2"#,
            wanted,
            self.now_text
        )
        .fetch_all(&mut *self.connection)
        .await
        .map_err(unavailable)?;
        rows.into_iter()
            .map(|row| {
                let name = (row.key_owner, row.key);
                if keys[&name].body_sha256 != row.body_sha256 {
                    return Ok((name, PushOutcome::KeyMismatch));
                }
                let pushed = serde_json::from_str(&row.response)
                    .map_err(|_| super::unreadable("idempotency.response of key", &name.1))?;
                Ok((name, PushOutcome::Pushed(pushed)))
            })
            .collect()
    }

    /// Gives every row the next rev of its inbox; returns also how many each inbox gets.
    fn number<'p>(
        &mut self,
        pushes: &[&'p KeyedPush],
        mut revs: HashMap<String, Rev>,
    ) -> (Vec<Pushed>, BTreeMap<&'p Token, i64>) {
        let mut added: BTreeMap<&Token, i64> = BTreeMap::new();
        let mut stored = Vec::with_capacity(pushes.len());
        for KeyedPush { push, .. } in pushes {
            let content = Arc::new(Content {
                id: Uuid::now_v7(),
                entity_type: push.entity_type.clone(),
                data: push.data.clone().into_raw(),
                created_at: self.now,
            });
            let mut results = Vec::with_capacity(push.tokens.len());
            for token in &push.tokens {
                *added.entry(token).or_default() += 1;
                let seq = match revs.get_mut(token.as_str()) {
                    Some(rev) => {
                        *rev += 1;
                        *rev
                    }
                    None => {
                        revs.insert(token.as_str().to_owned(), 1);
                        1
                    }
                };
                results.push((token.clone(), seq));
                let notification = Notification { seq, content: Arc::clone(&content), read: false };
                self.events.push((token.clone(), Event::New(notification)));
            }
            stored.push(Pushed { id: content.id, results });
        }
        (stored, added)
    }

    /// Adds the rows to their inboxes, inserts them and commits.
    async fn insert(
        &mut self,
        pushes: &[&KeyedPush],
        stored: &[Pushed],
        added: &BTreeMap<&Token, i64>,
    ) -> Result<(), Error> {
        // An object has a token for its key, so that SQLite need not parse each row again. In token order the index of
        // the inboxes is filled from left to right.
        let rows =
            |pushed: &Pushed| json(&pushed.results.iter().map(|(token, seq)| (token, seq)).collect::<BTreeMap<_, _>>());
        let pushes: Vec<(Uuid, &str, &str, String)> = pushes
            .iter()
            .zip(stored)
            .map(|(KeyedPush { push, .. }, pushed)| (pushed.id, &*push.entity_type, push.data.as_str(), rows(pushed)))
            .collect();
        let (inboxes, pushes) = (json(added), json(&pushes));
        sqlx::query!(
            "insert into inbox (token, rev, unread, created_at)
            select key, value, value, ? from json_each(?) where true
            on conflict (token) do update set rev = rev + excluded.rev, unread = unread + excluded.unread;

            -- Materialized, or SQLite would take a push apart again for each of its rows.
            with push as materialized (
                select value ->> 0 as id, value ->> 1 as entity_type, value ->> 2 as data, value ->> 3 as seqs
                from json_each(?)
            )
            insert into notification (token, seq, id, entity_type, created_at, data)
            select seq.key, seq.value, push.id, push.entity_type, ?, push.data from push, json_each(push.seqs) as seq;

            commit;",
            self.now_text,
            inboxes,
            pushes,
            self.now_text,
        )
        .execute(&mut *self.connection)
        .await
        .map_err(uncommitted)?;
        Ok(())
    }

    async fn remember(
        &mut self,
        pushes: &[&KeyedPush],
        stored: &[Pushed],
        expires: DateTime<Utc>,
    ) -> Result<(), sqlx::Error> {
        let rows: Vec<_> = pushes
            .iter()
            .zip(stored)
            .filter_map(|(push, pushed)| {
                let key = push.key.as_ref()?;
                Some((&key.owner, &key.key, &key.body_sha256, json(pushed)))
            })
            .collect();
        if rows.is_empty() {
            return Ok(());
        }
        let (rows, expires) = (json(&rows), timestamp(expires));
        sqlx::query!(
            "insert or replace into idempotency (key_owner, key, body_sha256, response, expires_at)
            select value ->> 0, value ->> 1, value ->> 2, value ->> 3, ?2 from json_each(?1)",
            rows,
            expires
        )
        .execute(&mut *self.connection)
        .await?;
        sqlx::query!(
            "delete from idempotency where (key_owner, key) in (
                select key_owner, key from idempotency where expires_at <= ?1 order by expires_at limit ?2)",
            self.now_text,
            EXPIRED_KEYS_PER_COMMIT
        )
        .execute(&mut *self.connection)
        .await?;
        Ok(())
    }
}

/// Maps an error of the statements that end in the commit. The disk may have kept a commit whose sync failed; whatever
/// else went wrong, nothing was written.
fn uncommitted(error: sqlx::Error) -> Error {
    const IO_ERROR: i32 = 10;
    match result_code(&error) {
        Some(IO_ERROR) => Error::OutcomeUnknown(error.to_string().into()),
        _ => unavailable(error),
    }
}

fn keys(pushes: &[KeyedPush]) -> impl Iterator<Item = &IdempotencyKey> {
    pushes.iter().filter_map(|push| push.key.as_ref())
}

fn count(rows: usize) -> i64 {
    i64::try_from(rows).expect("a batch has fewer rows than 2^63")
}

/// The rows that the receipts of one kind in a batch select.
struct Selected<'r> {
    ids: HashSet<(&'r str, Uuid)>,
    upto: BTreeMap<&'r str, Rev>,
    /// Every token of these receipts, with the session that sent them if it was one alone.
    origins: BTreeMap<&'r str, Option<SessionId>>,
}

impl<'r> Selected<'r> {
    fn of(receipts: &'r [Receipt], kind: ReceiptKind) -> Self {
        let mut selected = Self { ids: HashSet::new(), upto: BTreeMap::new(), origins: BTreeMap::new() };
        for receipt in receipts.iter().filter(|receipt| receipt.kind == kind) {
            let token = receipt.token.as_str();
            let origin = selected.origins.entry(token).or_insert(receipt.origin);
            *origin = origin.filter(|_| *origin == receipt.origin);
            let mut raise = |upto: Rev| {
                let mark = selected.upto.entry(token).or_insert(upto);
                *mark = upto.max(*mark);
            };
            match &receipt.selection {
                Selection::Ids(ids) => selected.ids.extend(ids.iter().map(|id| (token, *id))),
                Selection::UpTo(rev) => raise(*rev),
                Selection::All => raise(Rev::MAX),
            }
        }
        selected
    }

    fn tokens(&self) -> BTreeSet<&'r str> {
        self.origins.keys().copied().collect()
    }
}
