//! `new_user`: every socket is told that another one has come, as the example server of the first protocol does it.
//!
//! In a herd each of n newcomers would be told to n others. So it is told at most once in an interval, for all who came in
//! it, and what is sent grows with the sockets alone.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use socketioxide::socket::Sid;
use tokio::time::Instant;

use super::Realtime;

/// Sockets that are told before other tasks have their turn.
const TOLD_AT_ONCE: usize = 256;

/// Remembers who has come and was not told yet.
pub(super) struct Announcer {
    interval: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    newcomers: Newcomers,
    /// When it was told last.
    told: Option<Instant>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Newcomers {
    #[default]
    Nobody,
    One(Sid),
    Several,
}

impl Announcer {
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, state: Mutex::default() }
    }

    /// Notes a newcomer. If it is the first since the last time, when to tell.
    fn note(&self, newcomer: Sid, now: Instant) -> Option<Instant> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.newcomers != Newcomers::Nobody {
            state.newcomers = Newcomers::Several;
            return None;
        }
        state.newcomers = Newcomers::One(newcomer);
        Some(state.told.map_or(now, |told| now.max(told + self.interval)))
    }

    /// Who is not to be told: the newcomer, if there is but one. Of several each is told of the others.
    fn take(&self, now: Instant) -> Option<Sid> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.told = Some(now);
        match std::mem::take(&mut state.newcomers) {
            Newcomers::One(newcomer) => Some(newcomer),
            Newcomers::Nobody | Newcomers::Several => None,
        }
    }
}

impl Realtime {
    /// Has all other sockets of this node told that this one has come, if that is wanted.
    pub(super) fn announce(&self, newcomer: Sid) {
        let Some(announcer) = self.announcer.clone() else { return };
        if let Some(due) = announcer.note(newcomer, Instant::now()) {
            tokio::spawn(self.clone().tell(announcer, due));
        }
    }

    async fn tell(self, announcer: Arc<Announcer>, due: Instant) {
        tokio::time::sleep_until(due).await;
        let newcomer = announcer.take(Instant::now());
        for engine in &*self.engines {
            for sockets in engine.io.sockets().chunks(TOLD_AT_ONCE) {
                // A socket whose buffer is full does without: it is behind with what matters more.
                for socket in sockets.iter().filter(|socket| socket.connected() && Some(socket.id) != newcomer) {
                    socket.emit("new_user", &json!({})).ok();
                }
                tokio::task::yield_now().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_herd_is_told_once_an_interval_and_a_single_newcomer_not_of_itself() {
        let (announcer, start) = (Announcer::new(Duration::from_secs(1)), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        let (first, second) = (Sid::new(), Sid::new());
        assert_eq!(announcer.note(first, at(0)), Some(at(0)), "at once");
        assert_eq!(announcer.take(at(0)), Some(first));
        assert_eq!(announcer.note(second, at(10)), Some(at(1000)), "the next one waits");
        assert_eq!([announcer.note(Sid::new(), at(20)), announcer.note(Sid::new(), at(900))], [None, None]);
        assert_eq!(announcer.take(at(1000)), None, "each is told of the others");
        assert_eq!(announcer.note(first, at(5000)), Some(at(5000)));
    }
}
