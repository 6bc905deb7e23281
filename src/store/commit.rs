//! The part of a commit that is the same whatever database runs it: which rows its receipts select, which revs its reads
//! take, and which its pushes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{IdempotencyKey, KeyName, KeyedPush, PushOutcome, Receipt};
use crate::notification::{
    Change, ChangeKind, Content, Event, Head, Notification, Placed, Pushed, ReceiptKind, Rev, Selection, SessionId,
    Token,
};

/// A transaction with keyed pushes also deletes up to this many expired keys, so they never pile up.
pub(super) const EXPIRED_KEYS_PER_COMMIT: i64 = 256;

/// The rows that the receipts of one kind in a batch select.
pub(super) struct Selected<'r> {
    pub(super) ids: HashSet<(&'r str, Uuid)>,
    pub(super) upto: BTreeMap<&'r str, UpTo>,
    /// Every token of these receipts, with the session that sent them if it was one alone.
    origins: BTreeMap<&'r str, Option<SessionId>>,
}

/// The rows of an inbox up to a rev.
#[derive(Clone, Copy)]
pub(super) struct UpTo {
    /// Those up to here need not be looked at.
    pub(super) after: Rev,
    pub(super) upto: Rev,
    /// If only an inbox of this generation is meant.
    pub(super) life: Option<i64>,
}

/// How far the receipts up to a rev came in an inbox.
#[derive(Clone, Copy)]
pub(super) struct Reached {
    /// All rows up to here are marked.
    pub(super) reached: Rev,
    /// The rows that there are end here.
    pub(super) top: Rev,
    pub(super) life: i64,
}

/// By token.
pub(super) type Progress = HashMap<String, Reached>;

impl<'r> Selected<'r> {
    pub(super) fn of(receipts: &'r [Receipt], kind: ReceiptKind) -> Self {
        let mut selected = Self { ids: HashSet::new(), upto: BTreeMap::new(), origins: BTreeMap::new() };
        for receipt in receipts.iter().filter(|receipt| receipt.kind == kind) {
            let token = receipt.token.as_str();
            let origin = selected.origins.entry(token).or_insert(receipt.origin);
            *origin = origin.filter(|_| *origin == receipt.origin);
            let mut raise = |upto: Rev| {
                let UpTo { after, upto: before, life } =
                    *selected.upto.entry(token).or_insert(UpTo { after: receipt.after, upto, life: receipt.life });
                let rows = UpTo { after: after.min(receipt.after), upto: before.max(upto), life };
                selected.upto.insert(token, rows);
            };
            match &receipt.selection {
                Selection::Ids(ids) => selected.ids.extend(ids.iter().map(|id| (token, *id))),
                Selection::UpTo(rev) => raise(*rev),
                Selection::All => raise(Rev::MAX),
            }
        }
        selected
    }

    /// Leaves the inboxes alone that were not there when those that are were locked: one that is made meanwhile is somebody
    /// else's to change, and holds nothing that these receipts could be about.
    #[cfg_attr(not(feature = "postgres"), expect(dead_code, reason = "SQLite has one writer"))]
    pub(super) fn keep_locked(&mut self, heads: &HashMap<String, Head>) {
        self.ids.retain(|(token, _)| heads.contains_key(*token));
        self.upto.retain(|token, _| heads.contains_key(*token));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.origins.is_empty()
    }

    pub(super) fn tokens(&self) -> BTreeSet<&'r str> {
        self.origins.keys().copied().collect()
    }
}

/// Which rows became read or unread: by their ids, and how many by the marks.
#[derive(Default)]
pub(super) struct Turned {
    pub(super) read_by_id: HashMap<String, Vec<Uuid>>,
    /// With the rev that the marks reached.
    pub(super) read_by_mark: HashMap<String, (i64, Rev)>,
    pub(super) unread_by_id: HashMap<String, Vec<Uuid>>,
}

/// One change of an inbox, as it is stored and told.
#[derive(Clone)]
pub(super) struct Changed {
    pub(super) token: Token,
    pub(super) rev: Rev,
    pub(super) change: Change,
    origin: Option<SessionId>,
}

impl Changed {
    /// Takes the next rev of an inbox, whose unread rows become `unread` more.
    pub(super) fn make(
        token: Token,
        head: &mut Head,
        unread: i64,
        kind: ChangeKind,
        origin: Option<SessionId>,
    ) -> Self {
        head.rev += 1;
        head.unread += unread;
        Self { token, rev: head.rev, change: Change { kind, unread: head.unread }, origin }
    }

    pub(super) fn event(&self, at: DateTime<Utc>) -> (Token, Event) {
        let Self { token, rev, change, origin } = self.clone();
        (token, Event::Changed { rev, change, at, origin })
    }
}

fn count(ids: &[Uuid]) -> i64 {
    i64::try_from(ids.len()).unwrap_or(i64::MAX)
}

/// Raises the heads of the inboxes in which rows became read or unread. Each takes one rev for the ids that were read,
/// one for the mark, and one for the ids that were not.
pub(super) fn changes(
    reads: &Selected<'_>,
    unreads: &Selected<'_>,
    turned: &Turned,
    heads: &mut HashMap<String, Head>,
) -> Vec<Changed> {
    let mut changes = Vec::new();
    for (token, head) in heads.iter_mut() {
        let name = Token::stored(token);
        let mut change = |unread: i64, kind: ChangeKind, by: &Selected<'_>| {
            let origin = by.origins.get(token.as_str()).copied().flatten();
            changes.push(Changed::make(name.clone(), head, unread, kind, origin));
        };
        if let Some(ids) = turned.read_by_id.get(token) {
            change(-count(ids), ChangeKind::Read(ids.clone()), reads);
        }
        if let Some((rows, reached)) = turned.read_by_mark.get(token) {
            change(-rows, ChangeKind::ReadUpTo(*reached), reads);
        }
        if let Some(ids) = turned.unread_by_id.get(token) {
            change(count(ids), ChangeKind::Unread(ids.clone()), unreads);
        }
    }
    changes
}

/// Raises the heads of inboxes whose rows go: for each token the rows that were to be seen, and how many of them were
/// unread.
pub(super) fn departures(
    gone: &BTreeMap<String, (Vec<Uuid>, i64)>,
    kind: fn(Vec<Uuid>) -> ChangeKind,
    heads: &mut HashMap<String, Head>,
) -> Vec<Changed> {
    let visible = gone.iter().filter(|(_, (ids, _))| !ids.is_empty());
    let changed = visible.filter_map(|(token, (ids, unread))| {
        let head = heads.get_mut(token)?;
        Some(Changed::make(Token::stored(token), head, -unread, kind(ids.clone()), None))
    });
    changed.collect()
}

/// For each receipt of a batch what its sender is told: after a read or unread the inbox's head.
pub(super) fn told(receipts: &[Receipt], heads: &HashMap<String, Head>) -> Vec<Option<Head>> {
    let head = |receipt: &Receipt| match receipt.kind {
        ReceiptKind::Ack => None,
        ReceiptKind::Read | ReceiptKind::Unread => Some(heads.get(receipt.token.as_str()).copied().unwrap_or_default()),
    };
    receipts.iter().map(head).collect()
}

/// Stands in place of the `data` of a row whose push has it stored once, in `notification_payload`. The space tells it from what a push
/// says, which has none at its end.
pub(super) const SHARED: &str = "null ";

/// What is left of the receipts that did not come to the end of their rows.
pub(super) fn unfinished(receipts: &[Receipt], acked: &Progress, read: &Progress) -> Vec<(usize, Receipt)> {
    let left = |receipt: &Receipt| {
        let progress = match receipt.kind {
            ReceiptKind::Ack => acked,
            ReceiptKind::Read => read,
            ReceiptKind::Unread => return None,
        };
        let Reached { reached, top, life } = *progress.get(receipt.token.as_str())?;
        let (token, upto) = (receipt.token.clone(), receipt.upto().min(top));
        let (kind, origin, selection) = (receipt.kind, receipt.origin, Selection::UpTo(upto));
        (upto > reached).then_some(Receipt { token, kind, selection, after: reached, origin, life: Some(life) })
    };
    receipts.iter().enumerate().filter_map(|(at, receipt)| Some((at, left(receipt)?))).collect()
}

/// A push with its id and the time of the commit.
pub(super) struct Fresh<'p> {
    pub(super) push: &'p KeyedPush,
    pub(super) content: Arc<Content>,
}

impl<'p> Fresh<'p> {
    pub(super) fn new(push: &'p KeyedPush, id: Uuid, now: DateTime<Utc>) -> Self {
        let content = Content {
            id,
            entity_type: push.push.entity_type.clone(),
            data: push.push.data.clone().into_raw(),
            created_at: now,
        };
        Self { push, content: Arc::new(content) }
    }

    /// What the rows of the push have as their `data`.
    pub(super) fn row_data(&self) -> &str {
        if self.push.push.data.is_shared() { SHARED } else { self.content.data.get() }
    }

    pub(super) fn is_for_later(&self, now: DateTime<Utc>) -> bool {
        self.push.push.options.deliver_at.is_some_and(|at| at > now)
    }
}

/// The payloads that are stored apart from their rows, with the ids of their pushes.
pub(super) fn shared<'p>(pushes: &'p [Fresh<'_>]) -> Vec<(Uuid, &'p str)> {
    let shared = pushes.iter().filter(|fresh| fresh.push.push.data.is_shared());
    shared.map(|fresh| (fresh.content.id, fresh.content.data.get())).collect()
}

/// How many rows each inbox gets.
#[cfg_attr(not(feature = "sqlite"), expect(dead_code, reason = "Postgres counts on its own"))]
pub(super) fn added<'p>(pushes: &[Fresh<'p>]) -> BTreeMap<&'p Token, i64> {
    let mut added = BTreeMap::new();
    for token in pushes.iter().flat_map(|fresh| &fresh.push.push.tokens) {
        *added.entry(token).or_default() += 1;
    }
    added
}

/// The next rev of the inbox that it is asked for, from those before on; an inbox that is not there starts at 1.
#[cfg_attr(not(feature = "sqlite"), expect(dead_code, reason = "Postgres says what it made of each inbox"))]
pub(super) fn next_rev(mut revs: HashMap<String, Rev>) -> impl FnMut(&Token) -> Rev {
    move |token| match revs.get_mut(token.as_str()) {
        Some(rev) => {
            *rev += 1;
            *rev
        }
        None => {
            revs.insert(token.as_str().to_owned(), 1);
            1
        }
    }
}

/// Gives every row its seq, asking for one after the other.
pub(super) fn number(
    pushes: &[Fresh<'_>],
    mut seq_of: impl FnMut(&Token) -> Rev,
    events: &mut Vec<(Token, Event)>,
) -> Vec<Pushed> {
    let mut stored = Vec::with_capacity(pushes.len());
    for Fresh { push, content } in pushes {
        let mut results = Vec::with_capacity(push.push.tokens.len());
        for token in &push.push.tokens {
            let seq = seq_of(token);
            results.push(Placed { token: token.clone(), seq: Some(seq), grouped_into: None });
            let notification = Notification { seq, content: Arc::clone(content), read: false, group: None };
            events.push((token.clone(), Event::New(notification)));
        }
        stored.push(Pushed { id: content.id, results });
    }
    stored
}

/// The answer to a push as it is kept for its key: without the tokens, which a retry brings along, so that nothing of a
/// user stays behind here.
#[derive(Serialize, Deserialize)]
struct KeptAnswer {
    id: Uuid,
    seqs: Vec<Option<Rev>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    grouped_into: Vec<(usize, Uuid)>,
}

/// What is kept of an answer.
pub(super) fn kept(pushed: &Pushed) -> String {
    let seqs = pushed.results.iter().map(|placed| placed.seq).collect();
    let grouped = pushed.results.iter().enumerate().filter_map(|(at, placed)| Some((at, placed.grouped_into?)));
    super::json(&KeptAnswer { id: pushed.id, seqs, grouped_into: grouped.collect() })
}

/// What an earlier push with the same key was answered, if the body is the same.
pub(super) fn earlier(push: &KeyedPush, body_sha256: &str, answer: &str) -> Result<PushOutcome, serde_json::Error> {
    if push.key.as_ref().is_none_or(|key| key.body_sha256 != body_sha256) {
        return Ok(PushOutcome::KeyMismatch);
    }
    let KeptAnswer { id, seqs, grouped_into } = serde_json::from_str(answer)?;
    let tokens = push.push.tokens.iter().cloned();
    let mut results: Vec<_> = tokens.zip(seqs).map(|(token, seq)| Placed { token, seq, grouped_into: None }).collect();
    for (at, id) in grouped_into {
        if let Some(placed) = results.get_mut(at) {
            placed.grouped_into = Some(id);
        }
    }
    Ok(PushOutcome::Pushed(Pushed { id, results }))
}

/// The pushes without those that were answered before.
pub(super) fn fresh<'p>(
    pushes: &'p [KeyedPush],
    earlier: &HashMap<KeyName, PushOutcome>,
    now: DateTime<Utc>,
) -> Vec<Fresh<'p>> {
    let known = |push: &KeyedPush| push.key.as_ref().is_some_and(|key| earlier.contains_key(&key.name()));
    pushes.iter().filter(|push| !known(push)).map(|push| Fresh::new(push, Uuid::now_v7(), now)).collect()
}

/// One outcome a push, in the batch's order: the earlier ones where they are, else the next of the fresh ones.
pub(super) fn outcomes(
    pushes: &[KeyedPush],
    earlier: &HashMap<KeyName, PushOutcome>,
    fresh: Vec<Pushed>,
) -> Vec<PushOutcome> {
    let mut fresh = fresh.into_iter();
    let outcome = |push: &KeyedPush| match push.key.as_ref().and_then(|key| earlier.get(&key.name())) {
        Some(outcome) => outcome.clone(),
        None => PushOutcome::Pushed(fresh.next().expect("every other push is a fresh one")),
    };
    pushes.iter().map(outcome).collect()
}

/// The keyed pushes of a batch by the names of their keys.
pub(super) fn keyed(pushes: &[KeyedPush]) -> HashMap<KeyName, (&IdempotencyKey, &KeyedPush)> {
    pushes.iter().filter_map(|push| push.key.as_ref().map(|key| (key.name(), (key, push)))).collect()
}
