//! One logged-in socket, as its pump, its receipts and the hub share it.
//!
//! A session has one [`Pump`], and whoever holds it is the one sender of the session. While there is nothing to send, the
//! pump is parked here and no task exists; whoever has news takes it out and sends right where it is. So an idle session
//! costs no wake-up, and there are never two senders.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use uuid::Uuid;

use super::hub::Live;
use super::pump::{OutletError, Pump};
use crate::metrics;
use crate::notification::{Rev, Selection, Token};

/// One logged-in socket.
pub struct Session {
    id: u64,
    token: Token,
    /// For a pump whose task waits for news and for a time as well.
    changed: Notify,
    state: Mutex<State>,
}

struct State {
    /// Sent and not acked, oldest first; never longer than the window.
    in_flight: VecDeque<(Rev, Uuid)>,
    /// The newest message that was sent.
    sent_upto: Rev,
    /// Whether this client acks: only then its silence means that it is behind.
    acking: bool,
    /// Everything up to here was sent to this session and acked by it, by rev, and that is stored.
    acked_upto: Rev,
    /// The client has said that it has everything up to here, even what was not sent yet.
    acked_ahead: Rev,
    /// Messages that were acked since the watermark of the inbox was last moved for it.
    acked: usize,
    ended: bool,
    /// Its socket is to be closed as well.
    cut: bool,
    /// What is sent live only and waits for the pump, at most [`MAX_PASSING`].
    passing: VecDeque<Arc<Live>>,
    /// Here while it has nothing to do.
    pump: Option<Box<Pump>>,
    /// Something happened since the pump was taken out.
    woken: bool,
}

/// So many messages that are sent live only wait for one session; each is shared with the others of its push. When there
/// are more the oldest is given up and counted: it was for whoever can take it now.
const MAX_PASSING: usize = 64;

/// After so many acks of one session the watermark of its inbox is moved: until then, reads of what is undelivered pass
/// the rows that were acked.
const ACKS_PER_ADVANCE: usize = 1_000;

/// What an ack or a read did to a session's window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Received {
    /// Messages that are no longer in flight.
    pub(super) freed: usize,
    /// Up to where the watermark of the inbox may be moved, when it is time for that.
    pub(super) advance: Option<Rev>,
}

impl Session {
    /// A client that asks for batches is one that acks.
    pub(super) fn new(id: u64, token: Token, batch: bool) -> Self {
        let state = State {
            in_flight: VecDeque::new(),
            sent_upto: 0,
            acking: batch,
            acked_upto: 0,
            acked_ahead: 0,
            acked: 0,
            ended: false,
            cut: false,
            passing: VecDeque::new(),
            pump: None,
            woken: false,
        };
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

    /// Ends the session and detaches it. Nothing is sent to it any more once this returns.
    ///
    /// Not to be called under a lock of the hub: the pump that is dropped here detaches itself.
    pub fn end(&self) {
        let pump = {
            let mut state = self.state();
            state.ended = true;
            state.pump.take()
        };
        match pump {
            Some(pump) => pump.finish(),
            None => self.changed.notify_one(),
        }
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

    /// The messages that are sent live only and wait for the pump.
    pub(super) fn take_passing(&self) -> VecDeque<Arc<Live>> {
        std::mem::take(&mut self.state().passing)
    }

    /// Gives back those that the socket had no room for.
    pub(super) fn put_back_passing(&self, mut rest: VecDeque<Arc<Live>>) {
        let mut state = self.state();
        rest.append(&mut state.passing);
        while rest.len() > MAX_PASSING {
            rest.pop_front();
            metrics::live_only_dropped();
        }
        state.passing = rest;
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

    /// Sends messages, unless the session has ended, and notes them as in flight. The client may have acked them as soon as
    /// they are sent, so both happen under one lock.
    pub(super) fn send_messages(
        &self,
        messages: impl Iterator<Item = (Rev, Uuid)>,
        window: usize,
        send: impl FnOnce() -> Result<(), OutletError>,
    ) -> Option<Result<(), OutletError>> {
        let mut state = self.state();
        if state.ended {
            return None;
        }
        let sent = send();
        if sent.is_ok() {
            for message in messages {
                if state.in_flight.len() >= window {
                    // Only a client that has not acked yet gets here: what it was sent first no longer counts.
                    state.in_flight.pop_front();
                }
                state.sent_upto = message.0;
                if message.0 > state.acked_ahead {
                    state.in_flight.push_back(message);
                }
            }
        }
        Some(sent)
    }

    /// Has the pump look whether there is something to send, or room to send it: right here if it is parked.
    ///
    /// Not to be called under a lock of the hub: a pump looks into its channel.
    pub(super) fn wake(&self) {
        let pump = {
            let mut state = self.state();
            state.woken |= state.pump.is_none();
            state.pump.take()
        };
        match pump {
            Some(pump) => pump.drive(),
            None => self.changed.notify_one(),
        }
    }

    /// Parks the pump, unless something happened since it was taken out: then it is given back to look again. One whose
    /// session has ended is given back as well.
    pub(super) fn park(&self, pump: Box<Pump>) -> Option<Box<Pump>> {
        let mut state = self.state();
        if std::mem::take(&mut state.woken) || state.ended {
            return Some(pump);
        }
        state.pump = Some(pump);
        None
    }

    /// Returns after the next [`Session::wake`] or [`Session::end`], or at once if there was one since the last call.
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

    /// Makes room for what the client says it has, and uses it at once. `acked` is false for a read, which a page that never
    /// acks may also send and which therefore promises no acks to come.
    pub(super) fn received(&self, selection: &Selection, acked: bool) -> Received {
        let mut state = self.state();
        let before = state.in_flight.len();
        state.acking |= acked;
        match selection {
            Selection::Ids(ids) => match ids[..] {
                // What most clients send: an id alone, in the order they got them.
                [id] => {
                    if let Some(at) = state.in_flight.iter().position(|(_, sent)| *sent == id) {
                        state.in_flight.remove(at);
                    }
                }
                _ => {
                    let ids: HashSet<&Uuid> = ids.iter().collect();
                    state.in_flight.retain(|(_, id)| !ids.contains(id));
                }
            },
            Selection::UpTo(upto) => {
                state.in_flight.retain(|(rev, _)| rev > upto);
                state.acked_ahead = state.acked_ahead.max(*upto);
            }
            Selection::All => state.in_flight.clear(),
        }
        let freed = before - state.in_flight.len();
        state.acked += freed;
        let advance = (state.acked >= ACKS_PER_ADVANCE).then_some(state.sent_upto);
        if advance.is_some() {
            state.acked = 0;
        }
        drop(state);
        if freed > 0 {
            self.wake();
        }
        Received { freed, advance }
    }

    /// Notes that an ack of everything up to a rev is stored. It must be one that was sent to this session: rows that come
    /// later are another matter.
    pub(super) fn stored_ack_upto(&self, rev: Rev) {
        let mut state = self.state();
        state.acked_upto = state.acked_upto.max(rev);
    }

    /// The session goes on from a rev: what it was sent and acked beyond belongs to a table that is no more.
    pub(super) fn start_over(&self, rev: Rev) {
        let mut state = self.state();
        state.in_flight.retain(|(sent, _)| *sent <= rev);
        state.sent_upto = state.sent_upto.min(rev);
        state.acked_upto = state.acked_upto.min(rev);
        state.acked_ahead = state.acked_ahead.min(rev);
    }

    /// The rev up to which an ack by rev says nothing new, and the newest that was sent.
    pub(super) fn acked_and_sent(&self) -> (Rev, Rev) {
        let state = self.state();
        (state.acked_upto, state.sent_upto)
    }

    /// Up to where the watermark of the inbox may be moved at the end, if anything was acked.
    pub(super) fn unadvanced(&self) -> Option<Rev> {
        let state = self.state();
        (state.acked > 0).then_some(state.sent_upto)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
