//! What is replayed at a login, to whom, in what order, and how a batching client gets it.

use serde_json::json;

use crate::server::TestServer;
use crate::socket::Dial;

#[tokio::test]
async fn an_offline_recipient_gets_the_backlog_in_order_at_login() {
    let server = TestServer::start().await;
    server.api().push_numbers("1", 20).await;
    let mut socket = server.connect().await;
    let login = socket.login("1").await;
    assert_eq!((login.rev, login.unread, login.undelivered), (20, 20, 20));
    let replay = socket.replay().await;
    assert_eq!((replay.count, replay.rev, replay.unread), (20, 20, 20));
    for (message, n) in replay.messages.iter().zip(1..) {
        assert_eq!((message.seq, message.rev, message.replay, message.read), (n, n, true, false));
        assert_eq!(message.data.get(), format!(r#"{{"n":{n}}}"#));
    }
}

#[tokio::test]
async fn what_was_acked_or_read_is_not_replayed_and_what_was_only_sent_is() {
    let server = TestServer::start().await;
    let pushed = server.api().push_numbers("1", 5).await;
    let mut socket = server.login("1").await;
    socket.replay().await;
    socket.receipt("ack", &[&pushed[1].id]).await;
    socket.receipt("read", &[&pushed[3].id]).await;
    drop(socket);
    let mut socket = server.connect().await;
    let login = socket.login("1").await;
    assert_eq!((login.rev, login.unread, login.undelivered), (6, 4, 3), "the read took rev 6");
    let replay = socket.replay().await;
    assert_eq!(replay.data(), [r#"{"n":1}"#, r#"{"n":3}"#, r#"{"n":5}"#]);
    assert_eq!((replay.count, replay.rev, replay.unread), (3, 6, 4));
    socket.ack_up_to(6).await;
    drop(socket);
    let replay = server.login("1").await.replay().await;
    assert_eq!((replay.count, replay.rev, replay.unread), (0, 6, 4), "acked is not read");
}

#[tokio::test]
async fn every_tab_of_a_token_gets_everything_newer_than_its_login() {
    let server = TestServer::start().await;
    let mut first = server.login_empty("1").await;
    let mut second = server.login_empty("1").await;
    let pushed = server.api().push("1", r#"{"n":1}"#).await;
    assert_eq!(first.expect_message().await.id, pushed.id);
    first.receipt("ack", &[&pushed.id]).await;
    assert_eq!(second.expect_message().await.id, pushed.id, "the other tab's ack does not take it away");
    let mut third = server.login_empty("1").await;
    let pushed = server.api().push("1", r#"{"n":2}"#).await;
    for tab in [&mut first, &mut second, &mut third] {
        let message = tab.expect_message().await;
        assert_eq!((message.id.as_str(), message.seq, message.replay), (pushed.id.as_str(), 2, false));
    }
}

#[tokio::test]
async fn a_backlog_of_two_thousand_reaches_an_old_client_in_order() {
    let server = TestServer::start().await;
    let api = server.api();
    for _ in 0..10 {
        let pushes = (0..200).map(|_| api.push("1", r#"{"pad":"0123456789012345678901234567890123456789"}"#));
        futures_util::future::join_all(pushes).await;
    }
    let mut socket = server.login("1").await;
    let replay = socket.replay().await;
    assert_eq!((replay.count, replay.rev, replay.messages.len()), (2000, 2000, 2000));
    assert!(replay.messages.iter().map(|message| message.seq).eq(1..=2000));
}

#[tokio::test]
async fn a_backlog_keeps_its_order_while_new_pushes_arrive() {
    let server = TestServer::start().await;
    server.api().push_numbers("1", 300).await;
    let api = server.api();
    let pushing = tokio::spawn(async move { api.push_numbers("1", 300).await });
    let mut socket = server.login("1").await;
    let mut seqs = Vec::new();
    while seqs.len() < 600 {
        let event = socket.event().await;
        seqs.extend(event.messages().iter().map(|message| message.seq));
    }
    pushing.await.unwrap();
    assert!(seqs.iter().copied().eq(1..=600), "{seqs:?}");
}

#[tokio::test]
async fn a_batching_client_gets_arrays_of_at_most_a_hundred() {
    let server = TestServer::with(&["--window=1000"]).await;
    server.api().push_numbers("1", 250).await;
    let mut socket = server.connect().await;
    let login = socket.login_batch("1").await;
    assert_eq!((login.rev, login.undelivered), (250, 250));
    let mut seqs = Vec::new();
    loop {
        let event = socket.event().await;
        if event.name == "replay_complete" {
            assert_eq!(event.value(), json!({"count": 250, "rev": 250, "unread": 250}));
            break;
        }
        assert_eq!(event.name, "receive_messages", "{}", event.text());
        let messages = event.messages();
        assert!((1..=100).contains(&messages.len()), "{}", messages.len());
        seqs.extend(messages.iter().map(|message| message.seq));
    }
    assert!(seqs.iter().copied().eq(1..=250), "{seqs:?}");
    server.api().push("1", r#""live""#).await;
    let event = socket.event().await;
    assert_eq!((event.name.as_str(), event.messages().len()), ("receive_messages", 1), "live comes as an array too");
    assert_eq!(event.messages()[0].data.get(), r#""live""#);
}

#[tokio::test]
async fn large_rows_are_replayed_whole_by_websocket_and_polling() {
    let server = TestServer::start().await;
    let data = format!("\"{}\"", "é😀x".repeat(9000));
    for _ in 0..6 {
        server.api().push("1", &data).await;
    }
    for polling in [false, true] {
        let dial = Dial::new(server.address());
        let mut socket = if polling { dial.polling() } else { dial }.connect().await;
        socket.login("1").await;
        let replay = socket.replay().await;
        assert_eq!(replay.messages.len(), 6);
        assert!(replay.messages.iter().all(|message| message.data.get() == data));
    }
}

#[tokio::test]
async fn a_restart_keeps_the_epoch_the_revs_and_what_is_undelivered() {
    let mut server = TestServer::start().await;
    let pushed = server.api().push_numbers("1", 3).await;
    let mut socket = server.connect().await;
    let before = socket.login("1").await;
    socket.replay().await;
    socket.receipt("ack", &[&pushed[0].id]).await;
    server.kill_9().await;
    assert!(socket.try_event().await.is_err(), "the socket is gone");
    server.start_again().await;
    let mut socket = server.connect().await;
    let after = socket.login("1").await;
    assert_eq!((&after.epoch, after.rev, after.unread, after.undelivered), (&before.epoch, 3, 3, 2));
    assert_eq!(socket.replay().await.data(), [r#"{"n":2}"#, r#"{"n":3}"#]);
}
