//! Pages of which origin may connect, by polling and by websocket, and what a proxy or another host name means.

use serde_json::json;

use crate::api::{Answer, raw};
use crate::server::TestServer;

const KEYS: [&str; 2] = ["--api-keys=backend=0123456789abcdef", "--login-keys=k1=the first secret of all"];

const TRANSPORTS: [(&str, &str); 2] = [
    ("/socket.io/?EIO=4&transport=polling", ""),
    (
        "/socket.io/?EIO=4&transport=websocket",
        "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    ),
];

/// Opens a socket with these headers; the head of the answer, and its body if it was refused.
async fn open(server: &TestServer, host: &str, header: &str, (path, upgrade): (&str, &str)) -> (u16, String) {
    let close = if upgrade.is_empty() { "connection: close\r\n" } else { "" };
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n{header}{upgrade}{close}\r\n");
    let mut line = tokio::net::TcpStream::connect(server.address()).await.expect("it connects");
    if upgrade.is_empty() {
        let answer = raw(server.address(), request.as_bytes()).await;
        return (status(&answer), answer);
    }
    tokio::io::AsyncWriteExt::write_all(&mut line, request.as_bytes()).await.expect("it is sent");
    let mut heard = vec![0; 4096];
    let count = tokio::io::AsyncReadExt::read(&mut line, &mut heard).await.expect("an answer");
    let answer = String::from_utf8_lossy(&heard[..count]).into_owned();
    (status(&answer), answer)
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("no answer: {answer}"))
}

#[tokio::test]
async fn only_pages_of_known_origins_connect() {
    let origins = "--origins=https://app.example.com,https://*.preview.example.com:443,https://müller.example,\
        capacitor://localhost,moz-extension://*";
    let server = TestServer::with(&[&KEYS[..], &[origins]].concat()).await;
    for transport in TRANSPORTS {
        let good = if transport.1.is_empty() { 200 } else { 101 };
        for (origin, allowed) in [
            ("", true),
            ("origin: https://app.example.com\r\n", true),
            ("origin: HTTPS://App.Example.COM\r\n", true),
            ("origin: https://push.example.com\r\n", true),
            ("origin: http://localhost:3000\r\n", true),
            ("origin: wss://app.example.com\r\n", true),
            ("origin: wss://push.example.com\r\n", true),
            ("origin: https://pr-7.preview.example.com\r\n", true),
            ("origin: https://xn--mller-kva.example\r\n", true),
            ("origin: capacitor://localhost\r\n", true),
            ("origin: moz-extension://8a2f2a1e-6d3c-4c8e-9f7b-0d5f3c1f2b11\r\n", true),
            ("origin: https://preview.example.com\r\n", false),
            ("origin: ionic://localhost\r\n", false),
            ("origin: ws://app.example.com\r\n", false),
            ("origin: https://evil.com\r\n", false),
            ("origin: null\r\n", false),
            ("origin: https://app.example.com.evil.com\r\n", false),
            ("origin: https://evil-app.example.com\r\n", false),
            ("origin: https://app.example.com:8443\r\n", false),
            ("origin: http://app.example.com\r\n", false),
            ("origin: https://app.example.com/\r\n", false),
            ("origin: \r\n", false),
        ] {
            let (status, answer) = open(&server, "push.example.com", origin, transport).await;
            assert_eq!(status, if allowed { good } else { 403 }, "{} {origin}: {answer}", transport.0);
            assert!(allowed || answer.contains("foreign_origin"), "{answer}");
        }
    }
}

#[tokio::test]
async fn a_page_of_another_site_takes_no_seat_and_pushes_nothing_by_embedding() {
    for keys in [&[][..], &KEYS] {
        let flags = [keys, &["--max-sockets-per-address=2", "--origins=https://app.example.com"]].concat();
        let server = TestServer::with(&flags).await;
        let embedded = |site: &str, mode: &str, dest: &str| {
            format!("sec-fetch-site: {site}\r\nsec-fetch-mode: {mode}\r\nsec-fetch-dest: {dest}\r\n")
        };
        for site in ["cross-site", "same-site"] {
            for (mode, dest) in [
                ("no-cors", "image"),
                ("no-cors", "script"),
                ("no-cors", "style"),
                ("no-cors", "empty"),
                ("navigate", "document"),
                ("navigate", "iframe"),
            ] {
                for transport in TRANSPORTS {
                    let (status, answer) = open(&server, "localhost", &embedded(site, mode, dest), transport).await;
                    assert!(status == 403 && answer.contains("foreign_origin"), "{site} {mode} {dest}: {answer}");
                }
            }
        }
        // A form is submitted with an Origin, which a page can hide.
        let form = |origin: &'static str| {
            [
                ("origin", origin),
                ("sec-fetch-site", "cross-site"),
                ("sec-fetch-mode", "navigate"),
                ("sec-fetch-dest", "document"),
                ("content-type", "application/x-www-form-urlencoded"),
                ("x-api-key", "0123456789abcdef"),
            ]
        };
        let api = server.api();
        for origin in ["https://evil.com", "null"] {
            let answer = api.send("POST", "/api", &form(origin), "tokens=1&data=evil").await.expect("an answer");
            answer.problem(403, "foreign_origin");
        }
        let bare = &form("")[1..];
        let answer = api.send("POST", "/api", bare, "tokens=1&data=evil").await.expect("an answer");
        answer.problem(403, "foreign_origin");
        assert_eq!(server.table().count("select count(*) from notification").await, 0);

        // A link to a page, the client files, and a page that is listed.
        let link = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
        for page in ["/", "/docs", "/openapi.json", "/healthz"] {
            assert_eq!(api.send("GET", page, &link, "").await.expect("an answer").status, 200, "{page}");
        }
        let frame = [link[0], link[1], ("sec-fetch-dest", "iframe")];
        api.send("GET", "/", &frame, "").await.expect("an answer").problem(403, "foreign_origin");
        let script = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors"), ("sec-fetch-dest", "script")];
        for file in ["/client/tidings.js", "/socket.io/socket.io.js"] {
            // Where npm is missing there are none.
            let status = api.send("GET", file, &script, "").await.expect("an answer").status;
            assert!([200, 404].contains(&status), "{file}: {status}");
        }
        let listed = "origin: https://app.example.com\r\n";
        for (transport, mode, good) in [(TRANSPORTS[0], "cors", 200), (TRANSPORTS[1], "websocket", 101)] {
            let header = format!("{listed}{}", embedded("cross-site", mode, "empty"));
            assert_eq!(open(&server, "localhost", &header, transport).await.0, good, "the seats are still there");
        }
    }
}

#[tokio::test]
async fn without_keys_sockets_are_for_this_machine_alone() {
    let server = TestServer::start().await;
    for transport in TRANSPORTS {
        for (host, header, code) in [
            ("tidings.example.com", "", "foreign_host"),
            ("localhost.example.com:4001", "", "foreign_host"),
            ("localhost", "x-forwarded-for: 10.1.2.3\r\n", "proxied"),
            ("localhost", "forwarded: for=10.1.2.3\r\n", "proxied"),
            ("localhost", "x-real-ip: 10.1.2.3\r\n", "proxied"),
            ("localhost", "origin: https://evil.com\r\n", "foreign_origin"),
            ("localhost", "origin: null\r\n", "foreign_origin"),
        ] {
            let (status, answer) = open(&server, host, header, transport).await;
            assert!(status == 403 && answer.contains(code), "{host} {header}: {answer}");
        }
    }
}

#[tokio::test]
async fn pages_of_known_origins_may_read_the_answers_and_every_answer_is_guarded() {
    let server = TestServer::with(&[&KEYS[..], &["--origins=https://app.example.com"]].concat()).await;
    let ask = async |method: &str, path: &str, headers: &[(&str, &str)]| -> Answer {
        let headers = [&[("origin", "https://app.example.com")], headers].concat();
        server.api().send(method, path, &headers, "").await.expect("an answer")
    };
    let wanted = [("access-control-request-method", "GET"), ("access-control-request-headers", "authorization")];
    for path in ["/api/inbox/1", "/socket.io/?EIO=4&transport=polling"] {
        let allowed = ask("OPTIONS", path, &wanted).await;
        assert_eq!(allowed.status, 200, "{path}");
        assert_eq!(allowed.header("access-control-allow-origin"), Some("https://app.example.com"), "{path}");
        assert_eq!(allowed.header("access-control-allow-headers"), Some("authorization"), "{path}");
    }
    let guarded = |answer: &Answer, what: &str| {
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{what}");
        assert_eq!(answer.header("x-frame-options"), Some("DENY"), "{what}");
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"), "{what}");
        assert_eq!(answer.header("strict-transport-security"), None, "{what}: there is no TLS");
        let policy = answer.header("content-security-policy").unwrap_or_default();
        for directive in ["default-src ", "frame-ancestors 'none'", "base-uri 'none'", "form-action "] {
            assert!(policy.contains(directive), "{what}: {policy}");
        }
    };
    for path in [
        "/",
        "/docs",
        "/openapi.json",
        "/api",
        "/api/inbox/1",
        "/nothing",
        "/socket.io/socket.io.js",
        "/socket.io/?EIO=4&transport=polling",
        "/socket.io/?EIO=4&transport=nothing",
        "/healthz",
    ] {
        let answer = ask("GET", path, &[]).await;
        assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example.com"), "{path}");
        guarded(&answer, path);
    }
    let refused = server.api().send("GET", "/api", &[("origin", "https://evil.com")], "").await.expect("an answer");
    guarded(&refused, "a refusal");
    guarded(&ask("PUT", "/api", &[]).await, "another method");
    guarded(&server.metrics_api().get("/metrics").await, "/metrics");
    guarded(&server.metrics_api().get("/").await, "the metrics' port");
    let rebound = server.metrics_api().send("GET", "/metrics", &[("host", "evil.com")], "").await.expect("an answer");
    rebound.problem(403, "foreign_host");
    guarded(&rebound, "a rebound name");
    let few = TestServer::with(&["--max-sockets-per-address=1"]).await;
    let _socket = few.connect().await;
    let refused = few.api().get("/socket.io/?EIO=4&transport=polling").await;
    refused.problem(429, "too_many_sockets");
    guarded(&refused, "too many sockets");
    let body = json!({"tokens": ["1"]}).to_string();
    let evil =
        [("origin", "https://evil.com"), ("x-api-key", "0123456789abcdef"), ("content-type", "application/json")];
    server.api().send("POST", "/api", &evil, body).await.expect("an answer").problem(403, "foreign_origin");
}
