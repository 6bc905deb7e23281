//! How often and how many: requests a second by API key and by address, events a second of a socket, sockets and
//! connections by address, and what is still read of a refused body. What is answered when one is reached is decided
//! elsewhere.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::HashMapStateStore;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use http_body_util::BodyExt;
use hyper::body::Bytes;

/// So many seconds of a rate may be used up at once.
const BURST_SECS: u32 = 2;

/// How much of a body that was refused is still read, and for how long.
const DISCARDED_BYTES: usize = 16 << 20;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);

/// Reads on while the refusal goes out, and keeps nothing: a connection that is closed on a client which still sends is
/// reset, and the client (or nginx, which makes it a 502) never sees the answer.
pub async fn discard(mut body: Body) {
    let mut left = DISCARDED_BYTES;
    let read = async {
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    };
    tokio::time::timeout(DISCARD_TIMEOUT, read).await.ok();
}

/// A limit on how often, for each of many.
pub struct Rate {
    limiter: Option<RateLimiter<String, HashMapStateStore<String>, DefaultClock, StateInformationMiddleware>>,
    burst: u32,
}

/// What is left of a rate, as the `RateLimit` headers say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// How many at once when nothing was used for a while.
    pub quota: u32,
    /// In so many seconds that is full again.
    pub window_secs: u32,
    /// How many are left now.
    pub remaining: u32,
    /// How long to wait, if this one was too many.
    pub retry_after: Option<Duration>,
}

impl Rate {
    /// So many a second, and twice as many at once; with 0 there is no limit.
    #[must_use]
    pub fn per_second(rate: u32) -> Self {
        let burst = rate.saturating_mul(BURST_SECS);
        let limiter = NonZeroU32::new(rate)
            .zip(NonZeroU32::new(burst))
            .map(|(rate, burst)| RateLimiter::hashmap(Quota::per_second(rate).allow_burst(burst)).with_middleware());
        Self { limiter, burst }
    }

    /// Counts one of `who`; nothing if there is no limit.
    #[must_use]
    pub fn count(&self, who: &str) -> Option<Left> {
        let left = |remaining, retry_after| Left { quota: self.burst, window_secs: BURST_SECS, remaining, retry_after };
        Some(match self.limiter.as_ref()?.check_key(&who.to_owned()) {
            Ok(state) => left(state.remaining_burst_capacity(), None),
            Err(until) => left(0, Some(until.wait_time_from(DefaultClock::default().now()))),
        })
    }

    /// Forgets those who used nothing for a while. To be called now and then: each takes some 100 bytes.
    pub fn tidy(&self) {
        if let Some(limiter) = &self.limiter {
            limiter.retain_recent();
        }
    }
}

/// How fast one socket may be worked for.
pub struct Pace(RateLimiter<NotKeyed, InMemoryState, DefaultClock>);

impl Pace {
    /// So many a second, and `burst` at once; nothing if `rate` is 0.
    #[must_use]
    pub fn per_second(rate: u32, burst: usize) -> Option<Self> {
        let burst = NonZeroU32::new(u32::try_from(burst).unwrap_or(u32::MAX)).unwrap_or(NonZeroU32::MIN);
        Some(Self(RateLimiter::direct(Quota::per_second(NonZeroU32::new(rate)?).allow_burst(burst))))
    }

    /// Counts one; if it is too early, how long to wait before asking again.
    #[must_use]
    pub fn wait(&self) -> Option<Duration> {
        let until = self.0.check().err()?;
        Some(until.wait_time_from(DefaultClock::default().now()))
    }
}

/// Lets one line a second of each kind into the log of what anybody can cause, and counts what it leaves out.
#[derive(Debug, Default)]
pub struct Quiet(Mutex<HashMap<&'static str, (Instant, u64)>>);

impl Quiet {
    /// Whether a line of this kind is due, and if so how many were left out before it.
    #[must_use]
    pub fn due(&self, kind: &'static str, now: Instant) -> Option<u64> {
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match kinds.get_mut(kind) {
            Some((last, left_out)) if now < *last + Duration::from_secs(1) => {
                *left_out += 1;
                None
            }
            _ => Some(kinds.insert(kind, (now, 0)).map_or(0, |(_, left_out)| left_out)),
        }
    }
}

/// The log is one for the whole process, and so is what keeps it small.
static LOG: LazyLock<Quiet> = LazyLock::new(Quiet::default);

/// Whether a line of this kind is due in the log now, and if so how many were left out before it. Every line above INFO that a
/// client, or a database that is down, could repeat with each request asks here first and tells the number as `left_out`; a
/// test looks for those that do not.
#[must_use]
pub fn log_due(kind: &'static str) -> Option<u64> {
    LOG.due(kind, Instant::now())
}

/// A limit on how many at a time, for each address.
#[derive(Clone)]
pub struct Seats {
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
    most: usize,
}

/// One of the seats of an address; dropping it gives it back.
#[derive(Clone)]
#[expect(dead_code, reason = "it is held, not looked at")]
pub struct Seat(Option<Arc<Taken>>);

struct Taken {
    seats: Seats,
    address: IpAddr,
}

impl Seats {
    /// So many for each address; with 0 there is no limit.
    #[must_use]
    pub fn each(most: usize) -> Self {
        Self { taken: Arc::default(), most }
    }

    /// Takes a seat, if there is one.
    #[must_use]
    pub fn take(&self, address: IpAddr) -> Option<Seat> {
        if self.most == 0 {
            return Some(Seat(None));
        }
        let address = site(address);
        let mut taken = self.taken();
        let count = taken.entry(address).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        drop(taken);
        Some(Seat(Some(Arc::new(Taken { seats: self.clone(), address }))))
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut taken = self.seats.taken();
        if let Some(count) = taken.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

/// What counts as one address: of IPv6 the first 64 bits, because a single machine is given all that follow.
#[must_use]
pub fn site(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) >> 64 << 64)),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_rate_lets_two_seconds_worth_through_at_once_and_locks_nobody_else_out() {
        let rate = Rate::per_second(1);
        for remaining in [1, 0] {
            let left = Left { quota: 2, window_secs: 2, remaining, retry_after: None };
            assert_eq!(rate.count("one"), Some(left));
        }
        let refused = rate.count("one").unwrap();
        assert!(refused.retry_after.is_some_and(|wait| wait <= Duration::from_secs(1)), "{refused:?}");
        assert_eq!(rate.count("other").unwrap().retry_after, None);
        assert_eq!(Rate::per_second(0).count("one"), None);
    }

    #[test]
    fn the_log_gets_a_line_a_second_and_the_number_of_those_left_out() {
        let (quiet, start) = (Quiet::default(), Instant::now());
        let due = |kind, millis| quiet.due(kind, start + Duration::from_millis(millis));
        assert_eq!([due("a", 0), due("a", 1), due("a", 999)], [Some(0), None, None]);
        assert_eq!(due("b", 999), Some(0), "another kind");
        assert_eq!([due("a", 1000), due("a", 1001), due("a", 5000)], [Some(2), None, Some(1)]);
    }

    /// Where the log is told something that no request causes, each with what bounds it.
    const TOLD_ALWAYS: [(&str, &str); 9] = [
        ("main.rs", "once, at the end"),
        ("app.rs", "at the start and at the end"),
        ("app/credentials.rs", "when a problem with a file is new"),
        ("bus/retry.rs", "has its own, longer pauses"),
        ("inbox.rs", "once a sweep"),
        ("inbox/tend.rs", "once a second, or a round of retention"),
        ("store/postgres.rs", "at the start"),
        ("store/sqlite/checkpointer.rs", "once a minute, or a checkpoint"),
        ("store/sqlite/commit.rs", "at the end"),
    ];

    fn sources(folder: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => sources(&path, found),
                false => found.push(path),
            }
        }
    }

    #[test]
    fn every_line_that_a_request_can_repeat_says_how_many_were_left_out() {
        let root = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
        let (mut files, mut throttled) = (Vec::new(), 0);
        sources(root, &mut files);
        for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "rs")) {
            let (text, name) = (std::fs::read_to_string(file).unwrap(), file.strip_prefix(root).unwrap());
            let product = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            let is_exempt = TOLD_ALWAYS.iter().any(|(exempt, _)| name == std::path::Path::new(exempt));
            for level in ["warn", "error"] {
                for call in product.split(&format!("{level}!(")).skip(1) {
                    let line = call.split(");").next().unwrap();
                    throttled += usize::from(line.contains("left_out"));
                    assert!(
                        is_exempt || line.contains("left_out"),
                        "{}: {level}!({line}) may be repeated",
                        name.display()
                    );
                }
            }
        }
        assert!(throttled > 10, "{throttled}");
    }

    #[test]
    fn seats_are_counted_by_address_and_given_back() {
        let seats = Seats::each(2);
        let first = seats.take(address("10.0.0.1")).unwrap();
        let _second = seats.take(address("::ffff:10.0.0.1")).unwrap();
        assert!(seats.take(address("10.0.0.1")).is_none());
        assert!(seats.take(address("10.0.0.2")).is_some());
        drop(first);
        assert!(seats.take(address("10.0.0.1")).is_some());
        let _six = [seats.take(address("2001:db8::1")), seats.take(address("2001:db8::2"))];
        assert!(seats.take(address("2001:db8::ffff:3")).is_none(), "one site");
        assert!(seats.take(address("2001:db8:0:1::")).is_some(), "another");
        let unlimited = Seats::each(0);
        assert!((0..1000).all(|_| unlimited.take(address("10.0.0.1")).is_some()));
    }
}
