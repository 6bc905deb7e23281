//! Logging in and out, and as somebody else: the answer, its order on the wire, what is refused, and the limits.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;

use crate::server::TestServer;
use crate::socket::{Dial, Engine};

#[tokio::test]
async fn a_login_is_answered_then_replayed_then_live_in_that_order_on_the_wire() {
    let server = TestServer::start().await;
    let first = server.api().push("1", r#"{"n":1}"#).await;
    let second = server.api().push("1", r#"{"n":2}"#).await;
    let rows = server.table().rows("1").await;
    let epoch = server.table().value("select epoch from meta").await;

    let mut socket = server.connect().await;
    socket.send(r#"427["user_login",{"tokenId":"1","userId":"u","socketId":"forged"}]"#).await.unwrap();
    let answer = socket.raw_packet().await;
    let answer: serde_json::Value = serde_json::from_str(answer.strip_prefix("37").expect("callback 7 first")).unwrap();
    assert_eq!(answer, json!([{"ok": true, "epoch": epoch, "rev": 2, "unread": 2, "undelivered": 2}]));
    for (seq, pushed, row) in [(1, &first, &rows[0]), (2, &second, &rows[1])] {
        assert_eq!(
            socket.raw_packet().await,
            format!(
                r#"2["receive_message",{{"entityType":"like","data":{{"n":{seq}}},"id":"{}","seq":{seq},"rev":{seq},"createdAt":"{}","replay":true,"read":false}}]"#,
                pushed.id, row.created_at
            )
        );
    }
    assert_eq!(socket.raw_packet().await, r#"2["replay_complete",{"count":2,"rev":2,"unread":2}]"#);
    let third = server.api().push("1", r#"{"n":3}"#).await;
    let live = socket.raw_packet().await;
    let expected =
        format!(r#"2["receive_message",{{"entityType":"like","data":{{"n":3}},"id":"{}","seq":3,"rev":3,"#, third.id);
    assert!(live.starts_with(&expected) && live.ends_with(r#""replay":false,"read":false}]"#), "{live}");
}

#[tokio::test]
async fn a_login_without_a_callback_works_as_old_pages_do_it() {
    let server = TestServer::start().await;
    server.api().push("1", r#""hello""#).await;
    let mut socket = Dial::new(server.address()).engine(Engine::V3).connect().await;
    socket.emit(r#"["user_login",{"tokenId":"1","userId":"1","socketId":"abc"}]"#).await;
    assert_eq!(socket.expect_message().await.data.get(), r#""hello""#);
    assert_eq!(socket.expect_event("replay_complete").await, json!({"count": 1, "rev": 1, "unread": 1}));
    server.api().push("1", r#""live""#).await;
    assert_eq!(socket.expect_message().await.data.get(), r#""live""#);
}

#[tokio::test]
async fn a_login_to_an_inbox_that_never_got_anything_is_all_zero() {
    let server = TestServer::start().await;
    let mut socket = server.connect().await;
    let login = socket.login("nobody").await;
    assert_eq!((login.rev, login.unread, login.undelivered), (0, 0, 0));
    assert_eq!(socket.expect_event("replay_complete").await, json!({"count": 0, "rev": 0, "unread": 0}));
    assert_eq!(server.table().count("select count(*) from inbox").await, 0, "a login alone writes nothing");
    server.api().push("nobody", "{}").await;
    assert_eq!(socket.expect_message().await.seq, 1);
}

#[tokio::test]
async fn a_number_is_the_same_token_as_its_text() {
    let server = TestServer::start().await;
    server.api().push("42", "{}").await;
    let mut socket = server.connect().await;
    socket.login_with(r#"["user_login",{"tokenId":42}]"#).await;
    assert_eq!(socket.replay().await.count, 1);
}

#[tokio::test]
async fn a_number_too_large_for_a_float_is_not_somebody_elses_token() {
    let server = TestServer::start().await;
    for number in ["9007199254740992", "18446744073709551616"] {
        server.api().push(number, r#""the neighbour's""#).await;
    }
    for number in ["9007199254740993", "18446744073709551617"] {
        let mut socket = server.connect().await;
        let answer = socket.call(&format!(r#"["user_login",{{"tokenId":{number}}}]"#)).await;
        if answer["ok"] == json!(true) {
            assert_eq!(socket.replay().await.count, 0, "{number}");
            server.api().push(number, "1").await;
            assert_eq!(socket.expect_message().await.seq, 1, "{number}");
        } else {
            assert_eq!(answer["code"], json!("invalid_payload"), "{number}");
        }
    }
}

#[tokio::test]
async fn an_ack_sent_right_behind_the_login_is_taken() {
    let server = TestServer::start().await;
    for round in 1..=20 {
        server.api().push("1", "{}").await;
        let mut socket = server.connect().await;
        let login = socket.call_later(r#"["user_login",{"tokenId":"1"}]"#).await.unwrap();
        let ack = socket.call_later(&format!(r#"["ack",{{"upTo":{round}}}]"#)).await.unwrap();
        assert_eq!(socket.answer(login).await.unwrap()["ok"], json!(true));
        assert_eq!(socket.answer(ack).await.unwrap(), json!({"ok": true}), "round {round}");
    }
    assert_eq!(server.table().count("select count(*) from notification where delivered_at is null").await, 0);
}

#[tokio::test]
async fn a_second_login_with_the_same_token_answers_again_without_a_second_replay() {
    let server = TestServer::start().await;
    server.api().push("1", "{}").await;
    let mut socket = server.login("1").await;
    assert_eq!(socket.replay().await.messages.len(), 1);
    for _ in 0..3 {
        let login = socket.login("1").await;
        assert_eq!((login.rev, login.unread, login.undelivered), (1, 1, 1));
    }
    server.api().push("1", r#""sentinel""#).await;
    assert_eq!(socket.expect_message().await.data.get(), r#""sentinel""#, "nothing came twice");
    socket.expect_quiet(Duration::from_millis(100)).await;
}

#[tokio::test]
async fn logins_on_one_socket_sent_at_once_make_one_session() {
    let server = TestServer::start().await;
    server.api().push("1", r#""old""#).await;
    let mut socket = server.connect().await;
    let mut calls = Vec::new();
    for _ in 0..5 {
        calls.push(socket.call_later(r#"["user_login",{"tokenId":"1"}]"#).await.unwrap());
    }
    for call in calls {
        assert_eq!(socket.answer(call).await.unwrap()["ok"], json!(true));
    }
    assert_eq!(socket.replay().await.data(), [r#""old""#]);
    server.api().push("1", r#""sentinel""#).await;
    assert_eq!(socket.expect_message().await.data.get(), r#""sentinel""#);
    socket.expect_quiet(Duration::from_millis(100)).await;
}

#[tokio::test]
async fn a_page_that_logs_in_as_somebody_else_becomes_that_user() {
    let server = TestServer::start().await;
    for (engine, polling) in [(Engine::V3, false), (Engine::V4, false), (Engine::V3, true), (Engine::V4, true)] {
        let [alice, bob] = ["alice", "bob"].map(|name| format!("{name}-{}-{polling}", engine.number()));
        server.api().push(&bob, r#""kept for bob""#).await;
        let dial = Dial::new(server.address()).engine(engine);
        let mut socket = if polling { dial.polling() } else { dial }.connect().await;
        socket.login(&alice).await;
        assert_eq!(socket.replay().await.count, 0);
        socket.login(&bob).await;
        assert_eq!(socket.replay().await.data(), [r#""kept for bob""#]);
        let both = json!({"tokens": [alice, bob], "data": "for both"}).to_string();
        server.api().post(&both).await.pushed();
        let message = socket.expect_message().await;
        assert_eq!((message.seq, message.data.get()), (2, r#""for both""#), "bob's");
        socket.expect_quiet(Duration::from_millis(100)).await;
        // And back, without a callback, as old pages do it.
        socket.emit(&json!(["user_login", {"tokenId": alice}]).to_string()).await;
        assert_eq!(socket.replay().await.data(), [r#""for both""#]);
    }
}

#[tokio::test]
async fn nothing_of_the_old_user_comes_once_the_new_login_is_answered() {
    let server = TestServer::start().await;
    let api = server.api();
    for _ in 0..5 {
        join_all((0..100).map(|_| api.push("alice", r#""alices""#))).await;
    }
    api.push("bob", r#""bobs""#).await;
    for round in 0..40 {
        let mut socket = server.connect().await;
        socket.login("alice").await;
        // Each round changes over at another moment of the replay.
        for _ in 0..round % 10 * 8 {
            socket.expect_message().await;
        }
        socket.send(r#"42100["user_login",{"tokenId":"bob"}]"#).await.unwrap();
        api.push("alice", r#""alices""#).await;
        let mut is_bob = false;
        loop {
            let packet = socket.raw_packet().await;
            is_bob |= packet.starts_with("3100[");
            assert!(!(is_bob && packet.contains("alices")), "round {round}: {packet}");
            if packet.contains("replay_complete") && is_bob {
                assert!(packet.contains(r#""count":1"#), "round {round}: {packet}");
                break;
            }
        }
    }
}

#[tokio::test]
async fn receipts_behind_a_login_are_about_the_user_it_makes() {
    let server = TestServer::start().await;
    for token in ["alice", "bob"] {
        server.api().push(token, "1").await;
    }
    for round in 0..20 {
        let mut socket = server.login("alice").await;
        socket.replay().await;
        let login = socket.call_later(r#"["user_login",{"tokenId":"bob"}]"#).await.unwrap();
        let read = socket.call_later(r#"["read",{"all":true}]"#).await.unwrap();
        let ack = socket.call_later(r#"["ack",{"upTo":1000}]"#).await.unwrap();
        for call in [login, read, ack] {
            assert_eq!(socket.answer(call).await.unwrap()["ok"], json!(true), "round {round}");
        }
        let [alice, bob] = [server.table().rows("alice").await, server.table().rows("bob").await];
        assert!(alice[0].read_at.is_none() && alice[0].delivered_at.is_none(), "round {round}");
        assert!(bob[0].read_at.is_some() && bob[0].delivered_at.is_some(), "round {round}");
    }
}

#[tokio::test]
async fn events_before_the_login_and_after_the_logout_are_refused() {
    let server = TestServer::start().await;
    let pushed = server.api().push("1", "{}").await;
    let mut socket = server.connect().await;
    let events = [
        format!(r#"["ack",{{"ids":["{}"]}}]"#, pushed.id),
        r#"["ack",{"upTo":1}]"#.to_owned(),
        r#"["read",{"all":true}]"#.to_owned(),
        format!(r#"["read","{}"]"#, pushed.id),
        r#"["user_logout"]"#.to_owned(),
    ];
    for event in &events {
        let answer = socket.call(event).await;
        assert_eq!((&answer["ok"], &answer["code"]), (&json!(false), &json!("not_logged_in")), "{event}: {answer}");
    }
    socket.login("1").await;
    socket.replay().await;
    assert_eq!(socket.call(r#"["user_logout"]"#).await, json!({"ok": true}));
    for event in &events {
        let answer = socket.call(event).await;
        assert_eq!((&answer["ok"], &answer["code"]), (&json!(false), &json!("not_logged_in")), "{event}: {answer}");
    }
    server.api().push("1", "{}").await;
    socket.expect_quiet(Duration::from_millis(200)).await;
    let rows = server.table().rows("1").await;
    assert!(rows.iter().all(|row| row.delivered_at.is_none() && row.read_at.is_none()), "{rows:?}");
}

#[tokio::test]
async fn a_socket_that_logged_out_can_log_in_again_as_anyone() {
    let server = TestServer::start().await;
    let mut socket = server.login_empty("alice").await;
    assert_eq!(socket.call(r#"["user_logout"]"#).await["ok"], json!(true));
    server.api().push("alice", r#""for alice""#).await;
    server.api().push("bob", r#""for bob""#).await;
    socket.login("bob").await;
    assert_eq!(socket.replay().await.data(), [r#""for bob""#]);
    assert_eq!(socket.call(r#"["user_logout"]"#).await["ok"], json!(true));
    socket.login("alice").await;
    assert_eq!(socket.replay().await.data(), [r#""for alice""#]);
}

#[tokio::test]
async fn a_login_that_names_no_token_is_refused_and_can_be_repeated() {
    let server = TestServer::start().await;
    let long = format!(r#"["user_login",{{"tokenId":"{}"}}]"#, "t".repeat(257));
    for event in [
        r#"["user_login"]"#,
        r#"["user_login",null]"#,
        r#"["user_login",{}]"#,
        r#"["user_login","1"]"#,
        r#"["user_login",[]]"#,
        r#"["user_login",{"tokenId":null}]"#,
        r#"["user_login",{"tokenId":""}]"#,
        r#"["user_login",{"tokenId":{"a":1}}]"#,
        r#"["user_login",{"tokenId":["1"]}]"#,
        r#"["user_login",{"tokenId":true}]"#,
        r#"["user_login",{"tokenId":"a\u0000"}]"#,
        r#"["user_login",{"tokenId":"1","batch":"yes"}]"#,
        &long,
    ] {
        let mut socket = server.connect().await;
        let answer = socket.call(event).await;
        assert_eq!((&answer["ok"], &answer["code"]), (&json!(false), &json!("invalid_payload")), "{event}: {answer}");
        let error = socket.expect_event("login_error").await;
        assert_eq!(
            (&error["code"], error["message"].is_string()),
            (&json!("invalid_payload"), true),
            "{event}: {error}"
        );
        socket.login("1").await;
        socket.expect_event("replay_complete").await;
    }
}

#[tokio::test]
async fn a_socket_that_does_not_log_in_is_hung_up_on_and_not_disconnected() {
    let server = TestServer::with(&["--login-timeout-secs=1"]).await;
    for (engine, polling) in [(Engine::V3, false), (Engine::V4, false), (Engine::V3, true), (Engine::V4, true)] {
        let token = format!("engine-{}-{polling}", engine.number());
        let late = Dial::new(server.address()).engine(engine);
        let mut late = if polling { late.polling() } else { late }.connect().await;
        let mut in_time = Dial::new(server.address()).engine(engine).connect().await;
        in_time.login(&token).await;
        in_time.expect_event("replay_complete").await;
        let events = late.expect_end().await;
        assert!(events.is_empty(), "a client that is disconnected does not come back: {events:?}");
        server.api().push(&token, r#""still here""#).await;
        assert_eq!(in_time.expect_message().await.data.get(), r#""still here""#);
        // After a logout the time begins anew.
        assert_eq!(in_time.call(r#"["user_logout"]"#).await["ok"], json!(true));
        in_time.expect_end().await;
    }
}

#[tokio::test]
async fn a_socket_may_log_in_at_any_time_within_the_limits_of_its_address() {
    let flags = ["--login-timeout-secs=0", "--max-sockets-per-address=2", "--header-timeout-secs=1"];
    let server = TestServer::with(&flags).await;
    let mut sockets = [
        Dial::new(server.address()).engine(Engine::V3).connect().await,
        Dial::new(server.address()).polling().connect().await,
    ];
    for socket in &mut sockets {
        socket.expect_quiet(Duration::from_millis(1500)).await;
    }
    assert!(Dial::new(server.address()).try_connect().await.is_err(), "those that wait count like others");
    for socket in &mut sockets {
        socket.login("1").await;
        assert_eq!(socket.replay().await.count, 0);
    }
    server.api().push("1", "1").await;
    for socket in &mut sockets {
        socket.expect_message().await;
    }
}

#[tokio::test]
async fn a_flood_keeps_no_socket_open_that_never_logs_in() {
    let server = TestServer::with(&["--login-timeout-secs=1", "--socket-rate=5"]).await;
    for event in [r#"["ack",{"upTo":1}]"#, r#"["user_login",{"tokenId":""}]"#] {
        let mut socket = server.connect().await;
        // Enough that the socket is still worked for when its time is over, and for as long again.
        for _ in 0..100 {
            socket.send(&format!("42{event}")).await.unwrap();
        }
        socket.expect_end().await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_the_namespace_and_stays_is_hung_up_on() {
    let server = TestServer::start().await;
    for (engine, polling) in [(Engine::V3, false), (Engine::V4, false), (Engine::V3, true), (Engine::V4, true)] {
        let dial = Dial::new(server.address()).engine(engine);
        let mut socket = if polling { dial.polling() } else { dial }.connect().await;
        socket.login("1").await;
        socket.expect_event("replay_complete").await;
        socket.send("41").await.unwrap();
        socket.expect_end().await;
        // Nor does it help to come back.
        let dial = Dial::new(server.address()).engine(engine);
        let mut socket = if polling { dial.polling() } else { dial }.connect().await;
        socket.send("41").await.unwrap();
        socket.send("40").await.unwrap();
        socket.expect_end().await;
    }
}

#[tokio::test]
async fn a_client_that_upgrades_before_it_is_in_the_namespace_is_hung_up_on_too() {
    use futures_util::{SinkExt, StreamExt};
    use tokio_tungstenite::tungstenite::Message as Frame;
    let server = TestServer::with(&["--login-timeout-secs=1"]).await;
    for leaves in [false, true] {
        let open = server.api().get("/socket.io/?EIO=4&transport=polling").await.text;
        let sid = open.split_once(r#""sid":""#).and_then(|(_, rest)| rest.split('"').next()).expect("a session");
        let url = format!("ws://{}/socket.io/?EIO=4&transport=websocket&sid={sid}", server.address());
        let line = tokio::net::TcpStream::connect(server.address()).await.expect("it connects");
        let (mut socket, _) = tokio_tungstenite::client_async(url, line).await.expect("a websocket");
        let poll = server.api();
        let path = format!("/socket.io/?EIO=4&transport=polling&sid={sid}");
        socket.send(Frame::text("2probe")).await.expect("it is sent");
        let (answer, _) = tokio::join!(socket.next(), poll.get(&path));
        assert_eq!(answer.expect("it goes on").expect("a frame").into_text().expect("text"), "3probe");
        for packet in ["5", "40"] {
            socket.send(Frame::text(packet)).await.expect("it is sent");
        }
        if leaves {
            let _connected = socket.next().await;
            socket.send(Frame::text("41")).await.expect("it is sent");
        }
        let ended = async { while let Some(Ok(_)) = socket.next().await {} };
        tokio::time::timeout(crate::server::PATIENCE, ended).await.expect("it is hung up on");
    }
}

#[tokio::test]
async fn leaving_the_namespace_and_coming_back_does_not_make_a_client_faster() {
    let server = TestServer::with(&["--socket-rate=1", "--event-queue=4"]).await;
    let id = server.api().push("1", "1").await.id;
    let mut socket = server.connect().await;
    let began = std::time::Instant::now();
    let receipts = [format!(r#"42["read",["{id}"]]"#), format!(r#"42["unread",["{id}"]]"#)];
    loop {
        for packet in [r#"42["user_login",{"tokenId":"1"}]"#, &receipts[0], &receipts[1], &receipts[0]] {
            let _ = socket.send(packet).await;
        }
        if socket.rejoin().await.is_err() {
            break;
        }
    }
    let done = server.table().count("select count(*) from inbox_change").await;
    let allowed = 4 + 1 + i64::try_from(began.elapsed().as_secs()).unwrap();
    assert!(done <= allowed, "{done} receipts, {allowed} events may be done");
}

#[tokio::test]
async fn events_that_nobody_knows_count_like_others() {
    let server = TestServer::with(&["--socket-rate=1", "--event-queue=4"]).await;
    let mut socket = server.login_empty("1").await;
    let flood = (0..3_000).map(|_| tokio_tungstenite::tungstenite::Message::text(r#"42["typing",{}]"#));
    let _ = socket.flood(flood).await;
    socket.expect_end().await;
    let mut polite = server.login_empty("1").await;
    polite.emit(r#"["typing",{}]"#).await;
    polite.ack_up_to(0).await;
}

#[tokio::test]
async fn one_token_has_a_bounded_number_of_sockets() {
    let server = TestServer::with(&["--max-sockets-per-token=2"]).await;
    let first = server.login_empty("1").await;
    let mut second = server.login_empty("1").await;
    let mut third = server.connect().await;
    let answer = third.call(r#"["user_login",{"tokenId":"1"}]"#).await;
    assert_eq!((&answer["ok"], &answer["code"]), (&json!(false), &json!("too_many_sockets")), "{answer}");
    assert_eq!(third.expect_event("login_error").await["code"], json!("too_many_sockets"));
    server.login_empty("2").await;
    server.api().push("1", "{}").await;
    assert_eq!(second.expect_message().await.seq, 1, "the others are unharmed");

    drop(first);
    let place = async {
        while server.connect().await.call(r#"["user_login",{"tokenId":"1"}]"#).await["ok"] != json!(true) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::server::PATIENCE, place).await.expect("a place is free again in time");
}

#[tokio::test]
async fn clients_that_are_gone_before_their_login_is_done_take_no_place() {
    let server = TestServer::with(&["--max-sockets-per-token=3"]).await;
    for round in 0..40 {
        let mut hasty = server.connect().await;
        hasty.emit(r#"["user_login",{"tokenId":"1"}]"#).await;
        if round % 2 == 0 {
            hasty.send("41").await.unwrap();
        }
    }
    let mut logged_in = Vec::new();
    let places = async {
        while logged_in.len() < 3 {
            let mut socket = server.connect().await;
            if socket.call(r#"["user_login",{"tokenId":"1"}]"#).await["ok"] == json!(true) {
                logged_in.push(socket);
            }
        }
    };
    tokio::time::timeout(crate::server::PATIENCE, places).await.expect("all places are free again in time");
}

#[tokio::test]
async fn two_hundred_clients_that_log_in_at_the_same_moment_are_all_heard() {
    let server = TestServer::start().await;
    let tokens: Vec<String> = (0..200).map(|n| format!("user-{n}")).collect();
    server.api().post(&json!({"tokens": tokens, "data": "hello"}).to_string()).await.pushed();
    let logins = tokens.iter().enumerate().map(|(n, token)| {
        let engine = if n % 2 == 0 { Engine::V4 } else { Engine::V3 };
        let dial = Dial::new(server.address()).engine(engine);
        async move {
            let mut socket = dial.connect().await;
            socket.login(token).await;
            socket.replay().await.count
        }
    });
    let counts = join_all(logins).await;
    assert!(counts.iter().all(|count| *count == 1), "{counts:?}");
}

#[tokio::test]
async fn the_socket_path_can_be_another_one() {
    let server = TestServer::with(&["--socket-path=/ws/socket.io"]).await;
    let mut socket = Dial::new(server.address()).path("/ws/socket.io").connect().await;
    socket.login("1").await;
    socket.expect_event("replay_complete").await;
    server.api().push("1", "{}").await;
    assert_eq!(socket.expect_message().await.seq, 1);
    assert!(Dial::new(server.address()).try_connect().await.is_err(), "the default path is not served");
    let bundle = server.api().get("/ws/socket.io/socket.io.js").await;
    assert!(bundle.status == 200 || bundle.code() == "not_found", "{bundle:?}");
}

#[tokio::test]
async fn more_events_at_once_than_the_queue_holds_are_said_not_dropped() {
    let server = TestServer::with(&["--event-queue=4"]).await;
    server.api().push("1", "{}").await;
    let mut socket = server.login("1").await;
    socket.replay().await;
    let (calls, frames): (Vec<_>, Vec<_>) = (0..300)
        .map(|_| {
            let (call, packet) = socket.packet_of_call(r#"["ack",{"upTo":1}]"#);
            (call, tokio_tungstenite::tungstenite::Message::text(packet))
        })
        .unzip();
    socket.flood(frames).await.unwrap();
    let (mut done, mut refused) = (0, 0);
    for call in calls {
        let answer = socket.answer(call).await.unwrap();
        match answer["code"].as_str() {
            None => done += 1,
            Some("too_many_events") => refused += 1,
            _ => panic!("{answer}"),
        }
    }
    println!("{done} acks taken, {refused} refused");
    assert!(done > 0);
    assert!(server.table().rows("1").await[0].delivered_at.is_some());
}
