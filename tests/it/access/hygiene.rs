//! What HTTP asks of a server that stands behind caches and proxies, and what is left of a request that was refused.

use crate::api::raw;
use crate::server::TestServer;

const KEYS: [&str; 2] = ["--api-keys=backend=0123456789abcdef", "--login-keys=k1=the first secret of all"];

async fn ask(server: &TestServer, head: &str) -> String {
    raw(server.address(), format!("{head}connection: close\r\n\r\n").as_bytes()).await
}

#[tokio::test]
async fn a_request_that_names_two_hosts_is_refused() {
    let server = TestServer::start().await;
    let exposed = TestServer::with(&KEYS).await;
    for server in [&server, &exposed] {
        for head in [
            "GET /api HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n",
            "GET /api HTTP/1.1\r\nhost: localhost\r\nhost: evil.com\r\n",
            "GET /healthz HTTP/1.1\r\nhost: localhost\r\nhost: evil.com\r\n",
            "GET http://evil.com/api HTTP/1.1\r\nhost: localhost\r\n",
            "GET http://localhost/api HTTP/1.1\r\nhost: evil.com\r\n",
            "GET http://localhost:81/api HTTP/1.1\r\nhost: localhost\r\n",
            "GET http://user@localhost/api HTTP/1.1\r\nhost: localhost\r\n",
            "GET http://localhost/socket.io/?EIO=4&transport=polling HTTP/1.1\r\nhost: evil.com\r\n",
        ] {
            let answer = ask(server, head).await;
            assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("invalid_host"), "{head}: {answer}");
        }
        for head in [
            "GET /api HTTP/1.1\r\nhost: localhost\r\n",
            "GET http://localhost/api HTTP/1.1\r\nhost: LOCALHOST\r\n",
            "GET http://localhost:80/api HTTP/1.1\r\nhost: localhost\r\n",
            "GET http://localhost/api HTTP/1.1\r\nhost: localhost:80\r\n",
            "GET http://127.0.0.1:4001/api HTTP/1.1\r\nhost: 127.0.0.1:4001\r\n",
        ] {
            let answer = ask(server, head).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{head}: {answer}");
        }
    }
    let foreign = ask(&server, "GET http://evil.com/api HTTP/1.0\r\n").await;
    assert!(foreign.contains("foreign_host"), "the host of the URI counts where there is no header: {foreign}");
    let local = ask(&server, "GET http://localhost/api HTTP/1.0\r\n").await;
    assert!(local.starts_with("HTTP/1.0 200") || local.starts_with("HTTP/1.1 200"), "{local}");
}

#[tokio::test]
async fn health_checks_need_no_host() {
    for server in [TestServer::start().await, TestServer::with(&KEYS).await] {
        for (path, said) in [("/healthz", "ok"), ("/readyz", "ready")] {
            for version in ["1.0", "1.1"] {
                let answer = ask(&server, &format!("GET {path} HTTP/{version}\r\n")).await;
                assert!(answer.contains(" 200 OK") && answer.ends_with(said), "{path}: {answer}");
            }
        }
    }
    let server = TestServer::start().await;
    for head in [
        "GET /healthz HTTP/1.1\r\nhost: tidings.example.com\r\n",
        "GET /readyz HTTP/1.0\r\nx-forwarded-for: 10.1.2.3\r\n",
        "GET /api HTTP/1.0\r\n",
        "GET /healthz/../api HTTP/1.0\r\n",
        "GET /api/inbox/1 HTTP/1.0\r\n",
    ] {
        let answer = ask(&server, head).await;
        assert!(answer.contains(" 403 "), "{head}: {answer}");
    }
}

#[tokio::test]
async fn parameters_without_a_value_are_as_good_as_none() {
    let server = TestServer::start().await;
    let api = server.api();
    let id = api.push("1", r#"{"n":1}"#).await.id;
    for query in
        ["unread=&entityType=&before=&limit=", "unread", "&&unread=", "limit=&limit=1", "_=&unread=true&before="]
    {
        assert_eq!(api.list("1", query).await["items"][0]["id"], id, "{query}");
    }
    let sent = api.get(&format!("/api/notifications/{id}?after=&limit=")).await;
    assert_eq!(sent.json()["recipients"][0]["token"], "1", "{}", sent.text);
    let detail = api.get("/api/inbox/1?unread=True&before=").await.problem(400, "invalid_query");
    assert!(detail.contains("unread") && detail.contains("true"), "{detail}");
}

#[tokio::test]
async fn nothing_about_a_user_is_kept_by_a_cache_and_preflights_are() {
    let server = TestServer::with(&[&KEYS[..], &["--origins=https://app.example.com"]].concat()).await;
    let headers = [("x-api-key", "0123456789abcdef"), ("origin", "https://app.example.com")];
    for (method, path) in [
        ("GET", "/api/inbox/1"),
        ("GET", "/api/inbox/1/counts"),
        ("GET", "/api/notifications/0198c0de-0000-7000-8000-000000000001"),
        ("POST", "/api"),
        ("GET", "/socket.io/?EIO=4&transport=polling"),
    ] {
        let answer = server.api().send(method, path, &headers, "").await.expect("an answer");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{method} {path}");
    }
    assert_eq!(server.api().get("/api/inbox/1").await.header("cache-control"), Some("no-store"), "refusals");
    assert_eq!(server.api().get("/").await.header("cache-control"), Some("no-cache"), "a page says what it may be");
    let wanted = [headers[1], ("access-control-request-method", "DELETE")];
    let preflight = server.api().send("OPTIONS", "/api/inbox/1", &wanted, "").await.expect("an answer");
    assert_eq!((preflight.status, preflight.header("access-control-max-age")), (200, Some("7200")));
}

#[tokio::test]
async fn a_refused_request_is_counted_and_the_log_says_why_and_whose() {
    let server = TestServer::with(&[&KEYS[..], &["--trusted-proxies=127.0.0.1/32"]].concat()).await;
    let from = ("x-forwarded-for", "203.0.113.7");
    for _ in 0..5 {
        let answer = server.api().send("GET", "/api/inbox/alice", &[from], "").await.expect("an answer");
        answer.problem(401, "unauthorized");
    }
    let key = ("x-api-key", "0123456789abcdef");
    let answer = server.api().send("POST", "/api", &[from, key, ("content-type", "application/json")], "{").await;
    let detail = answer.expect("an answer").problem(400, "invalid_body");
    server.api().send("GET", "/nothing", &[from], "").await.expect("an answer").problem(404, "not_found");
    for (reason, count) in [("unauthorized", 5.0), ("invalid_body", 1.0), ("not_found", 1.0), ("foreign_origin", 0.0)] {
        let name = format!("tidings_requests_refused_total{{reason=\"{reason}\"}}");
        assert_eq!(server.metric(&name).await, count, "{reason}");
    }
    let said = server.stderr();
    let lines: Vec<_> = said.lines().filter(|line| line.contains("Refused a request")).collect();
    let [unauthorized, .., invalid] = lines[..] else { panic!("too few lines: {said}") };
    // As `printf %s alice | sha256sum` begins.
    for part in ["WARN", "unauthorized", "203.0.113.7", "2bd806c9"] {
        assert!(unauthorized.contains(part), "no {part} in {unauthorized}");
    }
    assert!(invalid.contains("invalid_body") && invalid.contains("203.0.113.7"), "{invalid}");
    assert!(lines.len() <= 4, "a line a second of each reason: {said}");
    assert!(!said.contains("alice") && !said.contains(&detail) && !said.contains("not_found"), "{said}");
}
