//! More than the writer takes: a full queue and a database that another process holds are said, and never cost a row.

use futures_util::future::join_all;

use crate::load::{Recorder, outcome_of};
use crate::oracle::Outcome;
use crate::server::TestServer;
use crate::table::WriteLock;

#[tokio::test]
async fn a_full_queue_answers_busy_and_stores_exactly_what_it_accepted() {
    let server = TestServer::with(&["--write-queue=1"]).await;
    let recorder = Recorder::default();
    let api = server.api();
    // Nothing is committed while the lock is held, so the queue must overflow, on any machine.
    let lock = WriteLock::take(server.place()).await;
    let pushes = join_all((0..60).map(|n| {
        let (recorder, api) = (&recorder, &api);
        async move { recorder.post(api, n, None, &[format!("user-{}", n % 7)], &recorder.unique_data()).await }
    }));
    let overflowed = async {
        let mut pause = tokio::time::interval(std::time::Duration::from_millis(20));
        while recorder.tally().1 == 0 {
            pause.tick().await;
        }
        lock.release().await;
    };
    tokio::join!(pushes, overflowed);
    let (ok, failed, unknown) = recorder.tally();
    assert!(ok > 0 && failed > 0 && unknown == 0, "{ok} accepted, {failed} busy, {unknown} unknown");
    let tokens: Vec<String> = (0..7).map(|n| format!("user-{n}")).collect();
    recorder.settle(&server, &tokens).await;
}

#[tokio::test]
async fn a_busy_answer_says_when_to_come_back_and_the_next_push_works() {
    let server = TestServer::with(&["--write-queue=1"]).await;
    let api = server.api();
    let lock = WriteLock::take(server.place()).await;
    let body = r#"{"tokens":["1"],"entityType":"like","data":{}}"#;
    let pushes: Vec<_> = (0..60)
        .map(|_| {
            tokio::spawn({
                let api = api.clone();
                async move { api.post(body).await }
            })
        })
        .collect();
    let refused = async {
        loop {
            if let Some(done) = pushes.iter().position(tokio::task::JoinHandle::is_finished) {
                break done;
            }
            tokio::task::yield_now().await;
        }
    };
    let refused = tokio::time::timeout(crate::server::PATIENCE, refused).await.expect("some are refused at once");
    lock.release().await;
    let answers = join_all(pushes).await;
    let first = answers[refused].as_ref().unwrap();
    first.problem(503, "busy");
    for answer in answers {
        let answer = answer.unwrap();
        assert!(answer.status == 200 || answer.code() == "busy", "{}", answer.text);
    }
    api.post(body).await.pushed();
}

#[tokio::test]
async fn a_database_held_by_another_process_is_said_in_time_and_waited_out() {
    let server = TestServer::with(&["--store-timeout-secs=1"]).await;
    let recorder = Recorder::default();
    let mut live = server.login_empty("1").await;
    let lock = WriteLock::take(server.place()).await;
    let tokens = ["1".to_owned()];
    let body = r#"{"tokens":["1"],"data":{}}"#;
    let began = std::time::Instant::now();
    let answer = server.api().try_post(None, body).await;
    assert!(began.elapsed().as_secs() < 10, "the timeout is 1 s, the answer took {:?}", began.elapsed());
    let text = format!("{answer:?}");
    let stored = !matches!(outcome_of(answer), Outcome::Failed);
    assert!(["storage_unavailable", "busy", "outcome_unknown"].iter().any(|code| text.contains(code)), "{text}");
    lock.release().await;
    let after = server.api().push("1", r#""after""#).await;
    let rows = server.table().rows("1").await;
    assert!(rows.last().is_some_and(|row| row.id == after.id));
    assert!(rows.len() == 1 || stored, "what was refused for certain is not stored: {rows:?}");
    for row in &rows {
        assert_eq!(live.expect_message().await.id, row.id, "live goes on, in order");
    }
    recorder.post(&server.api(), 1, None, &tokens, &recorder.unique_data()).await;
    assert_eq!(recorder.tally(), (1, 0, 0));
}
