//! What is still to be told to the other nodes: the newest rev of each inbox, so a slow bus has less to carry, not more.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::metrics;
use crate::notification::{Content, Event, Rev, Token};

/// Inboxes that may wait to be told; at most about 400 bytes each. Beyond it the other nodes are told of a gap instead.
const CAPACITY: usize = 100_000;

/// Messages that are not stored and may wait; at most the limit of `data` each. Beyond it they are dropped and counted.
const PASSING: usize = 1_000;

/// How long the bus's server may take for anything.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Default)]
pub(super) struct Outbox {
    pending: Mutex<News>,
    changed: Notify,
}

/// What the other nodes should hear.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    pub(super) revs: HashMap<Token, Rev>,
    /// Messages that are not stored, as JSON.
    pub(super) passing: Vec<(Token, Arc<str>)>,
    /// Inboxes whose sessions are to be ended.
    pub(super) cut: HashSet<Token>,
    /// Whether some could not be kept.
    pub(super) gap: bool,
}

impl Outbox {
    pub(super) fn put(&self, events: &[(Token, Event)]) {
        let (mut pending, mut dropped) = (self.pending(), 0);
        for (token, event) in events {
            if let Some(rev) = pending.revs.get_mut(token) {
                *rev = event.rev().max(*rev);
            } else if pending.revs.len() < CAPACITY {
                pending.revs.insert(token.clone(), event.rev());
            } else {
                pending.gap = true;
                dropped += 1;
            }
        }
        drop(pending);
        if dropped > 0 {
            metrics::hints_dropped(dropped);
        }
        self.changed.notify_one();
    }

    /// Takes a message that is not stored. The JSON is shared by its tokens.
    pub(super) fn pass(&self, tokens: &[Token], content: &Content) {
        let json: Arc<str> = serde_json::to_string(content).expect("texts and stored JSON always serialise").into();
        let mut pending = self.pending();
        let room = PASSING.saturating_sub(pending.passing.len()).min(tokens.len());
        pending.passing.extend(tokens[..room].iter().map(|token| (token.clone(), Arc::clone(&json))));
        drop(pending);
        if room < tokens.len() {
            metrics::hints_dropped((tokens.len() - room) as u64);
        }
        self.changed.notify_one();
    }

    /// Takes an inbox whose sessions are to be ended.
    pub(super) fn cut(&self, token: &Token) {
        let mut pending = self.pending();
        if pending.cut.len() < CAPACITY {
            pending.cut.insert(token.clone());
        } else {
            metrics::hints_dropped(1);
        }
        drop(pending);
        self.changed.notify_one();
    }

    /// What came since the last call, as soon as there is something.
    pub(super) async fn take(&self) -> News {
        loop {
            let news = std::mem::take(&mut *self.pending());
            if news != News::default() {
                return news;
            }
            self.changed.notified().await;
        }
    }

    /// What was taken was lost on its way. Of what no sweep makes up for, ends of sessions are tried again; `passing`
    /// messages may have come by themselves.
    pub(super) fn lost(&self, cut: HashSet<Token>, passing: usize) {
        metrics::hints_dropped(passing as u64);
        let mut pending = self.pending();
        pending.gap = true;
        pending.cut.extend(cut);
    }

    fn pending(&self) -> MutexGuard<'_, News> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notification::{Change, ChangeKind};

    fn moved(token: &str, rev: Rev) -> (Token, Event) {
        let change = Change { kind: ChangeKind::ReadUpTo(1), unread: 0 };
        (Token::stored(token), Event::Changed { rev, change, at: chrono::Utc::now(), origin: None })
    }

    #[tokio::test]
    async fn each_inbox_is_told_once_with_its_newest_rev() {
        let outbox = Outbox::default();
        outbox.put(&[moved("1", 1), moved("2", 7)]);
        outbox.put(&[moved("1", 3), moved("1", 2)]);
        let news = outbox.take().await;
        assert_eq!(news.revs, HashMap::from([(Token::stored("1"), 3), (Token::stored("2"), 7)]));
        assert!(!news.gap);
    }

    #[tokio::test]
    async fn what_does_not_fit_and_what_was_lost_is_a_gap() {
        let outbox = Outbox::default();
        let many: Vec<_> = (0..=CAPACITY).map(|n| moved(&n.to_string(), 1)).collect();
        outbox.put(&many);
        let news = outbox.take().await;
        assert_eq!((news.revs.len(), news.gap), (CAPACITY, true));
        outbox.lost(HashSet::new(), 0);
        outbox.put(&[]);
        assert_eq!(outbox.take().await, News { gap: true, ..News::default() });
    }
}
