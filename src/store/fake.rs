//! A database in memory that fails on command: the reference for what a real one does, and a stand-in in tests.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Batch, Committed, Committer, Error, Page, PageBuilder, PushOutcome, Receipt, Store, Undelivered};
use crate::notification::{
    Change, ChangeKind, Content, Event, Head, Notification, Pushed, ReceiptKind, Rev, Selection, Token,
};

/// Every inbox, as simply as can be.
#[derive(Default)]
pub(crate) struct FakeDatabase {
    inboxes: Mutex<HashMap<Token, Vec<Row>>>,
    /// How many of the next reads fail.
    pub(crate) failing_reads: AtomicU32,
}

#[derive(Clone)]
struct Row {
    event: Event,
    delivered: bool,
}

impl FakeDatabase {
    pub(crate) fn head(&self, token: &Token) -> Head {
        let inboxes = self.inboxes.lock().unwrap();
        inboxes.get(token).map(|rows| head(rows)).unwrap_or_default()
    }

    /// The revs of the rows that would be replayed.
    pub(crate) fn undelivered(&self, token: &Token) -> HashSet<Rev> {
        let inboxes = self.inboxes.lock().unwrap();
        let rows = inboxes.get(token).into_iter().flatten();
        rows.filter(|row| !row.delivered).map(|row| row.event.rev()).collect()
    }

    /// Every event of an inbox by rev.
    pub(crate) fn history(&self, token: &Token) -> BTreeMap<Rev, Event> {
        let inboxes = self.inboxes.lock().unwrap();
        inboxes.get(token).into_iter().flatten().map(|row| (row.event.rev(), row.event.clone())).collect()
    }

    /// What a commit does; also used for one that another node makes.
    pub(crate) fn apply(&self, batch: &Batch, now: DateTime<Utc>) -> Committed {
        let mut inboxes = self.inboxes.lock().unwrap();
        let mut events = Vec::new();
        let receipts = batch
            .receipts
            .iter()
            .map(|receipt| {
                let rows = inboxes.entry(receipt.token.clone()).or_default();
                let changed = mark(rows, receipt, now);
                events.extend(changed.map(|event| (receipt.token.clone(), event)));
                (receipt.kind == ReceiptKind::Read).then(|| head(rows))
            })
            .collect();
        let pushes = batch
            .pushes
            .iter()
            .map(|keyed| {
                let content = Arc::new(Content {
                    id: Uuid::now_v7(),
                    entity_type: keyed.push.entity_type.clone(),
                    data: keyed.push.data.clone().into_raw(),
                    created_at: now,
                });
                let results = keyed.push.tokens.iter().map(|token| {
                    let rows = inboxes.entry(token.clone()).or_default();
                    let seq = rows.len() as Rev + 1;
                    let event = Event::New(Notification { seq, content: Arc::clone(&content), read: false });
                    rows.push(Row { event: event.clone(), delivered: false });
                    events.push((token.clone(), event));
                    (token.clone(), seq)
                });
                PushOutcome::Pushed(Pushed { id: content.id, results: results.collect() })
            })
            .collect();
        Committed { pushes, receipts, events }
    }

    /// The table as it was when the inbox had `rows` events: somebody restored a backup.
    pub(crate) fn take_back(&self, token: &Token, rows: usize) {
        self.inboxes.lock().unwrap().get_mut(token).unwrap().truncate(rows);
    }

    fn read(&self) -> Result<(), Error> {
        let failing = self.failing_reads.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if failing.is_ok() { Err(Error::Unavailable("told to fail".into())) } else { Ok(()) }
    }
}

fn head(rows: &[Row]) -> Head {
    let unread = rows.iter().filter(|row| matches!(&row.event, Event::New(new) if !new.read)).count();
    let first_undelivered = rows.iter().find(|row| !row.delivered).map(|row| row.event.rev() - 1);
    let rev = rows.len() as Rev;
    Head { rev, unread: unread as i64, delivered_upto: first_undelivered.unwrap_or(rev) }
}

/// Marks rows and returns the change, if it takes a rev.
fn mark(rows: &mut Vec<Row>, receipt: &Receipt, now: DateTime<Utc>) -> Option<Event> {
    let top = rows.len() as Rev;
    let mut read = Vec::new();
    for row in rows.iter_mut() {
        let Event::New(new) = &mut row.event else { continue };
        let selected = match &receipt.selection {
            Selection::Ids(ids) => ids.contains(&new.content.id),
            Selection::UpTo(upto) => new.seq <= *upto,
            Selection::All => true,
        };
        if selected {
            row.delivered = true;
            if receipt.kind == ReceiptKind::Read && !std::mem::replace(&mut new.read, true) {
                read.push(new.content.id);
            }
        }
    }
    if read.is_empty() {
        return None;
    }
    let kind = match receipt.selection {
        Selection::Ids(_) => ChangeKind::Read(read),
        Selection::UpTo(upto) => ChangeKind::ReadUpTo(upto.min(top)),
        Selection::All => ChangeKind::ReadUpTo(top),
    };
    let change = Change { kind, unread: head(rows).unread };
    let event = Event::Changed { rev: top + 1, change, at: now, origin: receipt.origin };
    rows.push(Row { event: event.clone(), delivered: true });
    Some(event)
}

#[async_trait]
impl Store for FakeDatabase {
    async fn heads(&self, tokens: &[Token]) -> Result<HashMap<Token, Head>, Error> {
        tokio::task::yield_now().await;
        self.read()?;
        Ok(tokens.iter().map(|token| (token.clone(), self.head(token))).collect())
    }

    async fn undelivered(&self, page: &Undelivered<'_>) -> Result<Page<Notification>, Error> {
        tokio::task::yield_now().await;
        self.read()?;
        let mut builder = PageBuilder::new(page.limit, usize::MAX);
        for row in self.inboxes.lock().unwrap().get(page.token).into_iter().flatten() {
            let Event::New(new) = &row.event else { continue };
            if !row.delivered && new.seq > page.after && new.seq <= page.upto {
                builder.add(new.clone(), 1);
            }
        }
        Ok(builder.page)
    }

    async fn count_undelivered(&self, page: &Undelivered<'_>) -> Result<u64, Error> {
        self.read()?;
        let undelivered = self.undelivered(page.token);
        Ok(undelivered.into_iter().filter(|rev| *rev > page.after && *rev <= page.upto).count() as u64)
    }

    async fn events(&self, token: &Token, after: Rev, limit: u32) -> Result<Page<Event>, Error> {
        tokio::task::yield_now().await;
        self.read()?;
        let mut builder = PageBuilder::new(limit, usize::MAX);
        for (_, event) in self.history(token).range(after + 1..) {
            builder.add(event.clone(), 1);
        }
        Ok(builder.page)
    }

    async fn epoch(&self) -> Result<String, Error> {
        self.read()?;
        Ok("epoch now".to_owned())
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

    async fn close(&mut self) {}
}
