//! The measures. Each is bounded in count and time, checks that nothing was lost, and returns its figures.

mod inbox;
mod postgres;

pub(crate) use inbox::inbox;
pub(crate) use postgres::{bare_unnest, one_row_lock};

use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::client::{Acks, PATIENCE, Sessions, Tally};
use crate::load::{Plan, Pushed, Until, push};
use crate::process;
use crate::server::{Kind, Server};

/// Figures by name.
pub(crate) type Figures = Vec<(String, f64)>;

/// Sockets that are opened at the same time, unless the measure is about that.
const OPENING: usize = 64;

/// For acks that are on their way, and what a server does after its answers.
const SETTLE: Duration = Duration::from_millis(500);

/// A load whose sockets are logged in before it begins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Live {
    pub(crate) sockets: u64,
    pub(crate) acks: Acks,
    pub(crate) plan: Plan,
    pub(crate) time: Duration,
    pub(crate) figures: LiveFigures,
}

/// What a live load is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LiveFigures {
    Pushes,
    Deliveries,
    Latency,
}

/// Processor time of a server and of this process.
struct Used {
    server: Duration,
    client: Duration,
}

impl Used {
    fn until_now(server: &Server) -> Self {
        Self { server: server.processor_time(), client: process::time(std::process::id()) }
    }

    /// The time since then, in microseconds for each of `count`.
    fn figures(&self, server: &Server, count: u64, each: &str) -> Figures {
        let now = Self::until_now(server);
        let micros = |time: Duration| time.as_micros() as f64 / count as f64;
        vec![
            (format!("processor µs a {each}"), micros(now.server - self.server)),
            (format!("processor µs a {each}, of the load client"), micros(now.client - self.client)),
        ]
    }
}

/// Pushes to sockets that are logged in. With `bus` they are on another node than the pushes.
pub(crate) async fn live(kind: Kind, load: Live, flags: &[&str], bus: Option<&str>) -> Figures {
    let flags: Vec<_> = flags.iter().copied().chain(bus).collect();
    let server = Server::start(kind, &flags);
    let other = bus.map(|_| server.beside(&flags));
    let reader = other.as_ref().unwrap_or(&server);
    let epoch = Instant::now();
    let sockets = (load.sockets, load.plan.tokens, "");
    let sessions = Sessions::open(reader.address, sockets, load.acks, OPENING, epoch);
    sessions.ready().await;
    tokio::time::sleep(SETTLE).await;

    let (used, started) = (Used::until_now(&server), Instant::now());
    let pushed = push(server.address, "", load.plan, Until::Passed(load.time), epoch).await;
    let due = (0..load.sockets).map(|socket| expected(&pushed, load.plan, socket).messages).sum();
    sessions.expect(due).await;
    let received_in = (sessions.received().last - started).max(pushed.took);
    tokio::time::sleep(SETTLE).await;
    let mut figures = match load.figures {
        LiveFigures::Pushes => {
            let rate = pushed.pushes as f64 / pushed.took.as_secs_f64();
            let mut figures = vec![("pushes/s".to_owned(), rate)];
            figures.extend(used.figures(&server, pushed.pushes, "push"));
            figures
        }
        LiveFigures::Deliveries => {
            let mut figures = vec![("deliveries/s".to_owned(), due as f64 / received_in.as_secs_f64())];
            figures.extend(used.figures(&server, due, "delivery"));
            figures
        }
        LiveFigures::Latency => Vec::new(),
    };
    check(kind, load.plan, &pushed, &sessions);
    if load.figures == LiveFigures::Latency {
        let received = sessions.received();
        let millis = |quantile| received.latency.value_at_quantile(quantile) as f64 / 1000.0;
        figures = vec![("p50 ms".to_owned(), millis(0.5)), ("p99 ms".to_owned(), millis(0.99))];
    }
    check_acks(reader, load.plan.tokens, load.acks, sessions).await;
    figures
}

/// What a socket must have received.
fn expected(pushed: &Pushed, plan: Plan, socket: u64) -> Tally {
    pushed.expected[usize::try_from(socket % plan.tokens).expect("memory holds them")]
}

/// Every socket must have received each message of its token once, and in order if the server promises that.
fn check(kind: Kind, plan: Plan, pushed: &Pushed, sessions: &Sessions) {
    let received = sessions.received();
    for (socket, tally) in (0..).zip(&received.tallies) {
        let expected = expected(pushed, plan, socket);
        assert_eq!(*tally, expected, "socket {socket} did not receive each message once");
    }
    assert!(received.disorder == 0 || !kind.is_ordered(), "{} messages came out of order", received.disorder);
}

/// After the acks a new login must find nothing undelivered: what was acked is marked, at the latest soon.
async fn check_acks(server: &Server, tokens: u64, acks: Acks, sessions: Sessions) {
    if acks == Acks::Never {
        return;
    }
    sessions.acked().await;
    drop(sessions);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let again = Sessions::open(server.address, (tokens, tokens, ""), Acks::Never, OPENING, Instant::now());
        again.ready().await;
        let left = again.received().messages;
        if left == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{left} acked messages come again");
        drop(again);
        tokio::time::sleep(SETTLE).await;
    }
}

/// Pushes to tokens that nobody is logged in as.
pub(crate) async fn offline(kind: Kind, plan: Plan, time: Duration) -> Figures {
    /// So many tokens are asked afterwards what they have.
    const ASKED: u64 = 200;
    let server = Server::start(kind, &[]);
    let epoch = Instant::now();
    let used = Used::until_now(&server);
    let pushed = push(server.address, "", plan, Until::Passed(time), epoch).await;
    tokio::time::sleep(SETTLE).await;
    let rate = pushed.pushes as f64 / pushed.took.as_secs_f64();
    let mut figures = vec![("pushes/s".to_owned(), rate), ("rows/s".to_owned(), rate * plan.fan as f64)];
    figures.extend(used.figures(&server, pushed.pushes * plan.fan, "row"));
    let asked = Plan { tokens: plan.tokens.min(ASKED), ..plan };
    let sessions = Sessions::open(server.address, (asked.tokens, asked.tokens, ""), Acks::Never, OPENING, epoch);
    sessions.ready().await;
    check(kind, asked, &pushed, &sessions);
    figures
}

/// Messages that are stored for tokens, all of which log in at once, from the TCP connection on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Replay {
    pub(crate) tokens: u64,
    /// For each token.
    pub(crate) messages: u64,
    pub(crate) acks: Acks,
    /// Whether it is about logins.
    pub(crate) logins: bool,
}

pub(crate) async fn replay(kind: Kind, load: Replay) -> Figures {
    let server = Server::start(kind, &[]);
    let epoch = Instant::now();
    let plan = Plan { tokens: load.tokens, fan: 100, pushers: 16, rate: None };
    let count = load.tokens * load.messages;
    let pushed = push(server.address, "", plan, Until::Pushed(count / plan.fan), epoch).await;
    tokio::time::sleep(SETTLE).await;

    let (used, started) = (Used::until_now(&server), Instant::now());
    let sockets = (load.tokens, load.tokens, "");
    let sessions = Sessions::open(server.address, sockets, load.acks, Semaphore::MAX_PERMITS, epoch);
    sessions.ready().await;
    sessions.expect(count).await;
    let took = sessions.received().last - started;
    tokio::time::sleep(SETTLE).await;
    let (done, name, each) =
        if load.logins { (load.tokens, "logins/s", "login") } else { (count, "messages/s", "message") };
    let mut figures = vec![(name.to_owned(), done as f64 / took.as_secs_f64())];
    figures.extend(used.figures(&server, done, each));
    check(kind, plan, &pushed, &sessions);
    check_acks(&server, load.tokens, load.acks, sessions).await;
    figures
}

/// Resident memory that an idle logged-in websocket adds, once each was pinged.
pub(crate) async fn idle(kind: Kind, sockets: u64) -> Figures {
    /// One second more than the ping interval of all servers.
    const IDLE: Duration = Duration::from_secs(26);
    let server = Server::start(kind, &[]);
    // What the server needs once is not a socket's: warm it up with some that go again.
    let warm = Sessions::open(server.address, (200, 200, "warm-"), Acks::Never, OPENING, Instant::now());
    warm.ready().await;
    drop(warm);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = server.resident();
    let sessions = Sessions::open(server.address, (sockets, sockets, ""), Acks::Never, OPENING, Instant::now());
    sessions.ready().await;
    tokio::time::sleep(IDLE).await;
    let added = server.resident().saturating_sub(before) as f64;
    // None was lost meanwhile.
    sessions.ready().await;
    vec![("resident KiB a socket".to_owned(), added / sockets as f64 / 1024.0)]
}

/// Everybody pushes to one token.
pub(crate) async fn hot(kind: Kind, time: Duration) -> Figures {
    let plan = Plan { tokens: 1, fan: 1, pushers: 64, rate: None };
    offline(kind, plan, time).await.into_iter().filter(|(name, _)| name == "pushes/s").collect()
}
