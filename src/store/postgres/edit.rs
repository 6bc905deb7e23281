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
use crate::store::{ACTORS_PER_STEP, Edit, Erasing, KeyedPush, PURGED, RELEASED_BYTES, json};

/// A row that goes.
struct Going {
    token: String,
    id: Uuid,
    unread: bool,
    retracted: bool,
}

/// How many rows a step of an edit changed, and what is left to be done.
type Done = (u64, Option<Edit>);

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

    /// One step of an edit, all but the begin and the commit.
    pub(super) async fn edit(&mut self, edit: &Edit, limit: i64) -> Result<Done, sqlx::Error> {
        let whole = |rows| (rows, None);
        match edit {
            Edit::Retract { id, after } => self.retract(*id, after, limit).await,
            Edit::Ungroup { token, key, actor } => self.ungroup(token, key, actor).await.map(whole),
            Edit::Erase { token, begun } => self.erase(token, begun.as_ref(), limit).await,
            Edit::Expire { limit } => self.expire(*limit).await,
            Edit::Release { limit } => self.release(*limit).await,
            Edit::Purge { rows, history, seen } => self.purge(rows, history, *seen).await,
            Edit::NoteUse { keys } => keys::note_use(&mut *self.connection, keys).await.map(whole),
        }
    }

    async fn retract(&mut self, id: Uuid, after: &str, limit: i64) -> Result<Done, sqlx::Error> {
        let mut cancelled = 0;
        // What is scheduled first: none of it becomes a row that was passed already.
        if after.is_empty() {
            cancelled = sqlx::query!(
                // By their places, or a plan for any limit may go through all of the table to find them again.
                "delete from scheduled where ctid = any(array(
                    select ctid from scheduled where id = $1 order by token limit $2 for update))",
                id,
                limit
            )
            .execute(&mut *self.connection)
            .await?
            .rows_affected();
        }
        let left = limit - cancelled.cast_signed();
        if left <= 0 {
            return Ok((cancelled, Some(Edit::retract(id))));
        }
        let rows = sqlx::query!(
            r#"select token, retracted_at is null as "visible!" from notification where id = $1 and token > $2
            order by token limit $3"#,
            id,
            after,
            left
        )
        .fetch_all(&mut *self.connection)
        .await?;
        let last = rows.last().filter(|_| rows.len() as i64 >= left);
        let next = last.map(|row| Edit::Retract { id, after: row.token.clone() });
        let tokens: Vec<&str> = rows.iter().filter(|row| row.visible).map(|row| row.token.as_str()).collect();
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
        Ok((cancelled + rows.len() as u64, next))
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

    /// Erases some of what was there when it began, the oldest first, or all that is left of it.
    async fn erase(&mut self, token: &Token, begun: Option<&Erasing>, limit: i64) -> Result<Done, sqlx::Error> {
        let name = token.as_str();
        // Before the inbox is locked, as in every edit that wants both: one that waits here holds up nobody.
        let scheduled_upto = match begun {
            Some(begun) => begun.scheduled_upto,
            None => Some(Uuid::max()),
        };
        let mut rows = 0;
        if let Some(last) = scheduled_upto {
            rows = sqlx::query!(
                // The id as text, or it may be taken for what finds the rows.
                r#"delete from scheduled where ctid = any(array(
                    select ctid from scheduled where token = $1 and id::text collate "C" <= $2 limit $3 for update))"#,
                name,
                last.to_string(),
                limit
            )
            .execute(&mut *self.connection)
            .await?
            .rows_affected();
        }
        let more_scheduled = scheduled_upto.filter(|_| rows.cast_signed() >= limit);
        let mut heads = self.lock(&[name], &BTreeSet::new()).await?;
        let Some(head) = heads.get_mut(name) else {
            // One that somebody makes at this moment comes after this, and is not locked: what was deleted here of it now
            // would be missing from its counts.
            let none = |last: Uuid| Erasing { scheduled_upto: Some(last.min(Uuid::now_v7())), upto: 0, life: 0 };
            let next = more_scheduled.map(|last| Edit::Erase { token: token.clone(), begun: Some(none(last)) });
            return Ok((rows, next));
        };
        let life = sqlx::query_scalar!("select life from inbox where token = $1", name)
            .fetch_one(&mut *self.connection)
            .await?;
        let upto = match begun {
            Some(begun) if begun.upto == 0 || begun.life == life => begun.upto,
            // Somebody else erased the inbox meanwhile, which ends this, or not: what it has now goes too.
            Some(_) | None => head.rev,
        };
        let next = |scheduled_upto| {
            Some(Edit::Erase { token: token.clone(), begun: Some(Erasing { scheduled_upto, upto, life }) })
        };
        if let Some(last) = more_scheduled {
            return Ok((rows, next(Some(last.min(Uuid::now_v7())))));
        }
        if upto == 0 {
            return Ok((rows, None));
        }
        let over = sqlx::query!(
            r#"select
                (select seq - 1 from notification where token = $1 and seq <= $2 order by seq limit 1 offset $3)
                    as "rows?",
                (select rev - 1 from inbox_change where token = $1 and rev <= $2 order by rev limit 1 offset $3)
                    as "changes?",
                (select seq - 1 from notification_actor where token = $1 and seq <= $2 order by seq limit 1 offset $3)
                    as "actors?",
                exists (select from notification where token = $1 and seq > $2) as "newer!""#,
            name,
            upto,
            limit
        )
        .fetch_one(&mut *self.connection)
        .await?;
        let some = [over.rows, over.changes, over.actors].into_iter().flatten().min();
        if some.is_none() && !over.newer {
            rows += sqlx::query!("delete from notification where token = $1", name)
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
            return Ok((rows, None));
        }
        let (removed, progress) = self.forget(token, some.unwrap_or(upto), head).await?;
        rows += removed;
        if let Some(actors) = over.actors
            && !progress
        {
            self.forget_actors(token, actors + 1, limit, ChangeKind::Retracted, head).await?;
        }
        if some.is_none() {
            // It goes on as an inbox that has never had anything below what came meanwhile.
            sqlx::query!(
                "with erased as (update meta set erasures = erasures + 1 returning erasures)
                update inbox set life = erased.erasures from erased where token = $1",
                name
            )
            .execute(&mut *self.connection)
            .await?;
            return Ok((rows, None));
        }
        Ok((rows, next(None)))
    }

    /// Removes what an inbox has up to a rev, and its history. Returns how many rows that were, and whether it was anything.
    async fn forget(&mut self, token: &Token, upto: Rev, head: &mut Head) -> Result<(u64, bool), sqlx::Error> {
        let name = token.as_str();
        // A key by its whole key: an inbox may have many.
        let gone = sqlx::query!(
            r#"with gone as (
                delete from notification where token = $1 and seq <= $2
                returning token, seq, read_at, retracted_at, collapse_key, group_key
            ), keys as (
                delete from notification_key as held using gone
                where held.token = gone.token and held.kind = case when group_key is null then 'collapse' else 'group' end
                    and held.key = coalesce(group_key, collapse_key) and held.seq = gone.seq
            ), actors as (
                delete from notification_actor where token = $1 and seq <= $2
            ), changes as (
                delete from inbox_change where token = $1 and rev <= $2 returning rev
            ), marked as (
                update inbox set purged_rev = greatest(purged_rev, $2), read_upto = greatest(read_upto, $2),
                    delivered_upto = greatest(delivered_upto, $2)
                where token = $1
            )
            select count(*) as "rows!", count(*) filter (where read_at is null and retracted_at is null) as "unread!",
                (select count(*) from changes) as "changes!"
            from gone"#,
            name,
            upto
        )
        .fetch_one(&mut *self.connection)
        .await?;
        if gone.unread > 0 {
            let changed = Changed::make(token.clone(), head, -gone.unread, ChangeKind::ReadUpTo(upto), None);
            self.change(vec![changed], &HashMap::from([(name.to_owned(), *head)])).await?;
        }
        Ok((gone.rows.cast_unsigned(), gone.rows + gone.changes > 0))
    }

    /// Takes some of its actors from the row of a group that goes. It is retracted first: what it names would not be true
    /// any more. Its inbox is locked.
    async fn forget_actors(
        &mut self,
        token: &Token,
        seq: Rev,
        limit: i64,
        kind: fn(Vec<Uuid>) -> ChangeKind,
        head: &mut Head,
    ) -> Result<(), sqlx::Error> {
        let name = token.as_str();
        let row = sqlx::query!(
            r#"update notification set retracted_at = $3 where token = $1 and seq = $2 and retracted_at is null
            returning id, read_at is null as "unread!""#,
            name,
            seq,
            self.now
        )
        .fetch_optional(&mut *self.connection)
        .await?;
        if let Some(row) = row {
            let changed = Changed::make(token.clone(), head, -i64::from(row.unread), kind(vec![row.id]), None);
            self.change(vec![changed], &HashMap::from([(name.to_owned(), *head)])).await?;
        }
        sqlx::query!(
            "delete from notification_actor where ctid = any(array(
                select ctid from notification_actor where token = $1 and seq = $2 order by actor limit $3 for update))",
            name,
            seq,
            limit
        )
        .execute(&mut *self.connection)
        .await?;
        Ok(())
    }

    /// Whether no other node does the same at this moment. Two at once would do no harm but wait for each other's locks.
    async fn alone(&mut self) -> Result<bool, sqlx::Error> {
        // The number means nothing but that every node takes the same.
        const UPKEEP: i64 = 0x0074_6964_696e_6773;
        sqlx::query_scalar!(r#"select pg_try_advisory_xact_lock($1) as "alone!""#, UPKEEP)
            .fetch_one(&mut *self.connection)
            .await
    }

    async fn expire(&mut self, limit: u32) -> Result<Done, sqlx::Error> {
        if !self.alone().await? {
            return Ok((0, None));
        }
        let rows = sqlx::query!(
            r#"select token, seq, case when group_key is null then 0 else (
                select count(*) from (select from notification_actor as known
                    where known.token = row.token and known.seq = row.seq limit $3) as acting) end as "actors!"
            from (select token, seq, group_key from notification where expires_at <= $1 order by expires_at limit $2) as row"#,
            self.now,
            i64::from(limit),
            ACTORS_PER_STEP
        )
        .fetch_all(&mut *self.connection)
        .await?;
        let rows: Vec<_> = rows.into_iter().map(|row| (Token::stored(&row.token), row.seq, row.actors)).collect();
        let tokens: Vec<&str> = rows.iter().map(|(token, ..)| token.as_str()).collect();
        let heads = self.lock(&tokens, &BTreeSet::new()).await?;
        // A push may have joined its group meanwhile, so it is asked again under the lock.
        let (removed, left) = self.remove_some(&rows, self.now, Some(self.now), heads).await?;
        Ok((removed, (!left.is_empty()).then_some(Edit::Expire { limit })))
    }

    /// Removes as many of the rows as may go with their actors, of which each has so many, or takes some of its actors from
    /// the first of them. Returns how many rows went, and those that are left.
    async fn remove_some(
        &mut self,
        rows: &[(Token, Rev, i64)],
        seen: DateTime<Utc>,
        expired: Option<DateTime<Utc>>,
        mut heads: HashMap<String, Head>,
    ) -> Result<(u64, Vec<(Token, Rev)>), sqlx::Error> {
        let mut actors = 0;
        let fit = rows.iter().take_while(|(.., count)| {
            actors += count;
            actors < ACTORS_PER_STEP
        });
        let fit = fit.count();
        let mut rows: Vec<_> = rows.iter().map(|(token, seq, _)| (token.clone(), *seq)).collect();
        let left = rows.split_off(fit);
        if !rows.is_empty() || left.is_empty() {
            let removed = self.remove(&rows, seen, expired, heads).await?;
            return Ok((removed, left));
        }
        let (token, seq) = &left[0];
        // One whose inbox was not there to be locked is gone, and a push may have joined it meanwhile.
        let is_there = sqlx::query_scalar!(
            r#"select exists (select from notification where token = $1 and seq = $2 and created_at <= $4
                and ($3::timestamptz is null or expires_at <= $3)) as "is_there!""#,
            token.as_str(),
            seq,
            expired,
            seen
        )
        .fetch_one(&mut *self.connection)
        .await?;
        match heads.get_mut(token.as_str()) {
            Some(head) if is_there => {
                self.forget_actors(token, *seq, ACTORS_PER_STEP, ChangeKind::Expired, head).await?;
                Ok((0, left))
            }
            _ => Ok((0, left[1..].to_vec())),
        }
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
    async fn release(&mut self, limit: u32) -> Result<Done, sqlx::Error> {
        let mut rows = sqlx::query!(
            // Materialized, or a plan may look for what is due again and again and take more than the limit. Of the bytes one
            // row at least is taken, whatever it holds.
            r#"with due as materialized (
                select ctid as place, id, token, due_at, octet_length(data::text) as bytes
                from scheduled where due_at <= $1 order by due_at, id, token limit $2
                for update skip locked
            ), fitting as materialized (
                select place, first from (
                    select place, sum(bytes) over before - bytes as before,
                        row_number() over (partition by id order by token) = 1 as first
                    from due window before as (order by due_at, id, token rows unbounded preceding)
                ) as counted where before < $3
            ), taken as (
                delete from scheduled as later using fitting where later.ctid = fitting.place
                returning later.id, later.token, due_at, entity_type, ttl_secs, collapse_key, group_key, actor,
                    case when first then data::text end as data
            )
            -- What a push has stored once comes with the first of its rows.
            select taken.id as "id!", taken.token as "token!", due_at as "due_at!", entity_type as "entity_type!", ttl_secs,
                collapse_key, group_key, actor, taken.data, payload.data::text as "shared?",
                (select count(*) from due) as "due!"
            from taken left join notification_payload as payload on payload.id = taken.id and taken.data = $4"#,
            self.now,
            i64::from(limit),
            RELEASED_BYTES,
            SHARED
        )
        .fetch_all(&mut *self.connection)
        .await?;
        rows.sort_by(|a, b| (a.due_at, a.id, &a.token).cmp(&(b.due_at, b.id, &b.token)));
        let taken = rows.len() as u64;
        let due = rows.first().map_or(0, |row| row.due.cast_unsigned());
        let next = (due > taken).then_some(Edit::Release { limit });
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
                    None => Payload::stored(row.data.unwrap_or_default()).map_err(undecodable)?,
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
            return Ok((0, None));
        }
        let tokens = pushes.iter().flat_map(|(_, push)| &push.push.tokens).map(Token::as_str).collect();
        let heads = self.lock(&[], &tokens).await?;
        let fresh: Vec<_> = pushes.iter().map(|(id, push)| Fresh::new(push, *id, self.now)).collect();
        let plan = self.plan(&fresh, heads).await?;
        self.write(&fresh, plan).await?;
        Ok((taken, next))
    }

    async fn purge(
        &mut self,
        rows: &[(Token, Rev)],
        history: &[(Token, Rev)],
        seen: DateTime<Utc>,
    ) -> Result<Done, sqlx::Error> {
        if !self.alone().await? {
            return Ok((0, None));
        }
        // All at once: a second lock would be out of order.
        let tokens: Vec<&str> = rows.iter().chain(history).map(|(token, _)| token.as_str()).collect();
        let heads = self.lock(&tokens, &BTreeSet::new()).await?;
        let rows = self.with_actors(rows).await?;
        let (removed, left) = self.remove_some(&rows, seen, None, heads).await?;
        if !left.is_empty() {
            return Ok((removed, Some(Edit::Purge { rows: left, history: history.to_vec(), seen })));
        }
        if history.is_empty() {
            return Ok((removed, None));
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
        Ok((removed + changes, None))
    }

    /// Adds to each row how many of its actors would go with it.
    async fn with_actors(&mut self, rows: &[(Token, Rev)]) -> Result<Vec<(Token, Rev, i64)>, sqlx::Error> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let tokens: Vec<&str> = rows.iter().map(|(token, _)| token.as_str()).collect();
        let seqs: Vec<Rev> = rows.iter().map(|(_, seq)| *seq).collect();
        let rows = sqlx::query!(
            r#"select token as "token!", seq as "seq!", (
                select count(*) from (select from notification_actor as known
                    where known.token = gone.token and known.seq = gone.seq limit $3) as acting) as "actors!"
            from unnest($1::text[], $2::bigint[]) as gone (token, seq)"#,
            &tokens[..] as &[&str],
            &seqs[..],
            ACTORS_PER_STEP
        )
        .fetch_all(&mut *self.connection)
        .await?;
        Ok(rows.into_iter().map(|row| (Token::stored(&row.token), row.seq, row.actors)).collect())
    }
}

fn undecodable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> sqlx::Error {
    sqlx::Error::Decode(error.into())
}
