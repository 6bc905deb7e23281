//! One batch: acks and watermarks, each a transaction of its own, then reads, unreads and pushes in one, each step one
//! statement for all of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::{SqliteConnection, SqlitePool};
use tokio::task::JoinHandle;
use tracing::warn;
use uuid::Uuid;

use super::{result_code, unavailable};
use crate::notification::{Event, Head, Pushed, ReceiptKind, Rev, Token, timestamp};
use crate::store::commit::{self, Changed, EXPIRED_KEYS_PER_COMMIT, Fresh, Progress, Reached, Selected, Turned, UpTo};
use crate::store::pending::ADVANCE_REVS;
use crate::store::{
    Batch, Committed, Committer, Edit, Edited, Error, HeadRow, KeyName, KeyedPush, PushOutcome, json, plan, unreadable,
};

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

    async fn edit(&mut self, edit: &Edit, rows: u32, now: DateTime<Utc>) -> Result<Edited, Error> {
        let result = Transaction::new(&mut self.connection, now).edit(edit, rows).await;
        if result.is_err() {
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
            warn!(%error, "Cannot checkpoint the write-ahead log, the next start will");
        }
    }
}

impl SqliteCommitter {
    /// Each statement crosses to the connection's thread and back, which costs more than a small one does itself. So the
    /// usual batch, of pushes alone, is one.
    async fn transaction(&mut self, batch: &Batch, now: DateTime<Utc>) -> Result<Committed, Error> {
        let mut transaction = Transaction::new(&mut self.connection, now);
        // Outside of the transaction of the pushes, as on Postgres: nothing depends on whether they come before or after.
        let acked = transaction.ack(batch).await.map_err(unavailable)?;
        transaction.advance(&batch.advances).await.map_err(unavailable)?;
        let only_acks = batch.receipts.iter().all(|receipt| receipt.kind == ReceiptKind::Ack);
        if only_acks && batch.pushes.is_empty() {
            let receipts = commit::told(&batch.receipts, &HashMap::new());
            let unfinished = commit::unfinished(&batch.receipts, &acked, &HashMap::new());
            return Ok(Committed { pushes: Vec::new(), receipts, events: Vec::new(), unfinished });
        }
        let is_plain = |push: &KeyedPush| push.key.is_none() && !plan::depends(push) && !push.push.data.is_shared();
        if only_acks && batch.pushes.iter().all(is_plain) {
            let pushes = transaction.insert_at_once(&batch.pushes).await?;
            let receipts = commit::told(&batch.receipts, &HashMap::new());
            let unfinished = commit::unfinished(&batch.receipts, &acked, &HashMap::new());
            return Ok(Committed { pushes, receipts, events: transaction.events, unfinished });
        }
        let reads = Selected::of(&batch.receipts, ReceiptKind::Read);
        let unreads = Selected::of(&batch.receipts, ReceiptKind::Unread);
        let mut heads = transaction.begin(&batch.pushes).await?;
        let (turned, read) = transaction.turn(&reads, &unreads, batch.mark_limit()).await.map_err(unavailable)?;
        let receipts = commit::told(&batch.receipts, &turned);
        let unfinished = commit::unfinished(&batch.receipts, &acked, &read);
        heads.extend(turned);
        let pushes = transaction.pushes(&batch.pushes, heads, now + self.idempotency_ttl).await?;
        Ok(Committed { pushes, receipts, events: transaction.events, unfinished })
    }
}

/// One transaction; the statements of its steps.
pub(super) struct Transaction<'c> {
    pub(super) connection: &'c mut SqliteConnection,
    pub(super) now: DateTime<Utc>,
    pub(super) now_text: String,
    pub(super) events: Vec<(Token, Event)>,
}

impl<'c> Transaction<'c> {
    pub(super) fn new(connection: &'c mut SqliteConnection, now: DateTime<Utc>) -> Self {
        Self { connection, now, now_text: timestamp(now), events: Vec::new() }
    }
}

impl Transaction<'_> {
    /// The whole of a transaction whose pushes depend on nothing but the revs of their inboxes.
    async fn insert_at_once(&mut self, pushes: &[KeyedPush]) -> Result<Vec<PushOutcome>, Error> {
        let fresh = commit::fresh(pushes, &HashMap::new(), self.now);
        let added = commit::added(&fresh);
        let mut left = added.clone();
        // The last of an inbox's rows gets its new rev, the one before it one less.
        let rows = self.rows(&fresh, |token| match left.get_mut(token) {
            Some(left) => {
                *left -= 1;
                *left
            }
            None => 0,
        });
        let inboxes = json(&added);
        let revs = sqlx::query_scalar!(
            r#"begin immediate;

            insert into inbox (token, rev, unread, created_at, life)
            select key, value, value, ?, (select erasures from meta) from json_each(?) where true
            on conflict (token) do update set rev = rev + excluded.rev, unread = unread + excluded.unread;

            -- Materialized, or SQLite would take a push apart again for each of its rows.
            with push as materialized (
                select value ->> 0 as id, value ->> 1 as entity_type, value ->> 2 as data,
                    jsonb_extract(value, '$[3]') as places, value ->> 4 as expires_at
                from jsonb_each(?)
            )
            -- OR ROLLBACK, or SQLite would copy each page that it changes, to undo this statement alone.
            insert or rollback into notification (token, seq, id, entity_type, created_at, expires_at, data)
            select inbox.token, inbox.rev - place.value, push.id, push.entity_type, ?, push.expires_at, push.data
            from push cross join json_each(push.places) as place cross join inbox on inbox.token = place.key;

            select json_group_array(rev) as "revs!: String"
            from json_each(?) as target cross join inbox on inbox.token = target.key;

            commit;"#,
            self.now_text,
            inboxes,
            rows,
            self.now_text,
            inboxes
        )
        .fetch_all(&mut *self.connection)
        .await
        .map_err(uncommitted)?;
        let revs: Vec<Rev> = revs.first().map(|revs| super::parse(revs)).transpose()?.unwrap_or_default();
        let before = added.into_iter().zip(revs).map(|((token, rows), rev)| (token.as_str().to_owned(), rev - rows));
        let stored = commit::number(&fresh, commit::next_rev(before.collect()), &mut self.events);
        Ok(commit::outcomes(pushes, &HashMap::new(), stored))
    }

    /// The rows of pushes as the statements that insert them take them: an array for each push, with an object that has the
    /// place of each of its rows by token. An object, so that SQLite need not parse each row again; in token order, so that
    /// the index of the inboxes is filled from left to right.
    fn rows(&self, pushes: &[Fresh<'_>], mut place_of: impl FnMut(&Token) -> i64) -> String {
        let rows = pushes
            .iter()
            .map(|fresh| {
                let Fresh { push, content } = fresh;
                let places = push.push.tokens.iter().map(|token| (token, place_of(token)));
                let expires_at = push.push.options.expires_at(self.now).map(timestamp);
                let places: BTreeMap<&Token, i64> = places.collect();
                (content.id, &*content.entity_type, fresh.row_data(), places, expires_at)
            })
            .collect::<Vec<_>>();
        json(&rows)
    }

    /// Marks what clients have delivered.
    async fn ack(&mut self, batch: &Batch) -> Result<Progress, sqlx::Error> {
        let mut progress = Progress::new();
        let acks = Selected::of(&batch.receipts, ReceiptKind::Ack);
        if !acks.ids.is_empty() || !batch.acked.is_empty() {
            let acked = batch.acked.iter().map(|(token, id)| (token.as_str(), *id));
            let ids = json(&acks.ids.iter().copied().chain(acked).collect::<Vec<_>>());
            sqlx::query!(
                "update notification set delivered_at = ?
                from (select value ->> 0 as token, value ->> 1 as id from jsonb_each(?)) as acked
                where notification.id = acked.id and notification.token = acked.token and delivered_at is null",
                self.now_text,
                ids
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
            let upto = acks.upto.iter().filter_map(|(token, rows)| match (progress.get(*token), rows.life) {
                (Some(reached), _) => Some((token, rows.after, reached.reached)),
                (None, None) => Some((token, rows.after, rows.upto)),
                (None, Some(_)) => None,
            });
            let upto = json(&upto.collect::<Vec<_>>());
            sqlx::query!(
                "update notification set delivered_at = ?
                from (select value ->> 0 as token, value ->> 1 as after, value ->> 2 as upto from json_each(?)) as acked
                where notification.token = acked.token
                    and seq > (select max(delivered_upto, acked.after) from inbox where inbox.token = acked.token)
                    and seq <= acked.upto and delivered_at is null",
                self.now_text,
                upto
            )
            .execute(&mut *self.connection)
            .await?;
        }
        Ok(progress)
    }

    /// How far acks up to a rev come if each looks at so many rows.
    async fn reach(&mut self, acks: &Selected<'_>, limit: i64) -> Result<Progress, sqlx::Error> {
        let acks = acks.upto.iter().map(|(token, rows)| (token, rows.after, rows.upto, rows.life));
        let acks = json(&acks.collect::<Vec<_>>());
        let rows = sqlx::query!(
            r#"select token as "token!: String", life as "life!: i64", top as "top!: i64", coalesce(
                (select seq - 1 from notification as row
                where row.token = acked.token and row.seq > after and row.seq <= top
                order by row.seq limit 1 offset ?2),
                top) as "reached!: i64"
            from (
                select inbox.token, life, max(delivered_upto, value ->> 1) as after, min(value ->> 2, rev) as top
                from json_each(?1) cross join inbox on inbox.token = value ->> 0
                where value ->> 3 is null or value ->> 3 = life
            ) as acked"#,
            acks,
            limit
        )
        .fetch_all(&mut *self.connection)
        .await?;
        let rows = rows.into_iter();
        Ok(rows.map(|row| (row.token, Reached { reached: row.reached, top: row.top, life: row.life })).collect())
    }

    /// Moves the watermarks of inboxes, each over what is delivered up to a rev that the inbox had before.
    async fn advance(&mut self, advances: &[(Token, Rev)]) -> Result<(), sqlx::Error> {
        if advances.is_empty() {
            return Ok(());
        }
        let advances = json(&advances);
        sqlx::query!(
            "update inbox set delivered_upto = coalesce(
                (select seq - 1 from notification
                where notification.token = inbox.token and seq > inbox.delivered_upto
                    and seq <= min(moved.upto, inbox.delivered_upto + ?) and delivered_at is null and retracted_at is null
                order by seq limit 1),
                min(moved.upto, inbox.delivered_upto + ?))
            from (select value ->> 0 as token, value ->> 1 as upto from json_each(?)) as moved
            where inbox.token = moved.token and moved.upto > inbox.delivered_upto and moved.upto <= inbox.rev",
            ADVANCE_REVS,
            ADVANCE_REVS,
            advances
        )
        .execute(&mut *self.connection)
        .await?;
        Ok(())
    }

    /// Begins and returns the heads of the inboxes that get something.
    async fn begin(&mut self, pushes: &[KeyedPush]) -> Result<HashMap<String, Head>, Error> {
        let targets = json(&pushes.iter().flat_map(|push| &push.push.tokens).collect::<BTreeSet<_>>());
        let heads = sqlx::query_scalar!(
            r#"begin immediate;

            select json_group_array(json_array(token, rev, unread)) as "heads!: String"
            from inbox where token in (select value from json_each(?));"#,
            targets
        )
        .fetch_one(&mut *self.connection)
        .await
        .map_err(unavailable)?;
        let head = |(token, rev, unread)| (token, Head { rev, unread, ..Head::default() });
        Ok(super::parse::<Vec<(String, Rev, i64)>>(&heads)?.into_iter().map(head).collect())
    }

    /// Marks rows read or unread and returns the heads of those inboxes, and how far the marks came.
    pub(super) async fn turn(
        &mut self,
        reads: &Selected<'_>,
        unreads: &Selected<'_>,
        limit: i64,
    ) -> Result<(HashMap<String, Head>, Progress), sqlx::Error> {
        if reads.is_empty() && unreads.is_empty() {
            return Ok((HashMap::new(), Progress::new()));
        }
        let read_by_id = self.read_ids(reads).await?;
        let (read_by_mark, mut progress) = self.read_upto(reads, limit).await?;
        let turned = Turned { read_by_id, read_by_mark, unread_by_id: self.unread_ids(unreads).await? };
        let mut heads = self.heads(&reads.tokens().union(&unreads.tokens()).copied().collect()).await?;
        for (token, reached) in &mut progress {
            let rev = heads.get(token).map_or(0, |head| head.rev);
            reached.top = reads.upto.get(token.as_str()).map_or(0, |rows| rows.upto.min(rev));
        }
        let changes = commit::changes(reads, unreads, &turned, &mut heads);
        self.change(changes, &heads).await?;
        Ok((heads, progress))
    }

    /// Writes down changes and the heads after them.
    pub(super) async fn change(
        &mut self,
        changes: Vec<Changed>,
        heads: &HashMap<String, Head>,
    ) -> Result<(), sqlx::Error> {
        if changes.is_empty() {
            return Ok(());
        }
        self.insert_changes(&changes).await?;
        let changed = json(&heads.iter().map(|(token, head)| (token, head.rev, head.unread)).collect::<Vec<_>>());
        sqlx::query!(
            "update inbox set rev = changed.rev, unread = changed.unread
            from (select value ->> 0 as token, value ->> 1 as rev, value ->> 2 as unread from json_each(?1)) as changed
            where inbox.token = changed.token",
            changed
        )
        .execute(&mut *self.connection)
        .await?;
        self.events.extend(changes.iter().map(|changed| changed.event(self.now)));
        Ok(())
    }

    pub(super) async fn insert_changes(&mut self, changes: &[Changed]) -> Result<(), sqlx::Error> {
        if changes.is_empty() {
            return Ok(());
        }
        let rows = changes.iter().map(|changed| (&changed.token, changed.rev, json(&changed.change)));
        let rows = json(&rows.collect::<Vec<_>>());
        sqlx::query!(
            "insert into inbox_change (token, rev, change, at)
            select value ->> 0, value ->> 1, value ->> 2, ?2 from json_each(?1)",
            rows,
            self.now_text
        )
        .execute(&mut *self.connection)
        .await?;
        Ok(())
    }

    pub(super) async fn heads(&mut self, tokens: &BTreeSet<&str>) -> Result<HashMap<String, Head>, sqlx::Error> {
        let tokens = json(tokens);
        let rows = sqlx::query_as!(
            HeadRow,
            "select token, rev, unread, delivered_upto, purged_rev from inbox
            where token in (select value from json_each(?1))",
            tokens
        )
        .fetch_all(&mut *self.connection)
        .await?;
        Ok(rows.into_iter().map(HeadRow::named).collect())
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
                and retracted_at is null
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

    async fn unread_ids(&mut self, unreads: &Selected<'_>) -> Result<HashMap<String, Vec<Uuid>>, sqlx::Error> {
        let mut changed: HashMap<String, Vec<Uuid>> = HashMap::new();
        if unreads.ids.is_empty() {
            return Ok(changed);
        }
        let ids = json(&unreads.ids);
        let rows = sqlx::query!(
            r#"update notification set read_at = null
            from (select value ->> 0 as token, value ->> 1 as id from json_each(?1)) as unseen
            where notification.id = unseen.id and notification.token = unseen.token and read_at is not null
                and retracted_at is null
            returning notification.token as "token!", notification.id as "id!""#,
            ids
        )
        .fetch_all(&mut *self.connection)
        .await?;
        for row in rows {
            let id = Uuid::parse_str(&row.id).map_err(|error| sqlx::Error::Decode(error.into()))?;
            changed.entry(row.token).or_default().push(id);
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
        let upto = json(&reads.upto.iter().map(|(token, rows)| (token, rows.upto, rows.life)).collect::<Vec<_>>());
        let rows = sqlx::query!(
            r#"-- Materialized, or SQLite would go through all of an inbox before it looks where to begin.
            with given as materialized (
                select inbox.token, read_upto as after, min(value ->> 1, rev) as top from json_each(?1)
                cross join inbox on inbox.token = value ->> 0
                where unread > 0 and (value ->> 2 is null or value ->> 2 = life)
            ), seen as materialized (
                select token, after, iif(top - after <= ?3, top, coalesce(
                    (select seq - 1 from notification as row
                    where row.token = given.token and row.seq > after and row.seq <= top
                    order by row.seq limit 1 offset ?3),
                    top)) as upto
                from given
            )
            update notification set read_at = ?2, delivered_at = coalesce(delivered_at, ?2)
            from seen
            where notification.token = seen.token and seq > seen.after and seq <= seen.upto and read_at is null
                and retracted_at is null
            returning notification.token as "token!""#,
            upto,
            self.now_text,
            limit
        )
        .fetch_all(&mut *self.connection)
        .await?;
        // No row came or went since, so it comes as far.
        let marks = sqlx::query!(
            r#"update inbox set read_upto = max(read_upto, seen.upto)
            from (
                select token, iif(unread = 0 or top - after <= ?2, top, coalesce(
                    (select seq - 1 from notification as row
                    where row.token = given.token and row.seq > after and row.seq <= top
                    order by row.seq limit 1 offset ?2),
                    top)) as upto
                from (
                    select inbox.token, unread, read_upto as after, min(value ->> 1, rev) as top from json_each(?1)
                    cross join inbox on inbox.token = value ->> 0 where value ->> 2 is null or value ->> 2 = life
                ) as given
            ) as seen
            where inbox.token = seen.token
            returning inbox.token as "token!", read_upto as "read_upto!", life as "life!""#,
            upto,
            limit
        )
        .fetch_all(&mut *self.connection)
        .await?;
        let mut changed: HashMap<String, (i64, Rev)> = HashMap::new();
        for row in rows {
            changed.entry(row.token).or_default().0 += 1;
        }
        let mut progress = Progress::new();
        for mark in marks {
            if let Some((_, reached)) = changed.get_mut(&mark.token) {
                *reached = mark.read_upto;
            }
            progress.insert(mark.token, Reached { reached: mark.read_upto, top: 0, life: mark.life });
        }
        Ok((changed, progress))
    }

    /// Inserts the rows of the pushes and commits.
    async fn pushes(
        &mut self,
        pushes: &[KeyedPush],
        heads: HashMap<String, Head>,
        expires: DateTime<Utc>,
    ) -> Result<Vec<PushOutcome>, Error> {
        let earlier = self.earlier_answers(pushes).await?;
        let fresh = commit::fresh(pushes, &earlier, self.now);
        let stored = if fresh.iter().any(|fresh| plan::depends(fresh.push)) {
            let plan = self.plan(&fresh, heads).await.map_err(unavailable)?;
            self.remember(&fresh, &plan.stored, expires).await.map_err(unavailable)?;
            let stored = self.write(&fresh, plan).await.map_err(unavailable)?;
            sqlx::query!("commit -- sqlite").execute(&mut *self.connection).await.map_err(uncommitted)?;
            stored
        } else {
            let revs = heads.into_iter().map(|(token, head)| (token, head.rev)).collect();
            let stored = commit::number(&fresh, commit::next_rev(revs), &mut self.events);
            self.remember(&fresh, &stored, expires).await.map_err(unavailable)?;
            self.insert(&fresh, &stored).await?;
            stored
        };
        Ok(commit::outcomes(pushes, &earlier, stored))
    }

    /// The outcome of each push whose key was used before.
    async fn earlier_answers(&mut self, pushes: &[KeyedPush]) -> Result<HashMap<KeyName, PushOutcome>, Error> {
        let keys = commit::keyed(pushes);
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
                let outcome = commit::earlier(keys[&name].1, &row.body_sha256, &row.response)
                    .map_err(|_| unreadable("idempotency.response of key", &name.1))?;
                Ok((name, outcome))
            })
            .collect()
    }

    /// Stores what is not stored in each row of its push. It may be there already, if some of the rows are.
    pub(super) async fn insert_payloads(&mut self, payloads: &[(Uuid, &str)]) -> Result<(), sqlx::Error> {
        if payloads.is_empty() {
            return Ok(());
        }
        let payloads = json(&payloads);
        sqlx::query!(
            "insert into notification_payload (id, data) select value ->> 0, value ->> 1 from json_each(?1) where true
            on conflict (id) do nothing",
            payloads
        )
        .execute(&mut *self.connection)
        .await?;
        Ok(())
    }

    /// Adds the rows to their inboxes, inserts them and commits.
    async fn insert(&mut self, pushes: &[Fresh<'_>], stored: &[Pushed]) -> Result<(), Error> {
        let mut seqs = stored.iter().flat_map(|pushed| &pushed.results).map(|placed| placed.seq.unwrap_or_default());
        let rows = self.rows(pushes, |_| seqs.next().expect("one for each row"));
        let inboxes = json(&commit::added(pushes));
        self.insert_payloads(&commit::shared(pushes)).await.map_err(unavailable)?;
        sqlx::query!(
            "insert into inbox (token, rev, unread, created_at, life)
            select key, value, value, ?, (select erasures from meta) from json_each(?) where true
            on conflict (token) do update set rev = rev + excluded.rev, unread = unread + excluded.unread;

            -- Materialized, or SQLite would take a push apart again for each of its rows.
            with push as materialized (
                select value ->> 0 as id, value ->> 1 as entity_type, value ->> 2 as data,
                    jsonb_extract(value, '$[3]') as seqs, value ->> 4 as expires_at
                from jsonb_each(?)
            )
            -- OR ROLLBACK, or SQLite would copy each page that it changes, to undo this statement alone.
            insert or rollback into notification (token, seq, id, entity_type, created_at, expires_at, data)
            select seq.key, seq.value, push.id, push.entity_type, ?, push.expires_at, push.data
            from push, json_each(push.seqs) as seq;

            commit;",
            self.now_text,
            inboxes,
            rows,
            self.now_text,
        )
        .execute(&mut *self.connection)
        .await
        .map_err(uncommitted)?;
        Ok(())
    }

    async fn remember(
        &mut self,
        pushes: &[Fresh<'_>],
        stored: &[Pushed],
        expires: DateTime<Utc>,
    ) -> Result<(), sqlx::Error> {
        let rows: Vec<_> = pushes
            .iter()
            .zip(stored)
            .filter_map(|(fresh, pushed)| {
                let key = fresh.push.key.as_ref()?;
                Some((&key.owner, &key.key, &key.body_sha256, commit::kept(pushed)))
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
pub(super) fn uncommitted(error: sqlx::Error) -> Error {
    const IO_ERROR: i32 = 10;
    match result_code(&error) {
        Some(IO_ERROR) => Error::OutcomeUnknown(error.to_string().into()),
        _ => unavailable(error),
    }
}
