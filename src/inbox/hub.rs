//! Who is here: the node's map from token to its sessions, with the newest events of each.
//!
//! A hub never decides what a session gets. It wakes pumps, which send on the spot, and saves them reads: a pump that does
//! not find its next rev in the ring pages the table. So hints may be lost, doubled, reordered or forged without harm.
//!
//! Locks are taken in one order: the map, a channel, a session. A pump looks into its channel and detaches itself, so
//! sessions are woken and ended only after the hub's own locks are released.

use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{self, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde_json::value::RawValue;

use super::session::Session;
use crate::metrics;
use crate::notification::{Event, Rev, Token};

/// An event as the sessions of one token share it.
#[derive(Debug)]
pub struct Live {
    /// What happened.
    pub event: Event,
    /// Its wire form, made by the first session that sends it.
    pub encoded: OnceLock<Box<RawValue>>,
}

impl From<Event> for Live {
    fn from(event: Event) -> Self {
        Self { event, encoded: OnceLock::new() }
    }
}

/// The map from token to its sessions on this node.
pub struct Hub {
    channels: Mutex<HashMap<Token, Arc<Channel>>>,
    ids: AtomicU64,
    ring: Ring,
    max_sessions: usize,
    /// Called when the last session of a token is gone, before another can attach.
    emptied: Box<dyn Fn(&Token) + Send + Sync>,
}

/// How much a ring keeps of the newest events of one token: it forgets the oldest beyond either.
#[derive(Debug, Clone, Copy)]
pub struct Ring {
    /// Events.
    pub events: usize,
    /// Bytes of their `data`.
    pub bytes: usize,
}

/// The sessions of one token on this node.
pub(super) struct Channel {
    token: Token,
    state: Mutex<ChannelState>,
}

#[derive(Default)]
struct ChannelState {
    /// The newest rev that anybody spoke of.
    top: Rev,
    /// Counts what raised or could have raised `top`.
    hints: u64,
    /// Newest events in rev order; gaps are possible.
    ring: VecDeque<Arc<Live>>,
    ring_bytes: usize,
    /// Whether the ring grew since the last sweep.
    busy: bool,
    /// Counts the sweeps that found the table behind `top`, or in another epoch.
    doubts: u64,
    sessions: Vec<Arc<Session>>,
}

/// What a pump finds beyond its cursor.
pub(super) enum Next {
    /// The next events without a gap, which were added to its queue.
    Events,
    /// Something is there that the ring does not have. To be given back to [`Channel::settle`].
    Behind(Behind),
    /// Nothing.
    UpToDate,
}

/// How far ahead of a cursor the hints were when a pump looked.
pub(super) struct Behind {
    hints: u64,
}

/// A session's place in the hub; dropping it detaches the session.
pub(super) struct Attachment {
    hub: Arc<Hub>,
    pub(super) channel: Arc<Channel>,
    pub(super) session: Arc<Session>,
}

impl Hub {
    /// `max_sessions` is the number of sessions that a token may have here; `emptied` is called when the last is gone.
    #[must_use]
    pub fn new(ring: Ring, max_sessions: usize, emptied: impl Fn(&Token) + Send + Sync + 'static) -> Self {
        Self { channels: Mutex::default(), ids: AtomicU64::new(1), ring, max_sessions, emptied: Box::new(emptied) }
    }

    /// Adds a session of this token, unless it has as many as it may. From now on every event of the token wakes it.
    pub(super) fn attach(self: &Arc<Self>, token: &Token, batch: bool) -> Option<Attachment> {
        let mut channels = lock(&self.channels);
        let channel = channels
            .entry(token.clone())
            .or_insert_with(|| Arc::new(Channel { token: token.clone(), state: Mutex::default() }));
        let channel = Arc::clone(channel);
        let mut state = lock(&channel.state);
        if state.sessions.len() >= self.max_sessions {
            return None;
        }
        let session = Arc::new(Session::new(self.ids.fetch_add(1, atomic::Ordering::Relaxed), token.clone(), batch));
        state.sessions.push(Arc::clone(&session));
        drop(state);
        metrics::session_began(channels.len());
        Some(Attachment { hub: Arc::clone(self), channel, session })
    }

    /// Takes events after their commit, in rev order per token. Only the writer of this node may call it.
    pub fn publish(&self, events: Vec<(Token, Event)>) {
        for (token, event) in events {
            if let Some(channel) = self.channel(&token) {
                channel.push(Arc::new(event.into()), self.ring);
            }
        }
    }

    /// Hands a message that is sent live only to everybody who is here.
    pub(super) fn pass(&self, token: &Token, live: &Arc<Live>) {
        if let Some(channel) = self.channel(token) {
            channel.sessions().iter().for_each(|session| session.pass(Arc::clone(live)));
        }
    }

    /// Ends the sessions of a token and has their sockets closed; returns how many.
    pub(super) fn cut(&self, token: &Token) -> usize {
        let Some(channel) = self.channel(token) else { return 0 };
        let sessions = {
            let mut state = lock(&channel.state);
            // Who comes next may find another inbox.
            state.forget();
            state.sessions.clone()
        };
        sessions.iter().for_each(|session| session.cut());
        sessions.len()
    }

    /// Takes what somebody says the newest rev of an inbox is.
    pub fn hint(&self, token: &Token, rev: Rev) {
        if let Some(channel) = self.channel(token) {
            channel.hint(rev);
        }
    }

    /// Takes what the table said an inbox's rev is, a moment ago. It may be behind for two reasons: somebody told more than
    /// there is, or the table was taken back to an earlier state. The pumps find out which.
    pub(super) fn compare(&self, token: &Token, rev: Rev) {
        let Some(channel) = self.channel(token) else { return };
        channel.change(|state| {
            match rev.cmp(&state.top) {
                Ordering::Greater => {
                    metrics::swept();
                    state.hints += 1;
                    state.top = rev;
                }
                Ordering::Less => state.doubts += 1,
                Ordering::Equal => return false,
            }
            true
        });
    }

    /// The data set became another one, so every session has to look where it stands.
    pub(super) fn doubt_all(&self) {
        let channels: Vec<_> = lock(&self.channels).values().cloned().collect();
        for channel in channels {
            channel.change(|state| {
                state.doubts += 1;
                true
            });
        }
    }

    /// The tokens that have sessions here.
    #[must_use]
    pub fn tokens(&self) -> Vec<Token> {
        lock(&self.channels).keys().cloned().collect()
    }

    /// Ends every session.
    pub(super) fn end_sessions(&self) {
        let channels: Vec<_> = lock(&self.channels).values().cloned().collect();
        for channel in channels {
            channel.sessions().iter().for_each(|session| session.end());
        }
    }

    /// Empties the rings that did not grow since the last call: their events were delivered long ago, or belong to a
    /// session so slow that it may as well read the table.
    pub fn forget_old_events(&self) {
        let channels: Vec<_> = lock(&self.channels).values().cloned().collect();
        for channel in channels {
            let mut state = lock(&channel.state);
            if !std::mem::take(&mut state.busy) {
                state.ring = VecDeque::new();
                state.ring_bytes = 0;
            }
        }
    }

    fn channel(&self, token: &Token) -> Option<Arc<Channel>> {
        lock(&self.channels).get(token).cloned()
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let mut channels = lock(&self.hub.channels);
        let mut state = lock(&self.channel.state);
        state.sessions.retain(|session| !Arc::ptr_eq(session, &self.session));
        if state.sessions.is_empty() {
            channels.remove(&self.channel.token);
            (self.hub.emptied)(&self.channel.token);
        }
        metrics::session_ended(channels.len());
    }
}

impl Channel {
    fn sessions(&self) -> Vec<Arc<Session>> {
        lock(&self.state).sessions.clone()
    }

    /// Changes the state and, if it says so, has the sessions look for news. They send right here, so the lock is released
    /// before.
    fn change(&self, change: impl FnOnce(&mut ChannelState) -> bool) {
        let sessions = {
            let mut state = lock(&self.state);
            if !change(&mut state) {
                return;
            }
            state.sessions.clone()
        };
        sessions.iter().for_each(|session| session.wake());
    }

    fn push(&self, live: Arc<Live>, limit: Ring) {
        self.change(|state| {
            state.push(live, limit);
            true
        });
    }

    /// Adds what comes after `cursor`, at most `max` events, to an empty queue.
    pub(super) fn next(&self, cursor: Rev, max: usize, queue: &mut VecDeque<Arc<Live>>) -> Next {
        let state = lock(&self.state);
        if state.top <= cursor {
            return Next::UpToDate;
        }
        // Mostly it is the newest alone, and a search would touch many others.
        let start = match state.ring.back() {
            Some(newest) if newest.event.rev() == cursor + 1 => state.ring.len() - 1,
            _ => state.ring.partition_point(|live| live.event.rev() <= cursor),
        };
        let events = state
            .ring
            .range(start..)
            .take(max)
            .zip(cursor + 1..)
            .take_while(|(live, expected)| live.event.rev() == *expected)
            .map(|(live, _)| Arc::clone(live));
        queue.extend(events);
        if queue.is_empty() { Next::Behind(Behind { hints: state.hints }) } else { Next::Events }
    }

    /// How often a sweep found the table behind this channel.
    pub(super) fn doubts(&self) -> u64 {
        lock(&self.state).doubts
    }

    /// The table was taken back: what was heard until now happened to another data set.
    pub(super) fn forget(&self) {
        lock(&self.state).forget();
    }

    /// Takes what the table, or somebody, says the inbox's rev is.
    pub(super) fn hint(&self, rev: Rev) {
        self.change(|state| {
            state.hints += 1;
            let is_newer = rev > state.top;
            state.top = state.top.max(rev);
            is_newer
        });
    }

    /// Takes back hints that promised more than the table holds up to `cursor`, unless new ones came in the meantime.
    /// What the ring has beyond is of a table that is no more: events come into it after their commit.
    pub(super) fn settle(&self, behind: &Behind, cursor: Rev) {
        let mut state = lock(&self.state);
        if state.hints == behind.hints {
            state.top = cursor;
            let kept = state.ring.partition_point(|live| live.event.rev() <= cursor);
            let gone: usize = state.ring.drain(kept..).map(|live| live.event.weight()).sum();
            state.ring_bytes -= gone;
        }
    }
}

impl ChannelState {
    fn push(&mut self, live: Arc<Live>, limit: Ring) {
        let rev = live.event.rev();
        self.hints += 1;
        self.top = self.top.max(rev);
        // One that comes late or twice is left to the table.
        if self.ring.back().is_none_or(|newest| newest.event.rev() < rev) {
            self.busy = true;
            self.ring_bytes += live.event.weight();
            self.ring.push_back(live);
            while self.ring.len() > limit.events || self.ring_bytes > limit.bytes {
                let Some(oldest) = self.ring.pop_front() else { break };
                self.ring_bytes -= oldest.event.weight();
            }
        }
    }

    /// Starts over, with nothing in the ring.
    fn forget(&mut self) {
        self.hints += 1;
        self.top = 0;
        self.ring = VecDeque::new();
        self.ring_bytes = 0;
    }
}

/// Locks for a short section. A panic in one cannot leave half a change behind, so poisoning means nothing here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
