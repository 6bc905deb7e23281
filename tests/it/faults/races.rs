//! Things that happen at the same time: logins against pushes, tabs against each other, receipts against deliveries.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::api::Api;
use crate::load::{Load, Reader, Recorder, Seeded};
use crate::oracle::Rows;
use crate::server::{PATIENCE, TestServer};

/// Pushes 200 a second until it is aborted, to one to three tokens each.
async fn push_steadily(recorder: Recorder, api: Api, tokens: Arc<Vec<String>>, mut chance: Seeded) {
    let mut pace = interval(Duration::from_millis(5));
    pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        pace.tick().await;
        let (recorder, api, data) = (recorder.clone(), api.clone(), recorder.unique_data());
        let mut chosen: Vec<String> = (0..=chance.below(2)).map(|_| chance.pick(tokens.as_slice()).clone()).collect();
        chosen.sort();
        chosen.dedup();
        // Not awaited: the rate does not depend on the answers. Each post is a producer of its own.
        let producer = chance.next();
        tokio::spawn(async move { recorder.post(&api, producer, None, &chosen, &data).await });
    }
}

#[tokio::test]
async fn a_thousand_logins_racing_two_hundred_pushes_a_second_lose_double_and_disorder_nothing() {
    let mut chance = Seeded::announced();
    let server = TestServer::with(&["--max-sockets-per-token=1000"]).await;
    let recorder = Recorder::default();
    let tokens: Arc<Vec<String>> = Arc::new((0..20).map(|n| format!("user-{n}")).collect());
    let pusher = tokio::spawn(push_steadily(recorder.clone(), server.api(), tokens.clone(), chance.fork()));
    let mut workers = JoinSet::new();
    for _ in 0..16 {
        let (recorder, tokens, address, mut chance) =
            (recorder.clone(), tokens.clone(), server.address(), chance.fork());
        workers.spawn(async move {
            for _ in 0..63 {
                let batch = chance.percent(30);
                let mut reader = Reader::new(&recorder, chance.pick::<String>(&tokens), address, batch);
                reader.connect_and_login().await.unwrap();
                let live = chance.below(3);
                let mut heard = 0;
                while reader.session.replay_completed.is_none() || heard < live {
                    timeout(PATIENCE, reader.hear_one()).await.expect("an event in time").unwrap();
                    heard += u64::from(reader.session.received.last().is_some_and(|got| !got.replay));
                    let top = reader.session.received.last().map(|got| got.rev);
                    if let Some(top) = top.filter(|_| batch || chance.percent(30)) {
                        reader.confirm(false, Rows::UpTo(top)).await.unwrap();
                    }
                }
            }
        });
    }
    while let Some(done) = workers.join_next().await {
        done.unwrap();
    }
    pusher.abort();
    let _ = pusher.await;
    settled(&recorder).await;
    recorder.settle(&server, &tokens).await;
}

/// Waits until every push that was begun has been written down.
async fn settled(recorder: &Recorder) {
    let mut pause = interval(Duration::from_millis(20));
    let done = async {
        let mut before = recorder.tally();
        let mut same = 0;
        while same < 10 {
            pause.tick().await;
            let now = recorder.tally();
            same = if now == before { same + 1 } else { 0 };
            before = now;
        }
    };
    timeout(PATIENCE, done).await.expect("the last pushes are answered");
}

#[tokio::test]
async fn several_tabs_of_few_tokens_under_load_satisfy_the_oracle() {
    let mut chance = Seeded::announced();
    let server = TestServer::with(&[
        "--window=16",
        "--replay-rows=7",
        "--ring=2",
        "--replays=1",
        "--readers=1",
        "--sweep-interval-secs=1",
    ])
    .await;
    let first = Load::start(&server, &mut chance, 4, 3);
    let mut tabs = JoinSet::new();
    for n in 0..9 {
        let (recorder, token) = (first.recorder.clone(), first.tokens[n % 3].clone());
        let (address, mut chance) = (server.address(), chance.fork());
        tabs.spawn(async move {
            for _ in 0..6 {
                let mut reader = Reader::new(&recorder, &token, address, chance.percent(50));
                reader.connect_and_login().await.unwrap();
                for _ in 0..60 {
                    timeout(PATIENCE, reader.hear_one()).await.expect("an event in time").unwrap();
                    let Some(top) = reader.session.received.last().map(|got| got.rev) else { continue };
                    reader.confirm(chance.percent(20), Rows::UpTo(top)).await.unwrap();
                }
            }
        });
    }
    while let Some(done) = tabs.join_next().await {
        done.unwrap();
    }
    let (recorder, tokens) = first.finish().await;
    recorder.settle(&server, &tokens).await;
}

#[tokio::test]
async fn sixteen_writers_over_overlapping_tokens_keep_every_inbox_gapless() {
    let mut chance = Seeded::announced();
    let server = TestServer::start().await;
    let recorder = Recorder::default();
    let tokens: Vec<String> = (0..40).map(|n| format!("user-{n}")).collect();
    let mut writers = JoinSet::new();
    for producer in 0..16 {
        let (recorder, api, tokens, mut chance) = (recorder.clone(), server.api(), tokens.clone(), chance.fork());
        writers.spawn(async move {
            for _ in 0..60 {
                let mut chosen: Vec<String> = (0..=chance.below(20)).map(|_| chance.pick(&tokens).clone()).collect();
                chosen.sort();
                chosen.dedup();
                if chance.percent(50) {
                    chosen.reverse();
                }
                recorder.post(&api, producer, None, &chosen, &recorder.unique_data()).await;
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
    assert_eq!(recorder.tally(), (960, 0, 0));
    recorder.settle(&server, &tokens).await;
}
