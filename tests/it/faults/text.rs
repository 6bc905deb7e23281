//! Weird text in every field, the edges of JSON, and tokens of every shape: refused with the place, or kept byte for byte
//! through the table, the replay and live delivery.

use serde_json::json;

use crate::server::TestServer;

const WEIRD: [&str; 24] = [
    "😀👩‍👩‍👧‍👦🏳️‍🌈",
    "עברית \u{202e}RTL\u{202c} عربي",
    "é",
    "e\u{301}",
    "\u{1100}\u{1161}\u{11a8} 각",
    "__proto__",
    "constructor",
    "'; drop table notification; --",
    "\" or 1=1 --",
    "%' escape '%",
    "<script>alert(1)</script>&amp;",
    "${7*7}{{7*7}}#{7*7}",
    "../../etc/passwd",
    "a\tb\nc\rd",
    "\u{1}\u{1f}\u{7f}\u{80}\u{9f}",
    "\u{feff}bom\u{fffe}\u{ffff}\u{fffd}",
    "\u{2028}\u{2029}",
    "back\\slash \\u0000 \\n",
    "\u{10ffff}\u{e000}",
    "null",
    "0x1F 1e5 -0 NaN",
    "?1 $1 :name @name",
    " leading and trailing ",
    "zero\u{200b}width\u{200d}joiner\u{2060}",
];

#[tokio::test]
async fn weird_text_in_every_field_makes_the_round_trip_byte_for_byte() {
    let server = TestServer::start().await;
    for text in WEIRD {
        let quoted = json!(text).to_string();
        let data = format!(r#"{{{quoted}:[{quoted},{{{quoted}:{quoted}}}]}}"#);
        let mut live = server.login_empty(text).await;
        let body = format!(r#"{{"tokens":[{quoted}],"entityType":{quoted},"data":{data}}}"#);
        let pushed = server.api().post(&body).await.pushed();
        assert_eq!(pushed.results[0].token, text);

        let mut messages = vec![live.expect_message().await];
        messages.extend(server.login(text).await.replay().await.messages);
        assert_eq!(messages.len(), 2, "{text:?}");
        for message in &messages {
            assert_eq!((message.entity_type.as_str(), message.data.get()), (text, data.as_str()));
        }
        let stored = server.table().rows(text).await;
        assert_eq!(stored.len(), 1, "{text:?}");
        assert_eq!(
            (stored[0].id.as_str(), stored[0].entity_type.as_str(), stored[0].data.as_str()),
            (pushed.id.as_str(), text, data.as_str())
        );
        let answer = live.receipt("read", &[&pushed.id]).await;
        assert_eq!(answer["unread"], json!(0), "{text:?}");
    }
    assert_eq!(server.table().count("select count(*) from inbox").await, i64::try_from(WEIRD.len()).unwrap());
}

#[tokio::test]
async fn the_same_text_by_form_and_by_json_is_the_same() {
    let server = TestServer::start().await;
    for text in WEIRD {
        let encoded: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let body = format!("tokens=form&entityType={encoded}&data={encoded}");
        server.api().post_as("application/x-www-form-urlencoded", body).await.pushed();
    }
    let messages = server.login("form").await.replay().await.messages;
    for (message, text) in messages.iter().zip(WEIRD) {
        assert_eq!(message.entity_type, text);
        let data: String = serde_json::from_str(message.data.get()).unwrap();
        assert_eq!(data, text);
    }
    assert_eq!(messages.len(), WEIRD.len());
    let nul = server.api().post_as("application/x-www-form-urlencoded", "tokens=form&data=a%00b").await;
    assert!(nul.problem(400, &nul.code()).contains("data"), "{}", nul.text);
}

#[tokio::test]
async fn weird_text_as_an_idempotency_key_is_refused_or_is_a_key() {
    let server = TestServer::start().await;
    for key in ["'; drop table idempotency; --", "a b", "{}", "\"quoted\"", "<x>&\\"] {
        let first = server.api().post_keyed(key, r#"{"tokens":["1"]}"#).await;
        if first.status == 200 {
            assert_eq!(server.api().post_keyed(key, r#"{"tokens":["1"]}"#).await.text, first.text);
        } else {
            first.problem(400, "invalid_idempotency_key");
        }
    }
}

#[tokio::test]
async fn weird_text_in_a_login_or_a_receipt_reaches_only_its_own_inbox() {
    let server = TestServer::start().await;
    server.api().push("1", r#""not for others""#).await;
    for text in WEIRD {
        let quoted = json!(text).to_string();
        let mut socket = server.connect().await;
        socket
            .login_with(&format!(r#"["user_login",{{"tokenId":{quoted},"userId":{quoted},"socketId":{quoted}}}]"#))
            .await;
        assert_eq!(socket.replay().await.count, 0, "{text:?}");
        for event in ["ack", "read"] {
            let answer = socket.call(&format!(r#"["{event}",{{"ids":[{quoted}]}}]"#)).await;
            assert!(answer["ok"] == json!(true) || answer["code"] == json!("invalid_payload"), "{answer}");
        }
    }
    assert!(server.table().rows("1").await[0].delivered_at.is_none());
}

#[tokio::test]
async fn the_edges_of_json_are_kept_or_refused_with_the_place() {
    let server = TestServer::start().await;
    let api = server.api();
    let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let mut live = server.login_empty("1").await;
    let kept = [
        "9007199254740993".to_owned(),
        "18446744073709551616".to_owned(),
        "-9223372036854775809".to_owned(),
        "1e400".to_owned(),
        "-1E-400".to_owned(),
        "0.1000000000000000055511151231257827".to_owned(),
        r#"{"a":1,"b":2,"a":3}"#.to_owned(),
        r#"{"":""}"#.to_owned(),
        "[1 , 2\t,\n3\r]".to_owned(),
        r#""\u0041\u00e9\ud83d\ude00\b\f\/""#.to_owned(),
        deep(64),
        format!("[{}]", vec!["0"; 30_000].join(",")),
    ];
    for data in &kept {
        let pushed = api.push("1", data).await;
        let message = live.expect_message().await;
        assert_eq!((message.id.as_str(), message.data.get()), (pushed.id.as_str(), data.as_str()));
    }
    let replay = server.login("1").await.replay().await;
    assert_eq!(replay.data(), kept);
    for data in [
        "NaN",
        "Infinity",
        "-",
        "01",
        "1.",
        ".5",
        "+1",
        "0x10",
        "'a'",
        "undefined",
        "[1,]",
        "{a:1}",
        "\"\n\"",
        "\"\\x41\"",
        "\"\\ud8\"",
        "tru",
        "//x\n1",
        "",
    ] {
        let answer = api.post(&format!(r#"{{"tokens":["1"],"data":{data}}}"#)).await;
        assert!(answer.problem(400, "invalid_body").contains("column"), "{data}: {}", answer.text);
    }
    // Depth 100,000 needs room in the body; it is refused for its depth or its size, and nothing overflows.
    let answer = api.post(&format!(r#"{{"tokens":["1"],"data":{}}}"#, deep(100_000))).await;
    assert!(["invalid_data", "data_too_large"].contains(&answer.code().as_str()), "{}", answer.text);
    let answer = api.post(&deep(400_000)).await;
    assert_eq!(answer.status, 400, "{}", answer.text);
    let answer = api.post(&format!(r#"{{"other":{},"tokens":["1"]}}"#, deep(200_000))).await;
    assert!(answer.status == 200 || answer.status == 400, "{}", answer.text);
    assert!(api.get("/healthz").await.status == 200);
}

#[tokio::test]
async fn duplicate_fields_of_a_push_are_decided_or_refused_but_never_mixed() {
    let server = TestServer::start().await;
    let answer = server.api().post(r#"{"tokens":["first"],"data":1,"tokens":["second"],"data":2}"#).await;
    if answer.status == 200 {
        let token = &answer.pushed().results[0].token;
        let rows = server.table().snapshot().await.notifications;
        assert_eq!(rows.len(), 1);
        assert!((token == "second" && rows[0].data == "2") || (token == "first" && rows[0].data == "1"), "{rows:?}");
    } else {
        assert!(answer.problem(400, "invalid_body").contains("tokens"), "{}", answer.text);
    }
}

#[tokio::test]
async fn empty_tokens_never_become_an_inbox() {
    let server = TestServer::start().await;
    for body in [r#"{"tokens":[""]}"#, r#"{"tokens":["",""]}"#, r#"{"tokens":["","1"]}"#, r#"{"tokens":""}"#] {
        let answer = server.api().post(body).await;
        if answer.status == 200 {
            assert!(answer.pushed().results.iter().all(|result| !result.token.is_empty()), "{body}: {}", answer.text);
        } else {
            assert!(answer.problem(400, "invalid_body").contains("tokens["), "{body}: {}", answer.text);
        }
    }
    assert_eq!(server.table().count("select count(*) from inbox where token = ''").await, 0);
}

#[tokio::test]
async fn ten_thousand_tokens_in_one_push_are_one_transaction_in_posted_order() {
    let server = TestServer::start().await;
    let tokens: Vec<String> = (0..10_000).rev().map(|n| format!("u{n}")).collect();
    let mut listed = tokens.clone();
    listed.extend(tokens[..100].iter().cloned());
    let mut live = server.login_empty("u4711").await;
    let answer = server.api().post(&json!({"tokens": listed, "data": "all"}).to_string()).await;
    if answer.status == 413 {
        // Duplicates may count towards the limit; then the push without them must do.
        answer.problem(413, "too_many_tokens");
        server.api().post(&json!({"tokens": tokens, "data": "all"}).to_string()).await.pushed();
    } else {
        assert!(answer.pushed().results.iter().map(|result| &result.token).eq(&tokens));
    }
    assert_eq!(live.expect_message().await.data.get(), r#""all""#);
    let one = "select count(distinct id) * 100000 + count(*) from notification";
    assert_eq!(server.table().count(one).await, 110_000);
}
