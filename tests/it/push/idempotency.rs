//! `Idempotency-Key`: one push for one key, the same answer for it again, also after a crash.

use futures_util::future::join_all;
use serde_json::json;

use crate::server::TestServer;

const BODY: &str = r#"{"tokens":["1","2"],"entityType":"like","data":{"n":1}}"#;

#[tokio::test]
async fn the_same_key_and_body_give_the_same_answer_and_no_second_row() {
    let server = TestServer::start().await;
    let first = server.api().post_keyed("order-1", BODY).await;
    first.pushed();
    for _ in 0..3 {
        let again = server.api().post_keyed("order-1", BODY).await;
        assert_eq!((again.status, &again.text), (200, &first.text), "byte for byte");
    }
    assert_eq!(server.table().count("select count(*) from notification").await, 2);
    assert_ne!(server.api().post_keyed("order-2", BODY).await.pushed().id, first.pushed().id);
    assert_ne!(server.api().post(BODY).await.pushed().id, first.pushed().id);
    assert_eq!(server.table().count("select count(*) from notification").await, 6);
}

#[tokio::test]
async fn the_same_key_with_another_body_is_refused() {
    let server = TestServer::start().await;
    server.api().post_keyed("order-1", BODY).await.pushed();
    let other = r#"{"tokens":["1","2"],"entityType":"like","data":{"n":2}}"#;
    server.api().post_keyed("order-1", other).await.problem(422, "idempotency_mismatch");
    server.api().post_keyed("order-1", BODY).await.pushed();
    assert_eq!(server.table().count("select count(*) from notification").await, 2);
}

#[tokio::test]
async fn one_key_fifty_times_at_once_is_one_push() {
    let server = TestServer::start().await;
    let api = server.api();
    let answers = join_all((0..50).map(|_| api.post_keyed("order-1", BODY))).await;
    let id = api.post_keyed("order-1", BODY).await.pushed().id;
    for answer in &answers {
        match answer.status {
            200 => assert_eq!(answer.pushed().id, id),
            _ => drop(answer.problem(409, "idempotency_in_flight")),
        }
    }
    assert!(answers.iter().any(|answer| answer.status == 200));
    assert_eq!(server.table().count("select count(*) from notification").await, 2);
}

#[tokio::test]
async fn fifty_keys_at_once_with_different_bodies_keep_one_each() {
    let server = TestServer::start().await;
    let api = server.api();
    let posts = (0..50).map(|n| {
        let (api, key) = (api.clone(), format!("key-{}", n % 5));
        async move { api.post_keyed(&key, &json!({"tokens": ["1"], "data": {"n": n}}).to_string()).await }
    });
    let answers = join_all(posts).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 5, "one body wins each key");
    for answer in answers.iter().filter(|answer| answer.status != 200) {
        let code = answer.code();
        assert!(["idempotency_in_flight", "idempotency_mismatch"].contains(&code.as_str()), "{}", answer.text);
    }
    assert_eq!(server.table().count("select count(*) from notification").await, 5);
}

#[tokio::test]
async fn the_answer_of_a_key_survives_a_kill() {
    let mut server = TestServer::start().await;
    let first = server.api().post_keyed("order-1", BODY).await;
    first.pushed();
    server.kill_9().await;
    server.start_again().await;
    assert_eq!(server.api().post_keyed("order-1", BODY).await.text, first.text);
    assert_eq!(server.table().count("select count(*) from notification").await, 2);
}

#[tokio::test]
async fn a_push_that_was_refused_or_not_understood_does_not_use_up_its_key() {
    let server = TestServer::start().await;
    let api = server.api();
    let keyed = async |kind: &str, body: &str| {
        let headers = [("content-type", kind), ("idempotency-key", "order-1")];
        api.send("POST", "/api", &headers, body).await.expect("an answer")
    };
    const FORM: &str = "application/x-www-form-urlencoded";
    for (kind, body, status) in [
        ("application/json", r#"{"tokens":[{}]}"#, 400),
        ("application/json", r#"{"Tokens":["1"]}"#, 400),
        ("application/json", r#"{"tokens":""}"#, 400),
        ("application/json", r#"{"tokens":["1"],"data":"\u0000"}"#, 400),
        ("application/json; charset=utf-16", BODY, 415),
        ("application/xml", BODY, 415),
        (FORM, "token=1&data=x", 400),
        (FORM, "tokens=&data=x", 400),
        (FORM, "tokens[user]=1", 400),
        ("multipart/form-data; boundary=x", "tokens=1", 400),
        ("", "tokens=1&data=x", 415),
        // These are taken, but for nobody, and something in them was not understood.
        ("application/json", r#"{"audience":["1","2"],"data":{}}"#, 200),
        (FORM, "audience=1&data=x", 200),
    ] {
        let answer = keyed(kind, body).await;
        assert_eq!(answer.status, status, "{kind} {body}: {}", answer.text);
        assert!(status != 200 || answer.pushed().accepted == 0);
    }
    let first = keyed("application/json", BODY).await;
    assert_eq!(first.pushed().accepted, 2);
    assert_eq!(keyed(FORM, BODY).await.text, first.text, "JSON is JSON, whatever the header says");
    assert_eq!(server.table().count("select count(*) from notification").await, 2);
}

#[tokio::test]
async fn the_same_bytes_in_another_format_are_another_request() {
    let server = TestServer::start().await;
    let keyed = async |key: &str, kind: &str, body: &str| {
        let headers = [("content-type", kind), ("idempotency-key", key)];
        server.api().send("POST", "/api", &headers, body).await.expect("an answer")
    };
    const FORM: &str = "application/x-www-form-urlencoded";
    let body = |boundary: &str| {
        let part = |name: &str, value: &str| {
            format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
        };
        format!("{}{}--{boundary}--\r\n", part("tokens[]", "1"), part("data", "hi"))
    };
    // It reads as a form too, which has fields with strange names.
    let multipart = body("x").replace("hi", "hi&tokens=1&");
    let first = keyed("a", "multipart/form-data; boundary=x", &body("x")).await;
    assert_eq!(first.pushed().accepted, 1);
    let again = keyed("a", "multipart/form-data; boundary=other", &body("other")).await;
    assert_eq!(again.text, first.text, "each try makes a boundary of its own");
    keyed("a", "multipart/form-data; boundary=x", &body("x").replace("hi", "ho"))
        .await
        .problem(422, "idempotency_mismatch");
    let form = keyed("b", FORM, &multipart).await;
    assert_eq!(form.pushed().accepted, 1, "{}", form.text);
    assert_eq!(keyed("b", FORM, &multipart).await.text, form.text);
    keyed("b", "multipart/form-data; boundary=x", &multipart).await.problem(422, "idempotency_mismatch");
    keyed("b", "application/json", r#"{"tokens":["1"]}"#).await.problem(422, "idempotency_mismatch");
}

#[tokio::test]
async fn a_key_that_cannot_be_one_is_refused() {
    let server = TestServer::start().await;
    server.api().post_keyed("", BODY).await.problem(400, "invalid_idempotency_key");
    server.api().post_keyed(&"k".repeat(1000), BODY).await.problem(400, "invalid_idempotency_key");
    assert_eq!(server.table().count("select count(*) from notification").await, 0);
}

#[tokio::test]
async fn a_key_is_forgotten_after_its_time() {
    let server = TestServer::with(&["--idempotency-ttl-secs=1", "--sweep-interval-secs=1"]).await;
    let first = server.api().post_keyed("order-1", BODY).await.pushed().id;
    let renewed = async {
        let mut pause = tokio::time::interval(std::time::Duration::from_millis(100));
        loop {
            pause.tick().await;
            let id = server.api().post_keyed("order-1", BODY).await.pushed().id;
            if id != first {
                break id;
            }
        }
    };
    tokio::time::timeout(crate::server::PATIENCE, renewed).await.expect("forgotten in time");
    assert_eq!(server.table().count("select count(*) from notification").await, 4);
    assert_eq!(server.table().count("select count(*) from idempotency").await, 1, "the old one is gone");
}
