//! The disk is full (the database lies on a small one of its own, and a filler takes what is left) or fails.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tokio::time::{interval, timeout};

use crate::load::{Load, Seeded};
use crate::server::{PATIENCE, TestServer, failing_disks_work, small_disks_work};

/// Takes every byte that is left.
fn fill(path: &Path) {
    let mut file = fs::File::create(path).expect("the disk has room for a name");
    for size in [64 * 1024, 4096, 512] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
}

#[tokio::test]
async fn a_full_disk_is_said_what_is_there_still_flows_and_it_recovers() {
    if !small_disks_work().await {
        println!("skipped: this machine allows no mount namespaces (unshare), so there is no small disk to fill");
        return;
    }
    let server = TestServer::builder().on_small_disk(24 * 1024).start().await;
    let filler = server.on_its_disk("filler");
    let api = server.api();
    let mut live = server.login_empty("1").await;
    let mut accepted = vec![api.push("1", r#""before""#).await];
    assert_eq!(live.expect_message().await.data.get(), r#""before""#);

    fill(&filler);
    // What SQLite had reserved already may still be used up.
    let body = format!(r#"{{"tokens":["1"],"entityType":"like","data":"{}"}}"#, "x".repeat(60_000));
    let full = async {
        loop {
            let answer = api.post(&body).await;
            if answer.status != 200 {
                break answer;
            }
            accepted.push(answer.pushed());
        }
    };
    let answer = timeout(PATIENCE, full).await.expect("a full disk is noticed in time");
    assert!(!answer.problem(503, "storage_full").is_empty());
    for _ in 0..3 {
        api.post(&body).await.problem(503, "storage_full");
    }
    assert_eq!(api.get("/readyz").await.status, 503);

    // Reading goes on: health, logins, replays, and the live socket that was there before.
    assert_eq!(api.get("/healthz").await.status, 200);
    for message in live.expect_messages(accepted.len() - 1).await {
        assert!(accepted.iter().any(|pushed| pushed.id == message.id));
    }
    let mut late = server.login("1").await;
    let replay = late.replay().await;
    let ids = |messages: &[crate::socket::Message]| messages.iter().map(|m| m.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&replay.messages), accepted.iter().map(|pushed| pushed.id.clone()).collect::<Vec<_>>());
    // A receipt is either committed or said to have failed; which of the two depends on what room was left.
    let answer = late.call(r#"["ack",{"upTo":1}]"#).await;
    assert!(answer["ok"] == json!(true) || answer["code"] == json!("unavailable"), "{answer}");

    fs::remove_file(&filler).expect("the filler can be removed");
    let recovered = async {
        let mut pause = interval(Duration::from_millis(50));
        loop {
            pause.tick().await;
            let answer = api.post(&body).await;
            if answer.status == 200 {
                break answer.pushed();
            }
            answer.problem(503, "storage_full");
        }
    };
    let after = timeout(PATIENCE, recovered).await.expect("recovers when there is room");
    assert_eq!(live.expect_message().await.id, after.id, "live delivery goes on where it was, with nothing between");
    assert_eq!(late.expect_message().await.id, after.id);
    assert_eq!(api.get("/readyz").await.status, 200);

    let rows = server.table().rows("1").await;
    assert_eq!(rows.len(), accepted.len() + 1, "what was refused was not stored");
    let inbox = server.table().inbox("1").await.unwrap();
    assert_eq!(inbox.unread, i64::try_from(rows.len()).unwrap());
    assert_eq!(server.table().integrity().await, "ok");
}

/// The number that was left out before a line of the log.
fn left_out(line: &str) -> usize {
    let (_, rest) = line.split_once("left_out=").unwrap_or_else(|| panic!("no left_out in {line}"));
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..digits].parse().expect("a number")
}

#[tokio::test]
async fn a_full_disk_costs_a_line_a_second_of_the_log_and_not_one_a_request() {
    const PUSHES: usize = 400;
    if !small_disks_work().await {
        println!("skipped: this machine allows no mount namespaces (unshare), so there is no small disk to fill");
        return;
    }
    let server = TestServer::builder().on_small_disk(24 * 1024).start().await;
    let api = server.api();
    fill(&server.on_its_disk("filler"));
    let body = format!(r#"{{"tokens":["1"],"data":"{}"}}"#, "x".repeat(60_000));
    let full = async { while api.post(&body).await.status == 200 {} };
    timeout(PATIENCE, full).await.expect("a full disk is noticed in time");
    let began = std::time::Instant::now();
    for _ in 0..PUSHES {
        api.post(&body).await.problem(503, "storage_full");
    }
    // One more, a second later, says how many it stands for.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    api.post(&body).await.problem(503, "storage_full");
    let seconds = usize::try_from(began.elapsed().as_secs()).expect("not for ever");
    let said = server.stderr();
    for what in ["The database failed a request", "Commit failed"] {
        let lines: Vec<_> = said.lines().filter(|line| line.contains(what)).collect();
        assert!((2..=seconds + 3).contains(&lines.len()), "{what}: {} lines in {seconds} s", lines.len());
        let told: usize = lines.iter().map(|line| 1 + left_out(line)).sum();
        assert!(told > PUSHES, "{what}: {told} are told of");
    }
}

#[tokio::test]
async fn acks_that_a_full_disk_refused_can_be_repeated_when_there_is_room() {
    if !small_disks_work().await {
        println!("skipped: this machine allows no mount namespaces (unshare), so there is no small disk to fill");
        return;
    }
    let server = TestServer::builder().on_small_disk(24 * 1024).start().await;
    let api = server.api();
    api.push_numbers("1", 500).await;
    let mut socket = server.login("1").await;
    let replay = socket.replay().await;
    fill(&server.on_its_disk("filler"));
    let body = format!(r#"{{"tokens":["2"],"data":"{}"}}"#, "x".repeat(60_000));
    let full = async { while api.post(&body).await.status == 200 {} };
    timeout(PATIENCE, full).await.expect("a full disk is noticed in time");

    let mut confirmed = Vec::new();
    let mut refused = 0;
    for message in &replay.messages[..50] {
        let answer = socket.call(&format!(r#"["ack","{}"]"#, message.id)).await;
        if answer["ok"] == json!(true) {
            confirmed.push(&message.id);
        } else {
            assert_eq!(answer["code"], json!("unavailable"), "{answer}");
            refused += 1;
        }
    }
    println!("{} acks committed on a full disk, {refused} refused", confirmed.len());
    let rows = server.table().rows("1").await;
    for row in &rows {
        assert_eq!(row.delivered_at.is_some(), confirmed.contains(&&row.id), "a refused ack left no trace");
    }
    fs::remove_file(server.on_its_disk("filler")).expect("the filler can be removed");
    let recovered = async {
        while socket.call(r#"["ack",{"upTo":500}]"#).await["ok"] != json!(true) {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, recovered).await.expect("recovers when there is room");
    assert!(server.table().rows("1").await.iter().all(|row| row.delivered_at.is_some()));
}

#[tokio::test]
async fn a_disk_too_small_for_the_database_is_said_at_the_start() {
    if !small_disks_work().await {
        println!("skipped: this machine allows no mount namespaces (unshare), so there is no small disk to fill");
        return;
    }
    for kib in [8, 40] {
        let refusal = TestServer::builder().on_small_disk(kib).prepare().start_refused().await;
        let said = refusal.stderr.to_lowercase();
        assert!(refusal.code.is_some_and(|code| code != 0) && said.contains("full"), "{kib} KiB: {refusal:?}");
    }
}

#[tokio::test]
async fn a_disk_that_fails_to_sync_gets_no_200_and_a_clean_restart() {
    if !failing_disks_work().await {
        println!("skipped: strace is missing or not allowed here, so no disk can be made to fail");
        return;
    }
    let mut chance = Seeded::announced();
    let mut server = TestServer::builder().on_failing_disk().start().await;
    let load = Load::start(&server, &mut chance, 2, 4);
    let api = server.api();
    let failing = async {
        let mut pause = interval(Duration::from_millis(5));
        loop {
            pause.tick().await;
            let answer = api.post(r#"{"tokens":["probe"],"data":"not for the oracle"}"#).await;
            if answer.status != 200 {
                break answer;
            }
        }
    };
    let answer = timeout(PATIENCE, failing).await.expect("the disk fails in time");
    println!("a failing disk answers {}", answer.text);
    for _ in 0..20 {
        let answer = api.post(r#"{"tokens":["probe"],"data":"not for the oracle"}"#).await;
        let code = answer.code();
        assert!(["storage_unavailable", "outcome_unknown"].contains(&code.as_str()), "{}", answer.text);
        answer.problem(503, &code);
    }
    for _ in 0..20 {
        api.get("/readyz").await.problem(503, "storage_unavailable");
    }
    assert_eq!(api.get("/healthz").await.status, 200, "a restart would not mend it");
    server.kill_9().await;
    let (recorder, tokens) = load.finish().await;
    server.repair_disk();
    server.start_again().await;
    assert_eq!(server.table().integrity().await, "ok");
    recorder.settle_but(&server, &tokens, "probe").await;
}
