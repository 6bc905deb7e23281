//! `make bench`: the same bounded load on Tidings and on something beside it, in turns, in one table. Beside it is a Node
//! server with the same contract, unless the measure says otherwise.
//!
//! Arguments: `--rounds N` (default 3; the table shows medians), `--only TEXT` (measures whose name holds it), `--quick`
//! (shorter loads, one round).

mod client;
mod measures;
mod server;

use std::collections::BTreeMap;

use measures::Figures;
use server::{Kind, Redis};
use tokio::runtime::Runtime;

/// A load by name; it is run for side 0, Tidings, and side 1, what is beside it.
type Measure = (&'static str, fn(&Runtime, usize, u64) -> Figures);

/// `quick` divides counts and times by this.
const QUICK: u64 = 4;

const SQLITE: [Kind; 2] = [Kind::Tidings, Kind::Peer];
const POSTGRES: [Kind; 2] = [Kind::TidingsOnPostgres, Kind::PeerOnPostgres];

const LIVE: [&str; 2] = ["live: pushes/s, 64 connections", "live: processor µs a push"];
const LATENCY: [&str; 2] = ["push to receive at 500/s: p50 ms", "push to receive at 500/s: p99 ms"];
const PG_WIDE: [&str; 2] =
    ["Postgres, 1,000 tokens, beside a bare unnest: pushes/s", "Postgres, 1,000 tokens, beside a bare unnest: rows/s"];
const PG_WIDE_4: [&str; 2] = [
    "Postgres, 1,000 tokens, beside four connections of bare unnest: pushes/s",
    "Postgres, 1,000 tokens, beside four connections of bare unnest: rows/s",
];
const PG_LIVE: [&str; 2] =
    ["Postgres, live, beside Node with pg: pushes/s", "Postgres, live, beside Node with pg: processor µs a push"];
const PG_EACH: [&str; 2] = [
    "Postgres, live, beside Node with pg and a statement a push: pushes/s",
    "Postgres, live, beside Node with pg and a statement a push: processor µs a push",
];
const PG_BUS: [&str; 2] = [
    "live with the Postgres bus, beside none: pushes/s",
    "live with the Postgres bus, beside none: processor µs a push",
];
const REDIS_BUS: [&str; 2] =
    ["live with the Redis bus, beside none: pushes/s", "live with the Redis bus, beside none: processor µs a push"];
const TWO_NODES: [&str; 2] = ["across two nodes, beside one: p50 ms", "across two nodes, beside one: p99 ms"];
const TWO_REDIS: [&str; 2] =
    ["across two nodes by Redis, beside one: p50 ms", "across two nodes by Redis, beside one: p99 ms"];
const INBOX: [&str; 12] = [
    "list, 1,000,000 rows beside 10,000: p50 ms",
    "list, 1,000,000 rows beside 10,000: p99 ms",
    "counts, 1,000,000 rows beside 10,000: p50 ms",
    "counts, 1,000,000 rows beside 10,000: p99 ms",
    "read all, 1,000,000 rows beside 10,000: p50 ms",
    "read all, 1,000,000 rows beside 10,000: p99 ms",
    "list of 10,000 unread, 1,000,000 rows beside 10,000: p50 ms",
    "list of 10,000 unread, 1,000,000 rows beside 10,000: p99 ms",
    "counts of 10,000 unread, 1,000,000 rows beside 10,000: p50 ms",
    "counts of 10,000 unread, 1,000,000 rows beside 10,000: p99 ms",
    "read all of 10,000 unread, 1,000,000 rows beside 10,000: p50 ms",
    "read all of 10,000 unread, 1,000,000 rows beside 10,000: p99 ms",
];
const PG_INBOX: [&str; 12] = [
    "Postgres, list, 1,000,000 rows beside 10,000: p50 ms",
    "Postgres, list, 1,000,000 rows beside 10,000: p99 ms",
    "Postgres, counts, 1,000,000 rows beside 10,000: p50 ms",
    "Postgres, counts, 1,000,000 rows beside 10,000: p99 ms",
    "Postgres, read all, 1,000,000 rows beside 10,000: p50 ms",
    "Postgres, read all, 1,000,000 rows beside 10,000: p99 ms",
    "Postgres, list of 10,000 unread, 1,000,000 rows beside 10,000: p50 ms",
    "Postgres, list of 10,000 unread, 1,000,000 rows beside 10,000: p99 ms",
    "Postgres, counts of 10,000 unread, 1,000,000 rows beside 10,000: p50 ms",
    "Postgres, counts of 10,000 unread, 1,000,000 rows beside 10,000: p99 ms",
    "Postgres, read all of 10,000 unread, 1,000,000 rows beside 10,000: p50 ms",
    "Postgres, read all of 10,000 unread, 1,000,000 rows beside 10,000: p99 ms",
];
/// Rows of the table on either side.
const ROWS: [u64; 2] = [1_000_000, 10_000];
const HOT: &str = "one hot token, beside a row lock a push: pushes/s";

const MEASURES: [Measure; 22] = [
    ("push 1", |rt, s, f| rt.block_on(measures::pushes(SQLITE[s], 1, ["1 token: pushes/s", "1 token: rows/s"], 4 / f))),
    ("push 10", |rt, s, f| {
        rt.block_on(measures::pushes(SQLITE[s], 10, ["10 tokens: pushes/s", "10 tokens: rows/s"], 4 / f))
    }),
    ("push 1000", |rt, s, f| {
        rt.block_on(measures::pushes(SQLITE[s], 1000, ["1,000 tokens: pushes/s", "1,000 tokens: rows/s"], 4 / f))
    }),
    ("live", |rt, s, f| rt.block_on(measures::live(SQLITE[s], &[], LIVE, 4 / f))),
    ("latency", |rt, s, f| rt.block_on(measures::latency(SQLITE[s], None, LATENCY, 8 / f))),
    ("fan-out", |rt, s, f| rt.block_on(measures::fan_out(SQLITE[s], 40 / f))),
    ("replay batch", |rt, s, _| {
        let names = ["replay to 1,000 logins, batches: rows/s", "replay, batches: processor µs a row"];
        rt.block_on(measures::replay(SQLITE[s], true, names))
    }),
    ("replay plain", |rt, s, _| {
        let names = ["replay to 1,000 logins, one by one: rows/s", "replay, one by one: processor µs a row"];
        rt.block_on(measures::replay(SQLITE[s], false, names))
    }),
    ("herd 1000", |rt, s, _| rt.block_on(measures::herd(SQLITE[s], 1000, "herd of 1,000: logins/s"))),
    ("herd 5000", |rt, s, _| rt.block_on(measures::herd(SQLITE[s], 5000, "herd of 5,000: logins/s"))),
    ("memory", |rt, s, f| rt.block_on(measures::memory(SQLITE[s], 5000 / f))),
    ("inbox", |rt, s, f| rt.block_on(measures::inbox(SQLITE[0], ROWS[s] / f, INBOX, 1_000 / f))),
    ("postgres inbox", |rt, s, f| rt.block_on(measures::inbox(POSTGRES[0], ROWS[s] / f, PG_INBOX, 1_000 / f))),
    ("postgres live", |rt, s, f| rt.block_on(measures::live(POSTGRES[s], &[], PG_LIVE, 4 / f))),
    ("postgres live beside a statement a push", |rt, s, f| {
        let kind = [Kind::TidingsOnPostgres, Kind::PeerOnPostgresEach][s];
        rt.block_on(measures::live(kind, &[], PG_EACH, 4 / f))
    }),
    ("postgres push 1000", |rt, s, f| {
        rt.block_on(async {
            match s {
                0 => measures::pushes(POSTGRES[0], 1000, PG_WIDE, 4 / f).await,
                _ => measures::bare_unnest(1, PG_WIDE, 4 / f).await,
            }
        })
    }),
    ("postgres push 1000 beside four", |rt, s, f| {
        rt.block_on(async {
            match s {
                0 => measures::pushes(POSTGRES[0], 1000, PG_WIDE_4, 4 / f).await,
                _ => measures::bare_unnest(4, PG_WIDE_4, 4 / f).await,
            }
        })
    }),
    ("postgres hot", |rt, s, f| {
        rt.block_on(async {
            match s {
                0 => measures::hot(POSTGRES[0], HOT, 4 / f).await,
                _ => measures::one_row_lock(HOT, 4 / f).await,
            }
        })
    }),
    ("bus postgres", |rt, s, f| {
        let flags: [&[&str]; 2] = [&["--bus=postgres"], &[]];
        rt.block_on(measures::live(POSTGRES[0], flags[s], PG_BUS, 4 / f))
    }),
    ("bus redis", |rt, s, f| {
        let redis = Redis::start();
        let bus = format!("--bus={}", redis.url());
        let flags: [&[&str]; 2] = [&[&bus], &[]];
        rt.block_on(measures::live(POSTGRES[0], flags[s], REDIS_BUS, 4 / f))
    }),
    ("nodes postgres", |rt, s, f| {
        rt.block_on(measures::latency(POSTGRES[0], [Some("--bus=postgres"), None][s], TWO_NODES, 8 / f))
    }),
    ("nodes redis", |rt, s, f| {
        let redis = Redis::start();
        let bus = format!("--bus={}", redis.url());
        rt.block_on(measures::latency(POSTGRES[0], [Some(&*bus), None][s], TWO_REDIS, 8 / f))
    }),
];

/// What the ratio should be at least, or at most.
const AIMS: [(&str, &str); 17] = [
    ("1,000 tokens: rows/s", ">= 1.3"),
    (LIVE[0], ">= 2.5"),
    (LIVE[1], "<= 0.4"),
    (LATENCY[1], "<= 0.5"),
    ("1,000 sockets of one token: deliveries/s", ">= 4"),
    ("replay to 1,000 logins, batches: rows/s", ">= 8"),
    ("replay to 1,000 logins, one by one: rows/s", ">= 8"),
    ("herd of 5,000: logins/s", ">= 4"),
    ("resident KiB an idle socket", "< 20 KiB"),
    (PG_LIVE[0], ">= 4"),
    (PG_EACH[0], ">= 4"),
    (PG_WIDE[1], ">= 0.9"),
    (HOT, ">= 5"),
    (PG_BUS[0], ">= 0.9"),
    (REDIS_BUS[0], ">= 0.9"),
    (TWO_NODES[1], "+10 ms"),
    (TWO_REDIS[1], "+10 ms"),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |flag: &str| arguments.iter().position(|given| given == flag).and_then(|at| arguments.get(at + 1));
    let quick = arguments.iter().any(|given| given == "--quick");
    let rounds = value("--rounds").and_then(|rounds| rounds.parse().ok()).unwrap_or(if quick { 1 } else { 3 });
    let only = value("--only").cloned().unwrap_or_default();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");

    println!("| measure | Tidings | beside | ratio | aim |\n|---|---:|---:|---:|---:|");
    for (name, measure) in MEASURES.into_iter().filter(|(name, _)| name.contains(&only)) {
        let mut samples: BTreeMap<(usize, &str), [Vec<f64>; 2]> = BTreeMap::new();
        for _ in 0..rounds {
            for (side, kind) in ["Tidings", "beside"].into_iter().enumerate() {
                eprintln!("{name}: {kind}");
                let figures = measure(&runtime, side, if quick { QUICK } else { 1 });
                for (at, (figure, value)) in figures.into_iter().enumerate() {
                    samples.entry((at, figure)).or_default()[side].push(value);
                }
            }
        }
        for ((_, figure), [tidings, peer]) in samples {
            let (tidings, peer) = (median(tidings), median(peer));
            let aims = AIMS.into_iter().chain(INBOX.into_iter().chain(PG_INBOX).map(|figure| (figure, "flat")));
            let aim = aims.filter(|(measured, _)| *measured == figure).map(|(_, aim)| aim).next().unwrap_or_default();
            println!("| {figure} | {} | {} | {:.2} | {aim} |", shown(tidings), shown(peer), tidings / peer);
        }
    }
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

fn shown(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
