//! The Postgres server crashes, hangs, or is cut off: that costs time and refusals, never a socket and never a row.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::sleep;

use crate::load::{Load, Seeded};
use crate::postgres::{Database, Server};
use crate::proxy::{ChaosProxy, address_in};
use crate::server::{PATIENCE, Place, TestServer};

fn place(server: &Server) -> Place {
    Place::Postgres(std::sync::Arc::new(Database::create_on(server)))
}

#[tokio::test]
async fn the_database_server_may_crash_under_load() {
    let mut chance = Seeded::announced();
    let mut postgres = Server::start();
    let server = TestServer::builder().at(place(&postgres)).start().await;
    let mut bystander = server.login_empty("bystander").await;
    let load = Load::start(&server, &mut chance, 4, 6);
    for round in 0..4 {
        load.recorder.accepts_more(chance.between(20, 120)).await;
        postgres.order("restart");
        let back = Instant::now();
        load.recorder.accepts_more(1).await;
        assert!(back.elapsed() < Duration::from_secs(10), "round {round}: {:?}", back.elapsed());
    }
    load.recorder.accepts_more(50).await;
    let (recorder, tokens) = load.finish().await;
    recorder.settle(&server, &tokens).await;
    assert_eq!(bystander.receipt("ack", &[]).await, json!({"ok": true}), "its socket never noticed");
}

#[tokio::test]
async fn a_database_server_that_hangs_is_said_in_time_and_waited_out() {
    let mut postgres = Server::start();
    let flags = ["--store-timeout-secs=1", "--write-queue=32"];
    let builder = flags.iter().fold(TestServer::builder().at(place(&postgres)), |builder, flag| builder.flag(flag));
    let server = builder.start().await;
    let mut live = server.login_empty("1").await;
    server.api().push("1", "0").await;
    live.expect_message().await;
    let before = server.resident_kib();
    postgres.order("pause");
    let (mut busy, mut unknown) = (0, 0);
    let paused = Instant::now();
    while paused.elapsed() < Duration::from_secs(15) {
        let api = server.api();
        let body = r#"{"tokens":["1"],"data":{}}"#;
        let began = Instant::now();
        let answers = futures_util::future::join_all((0..100).map(|_| api.try_post(None, body))).await;
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        for answer in answers {
            match answer.unwrap().code().as_str() {
                "busy" => busy += 1,
                "outcome_unknown" | "storage_unavailable" => unknown += 1,
                other => panic!("{other}"),
            }
        }
    }
    assert!(busy > 0 && unknown > 0, "{busy} busy, {unknown} unknown");
    assert!(server.resident_kib() < before + 20 * 1024, "{before} KiB grew to {}", server.resident_kib());
    postgres.order("resume");
    let began = Instant::now();
    let id = loop {
        let answer = server.api().post(r#"{"tokens":["1"],"data":"after"}"#).await;
        if answer.status == 200 {
            break answer.pushed().id;
        }
        assert!(began.elapsed() < PATIENCE, "{}", answer.text);
        sleep(Duration::from_millis(50)).await;
    };
    let rows = server.table().rows("1").await;
    assert_eq!(rows.last().map(|row| row.id.as_str()), Some(id.as_str()));
    for row in &rows[1..] {
        assert_eq!(live.expect_message().await.id, row.id, "live goes on, in order");
    }
}

/// A server whose database is behind a network that fails.
async fn behind_a_proxy(flags: &[&str]) -> (ChaosProxy, TestServer) {
    let database = Database::create();
    let address = address_in(&database.url());
    let proxy = ChaosProxy::in_front_of(address).await;
    let url = database.url().replace(&address.to_string(), &proxy.address.to_string());
    let builder = TestServer::builder().at(Place::Postgres(std::sync::Arc::new(database)));
    let builder = flags.iter().fold(builder, |builder, flag| builder.flag(flag));
    let server = builder.flag(&format!("--database-url={url}")).start().await;
    (proxy, server)
}

/// Asks until the answer is 200.
async fn recovered(server: &TestServer, path: &str) -> Duration {
    let began = Instant::now();
    while server.api().get(path).await.status != 200 {
        assert!(began.elapsed() < PATIENCE, "{path} does not work again");
        sleep(Duration::from_millis(50)).await;
    }
    began.elapsed()
}

#[tokio::test]
async fn a_database_that_is_silent_costs_few_lines_of_the_log_however_many_ask() {
    const KINDS: usize = 8;
    let (proxy, server) = behind_a_proxy(&["--store-timeout-secs=1"]).await;
    let mut socket = server.connect().await;
    let before = server.stderr().lines().count();
    proxy.set(|faults| faults.swallow_answers = true);
    let (began, api) = (Instant::now(), server.api());
    for _ in 0..2 {
        let lists = futures_util::future::join_all((0..200).map(|_| api.get("/api/inbox/1")));
        let pushes = futures_util::future::join_all((0..200).map(|_| api.post(r#"{"tokens":["1"]}"#)));
        let (lists, pushes) = tokio::join!(lists, pushes);
        assert!(lists.iter().chain(&pushes).all(|answer| answer.status == 503));
        assert_eq!(socket.call(r#"["user_login",{"tokenId":"1"}]"#).await["code"], json!("unavailable"));
    }
    let seconds = usize::try_from(began.elapsed().as_secs()).expect("not for ever");
    let said = server.stderr();
    let lines: Vec<_> =
        said.lines().skip(before).filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
    assert!(lines.len() <= KINDS * (seconds + 2), "{} lines in {seconds} s", lines.len());
    for line in ["The database failed a request", "Commit failed"] {
        assert!(lines.iter().any(|said| said.contains(line) && said.contains("left_out=")), "{line}: {said}");
    }
}

#[tokio::test]
async fn a_database_that_falls_silent_is_said_to_readers_in_time_and_keeps_none_of_them() {
    let (proxy, server) = behind_a_proxy(&["--store-timeout-secs=1", "--readers=2"]).await;
    let mut live = server.login_empty("1").await;
    server.api().push("1", "1").await;
    live.expect_message().await;
    // As many as there are connections, and again: none is lost for good.
    for _ in 0..2 {
        proxy.set(|faults| faults.swallow_answers = true);
        let began = Instant::now();
        let (list, ready, counts) = tokio::join!(
            async { server.api().get("/api/inbox/1").await },
            async { server.api().get("/readyz").await },
            async { server.api().get("/api/inbox/1/counts").await },
        );
        list.problem(503, "storage_unavailable");
        counts.problem(503, "storage_unavailable");
        assert_eq!(ready.status, 503);
        let mut newcomer = server.connect().await;
        let refused = newcomer.call(r#"["user_login",{"tokenId":"2"}]"#).await;
        assert_eq!(refused["code"], "unavailable", "{refused}");
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        proxy.set(|faults| faults.swallow_answers = false);
        recovered(&server, "/api/inbox/1").await;
        recovered(&server, "/readyz").await;
        server.login_empty("3").await;
    }
}

#[tokio::test]
async fn who_locks_an_inbox_by_hand_delays_its_pushes_and_piles_up_nothing() {
    let server = TestServer::builder().on_postgres().flag("--store-timeout-secs=1").start().await;
    for token in ["1", "2"] {
        server.api().push(token, "1").await;
    }
    let Place::Postgres(database) = server.place() else { panic!("it is on Postgres") };
    let backends = || {
        let sql =
            "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'tidings'";
        database.sql(sql).trim().parse::<u32>().expect("a number")
    };
    let before = backends();
    let lock =
        crate::table::OpenTransaction::holding(server.place(), "select rev from inbox where token = '1' for update")
            .await;
    for _ in 0..4 {
        // Not outcome_unknown: the database itself gives it up.
        server.api().post(r#"{"tokens":["1"],"data":2}"#).await.problem(503, "storage_unavailable");
    }
    assert!(backends() <= before + 2, "{before} became {}", backends());
    drop(lock);
    let began = Instant::now();
    while server.api().post(r#"{"tokens":["1"],"data":3}"#).await.status != 200 {
        assert!(began.elapsed() < PATIENCE);
    }
    assert_eq!(server.table().rows("1").await.len(), 2);
    server.api().push("2", "2").await;
    server.table().expect_sound().await;
}

#[tokio::test]
async fn cut_off_during_the_commit_a_push_is_unknown_and_its_keyed_retry_leaves_one_row() {
    let (proxy, server) = behind_a_proxy(&[]).await;
    let api = server.api();
    api.push("somebody", "0").await;
    // The list of revs, of one, as it comes over the wire.
    let revs = "\0\0\0\u{14}\0\0\0\u{1}\0\0\0\u{1}\0\0\0\u{8}";
    let lost_from = async |text| {
        proxy.swallow_from(text);
        proxy.swallowed_something().await;
        proxy.start_over();
    };
    for n in 1..=3 {
        let body = format!(r#"{{"tokens":["somebody"],"data":{n}}}"#);
        // An unkeyed push is one statement, whose answer is its revs; what is lost with it is the one of its commit.
        let (answer, ()) = tokio::join!(api.try_post(None, &body), lost_from(revs));
        answer.unwrap().problem(503, "outcome_unknown");
        assert_eq!(server.table().rows("somebody").await.len(), 2 * n, "this one was committed");
        // A keyed one is a transaction; what is lost is what the server says after its commit.
        let key = format!("key-{n}");
        let (answer, ()) = tokio::join!(api.try_post(Some(&key), &body), lost_from("COMMIT"));
        answer.unwrap().problem(503, "outcome_unknown");
        let rows = server.table().rows("somebody").await;
        assert_eq!(rows.len(), 2 * n + 1, "and so was this");
        let retried = api.post_keyed(&key, &body).await.pushed();
        assert_eq!(Some(retried.id), rows.last().map(|row| row.id.clone()));
        assert_eq!(server.table().rows("somebody").await.len(), 2 * n + 1);
    }
}
