//! `make bench`: the same bounded load on Tidings and on other servers, in turns, in two tables.
//!
//! Arguments: `--rounds N` (default 3; the tables show medians), `--only TEXT` (measures whose name holds it), `--quick`
//! (shorter loads, one round). With `floor FILE` it is the [`floor`] instead.

mod client;
mod comparisons;
mod floor;
mod load;
mod measures;
mod process;
mod report;
mod server;
mod variations;

use std::path::Path;
use std::time::Duration;

use comparisons::COMPARISONS;
use measures::Figures;
use report::Samples;
use tokio::runtime::Runtime;
use variations::VARIATIONS;

/// `--quick` divides counts and times by this.
const QUICK: u32 = 4;

/// No run of a measure on one server takes longer.
const LIMIT: Duration = Duration::from_secs(300);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, file] = &*arguments
        && role == "floor"
    {
        return floor::run(Path::new(file));
    }
    let value = |flag: &str| arguments.iter().position(|given| given == flag).and_then(|at| arguments.get(at + 1));
    let quick = arguments.iter().any(|given| given == "--quick");
    let rounds = value("--rounds").and_then(|rounds| rounds.parse().ok()).unwrap_or(if quick { 1 } else { 3 });
    let only = value("--only").cloned().unwrap_or_default();
    let quick = if quick { QUICK } else { 1 };
    // One thread: the load client must leave the processors to the servers.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");

    println!("| measure | Tidings | Node | floor | to Node | to floor | aim |\n|---|---:|---:|---:|---:|---:|---:|");
    for comparison in COMPARISONS.iter().filter(|comparison| comparison.name.contains(&only)) {
        let mut samples = Samples::new(comparison.servers.len());
        for _ in 0..rounds {
            for (at, server) in comparison.servers.iter().enumerate() {
                eprintln!("{}: {server:?}", comparison.name);
                samples.add(at, run(&runtime, comparison.run(*server, quick)));
            }
        }
        samples.print(comparison.name, 3, comparison.aims);
    }
    println!("\n| measure | Tidings | beside | ratio | aim |\n|---|---:|---:|---:|---:|");
    for variation in VARIATIONS.iter().filter(|variation| variation.name.contains(&only)) {
        let mut samples = Samples::new(2);
        for _ in 0..rounds {
            for (side, name) in ["Tidings", "beside"].into_iter().enumerate() {
                eprintln!("{}: {name}", variation.name);
                samples.add(side, run(&runtime, (variation.run)(side, quick)));
            }
        }
        samples.print(variation.name, 2, variation.aims);
    }
}

fn run(runtime: &Runtime, measure: impl Future<Output = Figures>) -> Figures {
    runtime.block_on(async { tokio::time::timeout(LIMIT, measure).await.expect("a measure ends in time") })
}
