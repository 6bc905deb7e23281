//! The Postgres server crashes, hangs, or is cut off: that costs time and refusals, never a socket and never a row.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::sleep;

use crate::load::{Load, Seeded};
use crate::postgres::{Database, Server};
use crate::proxy::ChaosProxy;
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
    for _ in 0..5 {
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

#[tokio::test]
async fn cut_off_during_the_commit_a_push_is_unknown_and_its_keyed_retry_leaves_one_row() {
    let database = Database::create();
    let address: SocketAddr = {
        let rest = database.url();
        let rest = rest.split_once('@').expect("a user in the URL").1;
        rest.split_once('/').expect("a path in the URL").0.parse().expect("an address")
    };
    let proxy = ChaosProxy::in_front_of(address).await;
    let url = database.url().replace(&address.to_string(), &proxy.address.to_string());
    let place = Place::Postgres(std::sync::Arc::new(database));
    let server = TestServer::builder().at(place).flag(&format!("--database-url={url}")).start().await;
    let api = server.api();
    api.push("1", "0").await;
    for (n, key) in (2..).zip(["first", "second", "third"]) {
        let body = format!(r#"{{"tokens":["1"],"data":{n}}}"#);
        // An unkeyed push is one statement, so the first answer that is lost is the one of its commit.
        proxy.set(|faults| faults.swallow_answers = true);
        let cut = async {
            proxy.swallowed_something().await;
            proxy.set(|faults| faults.swallow_answers = false);
            proxy.cut();
        };
        let (answer, ()) = tokio::join!(api.try_post(None, &body), cut);
        answer.unwrap().problem(503, "outcome_unknown");
        assert_eq!(server.table().rows("1").await.len(), 2 * n - 2, "this one was committed");
        let first = api.post_keyed(key, &body).await.pushed();
        assert_eq!(api.post_keyed(key, &body).await.pushed().id, first.id);
        assert_eq!(server.table().rows("1").await.len(), 2 * n - 1);
    }
}
