//! The receipts of one socket, from their arrival until they are stored.
//!
//! A receipt does two things. It says what the client has, which makes room in the session's window: that happens at once,
//! whatever becomes of the rest. And it is stored: an ack that wants no callback is handed to the next transaction and
//! costs neither a task nor an answer; all others wait here, merged into one [`Group`], while the one before them is
//! stored. So no event of the socket waits for the database, and a client that sends many receipts makes few writes.
//!
//! What waits is bounded by not reading on: a connection with [`MAX_WEIGHT`] waiting is not read until half of that is
//! stored.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use socketioxide::extract::SocketRef;
use tokio::time::Instant;
use tracing::warn;
use uuid::Uuid;

use super::client::{Callback, Client};
use super::current_line;
use super::wire::{Answer, Refusal};
use crate::inbox::Session;
use crate::limits::log_due;
use crate::notification::{Head, ReceiptKind, Rev, Selection};
use crate::store::WriterError;

/// Ids of one job of the writer.
const IDS_PER_JOB: usize = 4_096;

/// What may wait for one socket before its connection is no longer read: about so many ids of 16 bytes, or half as many
/// callbacks.
const MAX_WEIGHT: usize = 16_384;

/// What one that waits for a login counts there.
const COMMAND_WEIGHT: usize = 8;

/// A receipt that finds the write queue full is tried again for so long, if nobody waits for its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two of these tries.
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// Receipts of one kind that were merged.
#[derive(Default)]
struct Merged {
    ids: HashSet<Uuid>,
    upto: Option<Rev>,
    all: bool,
    callbacks: Vec<Callback>,
}

impl Merged {
    fn add(&mut self, selection: &Selection, callbacks: Vec<Callback>) {
        match selection {
            Selection::Ids(ids) => self.ids.extend(ids),
            Selection::UpTo(upto) => self.upto = self.upto.max(Some(*upto)),
            Selection::All => self.all = true,
        }
        self.callbacks.extend(callbacks);
    }

    fn is_empty(&self) -> bool {
        self.ids.is_empty() && self.upto.is_none() && !self.all && self.callbacks.is_empty()
    }

    fn weight(&self) -> usize {
        self.ids.len() + 2 * self.callbacks.len()
    }

    /// What the writer is to do. There is always something, so that an empty receipt is answered like any other.
    fn selections(&self) -> Vec<Selection> {
        let ids: Vec<Uuid> = self.ids.iter().copied().collect();
        let mut selections: Vec<_> = ids.chunks(IDS_PER_JOB).map(|ids| Selection::Ids(ids.to_vec())).collect();
        selections.extend(match (self.all, self.upto) {
            (true, _) => Some(Selection::All),
            (false, upto) => upto.map(Selection::UpTo),
        });
        if selections.is_empty() {
            selections.push(Selection::Ids(Vec::new()));
        }
        selections
    }
}

/// Receipts of one session that are stored together, reads before unreads.
struct Group {
    session: Arc<Session>,
    acks: Merged,
    reads: Merged,
    unreads: Merged,
}

impl Group {
    fn new(session: Arc<Session>) -> Self {
        Self { session, acks: Merged::default(), reads: Merged::default(), unreads: Merged::default() }
    }

    fn weight(&self) -> usize {
        self.acks.weight() + self.reads.weight() + self.unreads.weight()
    }

    /// Whether a receipt may be stored with those that came before it, and to the same end as after them.
    fn takes(&self, session: &Arc<Session>, kind: ReceiptKind, selection: &Selection) -> bool {
        // A read by rev may be about rows that were to be unread before it.
        let by_ids = matches!(selection, Selection::Ids(_));
        let in_order = kind != ReceiptKind::Read || by_ids || self.unreads.is_empty();
        Arc::ptr_eq(&self.session, session) && in_order
    }

    fn add(&mut self, kind: ReceiptKind, selection: &Selection, callbacks: Vec<Callback>) {
        // Of a read and an unread of the same row the last one stands.
        if let Selection::Ids(ids) = selection {
            let opposite = match kind {
                ReceiptKind::Ack => None,
                ReceiptKind::Read => Some(&mut self.unreads.ids),
                ReceiptKind::Unread => Some(&mut self.reads.ids),
            };
            if let Some(opposite) = opposite {
                for id in ids {
                    opposite.remove(id);
                }
            }
        }
        match kind {
            ReceiptKind::Ack => self.acks.add(selection, callbacks),
            ReceiptKind::Read => self.reads.add(selection, callbacks),
            ReceiptKind::Unread => self.unreads.add(selection, callbacks),
        }
    }
}

/// The receipts that wait to be stored, oldest first.
#[derive(Default)]
pub(super) struct Receipts {
    waiting: VecDeque<Group>,
    weight: usize,
    /// Whether a task stores them.
    storing: bool,
    /// Whether the connection is not read.
    held: bool,
}

impl Receipts {
    /// Adds one and returns whether a task has to be started for it.
    fn add(
        &mut self,
        session: &Arc<Session>,
        kind: ReceiptKind,
        selection: &Selection,
        callbacks: Vec<Callback>,
    ) -> bool {
        if !self.waiting.back().is_some_and(|group| group.takes(session, kind, selection)) {
            self.waiting.push_back(Group::new(Arc::clone(session)));
        }
        if let Some(group) = self.waiting.back_mut() {
            let before = group.weight();
            group.add(kind, selection, callbacks);
            self.weight = self.weight + group.weight() - before;
        }
        !std::mem::replace(&mut self.storing, true)
    }

    /// Whether something waits; if not, the task that stores is to end.
    fn any(&mut self) -> bool {
        if self.waiting.is_empty() {
            self.storing = false;
            self.waiting = VecDeque::new();
        }
        self.storing
    }

    /// The next group to store.
    fn next(&mut self) -> Option<Group> {
        let next = self.waiting.pop_front()?;
        self.weight -= next.weight();
        Some(next)
    }
}

impl Client {
    /// Takes a receipt of a session. `callbacks` are those that want an answer.
    pub(super) fn receive(
        self: &Arc<Self>,
        socket: &SocketRef,
        session: &Arc<Session>,
        kind: ReceiptKind,
        selection: &Selection,
        callbacks: Vec<Callback>,
    ) {
        let inbox = &self.realtime().inbox;
        let freed = inbox.received(session, kind, selection);
        if kind == ReceiptKind::Ack
            && callbacks.is_empty()
            && let Selection::Ids(ids) = selection
            // What the server has sent may be acked at any rate: it is the server's own.
            && (freed > 0 || self.is_in_time(socket))
            && inbox.ack(session, ids)
        {
            return;
        }
        let start = self.state().receipts.add(session, kind, selection, callbacks);
        self.hold(socket);
        if start {
            inbox.spawn(Arc::clone(self).store_receipts(socket.clone()));
        }
    }

    /// Has the connection not read on if as many receipts wait as may.
    pub(super) fn hold(&self, socket: &SocketRef) {
        let mut state = self.state();
        let weight = state.receipts.weight + COMMAND_WEIGHT * state.waiting_receipts;
        // Under the lock, or it could overtake a release and last for ever.
        if weight >= MAX_WEIGHT
            && !std::mem::replace(&mut state.receipts.held, true)
            && let Some(line) = current_line(socket)
        {
            line.hold();
        }
    }

    /// Has it read on if no more than half of that wait.
    pub(super) fn release(&self, socket: &SocketRef) {
        let mut state = self.state();
        let weight = state.receipts.weight + COMMAND_WEIGHT * state.waiting_receipts;
        if weight <= MAX_WEIGHT / 2
            && std::mem::take(&mut state.receipts.held)
            && let Some(line) = current_line(socket)
        {
            line.release();
        }
    }

    /// Stores what waits, one group after the other. What comes meanwhile is merged.
    async fn store_receipts(self: Arc<Self>, socket: SocketRef) {
        while self.any_receipts() {
            // What comes meanwhile is merged with what waits.
            self.keep_pace(&socket).await;
            let next = self.state().receipts.next();
            self.release(&socket);
            let Some(Group { session, acks, reads, unreads }) = next else { continue };
            // Queued in this order, so that the unreads are done after the reads.
            tokio::join!(
                biased;
                self.store_merged(&session, ReceiptKind::Ack, acks),
                self.store_merged(&session, ReceiptKind::Read, reads),
                self.store_merged(&session, ReceiptKind::Unread, unreads),
            );
        }
    }

    fn any_receipts(&self) -> bool {
        self.state().receipts.any()
    }

    /// Stores receipts of one kind and answers them.
    async fn store_merged(&self, session: &Arc<Session>, kind: ReceiptKind, merged: Merged) {
        if merged.is_empty() {
            return;
        }
        let patient = merged.callbacks.is_empty();
        let jobs = merged.selections().into_iter().map(|selection| self.store(session, kind, selection, patient));
        let mut outcome = Ok(None);
        for done in join_all(jobs).await {
            outcome = match (outcome, done) {
                (Err(error), _) | (Ok(_), Err(error)) => Err(error),
                (Ok(before), Ok(after)) => Ok(newer(before, after)),
            };
        }
        let refusal;
        let answer = match outcome {
            Ok(None) => Answer::DONE,
            Ok(Some(head)) => Answer::from(head),
            Err(error) => {
                refusal = Refusal::new("unavailable", why_not_stored(&error));
                Answer::from(&refusal)
            }
        };
        self.answer_all(&merged.callbacks, &answer).await;
    }

    async fn store(
        &self,
        session: &Session,
        kind: ReceiptKind,
        selection: Selection,
        patient: bool,
    ) -> Result<Option<Head>, WriterError> {
        let until = Instant::now() + PATIENCE;
        loop {
            let outcome = self.realtime().inbox.receipt(session, kind, selection.clone()).await;
            if !(patient && matches!(outcome, Err(WriterError::Busy)) && Instant::now() < until) {
                return outcome;
            }
            tokio::time::sleep(BUSY_PAUSE).await;
        }
    }
}

/// Of the heads of one inbox the newer.
fn newer(one: Option<Head>, other: Option<Head>) -> Option<Head> {
    one.into_iter().chain(other).max_by_key(|head| head.rev)
}

fn why_not_stored(error: &WriterError) -> &'static str {
    match error {
        WriterError::Busy => "the service is busy, send this again later",
        WriterError::Stopped => "the service is stopping",
        WriterError::Unfinished => {
            "this affects many notifications and is still in progress, send it again to be answered when it is complete"
        }
        WriterError::Store(error) => {
            if let Some(left_out) = log_due("receipt_failed") {
                warn!(%error, left_out, "Receipt failed");
            }
            "the database does not answer, send this again later"
        }
    }
}
