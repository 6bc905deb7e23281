//! A socket in memory that stalls and closes on command.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use uuid::Uuid;

use crate::inbox::{Delivery, Live, Outbound, Outlet, OutletError};
use crate::notification::{Event, Rev};

/// What a socket was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Received {
    Message { rev: Rev, id: Uuid, replay: bool },
    Changed { rev: Rev },
    ReplayComplete { count: u64 },
    Resync { rev: Rev, epoch: String },
}

/// A socket that remembers what it was sent and takes no more than its buffer has room for.
pub(super) struct FakeSocket {
    received: Mutex<Vec<Received>>,
    /// The sizes of the batches.
    pub(super) batches: Mutex<Vec<usize>>,
    buffer: usize,
    buffered: AtomicUsize,
    pub(super) closed: AtomicBool,
}

impl FakeSocket {
    pub(super) fn new(buffer: usize) -> Arc<Self> {
        Arc::new(Self {
            received: Mutex::default(),
            batches: Mutex::default(),
            buffer,
            buffered: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        })
    }

    /// The network took everything that was buffered.
    pub(super) fn flush(&self) {
        self.buffered.store(0, Ordering::Relaxed);
    }

    pub(super) fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    fn take(&self, live: &Live, replay: bool) {
        let received = match &live.event {
            Event::New(new) => Received::Message { rev: new.seq, id: new.content.id, replay },
            Event::Changed { rev, .. } => Received::Changed { rev: *rev },
            Event::Gone { .. } => panic!("there is nothing to send"),
        };
        self.received.lock().unwrap().push(received);
    }
}

impl Outlet for FakeSocket {
    fn send(&self, outbound: &Outbound<'_>) -> Result<(), OutletError> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(OutletError::Closed);
        }
        if self.buffered.fetch_add(1, Ordering::Relaxed) >= self.buffer {
            self.buffered.fetch_sub(1, Ordering::Relaxed);
            return Err(OutletError::Full);
        }
        match outbound {
            Outbound::Message(live, delivery) => self.take(live, *delivery == Delivery::Replay),
            Outbound::Messages(lives, delivery) => {
                self.batches.lock().unwrap().push(lives.len());
                lives.iter().for_each(|live| self.take(live, *delivery == Delivery::Replay));
            }
            Outbound::Changed(live) => self.take(live, false),
            Outbound::Resync { epoch, head } => {
                let (rev, epoch) = (head.rev, (*epoch).to_owned());
                self.received.lock().unwrap().push(Received::Resync { rev, epoch });
            }
            Outbound::ReplayComplete { count, .. } => {
                self.received.lock().unwrap().push(Received::ReplayComplete { count: *count });
            }
        }
        Ok(())
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }
}
