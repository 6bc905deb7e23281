//! The oracle of every fault test: given what producers and readers saw and the table at the end, it names everything that
//! must not have happened.
//!
//! The history is a partial view (a killed server leaves outcomes unknown), so each rule only blames what no order of
//! events could excuse. It checks nothing itself while a test runs, and it must be able to fail: `oracle/doctored.rs` breaks
//! each rule once.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

use serde_json::Value;

use crate::table::{Row, Snapshot};

#[cfg(test)]
mod doctored;

/// A point in the one order of everything the test did and saw.
pub(crate) type Tick = u64;

/// What producers and readers saw.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    pub(crate) posts: Vec<Post>,
    pub(crate) sessions: Vec<Session>,
}

/// One attempt to push. Attempts with the same `data` are the same push, retried under one key; otherwise `data` is unique.
#[derive(Debug, Clone)]
pub(crate) struct Post {
    /// Posts of one producer follow each other.
    pub(crate) producer: u64,
    pub(crate) tokens: Vec<String>,
    pub(crate) entity_type: String,
    pub(crate) data: String,
    pub(crate) outcome: Outcome,
}

/// What became of an attempt.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    /// 200 with this id and these tokens and seqs.
    Ok { id: String, results: Vec<(String, i64)> },
    /// It certainly was not stored by this attempt.
    Failed,
    /// It may or may not have been.
    Unknown,
}

/// One socket from its login on.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) token: String,
    pub(crate) login_sent: Tick,
    /// The rev its login was answered with.
    pub(crate) head: Option<i64>,
    pub(crate) replay_completed: Option<Tick>,
    pub(crate) received: Vec<Received>,
    pub(crate) receipts: Vec<Receipt>,
    /// Each `unread` it was told, with the rev that came with it.
    pub(crate) counts: Vec<(i64, i64)>,
}

/// One notification as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) at: Tick,
    pub(crate) id: String,
    pub(crate) seq: i64,
    pub(crate) rev: i64,
    pub(crate) entity_type: String,
    pub(crate) data: String,
    pub(crate) created_at: String,
    pub(crate) replay: bool,
}

/// An `ack` or `read` as it was sent.
#[derive(Debug, Clone)]
pub(crate) struct Receipt {
    pub(crate) read: bool,
    pub(crate) rows: Rows,
    pub(crate) sent: Tick,
    /// When its callback said ok; none when nobody knows.
    pub(crate) confirmed: Option<Tick>,
}

/// Which rows of its token a receipt names.
#[derive(Debug, Clone)]
pub(crate) enum Rows {
    Ids(Vec<String>),
    UpTo(i64),
}

/// What can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Rule {
    /// Answered 200, but a row is missing or has another id.
    AcceptedNotStored,
    /// Answered as refused, yet stored.
    FailedButStored,
    /// A row that nobody posted, or for a token it was not posted to.
    NeverPosted,
    /// Two rows for one token from one push.
    StoredTwice,
    /// Rows for some of a push's tokens only.
    StoredInPart,
    /// A retry under the same key was answered differently.
    RetryDiffers,
    /// A row does not hold what was posted.
    StoredDifferently,
    /// Posts that followed each other have seqs that do not.
    ProducerOrder,
    /// The revs of an inbox are not 1..n, each once.
    RevNotGapless,
    /// `unread` is not the number of rows with `read_at` null.
    UnreadWrong,
    /// An undelivered row at or below `delivered_upto`.
    UndeliveredBelowMark,
    /// A row that is read and not delivered.
    ReadNotDelivered,
    /// `read_at` and the changes disagree about a row.
    ReadWithoutChange,
    /// `unread` told with a rev is not the number at that rev.
    CountWrong,
    /// A client got what is not in the table of its token.
    DeliveredNotStored,
    /// A client got other content than the row's.
    DeliveredDifferently,
    /// `rev` did not rise within a session.
    RevNotRising,
    /// One id twice in a session.
    DuplicateInSession,
    /// Replayed although its ack had been confirmed before the login.
    RedeliveredAfterAck,
    /// `replay` does not say whether the row is older than the login.
    ReplayFlagWrong,
    /// A session went past a row that it should have got.
    Skipped,
    /// A confirmed receipt is not in the table.
    ReceiptLost,
    /// A row counts as delivered though no client said so.
    DeliveredWithoutReceipt,
    /// A row counts as delivered though no client got it.
    DeliveredUnseen,
}

/// One broken rule, with where.
#[derive(Debug, Clone)]
pub(crate) struct Violation {
    pub(crate) rule: Rule,
    pub(crate) detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.detail)
    }
}

/// Checks and fails the test with every violation (the first fifty of them in full).
pub(crate) fn assert_sound(history: &History, table: &Snapshot) {
    let violations = check(history, table);
    if violations.is_empty() {
        return;
    }
    let mut counts = BTreeMap::new();
    for violation in &violations {
        *counts.entry(violation.rule).or_insert(0) += 1;
    }
    let shown: Vec<String> = violations.iter().take(50).map(ToString::to_string).collect();
    panic!("the oracle found {} violations {counts:?}:\n{}", violations.len(), shown.join("\n"));
}

/// Everything that must not have happened.
pub(crate) fn check(history: &History, table: &Snapshot) -> Vec<Violation> {
    let mut case = Case::new(history, table);
    case.posts_against_rows();
    case.producers_in_order();
    case.inboxes();
    for session in &history.sessions {
        case.session(session);
    }
    case.receipts();
    case.found
}

struct Case<'a> {
    history: &'a History,
    table: &'a Snapshot,
    row_at: HashMap<(&'a str, i64), &'a Row>,
    rows_of_token: HashMap<&'a str, Vec<&'a Row>>,
    /// Receipts by token and the id they name.
    receipts_by_id: HashMap<(&'a str, &'a str), Vec<&'a Receipt>>,
    /// Receipts by token that name a rev.
    receipts_up_to: HashMap<&'a str, Vec<&'a Receipt>>,
    /// `unread` at each rev of a token, index 0 being rev 0.
    unread_at: HashMap<&'a str, Vec<i64>>,
    found: Vec<Violation>,
}

impl<'a> Case<'a> {
    fn new(history: &'a History, table: &'a Snapshot) -> Self {
        let mut rows_of_token: HashMap<&str, Vec<&Row>> = HashMap::new();
        for row in &table.notifications {
            rows_of_token.entry(&row.token).or_default().push(row);
        }
        let mut receipts_by_id: HashMap<_, Vec<&Receipt>> = HashMap::new();
        let mut receipts_up_to: HashMap<_, Vec<&Receipt>> = HashMap::new();
        for session in &history.sessions {
            let token = session.token.as_str();
            for receipt in &session.receipts {
                match &receipt.rows {
                    Rows::Ids(ids) => {
                        for id in ids {
                            receipts_by_id.entry((token, id.as_str())).or_default().push(receipt);
                        }
                    }
                    Rows::UpTo(_) => receipts_up_to.entry(token).or_default().push(receipt),
                }
            }
        }
        let row_at = table.notifications.iter().map(|row| ((row.token.as_str(), row.seq), row)).collect();
        Self {
            history,
            table,
            row_at,
            rows_of_token,
            receipts_by_id,
            receipts_up_to,
            unread_at: HashMap::new(),
            found: Vec::new(),
        }
    }

    fn blame(&mut self, rule: Rule, detail: impl Into<String>) {
        self.found.push(Violation { rule, detail: detail.into() });
    }

    fn posts_against_rows(&mut self) {
        let mut pushes: BTreeMap<&str, Vec<&Post>> = BTreeMap::new();
        for post in &self.history.posts {
            pushes.entry(&post.data).or_default().push(post);
        }
        let mut rows_of_push: HashMap<&str, Vec<&Row>> = HashMap::new();
        for row in &self.table.notifications {
            rows_of_push.entry(&row.data).or_default().push(row);
            if !pushes.get(row.data.as_str()).is_some_and(|posts| posts[0].tokens.contains(&row.token)) {
                self.blame(Rule::NeverPosted, format!("{row:?}"));
            }
        }
        for (data, posts) in pushes {
            self.push(data, &posts, rows_of_push.get(data).map_or(&[], Vec::as_slice));
        }
    }

    fn push(&mut self, data: &str, posts: &[&Post], rows: &[&Row]) {
        let tokens: BTreeSet<&str> = posts[0].tokens.iter().map(String::as_str).collect();
        let stored: BTreeSet<&str> = rows.iter().map(|row| row.token.as_str()).collect();
        if stored.len() < rows.len() {
            self.blame(Rule::StoredTwice, format!("{data} has {} rows for {} tokens", rows.len(), stored.len()));
        }
        if !stored.is_empty() && stored != tokens {
            self.blame(Rule::StoredInPart, format!("{data} was posted to {tokens:?} and stands for {stored:?}"));
        }
        if !rows.is_empty() && posts.iter().all(|post| matches!(post.outcome, Outcome::Failed)) {
            self.blame(Rule::FailedButStored, format!("{data} stands for {stored:?}"));
        }
        let mut first: Option<(&str, &[(String, i64)])> = None;
        for post in posts {
            let Outcome::Ok { id, results } = &post.outcome else { continue };
            match first {
                None => first = Some((id, results)),
                Some(answer) if answer == (id.as_str(), results.as_slice()) => {}
                Some(answer) => {
                    self.blame(Rule::RetryDiffers, format!("{data} was answered {answer:?} and {id} {results:?}"));
                }
            }
            let answered: BTreeSet<&str> = results.iter().map(|(token, _)| token.as_str()).collect();
            if answered != tokens {
                self.blame(Rule::AcceptedNotStored, format!("{data} to {tokens:?} was accepted for {answered:?}"));
            }
            for (token, seq) in results {
                let row = self.row_at.get(&(token.as_str(), *seq)).copied();
                if !row.is_some_and(|row| row.id == *id && row.data == data) {
                    self.blame(Rule::AcceptedNotStored, format!("{data} as {id} at {token}:{seq}; there is {row:?}"));
                }
            }
        }
        for row in rows.iter().filter(|row| row.entity_type != posts[0].entity_type) {
            self.blame(Rule::StoredDifferently, format!("{row:?} was posted as {:?}", posts[0]));
        }
    }

    fn producers_in_order(&mut self) {
        let mut last: HashMap<(u64, &str), (i64, &str)> = HashMap::new();
        for post in &self.history.posts {
            let Outcome::Ok { results, .. } = &post.outcome else { continue };
            for (token, seq) in results {
                let before = last.insert((post.producer, token), (*seq, &post.data));
                if let Some((before, data)) = before.filter(|(before, data)| before >= seq && *data != post.data) {
                    let detail = format!("{token}: {data} is {before}, {} after it is {seq}", post.data);
                    self.blame(Rule::ProducerOrder, detail);
                }
            }
        }
    }

    fn inboxes(&mut self) {
        let mut changes_of_token: HashMap<&str, Vec<(i64, Value)>> = HashMap::new();
        for change in &self.table.changes {
            let value = serde_json::from_str(&change.change).unwrap_or(Value::Null);
            changes_of_token.entry(&change.token).or_default().push((change.rev, value));
        }
        let known: HashSet<&str> = self.table.inboxes.iter().map(|inbox| inbox.token.as_str()).collect();
        let orphans: BTreeSet<&str> = self
            .rows_of_token
            .keys()
            .chain(changes_of_token.keys())
            .filter(|token| !known.contains(**token))
            .copied()
            .collect();
        if !orphans.is_empty() {
            self.blame(Rule::RevNotGapless, format!("rows without an inbox: {orphans:?}"));
        }
        for inbox in &self.table.inboxes {
            let token = inbox.token.as_str();
            let rows = self.rows_of_token.remove(token).unwrap_or_default();
            let changes = changes_of_token.remove(token).unwrap_or_default();
            let mut revs: Vec<i64> =
                rows.iter().map(|row| row.seq).chain(changes.iter().map(|(rev, _)| *rev)).collect();
            revs.sort_unstable();
            if !revs.iter().copied().eq(1..=inbox.rev) {
                let wrong = revs.iter().zip(1..).find(|(rev, n)| **rev != *n);
                let detail = format!("{token}: head {}, {} revs, first wrong {wrong:?}", inbox.rev, revs.len());
                self.blame(Rule::RevNotGapless, detail);
            }
            let unread = rows.iter().filter(|row| row.read_at.is_none()).count();
            if i64::try_from(unread) != Ok(inbox.unread) {
                self.blame(Rule::UnreadWrong, format!("{token}: {} is kept, {unread} are unread", inbox.unread));
            }
            for row in &rows {
                if row.delivered_at.is_none() && row.seq <= inbox.delivered_upto {
                    self.blame(Rule::UndeliveredBelowMark, format!("{row:?} with {inbox:?}"));
                }
                if row.delivered_at.is_none() && row.read_at.is_some() {
                    self.blame(Rule::ReadNotDelivered, format!("{row:?}"));
                }
            }
            let unread_at = self.walk(token, inbox.rev, &rows, &changes);
            self.unread_at.insert(token, unread_at);
            self.rows_of_token.insert(token, rows);
        }
    }

    /// Goes through an inbox rev by rev and recounts.
    fn walk(&mut self, token: &str, head: i64, rows: &[&Row], changes: &[(i64, Value)]) -> Vec<i64> {
        let rows_by_seq: BTreeMap<i64, &Row> = rows.iter().map(|row| (row.seq, *row)).collect();
        let changes: HashMap<i64, &Value> = changes.iter().map(|(rev, change)| (*rev, change)).collect();
        let (mut unread, mut counts): (BTreeMap<i64, &Row>, Vec<i64>) = (BTreeMap::new(), vec![0]);
        for rev in 1..=head {
            if let Some(row) = rows_by_seq.get(&rev) {
                unread.insert(rev, row);
            } else if let Some(change) = changes.get(&rev) {
                if let Some(up_to) = change["readUpTo"].as_i64() {
                    unread = unread.split_off(&(up_to + 1));
                } else if let Some(ids) = change["read"].as_array() {
                    unread.retain(|_, row| !ids.iter().any(|id| id.as_str() == Some(&row.id)));
                }
                let told = change["unread"].as_i64();
                if told.is_some_and(|told| usize::try_from(told) != Ok(unread.len())) {
                    let detail = format!("{token}: the change at {rev} says {told:?}, {} are unread", unread.len());
                    self.blame(Rule::CountWrong, detail);
                }
            }
            counts.push(i64::try_from(unread.len()).unwrap_or(i64::MAX));
        }
        for row in rows.iter().filter(|row| row.read_at.is_none() != unread.contains_key(&row.seq)) {
            self.blame(Rule::ReadWithoutChange, format!("{row:?}"));
        }
        counts
    }

    fn session(&mut self, session: &Session) {
        let (mut top, mut seen) = (0, HashSet::new());
        for got in &session.received {
            let place = format!("{} at tick {}: {got:?}", session.token, got.at);
            if got.rev <= top {
                self.blame(Rule::RevNotRising, format!("{place} after rev {top}"));
            }
            top = top.max(got.rev);
            if !seen.insert(got.id.as_str()) {
                self.blame(Rule::DuplicateInSession, place.clone());
            }
            if session.head.is_some_and(|head| got.replay != (got.seq <= head)) {
                self.blame(Rule::ReplayFlagWrong, format!("{place} with login at {:?}", session.head));
            }
            let Some(row) = self.row_at.get(&(session.token.as_str(), got.seq)).copied() else {
                self.blame(Rule::DeliveredNotStored, place);
                continue;
            };
            if row.id != got.id {
                self.blame(Rule::DeliveredNotStored, format!("{place}; the row is {row:?}"));
            } else if (&row.data, &row.entity_type, &row.created_at, row.seq)
                != (&got.data, &got.entity_type, &got.created_at, got.rev)
            {
                self.blame(Rule::DeliveredDifferently, format!("{place}; the row is {row:?}"));
            }
            let acked = self
                .receipts_naming(row)
                .into_iter()
                .find(|receipt| receipt.confirmed.is_some_and(|confirmed| confirmed < session.login_sent));
            if got.replay
                && let Some(receipt) = acked
            {
                let detail = format!("{place}; login at {}, {receipt:?}", session.login_sent);
                self.blame(Rule::RedeliveredAfterAck, detail);
            }
        }
        for &(rev, unread) in &session.counts {
            let counted = match (rev, self.unread_at.get(session.token.as_str())) {
                (0, None) => Some(0),
                (_, counts) => usize::try_from(rev).ok().and_then(|rev| counts?.get(rev).copied()),
            };
            if counted != Some(unread) {
                let detail = format!("{}: {unread} was told at rev {rev}, there were {counted:?}", session.token);
                self.blame(Rule::CountWrong, detail);
            }
        }
        self.skipped(session, top, &seen);
    }

    /// Rows that a session went past: live ones it must have got, older ones unless somebody acked them before.
    fn skipped(&mut self, session: &Session, top: i64, seen: &HashSet<&str>) {
        let Some(head) = session.head else { return };
        let missed: Vec<&Row> = self
            .rows_of_token
            .get(session.token.as_str())
            .map_or(&[][..], Vec::as_slice)
            .iter()
            .filter(|row| {
                !seen.contains(row.id.as_str())
                    && (row.seq <= top || (row.seq <= head && session.replay_completed.is_some()))
            })
            .copied()
            .collect();
        for row in missed {
            let passed = session.received.iter().find(|got| got.rev > row.seq).map(|got| got.at);
            let passed = [passed, session.replay_completed].into_iter().flatten().min().unwrap_or(Tick::MAX);
            let excused = row.seq <= head && self.receipts_naming(row).iter().any(|receipt| receipt.sent < passed);
            if !excused {
                let detail = format!("{row:?} by the login at tick {} with head {head}", session.login_sent);
                self.blame(Rule::Skipped, detail);
            }
        }
    }

    fn receipts(&mut self) {
        let mut received: HashMap<&str, HashSet<&str>> = HashMap::new();
        for session in &self.history.sessions {
            received.entry(&session.token).or_default().extend(session.received.iter().map(|got| got.id.as_str()));
        }
        for row in &self.table.notifications {
            let place = |receipts: &[&Receipt]| format!("{row:?}; receipts {receipts:?}");
            let naming = self.receipts_naming(row);
            let lost = naming
                .iter()
                .filter(|receipt| receipt.confirmed.is_some())
                .any(|receipt| row.delivered_at.is_none() || (receipt.read && row.read_at.is_none()));
            if lost {
                self.blame(Rule::ReceiptLost, place(&naming));
            }
            let delivered_without = row.delivered_at.is_some() && naming.is_empty();
            if delivered_without || (row.read_at.is_some() && !naming.iter().any(|receipt| receipt.read)) {
                self.blame(Rule::DeliveredWithoutReceipt, place(&naming));
            }
            let seen = received.get(row.token.as_str()).is_some_and(|ids| ids.contains(row.id.as_str()));
            if row.delivered_at.is_some() && !seen {
                self.blame(Rule::DeliveredUnseen, place(&naming));
            }
        }
    }

    /// The receipts of a token that name a row. One that names a rev was sent by a client that had seen that rev, so what it
    /// covers was there already.
    fn receipts_naming(&self, row: &Row) -> Vec<&'a Receipt> {
        let by_id = self.receipts_by_id.get(&(row.token.as_str(), row.id.as_str())).map_or(&[][..], Vec::as_slice);
        let up_to = self.receipts_up_to.get(row.token.as_str()).map_or(&[][..], Vec::as_slice);
        let covering = up_to.iter().filter(|receipt| matches!(receipt.rows, Rows::UpTo(rev) if row.seq <= rev));
        by_id.iter().chain(covering).copied().collect()
    }
}
