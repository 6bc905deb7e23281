//! The inbox as a list: newest first, in pages that stay in place, filtered and counted.

use serde_json::{Value, json};

use crate::server::TestServer;

fn seqs(page: &Value) -> Vec<i64> {
    let items = page["items"].as_array().expect("a list has items");
    items.iter().map(|item| item["seq"].as_i64().expect("an item has a seq")).collect()
}

#[tokio::test]
async fn pages_stay_in_place_while_new_rows_arrive() {
    let server = TestServer::start().await;
    let api = server.api();
    api.push_numbers("1", 25).await;
    let mut page = api.list("1", "limit=10").await;
    let mut seen = seqs(&page);
    while let Some(next) = page["next"].as_i64() {
        api.push("1", "{}").await;
        page = api.list("1", &format!("limit=10&before={next}")).await;
        seen.extend(seqs(&page));
    }
    assert!(seen.into_iter().eq((1..=25).rev()), "newest first, nothing twice, nothing left out");
    assert_eq!(seqs(&api.list("1", "limit=1").await), [27], "the first page has what is new");
    assert_eq!(seqs(&api.list("nobody", "").await), Vec::<i64>::new());
    assert_eq!(seqs(&api.list("1", "limit=4000000000").await).len(), 27, "at most a page, whatever is asked for");
}

#[tokio::test]
async fn rows_are_filtered_and_counted_by_type_and_shown_byte_for_byte() {
    let server = TestServer::start().await;
    let api = server.api();
    for kind in ["like", "comment", "like", "follow"] {
        let data = r#"{ "b":1.10, "a":9007199254740993 }"#;
        api.post(&format!(r#"{{"tokens":"1","entityType":"{kind}","data":{data}}}"#)).await.pushed();
    }
    api.ask("POST", "/api/inbox/1/read", &json!({"upTo": 2})).await;
    assert_eq!(seqs(&api.list("1", "unread=true").await), [4, 3]);
    assert_eq!(seqs(&api.list("1", "unread=false").await), [2, 1]);
    assert_eq!(seqs(&api.list("1", "entityType=like").await), [3, 1]);
    assert_eq!(seqs(&api.list("1", "entityType=like&unread=true").await), [3]);
    let counts = api.ask("GET", "/api/inbox/1/counts", &Value::Null).await;
    assert_eq!(counts, json!({"unread": 2, "byType": {"like": 1, "follow": 1}}));
    let text = api.get("/api/inbox/1?limit=1").await.text;
    assert!(text.contains(r#""data":{ "b":1.10, "a":9007199254740993 }"#), "{text}");
    let item = &api.list("1", "limit=1&before=3").await["items"][0];
    assert!(item["readAt"].is_string() && item["deliveredAt"].is_string() && item["expiresAt"].is_null(), "{item}");
}

#[tokio::test]
async fn bad_questions_are_refused_with_what_is_wrong() {
    let server = TestServer::start().await;
    let api = server.api();
    for (query, named) in [
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("before=-1", "before"),
        ("unread=maybe", "unread"),
        ("entityType=a%00", "entityType"),
    ] {
        let detail = api.get(&format!("/api/inbox/1?{query}")).await.problem(400, "invalid_query");
        assert!(detail.contains(named), "{query}: {detail}");
    }
    api.get(&format!("/api/inbox/{}", "x".repeat(257))).await.problem(413, "token_too_long");
    api.get("/api/inbox/a%00b").await.problem(400, "invalid_data");
    api.get("/api/inbox/%ff").await.problem(400, "invalid_path");
}

#[tokio::test]
async fn the_service_describes_itself_for_programs_and_for_people() {
    let server = TestServer::start().await;
    let document = server.api().get("/openapi.json").await.json();
    assert_eq!(document["openapi"], "3.1.0");
    let page = server.api().get("/docs").await;
    assert_eq!(page.status, 200);
    assert!(page.text.contains("spec-url=\"/openapi.json\""), "{}", page.text);
    assert!(!page.text.contains("://"), "nothing is loaded from elsewhere");
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let samples = operation["x-codeSamples"].as_array().unwrap();
            let named =
                |sample: &serde_json::Value| sample["source"].as_str().unwrap().contains(&method.to_uppercase());
            assert!(samples.len() == 3 && samples.iter().all(named), "{method} {path}: {samples:?}");
        }
    }
    let taken = document["paths"]["/api"]["post"]["requestBody"]["content"].as_object().unwrap();
    assert!(
        taken.keys().eq(["application/json", "application/x-www-form-urlencoded", "multipart/form-data"]),
        "{taken:?}"
    );
    let schemas = &document["components"]["schemas"];
    for (schema, field) in [("PushForm", "tokens"), ("Answer", "warnings")] {
        assert!(schemas[schema]["properties"][field].is_object(), "{field} of {schema}");
    }
    for field in ["ids", "upTo", "all"] {
        let choices = schemas["ReadBody"]["oneOf"].as_array().unwrap();
        assert!(choices.iter().any(|choice| choice["properties"][field].is_object()), "{field} of ReadBody");
    }
    let known = document["components"]["securitySchemes"].as_object().unwrap();
    for (path, method, scope) in
        [("/api", "post", "push"), ("/api/inbox/{token}", "get", "read"), ("/api/inbox/{token}", "delete", "admin")]
    {
        let needed = document["paths"][path][method]["security"].as_array().unwrap();
        assert_eq!(needed[1]["apiKey"], json!([scope]), "{method} {path}");
        let mut schemes = needed.iter().flat_map(|needed| needed.as_object().unwrap().keys());
        assert!(schemes.all(|scheme| known.contains_key(scheme)), "{needed:?}");
    }
}
