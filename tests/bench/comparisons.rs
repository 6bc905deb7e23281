//! The loads on Tidings, on a Node server of the same contract, and on the floor.

use std::time::Duration;

use Acks::{Batches, Each, Never};
use Aim::{AtLeast, AtMost, Below};
use Kind::{Floor, Node, NodeOnPostgres, NodeOnPostgresEach, Tidings, TidingsOnPostgres};

use crate::client::Acks;
use crate::load::Plan;
use crate::measures::{self, Figures, Live, LiveFigures, Replay};
use crate::report::{Aim, Aims};
use crate::server::Kind;

/// One load for all of its servers.
pub(crate) struct Comparison {
    pub(crate) name: &'static str,
    /// Tidings first, then Node, then the floor if there is one.
    pub(crate) servers: &'static [Kind],
    load: Load,
    pub(crate) aims: Aims,
}

enum Load {
    Live(Live),
    Offline(Plan),
    Replay(Replay),
    Idle(u64),
}

impl Comparison {
    /// Runs it on one server. `quick` divides counts and times.
    pub(crate) async fn run(&self, server: Kind, quick: u32) -> Figures {
        match self.load {
            Load::Live(live) => measures::live(server, Live { time: live.time / quick, ..live }, &[], None).await,
            Load::Offline(plan) => measures::offline(server, plan, TIME / quick).await,
            Load::Replay(replay) => measures::replay(server, replay).await,
            Load::Idle(sockets) => measures::idle(server, sockets / u64::from(quick)).await,
        }
    }
}

const SQLITE: &[Kind] = &[Tidings, Node, Floor];
const POSTGRES: &[Kind] = &[TidingsOnPostgres, NodeOnPostgres];
const POSTGRES_EACH: &[Kind] = &[TidingsOnPostgres, NodeOnPostgresEach];

const TIME: Duration = Duration::from_secs(6);

const fn compare(name: &'static str, servers: &'static [Kind], load: Load, aims: Aims) -> Comparison {
    Comparison { name, servers, load, aims }
}

const fn plan(tokens: u64, fan: u64, pushers: u64) -> Plan {
    Plan { tokens, fan, pushers, rate: None }
}

/// As fast as it goes to 200 sockets, each of another token.
pub(crate) const fn live(acks: Acks) -> Live {
    Live { sockets: 200, acks, plan: plan(200, 1, 64), time: TIME, figures: LiveFigures::Pushes }
}

/// At 500 pushes a second.
pub(crate) const fn latency(acks: Acks) -> Live {
    let plan = Plan { rate: Some(500), ..plan(200, 1, 16) };
    Live { sockets: 200, acks, plan, time: Duration::from_secs(10), figures: LiveFigures::Latency }
}

/// Pushes to 1,000 tokens that have a socket each.
const fn fan(acks: Acks) -> Load {
    let plan = plan(1000, 1000, 2);
    Load::Live(Live { sockets: 1000, acks, plan, time: TIME, figures: LiveFigures::Deliveries })
}

/// Pushes to one token with 1,000 sockets.
const ROOM: Load =
    Load::Live(Live { sockets: 1000, acks: Never, plan: plan(1, 1, 2), time: TIME, figures: LiveFigures::Deliveries });

const fn replay(tokens: u64, messages: u64, acks: Acks) -> Load {
    Load::Replay(Replay { tokens, messages, acks, logins: false })
}

/// Logins at once, each with one message to replay.
const fn herd(tokens: u64) -> Load {
    Load::Replay(Replay { tokens, messages: 1, acks: Each, logins: true })
}

pub(crate) const COMPARISONS: &[Comparison] = &[
    compare("live, each message acked", SQLITE, Load::Live(live(Each)), &[("pushes/s", AtLeast(1.8))]),
    compare("live, acked in batches", SQLITE, Load::Live(live(Batches)), &[]),
    compare("live, not acked", SQLITE, Load::Live(live(Never)), &[("pushes/s", AtLeast(2.0))]),
    compare("offline, 1 token", SQLITE, Load::Offline(plan(10_000, 1, 64)), &[("pushes/s", AtLeast(1.5))]),
    compare("offline, 10 tokens", SQLITE, Load::Offline(plan(10_000, 10, 32)), &[("rows/s", AtLeast(1.3))]),
    compare("offline, 1,000 tokens", SQLITE, Load::Offline(plan(10_000, 1000, 8)), &[("rows/s", AtLeast(1.4))]),
    compare(
        "push to receipt at 500/s, each acked",
        SQLITE,
        Load::Live(latency(Each)),
        &[("p50 ms", AtMost(1.0)), ("p99 ms", AtMost(0.33))],
    ),
    compare("fan to 1,000 tokens, each acked", SQLITE, fan(Each), &[("deliveries/s", AtLeast(2.5))]),
    compare("fan to 1,000 tokens, acked in batches", SQLITE, fan(Batches), &[]),
    compare("fan to 1,000 tokens, not acked", SQLITE, fan(Never), &[]),
    compare("room of 1,000 sockets, not acked", SQLITE, ROOM, &[("deliveries/s", AtLeast(3.8))]),
    compare("replay of 1,000 x 100, each acked", SQLITE, replay(1000, 100, Each), &[("messages/s", AtLeast(7.0))]),
    compare("replay of 1,000 x 100, acked in batches", SQLITE, replay(1000, 100, Batches), &[]),
    compare("replay of 1,000 x 100, not acked", SQLITE, replay(1000, 100, Never), &[]),
    compare("replay of 100 x 1,000, each acked", SQLITE, replay(100, 1000, Each), &[("messages/s", AtLeast(10.0))]),
    compare("replay of 100 x 1,000, acked in batches", SQLITE, replay(100, 1000, Batches), &[]),
    compare("herd of 1,000", SQLITE, herd(1000), &[]),
    compare("herd of 5,000", SQLITE, herd(5000), &[("logins/s", AtLeast(4.0))]),
    compare("idle", SQLITE, Load::Idle(10_000), &[("resident KiB a socket", Below(20.0))]),
    compare("Postgres, live, each message acked", POSTGRES, Load::Live(live(Each)), &[("pushes/s", AtLeast(3.0))]),
    compare("Postgres, live, acked in batches", POSTGRES, Load::Live(live(Batches)), &[]),
    compare("Postgres, live, not acked", POSTGRES, Load::Live(live(Never)), &[]),
    compare(
        "Postgres, live, each message acked, Node with a statement a push",
        POSTGRES_EACH,
        Load::Live(live(Each)),
        &[("pushes/s", AtLeast(4.0))],
    ),
    compare(
        "Postgres, offline, 1,000 tokens, Node with parallel unnest",
        POSTGRES_EACH,
        Load::Offline(plan(10_000, 1000, 8)),
        &[("rows/s", AtLeast(0.85))],
    ),
    compare(
        "Postgres, replay of 100 x 1,000, each acked",
        POSTGRES,
        replay(100, 1000, Each),
        &[("messages/s", AtLeast(3.0))],
    ),
];
