//! Several nodes on one database: whoever takes a push, every node's sockets get it, in order and once.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;

use crate::load::{Load, Seeded};
use crate::proxy::{ChaosProxy, address_in};
use crate::redis::Redis;
use crate::server::TestServer;

/// So long that no test waits for it: what arrives came by the bus, or by the sweep that follows a gap.
const NO_SWEEP: &str = "--sweep-interval-secs=3600";

/// Nodes on one database, and the bus between them.
struct Cluster {
    nodes: Vec<TestServer>,
    redis: Option<Redis>,
}

impl Cluster {
    async fn start(bus: &str, count: usize, flags: &[&str]) -> Self {
        let redis = if bus == "redis" { Some(Redis::start().await) } else { None };
        let url = redis.as_ref().map_or(bus.to_owned(), Redis::url);
        let mut nodes: Vec<TestServer> = Vec::new();
        for _ in 0..if bus == "local" { 1 } else { count } {
            let builder = match nodes.first() {
                Some(first) => TestServer::builder().at(first.place().clone()),
                None => TestServer::builder().on_postgres(),
            };
            let builder = flags.iter().fold(builder, |builder, flag| builder.flag(flag));
            nodes.push(builder.flag(&format!("--bus={url}")).start().await);
        }
        Self { nodes, redis }
    }

    /// The n-th node, or the only one.
    fn node(&self, n: usize) -> &TestServer {
        &self.nodes[n % self.nodes.len()]
    }

    /// Runs SQL as an admin.
    fn sql(&self, sql: &str) -> String {
        match self.nodes[0].place() {
            crate::server::Place::Postgres(database) => database.sql(sql),
            crate::server::Place::File(_) => panic!("nodes share a Postgres database"),
        }
    }
}

/// What holds on every bus is tested on each; the local one has a single node.
const BUSES: [&str; 3] = ["local", "postgres", "redis"];

/// For what takes another node.
const BUSES_BETWEEN: [&str; 2] = ["postgres", "redis"];

#[tokio::test]
async fn a_user_who_is_cut_off_or_erased_on_one_node_is_so_on_all() {
    for bus in BUSES {
        let cluster = Cluster::start(bus, 2, &[NO_SWEEP]).await;
        for (method, path) in [("POST", "/api/sessions/1/disconnect"), ("DELETE", "/api/inbox/1")] {
            let (mut here, mut there) =
                (cluster.node(0).login_empty("1").await, cluster.node(1).login_empty("1").await);
            let mut other = cluster.node(1).login_empty("2").await;
            cluster.node(0).api().ask(method, path, &json!(null)).await;
            here.expect_end().await;
            there.expect_end().await;
            cluster.node(0).api().push("2", "1").await;
            let message = other.expect_message().await;
            other.receipt("ack", &[&message.id]).await;
        }
    }
}

#[tokio::test]
async fn a_push_to_one_node_reaches_the_sockets_of_all() {
    for bus in BUSES {
        let cluster = Cluster::start(bus, 3, &[NO_SWEEP]).await;
        let mut sockets = Vec::new();
        for node in &cluster.nodes {
            sockets.push(node.login_empty("1").await);
        }
        for (n, node) in (1..).zip(&cluster.nodes) {
            let pushed = node.api().push("1", &n.to_string()).await;
            assert_eq!(pushed.results[0].seq, n, "one inbox, whichever node");
            for socket in &mut sockets {
                let message = socket.expect_message().await;
                assert_eq!((message.id.as_str(), message.seq, message.replay), (pushed.id.as_str(), n, false), "{bus}");
            }
        }
    }
}

#[tokio::test]
async fn a_redis_with_a_private_ca_is_heard_by_who_knows_the_ca_and_by_nobody_else() {
    let redis = Redis::start_tls().await;
    let bus = format!("--bus={}", redis.url());
    let known = format!("--bus-ca-file={}", redis.ca_file().display());
    let other = crate::redis::certify("127.0.0.1");
    let unknown = format!("--bus-ca-file={}", other.path().join("ca.pem").display());
    let first = TestServer::builder().on_postgres().flag(&bus).flag(&known).flag(NO_SWEEP).start().await;
    let node = |ca: Option<&str>| {
        let builder = TestServer::builder().at(first.place().clone()).flag(&bus).flag(NO_SWEEP);
        ca.into_iter().fold(builder, |builder, ca| builder.flag(ca))
    };
    let second = node(Some(&known)).start().await;
    let mut there = second.login_empty("1").await;
    let pushed = first.api().push("1", "{}").await;
    assert_eq!(there.expect_message().await.id, pushed.id, "over TLS");
    let path = redis.ca_file().display().to_string();
    let third = TestServer::builder().at(first.place().clone()).flag(&bus).flag(NO_SWEEP).env("SSL_CERT_FILE", &path);
    let third = third.start().await;
    let mut elsewhere = third.login("1").await;
    elsewhere.replay().await;
    let pushed = first.api().push("1", "{}").await;
    assert_eq!(elsewhere.expect_message().await.id, pushed.id, "the variable that other programs know does as well");
    for ca in [None, Some(&*unknown)] {
        let deaf = node(ca).start().await;
        let told = async {
            // The second line is where its metrics are.
            while !["Lost the bus", "Metrics are at"].iter().all(|line| deaf.stderr().contains(line)) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(crate::server::PATIENCE, told).await.expect("it says so");
        assert!(deaf.stderr().contains("certificate"), "{}", deaf.stderr());
        // It is tried more often than that is told.
        let tried = async {
            while deaf.metric(r#"tidings_bus_failures_total{operation="listen"}"#).await < 3.0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(crate::server::PATIENCE, tried).await.expect("it is tried again");
        assert_eq!(deaf.stderr().matches("Lost the bus").count(), 1, "{}", deaf.stderr());
    }
}

#[tokio::test]
async fn a_read_on_one_node_is_told_to_the_tabs_on_the_others() {
    for bus in BUSES {
        let cluster = Cluster::start(bus, 2, &[NO_SWEEP]).await;
        let mut here = cluster.node(0).login_empty("1").await;
        let mut there = cluster.node(1).login_empty("1").await;
        let pushed = cluster.node(0).api().push("1", "{}").await;
        here.expect_message().await;
        there.expect_message().await;
        assert_eq!(here.receipt("read", &[&pushed.id]).await, json!({"ok": true, "rev": 2, "unread": 0}));
        let change = there.expect_event("inbox_changed").await;
        assert_eq!((&change["rev"], &change["unread"]), (&json!(2), &json!(0)), "{bus}: {change}");
    }
}

#[tokio::test]
async fn pushes_to_one_token_through_two_nodes_at_once_come_everywhere_in_one_order() {
    const EACH: usize = 60;
    for bus in BUSES {
        let cluster = Cluster::start(bus, 2, &[NO_SWEEP]).await;
        let mut sockets = Vec::new();
        for node in cluster.nodes.iter().cycle().take(4) {
            sockets.push(node.login_empty("hot").await);
        }
        let pushes = cluster.nodes.iter().cycle().take(8).enumerate().map(|(n, node)| {
            let api = node.api();
            async move {
                for _ in 0..EACH {
                    api.push("hot", &n.to_string()).await;
                }
            }
        });
        join_all(pushes).await;
        let total = i64::try_from(8 * EACH).unwrap();
        let mut seen = Vec::new();
        for socket in &mut sockets {
            let mut messages = Vec::new();
            while messages.len() < 8 * EACH {
                messages.push(socket.expect_message().await);
            }
            assert!(messages.iter().map(|message| message.seq).eq(1..=total), "{bus}: without a gap and in order");
            seen.push(messages.into_iter().map(|message| message.id).collect::<Vec<_>>());
        }
        assert!(seen.iter().all(|ids| *ids == seen[0]), "{bus}: everywhere the same order");
    }
}

#[tokio::test]
async fn a_node_killed_under_load_loses_nothing_that_was_answered() {
    for bus in BUSES_BETWEEN {
        let mut chance = Seeded::announced();
        let mut cluster = Cluster::start(bus, 2, &["--sweep-interval-secs=1"]).await;
        let nodes: Vec<&TestServer> = cluster.nodes.iter().collect();
        let load = Load::on_nodes(&nodes, &mut chance, 4, 6);
        for round in 0..6 {
            load.recorder.accepts_more(chance.between(20, 120)).await;
            let node = &mut cluster.nodes[round % 2];
            node.kill_9().await;
            load.recorder.accepts_more(20).await;
            node.start_again().await;
        }
        load.recorder.accepts_more(50).await;
        let (recorder, tokens) = load.finish().await;
        recorder.settle(cluster.node(0), &tokens).await;
    }
}

#[tokio::test]
async fn committed_and_never_hinted_it_comes_with_the_sweep() {
    // Each node alone: nobody tells anybody anything.
    let first = TestServer::builder().on_postgres().flag("--bus=local").start().await;
    let second = TestServer::builder().at(first.place().clone()).flag("--sweep-interval-secs=1").start().await;
    let mut socket = second.login_empty("1").await;
    let pushed = first.api().push("1", "{}").await;
    assert_eq!(socket.expect_message().await.id, pushed.id);
}

#[tokio::test]
async fn a_node_that_dies_between_commit_and_hint_costs_at_most_a_sweep() {
    let mut cluster = Cluster::start("redis", 2, &["--sweep-interval-secs=1"]).await;
    let mut socket = cluster.nodes[1].login_empty("1").await;
    // What it wants to tell stays with it, and goes with it.
    cluster.redis.as_ref().unwrap().freeze().await;
    let pushed = cluster.nodes[0].api().push_numbers("1", 20).await;
    cluster.nodes[0].kill_9().await;
    let messages = socket.expect_messages(20).await;
    assert!(messages.iter().map(|message| &message.id).eq(pushed.iter().map(|pushed| &pushed.id)));
    cluster.redis.as_ref().unwrap().thaw().await;
    cluster.nodes[1].table().expect_sound().await;
}

#[tokio::test]
async fn a_bus_connection_that_falls_silent_is_made_anew() {
    let redis = Redis::start().await;
    for bus in ["postgres", "redis"] {
        let here = TestServer::builder().on_postgres();
        let here = here.flag(&format!("--bus={}", if bus == "redis" { redis.url() } else { bus.to_owned() }));
        let here = here.flag(NO_SWEEP).start().await;
        let (target, url) = match bus {
            "redis" => (redis.address(), redis.url()),
            _ => (address_in(&here.place().url()), here.place().url()),
        };
        let proxy = ChaosProxy::in_front_of(target).await;
        let through = url.replace(&target.to_string(), &proxy.address.to_string());
        let there = TestServer::builder().at(here.place().clone()).flag("--bus-silence-secs=1").flag(NO_SWEEP);
        let there = match bus {
            "redis" => there.flag(&format!("--bus={through}")),
            _ => there.flag("--bus=postgres").flag(&format!("--database-url={through}")).flag("--store-timeout-secs=1"),
        };
        let there = there.start().await;
        let mut socket = there.login_empty("1").await;
        here.api().push("1", "1").await;
        socket.expect_message().await;
        // The connection stays, and says nothing any more.
        proxy.set(|faults| faults.swallow_answers = true);
        let began = std::time::Instant::now();
        while there.metric(r#"tidings_bus_failures_total{operation="listen"}"#).await == 0.0 {
            assert!(began.elapsed() < crate::server::PATIENCE, "{bus}: nobody noticed");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        proxy.set(|faults| faults.swallow_answers = false);
        for n in 2..=3 {
            let pushed = here.api().push("1", &n.to_string()).await;
            assert_eq!(socket.expect_message().await.id, pushed.id, "{bus}");
        }
    }
}

#[tokio::test]
async fn forged_hints_change_nothing() {
    for bus in BUSES {
        let mut chance = Seeded::announced();
        let cluster = Cluster::start(bus, 2, &["--sweep-interval-secs=1"]).await;
        let nodes: Vec<&TestServer> = cluster.nodes.iter().collect();
        let load = Load::on_nodes(&nodes, &mut chance, 4, 6);
        for round in 0..5_i64 {
            load.recorder.accepts_more(20).await;
            let tokens = ["mallory".to_owned(), cluster.sql("select min(token) from inbox").trim().to_owned()];
            for (token, rev) in tokens.iter().flat_map(|token| [(token, 1_i64 << 60), (token, round), (token, -1)]) {
                match &cluster.redis {
                    Some(redis) => redis.publish(&format!("tidings:{token}"), &rev.to_string()).await,
                    None => {
                        let forged = json!({"from": "00000000-0000-0000-0000-000000000000", "moved": [[token, rev]]});
                        cluster
                            .sql(&format!("select pg_notify('tidings', '{forged}'), pg_notify('tidings', 'not JSON')"));
                    }
                }
            }
        }
        let (recorder, tokens) = load.finish().await;
        recorder.settle(nodes[0], &tokens).await;
    }
}

#[tokio::test]
async fn many_writers_of_two_nodes_meet_in_the_same_inboxes_without_a_deadlock() {
    let cluster = Cluster::start("postgres", 2, &["--writers=16"]).await;
    let producers = (0..16_usize).map(|producer| {
        let api = cluster.node(producer).api();
        async move {
            for push in 0..25_usize {
                // Overlapping sets, each in another order.
                let mut tokens: Vec<_> = (0..20).map(|n| ((producer * 7 + push * 3 + n) % 40).to_string()).collect();
                let middle = producer % 20;
                tokens.rotate_left(middle);
                let mut body = json!({"tokens": tokens, "data": push});
                if push % 5 == 0 {
                    body["groupKey"] = json!("g");
                }
                assert_eq!(api.post(&body.to_string()).await.status, 200);
            }
        }
    });
    join_all(producers).await;
    cluster.nodes[0].table().expect_sound().await;
    // They are run again when it happens, so nobody would see it otherwise. The server counts with some delay.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(cluster.sql("select deadlocks from pg_stat_database where datname = current_database()").trim(), "0");
}

#[tokio::test]
async fn redis_may_die_and_come_back() {
    let mut cluster = Cluster::start("redis", 2, &[NO_SWEEP]).await;
    let mut socket = cluster.nodes[1].login_empty("1").await;
    let api = cluster.nodes[0].api();
    api.push("1", "1").await;
    socket.expect_message().await;
    cluster.redis.as_mut().unwrap().kill().await;
    for n in 2..=20 {
        api.push("1", &n.to_string()).await;
    }
    assert_ne!(cluster.nodes[1].metric(r#"tidings_bus_failures_total{operation="listen"}"#).await, 0.0);
    // Who comes while the bus is down is not kept out, and catches up like everybody.
    let mut newcomer = cluster.nodes[1].login("1").await;
    assert_eq!(newcomer.replay().await.messages.len(), 20);
    cluster.redis.as_mut().unwrap().start_again().await;
    for n in 2..=20 {
        assert_eq!(socket.expect_message().await.seq, n, "what was not hinted follows by itself");
    }
    let pushed = api.push("1", "21").await;
    for socket in [&mut socket, &mut newcomer] {
        assert_eq!(socket.expect_message().await.id, pushed.id);
    }
}

#[tokio::test]
async fn a_redis_that_hangs_holds_up_no_push_and_no_login() {
    let cluster = Cluster::start("redis", 2, &["--sweep-interval-secs=1"]).await;
    let mut socket = cluster.nodes[1].login_empty("1").await;
    let redis = cluster.redis.as_ref().unwrap();
    redis.freeze().await;
    // Far more than a pipeline takes, each answered while the bus answers nothing.
    cluster.nodes[0].api().push_numbers("1", 500).await;
    socket.expect_messages(500).await;
    let mut newcomer = cluster.nodes[1].login("2").await;
    assert!(newcomer.replay().await.messages.is_empty());
    assert_ne!(cluster.nodes[1].metric("tidings_sweep_repairs_total").await, 0.0, "the sweep found them");
    redis.thaw().await;
    let pushed = cluster.nodes[0].api().push("2", "{}").await;
    assert_eq!(newcomer.expect_message().await.id, pushed.id);
}

#[tokio::test]
async fn what_one_node_acks_during_a_replay_on_another_is_skipped_only_there() {
    const WINDOW: usize = 10;
    for bus in BUSES {
        let cluster = Cluster::start(bus, 2, &[NO_SWEEP, &format!("--window={WINDOW}"), "--replay-rows=5"]).await;
        cluster.node(0).api().push_numbers("1", 40).await;
        // One tab stands still in the middle of its replay, because it does not ack.
        let mut slow = cluster.node(0).connect().await;
        slow.login_batch("1").await;
        let mut seen = Vec::new();
        while seen.len() < WINDOW {
            seen.extend(slow.event().await.messages().into_iter().map(|message| message.seq));
        }
        // The other acks everything, and new ones come meanwhile.
        let mut quick = cluster.node(1).login("1").await;
        assert_eq!(quick.replay().await.messages.len(), 40);
        quick.ack_up_to(40).await;
        for n in 41..=45 {
            assert_eq!(cluster.node(usize::from(n % 2 == 0)).api().push("1", "{}").await.results[0].seq, n);
            assert_eq!(quick.expect_message().await.seq, n, "{bus}");
        }
        // What it was not sent yet is delivered now and no longer its business; all that is newer than its login is.
        slow.ack_up_to(*seen.last().unwrap()).await;
        while seen.last() != Some(&45) {
            seen.extend(slow.event().await.messages().into_iter().map(|message| message.seq));
            slow.ack_up_to(*seen.last().unwrap()).await;
        }
        assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "{bus}: {seen:?}");
        assert!((41..=45).all(|n| seen.contains(&n)), "{bus}: {seen:?}");
        assert!(seen.len() < 45, "{bus}: acked rows are skipped in the replay, {seen:?}");
    }
}

#[tokio::test]
async fn what_is_for_later_enters_once_whichever_node_does_it() {
    const PUSHES: usize = 50;
    let cluster = Cluster::start("postgres", 2, &["--sweep-interval-secs=1"]).await;
    let mut sockets = Vec::new();
    for node in &cluster.nodes {
        sockets.push(node.login_empty("1").await);
    }
    let due = (chrono::Utc::now() + chrono::TimeDelta::seconds(4)).to_rfc3339();
    let mut ids = std::collections::BTreeSet::new();
    for n in 0..PUSHES {
        let push = json!({"tokens": ["1", "2"], "data": n, "deliverAt": due});
        ids.insert(cluster.nodes[n % 2].api().push_as(push).await["id"].as_str().unwrap().to_owned());
    }
    for socket in &mut sockets {
        let messages = socket.expect_messages(PUSHES).await;
        let came: std::collections::BTreeSet<_> = messages.iter().map(|message| message.id.clone()).collect();
        assert_eq!(came, ids);
        socket.expect_quiet(Duration::from_millis(1500)).await;
    }
    assert_eq!(cluster.sql("select count(*) from notification").trim(), (2 * PUSHES).to_string());
    cluster.nodes[0].table().expect_sound().await;
}

#[tokio::test]
async fn what_is_sent_live_only_reaches_the_other_nodes_too() {
    for bus in BUSES {
        let cluster = Cluster::start(bus, 2, &[NO_SWEEP]).await;
        let mut there = cluster.node(1).login_empty("1").await;
        let mut batching = cluster.node(1).connect().await;
        batching.login_batch("1").await;
        batching.replay().await;
        let pushed = cluster.node(0).api().push_as(json!({"tokens": "1", "data": "now", "ttl": 0})).await;
        assert_eq!(there.expect_event("receive_message").await["id"], pushed["id"], "{bus}");
        assert_eq!(batching.expect_event("receive_messages").await[0]["data"], json!("now"), "{bus}");
        assert_eq!(cluster.sql("select count(*) from notification").trim(), "0");
    }
}

#[tokio::test]
async fn a_wrong_bus_costs_no_push() {
    let redis = Redis::start().await;
    let wrong = redis.url().replace("redis://", "redis://user:wrong@");
    let node = TestServer::builder().on_postgres().flag(&format!("--bus={wrong}")).start().await;
    let mut socket = node.login_empty("1").await;
    let pushed = node.api().push("1", "{}").await;
    assert_eq!(socket.expect_message().await.id, pushed.id);
    assert!(!node.stderr().contains("wrong"), "the password is not logged");

    let refusal = TestServer::builder().on_postgres().flag("--bus=carrier-pigeon").prepare().start_refused().await;
    assert!(refusal.code == Some(1) && refusal.stderr.contains("carrier-pigeon"), "{refusal:?}");
    let refusal = TestServer::builder().on_sqlite().flag("--bus=postgres").prepare().start_refused().await;
    assert!(refusal.code == Some(1) && refusal.stderr.contains("postgres"), "{refusal:?}");
}

#[tokio::test]
async fn the_listening_connection_may_be_cut() {
    let cluster = Cluster::start("postgres", 2, &[NO_SWEEP]).await;
    let mut socket = cluster.nodes[1].login_empty("1").await;
    let failures = r#"tidings_bus_failures_total{operation="listen"}"#;
    for n in 1..=5 {
        let cut = "select count(pg_terminate_backend(pid)) from pg_stat_activity
            where application_name = 'tidings bus' and datname = current_database()";
        assert_ne!(cluster.sql(cut).trim(), "0");
        cluster.nodes[0].api().push("1", &n.to_string()).await;
        assert_eq!(socket.expect_message().await.seq, n);
        assert!(cluster.nodes[1].metric(failures).await > 0.0, "it is counted");
    }
}

#[tokio::test]
async fn every_database_connection_may_be_cut_again_and_again() {
    let mut chance = Seeded::announced();
    let cluster = Cluster::start("postgres", 2, &["--sweep-interval-secs=1"]).await;
    let nodes: Vec<&TestServer> = cluster.nodes.iter().collect();
    let mut bystander = nodes[0].login_empty("bystander").await;
    let load = Load::on_nodes(&nodes, &mut chance, 4, 6);
    for _ in 0..10 {
        load.recorder.accepts_more(chance.between(20, 120)).await;
        let cut = "select count(pg_terminate_backend(pid)) from pg_stat_activity
            where application_name like 'tidings%' and datname = current_database()";
        assert_ne!(cluster.sql(cut).trim(), "0");
    }
    load.recorder.accepts_more(50).await;
    let (recorder, tokens) = load.finish().await;
    recorder.settle(nodes[1], &tokens).await;
    bystander.expect_quiet(Duration::from_millis(100)).await;
    assert_eq!(bystander.receipt("ack", &[]).await, json!({"ok": true}), "its socket never noticed");
}

#[tokio::test]
async fn an_admin_who_leaves_a_transaction_open_holds_up_nobody() {
    let cluster = Cluster::start("postgres", 2, &[NO_SWEEP]).await;
    let lock =
        crate::table::OpenTransaction::holding(cluster.nodes[0].place(), "select count(*) from notification").await;
    let mut socket = cluster.nodes[1].login_empty("1").await;
    for n in 1..=20 {
        cluster.nodes[usize::from(n % 2 == 0)].api().push("1", &n.to_string()).await;
        assert_eq!(socket.expect_message().await.seq, n);
    }
    drop(lock);
}

#[tokio::test]
async fn a_renewed_epoch_is_told_while_the_nodes_run_whatever_the_revs_are() {
    let cluster = Cluster::start("postgres", 2, &["--sweep-interval-secs=1"]).await;
    cluster.nodes[0].api().push_numbers("1", 3).await;
    let mut there = cluster.nodes[1].login("1").await;
    there.replay().await;
    let before = cluster.nodes[0].connect().await.login("1").await.epoch;
    cluster.sql("update meta set epoch = 'restored'");
    let resync = json!({"epoch": "restored", "rev": 3, "unread": 3});
    // At once to who comes with a cursor, and with the next sweep to who is there.
    let mut late = cluster.nodes[0].connect().await;
    let login = late.login_with(&format!(r#"["user_login",{{"tokenId":"1","rev":3,"epoch":"{before}"}}]"#)).await;
    assert_eq!(login.epoch, "restored");
    assert_eq!(late.expect_event("resync").await, resync);
    assert_eq!(there.expect_event("resync").await, resync);
    assert_eq!(cluster.nodes[1].api().list("1", "").await["epoch"], "restored");
}

#[tokio::test]
async fn a_sweep_repairs_nothing_where_nothing_was_lost() {
    let node = TestServer::builder().flag("--sweep-interval-secs=1").start().await;
    node.api().push_numbers("1", 3).await;
    let mut socket = node.login("1").await;
    socket.replay().await;
    socket.expect_quiet(Duration::from_millis(2500)).await;
    assert_eq!(node.metric("tidings_sweep_repairs_total").await, 0.0);
}

#[tokio::test]
async fn after_a_restored_backup_the_sockets_are_told_to_start_over() {
    let cluster = Cluster::start("postgres", 2, &["--sweep-interval-secs=1"]).await;
    let mut sockets = Vec::new();
    for node in &cluster.nodes {
        sockets.push(node.login_empty("1").await);
    }
    cluster.nodes[0].api().push_numbers("1", 5).await;
    for socket in &mut sockets {
        socket.expect_messages(5).await;
    }
    cluster.sql(
        "begin; update meta set epoch = 'restored'; delete from notification where seq > 2;
        update inbox set rev = 2, unread = 2, delivered_upto = 0; commit",
    );
    for socket in &mut sockets {
        let resync = socket.expect_event("resync").await;
        assert_eq!(resync, json!({"epoch": "restored", "rev": 2, "unread": 2}));
    }
    let pushed = cluster.nodes[1].api().push("1", "{}").await;
    assert_eq!(pushed.results[0].seq, 3);
    for socket in &mut sockets {
        assert_eq!(socket.expect_message().await.id, pushed.id);
    }
    assert_eq!(cluster.nodes[0].connect().await.login("1").await.epoch, "restored");
}
