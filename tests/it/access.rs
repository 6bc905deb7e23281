//! Who is let in: nobody from elsewhere while nothing has to be shown, and afterwards only who shows the right thing.

mod hygiene;
mod keys;
mod limits;
mod origins;
mod proxy_protocol;
mod tls;

use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::server::{Place, TestServer};
use crate::socket::{Dial, Socket};

const API_KEYS: &str = "--api-keys=backend=0123456789abcdef,other=fedcba9876543210";
const LOGIN_KEYS: &str = "--login-keys=k1=the first secret of all,k2=another good secret";

async fn push(server: &TestServer, headers: &[(&str, &str)]) -> (StatusCode, Value) {
    let url = format!("http://{}/api", server.address());
    let body = r#"{"tokens":["1"],"data":{}}"#;
    let mut request = reqwest::Client::new().post(url).header("content-type", "application/json").body(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.send().await.expect("an answer");
    let (status, text) = (answer.status(), answer.text().await.expect("text"));
    (status, serde_json::from_str(&text).unwrap_or_default())
}

async fn get(server: &TestServer, path: &str, authorization: &str) -> StatusCode {
    let url = format!("http://{}{path}", server.address());
    let request = reqwest::Client::new().get(url).header("authorization", authorization);
    request.send().await.expect("an answer").status()
}

/// What `tidings sign` makes.
async fn signed(token: &str, flags: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    let output = command.args(["sign", "--token", token, LOGIN_KEYS]).args(flags).output().await.expect("it starts");
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn user_login(credential: &Value) -> String {
    json!(["user_login", credential]).to_string()
}

#[tokio::test]
async fn without_credentials_what_comes_from_elsewhere_is_refused_and_the_log_names_the_flag() {
    let server = TestServer::start().await;
    for (header, value, code) in [
        ("host", "tidings.example.com", "foreign_host"),
        ("origin", "https://evil.example.com", "foreign_origin"),
        ("origin", "null", "foreign_origin"),
        ("origin", "http://localhost.evil.com", "foreign_origin"),
        ("x-forwarded-for", "10.1.2.3", "proxied"),
        ("forwarded", "for=10.1.2.3", "proxied"),
        ("x-forwarded-host", "a", "proxied"),
        ("x-forwarded-proto", "https", "proxied"),
        ("x-forwarded-port", "443", "proxied"),
        ("via", "1.1 proxy", "proxied"),
        ("sec-fetch-site", "cross-site", "foreign_origin"),
    ] {
        let (status, problem) = push(&server, &[(header, value)]).await;
        assert_eq!((status.as_u16(), &problem["code"]), (403, &json!(code)), "{header}: {value}");
        let url = format!("http://{}/socket.io/?EIO=4&transport=polling", server.address());
        let polled = reqwest::Client::new().get(url).header(header, value).send().await.expect("an answer");
        assert_eq!(polled.status().as_u16(), 403, "polling, {header}: {value}");
    }
    let nameless = crate::api::raw(server.address(), b"GET /api HTTP/1.0\r\n\r\n").await;
    assert!(nameless.contains(" 403 ") && nameless.contains("foreign_host"), "{nameless}");
    assert!(server.stderr().contains("--origins") && server.stderr().contains("--api-keys"), "{}", server.stderr());
    for origin in ["http://localhost:3000", "http://127.0.0.1:8080", "http://[::1]"] {
        assert_eq!(push(&server, &[("origin", origin)]).await.0, 200, "{origin}");
    }
    let from_disk = TestServer::with(&["--origins=null"]).await;
    assert_eq!(push(&from_disk, &[("origin", "null")]).await.0, 200);
}

#[tokio::test]
async fn on_other_addresses_it_asks_who_comes_or_does_not_start() {
    for flags in [&[][..], &[API_KEYS], &[LOGIN_KEYS], &[API_KEYS, LOGIN_KEYS, "--logins=open"]] {
        let builder = flags.iter().fold(TestServer::builder(), |builder, flag| builder.flag(flag));
        let refusal = builder.flag("--listen=0.0.0.0:0").prepare().start_refused().await;
        assert_eq!(refusal.code, Some(1));
        assert!(["--api-keys", "--login-keys", "--insecure-open"].iter().all(|flag| refusal.stderr.contains(flag)));
    }
    for (flags, said) in [
        (&["--insecure-open"][..], "--insecure-open"),
        (&[API_KEYS, LOGIN_KEYS], ""),
        (&[API_KEYS, LOGIN_KEYS, "--logins=warn"], "see --logins"),
        (&[API_KEYS, LOGIN_KEYS, "--logins=open", "--insecure-open"], "see --logins"),
    ] {
        let builder = flags.iter().fold(TestServer::builder(), |builder, flag| builder.flag(flag));
        let server = builder.flag("--listen=0.0.0.0:0").start().await;
        let warnings = server.stderr().lines().filter(|line| line.contains("WARN")).count();
        let wanted = flags.iter().filter(|flag| flag.starts_with("--logins=") || **flag == "--insecure-open").count();
        assert!(warnings == wanted && server.stderr().contains(said), "{flags:?}: {}", server.stderr());
    }
}

#[tokio::test]
async fn producers_need_a_key_and_their_idempotency_keys_never_meet() {
    let server = TestServer::with(&[API_KEYS]).await;
    for wrong in [
        &[][..],
        &[("authorization", "Bearer 0123456789abcdeF")],
        &[("authorization", "Basic 0123456789abcdef")],
        &[("x-api-key", "0123456789abcde")],
    ] {
        let (status, problem) = push(&server, wrong).await;
        assert_eq!((status.as_u16(), &problem["code"]), (401, &json!("unauthorized")), "{wrong:?}");
    }
    assert_eq!(get(&server, "/api/inbox/1?key=0123456789abcdef", "").await, 401, "a key in the URL counts for nothing");
    let with = |key| [("x-api-key", key), ("idempotency-key", "same")];
    let (first, again) =
        (push(&server, &with("0123456789abcdef")).await.1, push(&server, &with("0123456789abcdef")).await.1);
    assert_eq!(first["id"], again["id"]);
    let (status, other) = push(&server, &with("fedcba9876543210")).await;
    assert_eq!(status, 200);
    assert_ne!(first["id"], other["id"]);
    assert_eq!(get(&server, "/api/inbox/1", "Bearer fedcba9876543210").await, 200);
}

#[tokio::test]
async fn users_need_a_signed_login_that_is_their_own_and_still_good() {
    let server = TestServer::with(&[API_KEYS, LOGIN_KEYS]).await;
    let good = signed("1", &[]).await;
    let changed = |name: &str, value: Value| {
        let mut credential = good.clone();
        credential[name] = value;
        credential
    };
    let sig = good["sig"].as_str().unwrap().to_owned();
    for (what, bad) in [
        ("nothing", json!({"tokenId": "1"})),
        ("another token", changed("tokenId", json!("2"))),
        ("another time", changed("exp", json!(good["exp"].as_i64().unwrap() + 1))),
        ("another key", changed("kid", json!("k2"))),
        ("an unknown key", changed("kid", json!("k9"))),
        ("half a signature", changed("sig", json!(sig[..32]))),
        ("no hex", changed("sig", json!(format!("{}xy", &sig[..62])))),
        ("another audience", signed("1", &["--audience=elsewhere"]).await),
        ("no time left", signed("1", &["--ttl=0"]).await),
    ] {
        let mut socket = server.connect().await;
        let answer = socket.call(&user_login(&bad)).await;
        assert_eq!((&answer["ok"], &answer["code"]), (&json!(false), &json!("unauthorized")), "{what}: {answer}");
        assert_eq!(socket.expect_event("login_error").await["code"], json!("unauthorized"), "{what}");
    }
    for credential in [
        good.clone(),
        signed("1", &["--kid=k2"]).await,
        // As .NET writes hex.
        changed("sig", json!(sig.to_uppercase())),
    ] {
        let mut socket = server.connect().await;
        socket.login_with(&user_login(&credential)).await;
        socket.replay().await;
        let (status, _) = push(&server, &[("x-api-key", "0123456789abcdef")]).await;
        assert_eq!(status, 200);
        socket.expect_message().await;
    }
    let header = format!("Tidings kid=k1, exp={}, sig={sig}", good["exp"]);
    assert_eq!(get(&server, "/api/inbox/1", &header).await, 200, "its own inbox");
    assert_eq!(get(&server, "/api/inbox/2", &header).await, 401, "not another's");
    assert_eq!(get(&server, "/api/notifications/0198c0de-0000-7000-8000-000000000001", &header).await, 401);
    let said = server.stderr();
    assert!(!said.contains(&sig) && !said.contains("the first secret"), "nothing secret is logged");
}

/// A JWT that the first of [`LOGIN_KEYS`] signs.
fn jwt(token: &str) -> String {
    let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256);
    header.kid = Some("k1".to_owned());
    let key = jsonwebtoken::EncodingKey::from_secret(b"the first secret of all");
    let claims = json!({"sub": token, "aud": "tidings", "exp": chrono::Utc::now().timestamp() + 3600});
    jsonwebtoken::encode(&header, &claims, &key).expect("a JWT")
}

#[tokio::test]
async fn no_log_line_at_any_level_holds_what_is_secret() {
    const TOKEN: &str = "alice.liddell@example.com";
    const OTHERS: [&str; 2] = ["Zq!x", "秘密の相手"];
    // A longer target of a library must not make it say more.
    let log = "--log=trace,engineioxide::socket=trace,engineioxide::transport::ws=trace,socketioxide::client=trace,\
        hyper::proto::h1=trace,sqlx_postgres::options::parse=trace";
    for format in ["text", "json"] {
        let flags = [API_KEYS, LOGIN_KEYS, log, &format!("--log-format={format}")];
        let mut builder = flags.iter().fold(TestServer::builder(), |builder, flag| builder.flag(flag)).prepare();
        if let Place::Postgres(database) = builder.place() {
            let url = database.url().replacen("://tidings@", "://tidings:database-password@", 1);
            builder = flags
                .iter()
                .fold(TestServer::builder().at(builder.place().clone()), |b, flag| b.flag(flag))
                .flag(&format!("--database-url={url}"))
                .prepare();
        }
        builder.start_again().await;
        let server = builder;
        let good = signed(TOKEN, &[]).await;
        let mut socket = server.connect().await;
        socket.login_with(&user_login(&good)).await;
        socket.replay().await;
        let key = ("x-api-key", "0123456789abcdef");
        let body =
            json!({"tokens": [TOKEN], "data": {"text": "for her eyes only"}, "entityType": "letter"}).to_string();
        let headers = [key, ("content-type", "application/json"), ("idempotency-key", "one")];
        assert_eq!(server.api().send("POST", "/api", &headers, body).await.expect("an answer").status, 200);
        let id = socket.expect_message().await.id;
        socket.receipt("read", &[&id]).await;
        let list = format!("/api/inbox/{TOKEN}");
        assert_eq!(get(&server, &list, "Bearer 0123456789abcdef").await, 200);
        let mut wrong = good.clone();
        wrong["exp"] = json!(7);
        server.connect().await.call(&user_login(&wrong)).await;
        let jwt = jwt(TOKEN);
        for dial in [Dial::new(server.address()), Dial::new(server.address()).polling()] {
            let mut socket = dial.clone().connect().await;
            socket.login_with(&user_login(&json!({"tokenId": TOKEN, "jwt": jwt}))).await;
            for auth in [json!({"jwt": jwt}), good.clone()] {
                let mut socket = dial.clone().auth(&auth).connect().await;
                socket.login_with(&user_login(&json!({"tokenId": TOKEN}))).await;
                socket.call(&format!(r#"["ack",["{TOKEN}"]]"#)).await;
            }
        }
        for token in OTHERS {
            let mut socket = server.connect().await;
            socket.login_with(&user_login(&signed(token, &[]).await)).await;
            let body = json!({"tokens": [token], "data": "for her eyes only"}).to_string();
            let headers = [key, ("content-type", "application/json")];
            server.api().send("POST", "/api", &headers, body).await.expect("an answer");
        }
        // What is refused: broken, too long, with another key, for another token.
        for body in [&format!(r#"{{"tokens":["{TOKEN}"#), r#"{"tokens":["1"],"data":"for her eyes only\u0000"}"#] {
            let headers = [key, ("content-type", "application/json")];
            assert_eq!(server.api().send("POST", "/api", &headers, body).await.expect("an answer").status, 400);
        }
        assert_eq!(get(&server, &list, &format!("Bearer {}", &jwt[..jwt.len() - 4])).await, 401);
        assert_eq!(get(&server, "/api/inbox/1", &format!("Bearer {jwt}")).await, 401);
        assert_eq!(get(&server, &list, "Bearer 0123456789abcdefX").await, 401);
        assert_eq!(get(&server, &format!("/api/inbox/{}", TOKEN.repeat(20)), "Bearer 0123456789abcdef").await, 413);
        let said = server.stderr();
        assert!(said.contains("TRACE") || said.contains("DEBUG"), "it does say something");
        let sig = good["sig"].as_str().unwrap();
        let jwt_sig = jwt.rsplit('.').next().unwrap();
        let secrets = [TOKEN, "eyes only", "0123456789abcdef", sig, jwt_sig, "the first secret", "database-password"];
        for secret in secrets.into_iter().chain(OTHERS).chain(["%E7%A7%98"]) {
            let line = said.lines().find(|line| line.contains(secret));
            assert!(line.is_none(), "{format}: {secret} in {}", line.unwrap_or_default());
        }
    }
}

#[tokio::test]
async fn a_refusal_to_start_shows_nothing_of_a_key() {
    for flags in
        ["--api-keys=good=0123456789abcdef,0123456789abcdef", "--login-keys=0123456789abcdef==", "--api-keys=a=s3cret"]
    {
        let refusal = TestServer::builder().flag(flags).prepare().start_refused().await;
        assert_eq!(refusal.code, Some(2), "{flags}");
        let (flag, _) = flags.split_once('=').unwrap();
        assert!(refusal.stderr.contains(flag) && refusal.stderr.contains("entry"), "{}", refusal.stderr);
        assert!(["0123456789abcdef", "s3cret"].iter().all(|key| !refusal.stderr.contains(key)), "{}", refusal.stderr);
        let refusal = TestServer::builder().env("TIDINGS_API_KEYS", "0123456789abcdef").prepare().start_refused().await;
        assert!(
            refusal.stderr.contains("entry 1") && !refusal.stderr.contains("0123456789abcdef"),
            "{}",
            refusal.stderr
        );
    }
    for url in ["kafka://user:passw0rd@host", "redis//:passw0rd@host", "redis://:passw0rd@host:port"] {
        let refusal = TestServer::builder().flag(&format!("--bus={url}")).prepare().start_refused().await;
        assert!(refusal.code == Some(1) && refusal.stderr.contains("bus"), "{refusal:?}");
        assert!(!refusal.stderr.contains("passw0rd"), "{refusal:?}");
    }
}

#[tokio::test]
async fn of_the_credentials_in_the_handshake_and_with_the_event_any_good_one_is_enough() {
    let server = TestServer::with(&[LOGIN_KEYS]).await;
    let good = signed("1", &[]).await;
    let mut wrong = good.clone();
    wrong["exp"] = json!(good["exp"].as_i64().unwrap() + 1);
    let plain = json!({"tokenId": "1"});
    let with = |mut login: Value, jwt: String| {
        login["jwt"] = json!(jwt);
        login
    };
    let (with_both, with_old_jwt, with_old_sig) =
        (with(good.clone(), jwt("1")), with(good.clone(), jwt("2")), with(wrong.clone(), jwt("1")));
    for (auth, shown, ok) in [
        (good.clone(), &plain, true),
        (json!({"jwt": jwt("1")}), &plain, true),
        (wrong.clone(), &plain, false),
        (json!({"jwt": jwt("2")}), &plain, false),
        (good.clone(), &wrong, true),
        (wrong.clone(), &good, true),
        (wrong.clone(), &wrong, false),
        (plain.clone(), &with_both, true),
        (plain.clone(), &with_old_jwt, true),
        (plain.clone(), &with_old_sig, true),
        (good.clone(), &json!({"tokenId": "2"}), false),
    ] {
        for dial in [Dial::new(server.address()), Dial::new(server.address()).polling()] {
            let answer = dial.auth(&auth).connect().await.call(&user_login(shown)).await;
            assert_eq!(answer["ok"], json!(ok), "{auth} {shown}: {answer}");
            assert!(ok || answer["code"] == json!("unauthorized"), "{answer}");
        }
    }
}

#[tokio::test]
async fn who_logs_in_as_somebody_else_needs_a_login_that_is_good_for_that_user() {
    let server = TestServer::with(&[LOGIN_KEYS]).await;
    let (alice, bob) = (signed("alice", &["--ttl=5"]).await, signed("bob", &[]).await);
    let forged = json!({"tokenId": "bob", "exp": alice["exp"], "kid": alice["kid"], "sig": alice["sig"]});
    let mut socket = Dial::new(server.address()).auth(&alice).connect().await;
    socket.login_with(&user_login(&json!({"tokenId": "alice"}))).await;
    told_of_the_end(&mut socket).await;
    for wrong in [json!({"tokenId": "bob"}), forged] {
        assert_eq!(socket.call(&user_login(&wrong)).await["code"], json!("unauthorized"), "{wrong}");
        socket.expect_event("login_error").await;
        server.api().push("alice", "1").await;
        socket.expect_message().await;
    }
    socket.login_with(&user_login(&bob)).await;
    assert_eq!(socket.replay().await.count, 0);
    // The end of the old login is past then, and ended nothing.
    let wait = alice["exp"].as_i64().unwrap() - chrono::Utc::now().timestamp() + 1;
    socket.expect_quiet(std::time::Duration::from_secs(wait.max(0).unsigned_abs())).await;
    server.api().push("bob", "2").await;
    socket.expect_message().await;
}

#[tokio::test]
async fn a_refused_login_leaves_a_trace_and_its_client_learns_nothing() {
    let server = TestServer::with(&[API_KEYS, LOGIN_KEYS]).await;
    let good = signed("alice", &[]).await;
    let with = |name: &str, value: Value| {
        let mut login = good.clone();
        login[name] = value;
        login
    };
    let milliseconds = signed("alice", &["--ttl=36500d", "--max-login-days=0"]).await;
    let mut answers = std::collections::BTreeSet::new();
    for (login, why) in [
        (json!({"tokenId": "alice"}), "no credential was shown"),
        (with("kid", json!("k9")), "no login key has its kid"),
        (with("sig", json!("00")), "its signature is wrong"),
        (milliseconds, "in milliseconds?"),
        (with("jwt", json!("a.b.c")), ""),
        (json!({"tokenId": "alice", "jwt": jwt("bob")}), "its sub is another token"),
    ] {
        let answer = server.connect().await.call(&user_login(&login)).await;
        if why.is_empty() {
            assert_eq!(answer["ok"], json!(true), "{login}: {answer}");
            continue;
        }
        assert_eq!(answer["code"], json!("unauthorized"), "{login}: {answer}");
        answers.insert(answer.to_string());
        let said = server.stderr();
        let line = said.lines().find(|line| line.contains("Refused a login") && line.contains(why));
        let line = line.unwrap_or_else(|| panic!("{why} is not in {said}"));
        // As printf %s alice | sha256sum says it.
        assert!(line.contains("WARN") && line.contains("address=127.0.0.1"), "{line}");
        assert!(line.contains("2bd806c9") && !line.contains("alice"), "{line}");
    }
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(server.metric(r#"tidings_logins_total{outcome="unauthorized"}"#).await, 5.0);
    assert_eq!(server.metric(r#"tidings_logins_total{outcome="accepted"}"#).await, 1.0);
    assert_eq!(server.metric(r#"tidings_logins_total{outcome="invalid_payload"}"#).await, 0.0);
    let lines = |server: &TestServer| server.stderr().matches("its sub is another token").count();
    let before = lines(&server);
    let elsewhere = format!("Bearer {}", jwt("bob"));
    for _ in 0..50 {
        assert_eq!(get(&server, "/api/inbox/alice", &elsewhere).await, 401);
    }
    let told = lines(&server) - before;
    assert!((1..50).contains(&told), "over HTTP too, but a line a second: {told}");
}

#[tokio::test]
async fn a_session_ends_with_its_login_unless_that_is_renewed() {
    let server = TestServer::with(&[LOGIN_KEYS]).await;
    let mut renewed = server.connect().await;
    renewed.login_with(&user_login(&signed("1", &["--ttl=5"]).await)).await;
    told_of_the_end(&mut renewed).await;
    let mut socket = server.connect().await;
    socket.login_with(&user_login(&signed("1", &["--ttl=5"]).await)).await;
    told_of_the_end(&mut socket).await;
    renewed.login_with(&user_login(&signed("1", &["--ttl=1h"]).await)).await;
    assert_eq!(socket.expect_event("login_error").await["code"], json!("login_expired"));
    let pushed = server.api().push("1", "{}").await;
    assert_eq!(renewed.expect_message().await.id, pushed.id, "it goes on");
    assert_eq!(socket.call(r#"["ack",{"upTo":1}]"#).await["code"], json!("not_logged_in"));
}

/// An empty replay and, before or after its end, that the login ends in less than a minute.
async fn told_of_the_end(socket: &mut Socket) {
    let mut events = [socket.event().await, socket.event().await];
    events.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(events.each_ref().map(|event| event.name.as_str()), ["login_expiring", "replay_complete"]);
    assert!(events[0].value()["exp"].is_i64(), "{}", events[0].text());
}

#[tokio::test]
async fn unsigned_logins_can_be_let_in_and_counted_while_pages_are_changed() {
    let server = TestServer::with(&[LOGIN_KEYS, "--logins=warn"]).await;
    server.login_empty("1").await;
    assert_eq!(server.metric("tidings_unsigned_logins_total").await, 1.0);
    assert!(server.stderr().contains("Accepted a login without a signature"));
    let open = TestServer::with(&[LOGIN_KEYS, "--logins=open"]).await;
    open.login_empty("1").await;
    assert_eq!(open.metric("tidings_unsigned_logins_total").await, 1.0);
    assert!(!open.stderr().contains("Accepted a login without a signature"));
    let mut wrong = signed("1", &[]).await;
    wrong["sig"] = json!("00");
    let answer = server.connect().await.call(&user_login(&wrong)).await;
    assert_eq!(answer["code"], json!("unauthorized"), "a wrong one is never let in");
}
