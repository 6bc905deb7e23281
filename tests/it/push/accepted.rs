//! The push contract: who gets a row, in what order the answer lists them, and that `data` comes back byte for byte.

use serde_json::{Value, json};

use crate::api::{Pushed, raw};
use crate::server::TestServer;

fn tokens_of(pushed: &Pushed) -> Vec<&str> {
    pushed.results.iter().map(|result| result.token.as_str()).collect()
}

#[tokio::test]
async fn a_json_push_is_stored_once_a_token_and_answered_with_seqs() {
    let server = TestServer::start().await;
    let body = r#"{"tokens":["1","2"],"entityType":"like","data":"You shall not pass!!!"}"#;
    let answer = server.api().post(body).await;
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let first = answer.pushed();
    assert_eq!(
        answer.text,
        format!(
            r#"{{"responseCode":0,"data":"OK!","id":"{}","accepted":2,"results":[{{"token":"1","seq":1}},{{"token":"2","seq":1}}]}}"#,
            first.id
        )
    );
    let second = server.api().post(r#"{"tokens":["2"],"entityType":"like","data":{}}"#).await.pushed();
    assert_eq!(second.results[0].seq, 2, "each inbox counts for itself");
    assert!(second.id > first.id, "ids rise with time: {} {}", first.id, second.id);
    assert_eq!((first.id.len(), &first.id[14..15]), (36, "7"), "a UUIDv7");

    let rows = server
        .table()
        .query("select token, seq, id, entity_type, cast(data as text) as data, collapse_key, expires_at, delivered_at, read_at, retracted_at from notification order by token, seq")
        .await;
    let row = |token: &str, seq: i64, id: &str, data: &str| {
        json!({"token": token, "seq": seq, "id": id, "entity_type": "like", "data": data, "collapse_key": null,
            "expires_at": null, "delivered_at": null, "read_at": null, "retracted_at": null})
    };
    let words = r#""You shall not pass!!!""#;
    assert_eq!(rows, [row("1", 1, &first.id, words), row("2", 1, &first.id, words), row("2", 2, &second.id, "{}")]);
    let inboxes = server.table().query("select token, rev, unread, delivered_upto from inbox order by token").await;
    assert_eq!(
        inboxes,
        [
            json!({"token": "1", "rev": 1, "unread": 1, "delivered_upto": 0}),
            json!({"token": "2", "rev": 2, "unread": 2, "delivered_upto": 0})
        ]
    );
}

#[tokio::test]
async fn an_admin_can_query_inside_data_and_read_the_timestamps() {
    let server = TestServer::start().await;
    server.api().push("1", r#"{"who":"gandalf"}"#).await;
    let table = server.table();
    assert_eq!(table.value("select data->>'who' from notification").await, json!("gandalf"));
    let created = &table.rows("1").await[0].created_at;
    let at = chrono::DateTime::parse_from_rfc3339(created).unwrap();
    assert!((chrono::Utc::now() - at.to_utc()).abs().num_seconds() < 60, "{created} is now, in UTC");
    assert!(created.len() == 24 && created.ends_with('Z') && &created[10..11] == "T", "{created}");
}

#[tokio::test]
async fn a_form_is_taken_with_repeated_tokens() {
    let server = TestServer::start().await;
    let form = "application/x-www-form-urlencoded";
    let body = "tokens=1&tokens=2&tokens=1&entityType=like&data=You+shall%20not+pass%21%21%21+%C3%A9%26%3D";
    let pushed = server.api().post_as(form, body).await.pushed();
    assert_eq!(tokens_of(&pushed), ["1", "2"]);
    let pushed =
        server.api().post_as("application/x-www-form-urlencoded; charset=UTF-8", "tokens=a%20b").await.pushed();
    assert_eq!(tokens_of(&pushed), ["a b"]);
    let rows = server.table().rows("2").await;
    assert_eq!((rows[0].entity_type.as_str(), rows[0].data.as_str()), ("like", r#""You shall not pass!!! é&=""#));
    let rows = server.table().rows("a b").await;
    assert_eq!((rows[0].entity_type.as_str(), rows[0].data.as_str()), ("", "{}"), "the defaults");

    for body in ["", "entityType=like"] {
        let answer = server.api().post_as(form, body).await;
        assert_eq!(answer.pushed().accepted, 0, "{body}");
        assert_eq!(answer.json()["warnings"][0]["field"], "tokens", "{body}");
    }
}

#[tokio::test]
async fn tokens_may_be_a_string_a_number_or_an_array_of_both() {
    let server = TestServer::start().await;
    for (body, tokens) in [
        (r#"{"tokens":"alice"}"#, &["alice"][..]),
        (r#"{"tokens":7}"#, &["7"]),
        (r#"{"tokens":-7}"#, &["-7"]),
        (r#"{"tokens":["b","a",3,"c"]}"#, &["b", "a", "3", "c"]),
        (r#"{"tokens":[3,"3",3,"a","3","a"]}"#, &["3", "a"]),
        (r#"{"tokens":[9007199254740993]}"#, &["9007199254740993"]),
        (
            r#"{"tokens":[7.0,"7",70e-1,1E3,-0.0,1.8446744073709551616e19]}"#,
            &["7", "1000", "0", "18446744073709551616"],
        ),
        (r#"{"tokens":["7.0","1e3","007"]}"#, &["7.0", "1e3", "007"]),
        (r#"{"tokens":[" 1","1 ","A","a","é","e\u0301"]}"#, &[" 1", "1 ", "A", "a", "é", "e\u{301}"]),
        (r#"{"tokens":"1,2"}"#, &["1,2"]),
    ] {
        let pushed = server.api().post(body).await.pushed();
        assert_eq!(tokens_of(&pushed), tokens, "{body}");
        assert_eq!(pushed.accepted, tokens.len(), "{body}");
    }
    let largest = server.api().post(r#"{"tokens":[18446744073709551616]}"#).await;
    if largest.status == 200 {
        assert_eq!(tokens_of(&largest.pushed()), ["18446744073709551616"], "a number is taken as its own text");
    } else {
        assert!(largest.problem(400, "invalid_body").contains("tokens[0]"), "{}", largest.text);
    }
}

#[tokio::test]
async fn nobody_addressed_is_accepted_for_nobody() {
    let server = TestServer::start().await;
    for (body, why) in
        [("{}", "missing"), (r#"{"tokens":[]}"#, "empty"), (r#"{"entityType":"like","data":{}}"#, "missing")]
    {
        let answer = server.api().post(body).await;
        assert_eq!(answer.status, 200, "{body}: {}", answer.text);
        let hint = format!("it is {why}: the push reached nobody and nothing was stored");
        assert_eq!(
            answer.json(),
            json!({"responseCode": 0, "data": "OK!", "accepted": 0, "results": [],
                "warnings": [{"field": "tokens", "hint": hint}]}),
            "{body}"
        );
    }
    assert_eq!(server.table().count("select count(*) from notification").await, 0);
    assert_eq!(server.table().count("select count(*) from inbox").await, 0);
}

#[tokio::test]
async fn missing_type_and_data_have_defaults_and_unknown_fields_are_told() {
    let server = TestServer::start().await;
    let told = server.api().post(r#"{"tokens":["1"],"socketId":"x","EntityType":5,"nested":{"a":[1]}}"#).await;
    told.pushed();
    let ignored = "it is not a field of a push and was ignored";
    assert_eq!(
        told.json()["warnings"],
        json!([
            {"field": "socketId", "hint": ignored},
            {"field": "EntityType", "hint": format!("{ignored}: did you mean entityType?")},
            {"field": "nested", "hint": ignored},
        ])
    );
    let understood = server.api().post(r#"{"tokens":["1"],"data":1}"#).await;
    assert!(understood.json().get("warnings").is_none(), "{}", understood.text);
    server.api().post(r#"{"tokens":["1"],"entityType":null,"data":null}"#).await.pushed();
    let rows = server.table().rows("1").await;
    assert_eq!((rows[0].entity_type.as_str(), rows[0].data.as_str()), ("", "{}"));
    assert_eq!((rows[2].entity_type.as_str(), rows[2].data.as_str()), ("", "null"));
}

#[tokio::test]
async fn data_comes_back_byte_for_byte_live_replayed_and_in_the_table() {
    let server = TestServer::start().await;
    let texts = [
        r#"{"z":1,"a":2,"m":{"y":1,"b":2}}"#,
        r#"{"a":1,"a":2}"#,
        "9007199254740993",
        "18446744073709551616",
        "1e400",
        "-0.0",
        "1.10",
        "[1E+2,0.1e-7,123456789012345678901234567890.000]",
        "{ \"a\" :\t[ 1 ,2 ],\n \"b\": \"x y\"  }",
        r#""\u00e9\/\ud83d\ude00\t""#,
        r#""é😀 \u200f‏ عربي ""#,
        r#"{"__proto__":{"admin":true},"constructor":null}"#,
        "null",
        "true",
        r#""""#,
        "[]",
    ];
    let mut live = server.login_empty("1").await;
    for text in texts {
        server.api().push("1", text).await;
    }
    let heard = live.expect_messages(texts.len()).await;
    let replay = server.login("1").await.replay().await;
    let stored = server.table().rows("1").await;
    for (n, text) in texts.iter().enumerate() {
        assert_eq!(heard[n].data.get(), *text, "live");
        assert_eq!(replay.messages[n].data.get(), *text, "replayed");
        assert_eq!(stored[n].data, *text, "stored");
    }
}

#[tokio::test]
async fn results_stand_in_posted_order_and_seqs_count_on() {
    let server = TestServer::start().await;
    let tokens: Vec<String> = (0..500).map(|n| format!("user-{}", (n * 7919) % 500)).collect();
    let body = json!({"tokens": tokens, "data": {}}).to_string();
    for seq in 1..=3 {
        let pushed = server.api().post(&body).await.pushed();
        assert_eq!(tokens_of(&pushed), tokens);
        assert!(pushed.results.iter().all(|result| result.seq == seq));
    }
    assert_eq!(server.table().count("select count(*) from notification").await, 1500);
}

#[tokio::test]
async fn everything_up_to_the_limits_is_accepted() {
    let server = TestServer::start().await;
    let tokens: Vec<String> = (0..10_000).map(|n| n.to_string()).collect();
    assert_eq!(server.api().post(&json!({"tokens": tokens}).to_string()).await.pushed().accepted, 10_000);

    let (token, kind) = ("t".repeat(256), "e".repeat(128));
    let data = format!("\"{}\"", "d".repeat(102_398));
    let deep = format!("{}{}", "[".repeat(64), "]".repeat(64));
    for data in [data, deep] {
        let body = format!(r#"{{"tokens":["{token}"],"entityType":"{kind}","data":{data}}}"#);
        server.api().post(&body).await.pushed();
    }
    let rows = server.table().rows(&token).await;
    assert_eq!((rows.len(), rows[0].entity_type.len(), rows[0].data.len()), (2, 128, 102_400));
}

#[tokio::test]
async fn a_push_of_much_data_to_many_is_stored_once_and_arrives_byte_for_byte() {
    let server = TestServer::builder().flag("--commit-kib=4").start().await;
    let mut live = server.login_empty("7").await;
    let tokens: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    let data = format!(r#"{{ "b":1.10, "text":"{}" }}"#, "x".repeat(300));
    let body = format!(r#"{{"tokens":{},"entityType":"like","data":{data}}}"#, json!(tokens));
    let first = server.api().post_keyed("wide", &body).await.pushed();
    assert_eq!(first.accepted, 100);
    assert_eq!(server.api().post_keyed("wide", &body).await.pushed().id, first.id, "its key settles it");
    assert_eq!(live.expect_message().await.data.get(), data);
    let mut late = server.login("8").await;
    assert_eq!(late.replay().await.messages[0].data.get(), data);
    assert!(server.api().get("/api/inbox/9").await.text.contains(&data));
    assert!(server.api().get(&format!("/api/notifications/{}", first.id)).await.text.contains(&data));
    let table = server.table();
    assert_eq!(table.count("select count(*) from notification_payload").await, 1);
    let whole = "select distinct cast(data as text) as data from notification_with_payload";
    assert_eq!(table.value(whole).await, json!(data));
    // Fewer bytes than one transaction takes stand in each row.
    let small = json!({"tokens": tokens[..10], "data": "y".repeat(300)}).to_string();
    server.api().post(&small).await.pushed();
    assert_eq!(table.count("select count(*) from notification_payload").await, 1);
    server.api().ask("DELETE", &format!("/api/notifications/{}", first.id), &Value::Null).await;
    table.expect_sound().await;
}

#[tokio::test]
async fn pushes_of_one_backend_to_one_token_keep_their_order() {
    let server = TestServer::start().await;
    let mut live = server.login_empty("1").await;
    let pushed = server.api().push_numbers("1", 200).await;
    assert!(pushed.iter().map(|pushed| pushed.results[0].seq).eq(1..=200));
    let heard = live.expect_messages(200).await;
    assert!(heard.iter().zip(1..).all(|(message, n)| message.data.get() == format!(r#"{{"n":{n}}}"#)));
}

#[tokio::test]
async fn a_body_in_chunks_and_two_requests_on_one_connection_are_fine() {
    let server = TestServer::start().await;
    let answer = raw(
        server.address(),
        b"POST /api HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n\
          a\r\n{\"tokens\":\r\n6\r\n[\"1\"]}\r\n0\r\n\r\n\
          GET /api HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(r#""accepted":1"#), "{answer}");
    assert!(answer.ends_with("\r\n\r\n."), "{answer}");
}
