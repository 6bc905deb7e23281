//! One logged-in socket, as its pump and its incoming events share it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use uuid::Uuid;

use super::hub::Live;
use crate::metrics;
use crate::notification::{Rev, Selection, Token};

/// One logged-in socket.
#[derive(Debug)]
pub struct Session {
    id: u64,
    token: Token,
    changed: Notify,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Sent and not acked, oldest first; never longer than the window.
    in_flight: VecDeque<(Rev, Uuid)>,
    /// Whether this client acks: only then its silence means that it is behind.
    acking: bool,
    ended: bool,
    /// Its socket is to be closed as well.
    cut: bool,
    /// What is sent live only and waits for the pump, at most [`MAX_PASSING`].
    passing: VecDeque<Arc<Live>>,
}

/// So many messages that are sent live only wait for one session; each is shared with the others of its push. When there
/// are more the oldest is given up and counted: it was for whoever can take it now.
const MAX_PASSING: usize = 64;

impl Session {
    /// A client that asks for batches is one that acks.
    pub(super) fn new(id: u64, token: Token, batch: bool) -> Self {
        let state =
            State { in_flight: VecDeque::new(), acking: batch, ended: false, cut: false, passing: VecDeque::new() };
        Self { id, token, changed: Notify::new(), state: Mutex::new(state) }
    }

    /// Unique on this node while the process runs.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whose inbox it is.
    #[must_use]
    pub fn token(&self) -> &Token {
        &self.token
    }

    /// Ends the session; its pump stops and detaches it. Nothing is sent to it any more once this returns.
    pub fn end(&self) {
        self.state().ended = true;
        self.wake();
    }

    /// Ends the session and has its socket closed.
    pub(super) fn cut(&self) {
        self.state().cut = true;
        self.end();
    }

    pub(super) fn is_cut(&self) -> bool {
        self.state().cut
    }

    /// Hands over a message that is sent live only.
    pub(super) fn pass(&self, live: Arc<Live>) {
        let mut state = self.state();
        if state.passing.len() >= MAX_PASSING {
            state.passing.pop_front();
            metrics::live_only_dropped();
        }
        state.passing.push_back(live);
        drop(state);
        self.wake();
    }

    /// The messages that were handed over since the last call.
    pub(super) fn passing(&self) -> VecDeque<Arc<Live>> {
        std::mem::take(&mut self.state().passing)
    }

    /// Whether the session was ended.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.state().ended
    }

    /// Sends something, unless the session has ended; it cannot end meanwhile.
    pub(super) fn send<T>(&self, send: impl FnOnce() -> T) -> Option<T> {
        let state = self.state();
        (!state.ended).then(send)
    }

    /// Wakes the pump: there may be something to send, or room to send it.
    pub(super) fn wake(&self) {
        self.changed.notify_one();
    }

    /// Returns after the next [`Session::wake`], or at once if there was one since the last call.
    pub(super) async fn woken(&self) {
        self.changed.notified().await;
    }

    /// Whether this client has ever acked, or said that it will.
    pub(super) fn acking(&self) -> bool {
        self.state().acking
    }

    /// How many messages may be sent now. A client that never acks is not limited here.
    pub(super) fn room(&self, window: usize) -> usize {
        let state = self.state();
        if state.acking { window.saturating_sub(state.in_flight.len()) } else { window }
    }

    /// Notes that a message went out.
    pub(super) fn sent(&self, rev: Rev, id: Uuid, window: usize) {
        let mut state = self.state();
        if state.in_flight.len() >= window {
            // Only a client that has not acked yet gets here: what it was sent first no longer counts.
            state.in_flight.pop_front();
        }
        state.in_flight.push_back((rev, id));
    }

    /// Makes room for what the client says it has. `acked` is false for a read, which a page that never acks may also
    /// send and which therefore promises no acks to come.
    pub(super) fn received(&self, selection: &Selection, acked: bool) {
        let mut state = self.state();
        state.acking |= acked;
        match selection {
            Selection::Ids(ids) => state.in_flight.retain(|(_, id)| !ids.contains(id)),
            Selection::UpTo(upto) => state.in_flight.retain(|(rev, _)| rev > upto),
            Selection::All => state.in_flight.clear(),
        }
        drop(state);
        self.wake();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
