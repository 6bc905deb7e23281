//! `--announce-new-user`: every socket hears that another one has come, and no more than that.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;

use crate::server::TestServer;
use crate::socket::{Dial, Engine, Socket};

/// How many `new_user` come until it is quiet.
async fn heard(socket: &mut Socket) -> usize {
    let mut count = 0;
    while let Ok(event) = tokio::time::timeout(Duration::from_millis(1500), socket.event()).await {
        assert_eq!((event.name.as_str(), event.value()), ("new_user", json!({})));
        count += 1;
    }
    count
}

#[tokio::test]
async fn other_sockets_are_told_of_a_new_one_if_that_is_wanted() {
    let server = TestServer::with(&["--announce-new-user"]).await;
    for newcomer in [Engine::V3, Engine::V4] {
        let dial = |engine| Dial::new(server.address()).engine(engine);
        let mut others = [
            dial(Engine::V3).connect().await,
            dial(Engine::V4).connect().await,
            dial(Engine::V3).polling().connect().await,
            dial(Engine::V4).polling().connect().await,
        ];
        join_all(others.iter_mut().map(heard)).await;
        let mut new = dial(newcomer).connect().await;
        assert_eq!(heard(&mut new).await, 0, "it is not told of itself");
        assert_eq!(join_all(others.iter_mut().map(heard)).await, [1; 4], "logged in or not, of either protocol");
    }
}

#[tokio::test]
async fn nobody_is_told_unless_it_is_wanted() {
    let server = TestServer::start().await;
    let mut first = server.connect().await;
    server.login_empty("1").await;
    first.expect_quiet(Duration::from_millis(500)).await;
}

#[tokio::test]
async fn a_herd_is_told_once_an_interval() {
    let server = TestServer::with(&["--announce-new-user", "--announce-interval-secs=3"]).await;
    let mut first = server.connect().await;
    let began = std::time::Instant::now();
    let mut herd = join_all((0..100).map(|_| server.connect())).await;
    let mut count = 0;
    loop {
        let next = tokio::time::timeout(Duration::from_secs(5), first.event()).await;
        let Ok(event) = next else { break };
        assert_eq!(event.name, "new_user");
        count += 1;
    }
    let most = 2 + began.elapsed().as_secs() / 3;
    assert!((1..=most).contains(&count), "{count} of at most {most}");
    // Some of those who came together are told of each other.
    assert!(heard(&mut herd[0]).await <= 2);
}
