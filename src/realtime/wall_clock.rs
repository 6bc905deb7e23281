//! Waiting for a time of the wall clock, as the `exp` of a login is one.
//!
//! A timer counts from when it is set: it knows nothing of a clock that somebody corrects, and stands still while the machine
//! sleeps. So the clock is looked at again and again until it is time.

use std::time::Duration;

use chrono::{DateTime, Utc};

/// The clock is looked at this often at least. By so much a login may outlive its end where the clock went forward or the
/// machine slept. 10,000 sockets that wait are 333 short wake-ups a second.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Returns when `now` is `end` or later.
pub(super) async fn until(end: DateTime<Utc>, now: impl Fn() -> DateTime<Utc>) {
    while let Some(left) = (end - now()).to_std().ok().filter(|left| !left.is_zero()) {
        tokio::time::sleep(left.min(LOOK_AGAIN)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use chrono::TimeDelta;
    use tokio::time::Instant;

    use super::*;

    /// A wall clock that goes with tokio's until it is set.
    #[derive(Clone)]
    struct Clock {
        start: Instant,
        ahead_secs: Arc<AtomicI64>,
    }

    impl Clock {
        fn new() -> Self {
            Self { start: Instant::now(), ahead_secs: Arc::default() }
        }

        fn now(&self) -> DateTime<Utc> {
            let passed = TimeDelta::from_std(self.start.elapsed()).unwrap();
            DateTime::UNIX_EPOCH + passed + TimeDelta::seconds(self.ahead_secs.load(Ordering::Relaxed))
        }

        fn at(secs: i64) -> DateTime<Utc> {
            DateTime::UNIX_EPOCH + TimeDelta::seconds(secs)
        }

        /// Sets the clock after a while, and says when a wait for an hour was over.
        async fn over(self, set_after: Duration, ahead_secs: i64) -> Duration {
            let (clock, set) = (self.clone(), self.ahead_secs.clone());
            tokio::spawn(async move {
                tokio::time::sleep(set_after).await;
                set.store(ahead_secs, Ordering::Relaxed);
            });
            until(Self::at(3600), move || clock.now()).await;
            self.start.elapsed()
        }
    }

    fn assert_within(elapsed: Duration, expected: Duration, late: Duration) {
        // A timer is rounded up to a millisecond.
        assert!((expected..=expected + late + Duration::from_millis(1)).contains(&elapsed), "{elapsed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_over_when_the_clock_says_so() {
        let elapsed = Clock::new().over(Duration::from_hours(2), 0).await;
        assert_within(elapsed, Duration::from_hours(1), Duration::from_secs(1));
        let clock = Clock::new();
        until(Clock::at(0), || clock.now()).await;
        until(Clock::at(-5), || clock.now()).await;
        assert_eq!(clock.start.elapsed(), Duration::ZERO, "what has passed is over");
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_goes_forward_is_noticed_soon_and_one_that_goes_back_waited_for() {
        let set_after = Duration::from_mins(10);
        let forward = Clock::new().over(set_after, 86_400).await;
        assert_within(forward, set_after, LOOK_AGAIN);
        // As after a sleep: the clock has gone on, the timer has not, and ten seconds are left.
        let slept = Clock::new().over(set_after, 2990).await;
        assert_within(slept, set_after + Duration::from_secs(10), LOOK_AGAIN);
        let back = Clock::new().over(set_after, -1800).await;
        assert_within(back, Duration::from_secs(3600 + 1800), Duration::from_secs(1));
    }
}
