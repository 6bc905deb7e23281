//! Every way a push is refused: the exact status and code, a detail that names the place, and no row.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::api::{Api, raw};
use crate::server::TestServer;

/// Expects this refusal and that its detail holds at least one of these words.
async fn refused(api: &Api, body: &str, status: u16, code: &str, named: &[&str]) {
    let detail = api.post(body).await.problem(status, code);
    let shown: String = body.chars().take(100).collect();
    assert!(named.iter().any(|word| detail.contains(word)), "{shown}: the detail names none of {named:?}: {detail}");
}

#[tokio::test]
async fn a_malformed_body_is_refused_with_the_place() {
    let server = TestServer::start().await;
    let api = server.api();
    for (body, place) in [
        ("", "line 1 column 0"),
        ("{", "line 1 column 1"),
        ("{\"tokens\":[\"1\"],\n\"data\":nope}", "line 2 column"),
        (r#"{"tokens":["1"],"data":NaN}"#, "line 1 column"),
        (r#"{"tokens":["1"],"data":01}"#, "line 1 column"),
        (r#"{"tokens":["1"],"data":'x'}"#, "line 1 column"),
        (r#"{"tokens":["1"]} trailing"#, "line 1 column"),
        (r#"{"tokens":["1"],}"#, "line 1 column"),
        ("[1,2]", "object"),
        (r#""text""#, "object"),
        ("null", "object"),
    ] {
        let answer = api.post(body).await;
        let detail = answer.problem(400, "invalid_body");
        assert!(detail.contains(place) || detail.contains("object"), "{body}: {detail}");
    }
    let cut = api.post_as("application/json", b"{\"tokens\":[\"1\"],\"data\":\"\xff\xfe\"}".to_vec()).await;
    cut.problem(400, "invalid_body");
    assert_eq!(server.table().count("select count(*) from inbox").await, 0);
}

#[tokio::test]
async fn a_field_of_the_wrong_kind_is_refused_by_name() {
    let server = TestServer::start().await;
    let api = server.api();
    for (body, place) in [
        (r#"{"tokens":["1","2","3",{"a":1}]}"#, "tokens[3]"),
        (r#"{"tokens":["1",["2"]]}"#, "tokens[1]"),
        (r#"{"tokens":[null]}"#, "tokens[0]"),
        (r#"{"tokens":["1",true]}"#, "tokens[1]"),
        (r#"{"tokens":true}"#, "tokens"),
        (r#"{"tokens":{"0":"1"}}"#, "tokens"),
        (r#"{"tokens":null}"#, "tokens"),
        (r#"{"tokens":""}"#, "tokens[0]"),
        (r#"{"tokens":["1",""]}"#, "tokens[1]"),
        (r#"{"tokens":1.5}"#, "tokens"),
        (r#"{"tokens":["1",2.5]}"#, "tokens[1]"),
        (r#"{"tokens":["1",1e-1]}"#, "tokens[1]"),
        (r#"{"tokens":["1",1e999]}"#, "tokens[1]"),
        (r#"{"tokens":["1"],"entityType":5}"#, "entityType"),
        (r#"{"tokens":["1"],"entityType":["like"]}"#, "entityType"),
    ] {
        refused(&api, body, 400, "invalid_body", &[place, "line 1 column"]).await;
    }
    let form = api.post_as("application/x-www-form-urlencoded", "tokens=%ff&data=x").await;
    assert!(form.problem(400, "invalid_body").contains("tokens"), "{}", form.text);
    assert_eq!(server.table().count("select count(*) from inbox").await, 0);
}

#[tokio::test]
async fn data_that_a_database_cannot_hold_is_refused_with_the_place() {
    let server = TestServer::start().await;
    let api = server.api();
    let push = |data: &str| format!(r#"{{"tokens":["1"],"data":{data}}}"#);
    for data in [
        r#""a\u0000b""#,
        r#"{"a\u0000":1}"#,
        r#"{"a":["\ud800"]}"#,
        r#""\udc00\ud800""#,
        r#""\ud83dx""#,
        r#"{"\uDFFF":1}"#,
    ] {
        refused(&api, &push(data), 400, "invalid_data", &["at byte", "at character", "data."]).await;
    }
    for depth in [65, 100, 10_000, 32_000] {
        let deep = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        refused(&api, &push(&deep), 400, "invalid_data", &["64"]).await;
    }
    let objects = format!("{}1{}", r#"{"a":"#.repeat(65), "}".repeat(65));
    refused(&api, &push(&objects), 400, "invalid_data", &["64"]).await;
    assert_eq!(server.table().count("select count(*) from inbox").await, 0);
}

#[tokio::test]
async fn tokens_and_types_that_cannot_be_stored_are_refused_by_name() {
    let server = TestServer::start().await;
    for (body, place) in [
        (r#"{"tokens":["1","a\u0000b"]}"#, "tokens[1]"),
        (r#"{"tokens":["\ud800"]}"#, "tokens[0]"),
        (r#"{"tokens":["1"],"entityType":"a\u0000b"}"#, "entityType"),
        (r#"{"tokens":["1"],"entityType":"\udc00"}"#, "column"),
    ] {
        let answer = server.api().post(body).await;
        let code = answer.code();
        assert!(code == "invalid_body" || code == "invalid_data", "{body}: {}", answer.text);
        assert!(
            answer.problem(400, &code).contains(place) || answer.text.contains("entityType"),
            "{body}: {}",
            answer.text
        );
    }
    assert_eq!(server.table().count("select count(*) from inbox").await, 0);
}

#[tokio::test]
async fn each_limit_says_its_own_name_and_number() {
    let server = TestServer::start().await;
    let api = server.api();
    let tokens: Vec<String> = (0..10_001).map(|n| n.to_string()).collect();
    refused(&api, &json!({"tokens": tokens}).to_string(), 413, "too_many_tokens", &["10000", "10,000"]).await;
    let long = "t".repeat(257);
    refused(&api, &json!({"tokens": ["1", long]}).to_string(), 413, "token_too_long", &["tokens[1]"]).await;
    refused(&api, &json!({"tokens": long}).to_string(), 413, "token_too_long", &["256"]).await;
    refused(&api, &json!({"tokens": ["é".repeat(129)]}).to_string(), 413, "token_too_long", &["256"]).await;
    let body = json!({"tokens": ["1"], "entityType": "e".repeat(129)}).to_string();
    refused(&api, &body, 413, "entity_type_too_long", &["128"]).await;
    let body = json!({"tokens": ["1"], "data": "d".repeat(102_399)}).to_string();
    refused(&api, &body, 413, "data_too_large", &["102400"]).await;
    let body = json!({"tokens": ["1"], "other": "o".repeat(1_048_576)}).to_string();
    refused(&api, &body, 413, "body_too_large", &["1048576", "1,048,576"]).await;
    assert_eq!(server.table().count("select count(*) from inbox").await, 0);
}

#[tokio::test]
async fn an_endless_body_is_cut_off_at_the_limit() {
    let server = TestServer::with(&["--max-body-bytes=1000"]).await;
    let head = "POST /api HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    let chunk = format!("1000\r\n{}\r\n", " ".repeat(4096));
    let endless = format!("{head}transfer-encoding: chunked\r\n\r\n{}", chunk.repeat(1000));
    let answer = raw(server.address(), endless.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("body_too_large"), "{answer}");

    // A length that is over the limit is refused without waiting for the body.
    let answer = raw(server.address(), format!("{head}content-length: 1001\r\n\r\n{{").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("body_too_large"), "{answer}");
}

#[tokio::test]
async fn a_body_that_ends_before_its_length_is_refused() {
    let server = TestServer::start().await;
    for path in ["/api", "/api/inbox/1/read"] {
        let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n");
        let mut line = TcpStream::connect(server.address()).await.expect("the server accepts");
        line.write_all(format!("{head}content-length: 100\r\n\r\n{{\"tokens\":[\"1\"]}}").as_bytes()).await.unwrap();
        line.shutdown().await.expect("it says no more");
        let mut answer = String::new();
        let read = tokio::time::timeout(crate::server::PATIENCE, line.read_to_string(&mut answer));
        read.await.expect("in time").expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("invalid_body"), "{path}: {answer}");
        assert!(answer.contains("before its announced length"), "{path}: {answer}");
    }
    // A length that is too short makes what follows another request.
    let short = "POST /api HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}junk\r\n\r\n";
    let answer = raw(server.address(), short.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("HTTP/1.1 400"), "{answer}");
    assert_eq!(server.table().count("select count(*) from inbox").await, 0);
}

#[tokio::test]
async fn who_sends_all_of_a_body_that_is_too_large_still_hears_why() {
    let server = TestServer::start().await;
    let head = "POST /api HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n";
    let chunk = format!("100000\r\n{}\r\n", " ".repeat(1 << 20));
    let announced = format!("{head}content-length: 4194304\r\n\r\n{}", " ".repeat(4 << 20));
    let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n{}0\r\n\r\n", chunk.repeat(4));
    for request in [announced, chunked] {
        // As simple clients do: first everything is sent, then the answer is read.
        let mut line = TcpStream::connect(server.address()).await.expect("the server accepts");
        line.write_all(request.as_bytes()).await.expect("it is taken to the end");
        let mut answer = String::new();
        line.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("body_too_large"), "{answer}");
    }
}

#[tokio::test]
async fn other_media_types_paths_and_methods_are_refused() {
    let server = TestServer::start().await;
    let api = server.api();
    for kind in ["application/xml", "application/octet-stream", "text/html"] {
        let detail = api.post_as(kind, r#"{"tokens":["1"]}"#).await.problem(415, "unsupported_media_type");
        assert!(detail.contains("Content-Type must be application/json"), "{kind}: {detail}");
    }
    api.post_as("application/json; charset=utf-8", r#"{"tokens":["1"]}"#).await.pushed();
    api.get("/nowhere").await.problem(404, "not_found");
    api.get("/api/nowhere").await.problem(404, "not_found");
    for method in ["PUT", "DELETE", "PATCH"] {
        let answer = api.send(method, "/api", &[("content-type", "application/json")], "{}").await.unwrap();
        answer.problem(405, "method_not_allowed");
        assert!(answer.header("allow").is_some_and(|allow| allow.contains("POST")), "{:?}", answer.headers);
    }
}
