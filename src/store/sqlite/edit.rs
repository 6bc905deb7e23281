//! What is more than rows that come and receipts: pushes that depend on what is there, and edits.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::commit::{Transaction, uncommitted};
use super::{group, keys, time, unavailable};
use crate::notification::{
    ChangeKind, Group, GroupKey, Head, NewPush, Options, Payload, Pushed, Regrouped, Rev, Token, timestamp,
};
use crate::store::commit::{self, Changed, Fresh, SHARED};
use crate::store::plan::{self, Found, Kind, OpenRow, Plan, Slot};
use crate::store::{ACTORS_PER_STEP, Edit, Edited, Erasing, Error, KeyedPush, PURGED, RELEASED_BYTES, json};

/// The rows of an edit as one JSON text: token, seq, id, whether unread, whether retracted, and how many of its actors go
/// with it.
type Going = (String, Rev, Uuid, u8, u8, u32);

impl Transaction<'_> {
    /// Finds out what the pushes depend on and decides what they become.
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
        let wanted = json(&slots.iter().map(|(token, kind, key)| (token, kind.name(), key)).collect::<Vec<_>>());
        let rows = sqlx::query!(
            r#"select held.token, held.kind, held.key, held.seq, notification.id, expires_at, group_count, group_actors
            from json_each(?1) as wanted
            cross join notification_key as held on held.token = wanted.value ->> 0 and held.kind = wanted.value ->> 1
                and held.key = wanted.value ->> 2
            join notification on notification.token = held.token and notification.seq = held.seq
            where read_at is null and retracted_at is null and (expires_at is null or expires_at > ?2)"#,
            wanted,
            self.now_text
        )
        .fetch_all(&mut *self.connection)
        .await?;
        let open = rows.into_iter().map(|row| {
            let kind = Kind::named(&row.kind).ok_or_else(|| undecodable(row.kind.as_str()))?;
            let group = group(Some(&row.key), row.group_count, row.group_actors.as_deref()).map_err(undecodable)?;
            let expires_at = row.expires_at.as_deref().map(time).transpose().map_err(undecodable)?;
            let id = Uuid::parse_str(&row.id).map_err(undecodable)?;
            Ok(((row.token, kind, row.key), OpenRow { seq: row.seq, id, group, expires_at }))
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
        let wanted = json(actors);
        let rows = sqlx::query!(
            r#"select known.token as "token!", known.seq as "seq!", known.actor as "actor!" from json_each(?1) as wanted
            cross join notification_actor as known on known.token = wanted.value ->> 0
                and known.seq = wanted.value ->> 1 and known.actor = wanted.value ->> 2"#,
            wanted
        )
        .fetch_all(&mut *self.connection)
        .await?;
        Ok(rows.into_iter().map(|row| (row.token, row.seq, row.actor)).collect())
    }

    /// Writes a plan down, all but the commit.
    pub(super) async fn write(&mut self, pushes: &[Fresh<'_>], plan: Plan) -> Result<Vec<Pushed>, sqlx::Error> {
        let heads = json(&plan.heads.iter().map(|(token, head)| (token, head.rev, head.unread)).collect::<Vec<_>>());
        let contents: Vec<_> = pushes
            .iter()
            .map(|fresh| {
                let Options { collapse_key, group, .. } = &fresh.push.push.options;
                let group_key = group.as_ref().map(|group| &group.key);
                (fresh.content.id, &*fresh.content.entity_type, fresh.row_data(), collapse_key, group_key)
            })
            .collect();
        let contents = json(&contents);
        let rows: Vec<_> = plan
            .rows
            .iter()
            .map(|row| {
                let (count, actors) = stored_group(row.group.as_deref());
                let retracted_at = row.retracted.then_some(&self.now_text);
                (&row.token, row.seq, row.push, row.expires_at.map(timestamp), retracted_at, count, actors)
            })
            .collect();
        let rows = json(&rows);
        self.insert_payloads(&plan.payloads(pushes)).await?;
        sqlx::query!(
            "insert into inbox (token, rev, unread, created_at, life)
            select value ->> 0, value ->> 1, value ->> 2, ?, (select erasures from meta) from json_each(?) where true
            on conflict (token) do update set rev = excluded.rev, unread = excluded.unread;

            with push as materialized (
                select key as number, value ->> 0 as id, value ->> 1 as entity_type, value ->> 2 as data,
                    value ->> 3 as collapse_key, value ->> 4 as group_key
                from json_each(?)
            )
            insert into notification (token, seq, id, entity_type, collapse_key, group_key, created_at, expires_at,
                retracted_at, data, group_count, group_actors)
            select row.value ->> 0, row.value ->> 1, push.id, entity_type, collapse_key, group_key, ?, row.value ->> 3,
                row.value ->> 4, data, row.value ->> 5, row.value ->> 6
            from json_each(?) as row join push on push.number = row.value ->> 2;",
            self.now_text,
            heads,
            contents,
            self.now_text,
            rows
        )
        .execute(&mut *self.connection)
        .await?;
        self.insert_changes(&plan.changes).await?;
        self.hide(&plan.replaced).await?;
        self.regroup(&plan).await?;
        self.schedule(pushes, &plan.scheduled).await?;
        self.events.extend(plan.events);
        Ok(plan.stored)
    }

    /// Marks rows retracted.
    async fn hide(&mut self, rows: &[(Token, Rev)]) -> Result<(), sqlx::Error> {
        if rows.is_empty() {
            return Ok(());
        }
        let rows = json(&rows);
        sqlx::query!(
            "update notification set retracted_at = ?2
            from (select value ->> 0 as token, value ->> 1 as seq from json_each(?1)) as gone
            where notification.token = gone.token and notification.seq = gone.seq",
            rows,
            self.now_text
        )
        .execute(&mut *self.connection)
        .await?;
        Ok(())
    }

    /// Writes down what became of groups and keys.
    async fn regroup(&mut self, plan: &Plan) -> Result<(), sqlx::Error> {
        let regrouped: Vec<_> = plan
            .regrouped
            .iter()
            .map(|((token, seq), joined)| {
                let (count, actors) = stored_group(Some(&joined.group));
                (token, seq, count, actors, joined.expires_at.map(timestamp))
            })
            .collect();
        let regrouped = json(&regrouped);
        let slots = plan.slots.iter().map(|((token, kind, key), seq)| (token, kind.name(), key, seq));
        let slots = json(&slots.collect::<Vec<_>>());
        let actors = plan.actors.iter().map(|((token, seq, actor), rev)| (token, seq, actor, rev));
        let actors = json(&actors.collect::<Vec<_>>());
        sqlx::query!(
            "update notification set group_count = now.group_count, group_actors = now.group_actors,
                expires_at = now.expires_at
            from (select value ->> 0 as token, value ->> 1 as seq, value ->> 2 as group_count,
                value ->> 3 as group_actors, value ->> 4 as expires_at from json_each(?)) as now
            where notification.token = now.token and notification.seq = now.seq;

            insert into notification_key (token, kind, key, seq)
            select value ->> 0, value ->> 1, value ->> 2, value ->> 3 from json_each(?) where true
            on conflict (token, kind, key) do update set seq = excluded.seq;

            insert into notification_actor (token, seq, actor, rev)
            select value ->> 0, value ->> 1, value ->> 2, value ->> 3 from json_each(?) where true
            on conflict (token, seq, actor) do update set rev = excluded.rev;",
            regrouped,
            slots,
            actors
        )
        .execute(&mut *self.connection)
        .await?;
        Ok(())
    }

    async fn schedule(&mut self, pushes: &[Fresh<'_>], which: &[usize]) -> Result<(), sqlx::Error> {
        for fresh in which.iter().map(|at| &pushes[*at]) {
            let Fresh { push, content } = fresh;
            let Options { ttl_secs, collapse_key, group, deliver_at } = &push.push.options;
            let (group_key, actor) = group.as_ref().map(|group| (&group.key, &group.actor)).unzip();
            let (id, due_at) = (content.id.to_string(), deliver_at.map(timestamp));
            let (tokens, data, actor) = (json(&push.push.tokens), fresh.row_data(), actor.and_then(Option::as_ref));
            sqlx::query!(
                "insert into scheduled (id, token, due_at, entity_type, ttl_secs, collapse_key, group_key, actor,
                    created_at, data)
                select ?1, value, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9 from json_each(?10)",
                id,
                due_at,
                content.entity_type,
                ttl_secs,
                collapse_key,
                group_key,
                actor,
                self.now_text,
                data,
                tokens
            )
            .execute(&mut *self.connection)
            .await?;
        }
        Ok(())
    }

    /// One step of an edit, from the begin to the commit.
    pub(super) async fn edit(mut self, edit: &Edit, limit: u32) -> Result<Edited, Error> {
        sqlx::query!("begin immediate -- sqlite").execute(&mut *self.connection).await.map_err(unavailable)?;
        let limit = i64::from(limit.max(1));
        let whole = |rows| (rows, None);
        let done = match edit {
            Edit::Retract { id, after } => self.retract(*id, after, limit).await,
            Edit::Ungroup { token, key, actor } => self.ungroup(token, key, actor).await.map(whole),
            Edit::Erase { token, begun } => self.erase(token, begun.as_ref(), limit).await,
            Edit::Expire { limit } => self.expire(*limit).await,
            Edit::Release { limit } => self.release(*limit).await,
            Edit::Purge { rows, history, seen } => self.purge(rows, history, *seen).await,
            Edit::NoteUse { keys } => keys::note_use(self.connection, keys).await.map(whole),
        };
        let (rows, next) = done.map_err(unavailable)?;
        sqlx::query!("commit -- sqlite").execute(&mut *self.connection).await.map_err(uncommitted)?;
        Ok(Edited { rows, events: self.events, next })
    }

    async fn retract(&mut self, id: Uuid, after: &str, limit: i64) -> Result<(u64, Option<Edit>), sqlx::Error> {
        let id_text = id.to_string();
        let mut cancelled = 0;
        // What is scheduled first: none of it becomes a row that was passed already.
        if after.is_empty() {
            cancelled = sqlx::query!(
                "delete from scheduled where (id, token) in (
                    select id, token from scheduled where id = ?1 order by token limit ?2)",
                id_text,
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
        let rows = sqlx::query_scalar!(
            r#"select json_group_array(json_array(token, seq, id, read_at is null, retracted_at is not null, 0))
                as "rows!: String"
            from (select token, seq, id, read_at, retracted_at from notification where id = ?1 and token > ?2
                order by token limit ?3)"#,
            id_text,
            after,
            left
        )
        .fetch_one(&mut *self.connection)
        .await?;
        let mut rows: Vec<Going> = super::parse(&rows).map_err(undecodable)?;
        let last = rows.last().filter(|_| rows.len() as i64 >= left);
        let next = last.map(|(token, ..)| Edit::Retract { id, after: token.clone() });
        rows.retain(|(.., retracted, _)| *retracted == 0);
        let hidden: Vec<_> = rows.iter().map(|(token, seq, ..)| (Token::stored(token), *seq)).collect();
        self.hide(&hidden).await?;
        self.depart(&rows, ChangeKind::Retracted).await?;
        Ok((cancelled + rows.len() as u64, next))
    }

    /// Tells of rows that go.
    async fn depart(&mut self, rows: &[Going], kind: fn(Vec<Uuid>) -> ChangeKind) -> Result<(), sqlx::Error> {
        let mut gone: BTreeMap<String, (Vec<Uuid>, i64)> = BTreeMap::new();
        for (token, _, id, unread, retracted, _) in rows {
            let (ids, unread_rows) = gone.entry(token.clone()).or_default();
            if *retracted == 0 {
                ids.push(*id);
                *unread_rows += i64::from(*unread);
            }
        }
        let mut heads = self.heads(&gone.keys().map(String::as_str).collect()).await?;
        let changes = commit::departures(&gone, kind, &mut heads);
        self.change(changes, &heads).await
    }

    async fn ungroup(&mut self, token: &Token, key: &str, actor: &str) -> Result<u64, sqlx::Error> {
        let name = token.as_str();
        let row = sqlx::query!(
            r#"select notification.seq, id, group_count, group_actors, read_at is null as "unread!: bool"
            from notification_key as held
            join notification on notification.token = held.token and notification.seq = held.seq
            join notification_actor as known on known.token = held.token and known.seq = held.seq and known.actor = ?3
            where held.token = ?1 and held.kind = 'group' and held.key = ?2 and retracted_at is null"#,
            name,
            key,
            actor
        )
        .fetch_optional(&mut *self.connection)
        .await?;
        let Some(row) = row else { return Ok(0) };
        let id = Uuid::parse_str(&row.id).map_err(undecodable)?;
        sqlx::query!(
            "delete from notification_actor where token = ?1 and seq = ?2 and actor = ?3",
            name,
            row.seq,
            actor
        )
        .execute(&mut *self.connection)
        .await?;
        let count = row.group_count.unwrap_or(1) - 1;
        let mut heads = self.heads(&BTreeSet::from([name])).await?;
        let Some(head) = heads.get_mut(name) else { return Ok(0) };
        let (unread, kind) = if count == 0 {
            self.hide(&[(token.clone(), row.seq)]).await?;
            (-i64::from(row.unread), ChangeKind::Retracted(vec![id]))
        } else {
            let actors = sqlx::query_scalar!(
                "select actor from notification_actor where token = ?1 and seq = ?2 order by rev desc limit 3",
                name,
                row.seq
            )
            .fetch_all(&mut *self.connection)
            .await?;
            let group = Group { key: key.to_owned(), count, actors };
            let text = json(&group.actors);
            sqlx::query!(
                "update notification set group_count = ?3, group_actors = ?4 where token = ?1 and seq = ?2",
                name,
                row.seq,
                count,
                text
            )
            .execute(&mut *self.connection)
            .await?;
            (0, ChangeKind::Group(Box::new(Regrouped { id, group })))
        };
        let changed = Changed::make(token.clone(), head, unread, kind, None);
        self.change(vec![changed], &heads).await?;
        Ok(1)
    }

    /// Erases some of what was there when it began, the oldest first, or all that is left of it.
    async fn erase(
        &mut self,
        token: &Token,
        begun: Option<&Erasing>,
        limit: i64,
    ) -> Result<(u64, Option<Edit>), sqlx::Error> {
        let name = token.as_str();
        let inbox = sqlx::query!("select rev, unread, life from inbox where token = ?1", name)
            .fetch_optional(&mut *self.connection)
            .await?;
        // An inbox that came in the place of the one that is to go, and was erased by somebody else.
        let begun =
            begun.filter(|begun| begun.upto == 0 || inbox.as_ref().is_none_or(|inbox| inbox.life == begun.life));
        let (upto, life) = match (begun, &inbox) {
            (Some(begun), _) => (begun.upto, begun.life),
            (None, Some(inbox)) => (inbox.rev, inbox.life),
            (None, None) => (0, 0),
        };
        let next = |scheduled_upto| {
            Some(Edit::Erase { token: token.clone(), begun: Some(Erasing { scheduled_upto, upto, life }) })
        };
        let scheduled_upto = match begun {
            Some(begun) => begun.scheduled_upto,
            None => Some(Uuid::max()),
        };
        let mut rows = 0;
        if let Some(last) = scheduled_upto {
            let last_text = last.to_string();
            rows = sqlx::query!(
                "delete from scheduled where (id, token) in (
                    select id, token from scheduled where token = ?1 and +id <= ?2 limit ?3)",
                name,
                last_text,
                limit
            )
            .execute(&mut *self.connection)
            .await?
            .rows_affected();
            if rows.cast_signed() >= limit {
                return Ok((rows, next(Some(last.min(Uuid::now_v7())))));
            }
        }
        let Some(inbox) = inbox.filter(|_| upto > 0) else { return Ok((rows, None)) };
        let over = sqlx::query!(
            r#"select
                (select seq - 1 from notification where token = ?1 and seq <= ?2 order by seq limit 1 offset ?3)
                    as "rows?: i64",
                (select rev - 1 from inbox_change where token = ?1 and rev <= ?2 order by rev limit 1 offset ?3)
                    as "changes?: i64",
                (select seq - 1 from notification_actor where token = ?1 and seq <= ?2 order by seq limit 1 offset ?3)
                    as "actors?: i64",
                exists (select 1 from notification where token = ?1 and seq > ?2) as "newer!: bool""#,
            name,
            upto,
            limit
        )
        .fetch_one(&mut *self.connection)
        .await?;
        let some = [over.rows, over.changes, over.actors].into_iter().flatten().min();
        if some.is_none() && !over.newer {
            rows += sqlx::query!("delete from notification where token = ?1", name)
                .execute(&mut *self.connection)
                .await?
                .rows_affected();
            sqlx::query!(
                "delete from inbox_change where token = ?;
                delete from notification_key where token = ?;
                delete from notification_actor where token = ?;
                delete from inbox where token = ?;
                update meta set erasures = erasures + 1 where changes() > 0;",
                name,
                name,
                name,
                name
            )
            .execute(&mut *self.connection)
            .await?;
            return Ok((rows, None));
        }
        let mut head = Head { rev: inbox.rev, unread: inbox.unread, ..Head::default() };
        let (removed, progress) = self.forget(token, some.unwrap_or(upto), &mut head).await?;
        rows += removed;
        if let Some(actors) = over.actors
            && !progress
        {
            self.forget_actors(token, actors + 1, limit, ChangeKind::Retracted, &mut head).await?;
        }
        if some.is_none() {
            // It goes on as an inbox that has never had anything below what came meanwhile.
            sqlx::query!(
                "update meta set erasures = erasures + 1;
                update inbox set life = (select erasures from meta) where token = ?",
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
        let unread = sqlx::query_scalar!(
            r#"select count(*) as "unread!: i64" from notification
            where token = ?1 and seq <= ?2 and read_at is null and retracted_at is null"#,
            name,
            upto
        )
        .fetch_one(&mut *self.connection)
        .await?;
        sqlx::query!(
            "-- By its whole key, which the row still says: an inbox may have many.
            delete from notification_key where (token, kind, key) in (
                select held.token, held.kind, held.key from notification as row
                cross join notification_key as held on held.token = row.token
                    and held.kind = iif(row.group_key is null, 'collapse', 'group')
                    and held.key = coalesce(row.group_key, row.collapse_key)
                where row.token = ? and row.seq <= ? and held.seq = row.seq);

            delete from notification_actor where token = ? and seq <= ?;",
            name,
            upto,
            name,
            upto
        )
        .execute(&mut *self.connection)
        .await?;
        let rows = sqlx::query!("delete from notification where token = ?1 and seq <= ?2", name, upto)
            .execute(&mut *self.connection)
            .await?
            .rows_affected();
        let changes = sqlx::query!("delete from inbox_change where token = ?1 and rev <= ?2", name, upto)
            .execute(&mut *self.connection)
            .await?
            .rows_affected();
        sqlx::query!(
            "update inbox set purged_rev = max(purged_rev, ?2), read_upto = max(read_upto, ?2),
                delivered_upto = max(delivered_upto, ?2)
            where token = ?1",
            name,
            upto
        )
        .execute(&mut *self.connection)
        .await?;
        if unread > 0 {
            let changed = Changed::make(token.clone(), head, -unread, ChangeKind::ReadUpTo(upto), None);
            self.change(vec![changed], &HashMap::from([(name.to_owned(), *head)])).await?;
        }
        Ok((rows, rows + changes > 0))
    }

    /// Takes some of its actors from the row of a group that goes. It is retracted first: what it names would not be true
    /// any more.
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
            r#"select id, read_at is null as "unread!: bool" from notification
            where token = ?1 and seq = ?2 and retracted_at is null"#,
            name,
            seq
        )
        .fetch_optional(&mut *self.connection)
        .await?;
        if let Some(row) = row {
            let id = Uuid::parse_str(&row.id).map_err(undecodable)?;
            self.hide(&[(token.clone(), seq)]).await?;
            let changed = Changed::make(token.clone(), head, -i64::from(row.unread), kind(vec![id]), None);
            self.change(vec![changed], &HashMap::from([(name.to_owned(), *head)])).await?;
        }
        sqlx::query!(
            "delete from notification_actor where (token, seq, actor) in (
                select token, seq, actor from notification_actor where token = ?1 and seq = ?2 limit ?3)",
            name,
            seq,
            limit
        )
        .execute(&mut *self.connection)
        .await?;
        Ok(())
    }

    async fn expire(&mut self, limit: u32) -> Result<(u64, Option<Edit>), sqlx::Error> {
        let rows = sqlx::query_scalar!(
            r#"select json_group_array(json_array(token, seq, id, read_at is null, retracted_at is not null,
                iif(group_key is null, 0, (select count(*) from (select 1 from notification_actor as known
                    where known.token = row.token and known.seq = row.seq limit ?3)))))
                as "rows!: String"
            from (select token, seq, id, read_at, retracted_at, group_key from notification where expires_at <= ?1
                order by expires_at limit ?2) as row"#,
            self.now_text,
            limit,
            ACTORS_PER_STEP
        )
        .fetch_one(&mut *self.connection)
        .await?;
        let rows: Vec<Going> = super::parse(&rows).map_err(undecodable)?;
        let (removed, left) = self.remove_some(&rows).await?;
        Ok((removed, (!left.is_empty()).then_some(Edit::Expire { limit })))
    }

    async fn purge(
        &mut self,
        rows: &[(Token, Rev)],
        history: &[(Token, Rev)],
        seen: DateTime<Utc>,
    ) -> Result<(u64, Option<Edit>), sqlx::Error> {
        let (wanted, seen_text) = (json(&rows), timestamp(seen));
        let rows = sqlx::query_scalar!(
            r#"select json_group_array(json_array(token, seq, id, read_at is null, retracted_at is not null,
                iif(group_key is null, 0, (select count(*) from (select 1 from notification_actor as known
                    where known.token = row.token and known.seq = row.seq limit ?3)))))
                as "rows!: String"
            from notification as row
            where (token, seq) in (select value ->> 0, value ->> 1 from json_each(?1)) and created_at <= ?2"#,
            wanted,
            seen_text,
            ACTORS_PER_STEP
        )
        .fetch_one(&mut *self.connection)
        .await?;
        let rows: Vec<Going> = super::parse(&rows).map_err(undecodable)?;
        let (removed, left) = self.remove_some(&rows).await?;
        if !left.is_empty() {
            let rows = left.iter().map(|(token, seq, ..)| (Token::stored(token), *seq)).collect();
            return Ok((removed, Some(Edit::Purge { rows, history: history.to_vec(), seen })));
        }
        let history = json(&history);
        let changes = sqlx::query!(
            "delete from inbox_change where (token, rev) in (
                select change.token, change.rev from json_each(?1) as gone
                cross join inbox on inbox.token = gone.value ->> 0
                cross join inbox_change as change on change.token = inbox.token
                    and change.rev <= min(gone.value ->> 1, inbox.rev))",
            history
        )
        .execute(&mut *self.connection)
        .await?
        .rows_affected();
        sqlx::query!(
            "update inbox set purged_rev = max(purged_rev, min(gone.upto, rev))
            from (select value ->> 0 as token, value ->> 1 as upto from json_each(?1)) as gone
            where inbox.token = gone.token",
            history
        )
        .execute(&mut *self.connection)
        .await?;
        Ok((removed + changes, None))
    }

    /// Removes as many of the rows as may go with their actors, or takes some of its actors from the first of them. Returns
    /// how many rows went, and those that are left.
    async fn remove_some<'g>(&mut self, rows: &'g [Going]) -> Result<(u64, &'g [Going]), sqlx::Error> {
        let mut actors = 0;
        let fit = rows.iter().take_while(|(.., count)| {
            actors += i64::from(*count);
            actors < ACTORS_PER_STEP
        });
        let (some, left) = rows.split_at(fit.count());
        match left.first() {
            Some((token, seq, ..)) if some.is_empty() => {
                let token = Token::stored(token);
                let mut heads = self.heads(&BTreeSet::from([token.as_str()])).await?;
                let head = heads.entry(token.as_str().to_owned()).or_default();
                self.forget_actors(&token, *seq, ACTORS_PER_STEP, ChangeKind::Expired, head).await?;
            }
            _ => self.remove(some).await?,
        }
        Ok((some.len() as u64, left))
    }

    /// Removes rows from the table. Their place in the history stays, so that it has no gap.
    async fn remove(&mut self, rows: &[Going]) -> Result<(), sqlx::Error> {
        if rows.is_empty() {
            return Ok(());
        }
        let gone = json(&rows.iter().map(|(token, seq, ..)| (token, seq)).collect::<Vec<_>>());
        sqlx::query!(
            "-- By its whole key, which the row still says: an inbox may have many.
            delete from notification_key where (token, kind, key) in (
                select held.token, held.kind, held.key from json_each(?) as gone
                cross join notification as row on row.token = gone.value ->> 0 and row.seq = gone.value ->> 1
                cross join notification_key as held on held.token = row.token
                    and held.kind = iif(row.group_key is null, 'collapse', 'group')
                    and held.key = coalesce(row.group_key, row.collapse_key)
                where held.seq = row.seq);

            delete from notification where (token, seq) in (select value ->> 0, value ->> 1 from json_each(?));

            delete from notification_actor where (token, seq, actor) in (
                select known.token, known.seq, known.actor from json_each(?) as gone
                cross join notification_actor as known on known.token = gone.value ->> 0
                    and known.seq = gone.value ->> 1);

            insert into inbox_change (token, rev, change, at)
            select inbox.token, gone.value ->> 1, ?, ? from json_each(?) as gone
            cross join inbox on inbox.token = gone.value ->> 0 where gone.value ->> 1 > purged_rev;",
            gone,
            gone,
            gone,
            PURGED,
            self.now_text,
            gone
        )
        .execute(&mut *self.connection)
        .await?;
        self.depart(rows, ChangeKind::Expired).await
    }

    /// What is stored once for the rows of a push.
    async fn payload(&mut self, id: Uuid) -> Result<String, sqlx::Error> {
        let id = id.to_string();
        sqlx::query_scalar!("select data from notification_payload where id = ?1 -- sqlite", id)
            .fetch_one(&mut *self.connection)
            .await
    }

    /// Moves due pushes into their inboxes, as if they were posted now.
    async fn release(&mut self, limit: u32) -> Result<(u64, Option<Edit>), sqlx::Error> {
        let due = sqlx::query!(
            r#"select id, token, entity_type, ttl_secs as "ttl_secs: u32", collapse_key, group_key, actor,
                octet_length(data) as "bytes!: i64"
            from scheduled where due_at <= ?1 order by due_at, id, token limit ?2"#,
            self.now_text,
            limit
        )
        .fetch_all(&mut *self.connection)
        .await?;
        // One at least, whatever it holds.
        let mut bytes = 0;
        let fit = due.iter().enumerate().take_while(|(at, row)| {
            bytes += row.bytes;
            *at == 0 || bytes <= RELEASED_BYTES
        });
        let fit = fit.count();
        let next = (fit < due.len()).then_some(Edit::Release { limit });
        let firsts = due[..fit].chunk_by(|one, other| one.id == other.id).map(|rows| (&rows[0].id, &rows[0].token));
        let firsts = json(&firsts.collect::<Vec<_>>());
        let data = sqlx::query!(
            "select id, data from scheduled where (id, token) in (select value ->> 0, value ->> 1 from json_each(?1))",
            firsts
        )
        .fetch_all(&mut *self.connection)
        .await?;
        let mut data: HashMap<String, String> = data.into_iter().map(|row| (row.id, row.data)).collect();
        let mut pushes: Vec<(Uuid, KeyedPush)> = Vec::new();
        let mut taken = Vec::new();
        for row in due.into_iter().take(fit) {
            let id = Uuid::parse_str(&row.id).map_err(undecodable)?;
            let token = Token::stored(&row.token);
            let data = data.remove(&row.id);
            taken.push((row.id, row.token));
            if let Some((last, keyed)) = pushes.last_mut()
                && *last == id
            {
                keyed.push.tokens.push(token);
                continue;
            }
            let push = NewPush {
                tokens: vec![token],
                entity_type: row.entity_type,
                data: match data.unwrap_or_default() {
                    data if data == SHARED => Payload::stored(self.payload(id).await?).map_err(undecodable)?.shared(),
                    data => Payload::stored(data).map_err(undecodable)?,
                },
                options: Options {
                    ttl_secs: row.ttl_secs,
                    collapse_key: row.collapse_key,
                    group: row.group_key.map(|key| GroupKey { key, actor: row.actor }),
                    deliver_at: None,
                },
            };
            pushes.push((id, KeyedPush { push, key: None }));
        }
        if pushes.is_empty() {
            return Ok((0, None));
        }
        let gone = json(&taken);
        sqlx::query!(
            "delete from scheduled where (id, token) in (select value ->> 0, value ->> 1 from json_each(?1))",
            gone
        )
        .execute(&mut *self.connection)
        .await?;
        let tokens = pushes.iter().flat_map(|(_, push)| &push.push.tokens).map(Token::as_str).collect();
        let heads = self.heads(&tokens).await?;
        let fresh: Vec<_> = pushes.iter().map(|(id, push)| Fresh::new(push, *id, self.now)).collect();
        let plan = self.plan(&fresh, heads).await?;
        self.write(&fresh, plan).await?;
        Ok((taken.len() as u64, next))
    }
}

/// A group as the columns hold it.
fn stored_group(group: Option<&Group>) -> (Option<i64>, Option<String>) {
    group.map(|group| (group.count, json(&group.actors))).unzip()
}

fn undecodable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> sqlx::Error {
    sqlx::Error::Decode(error.into())
}
