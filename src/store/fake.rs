//! A database in memory that fails on command: the reference for what a real one does, and a stand-in in tests.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    Batch, Committed, Committer, Due, Edit, Edited, Entry, Error, Heads, Keep, ListQuery, Page, PageBuilder, Place,
    PushOutcome, Receipt, Sent, Stale, Store, StoredKey, TypeCount, Undelivered,
};
use crate::notification::{
    Change, ChangeKind, Content, Event, GROUP_ACTORS, Group, Head, NewPush, Notification, Placed, Pushed, ReceiptKind,
    Regrouped, Rev, Selection, SessionId, Token,
};

/// Every inbox, as simply as can be.
#[derive(Default)]
pub(crate) struct FakeDatabase {
    tables: Mutex<Tables>,
    /// How often the epoch was renewed.
    pub(crate) renewals: AtomicU32,
    /// How many there were.
    pub(crate) reads: AtomicU32,
    /// How many of the next reads fail.
    pub(crate) failing_reads: AtomicU32,
    /// How long heads are on their way, in milliseconds.
    pub(crate) heads_take_ms: AtomicU64,
}

#[derive(Default)]
struct Tables {
    inboxes: HashMap<Token, Vec<Row>>,
    /// Everything at or below is read or gone.
    read_upto: HashMap<Token, Rev>,
    /// In the order they were posted; each with one token.
    scheduled: Vec<(Uuid, NewPush)>,
}

/// What stands at one rev.
#[derive(Clone)]
struct Row {
    event: Event,
    delivered: bool,
    retracted: bool,
    /// It is no longer in the table.
    removed: bool,
    expires_at: Option<DateTime<Utc>>,
    collapse_key: Option<String>,
    group_key: Option<String>,
    /// Who stands behind a group, in the order they last acted; a push without an actor is nobody.
    actors: Vec<Option<String>>,
}

impl Row {
    fn new(event: Event) -> Self {
        let isnt_new = !matches!(event, Event::New(_));
        Self {
            event,
            delivered: isnt_new,
            retracted: false,
            removed: isnt_new,
            expires_at: None,
            collapse_key: None,
            group_key: None,
            actors: Vec::new(),
        }
    }

    fn notification(&self) -> Option<Notification> {
        let Event::New(new) = &self.event else { return None };
        Some(Notification { group: self.group().map(Arc::new), ..new.clone() })
    }

    fn group(&self) -> Option<Group> {
        let key = self.group_key.clone()?;
        let named = self.actors.iter().rev().flatten().take(GROUP_ACTORS).cloned();
        Some(Group { key, count: self.actors.len() as i64, actors: named.collect() })
    }

    fn is_read(&self) -> bool {
        matches!(&self.event, Event::New(new) if new.read)
    }

    fn is_gone(&self, now: DateTime<Utc>) -> bool {
        self.removed || self.retracted || self.expires_at.is_some_and(|at| at <= now)
    }

    /// Whether it counts as unread. An expired row does until it is removed.
    fn counts(&self) -> bool {
        !self.removed && !self.retracted && !self.is_read()
    }

    fn id(&self) -> Option<Uuid> {
        match &self.event {
            Event::New(new) => Some(new.content.id),
            Event::Changed { .. } | Event::Gone { .. } => None,
        }
    }
}

impl FakeDatabase {
    pub(crate) fn epoch_now(&self) -> String {
        format!("epoch {}", self.renewals.load(Ordering::Relaxed))
    }

    pub(crate) fn head(&self, token: &Token) -> Head {
        let tables = self.tables.lock().unwrap();
        tables.inboxes.get(token).map(|rows| head(rows)).unwrap_or_default()
    }

    /// The revs of the rows that would be replayed.
    pub(crate) fn undelivered(&self, token: &Token, now: DateTime<Utc>) -> HashSet<Rev> {
        let tables = self.tables.lock().unwrap();
        let rows = tables.inboxes.get(token).into_iter().flatten();
        rows.filter(|row| !row.delivered && !row.is_gone(now)).map(|row| row.event.rev()).collect()
    }

    /// Every event of an inbox by rev.
    pub(crate) fn history(&self, token: &Token, now: DateTime<Utc>) -> BTreeMap<Rev, Event> {
        let tables = self.tables.lock().unwrap();
        let events = tables.inboxes.get(token).into_iter().flatten().map(|row| match row.notification() {
            Some(_) if row.is_gone(now) => Event::Gone { rev: row.event.rev() },
            Some(notification) => Event::New(notification),
            None => row.event.clone(),
        });
        events.map(|event| (event.rev(), event)).collect()
    }

    /// What a commit does; also used for one that another node makes.
    pub(crate) fn apply(&self, batch: &Batch, now: DateTime<Utc>) -> Committed {
        let mut tables = self.tables.lock().unwrap();
        let mut events = Vec::new();
        for (token, id) in &batch.acked {
            for row in tables.inboxes.get_mut(token).into_iter().flatten().filter(|row| row.id() == Some(*id)) {
                row.delivered = true;
            }
        }
        let (mut receipts, mut unfinished) = (Vec::new(), Vec::new());
        for (at, receipt) in batch.receipts.iter().enumerate() {
            let Tables { inboxes, read_upto, .. } = &mut *tables;
            let rows = inboxes.entry(receipt.token.clone()).or_default();
            let mark = read_upto.entry(receipt.token.clone()).or_default();
            let (changed, left) = mark_rows(rows, mark, receipt, batch.mark_limit(), now);
            events.extend(changed.map(|event| (receipt.token.clone(), event)));
            unfinished.extend(left.map(|left| (at, left)));
            receipts.push((receipt.kind != ReceiptKind::Ack).then(|| head(rows)));
        }
        let pushes = batch.pushes.iter().map(|keyed| {
            let pushed = tables.push(Uuid::now_v7(), &keyed.push, now, &mut events);
            PushOutcome::Pushed(pushed)
        });
        Committed { pushes: pushes.collect(), receipts, events, unfinished }
    }

    /// What an edit does.
    pub(crate) fn edit(&self, edit: &Edit, now: DateTime<Utc>) -> Edited {
        let mut tables = self.tables.lock().unwrap();
        let mut events = Vec::new();
        let rows = match edit {
            Edit::Retract { id, after: _ } => tables.retract(*id, now, &mut events),
            Edit::Ungroup { token, key, actor } => tables.ungroup(token, key, actor, now, &mut events),
            Edit::Erase { token, begun: _ } => {
                tables.read_upto.remove(token);
                let scheduled = tables.scheduled.len();
                tables.scheduled.retain(|(_, push)| push.tokens[0] != *token);
                let rows = tables.inboxes.remove(token).unwrap_or_default();
                rows.iter().filter(|row| !row.removed).count() + scheduled - tables.scheduled.len()
            }
            Edit::Expire { limit: _ } => tables.expire(now, &mut events),
            Edit::Release { limit: _ } => tables.release(now, &mut events),
            Edit::Purge { .. } | Edit::NoteUse { .. } => 0,
        };
        Edited { rows: rows as u64, events, next: None }
    }

    /// The table as it was when the inbox had `rows` events: somebody restored a backup.
    pub(crate) fn take_back(&self, token: &Token, rows: usize) {
        self.tables.lock().unwrap().inboxes.get_mut(token).unwrap().truncate(rows);
    }

    fn read(&self) -> Result<(), Error> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let failing = self.failing_reads.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if failing.is_ok() { Err(Error::Unavailable("told to fail".into())) } else { Ok(()) }
    }
}

type Events = Vec<(Token, Event)>;

impl Tables {
    fn push(&mut self, id: Uuid, push: &NewPush, now: DateTime<Utc>, events: &mut Events) -> Pushed {
        let content = Arc::new(Content {
            id,
            entity_type: push.entity_type.clone(),
            data: push.data.clone().into_raw(),
            created_at: now,
        });
        let later = push.options.deliver_at.is_some_and(|at| at > now);
        let results = push.tokens.iter().map(|token| {
            if later {
                let options = push.options.clone();
                let (entity_type, data) = (push.entity_type.clone(), push.data.clone());
                self.scheduled.push((id, NewPush { tokens: vec![token.clone()], entity_type, data, options }));
                return Placed { token: token.clone(), seq: None, grouped_into: None };
            }
            self.place(token, &content, push, now, events)
        });
        Pushed { id, results: results.collect() }
    }

    fn place(
        &mut self,
        token: &Token,
        content: &Arc<Content>,
        push: &NewPush,
        now: DateTime<Utc>,
        events: &mut Events,
    ) -> Placed {
        let rows = self.inboxes.entry(token.clone()).or_default();
        let options = &push.options;
        let expires_at = options.expires_at(now);
        // The newest row that has the key, if it is still to be seen.
        let newest = |key: &dyn Fn(&Row) -> bool| {
            let newest = rows.iter().rposition(|row| row.notification().is_some() && key(row));
            newest.filter(|at| !rows[*at].is_read() && !rows[*at].is_gone(now))
        };
        if let Some(group) = &options.group
            && let Some(at) = newest(&|row| row.group_key.as_ref() == Some(&group.key))
        {
            let row = &mut rows[at];
            let before = row.group();
            if group.actor.is_some() {
                row.actors.retain(|actor| *actor != group.actor);
            }
            row.actors.push(group.actor.clone());
            row.expires_at = row.expires_at.zip(expires_at).map(|(one, other)| one.max(other));
            let (seq, id) = (row.event.rev(), row.id().unwrap());
            if row.group() != before {
                let group = row.group().unwrap();
                change(rows, token, ChangeKind::Group(Box::new(Regrouped { id, group })), None, now, events);
            }
            return Placed { token: token.clone(), seq: Some(seq), grouped_into: Some(id) };
        }
        if let Some(key) = &options.collapse_key
            && let Some(at) = newest(&|row| row.collapse_key.as_ref() == Some(key))
        {
            rows[at].retracted = true;
            let id = rows[at].id().unwrap();
            change(rows, token, ChangeKind::Retracted(vec![id]), None, now, events);
        }
        let seq = rows.len() as Rev + 1;
        let notification = Notification { seq, content: Arc::clone(content), read: false, group: None };
        let row = Row {
            expires_at,
            collapse_key: options.collapse_key.clone(),
            group_key: options.group.as_ref().map(|group| group.key.clone()),
            actors: options.group.iter().map(|group| group.actor.clone()).collect(),
            ..Row::new(Event::New(notification))
        };
        events.push((token.clone(), Event::New(row.notification().unwrap())));
        rows.push(row);
        Placed { token: token.clone(), seq: Some(seq), grouped_into: None }
    }

    fn retract(&mut self, id: Uuid, now: DateTime<Utc>, events: &mut Events) -> usize {
        let before = self.scheduled.len();
        self.scheduled.retain(|(scheduled, _)| *scheduled != id);
        let mut retracted = before - self.scheduled.len();
        for (token, rows) in &mut self.inboxes {
            let of_id = |row: &Row| row.id() == Some(id) && !row.retracted && !row.removed;
            if let Some(at) = rows.iter().position(of_id) {
                rows[at].retracted = true;
                change(rows, token, ChangeKind::Retracted(vec![id]), None, now, events);
                retracted += 1;
            }
        }
        retracted
    }

    fn ungroup(&mut self, token: &Token, key: &str, actor: &str, now: DateTime<Utc>, events: &mut Events) -> usize {
        let Some(rows) = self.inboxes.get_mut(token) else { return 0 };
        let Some(at) = rows.iter().rposition(|row| row.group_key.as_deref() == Some(key)) else { return 0 };
        let (before, row) = (rows[at].actors.len(), &mut rows[at]);
        if row.retracted || row.removed {
            return 0;
        }
        row.actors.retain(|other| other.as_deref() != Some(actor));
        if row.actors.len() == before {
            return 0;
        }
        let id = row.id().unwrap();
        let kind = if row.actors.is_empty() {
            row.retracted = true;
            ChangeKind::Retracted(vec![id])
        } else {
            ChangeKind::Group(Box::new(Regrouped { id, group: row.group().unwrap() }))
        };
        change(rows, token, kind, None, now, events);
        1
    }

    fn expire(&mut self, now: DateTime<Utc>, events: &mut Events) -> usize {
        let mut removed = 0;
        for (token, rows) in &mut self.inboxes {
            let mut seen = Vec::new();
            for row in rows.iter_mut().filter(|row| !row.removed && row.expires_at.is_some_and(|at| at <= now)) {
                row.removed = true;
                removed += 1;
                seen.extend(row.id().filter(|_| !row.retracted));
            }
            if !seen.is_empty() {
                change(rows, token, ChangeKind::Expired(seen), None, now, events);
            }
        }
        removed
    }

    fn release(&mut self, now: DateTime<Utc>, events: &mut Events) -> usize {
        let due = |push: &NewPush| push.options.deliver_at.is_some_and(|at| at <= now);
        let (mut released, left): (Vec<_>, Vec<_>) = self.scheduled.drain(..).partition(|(_, push)| due(push));
        self.scheduled = left;
        released.sort_by_key(|(id, push)| (push.options.deliver_at, *id, push.tokens[0].clone()));
        for (id, push) in &released {
            self.push(*id, push, now, events);
        }
        released.len()
    }
}

fn change(
    rows: &mut Vec<Row>,
    token: &Token,
    kind: ChangeKind,
    origin: Option<SessionId>,
    at: DateTime<Utc>,
    events: &mut Events,
) {
    let change = Change { kind, unread: head(rows).unread };
    let event = Event::Changed { rev: rows.len() as Rev + 1, change, at, origin };
    rows.push(Row::new(event.clone()));
    events.push((token.clone(), event));
}

fn head(rows: &[Row]) -> Head {
    let unread = rows.iter().filter(|row| row.counts()).count();
    let first_undelivered =
        rows.iter().find(|row| !row.delivered && !row.retracted && !row.removed).map(|row| row.event.rev() - 1);
    let rev = rows.len() as Rev;
    Head { rev, unread: unread as i64, delivered_upto: first_undelivered.unwrap_or(rev), purged_rev: 0 }
}

/// Marks rows and returns the change, if it takes a rev, and what is left of a read up to a rev that looked at `limit` rows.
fn mark_rows(
    rows: &mut Vec<Row>,
    mark: &mut Rev,
    receipt: &Receipt,
    limit: i64,
    now: DateTime<Utc>,
) -> (Option<Event>, Option<Receipt>) {
    let (top, unread) = (rows.len() as Rev, head(rows).unread);
    let mut turned = Vec::new();
    let (mut reached, mut left) = (top, None);
    if receipt.kind == ReceiptKind::Read && receipt.is_mark() {
        let upto = receipt.upto().min(top);
        let there = rows.iter().filter(|row| !row.removed).map(|row| row.event.rev());
        let beyond = there.filter(|seq| *seq > *mark && *seq <= upto).nth(usize::try_from(limit).unwrap_or(usize::MAX));
        reached = beyond.filter(|_| unread > 0).map_or(upto, |seq| seq - 1);
        left = (reached < upto).then(|| {
            let (token, selection) = (receipt.token.clone(), Selection::UpTo(upto));
            let Receipt { kind, origin, .. } = *receipt;
            Receipt { token, kind, selection, after: reached, origin, life: None }
        });
        *mark = reached.max(*mark);
    }
    for row in rows.iter_mut().filter(|row| !row.removed) {
        let Event::New(new) = &mut row.event else { continue };
        let selected = match &receipt.selection {
            Selection::Ids(ids) => ids.contains(&new.content.id),
            Selection::UpTo(upto) => new.seq > receipt.after && new.seq <= *upto && new.seq <= reached,
            Selection::All => new.seq <= reached,
        };
        if !selected {
            continue;
        }
        let read = match receipt.kind {
            ReceiptKind::Ack => {
                row.delivered = true;
                continue;
            }
            ReceiptKind::Read => true,
            ReceiptKind::Unread => false,
        };
        if !row.retracted && new.read != read {
            new.read = read;
            row.delivered = true;
            turned.push(new.content.id);
            if !read {
                *mark = (new.seq - 1).min(*mark);
            }
        }
    }
    if turned.is_empty() {
        return (None, left);
    }
    let kind = match (receipt.kind, &receipt.selection) {
        (ReceiptKind::Unread, _) => ChangeKind::Unread(turned),
        (_, Selection::Ids(_)) => ChangeKind::Read(turned),
        (_, Selection::UpTo(_) | Selection::All) => ChangeKind::ReadUpTo(reached),
    };
    let change = Change { kind, unread: head(rows).unread };
    let event = Event::Changed { rev: top + 1, change, at: now, origin: receipt.origin };
    rows.push(Row::new(event.clone()));
    (Some(event), left)
}

#[async_trait]
impl Store for FakeDatabase {
    async fn heads(&self, tokens: &[Token]) -> Result<Heads, Error> {
        tokio::task::yield_now().await;
        self.read()?;
        let of = tokens.iter().map(|token| (token.clone(), (self.head(token), 0))).collect();
        tokio::time::sleep(Duration::from_millis(self.heads_take_ms.load(Ordering::Relaxed))).await;
        Ok(Heads { epoch: self.epoch_now().into(), erasures: 0, of })
    }

    async fn undelivered(&self, page: &Undelivered<'_>) -> Result<Page<Notification>, Error> {
        tokio::task::yield_now().await;
        self.read()?;
        let wanted = self.undelivered(page.token, page.now);
        let mut builder = PageBuilder::new(page.limit, usize::MAX);
        for row in self.tables.lock().unwrap().inboxes.get(page.token).into_iter().flatten() {
            let seq = row.event.rev();
            if wanted.contains(&seq) && seq > page.after && seq <= page.upto {
                builder.add(row.notification().unwrap(), 1);
            }
        }
        Ok(builder.page)
    }

    async fn count_undelivered(&self, page: &Undelivered<'_>) -> Result<u64, Error> {
        self.read()?;
        let undelivered = self.undelivered(page.token, page.now);
        Ok(undelivered.into_iter().filter(|rev| *rev > page.after && *rev <= page.upto).count() as u64)
    }

    async fn events(&self, token: &Token, after: Rev, limit: u32, now: DateTime<Utc>) -> Result<Page<Event>, Error> {
        tokio::task::yield_now().await;
        self.read()?;
        let mut builder = PageBuilder::new(limit, usize::MAX);
        for (_, event) in self.history(token, now).range(after + 1..) {
            builder.add(event.clone(), 1);
        }
        Ok(builder.page)
    }

    async fn list(&self, query: &ListQuery<'_>) -> Result<Page<Entry>, Error> {
        let mut builder = PageBuilder::new(query.limit, usize::MAX);
        for row in self.tables.lock().unwrap().inboxes.get(query.token).into_iter().flatten().rev() {
            let Some(notification) = row.notification() else { continue };
            let wanted = query.unread.is_none_or(|unread| unread != notification.read)
                && query.entity_type.is_none_or(|entity_type| entity_type == notification.content.entity_type);
            if notification.seq < query.before && notification.seq > query.above && !row.is_gone(query.now) && wanted {
                let expires_at = row.expires_at;
                builder.add(Entry { notification, delivered_at: None, read_at: None, expires_at }, 1);
            }
        }
        Ok(builder.page)
    }

    async fn counts(&self, token: &Token, after: Rev, upto: Rev, now: DateTime<Utc>) -> Result<Vec<TypeCount>, Error> {
        let mut counts: BTreeMap<String, i64> = BTreeMap::new();
        for row in self.tables.lock().unwrap().inboxes.get(token).into_iter().flatten() {
            if let Some(notification) = row.notification().filter(|new| !new.read && !row.is_gone(now))
                && notification.seq > after
                && notification.seq <= upto
            {
                *counts.entry(notification.content.entity_type.clone()).or_default() += 1;
            }
        }
        Ok(counts.into_iter().map(|(entity_type, unread)| TypeCount { entity_type, unread }).collect())
    }

    async fn unread_span(&self, token: &Token) -> Result<Option<(Rev, Rev)>, Error> {
        let head = self.head(token);
        Ok((head.unread > 0).then_some((0, head.rev)))
    }

    async fn newest_row(&self, token: &Token, upto: Rev) -> Result<Option<(Rev, Uuid)>, Error> {
        let tables = self.tables.lock().unwrap();
        let rows = tables.inboxes.get(token).into_iter().flatten().rev();
        let mut rows = rows.filter(|row| row.event.rev() <= upto).filter_map(|row| Some((row.event.rev(), row.id()?)));
        Ok(rows.next())
    }

    async fn sent(&self, _id: Uuid, _after: &str, _limit: u32) -> Result<Option<Sent>, Error> {
        Err(Error::Unavailable("nothing here is asked for".into()))
    }

    async fn due(&self, _now: DateTime<Utc>) -> Result<Due, Error> {
        Ok(Due { expired: true, scheduled: true })
    }

    async fn stale(&self, _after: &Place, _inboxes: u32, _rows: u32, _keep: &Keep) -> Result<Stale, Error> {
        Ok(Stale::default())
    }

    async fn api_keys(&self) -> Result<Vec<StoredKey>, Error> {
        Ok(Vec::new())
    }

    async fn epoch(&self) -> Result<String, Error> {
        self.read()?;
        Ok(self.epoch_now())
    }
}

/// The writing end of a [`FakeDatabase`].
pub(crate) struct FakeCommitter(pub(crate) Arc<FakeDatabase>);

#[async_trait]
impl Committer for FakeCommitter {
    async fn commit(&mut self, batch: &Batch, now: DateTime<Utc>) -> Result<Committed, Error> {
        tokio::task::yield_now().await;
        Ok(self.0.apply(batch, now))
    }

    async fn edit(&mut self, edit: &Edit, _rows: u32, now: DateTime<Utc>) -> Result<Edited, Error> {
        tokio::task::yield_now().await;
        Ok(self.0.edit(edit, now))
    }

    async fn close(&mut self) {}
}
