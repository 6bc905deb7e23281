//! Users who come, read, ack and go, in every way, for a while: nothing of them may stay.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::api::Api;
use crate::load::Seeded;
use crate::server::{PATIENCE, TestServer};
use crate::socket::{Dial, Engine};

/// How long, in seconds; `TIDINGS_TEST_CHURN_SECS` makes it longer.
const SECS: u64 = 9;

const USERS: u64 = 40;

/// One user comes, hears what waited and what is pushed meanwhile, and goes politely or not.
async fn visit(address: SocketAddr, api: &Api, chance: &mut Seeded) {
    let token = chance.below(USERS).to_string();
    let engine = if chance.percent(50) { Engine::V4 } else { Engine::V3 };
    let dial = Dial::new(address).engine(engine);
    let dial = if chance.percent(20) { dial.polling() } else { dial };
    let mut socket = dial.connect().await;
    socket.login(&token).await;
    let replay = socket.replay().await;
    socket.ack_up_to(replay.rev).await;
    let pushed = api.push(&token, r#"{"who":"somebody"}"#).await;
    // Others may be here as the same user and push as well.
    while !socket.event().await.messages().iter().any(|message| message.id == pushed.id) {}
    socket.receipt(if chance.percent(50) { "read" } else { "ack" }, &[&pushed.id]).await;
    match chance.below(4) {
        0 => {}
        1 => drop(socket.send("41").await),
        2 => drop(socket.send("1").await),
        _ => drop(socket.call(r#"["user_logout"]"#).await),
    }
}

#[tokio::test]
async fn users_who_come_and_go_leave_nothing_behind() {
    // With little of the file in memory, as that grows while the file does.
    let cache = "--sqlite-cache-mib=1";
    let flags =
        ["--ping-interval-secs=1", "--ping-timeout-secs=1", "--ping-timeout-2x-secs=1", "--startup-check-mib=0", cache];
    let server = TestServer::with(&flags).await;
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("a process has files").count();
    let before = descriptors();
    let secs = std::env::var("TIDINGS_TEST_CHURN_SECS").ok().and_then(|text| text.parse().ok()).unwrap_or(SECS);
    let mut seeds = Seeded::announced();
    let end = Instant::now() + Duration::from_secs(secs);
    let warm = Instant::now() + Duration::from_secs(secs) / 3;
    let mut users = JoinSet::new();
    for _ in 0..8 {
        let (address, api, mut chance) = (server.address(), server.api(), seeds.fork());
        users.spawn(async move {
            let mut visits = 0;
            while Instant::now() < end {
                visit(address, &api, &mut chance).await;
                visits += 1;
            }
            visits
        });
    }
    tokio::time::sleep_until(warm.into()).await;
    let resident = server.resident_kib();
    let visits: Vec<u32> = users.join_all().await;
    let grown = server.resident_kib().saturating_sub(resident);
    println!("{} visits, {resident} KiB, then {grown} more", visits.iter().sum::<u32>());
    assert!(visits.iter().all(|visits| *visits > 5), "{visits:?}");
    assert!(grown < resident / 4 + 8 * 1024, "{grown} KiB on top of {resident}");
    let gone = async {
        loop {
            let sessions = server.metric("tidings_sessions").await;
            let inboxes = server.metric("tidings_connected_inboxes").await;
            if (sessions, inboxes) == (0.0, 0.0) && descriptors() <= before + 8 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the hub is empty and every descriptor is back");
}
