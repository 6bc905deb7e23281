//! Acks that nobody waits for, and watermarks to be moved, until the next transaction takes them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use uuid::Uuid;

use super::Batch;
use crate::notification::{Rev, Token};

/// Acks that may wait, at 32 bytes each. More come as jobs, and so wait for room in the queue.
const MAX_ACKS: usize = 100_000;

/// Acks that one transaction takes: as many as hold up the pushes behind it for some 20 ms.
pub(super) const ACKS_PER_COMMIT: usize = 4_096;

/// Watermarks that may wait. One more is left to the next login of its inbox.
const MAX_ADVANCES: usize = 10_000;

/// Watermarks that one transaction moves. With what each may move over they hold up the pushes behind it for 60 ms at most.
const ADVANCES_PER_COMMIT: usize = 32;

/// One watermark moves over so many revs at a time.
pub(super) const ADVANCE_REVS: Rev = 2_000;

/// What waits.
#[derive(Default)]
pub(super) struct PendingAcks {
    state: Mutex<State>,
    /// Something waits that did not before.
    added: Notify,
}

#[derive(Default)]
struct State {
    acks: VecDeque<(Token, Uuid)>,
    advances: HashMap<Token, Rev>,
}

impl State {
    fn is_empty(&self) -> bool {
        self.acks.is_empty() && self.advances.is_empty()
    }
}

impl PendingAcks {
    /// Adds acks of one inbox, unless too many wait.
    pub(super) fn add(&self, token: &Token, ids: &[Uuid]) -> bool {
        let mut state = self.state();
        if state.acks.len() >= MAX_ACKS {
            return false;
        }
        let (first, before) = (state.is_empty(), state.acks.len());
        state.acks.extend(ids.iter().map(|id| (token.clone(), *id)));
        // A full transaction need not wait for more.
        let filled = before < ACKS_PER_COMMIT && state.acks.len() >= ACKS_PER_COMMIT;
        drop(state);
        if first || filled {
            self.added.notify_one();
        }
        true
    }

    pub(super) fn advance(&self, token: &Token, upto: Rev) {
        let mut state = self.state();
        let first = state.is_empty();
        let room = state.advances.len() < MAX_ADVANCES;
        if let Some(known) = state.advances.get_mut(token) {
            *known = upto.max(*known);
        } else if room {
            state.advances.insert(token.clone(), upto);
        }
        drop(state);
        if first {
            self.added.notify_one();
        }
    }

    /// Returns when something waits that did not before, or as many acks as one transaction takes.
    pub(super) async fn added(&self) {
        self.added.notified().await;
    }

    /// Whether anything waits.
    pub(super) fn is_any(&self) -> bool {
        !self.state().is_empty()
    }

    /// Whether as many wait as one transaction takes.
    pub(super) fn is_full(&self) -> bool {
        self.state().acks.len() >= ACKS_PER_COMMIT
    }

    /// Moves what one transaction may have into a batch, the oldest first, and says whether more is left.
    pub(super) fn take(&self, batch: &mut Batch) -> bool {
        let mut state = self.state();
        let few = state.acks.len().min(ACKS_PER_COMMIT);
        batch.acked.extend(state.acks.drain(..few));
        let some: Vec<Token> = state.advances.keys().take(ADVANCES_PER_COMMIT).cloned().collect();
        batch.advances.extend(some.into_iter().filter_map(|token| state.advances.remove_entry(&token)));
        !state.is_empty()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
