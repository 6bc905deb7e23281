//! `make bench`: the same bounded load on Tidings and on a Node server with the same contract, in turns, in one table.
//!
//! Arguments: `--rounds N` (default 3; the table shows medians), `--only TEXT` (measures whose name holds it), `--quick`
//! (shorter loads, one round).

mod client;
mod measures;
mod server;

use std::collections::BTreeMap;

use measures::Figures;
use server::Kind;

/// A load by name.
type Measure = (&'static str, fn(&tokio::runtime::Runtime, Kind, u64) -> Figures);

/// `quick` divides counts and times by this.
const QUICK: u64 = 4;

const MEASURES: [Measure; 11] = [
    ("push 1", |rt, kind, f| rt.block_on(measures::pushes(kind, 1, ["1 token: pushes/s", "1 token: rows/s"], 4 / f))),
    ("push 10", |rt, kind, f| {
        rt.block_on(measures::pushes(kind, 10, ["10 tokens: pushes/s", "10 tokens: rows/s"], 4 / f))
    }),
    ("push 1000", |rt, kind, f| {
        rt.block_on(measures::pushes(kind, 1000, ["1,000 tokens: pushes/s", "1,000 tokens: rows/s"], 4 / f))
    }),
    ("live", |rt, kind, f| rt.block_on(measures::live(kind, 4 / f))),
    ("latency", |rt, kind, f| rt.block_on(measures::latency(kind, 8 / f))),
    ("fan-out", |rt, kind, f| rt.block_on(measures::fan_out(kind, 40 / f))),
    ("replay batch", |rt, kind, _| {
        let names = ["replay to 1,000 logins, batches: rows/s", "replay, batches: processor µs a row"];
        rt.block_on(measures::replay(kind, true, names))
    }),
    ("replay plain", |rt, kind, _| {
        let names = ["replay to 1,000 logins, one by one: rows/s", "replay, one by one: processor µs a row"];
        rt.block_on(measures::replay(kind, false, names))
    }),
    ("herd 1000", |rt, kind, _| rt.block_on(measures::herd(kind, 1000, "herd of 1,000: logins/s"))),
    ("herd 5000", |rt, kind, _| rt.block_on(measures::herd(kind, 5000, "herd of 5,000: logins/s"))),
    ("memory", |rt, kind, f| rt.block_on(measures::memory(kind, 5000 / f))),
];

/// What the ratio should be at least, or at most.
const AIMS: [(&str, &str); 9] = [
    ("1,000 tokens: rows/s", ">= 1.3"),
    ("live: pushes/s, 64 connections", ">= 2.5"),
    ("live: processor µs a push", "<= 0.4"),
    ("push to receive at 500/s: p99 ms", "<= 0.5"),
    ("1,000 sockets of one token: deliveries/s", ">= 4"),
    ("replay to 1,000 logins, batches: rows/s", ">= 8"),
    ("replay to 1,000 logins, one by one: rows/s", ">= 8"),
    ("herd of 5,000: logins/s", ">= 4"),
    ("resident KiB an idle socket", "< 20 KiB"),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |flag: &str| arguments.iter().position(|given| given == flag).and_then(|at| arguments.get(at + 1));
    let quick = arguments.iter().any(|given| given == "--quick");
    let rounds = value("--rounds").and_then(|rounds| rounds.parse().ok()).unwrap_or(if quick { 1 } else { 3 });
    let only = value("--only").cloned().unwrap_or_default();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");

    println!("| measure | Tidings | Node server | ratio | aim |\n|---|---:|---:|---:|---:|");
    for (name, measure) in MEASURES.into_iter().filter(|(name, _)| name.contains(&only)) {
        let mut samples: BTreeMap<(usize, &str), [Vec<f64>; 2]> = BTreeMap::new();
        for _ in 0..rounds {
            for kind in [Kind::Tidings, Kind::Peer] {
                eprintln!("{name}: {kind:?}");
                let figures = measure(&runtime, kind, if quick { QUICK } else { 1 });
                for (at, (figure, value)) in figures.into_iter().enumerate() {
                    samples.entry((at, figure)).or_default()[kind as usize].push(value);
                }
            }
        }
        for ((_, figure), [tidings, peer]) in samples {
            let (tidings, peer) = (median(tidings), median(peer));
            let aim = AIMS.iter().find(|(measured, _)| *measured == figure).map_or("", |(_, aim)| aim);
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
