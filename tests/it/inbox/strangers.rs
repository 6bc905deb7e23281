//! What one client says never shows or changes another token's inbox (fault row 34).

use std::time::Duration;

use serde_json::json;

use crate::server::TestServer;

#[tokio::test]
async fn another_tokens_ids_change_nothing_and_reveal_nothing() {
    let server = TestServer::start().await;
    let bobs = server.api().push("bob", r#""secret""#).await;
    let mine = server.api().push("alice", "{}").await;
    let mut alice = server.login("alice").await;
    alice.replay().await;
    let before = server.table().query("select * from notification where token = 'bob'").await;

    let unknown = "00000000-0000-7000-8000-000000000000";
    for event in ["ack", "read"] {
        let foreign = alice.call(&format!(r#"["{event}",{{"ids":["{}"]}}]"#, bobs.id)).await;
        let nobodys = alice.call(&format!(r#"["{event}",{{"ids":["{unknown}"]}}]"#)).await;
        assert_eq!(foreign["ok"], json!(true), "{foreign}");
        assert_eq!(foreign, nobodys, "an id that exists elsewhere and one that does not are answered alike");
    }
    let answer = alice.receipt("read", &[&bobs.id, &mine.id, unknown]).await;
    assert_eq!(answer, json!({"ok": true, "rev": 2, "unread": 0}), "of a mixed list only the own row counts");
    alice.call(r#"["ack",{"upTo":1000}]"#).await;
    alice.call(r#"["read",{"all":true}]"#).await;

    assert_eq!(server.table().query("select * from notification where token = 'bob'").await, before);
    let inbox = server.table().inbox("bob").await.unwrap();
    assert_eq!((inbox.rev, inbox.unread, inbox.delivered_upto), (1, 1, 0));
    let change = &server.table().snapshot().await.changes[0].change;
    assert!(!change.contains(&bobs.id) && change.contains(&mine.id), "{change}");
    assert_eq!(server.login("bob").await.replay().await.data(), [r#""secret""#]);
}

#[tokio::test]
async fn with_a_login_of_ones_own_every_other_inbox_is_refused_alike() {
    let server = TestServer::with(&["--login-keys=k1=the first secret of all", "--api-keys=b=0123456789abcdef"]).await;
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_tidings"));
    command.args(["sign", "--token=alice", "--login-keys=k1=the first secret of all"]);
    let signed = command.output().await.expect("the binary runs").stdout;
    let signed: serde_json::Value = serde_json::from_slice(&signed).expect("JSON");
    let sig = signed["sig"].as_str().expect("a signature");
    let login = format!("Tidings kid=k1, exp={}, sig={sig}", signed["exp"]);
    let json = ("content-type", "application/json");
    let body = r#"{"tokens":["bob"],"data":"secret"}"#;
    let key = ("x-api-key", "0123456789abcdef");
    let id = server.api().send("POST", "/api", &[json, key], body).await.unwrap().pushed().id;
    let before = server.table().query("select * from notification").await;
    let ask = async |method: &str, path: &str| {
        let body = if method == "POST" { format!(r#"{{"ids":["{id}"]}}"#) } else { String::new() };
        server.api().send(method, path, &[json, ("authorization", &*login)], body).await.expect("an answer")
    };
    for (method, rest) in [("GET", ""), ("GET", "/counts"), ("POST", "/read"), ("POST", "/unread"), ("DELETE", "")] {
        let bobs = ask(method, &format!("/api/inbox/bob{rest}")).await;
        bobs.problem(401, "unauthorized");
        let nobodys = ask(method, &format!("/api/inbox/nobody{rest}")).await;
        assert_eq!((nobodys.status, nobodys.text), (401, bobs.text), "{method} {rest}");
        let own = ask(method, &format!("/api/inbox/alice{rest}")).await;
        assert_eq!(own.status, if method == "DELETE" { 401 } else { 200 }, "{method} {rest}: {}", own.text);
    }
    for token in ["bob", "nobody", "alice"] {
        ask("POST", &format!("/api/sessions/{token}/disconnect")).await.problem(401, "unauthorized");
    }
    for (method, path) in [("GET", format!("/api/notifications/{id}")), ("DELETE", format!("/api/notifications/{id}"))]
    {
        ask(method, &path).await.problem(401, "unauthorized");
    }
    assert_eq!(server.table().query("select * from notification").await, before);
}

#[tokio::test]
async fn one_push_to_two_tokens_is_received_by_each_for_itself() {
    let server = TestServer::start().await;
    let pushed = server.api().post(r#"{"tokens":["alice","bob"],"data":1}"#).await.pushed();
    let mut alice = server.login("alice").await;
    let mut bob = server.login("bob").await;
    alice.replay().await;
    bob.replay().await;
    // The id is the same for both; a receipt counts for the own row only.
    alice.receipt("read", &[&pushed.id]).await;
    assert!(server.table().rows("alice").await[0].read_at.is_some());
    assert!(server.table().rows("bob").await[0].delivered_at.is_none());
    bob.expect_quiet(Duration::from_millis(100)).await;
    assert_eq!(server.login("bob").await.replay().await.count, 1);
}

#[tokio::test]
async fn the_socket_id_and_user_id_of_a_login_are_ignored() {
    let server = TestServer::start().await;
    let mut bob = server.login_empty("bob").await;
    let handshake: serde_json::Value = serde_json::from_str(&bob.handshake).unwrap();
    let mut mallory = server.connect().await;
    let sid = &handshake["sid"];
    mallory.login_with(&format!(r#"["user_login",{{"tokenId":"mallory","userId":"bob","socketId":{sid}}}]"#)).await;
    mallory.expect_event("replay_complete").await;
    server.api().push("bob", r#""for bob""#).await;
    assert_eq!(bob.expect_message().await.data.get(), r#""for bob""#);
    mallory.expect_quiet(Duration::from_millis(100)).await;
    server.api().push("mallory", r#""for mallory""#).await;
    assert_eq!(mallory.expect_message().await.data.get(), r#""for mallory""#);
    bob.expect_quiet(Duration::from_millis(100)).await;
}

#[tokio::test]
async fn after_a_logout_is_answered_nothing_of_that_inbox_comes_any_more() {
    let server = TestServer::start().await;
    let api = server.api();
    for _ in 0..5 {
        futures_util::future::join_all((0..100).map(|_| api.push("alice", r#""alices""#))).await;
    }
    api.push("bob", r#""bobs""#).await;
    for round in 0..60 {
        let mut socket = server.connect().await;
        socket.login("alice").await;
        // Each round leaves at another moment of the replay.
        for _ in 0..round % 15 * 8 {
            socket.expect_message().await;
        }
        socket.send(r#"42100["user_logout"]"#).await.unwrap();
        socket.send(r#"42101["user_login",{"tokenId":"bob"}]"#).await.unwrap();
        let mut logged_out = false;
        loop {
            let packet = socket.raw_packet().await;
            logged_out |= packet.starts_with("3100[");
            assert!(!(logged_out && packet.contains("alices")), "round {round}: {packet}");
            if packet.contains("replay_complete") && logged_out {
                assert!(packet.contains(r#""count":1"#), "round {round}: {packet}");
                break;
            }
        }
    }
}

#[tokio::test]
async fn tokens_that_look_alike_are_different_people() {
    let server = TestServer::start().await;
    let tokens =
        ["a", "A", " a", "a ", "a\u{301}", "á", "1", "01", "1.0", "%61", "__proto__", "constructor", "toString"];
    let body = json!({"tokens": tokens, "data": "to all"}).to_string();
    assert_eq!(server.api().post(&body).await.pushed().accepted, tokens.len());
    for token in tokens {
        server.api().push(token, &json!(token).to_string()).await;
    }
    for token in tokens {
        let replay = server.login(token).await.replay().await;
        assert_eq!(replay.messages.len(), 2, "{token:?}");
        assert_eq!(replay.messages[1].data.get(), json!(token).to_string());
    }
}
