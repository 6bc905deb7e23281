//! Starting and stopping as a new user sees it: the one line, the page, the flags, and clear words when it cannot start.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use crate::server::{PATIENCE, TestServer};

#[tokio::test]
async fn one_line_says_where_it_listens_where_the_data_is_and_what_to_open() {
    let mut server = TestServer::builder().on_sqlite().start().await;
    let (address, database) = (server.address(), server.database().display().to_string());
    assert_eq!(
        server.ready_line(),
        format!("Tidings listens on http://{address}, keeps its data in {database}; open http://{address}/ to try it.")
    );
    assert_eq!(server.address().ip().to_string(), "127.0.0.1");
    server.api().push("1", "{}").await;
    server.ask_to_stop().await;
    let (status, more) = server.ended().await;
    assert_eq!((status.code(), more), (Some(0), Vec::new()), "nothing else goes to stdout");
}

#[tokio::test]
async fn a_database_that_does_not_exist_is_created_and_one_that_does_is_kept() {
    let mut server = TestServer::start().await;
    let first = server.api().push("1", r#""kept""#).await;
    let epoch = server.connect().await.login("1").await.epoch;
    server.stop().await;
    server.start_again().await;
    let rows = server.table().rows("1").await;
    assert_eq!((rows.len(), rows[0].id.as_str(), rows[0].data.as_str()), (1, first.id.as_str(), r#""kept""#));
    assert_eq!(server.connect().await.login("1").await.epoch, epoch, "the data set is the same one");
    assert_eq!(server.api().push("1", "{}").await.results[0].seq, 2, "revs go on where they were");
}

#[tokio::test]
async fn health_readiness_and_the_old_ping_answer() {
    let server = TestServer::start().await;
    assert_eq!(server.api().get("/healthz").await.status, 200);
    assert_eq!(server.api().get("/readyz").await.status, 200);
    let ping = server.api().get("/api").await;
    assert_eq!((ping.status, ping.text.as_str()), (200, "."));
}

#[tokio::test]
async fn the_demo_page_is_served_with_what_it_needs() {
    let server = TestServer::start().await;
    for (path, kind) in [("/", "text/html"), ("/demo.js", "javascript"), ("/demo.css", "text/css")] {
        let answer = server.api().get(path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(
            answer.header("content-type").is_some_and(|value| value.contains(kind)),
            "{path}: {:?}",
            answer.headers
        );
        assert!(!answer.text.is_empty(), "{path}");
    }
    // The client bundle comes from npm; without it the answer says what to do.
    let bundle = server.api().get("/socket.io/socket.io.js").await;
    match bundle.status {
        200 => assert!(bundle.text.contains("Socket.IO"), "the real bundle names itself"),
        _ => assert!(bundle.problem(404, "not_found").contains("client"), "{}", bundle.text),
    }
}

#[tokio::test]
async fn a_hang_up_reads_keys_again_and_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    let (old, new) = ("0123456789abcdef", "fedcba9876543210");
    std::fs::write(&file, format!("a={old}\n")).unwrap();
    // So rarely that what is read anew was read because of the signal.
    let flags = [&*format!("--api-keys-file={}", file.display()), "--reload-interval-secs=3600"];
    let server = TestServer::with(&flags).await;
    let mut socket = server.login_empty("1").await;
    let push = async |key| {
        let headers = [("content-type", "application/json"), ("x-api-key", key)];
        server.api().send("POST", "/api", &headers, r#"{"tokens":["1"]}"#).await.expect("an answer").status
    };
    assert_eq!((push(old).await, push(new).await), (200, 401));
    socket.expect_message().await;
    std::fs::write(&file, format!("b={new}\n")).unwrap();
    assert_eq!((push(old).await, push(new).await), (200, 401), "nothing is read before the signal");
    socket.expect_message().await;
    server.hang_up().await;
    timeout(PATIENCE, async { while push(new).await != 200 {} }).await.expect("the new key counts");
    assert_eq!(push(old).await, 401);
    socket.expect_message().await;

    // What cannot be read is told at each, and changes nothing.
    std::fs::write(&file, "no key").unwrap();
    server.hang_up().await;
    timeout(PATIENCE, async {
        while !server.stderr().contains("Cannot reload keys or certificate") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("it says what is wrong");
    assert_eq!(push(new).await, 200);
    socket.expect_message().await;
}

#[tokio::test]
async fn a_service_whose_terminal_is_closed_ends_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tidings.db");
    let flags = format!("--listen=127.0.0.1:0 --admin-listen=off --database-url=sqlite://{}", file.display());
    let mut terminal = Command::new("script")
        .args(["-qec", &format!("exec {} {flags}", env!("CARGO_BIN_EXE_tidings")), "/dev/null"])
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the script command is installed (Debian package bsdutils)");
    let mut lines = BufReader::new(terminal.stdout.take().expect("it is piped")).lines();
    let ready = async { while !lines.next_line().await.unwrap().expect("it gets ready").contains("listens on") {} };
    timeout(PATIENCE, ready).await.expect("it gets ready in time");
    let log = folder.path().join("tidings.db-wal");
    assert!(log.exists());
    terminal.kill().await.expect("it is killed");
    // A service that is killed leaves its log; one that goes on has it open.
    timeout(PATIENCE, async {
        while log.exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the database is closed");
}

#[tokio::test]
async fn every_flag_can_come_from_the_environment() {
    let server = TestServer::builder()
        .env("TIDINGS_MAX_TOKENS", "2")
        .env("TIDINGS_SOCKET_PATH", "/ws/socket.io")
        .flag("--max-token-bytes=3")
        .start()
        .await;
    server.api().post(r#"{"tokens":["1","2","3"]}"#).await.problem(413, "too_many_tokens");
    server.api().post(r#"{"tokens":["1234"]}"#).await.problem(413, "token_too_long");
    let open = server.api().get("/ws/socket.io/?EIO=4&transport=polling").await;
    assert!(open.text.starts_with("0{"), "{}", open.text);
}

#[tokio::test]
async fn help_names_every_flag_with_its_default() {
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_tidings")).arg("--help").output().await.unwrap();
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    let mut words = help.split_whitespace().collect::<Vec<_>>().join(" ");
    words.retain(|c| c != '`');
    for flag in [
        "listen",
        "database-url",
        "socket-path",
        "unacked",
        "log-format",
        "sweep-interval-secs",
        "max-body-bytes",
        "max-tokens",
        "max-token-bytes",
        "max-entity-type-bytes",
        "max-data-bytes",
        "max-depth",
        "write-queue",
        "store-timeout-secs",
        "readers",
        "idempotency-ttl-secs",
        "login-timeout-secs",
        "max-sockets-per-token",
        "window",
        "page",
        "ring",
        "replays",
        "event-queue",
        "ping-interval-secs",
        "ping-timeout-secs",
        "stuck-timeout-secs",
        "max-message-bytes",
        "drain-timeout-secs",
    ] {
        assert!(words.contains(&format!("--{flag}")), "--{flag} is not in the help:\n{help}");
    }
    for default in ["127.0.0.1:4001", "sqlite://tidings.db", "10000", "1048576", "102400", "86400"] {
        assert!(words.contains(&format!("[default: {default}]")), "the default {default} is not in the help:\n{help}");
    }
}

#[tokio::test]
async fn what_it_cannot_do_at_the_start_it_says_on_stderr() {
    let refusal = TestServer::builder().flag("--no-such-flag").prepare().start_refused().await;
    assert!(refusal.code.is_some_and(|code| code != 0) && refusal.stderr.contains("--no-such-flag"), "{refusal:?}");

    let refusal = TestServer::builder().flag("--window=many").prepare().start_refused().await;
    assert!(refusal.code.is_some_and(|code| code != 0) && refusal.stderr.contains("--window"), "{refusal:?}");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let refusal = TestServer::builder().flag(&format!("--listen={address}")).prepare().start_refused().await;
    let named = refusal.stderr.contains(&address) && refusal.stderr.contains("--listen takes another");
    assert!(refusal.code.is_some_and(|code| code != 0) && named, "{refusal:?}");
    let refusal = TestServer::builder().flag(&format!("--admin-listen={address}")).prepare().start_refused().await;
    let named = refusal.stderr.contains(&address) && refusal.stderr.contains("--admin-listen takes another");
    assert!(refusal.code.is_some_and(|code| code != 0) && named, "{refusal:?}");

    let folder = "sqlite:///no/such/folder/tidings.db";
    let refusal =
        TestServer::builder().on_sqlite().flag(&format!("--database-url={folder}")).prepare().start_refused().await;
    let named = refusal.stderr.contains("/no/such/folder/tidings.db");
    assert!(refusal.code.is_some_and(|code| code != 0) && named, "{refusal:?}");
    // What can never work is told before anything waits for it.
    for (flag, said) in [
        ("--bus=rediss://:secret@127.0.0.1:9/#insecure", "--bus-ca-file"),
        ("--bus=redis://:secret@127.0.0.1:9/?timeout=1", "no options"),
        ("--bus=postgres://tidings:secret@127.0.0.1:9/other", "is not a bus"),
        ("--bus-ca-file=/no/such/file", "rediss://"),
        ("--database-url=postgres://tidings:secret@127.0.0.1:9/x?channel_binding=require", "channel_binding"),
        ("--database-url=sqlite://tidings.db?mode=ro", "mode=rwc"),
    ] {
        let refusal = TestServer::builder().on_sqlite().flag(flag).prepare().start_refused().await;
        let text = &refusal.stderr;
        assert!(refusal.code == Some(1) && text.contains(said) && !text.contains("secret"), "{flag}: {refusal:?}");
    }
}
