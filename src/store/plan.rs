//! What the pushes of a batch become where it depends on what is already there: rows that replace unread ones, rows that
//! become part of a group, rows for later. Pure: it reads what a transaction found out and says what that is to write.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::KeyedPush;
use super::commit::{Changed, Fresh};
use crate::notification::{
    ChangeKind, Event, Group, Head, Notification, Options, Placed, Pushed, Regrouped, Rev, Token,
};

/// What a key is for. The names stand in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    /// The row is replaced by the next one.
    Collapse,
    /// The next ones become part of the row.
    Group,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Collapse => "collapse",
            Self::Group => "group",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        [Self::Collapse, Self::Group].into_iter().find(|kind| kind.name() == name)
    }
}

/// A key of an inbox: token, kind and text.
pub(super) type Slot = (String, Kind, String);

/// The unread row that has a slot.
#[derive(Debug, Clone)]
pub(super) struct OpenRow {
    pub(super) seq: Rev,
    pub(super) id: Uuid,
    /// If the slot is a group's.
    pub(super) group: Option<Arc<Group>>,
    pub(super) expires_at: Option<DateTime<Utc>>,
}

/// What was there before the pushes.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Of the inboxes that exist.
    pub(super) heads: HashMap<String, Head>,
    pub(super) open: HashMap<Slot, OpenRow>,
    /// Those of the pushes' actors that act in an open row already: token, seq, actor.
    pub(super) actors: HashSet<(String, Rev, String)>,
}

/// What to write.
#[derive(Default)]
pub(super) struct Plan {
    /// One a push.
    pub(super) stored: Vec<Pushed>,
    pub(super) rows: Vec<NewRow>,
    /// The pushes that are for later, by their place in the batch.
    pub(super) scheduled: Vec<usize>,
    pub(super) changes: Vec<Changed>,
    /// Rows of earlier transactions that are taken back.
    pub(super) replaced: Vec<(Token, Rev)>,
    /// Rows of earlier transactions whose group or expiry is another now.
    pub(super) regrouped: HashMap<(Token, Rev), Joined>,
    pub(super) slots: HashMap<Slot, Rev>,
    /// When somebody last acted in a group's row.
    pub(super) actors: HashMap<(Token, Rev, String), Rev>,
    /// The inboxes afterwards, of those that changed.
    pub(super) heads: HashMap<Token, Head>,
    /// What live sessions must hear, in `rev` order per token.
    pub(super) events: Vec<(Token, Event)>,
}

/// A row that stands for one more push.
#[derive(Clone)]
pub(super) struct Joined {
    pub(super) group: Arc<Group>,
    pub(super) expires_at: Option<DateTime<Utc>>,
}

/// A row to insert.
pub(super) struct NewRow {
    pub(super) token: Token,
    pub(super) seq: Rev,
    /// The place of its push in the batch.
    pub(super) push: usize,
    /// It was replaced by a later push of the same batch.
    pub(super) retracted: bool,
    pub(super) group: Option<Arc<Group>>,
    pub(super) expires_at: Option<DateTime<Utc>>,
}

/// Whether what becomes of the push depends on what is there.
pub(super) fn depends(push: &KeyedPush) -> bool {
    let Options { collapse_key, group, deliver_at, ttl_secs: _ } = &push.push.options;
    collapse_key.is_some() || group.is_some() || deliver_at.is_some()
}

/// The key of a push that takes part in the present, with its kind.
fn key_of(options: &Options) -> Option<(Kind, &str)> {
    let group = options.group.as_ref().map(|group| (Kind::Group, group.key.as_str()));
    group.or_else(|| options.collapse_key.as_deref().map(|key| (Kind::Collapse, key)))
}

/// The slots that have to be looked up.
pub(super) fn slots(pushes: &[Fresh<'_>], now: DateTime<Utc>) -> BTreeSet<Slot> {
    let present = pushes.iter().filter(|fresh| !fresh.is_for_later(now));
    present
        .filter_map(|fresh| Some((&fresh.push.push, key_of(&fresh.push.push.options)?)))
        .flat_map(|(push, (kind, key))| {
            push.tokens.iter().map(move |token| (token.as_str().to_owned(), kind, key.to_owned()))
        })
        .collect()
}

/// The actors that have to be looked up: token, seq of the open row, actor.
pub(super) fn actors(pushes: &[Fresh<'_>], open: &HashMap<Slot, OpenRow>) -> BTreeSet<(String, Rev, String)> {
    let mut actors = BTreeSet::new();
    for push in pushes.iter().map(|fresh| &fresh.push.push) {
        let Some(group) = &push.options.group else { continue };
        let Some(actor) = &group.actor else { continue };
        for token in &push.tokens {
            let slot = (token.as_str().to_owned(), Kind::Group, group.key.clone());
            if let Some(row) = open.get(&slot) {
                actors.insert((slot.0, row.seq, actor.clone()));
            }
        }
    }
    actors
}

impl Plan {
    /// The payloads that are stored apart from their rows, of pushes that have any.
    pub(super) fn payloads<'p>(&self, pushes: &'p [Fresh<'_>]) -> Vec<(Uuid, &'p str)> {
        let with_rows: HashSet<usize> =
            self.rows.iter().map(|row| row.push).chain(self.scheduled.iter().copied()).collect();
        let shared =
            pushes.iter().enumerate().filter(|(at, push)| push.push.push.data.is_shared() && with_rows.contains(at));
        shared.map(|(_, fresh)| (fresh.content.id, fresh.content.data.get())).collect()
    }

    /// Goes through the pushes in their order.
    pub(super) fn new(pushes: &[Fresh<'_>], found: Found, now: DateTime<Utc>) -> Self {
        let mut planner = Planner { plan: Self::default(), found, rows: HashMap::new() };
        for (number, fresh) in pushes.iter().enumerate() {
            let tokens = &fresh.push.push.tokens;
            let results = if fresh.is_for_later(now) {
                planner.plan.scheduled.push(number);
                tokens.iter().map(|token| Placed { token: token.clone(), seq: None, grouped_into: None }).collect()
            } else {
                tokens.iter().map(|token| planner.place(number, fresh, token, now)).collect()
            };
            planner.plan.stored.push(Pushed { id: fresh.content.id, results });
        }
        planner.plan
    }
}

struct Planner {
    plan: Plan,
    found: Found,
    /// Where the new rows are in the plan.
    rows: HashMap<(Token, Rev), usize>,
}

impl Planner {
    fn place(&mut self, number: usize, fresh: &Fresh<'_>, token: &Token, now: DateTime<Utc>) -> Placed {
        let options = &fresh.push.push.options;
        let slot = key_of(options).map(|(kind, key)| (token.as_str().to_owned(), kind, key.to_owned()));
        let actor = options.group.as_ref().and_then(|group| group.actor.as_deref());
        let expires_at = options.expires_at(now);
        if let Some(slot) = &slot
            && let Some(open) = self.found.open.get(slot).cloned()
        {
            if slot.1 == Kind::Group {
                return self.join(slot, open, token, actor, expires_at, now);
            }
            self.replace(&open, token, now);
        }
        let head = self.head(token);
        head.rev += 1;
        head.unread += 1;
        let seq = head.rev;
        let group = options.group.as_ref().map(|group| Arc::new(Group::first(&group.key, actor)));
        if let Some(slot) = slot {
            let row = OpenRow { seq, id: fresh.content.id, group: group.clone(), expires_at };
            self.found.open.insert(slot.clone(), row);
            self.plan.slots.insert(slot, seq);
        }
        if let Some(actor) = actor {
            self.acted(token, seq, actor, seq);
        }
        let notification = Notification { seq, content: Arc::clone(&fresh.content), read: false, group: group.clone() };
        self.plan.events.push((token.clone(), Event::New(notification)));
        self.rows.insert((token.clone(), seq), self.plan.rows.len());
        self.plan.rows.push(NewRow { token: token.clone(), seq, push: number, retracted: false, group, expires_at });
        Placed { token: token.clone(), seq: Some(seq), grouped_into: None }
    }

    /// Makes the push part of an open row. That lives as long as its longest-lived part.
    fn join(
        &mut self,
        slot: &Slot,
        open: OpenRow,
        token: &Token,
        actor: Option<&str>,
        expires_at: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) -> Placed {
        let OpenRow { seq, id, group: before, expires_at: expired_at } = open;
        let before = before.unwrap_or_else(|| Arc::new(Group { key: slot.2.clone(), count: 0, actors: Vec::new() }));
        let known = actor.is_some_and(|actor| self.found.actors.contains(&(slot.0.clone(), seq, actor.to_owned())));
        let group = Arc::new(before.joined(actor, known));
        let expires_at = expired_at.zip(expires_at).map(|(one, other)| one.max(other));
        if group != before {
            let regrouped = Regrouped { id, group: Group::clone(&group) };
            self.change(token, 0, ChangeKind::Group(Box::new(regrouped)), now);
        }
        if let Some(actor) = actor {
            let rev = self.head(token).rev;
            self.acted(token, seq, actor, rev);
        }
        let row = (token.clone(), seq);
        match self.rows.get(&row) {
            Some(&at) => (self.plan.rows[at].group, self.plan.rows[at].expires_at) = (Some(group.clone()), expires_at),
            None => drop(self.plan.regrouped.insert(row, Joined { group: Arc::clone(&group), expires_at })),
        }
        self.found.open.insert(slot.clone(), OpenRow { seq, id, group: Some(group), expires_at });
        Placed { token: token.clone(), seq: Some(seq), grouped_into: Some(id) }
    }

    /// Takes an unread row back because another comes in its place.
    fn replace(&mut self, open: &OpenRow, token: &Token, now: DateTime<Utc>) {
        self.change(token, -1, ChangeKind::Retracted(vec![open.id]), now);
        let row = (token.clone(), open.seq);
        match self.rows.get(&row) {
            Some(&at) => self.plan.rows[at].retracted = true,
            None => self.plan.replaced.push(row),
        }
    }

    fn acted(&mut self, token: &Token, seq: Rev, actor: &str, rev: Rev) {
        self.found.actors.insert((token.as_str().to_owned(), seq, actor.to_owned()));
        self.plan.actors.insert((token.clone(), seq, actor.to_owned()), rev);
    }

    fn change(&mut self, token: &Token, unread: i64, kind: ChangeKind, now: DateTime<Utc>) {
        let changed = Changed::make(token.clone(), self.head(token), unread, kind, None);
        self.plan.events.push(changed.event(now));
        self.plan.changes.push(changed);
    }

    fn head(&mut self, token: &Token) -> &mut Head {
        let before = &self.found.heads;
        let known = || before.get(token.as_str()).copied().unwrap_or_default();
        self.plan.heads.entry(token.clone()).or_insert_with(known)
    }
}
