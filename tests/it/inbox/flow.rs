//! Flow control: the window of acking clients, old clients that never ack, slow readers, floods of acks.

use std::time::Duration;

use serde_json::json;
use tokio_tungstenite::tungstenite::Message as Frame;

use crate::proxy::ChaosProxy;
use crate::server::TestServer;
use crate::socket::Dial;

/// Long enough that something wrongly sent would be seen, short enough to wait for.
const A_MOMENT: Duration = Duration::from_millis(300);

#[tokio::test]
async fn an_acking_client_that_stops_acking_has_at_most_a_window_outstanding() {
    let server = TestServer::start().await;
    let mut socket = server.login_empty("1").await;
    let first = server.api().push("1", "0").await;
    socket.expect_message().await;
    socket.receipt("ack", &[&first.id]).await;
    server.api().push_numbers("1", 200).await;

    let mut heard = socket.expect_messages(64).await;
    socket.expect_quiet(A_MOMENT).await;
    let ids: Vec<&str> = heard[..10].iter().map(|message| message.id.as_str()).collect();
    socket.receipt("ack", &ids).await;
    heard.extend(socket.expect_messages(10).await);
    socket.expect_quiet(A_MOMENT).await;
    socket.ack_up_to(heard[73].rev).await;
    heard.extend(socket.expect_messages(64).await);
    socket.expect_quiet(A_MOMENT).await;
    let answer = socket.call(r#"["read",{"all":true}]"#).await;
    assert_eq!(answer["ok"], json!(true), "reading is a receipt too");
    heard.extend(socket.expect_messages(62).await);
    assert!(heard.iter().map(|message| message.seq).eq(2..=201), "all of it, in order");
}

#[tokio::test]
async fn the_window_also_holds_during_a_batched_replay() {
    let server = TestServer::with(&["--window=8"]).await;
    server.api().push_numbers("1", 30).await;
    let mut socket = server.connect().await;
    socket.login_batch("1").await;
    let mut seqs = Vec::new();
    while seqs.len() < 30 {
        let (before, top) = (seqs.len(), (seqs.len() + 8).min(30));
        while seqs.len() < top {
            seqs.extend(socket.event().await.messages().iter().map(|message| message.seq));
        }
        assert_eq!(seqs.len(), top, "never more than the window beyond {before}");
        if top < 30 {
            socket.expect_quiet(Duration::from_millis(100)).await;
        }
        socket.ack_up_to(*seqs.last().unwrap()).await;
    }
    assert!(seqs.iter().copied().eq(1..=30));
    assert_eq!(socket.expect_event("replay_complete").await["count"], json!(30));
}

#[tokio::test]
async fn a_client_that_never_acks_is_never_held_back() {
    let server = TestServer::with(&["--window=4"]).await;
    let mut socket = server.login_empty("1").await;
    server.api().push_numbers("1", 100).await;
    let heard = socket.expect_messages(100).await;
    assert!(heard.iter().map(|message| message.seq).eq(1..=100));
    assert_eq!(server.login("1").await.replay().await.count, 100, "and all of it is still undelivered");
}

#[tokio::test]
async fn a_tab_that_does_not_ack_does_not_hold_back_one_that_does() {
    let server = TestServer::with(&["--window=4"]).await;
    let mut stuck = server.connect().await;
    stuck.login_batch("1").await;
    stuck.expect_event("replay_complete").await;
    let mut acking = server.login_empty("1").await;
    for n in 1..=50 {
        server.api().push("1", "{}").await;
        let message = acking.expect_message().await;
        assert_eq!(message.seq, n);
        acking.receipt("ack", &[&message.id]).await;
    }
    let mut seqs = Vec::new();
    while seqs.len() < 4 {
        seqs.extend(stuck.event().await.messages().iter().map(|message| message.seq));
    }
    assert_eq!(seqs, [1, 2, 3, 4]);
    stuck.expect_quiet(A_MOMENT).await;
    while seqs.len() < 50 {
        stuck.ack_up_to(*seqs.last().unwrap()).await;
        seqs.extend(stuck.event().await.messages().iter().map(|message| message.seq));
    }
    assert!(seqs.iter().copied().eq(1..=50), "newer than its login, whoever acked: {seqs:?}");
}

#[tokio::test]
async fn a_flood_of_acks_is_harmless() {
    let server = TestServer::start().await;
    let pushed = server.api().push_numbers("1", 50).await;
    let mut socket = server.login("1").await;
    socket.replay().await;
    let memory = server.resident_kib();
    // With and without callbacks, of rows there are, of rows there are not, of all, again and again.
    let events: Vec<String> = pushed
        .iter()
        .map(|pushed| format!(r#"42["ack",{{"ids":["{}"]}}]"#, pushed.id))
        .chain((0..50).map(|n| format!(r#"42["ack",{{"upTo":{n}}}]"#)))
        .chain((0..50).map(|n| format!(r#"42["ack","00000000-0000-7000-8000-{n:012}"]"#)))
        .chain((0..50).map(|_| r#"42["read",{"upTo":10}]"#.to_owned()))
        .collect();
    let mut closed = false;
    for _ in 0..100 {
        closed |= socket.flood(events.iter().map(Frame::text)).await.is_err();
        if closed {
            break;
        }
    }
    // The flood may have been refused in part, or its connection closed; later receipts are taken again.
    println!("closed: {closed}");
    let done = async {
        loop {
            match socket.try_call(r#"["read",{"all":true}]"#).await {
                Ok(answer) if answer["ok"] == json!(true) => break,
                Ok(_) => tokio::task::yield_now().await,
                Err(_) => {
                    socket = server.login("1").await;
                    socket.replay().await;
                }
            }
        }
    };
    tokio::time::timeout(crate::server::PATIENCE, done).await.expect("a receipt is taken after the flood");
    server.api().push("1", r#""after""#).await;
    let mut other = server.login("2").await;
    other.replay().await;
    server.api().push("2", "{}").await;
    other.expect_message().await;
    let message = loop {
        if let Some(message) = socket.event().await.messages().pop() {
            break message;
        }
    };
    assert_eq!(message.data.get(), r#""after""#);
    let inbox = server.table().inbox("1").await.unwrap();
    assert_eq!(inbox.unread, 1);
    let grown = server.resident_kib().saturating_sub(memory);
    assert!(grown < 64 * 1024, "memory grew by {grown} KiB");
}

#[tokio::test]
async fn a_reader_on_a_slow_line_gets_everything_in_order_and_harms_nobody() {
    let server = TestServer::start().await;
    let proxy = ChaosProxy::in_front_of(server.address()).await;
    let mut slow = Dial::new(proxy.address).connect().await;
    slow.login("1").await;
    slow.expect_event("replay_complete").await;
    proxy.set(|faults| faults.bytes_per_second = Some(200_000));
    let mut quick = server.login_empty("1").await;
    let data = format!("\"{}\"", "x".repeat(2000));
    for _ in 0..300 {
        server.api().push("1", &data).await;
    }
    let heard = quick.expect_messages(300).await;
    assert!(heard.iter().map(|message| message.seq).eq(1..=300));
    proxy.set(|faults| faults.bytes_per_second = None);
    let heard = slow.expect_messages(300).await;
    assert!(heard.iter().map(|message| message.seq).eq(1..=300), "a full buffer makes the server wait, not drop");
}

#[tokio::test]
async fn a_reader_that_stops_reading_is_closed_and_resumes_whole() {
    let server = TestServer::with(&["--stuck-timeout-secs=1", "--ping-interval-secs=2", "--ping-timeout-secs=2"]).await;
    let mut stuck = server.login_empty("1").await;
    let mut quick = server.login_empty("1").await;
    let data = format!("\"{}\"", "x".repeat(60_000));
    // More than the buffers of two sockets and a queue hold.
    let count = 400;
    let api = server.api();
    let pushing = tokio::spawn(async move {
        for _ in 0..count {
            api.push("1", &data).await;
        }
    });
    let heard = quick.expect_messages(count).await;
    assert!(heard.iter().map(|message| message.seq).eq(1..=400));
    pushing.await.unwrap();
    // What had been sent can still be read, in order and without a gap; then the connection ends.
    let events = stuck.expect_end().await;
    let seqs: Vec<i64> = events.iter().flat_map(|event| event.messages()).map(|message| message.seq).collect();
    assert!(seqs.iter().copied().eq(1..=i64::try_from(seqs.len()).unwrap()) && seqs.len() < count, "{seqs:?}");
    let replay = server.login("1").await.replay().await;
    assert_eq!(replay.messages.len(), count, "nothing was acked, so all of it comes again");
}
