//! What is more than rows that come and receipts: pushes that depend on what is there, and edits.
//!
//! Every edit locks the inboxes that it changes before it looks at their rows, all in one statement and in token order.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::commit::Transaction;
use super::{group, keys};
use crate::notification::{
    ChangeKind, Group, GroupKey, Head, NewPush, Options, Payload, Pushed, Regrouped, Rev, Token,
};
use crate::store::commit::{self, Changed, Fresh, SHARED};
use crate::store::plan::{self, Found, Kind, OpenRow, Plan, Slot};
use crate::store::{Edit, KeyedPush, PURGED, json};

/// A row that goes.
struct Going {
    token: String,
    id: Uuid,
    unread: bool,
    retracted: bool,
}

impl Transaction<'_> {
    /// Finds out what the pushes depend on and decides what they become. Their inboxes are locked.
    pub(super) async fn plan(
        &mut self,
        pushes: &[Fresh<'_>],
        heads: HashMap<String, Head>,
    ) -> Result<Plan, sqlx::Error> {
        let open = self.open_rows(&plan::slots(pushes, self.now)).await?;
        let actors = self.known_actors(&plan::actors(pushes, &open)).await?;
        Ok(Plan::new(pushes, Found { heads, open, actors }, self.now))
    }

    async fn open_rows(&mut self, slots: &BTreeSet<Slot>) -> Result<HashMap<Slot, OpenRow>, sqlx::Error> {
        if slots.is_empty() {
            return Ok(HashMap::new());
        }
        let tokens: Vec<&str> = slots.iter().map(|slot| &*slot.0).collect();
        let kinds: Vec<&str> = slots.iter().map(|slot| slot.1.name()).collect();
        let keys: Vec<&str> = slots.iter().map(|slot| &*slot.2).collect();
        let rows = sqlx::query!(
            "select held.token, held.kind, held.key, held.seq, notification.id, expires_at, group_count,
                group_actors::text as group_actors
            from unnest($1::text[], $2::text[], $3::text[]) as wanted (token, kind, key)
            join notification_key as held on held.token = wanted.token and held.kind = wanted.kind
                and held.key = wanted.key
            join notification on notification.token = held.token and notification.seq = held.seq
            where read_at is null and retracted_at is null and (expires_at is null or expires_at > $4)",
            &tokens[..] as &[&str],
            &kinds[..] as &[&str],
            &keys[..] as &[&str],
            self.now
        )
        .fetch_all(&mut *self.connection)
        .await?;
        let open = rows.into_iter().map(|row| {
            let kind = Kind::named(&row.kind).ok_or_else(|| undecodable(row.kind.as_str()))?;
            let group = group(Some(&row.key), row.group_count, row.group_actors.as_deref()).map_err(undecodable)?;
            let open = OpenRow { seq: row.seq, id: row.id, group, expires_at: row.expires_at };
            Ok(((row.token, kind, row.key), open))
        });
        open.collect()
    }

    async fn known_actors(
        &mut self,
        actors: &BTreeSet<(String, Rev, String)>,
    ) -> Result<HashSet<(String, Rev, String)>, sqlx::Error> {
        if actors.is_empty() {
            return Ok(HashSet::new());
        }
        let tokens: Vec<&str> = actors.iter().map(|wanted| &*wanted.0).collect();
        let seqs: Vec<Rev> = actors.iter().map(|wanted| wanted.1).collect();
        let names: Vec<&str> = actors.iter().map(|wanted| &*wanted.2).collect();
        let rows = sqlx::query!(
            "select known.token, known.seq, known.actor
            from unnest($1::text[], $2::bigint[], $3::text[]) as wanted (token, seq, actor)
            join notification_actor as known on known.token = wanted.token and known.seq = wanted.seq
                and known.actor = wanted.actor",
            &tokens[..] as &[&str],
            &seqs[..],
            &names[..] as &[&str]
        )
        .fetch_all(&mut *self.connection)
        .await?;
        Ok(rows.into_iter().map(|row| (row.token, row.seq, row.actor)).collect())
    }

    /// Writes a plan down, all but the commit. Its inboxes exist and are locked.
    pub(super) async fn write(&mut self, pushes: &[Fresh<'_>], plan: Plan) -> Result<Vec<Pushed>, sqlx::Error> {
        self.insert_payloads(&plan.payloads(pushes)).await?;
        self.insert_rows(pushes, &plan).await?;
        self.set_heads(plan.heads.iter().map(|(token, head)| (token.as_str(), head))).await?;
        self.insert_changes(&plan.changes).await?;
        self.hide(&plan.replaced).await?;
        self.regroup(&plan).await?;
        self.schedule(pushes, &plan.scheduled).await?;
        self.events.extend(plan.events);
        Ok(plan.stored)
    }

    async fn insert_rows(&mut self, pushes: &[Fresh<'_>], plan: &Plan) -> Result<(), sqlx::Error> {
        if plan.rows.is_empty() {
            return Ok(());
        }
        let tokens: Vec<&str> = plan.rows.iter().map(|row| row.token.as_str()).collect();
        let seqs: Vec<Rev> = plan.rows.iter().map(|row| row.seq).collect();
        // Postgres counts from 1.
        let of: Vec<i32> = plan.rows.iter().map(|row| i32::try_from(row.push + 1).unwrap_or(i32::MAX)).collect();
        let expiries: Vec<Option<DateTime<Utc>>> = plan.rows.iter().map(|row| row.expires_at).collect();
        let retracted: Vec<bool> = plan.rows.iter().map(|row| row.retracted).collect();
        let counts: Vec<Option<i64>> =
            plan.rows.iter().map(|row| row.group.as_ref().map(|group| group.count)).collect();
        let actors: Vec<Option<String>> =
            plan.rows.iter().map(|row| row.group.as_ref().map(|group| json(&group.actors))).collect();
        let ids: Vec<Uuid> = pushes.iter().map(|fresh| fresh.content.id).collect();
        let types: Vec<&str> = pushes.iter().map(|fresh| fresh.content.entity_type.as_str()).collect();
        let data: Vec<&str> = pushes.iter().map(Fresh::row_data).collect();
        let options = || pushes.iter().map(|fresh| &fresh.push.push.options);
        let collapse: Vec<Option<&str>> = options().map(|options| options.collapse_key.as_deref()).collect();
        let groups: Vec<Option<&str>> =
            options().map(|options| options.group.as_ref().map(|group| group.key.as_str())).collect();
        sqlx::query!(
            "insert into notification (token, seq, id, entity_type, collapse_key, group_key, created_at, expires_at,
                retracted_at, data, group_count, group_actors)
            select token, seq, ($8::uuid[])[push], ($9::text[])[push], ($11::text[])[push], ($12::text[])[push], $13::timestamptz,
                expires_at, case when retracted then $13::timestamptz end, ($10::text[])[push]::json, group_count, group_actors::json
            from unnest($1::text[], $2::bigint[], $3::int[], $4::timestamptz[], $5::bool[], $6::bigint[], $7::text[])
                as row (token, seq, push, expires_at, retracted, group_count, group_actors)",
            &tokens[..] as &[&str],
            &seqs[..],
            &of[..],
            &expiries[..] as &[Option<DateTime<Utc>>],
            &retracted[..],
            &counts[..] as &[Option<i64>],
            &actors[..] as &[Option<String>],
            &ids[..],
            &types[..] as &[&str],
            &data[..] as &[&str],
            &collapse[..] as &[Option<&str>],
            &groups[..] as &[Option<&str>],
            self.now
        )
        .execute(&mut *self.connection)
        .await?;
        Ok(())
    }

    /// Marks rows retracted.
    async fn hide(&mut self, rows: &[(Token, Rev)]) -> Result<(), sqlx::Error> {
        if rows.is_empty() {
            return Ok(());
        }
        let tokens: Vec<&str> = rows.iter().map(|(token, _)| token.as_str()).collect();
        let seqs: Vec<Rev> = rows.iter().map(|(_, seq)| *seq).collect();
        sqlx::query!(
            "update notification set retracted_at = $3 from unnest($1::text[], $2::bigint[]) as gone (token, seq)
            where notification.token = gone.token and notification.seq = gone.seq",
            &tokens[..] as &[&str],
            &seqs[..],
            self.now
        )
        .execute(&mut *self.connection)
        .await?;
        Ok(())
    }

    /// Writes down what became of groups and keys.
    async fn regroup(&mut self, plan: &Plan) -> Result<(), sqlx::Error> {
        if !plan.regrouped.is_empty() {
            let (rows, now): (Vec<_>, Vec<_>) = plan.regrouped.iter().unzip();
            let tokens: Vec<&str> = rows.iter().map(|(token, _)| token.as_str()).collect();
            let seqs: Vec<Rev> = rows.iter().map(|(_, seq)| *seq).collect();
            let counts: Vec<i64> = now.iter().map(|joined| joined.group.count).collect();
            let actors: Vec<String> = now.iter().map(|joined| json(&joined.group.actors)).collect();
            let expiries: Vec<Option<DateTime<Utc>>> = now.iter().map(|joined| joined.expires_at).collect();
            sqlx::query!(
                "update notification set group_count = now.group_count, group_actors = now.group_actors::json,
                    expires_at = now.expires_at
                from unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::timestamptz[])
                    as now (token, seq, group_count, group_actors, expires_at)
                where notification.token = now.token and notification.seq = now.seq",
                &tokens[..] as &[&str],
                &seqs[..],
                &counts[..],
                &actors[..],
                &expiries[..] as &[Option<DateTime<Utc>>]
            )
            .execute(&mut *self.connection)
            .await?;
        }
        if !plan.slots.is_empty() {
            let tokens: Vec<&str> = plan.slots.keys().map(|slot| &*slot.0).collect();
            let kinds: Vec<&str> = plan.slots.keys().map(|slot| slot.1.name()).collect();
            let keys: Vec<&str> = plan.slots.keys().map(|slot| &*slot.2).collect();
            let seqs: Vec<Rev> = plan.slots.values().copied().collect();
            sqlx::query!(
                "insert into notification_key (token, kind, key, seq)
                select * from unnest($1::text[], $2::text[], $3::text[], $4::bigint[])
                on conflict (token, kind, key) do update set seq = excluded.seq",
                &tokens[..] as &[&str],
                &kinds[..] as &[&str],
                &keys[..] as &[&str],
                &seqs[..]
            )
            .execute(&mut *self.connection)
            .await?;
        }
        if !plan.actors.is_empty() {
            let tokens: Vec<&str> = plan.actors.keys().map(|(token, ..)| token.as_str()).collect();
            let seqs: Vec<Rev> = plan.actors.keys().map(|(_, seq, _)| *seq).collect();
            let names: Vec<&str> = plan.actors.keys().map(|(.., actor)| &**actor).collect();
            let revs: Vec<Rev> = plan.actors.values().copied().collect();
            sqlx::query!(
                "insert into notification_actor (token, seq, actor, rev)
                select * from unnest($1::text[], $2::bigint[], $3::text[], $4::bigint[])
                on conflict (token, seq, actor) do update set rev = excluded.rev",
                &tokens[..] as &[&str],
                &seqs[..],
                &names[..] as &[&str],
                &revs[..]
            )
            .execute(&mut *self.connection)
            .await?;
        }
        Ok(())
    }

    async fn schedule(&mut self, pushes: &[Fresh<'_>], which: &[usize]) -> Result<(), sqlx::Error> {
        for fresh in which.iter().map(|at| &pushes[*at]) {
            let Fresh { push, content } = fresh;
            let Options { ttl_secs, collapse_key, group, deliver_at } = &push.push.options;
            let (group_key, actor) = group.as_ref().map(|group| (&*group.key, group.actor.as_deref())).unzip();
            let tokens: Vec<&str> = push.push.tokens.iter().map(Token::as_str).collect();
            sqlx::query!(
                "insert into scheduled (id, token, due_at, entity_type, ttl_secs, collapse_key, group_key, actor,
                    created_at, data)
                select $1, token, $2, $3, $4, $5, $6, $7, $8, $9::text::json from unnest($10::text[]) as token",
                content.id,
                *deliver_at as Option<DateTime<Utc>>,
                &*content.entity_type,
                ttl_secs.map(i64::from),
                collapse_key.as_deref(),
                group_key as Option<&str>,
                actor.flatten(),
                self.now,
                fresh.row_data(),
                &tokens[..] as &[&str]
            )
            .execute(&mut *self.connection)
            .await?;
        }
        Ok(())
    }

    /// One edit, all but the begin and the commit; returns how many rows it changed.
    pub(super) async fn edit(&mut self, edit: &Edit) -> Result<u64, sqlx::Error> {
        match edit {
            Edit::Retract { id } => self.retract(*id).await,
            Edit::Ungroup { token, key, actor } => self.ungroup(token, key, actor).await,
            Edit::Erase { token } => self.erase(token).await,
            Edit::Expire { limit } => self.expire(*limit).await,
            Edit::Release { limit } => self.release(*limit).await,
            Edit::Purge { rows, history, seen } => self.purge(rows, history, *seen).await,
            Edit::NoteUse { keys } => keys::note_use(&mut *self.connection, keys).await,
        }
    }

    async fn retract(&mut self, id: Uuid) -> Result<u64, sqlx::Error> {
        let cancelled = sqlx::query!("delete from scheduled where id = $1", id)
            .execute(&mut *self.connection)
            .await?
            .rows_affected();
        let tokens = sqlx::query_scalar!("select token from notification where id = $1 and retracted_at is null", id)
            .fetch_all(&mut *self.connection)
            .await?;
        let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
        let heads = self.lock(&tokens, &BTreeSet::new()).await?;
        let rows = sqlx::query_as!(
            Going,
            r#"update notification set retracted_at = $3
            where id = $1 and token = any($2) and retracted_at is null
            returning token, id, read_at is null as "unread!", false as "retracted!""#,
            id,
            &tokens[..] as &[&str],
            self.now
        )
        .fetch_all(&mut *self.connection)
        .await?;
        self.depart(&rows, ChangeKind::Retracted, heads).await?;
        Ok(cancelled + rows.len() as u64)
    }

    /// Tells of rows that go.
    async fn depart(
        &mut self,
        rows: &[Going],
        kind: fn(Vec<Uuid>) -> ChangeKind,
        mut heads: HashMap<String, Head>,
    ) -> Result<(), sqlx::Error> {
        let mut gone: BTreeMap<String, (Vec<Uuid>, i64)> = BTreeMap::new();
        for row in rows {
            let (ids, unread) = gone.entry(row.token.clone()).or_default();
            if !row.retracted {
                ids.push(row.id);
                *unread += i64::from(row.unread);
            }
        }
        let changes = commit::departures(&gone, kind, &mut heads);
        self.change(changes, &heads).await
    }

    async fn ungroup(&mut self, token: &Token, key: &str, actor: &str) -> Result<u64, sqlx::Error> {
        let name = token.as_str();
        let mut heads = self.lock(&[name], &BTreeSet::new()).await?;
        let row = sqlx::query!(
            r#"select notification.seq, notification.id, group_count, read_at is null as "unread!"
            from notification_key as held
            join notification on notification.token = held.token and notification.seq = held.seq
            join notification_actor as known on known.token = held.token and known.seq = held.seq and known.actor = $3
            where held.token = $1 and held.kind = 'group' and held.key = $2 and retracted_at is null"#,
            name,
            key,
            actor
        )
        .fetch_optional(&mut *self.connection)
        .await?;
        let (Some(row), Some(head)) = (row, heads.get_mut(name)) else { return Ok(0) };
        sqlx::query!(
            "delete from notification_actor where token = $1 and seq = $2 and actor = $3",
            name,
            row.seq,
            actor
        )
        .execute(&mut *self.connection)
        .await?;
        let count = row.group_count.unwrap_or(1) - 1;
        let (unread, kind) = if count == 0 {
            self.hide(&[(token.clone(), row.seq)]).await?;
            (-i64::from(row.unread), ChangeKind::Retracted(vec![row.id]))
        } else {
            let actors = sqlx::query_scalar!(
                "select actor from notification_actor where token = $1 and seq = $2 order by rev desc limit 3",
                name,
                row.seq
            )
            .fetch_all(&mut *self.connection)
            .await?;
            let group = Group { key: key.to_owned(), count, actors };
            sqlx::query!(
                "update notification set group_count = $3, group_actors = $4::text::json where token = $1 and seq = $2",
                name,
                row.seq,
                count,
                json(&group.actors)
            )
            .execute(&mut *self.connection)
            .await?;
            (0, ChangeKind::Group(Box::new(Regrouped { id: row.id, group })))
        };
        let changed = Changed::make(token.clone(), head, unread, kind, None);
        self.change(vec![changed], &heads).await?;
        Ok(1)
    }

    async fn erase(&mut self, token: &Token) -> Result<u64, sqlx::Error> {
        let name = token.as_str();
        // Before the inbox is locked, as in every edit that wants both: one that waits here holds up nobody.
        let scheduled = sqlx::query!("delete from scheduled where token = $1", name)
            .execute(&mut *self.connection)
            .await?
            .rows_affected();
        if self.lock(&[name], &BTreeSet::new()).await?.is_empty() {
            // One that somebody makes at this moment comes after this, and is not locked: what was deleted here of it now
            // would be missing from its counts.
            return Ok(scheduled);
        }
        let rows = sqlx::query!("delete from notification where token = $1", name)
            .execute(&mut *self.connection)
            .await?
            .rows_affected();
        sqlx::query!(
            "with changes as (delete from inbox_change where token = $1),
                keys as (delete from notification_key where token = $1),
                actors as (delete from notification_actor where token = $1),
                erased as (delete from inbox where token = $1 returning token)
            update meta set erasures = erasures + 1 where exists (select from erased)",
            name
        )
        .execute(&mut *self.connection)
        .await?;
        Ok(rows + scheduled)
    }

    /// Whether no other node does the same at this moment. Two at once would do no harm but wait for each other's locks.
    async fn alone(&mut self) -> Result<bool, sqlx::Error> {
        // The number means nothing but that every node takes the same.
        const UPKEEP: i64 = 0x0074_6964_696e_6773;
        sqlx::query_scalar!(r#"select pg_try_advisory_xact_lock($1) as "alone!""#, UPKEEP)
            .fetch_one(&mut *self.connection)
            .await
    }

    async fn expire(&mut self, limit: u32) -> Result<u64, sqlx::Error> {
        if !self.alone().await? {
            return Ok(0);
        }
        let rows = sqlx::query!(
            "select token, seq from notification where expires_at <= $1 order by expires_at limit $2",
            self.now,
            i64::from(limit)
        )
        .fetch_all(&mut *self.connection)
        .await?;
        let rows: Vec<_> = rows.into_iter().map(|row| (Token::stored(&row.token), row.seq)).collect();
        let tokens: Vec<&str> = rows.iter().map(|(token, _)| token.as_str()).collect();
        let heads = self.lock(&tokens, &BTreeSet::new()).await?;
        // A push may have joined its group meanwhile, so it is asked again under the lock.
        self.remove(&rows, self.now, Some(self.now), heads).await
    }

    /// Removes rows from the table that were there when they were `seen`, or those of them that have expired by then. Their
    /// place in the history stays, so that it has no gap. The heads are those of their inboxes, which are locked.
    async fn remove(
        &mut self,
        rows: &[(Token, Rev)],
        seen: DateTime<Utc>,
        expired: Option<DateTime<Utc>>,
        heads: HashMap<String, Head>,
    ) -> Result<u64, sqlx::Error> {
        // An inbox that was not there to be locked is not touched, though somebody may have made it meanwhile.
        let rows: Vec<_> = rows.iter().filter(|(token, _)| heads.contains_key(token.as_str())).collect();
        if rows.is_empty() {
            return Ok(0);
        }
        let tokens: Vec<&str> = rows.iter().map(|(token, _)| token.as_str()).collect();
        let seqs: Vec<Rev> = rows.iter().map(|(_, seq)| *seq).collect();
        // A key by its whole key: an inbox may have many.
        let rows = sqlx::query_as!(
            Going,
            r#"with gone as (
                delete from notification using unnest($1::text[], $2::bigint[]) as gone (token, seq)
                where notification.token = gone.token and notification.seq = gone.seq
                    and created_at <= $6 and ($3::timestamptz is null or expires_at <= $3)
                returning notification.*
            ), keys as (
                delete from notification_key as held using gone
                where held.token = gone.token and held.kind = case when group_key is null then 'collapse' else 'group' end
                    and held.key = coalesce(group_key, collapse_key) and held.seq = gone.seq
            ), actors as (
                delete from notification_actor as known using gone
                where known.token = gone.token and known.seq = gone.seq
            ), places as (
                insert into inbox_change (token, rev, change, at)
                select gone.token, gone.seq, $4::text::json, $5 from gone join inbox on inbox.token = gone.token
                where gone.seq > purged_rev
            )
            select token as "token!", id as "id!", read_at is null as "unread!",
                retracted_at is not null as "retracted!" from gone"#,
            &tokens[..] as &[&str],
            &seqs[..],
            expired,
            PURGED,
            self.now,
            seen
        )
        .fetch_all(&mut *self.connection)
        .await?;
        self.depart(&rows, ChangeKind::Expired, heads).await?;
        Ok(rows.len() as u64)
    }

    /// Moves due pushes into their inboxes, as if they were posted now. What another node is moving is left to it.
    async fn release(&mut self, limit: u32) -> Result<u64, sqlx::Error> {
        let mut rows = sqlx::query!(
            // Materialized, or a plan may look for what is due again and again and take more than the limit.
            r#"with due as materialized (
                select id, token from scheduled where due_at <= $1 order by due_at, id, token limit $2
                for update skip locked
            ), taken as (
                delete from scheduled as later using due where later.id = due.id and later.token = due.token
                returning later.id, later.token, due_at, entity_type, ttl_secs, collapse_key, group_key, actor,
                    data::text as data
            )
            -- What a push has stored once comes with the first of its rows.
            select taken.id as "id!", taken.token as "token!", due_at as "due_at!", entity_type as "entity_type!", ttl_secs,
                collapse_key, group_key, actor, taken.data as "data!", payload.data::text as "shared?"
            from (
                select *, row_number() over (partition by id order by token) as place from taken
            ) as taken left join notification_payload as payload on payload.id = taken.id and taken.data = $3 and place = 1"#,
            self.now,
            i64::from(limit),
            SHARED
        )
        .fetch_all(&mut *self.connection)
        .await?;
        rows.sort_by(|a, b| (a.due_at, a.id, &a.token).cmp(&(b.due_at, b.id, &b.token)));
        let taken = rows.len() as u64;
        let mut pushes: Vec<(Uuid, KeyedPush)> = Vec::new();
        for row in rows {
            let token = Token::stored(&row.token);
            if let Some((last, keyed)) = pushes.last_mut()
                && *last == row.id
            {
                keyed.push.tokens.push(token);
                continue;
            }
            let push = NewPush {
                tokens: vec![token],
                entity_type: row.entity_type,
                data: match row.shared {
                    Some(data) => Payload::stored(data).map_err(undecodable)?.shared(),
                    None => Payload::stored(row.data).map_err(undecodable)?,
                },
                options: Options {
                    ttl_secs: row.ttl_secs.and_then(|secs| u32::try_from(secs).ok()),
                    collapse_key: row.collapse_key,
                    group: row.group_key.map(|key| GroupKey { key, actor: row.actor }),
                    deliver_at: None,
                },
            };
            pushes.push((row.id, KeyedPush { push, key: None }));
        }
        if pushes.is_empty() {
            return Ok(0);
        }
        let tokens = pushes.iter().flat_map(|(_, push)| &push.push.tokens).map(Token::as_str).collect();
        let heads = self.lock(&[], &tokens).await?;
        let fresh: Vec<_> = pushes.iter().map(|(id, push)| Fresh::new(push, *id, self.now)).collect();
        let plan = self.plan(&fresh, heads).await?;
        self.write(&fresh, plan).await?;
        Ok(taken)
    }

    async fn purge(
        &mut self,
        rows: &[(Token, Rev)],
        history: &[(Token, Rev)],
        seen: DateTime<Utc>,
    ) -> Result<u64, sqlx::Error> {
        if !self.alone().await? {
            return Ok(0);
        }
        // All at once: a second lock would be out of order.
        let tokens: Vec<&str> = rows.iter().chain(history).map(|(token, _)| token.as_str()).collect();
        let heads = self.lock(&tokens, &BTreeSet::new()).await?;
        let removed = self.remove(rows, seen, None, heads).await?;
        if history.is_empty() {
            return Ok(removed);
        }
        let tokens: Vec<&str> = history.iter().map(|(token, _)| token.as_str()).collect();
        let upto: Vec<Rev> = history.iter().map(|(_, rev)| *rev).collect();
        let changes = sqlx::query!(
            "delete from inbox_change as change using unnest($1::text[], $2::bigint[]) as gone (token, upto), inbox
            where inbox.token = gone.token and change.token = gone.token and change.rev <= least(gone.upto, inbox.rev)",
            &tokens[..] as &[&str],
            &upto[..]
        )
        .execute(&mut *self.connection)
        .await?
        .rows_affected();
        sqlx::query!(
            "update inbox set purged_rev = greatest(purged_rev, least(gone.upto, rev))
            from unnest($1::text[], $2::bigint[]) as gone (token, upto) where inbox.token = gone.token",
            &tokens[..] as &[&str],
            &upto[..]
        )
        .execute(&mut *self.connection)
        .await?;
        Ok(removed + changes)
    }
}

fn undecodable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> sqlx::Error {
    sqlx::Error::Decode(error.into())
}
