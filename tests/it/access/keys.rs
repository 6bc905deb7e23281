//! API keys and login keys that come and go beside a running service, and what they are good for.

use std::path::Path;
use std::process::Output;

use serde_json::json;
use tokio::process::Command;

use crate::api::Answer;
use crate::server::{PATIENCE, TestServer};

const RELOAD: &str = "--reload-interval-secs=1";

async fn tidings(server: &TestServer, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    command.args(arguments).env("DATABASE_URL", server.place().url()).kill_on_drop(true);
    command.output().await.expect("the binary runs")
}

/// Adds a key beside the running server and returns it.
async fn add(server: &TestServer, name: &str, flags: &[&str]) -> String {
    let output = tidings(server, &[&["key", "add", "--name", name][..], flags].concat()).await;
    assert!(output.status.success(), "{output:?}");
    let key = String::from_utf8(output.stdout).expect("text").trim().to_owned();
    assert!(key.len() == 72 && key.starts_with("tidings_"), "{key}");
    key
}

async fn ask(server: &TestServer, method: &str, path: &str, key: &str) -> Answer {
    let headers = [("authorization", &*format!("Bearer {key}")), ("content-type", "application/json")];
    let body = if method == "POST" { r#"{"tokens":["1"],"ids":[]}"# } else { "" };
    server.api().send(method, path, &headers, body).await.expect("an answer")
}

/// Asks until it is answered with this status.
async fn until(server: &TestServer, status: u16, method: &str, path: &str, key: &str) {
    let asked = async {
        while ask(server, method, path, key).await.status != status {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("{path} was not answered {status} in time"));
}

#[tokio::test]
async fn a_key_that_is_added_or_revoked_counts_without_a_restart() {
    let server = TestServer::with(&[RELOAD]).await;
    let key = add(&server, "backend", &["--scope", "push"]).await;
    until(&server, 401, "POST", "/api", "nothing").await;
    assert_eq!(ask(&server, "POST", "/api", &key).await.status, 200);
    let other = add(&server, "other", &["--scope", "push,read"]).await;
    until(&server, 200, "POST", "/api", &other).await;
    let again = tidings(&server, &["key", "add", "--name", "backend", "--scope", "read"]).await;
    assert!(again.status.code() == Some(1) && String::from_utf8_lossy(&again.stderr).contains("already"), "{again:?}");

    let stored = json!(server.table().query("select * from api_key").await).to_string();
    assert!(!stored.contains(&key[8..]) && !stored.contains(&other[8..]), "only hashes: {stored}");
    assert!(tidings(&server, &["key", "revoke", "backend"]).await.status.success());
    until(&server, 401, "POST", "/api", &key).await;
    assert_eq!(ask(&server, "POST", "/api", &other).await.status, 200);
    let listed = tidings(&server, &["key", "list"]).await;
    let listed = String::from_utf8(listed.stdout).expect("text");
    let line = |name: &str| listed.lines().find(|line| line.starts_with(name)).expect("it is listed").to_owned();
    assert!(line("backend").contains("revoked") && line("backend").contains("push"), "{listed}");
    assert!(line("other").contains("active") && !line("other").trim_end().ends_with('-'), "it was used: {listed}");

    assert!(tidings(&server, &["key", "revoke", "other"]).await.status.success());
    until(&server, 401, "POST", "/api", &other).await;
    assert_eq!(ask(&server, "POST", "/api", "nothing").await.status, 401, "no key left lets nobody in");
    let unknown = tidings(&server, &["key", "revoke", "nobody"]).await;
    assert_eq!(unknown.status.code(), Some(1));
}

#[tokio::test]
async fn a_key_that_was_revoked_by_a_clock_that_is_ahead_is_revoked_all_the_same() {
    let server = TestServer::with(&[RELOAD]).await;
    let (key, other) =
        (add(&server, "backend", &["--scope", "push"]).await, add(&server, "o", &["--scope", "push"]).await);
    until(&server, 200, "POST", "/api", &key).await;
    until(&server, 200, "POST", "/api", &other).await;
    server.table().change("update api_key set revoked_at = '2999-01-01T00:00:00.000Z' where name = 'backend'").await;
    until(&server, 401, "POST", "/api", &key).await;
    assert_eq!(ask(&server, "POST", "/api", &other).await.status, 200);
    server.table().change("update api_key set revoked_at = '2026-01-02 03:04:05' where name = 'o'").await;
    until(&server, 401, "POST", "/api", &other).await;
}

#[tokio::test]
async fn a_key_too_many_is_refused_and_revoked_ones_take_no_room() {
    let server = TestServer::with(&[RELOAD]).await;
    add(&server, "first", &["--scope", "push"]).await;
    let more = |of: &str, revoked: &str, count: usize| {
        let (first, zeros) = (&of[..1], "0".repeat(57));
        format!(
            "with recursive n(i) as (select 1 union all select i + 1 from n where i < {count})
            insert into api_key (name, sha256, scopes, created_at, revoked_at)
            select '{of}' || i, '{first}' || (100000 + i) || '{zeros}', 'push', '2026-01-02T03:04:05.678Z', {revoked} from n"
        )
    };
    server.table().change(&more("a revoked ", "'2026-01-02T03:04:05.678Z'", 1_500)).await;
    let key = add(&server, "z", &["--scope", "push"]).await;
    until(&server, 200, "POST", "/api", &key).await;
    server.table().change(&more("b many ", "null", 998)).await;
    let refused = tidings(&server, &["key", "add", "--name=more", "--scope=push"]).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("1000 API keys"), "{said}");
    assert!(tidings(&server, &["key", "revoke", "first"]).await.status.success());
    add(&server, "more", &["--scope", "push"]).await;
}

#[tokio::test]
async fn what_is_broken_in_one_place_keeps_no_key_of_another_in() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let write = |name: &str, text: &str| std::fs::write(file(name), text).unwrap();
    let set = r#"{"keys":[{"kty":"oct","kid":"j","alg":"HS256","k":"MDEyMzQ1Njc4OWFiY2RlZg"}]}"#;
    let good = [("api", "file=0123456789abcdef\n"), ("login", "k1=the first secret of all\n"), ("jwks", set)];
    good.iter().for_each(|(name, text)| write(name, text));
    let flags = [("api-keys-file", "api"), ("login-keys-file", "login"), ("jwks-file", "jwks")]
        .map(|(flag, name)| format!("--{flag}={}", file(name).display()));
    let server = TestServer::with(&[RELOAD, &flags[0], &flags[1], &flags[2]]).await;
    let says = async |what: &str| {
        let said = async {
            while !server.stderr().contains(what) {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, said).await.unwrap_or_else(|_| panic!("it does not say {what}"));
    };
    let path = |name: &str| file(name).display().to_string();
    for (name, broken, said) in
        [("api", "nonsense", path("api")), ("login", "k1", path("login")), ("jwks", "{", "JSON Web Key Set".to_owned())]
    {
        let key = add(&server, name, &["--scope", "push"]).await;
        until(&server, 200, "POST", "/api", &key).await;
        write(name, broken);
        says(&said).await;
        assert!(tidings(&server, &["key", "revoke", name]).await.status.success());
        until(&server, 401, "POST", "/api", &key).await;
        good.iter().for_each(|(name, text)| write(name, text));
    }
    assert!(server.metric("tidings_reload_failures_total").await >= 3.0);

    // And none of a file stays because another file, or a row, is broken.
    write("login", "k1=the first secret of all\nj=clashes with the set\n");
    write("api", "");
    until(&server, 401, "POST", "/api", "0123456789abcdef").await;
    write("jwks", &set.replace(r#""j""#, r#""other""#));
    says("occurs twice").await;
    let key = add(&server, "last", &["--scope", "push"]).await;
    add(&server, "bad", &["--scope", "push"]).await;
    until(&server, 200, "POST", "/api", &key).await;
    server.table().change("update api_key set scopes = 'everything' where name = 'bad'").await;
    says("the row \"bad\"").await;
    assert!(tidings(&server, &["key", "revoke", "last"]).await.status.success());
    until(&server, 401, "POST", "/api", &key).await;
}

#[tokio::test]
async fn a_key_does_what_its_scopes_say_for_as_long_as_it_is_good() {
    let server = TestServer::with(&[RELOAD]).await;
    let key = async |name: &str, scope: &str| add(&server, name, &["--scope", scope]).await;
    let (push, read, admin) = (key("p", "push").await, key("r", "read").await, key("a", "admin").await);
    let short = add(&server, "short", &["--scope", "read", "--expires", "5s"]).await;
    until(&server, 401, "POST", "/api", "nothing").await;
    until(&server, 200, "GET", "/api/inbox/1", &short).await;
    let pushed = ask(&server, "POST", "/api", &push).await.json()["id"].as_str().expect("an id").to_owned();
    let sent = format!("/api/notifications/{pushed}");
    for (method, path, good) in [
        ("POST", "/api", [true, false, true]),
        ("GET", "/api/inbox/1", [false, true, true]),
        ("GET", "/api/inbox/1/counts", [false, true, true]),
        ("POST", "/api/inbox/1/read", [true, false, true]),
        ("POST", "/api/inbox/1/unread", [true, false, true]),
        ("GET", &sent, [false, true, true]),
        ("DELETE", "/api/groups/1/g/actors/x", [true, false, true]),
        ("POST", "/api/sessions/1/disconnect", [false, false, true]),
        ("DELETE", &sent, [true, false, true]),
        ("DELETE", "/api/inbox/1", [false, false, true]),
    ] {
        for (key, good) in [&push, &read, &admin].into_iter().zip(good) {
            let answer = ask(&server, method, path, key).await;
            match good {
                true => assert_eq!(answer.status, 200, "{method} {path}: {}", answer.text),
                false => {
                    let detail = answer.problem(401, "unauthorized");
                    assert!(detail.contains("scope"), "{method} {path}: {detail}");
                    let unknown = ask(&server, method, path, "nothing").await;
                    assert_eq!(unknown.text, answer.text, "who has no key hears the same");
                }
            }
        }
    }
    until(&server, 401, "GET", "/api/inbox/1", &short).await;
}

#[tokio::test]
async fn key_files_are_read_again_and_a_broken_one_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let write = |name: &str, text: &str| std::fs::write(file(name), text).unwrap();
    write("api", "# producers\n\nbackend=0123456789abcdef\n");
    write("login", "k1=the first secret of all\n");
    let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
    let (api, login) = (flag("api-keys-file", &file("api")), flag("login-keys-file", &file("login")));
    let server = TestServer::with(&[RELOAD, &api, &login]).await;
    assert_eq!(ask(&server, "POST", "/api", "0123456789abcdef").await.status, 200);
    let signed = async || {
        let output = tidings(&server, &["sign", "--token", "1", &login]).await;
        String::from_utf8(output.stdout).expect("text")
    };
    let first = format!(r#"["user_login",{}]"#, signed().await);
    server.connect().await.login_with(&first).await;

    write("api", "backend=0123456789abcdef\nsecond=fedcba9876543210\n");
    until(&server, 200, "POST", "/api", "fedcba9876543210").await;
    write("api", "second=short\n");
    tokio::time::timeout(PATIENCE, async {
        while !server.stderr().contains("entry 1") {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("it says what is wrong");
    assert!(!server.stderr().contains("=short"), "and nothing of the key");
    assert_eq!(ask(&server, "POST", "/api", "fedcba9876543210").await.status, 200, "the keys before stay");

    write("api", "second=fedcba9876543210\n");
    write("login", "k2=another secret for logins\n");
    until(&server, 401, "POST", "/api", "0123456789abcdef").await;
    let second = format!(r#"["user_login",{}]"#, signed().await);
    let tried = async {
        while server.connect().await.call(&second).await["ok"] != json!(true) {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, tried).await.expect("the new key is good");
    assert_eq!(server.connect().await.call(&first).await["code"], json!("unauthorized"), "the old one is not");

    write("login", "k2");
    let refusal = TestServer::builder().flag(&login).prepare().start_refused().await;
    assert!(refusal.code == Some(1) && refusal.stderr.contains("entry 1"), "{refusal:?}");
}

#[tokio::test]
async fn key_files_may_begin_with_a_byte_order_mark_and_have_lines_of_windows() {
    let folder = tempfile::tempdir().unwrap();
    let flag = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, format!("\u{feff}{text}")).unwrap();
        format!("--{name}-file={}", path.display())
    };
    let api = flag("api-keys", "backend=0123456789abcdef\r\nother=fedcba9876543210\r\n");
    let login = flag("login-keys", "k1=the first secret of all\r\n");
    let set = flag("jwks", r#"{"keys":[{"kty":"oct","kid":"j","k":"MDEyMzQ1Njc4OWFiY2RlZg"}]}"#);
    let server = TestServer::with(&[&api, &login, &set]).await;
    for key in ["0123456789abcdef", "fedcba9876543210"] {
        assert_eq!(ask(&server, "POST", "/api", key).await.status, 200, "{key}");
    }
    let signed = tidings(&server, &["sign", "--token=1", "--login-keys=k1=the first secret of all"]).await;
    let signed = String::from_utf8(signed.stdout).expect("text");
    server.connect().await.login_with(&format!(r#"["user_login",{signed}]"#)).await;
}

#[tokio::test]
async fn keys_of_a_set_that_sign_no_logins_are_told_once_and_a_set_without_others_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jwks");
    let write = |keys: &[&str]| std::fs::write(&path, format!(r#"{{"keys":[{}]}}"#, keys.join(","))).unwrap();
    let (good, encrypts, unknown) = (
        r#"{"kty":"oct","kid":"j","k":"MDEyMzQ1Njc4OWFiY2RlZg"}"#,
        r#"{"kty":"RSA","kid":"e","use":"enc","alg":"RSA-OAEP","n":"AQAB","e":"AQAB"}"#,
        r#"{"kty":"AKP","kid":"pq","alg":"ML-DSA-44","pub":"AA"}"#,
    );
    let jwks = format!("--jwks-file={}", path.display());
    for (keys, said) in [(&[][..], "it is empty"), (&[encrypts, unknown], "kid \"e\"")] {
        write(keys);
        let refusal = TestServer::builder().flag(&jwks).prepare().start_refused().await;
        assert!(refusal.code == Some(1) && refusal.stderr.contains(said), "{refusal:?}");
    }
    write(&[good, encrypts, unknown]);
    let server = TestServer::with(&[RELOAD, &jwks]).await;
    let told = || server.stderr().matches("Skipped keys of the key set").count();
    let line = server.stderr().lines().find(|line| line.contains("Skipped keys")).expect("a line").to_owned();
    assert!(line.contains("keys[1]: kid") && line.contains("keys[2]: kid"), "{line}");
    write(&[good]);
    let says = |what: &'static str| {
        let server = &server;
        async move {
            while !server.stderr().contains(what) {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    };
    tokio::time::timeout(PATIENCE, says("The keys were replaced")).await.expect("it takes the new set");
    assert_eq!(told(), 1, "each set is told once, not at each look");
    write(&[unknown]);
    tokio::time::timeout(PATIENCE, says("no usable key")).await.expect("it says what is wrong");
}

#[tokio::test]
async fn a_login_for_longer_than_the_limit_is_neither_signed_nor_taken() {
    let keys = "--login-keys=k1=the first secret of all";
    let server = TestServer::with(&[keys]).await;
    let sign = async |flags: &[&str]| tidings(&server, &[&["sign", "--token=1", keys], flags].concat()).await;
    let refused = sign(&["--ttl=367d"]).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("--max-login-days"), "{said}");
    let login = async |server: &TestServer, flags: &[&str]| {
        let signed = String::from_utf8(sign(flags).await.stdout).expect("text");
        server.connect().await.call(&format!(r#"["user_login",{signed}]"#)).await["ok"] == json!(true)
    };
    let long = ["--ttl=36500d", "--max-login-days=0"];
    assert!(login(&server, &["--ttl=366d"]).await);
    assert!(!login(&server, &long).await);
    let unlimited = TestServer::with(&[keys, "--max-login-days=0"]).await;
    assert!(login(&unlimited, &long).await);
}

#[tokio::test]
async fn a_user_is_cut_off_at_once_and_others_are_not() {
    let server = TestServer::start().await;
    let (mut first, mut second) = (server.login_empty("1").await, server.login_empty("1").await);
    let mut other = server.login_empty("2").await;
    let answer = server.api().ask("POST", "/api/sessions/1/disconnect", &json!(null)).await;
    assert_eq!(answer, json!({"disconnected": 2}));
    first.expect_end().await;
    second.expect_end().await;
    server.api().push("1", "1").await;
    server.api().push("2", "2").await;
    other.expect_message().await;
    assert_eq!(server.login("1").await.replay().await.messages.len(), 1, "nothing was lost");
    let answer = server.api().ask("POST", "/api/sessions/nobody/disconnect", &json!(null)).await;
    assert_eq!(answer, json!({"disconnected": 0}));
}
