//! How backends write a body: what is plainly JSON is taken as JSON, forms as many libraries make them, and what is not
//! understood is refused with what to do, never answered 200 for nobody.

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use serde_json::json;
use std::io::Write;

use crate::api::{Answer, raw};
use crate::server::TestServer;

const FORM: &str = "application/x-www-form-urlencoded";
const JSON: &str = r#"{"tokens":["1","2"],"entityType":"like","data":{"n":1}}"#;

async fn post(server: &TestServer, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Answer {
    server.api().send("POST", "/api", headers, body).await.expect("an answer")
}

fn reached(answer: &Answer) -> Vec<String> {
    answer.pushed().results.into_iter().map(|result| result.token).collect()
}

#[tokio::test]
async fn json_is_taken_whatever_a_client_says_of_it_without_being_asked() {
    let server = TestServer::start().await;
    let pretty = format!("\r\n  {JSON}\n");
    let marked = format!("\u{feff}{JSON}");
    let mut seq = 0;
    for kind in [FORM, "application/x-www-form-urlencoded; charset=UTF-8", "text/plain;charset=UTF-8", "", "text/json"]
    {
        for body in [JSON, &pretty, &marked] {
            let answer = post(&server, &[("content-type", kind)], body).await;
            assert_eq!(reached(&answer), ["1", "2"], "{kind}: {body}");
            seq += 1;
            assert_eq!(answer.pushed().results[0].seq, seq);
        }
    }
    let answer = post(&server, &[], JSON).await;
    assert_eq!(reached(&answer), ["1", "2"], "without any Content-Type");
    let rows = server.table().rows("2").await;
    assert!(rows.iter().all(|row| (&*row.entity_type, &*row.data) == ("like", r#"{"n":1}"#)), "{rows:?}");

    for body in ["tokens=1&data=x", "hello", ""] {
        let detail =
            post(&server, &[("content-type", "text/plain")], body).await.problem(415, "unsupported_media_type");
        assert!(detail.contains("Content-Type must be set") && detail.contains("application/json"), "{detail}");
    }
    for body in ["[1,2]", r#"{"tokens":["1"]"#] {
        post(&server, &[("content-type", FORM)], body).await.problem(400, "invalid_body");
    }
    let read = format!("/api/inbox/{}/read", 1);
    for kind in [FORM, "text/plain"] {
        let answer = server.api().send("POST", &read, &[("content-type", kind)], r#"{"all":true}"#).await.unwrap();
        assert_eq!(answer.status, 200, "receipts as well, {kind}: {}", answer.text);
        let answer = server.api().send("POST", &read, &[("content-type", kind)], "all=true").await.unwrap();
        answer.problem(415, "unsupported_media_type");
    }
}

#[tokio::test]
async fn forms_name_their_tokens_in_every_way_that_libraries_have() {
    let server = TestServer::start().await;
    for body in [
        "tokens=1&tokens=2&data=x",
        "tokens%5B%5D=1&tokens%5B%5D=2",
        "tokens%5B0%5D=1&tokens%5B1%5D=2",
        "tokens[0]=1&tokens[1]=2&entityType=like",
        "tokens=%5B%221%22%2C2%5D",
        "\u{feff}tokens=1&tokens=2",
    ] {
        assert_eq!(reached(&post(&server, &[("content-type", FORM)], body).await), ["1", "2"], "{body}");
    }
    for (body, named) in [
        ("token=1&data=hi", "did you mean tokens?"),
        ("Tokens=1", "did you mean tokens?"),
        ("tokens=&data=1", "tokens[0]"),
        ("tokens[]=", "tokens[0]"),
        ("tokens[a]=1", "tokens[0]="),
        ("tokens=[1", "tokens"),
        ("tokens=1&data[a]=1", "send JSON"),
        ("%7B%22tokens%22%3A%5B1%5D%7D=", "application/json"),
    ] {
        let answer = post(&server, &[("content-type", FORM)], body).await;
        if body == "tokens=[1" {
            assert_eq!(reached(&answer), ["[1"], "a string like any other");
            continue;
        }
        let detail = answer.problem(400, "invalid_body");
        assert!(detail.contains(named), "{body}: {detail}");
    }
}

#[tokio::test]
async fn a_multipart_form_is_taken() {
    let server = TestServer::start().await;
    let body = "--Boundary\r\nContent-Disposition: form-data; name=\"tokens[0]\"\r\n\r\n1\r\n\
        --Boundary\r\nContent-Disposition: form-data; name=\"tokens[1]\"\r\n\r\n2\r\n\
        --Boundary\r\nContent-Disposition: form-data; name=\"data\"\r\nContent-Type: application/json\r\n\r\n{\"n\":1}\r\n\
        --Boundary--\r\n";
    let kind = [("content-type", "multipart/form-data; boundary=Boundary")];
    assert_eq!(reached(&post(&server, &kind, body).await), ["1", "2"]);
    assert_eq!(server.table().rows("1").await[0].data, r#"{"n":1}"#);
    let misspelt = body.replace("tokens[", "token[");
    assert!(post(&server, &kind, misspelt).await.problem(400, "invalid_body").contains("did you mean tokens?"));
    assert!(post(&server, &kind, &body[..100]).await.problem(400, "invalid_body").contains("multipart/form-data"));
    let unbound = post(&server, &[("content-type", "multipart/form-data")], body).await;
    assert!(unbound.problem(400, "invalid_body").contains("boundary"));
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text).and_then(|()| encoder.finish()).expect("it is written to memory")
}

#[tokio::test]
async fn compressed_bodies_are_inflated_within_the_limit_or_refused_by_name() {
    let server = TestServer::start().await;
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(JSON.as_bytes()).unwrap();
    let zlib = encoder.finish().unwrap();
    let coded = |coding| [("content-type", "application/json"), ("content-encoding", coding)];
    for (coding, body) in [
        ("gzip", gzip(JSON.as_bytes())),
        ("GZIP", gzip(format!("\u{feff}{JSON}").as_bytes())),
        ("x-gzip", gzip(JSON.as_bytes())),
        ("deflate", zlib.clone()),
        ("deflate", zlib[2..zlib.len() - 4].to_vec()),
        ("identity", JSON.into()),
    ] {
        assert_eq!(reached(&post(&server, &coded(coding), body).await), ["1", "2"], "{coding}");
    }
    for coding in ["zstd", "br", "compress", "aws-chunked", "gzip, zstd"] {
        let detail = post(&server, &coded(coding), gzip(JSON.as_bytes())).await.problem(415, "unsupported_media_type");
        assert!(detail.contains(coding.rsplit(' ').next().unwrap()) && detail.contains("gzip"), "{detail}");
    }
    let bomb = post(&server, &coded("gzip"), gzip(&vec![b' '; 30_000_000])).await;
    bomb.problem(413, "body_too_large");
    for (coding, body) in [("gzip", JSON.as_bytes().to_vec()), ("gzip", gzip(JSON.as_bytes())[..20].to_vec())] {
        post(&server, &coded(coding), body).await.problem(400, "invalid_body");
    }
    // What is compressed and not said to be.
    post(&server, &[("content-type", "application/json")], gzip(JSON.as_bytes())).await.problem(400, "invalid_body");
}

#[tokio::test]
async fn text_in_another_encoding_is_refused_by_name() {
    let server = TestServer::start().await;
    for charset in ["iso-8859-1", "utf-16", "\"windows-1252\"", "Shift_JIS"] {
        for kind in ["application/json", FORM] {
            let answer = post(&server, &[("content-type", &format!("{kind}; charset={charset}"))], JSON).await;
            let detail = answer.problem(415, "unsupported_media_type");
            assert!(detail.contains(charset.trim_matches('"')) && detail.contains("UTF-8"), "{detail}");
        }
    }
    let utf16: Vec<u8> = format!("\u{feff}{JSON}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    let answer = post(&server, &[("content-type", "application/json")], utf16).await;
    assert!(answer.problem(415, "unsupported_media_type").contains("UTF-16"));
}

#[tokio::test]
async fn a_slash_behind_the_path_changes_nothing() {
    let server = TestServer::start().await;
    let answer = server.api().send("POST", "/api/", &[("content-type", "application/json")], JSON).await.unwrap();
    assert_eq!(reached(&answer), ["1", "2"]);
    assert_eq!(server.api().get("/api/").await.text, ".");
    let answer = server.api().send("PUT", "/api/", &[], "").await.unwrap();
    answer.problem(405, "method_not_allowed");
}

#[tokio::test]
async fn a_number_is_one_user_in_pushes_logins_and_paths() {
    let server = TestServer::start().await;
    let mut live = server.connect().await;
    live.login_with(&json!(["user_login", {"tokenId": 42.0}]).to_string()).await;
    live.replay().await;
    for body in [r#"{"tokens":42}"#, r#"{"tokens":[42.0]}"#, r#"{"tokens":["42"]}"#, r#"{"tokens":[4.2e1]}"#] {
        let answer = server.api().post(body).await;
        assert_eq!(reached(&answer), ["42"], "{body}");
        live.expect_message().await;
    }
    assert_eq!(server.api().list("42", "").await["unread"], json!(4));
    let mut refused = server.connect().await;
    let answer = refused.call(r#"["user_login",{"tokenId":42.5}]"#).await;
    assert_eq!(answer["code"], json!("invalid_payload"), "{answer}");
}

#[tokio::test]
async fn a_body_that_is_refused_for_its_headers_is_still_read_so_that_the_answer_arrives() {
    let server = TestServer::start().await;
    for header in ["content-type: application/xml", "content-type: application/json\r\ncontent-encoding: br"] {
        let body = " ".repeat(900_000);
        let request = format!(
            "POST /api HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{header}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = raw(server.address(), request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 415"), "{answer}");
    }
}
