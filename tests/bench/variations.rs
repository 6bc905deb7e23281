//! The loads on Tidings and on what each is compared with: itself without something, or a bare statement.

use std::pin::Pin;
use std::time::Duration;

use Aim::{AtLeast, Text};

use crate::client::Acks;
use crate::comparisons::{latency, live};
use crate::load::Plan;
use crate::measures::{self, Figures, Live};
use crate::report::{Aim, Aims};
use crate::server::{Kind, Redis};

/// One load for Tidings, side 0, and what the name says it is beside, side 1.
pub(crate) struct Variation {
    pub(crate) name: &'static str,
    pub(crate) run: fn(side: usize, quick: u32) -> Running,
    pub(crate) aims: Aims,
}

type Running = Pin<Box<dyn Future<Output = Figures>>>;

const POSTGRES: Kind = Kind::TidingsOnPostgres;
const TIME: Duration = Duration::from_secs(4);

/// Rows of the table on either side.
const ROWS: [u64; 2] = [1_000_000, 10_000];
const REQUESTS: u64 = 1_000;

const fn vary(name: &'static str, run: fn(usize, u32) -> Running, aims: Aims) -> Variation {
    Variation { name, run, aims }
}

pub(crate) const VARIATIONS: &[Variation] = &[
    vary(
        "inbox of 1,000,000 rows, beside 10,000",
        |side, quick| inbox(Kind::Tidings, side, quick),
        &[("", Text("flat"))],
    ),
    vary(
        "Postgres, inbox of 1,000,000 rows, beside 10,000",
        |side, quick| inbox(POSTGRES, side, quick),
        &[("", Text("flat"))],
    ),
    vary(
        "Postgres, 1,000 tokens, beside a bare unnest",
        |side, quick| wide(side, 1, quick),
        &[("rows/s", AtLeast(0.9))],
    ),
    vary("Postgres, 1,000 tokens, beside four connections of bare unnest", |side, quick| wide(side, 4, quick), &[]),
    vary(
        "Postgres, one hot token, beside a row lock a push",
        |side, quick| match side {
            0 => Box::pin(measures::hot(POSTGRES, TIME / quick)),
            _ => Box::pin(measures::one_row_lock(TIME / quick)),
        },
        &[("pushes/s", AtLeast(5.0))],
    ),
    vary(
        "live with the Postgres bus, beside none",
        |side, quick| Box::pin(with_bus([Some("--bus=postgres"), None][side], quick)),
        &[("pushes/s", AtLeast(0.9))],
    ),
    vary(
        "live with the Redis bus, beside none",
        |side, quick| {
            Box::pin(async move {
                let redis = (side == 0).then(Redis::start);
                let bus = redis.as_ref().map(|redis| format!("--bus={}", redis.url()));
                with_bus(bus.as_deref(), quick).await
            })
        },
        &[("pushes/s", AtLeast(0.9))],
    ),
    vary(
        "push to receipt across two nodes, Postgres bus, beside one node",
        |side, quick| Box::pin(across([Some("--bus=postgres"), None][side], quick)),
        &[("p99 ms", Text("+10 ms"))],
    ),
    vary(
        "push to receipt across two nodes, Redis bus, beside one node",
        |side, quick| {
            Box::pin(async move {
                let redis = (side == 0).then(Redis::start);
                let bus = redis.as_ref().map(|redis| format!("--bus={}", redis.url()));
                across(bus.as_deref(), quick).await
            })
        },
        &[("p99 ms", Text("+10 ms"))],
    ),
];

fn inbox(kind: Kind, side: usize, quick: u32) -> Running {
    let quick = u64::from(quick);
    Box::pin(measures::inbox(kind, ROWS[side] / quick, REQUESTS / quick))
}

fn wide(side: usize, connections: u64, quick: u32) -> Running {
    let plan = Plan { tokens: 10_000, fan: 1000, pushers: 8, rate: None };
    Box::pin(async move {
        let figures = match side {
            0 => measures::offline(POSTGRES, plan, TIME / quick).await,
            _ => measures::bare_unnest(connections, TIME / quick).await,
        };
        figures.into_iter().filter(|(name, _)| name == "rows/s").collect()
    })
}

async fn with_bus(bus: Option<&str>, quick: u32) -> Figures {
    let load = live(Acks::Batches);
    let flags: Vec<_> = bus.into_iter().collect();
    measures::live(POSTGRES, Live { time: load.time / quick, ..load }, &flags, None).await
}

async fn across(bus: Option<&str>, quick: u32) -> Figures {
    let load = latency(Acks::Batches);
    measures::live(POSTGRES, Live { time: load.time / quick, ..load }, &[], bus).await
}
