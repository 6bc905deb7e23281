//! The part of a commit that is the same whatever database runs it: which rows its receipts select, which revs its reads
//! take, and which its pushes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{IdempotencyKey, KeyName, KeyedPush, PushOutcome, Receipt};
use crate::notification::{
    Change, ChangeKind, Content, Event, Head, Notification, Pushed, ReceiptKind, Rev, Selection, SessionId, Token,
};

/// A transaction with keyed pushes also deletes up to this many expired keys, so they never pile up.
pub(super) const EXPIRED_KEYS_PER_COMMIT: i64 = 256;

/// The rows that the receipts of one kind in a batch select.
pub(super) struct Selected<'r> {
    pub(super) ids: HashSet<(&'r str, Uuid)>,
    pub(super) upto: BTreeMap<&'r str, Rev>,
    /// Every token of these receipts, with the session that sent them if it was one alone.
    origins: BTreeMap<&'r str, Option<SessionId>>,
}

impl<'r> Selected<'r> {
    pub(super) fn of(receipts: &'r [Receipt], kind: ReceiptKind) -> Self {
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

    pub(super) fn is_empty(&self) -> bool {
        self.origins.is_empty()
    }

    pub(super) fn tokens(&self) -> BTreeSet<&'r str> {
        self.origins.keys().copied().collect()
    }
}

/// Which rows became read: by their ids, and how many by the marks.
#[derive(Default)]
pub(super) struct NewlyRead {
    pub(super) by_id: HashMap<String, Vec<Uuid>>,
    pub(super) by_mark: HashMap<String, i64>,
}

/// One change of an inbox, as it is stored and told.
pub(super) struct Changed {
    pub(super) token: Token,
    pub(super) rev: Rev,
    pub(super) change: Change,
    origin: Option<SessionId>,
}

impl Changed {
    pub(super) fn event(self, at: DateTime<Utc>) -> (Token, Event) {
        let Self { token, rev, change, origin } = self;
        (token, Event::Changed { rev, change, at, origin })
    }
}

/// Raises the heads of the inboxes in which rows became read. Each takes one rev for the ids and one for the mark.
pub(super) fn changes(reads: &Selected<'_>, newly: &NewlyRead, heads: &mut HashMap<String, Head>) -> Vec<Changed> {
    let mut changes = Vec::new();
    for (token, head) in heads.iter_mut() {
        let (token, top) = (token.as_str(), head.rev);
        let mut change = |head: &mut Head, rows: i64, kind: ChangeKind| {
            head.unread -= rows;
            head.rev += 1;
            let change = Change { kind, unread: head.unread };
            let origin = reads.origins.get(token).copied().flatten();
            changes.push(Changed { token: Token::stored(token), rev: head.rev, change, origin });
        };
        if let Some(ids) = newly.by_id.get(token) {
            change(head, i64::try_from(ids.len()).unwrap_or(i64::MAX), ChangeKind::Read(ids.clone()));
        }
        if let Some(rows) = newly.by_mark.get(token) {
            change(head, *rows, ChangeKind::ReadUpTo(top.min(reads.upto[token])));
        }
    }
    changes
}

/// For each receipt of a batch what its sender is told: after a read the inbox's head.
pub(super) fn told(receipts: &[Receipt], heads: &HashMap<String, Head>) -> Vec<Option<Head>> {
    let head = |receipt: &Receipt| match receipt.kind {
        ReceiptKind::Ack => None,
        ReceiptKind::Read => Some(heads.get(receipt.token.as_str()).copied().unwrap_or_default()),
    };
    receipts.iter().map(head).collect()
}

/// A push with its id and the time of the commit.
pub(super) struct Fresh<'p> {
    pub(super) push: &'p KeyedPush,
    pub(super) content: Arc<Content>,
}

impl<'p> Fresh<'p> {
    pub(super) fn new(push: &'p KeyedPush, now: DateTime<Utc>) -> Self {
        let content = Content {
            id: Uuid::now_v7(),
            entity_type: push.push.entity_type.clone(),
            data: push.push.data.clone().into_raw(),
            created_at: now,
        };
        Self { push, content: Arc::new(content) }
    }
}

/// How many rows each inbox gets.
pub(super) fn added<'p>(pushes: &[Fresh<'p>]) -> BTreeMap<&'p Token, i64> {
    let mut added = BTreeMap::new();
    for token in pushes.iter().flat_map(|fresh| &fresh.push.push.tokens) {
        *added.entry(token).or_default() += 1;
    }
    added
}

/// Gives every row the next rev of its inbox, from the rev before on; an inbox that is not there starts at 1.
pub(super) fn number(
    pushes: &[Fresh<'_>],
    mut revs: HashMap<String, Rev>,
    events: &mut Vec<(Token, Event)>,
) -> Vec<Pushed> {
    let mut stored = Vec::with_capacity(pushes.len());
    for Fresh { push, content } in pushes {
        let mut results = Vec::with_capacity(push.push.tokens.len());
        for token in &push.push.tokens {
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
            let notification = Notification { seq, content: Arc::clone(content), read: false };
            events.push((token.clone(), Event::New(notification)));
        }
        stored.push(Pushed { id: content.id, results });
    }
    stored
}

/// What an earlier push with the same key was answered, if the body is the same.
pub(super) fn earlier(key: &IdempotencyKey, body_sha256: &str, pushed: Pushed) -> PushOutcome {
    if key.body_sha256 == body_sha256 { PushOutcome::Pushed(pushed) } else { PushOutcome::KeyMismatch }
}

/// The pushes without those that were answered before.
pub(super) fn fresh<'p>(
    pushes: &'p [KeyedPush],
    earlier: &HashMap<KeyName, PushOutcome>,
    now: DateTime<Utc>,
) -> Vec<Fresh<'p>> {
    let known = |push: &KeyedPush| push.key.as_ref().is_some_and(|key| earlier.contains_key(&key.name()));
    pushes.iter().filter(|push| !known(push)).map(|push| Fresh::new(push, now)).collect()
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

/// The keys of a batch by their names.
pub(super) fn keys(pushes: &[KeyedPush]) -> HashMap<KeyName, &IdempotencyKey> {
    pushes.iter().filter_map(|push| push.key.as_ref()).map(|key| (key.name(), key)).collect()
}
