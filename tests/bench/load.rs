//! The backends of a load: connections that push, as fast as they are answered or at a rate.

use std::cell::Cell;
use std::io::Write;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::task::LocalSet;

use crate::client::{HttpConnection, Tally};

/// Who gets which push: push `n` goes to `fan` tokens that follow each other, the next push to those after them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) tokens: u64,
    pub(crate) fan: u64,
    /// Connections that push at the same time.
    pub(crate) pushers: u64,
    /// Pushes a second over all connections; `None` for as many as are answered.
    pub(crate) rate: Option<u64>,
}

/// When a load ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Until {
    Passed(Duration),
    Pushed(u64),
}

/// What was pushed.
pub(crate) struct Pushed {
    pub(crate) pushes: u64,
    pub(crate) took: Duration,
    /// What each token must receive.
    pub(crate) expected: Vec<Tally>,
}

/// Pushes and waits for every answer. Messages carry their number and microseconds since `epoch`.
///
/// A push that starts late at a fixed rate is timed from when it was due.
pub(crate) async fn push(address: SocketAddr, prefix: &str, plan: Plan, until: Until, epoch: Instant) -> Pushed {
    let mut connections = Vec::new();
    for _ in 0..plan.pushers {
        connections.push(HttpConnection::connect(address).await.expect("connect"));
    }
    let (next, expected) = (Rc::new(Cell::new(0)), Rc::new(Expected::new(plan.tokens)));
    let started = Instant::now();
    let (end, count) = match until {
        Until::Passed(time) => {
            (Some(started + time), plan.rate.map(|rate| rate * u64::try_from(time.as_millis()).expect("short") / 1000))
        }
        Until::Pushed(count) => (None, Some(count)),
    };
    let pushers = LocalSet::new();
    let mut tasks = Vec::new();
    for mut connection in connections {
        let (next, expected, prefix) = (Rc::clone(&next), Rc::clone(&expected), prefix.to_owned());
        tasks.push(pushers.spawn_local(async move {
            let (mut body, mut pushes) = (Vec::new(), 0);
            loop {
                let number = next.get();
                if count.is_some_and(|count| number >= count)
                    || plan.rate.is_none() && end.is_some_and(|end| Instant::now() >= end)
                {
                    return pushes;
                }
                next.set(number + 1);
                let mut at = Instant::now();
                if let Some(rate) = plan.rate {
                    let due = started + Duration::from_secs(number) / u32::try_from(rate).expect("a small rate");
                    if due > at {
                        tokio::time::sleep_until(due.into()).await;
                        at = Instant::now();
                    } else {
                        at = due;
                    }
                }
                write_body(&mut body, &prefix, plan, number, at - epoch);
                connection.push(&body).await.expect("push");
                expected.add(plan, number);
                pushes += 1;
            }
        }));
    }
    let pushes = pushers
        .run_until(async {
            let mut pushes = 0;
            for task in tasks {
                pushes += task.await.expect("a pusher");
            }
            pushes
        })
        .await;
    Pushed { pushes, took: started.elapsed(), expected: expected.tallies() }
}

/// What each token must receive, of what was answered.
struct Expected(Vec<Cell<Tally>>);

impl Expected {
    fn new(tokens: u64) -> Self {
        Self((0..tokens).map(|_| Cell::default()).collect())
    }

    fn add(&self, plan: Plan, number: u64) {
        for token in plan.targets(number) {
            let tally = &self.0[usize::try_from(token).expect("memory holds them")];
            let mut sum = tally.get();
            sum.add(number);
            tally.set(sum);
        }
    }

    fn tallies(&self) -> Vec<Tally> {
        self.0.iter().map(Cell::get).collect()
    }
}

impl Plan {
    fn targets(self, number: u64) -> impl Iterator<Item = u64> {
        let first = number * self.fan;
        (first..first + self.fan).map(move |target| target % self.tokens)
    }
}

/// About 200 bytes beside the tokens, as a like or a comment has.
fn write_body(body: &mut Vec<u8>, prefix: &str, plan: Plan, number: u64, at: Duration) {
    body.clear();
    body.extend_from_slice(b"{\"tokens\":[");
    for (index, token) in plan.targets(number).enumerate() {
        let comma = if index == 0 { "" } else { "," };
        write!(body, "{comma}\"{prefix}{token}\"").expect("memory takes it");
    }
    write!(body, r#"],"entityType":"like","data":{}}}"#, Data { number, micros: at.as_micros() })
        .expect("memory takes it");
}

/// The data of a message.
pub(crate) struct Data {
    pub(crate) number: u64,
    pub(crate) micros: u128,
}

impl std::fmt::Display for Data {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const TEXT: &str = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";
        let Self { number, micros } = self;
        write!(f, r#"{{"n":{number},"t":{micros},"who":"somebody","post":4711,"text":"{TEXT}"}}"#)
    }
}
