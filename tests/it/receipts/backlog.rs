//! The largest backlog.

use std::time::Duration;

use serde_json::json;
use tokio::time::timeout;

use super::{expect_all_delivered, insert_rows};
use crate::server::TestServer;

const ROWS: usize = 100_000;

/// An optimised server takes a few seconds, one in debug mode some more.
const DEADLINE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_backlog_of_a_hundred_thousand_is_replayed_to_a_client_that_acks_every_message_alone() {
    let server = TestServer::start().await;
    insert_rows(&server, "1", ROWS).await;
    let mut socket = server.connect().await;
    let login = socket.login("1").await;
    assert_eq!((login.rev, login.undelivered), (100_000, 100_000));
    let memory = server.resident_kib();
    let mut seq = 0;
    let replay = async {
        loop {
            let (mut acks, mut completed) = (Vec::new(), None);
            for event in socket.events_at_last().await.expect("the connection stays") {
                if event.name == "replay_complete" {
                    completed = Some(event.value());
                }
                for message in event.messages() {
                    seq += 1;
                    assert_eq!((message.seq, message.rev, message.replay), (seq, seq, true));
                    acks.push(format!(r#"42["ack","{}"]"#, message.id));
                }
            }
            socket.send_many(acks).await.expect("the connection stays");
            if let Some(completed) = completed {
                return completed;
            }
        }
    };
    let completed = timeout(DEADLINE, replay).await;
    let completed = completed.unwrap_or_else(|_| panic!("{seq} of {ROWS} rows came within {DEADLINE:?}"));
    assert_eq!(completed, json!({"count": 100_000, "rev": 100_000, "unread": 100_000}));
    assert_eq!(seq, 100_000);
    let grown = server.resident_kib().saturating_sub(memory);
    assert!(grown < 64 * 1024, "memory grew by {grown} KiB");
    server.api().push("1", r#""live""#).await;
    let message = socket.expect_message().await;
    assert_eq!(message.data.get(), r#""live""#);
    socket.receipt("ack", &[&message.id]).await;
    expect_all_delivered(&server).await;
    assert_eq!(server.connect().await.login("1").await.undelivered, 0);
}
