//! How soon a connection to the bus is tried again, and how often that is told.

use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

/// The first pause; each that follows is twice as long.
const FIRST: Duration = Duration::from_millis(500);

/// The longest: other nodes' sockets wait as long at most when the bus is back.
const LONGEST: Duration = Duration::from_secs(5);

/// Between two warnings.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// The failures of one connection.
#[derive(Debug, Default)]
pub(super) struct Retry {
    /// Since it last worked.
    failures: u32,
    /// Since the last warning.
    untold: u64,
    warned_at: Option<Instant>,
}

impl Retry {
    /// Notes a failure, of which `what` tells the consequence, and returns how long to wait.
    pub(super) fn failed(&mut self, what: &str, problem: &str) -> Duration {
        let pause = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures += 1;
        let now = Instant::now();
        if self.warned_at.is_none_or(|last| now >= last + WARN_EVERY) {
            warn!(%problem, failures = self.untold + 1, "{what}; trying again within {} s", LONGEST.as_secs());
            (self.warned_at, self.untold) = (Some(now), 0);
        } else {
            self.untold += 1;
        }
        pause
    }

    /// The next failure is a first one. It is not told sooner for that: a connection may work for a moment each time.
    pub(super) fn worked(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_to_a_limit_and_begin_anew_when_it_worked() {
        let mut retry = Retry::default();
        let pauses: Vec<_> = (0..6).map(|_| retry.failed("It is down", "refused").as_millis()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 5000, 5000]);
        for _ in 0..100 {
            assert_eq!(retry.failed("It is down", "refused"), LONGEST);
        }
        retry.worked();
        assert_eq!(retry.failed("It is down", "refused"), FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_warning_is_due_once_a_minute() {
        let mut retry = Retry::default();
        let mut warnings = 0;
        for second in 0..=180 {
            retry.failed("It is down", "refused");
            retry.worked();
            warnings += u64::from(retry.untold == 0);
            assert_eq!(warnings, second / 60 + 1, "after {second} s");
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    }
}
