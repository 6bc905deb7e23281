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
    for (query, meant) in [
        ("unread_only=true", "did you mean unread?"),
        ("Unread=true", "did you mean unread?"),
        ("entity_type=like", "did you mean entityType?"),
        ("offset=0", "offset"),
        ("unread_only", "did you mean unread?"),
        ("entityType=%ff", "UTF-8"),
    ] {
        let detail = api.get(&format!("/api/inbox/1?{query}")).await.problem(400, "invalid_query");
        assert!(detail.contains(meant), "{query}: {detail}");
    }
    api.get(&format!("/api/inbox/{}", "x".repeat(257))).await.problem(413, "token_too_long");
    api.get("/api/inbox/a%00b").await.problem(400, "invalid_data");
    api.get("/api/inbox/%ff").await.problem(400, "invalid_path");
}

#[tokio::test]
async fn no_request_is_done_without_a_parameter_that_it_does_not_have() {
    let server = TestServer::start().await;
    let api = server.api();
    let id = api.push("1", "1").await.id;
    let json = [("content-type", "application/json")];
    let push = r#"{"tokens":"1","data":2}"#;
    for (method, path, body) in [
        ("GET", "/api/inbox/1/counts?entityType=like".to_owned(), ""),
        ("POST", "/api/inbox/1/read?upTo=1".to_owned(), r#"{"all":true}"#),
        ("POST", "/api/inbox/1/unread?before=1".to_owned(), r#"{"ids":[]}"#),
        ("DELETE", "/api/inbox/1?before=1".to_owned(), ""),
        ("GET", format!("/api/notifications/{id}?token=1"), ""),
        ("DELETE", format!("/api/notifications/{id}?token=1"), ""),
        ("DELETE", "/api/groups/1/key/actors/a?before=1".to_owned(), ""),
        ("POST", "/api/sessions/1/disconnect?node=1".to_owned(), ""),
        ("POST", "/api?ttl=60".to_owned(), push),
        ("POST", "/api/?ttl=60".to_owned(), push),
    ] {
        let answer = api.send(method, &path, &json, body).await.unwrap();
        let detail = answer.problem(400, "invalid_query");
        let name = path.split_once('?').unwrap().1.split_once('=').unwrap().0;
        assert!(detail.contains(&format!("\"{name}\"")), "{path}: {detail}");
    }
    let page = api.list("1", "").await;
    assert_eq!((seqs(&page), &page["unread"]), (vec![1], &json!(1)), "nothing was done");
    // Refused, it leaves its key for the right one.
    let keyed = [json[0], ("idempotency-key", "k")];
    api.send("POST", "/api?ttl=60", &keyed, push).await.unwrap().problem(400, "invalid_query");
    assert_eq!(api.post_keyed("k", push).await.pushed().results[0].seq, 2);
    for fine in
        ["/api?x=1", "/healthz?x=1", "/readyz?x=1", "/?users=1,2", "/openapi.json?v=1", "/docs?v=1", "/demo.js?v=1"]
    {
        assert_eq!(api.get(fine).await.status, 200, "{fine}");
    }
}

#[tokio::test]
async fn every_parameter_that_is_described_is_taken_and_none_else() {
    let server = TestServer::start().await;
    let api = server.api();
    let document = api.get("/openapi.json").await.json();
    let id = api.push("1", "1").await.id;
    for (path, methods) in document["paths"].as_object().unwrap() {
        let Some(operation) = methods.get("get").filter(|_| path != "/api") else { continue };
        let path = path.replace("{token}", "1").replace("{id}", &id);
        for parameter in operation["parameters"].as_array().unwrap().iter().filter(|known| known["in"] == "query") {
            let name = parameter["name"].as_str().unwrap();
            let value = if name == "unread" { "true" } else { "1" };
            assert_eq!(api.get(&format!("{path}?{name}={value}")).await.status, 200, "{path} {name}");
            api.get(&format!("{path}?x{name}x={value}")).await.problem(400, "invalid_query");
        }
    }
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
