//! The commands besides `serve`.

use std::process::Output;

use serde_json::json;
use tokio::process::Command;

use crate::load::{Load, Seeded};
use crate::postgres::{Database, Server};
use crate::server::{Place, TestServer};

async fn tidings(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    command.args(arguments).env_remove("DATABASE_URL").kill_on_drop(true);
    command.output().await.expect("the binary runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn migrate_applies_what_is_missing_and_a_check_only_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::create();
    let file = folder.path().join("new.db");
    for url in [format!("sqlite://{}", file.display()), database.url()] {
        let check = tidings(&["migrate", "--check", "--database-url", &url]).await;
        assert!(check.status.code() == Some(1) && stderr(&check).contains("0001_init"), "{check:?}");
        let again = tidings(&["migrate", "--check", "--database-url", &url]).await;
        assert_eq!(again.status.code(), Some(1), "a check changes nothing");
        let applied = tidings(&["migrate", "--database-url", &url]).await;
        assert!(applied.status.success() && stdout(&applied).contains("0001_init"), "{applied:?}");
        for arguments in [&["migrate", "--check", "--database-url", &url][..], &["migrate", "--database-url", &url]] {
            let current = tidings(arguments).await;
            assert!(current.status.success() && stdout(&current).contains("up to date"), "{current:?}");
        }
    }
    let unreachable = tidings(&["migrate", "--database-url", "postgres://tidings@127.0.0.1:9/none"]).await;
    assert!(unreachable.status.code() == Some(1) && stderr(&unreachable).contains("database"), "{unreachable:?}");
}

#[tokio::test]
async fn a_database_that_is_a_version_ahead_is_served_by_the_old_one_too() {
    let mut server = TestServer::builder().on_sqlite().start().await;
    server.api().push("1", "1").await;
    server.stop().await;
    let ahead = format!("{} values (9999, 'from the future', true, 'x', 1); {}", AHEAD[0], AHEAD[1]);
    assert!(Command::new("sqlite3").arg(server.database()).arg(ahead).status().await.unwrap().success());
    server.start_again().await;
    server.api().push("1", "2").await;
    assert_eq!(server.login("1").await.replay().await.messages.len(), 2);
}

/// What a migration of a later version does.
const AHEAD: [&str; 2] = [
    "insert into _sqlx_migrations (version, description, success, checksum, execution_time)",
    "alter table notification add column from_the_future text",
];

#[tokio::test]
async fn nodes_serve_on_while_a_later_version_migrates_and_writes_what_they_do_not_know() {
    let mut chance = Seeded::announced();
    let first = TestServer::builder().on_postgres().flag("--bus=postgres").start().await;
    let second = TestServer::builder().at(first.place().clone()).flag("--bus=postgres").start().await;
    let Place::Postgres(database) = first.place() else { panic!("it is on Postgres") };
    let mut bystander = first.login_empty("bystander").await;
    first.api().push("bystander", "1").await;
    bystander.expect_message().await;
    let load = Load::on_nodes(&[&first, &second], &mut chance, 4, 6);
    load.recorder.accepts_more(50).await;
    database.sql(&format!(
        "set lock_timeout = '2s'; {} values (9999, 'from the future', true, 'x', 1); {}; {}",
        AHEAD[0],
        AHEAD[1],
        r#"with inbox as (update inbox set rev = rev + 1 where token = 'bystander' returning token, rev)
        insert into inbox_change (token, rev, change, at) select token, rev, '{"pinned":["x"],"unread":0}', now() from inbox"#
    ));
    load.recorder.accepts_more(50).await;
    let third = TestServer::builder().at(first.place().clone()).flag("--bus=postgres").start().await;
    let pushed = third.api().push("bystander", "2").await;
    assert_eq!(pushed.results[0].seq, 3);
    assert_eq!(bystander.expect_message().await.id, pushed.id, "whatever it is that stands at rev 2");
    // What this test made by hand is not the oracle's business.
    third.api().ask("DELETE", "/api/inbox/bystander", &json!(null)).await;
    let (recorder, tokens) = load.finish().await;
    recorder.settle(&third, &tokens).await;
}

#[tokio::test]
async fn a_copy_that_is_not_what_was_copied_is_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut old = TestServer::builder().at(Place::File(folder.path().join("old.db"))).start().await;
    old.api().push_numbers("1", 3).await;
    old.stop().await;
    let (from, to) = (format!("sqlite://{}", folder.path().join("old.db").display()), Database::create());
    assert!(tidings(&["migrate", "--database-url", &to.url()]).await.status.success());
    // Somebody's trigger keeps a row out.
    to.sql(
        "create function skip() returns trigger language plpgsql as 'begin return null; end';
        create trigger skip before insert on notification for each row when (new.seq = 2) execute function skip()",
    );
    let copied = tidings(&["copy", "--from", &from, "--to", &to.url()]).await;
    assert!(copied.status.code() == Some(1) && stderr(&copied).contains("does not agree"), "{copied:?}");
    assert_eq!(to.sql("select count(*) from inbox").trim(), "0");
    to.sql("drop trigger skip on notification; insert into api_key values ('k', 'x', 'push', now())");
    let full = tidings(&["copy", "--from", &from, "--to", &to.url()]).await;
    assert!(full.status.code() == Some(1) && stderr(&full).contains("not empty"), "{full:?}");
}

#[tokio::test]
async fn a_copy_to_postgres_is_the_same_data_set() {
    let mut old = TestServer::builder().on_sqlite().start().await;
    let api = old.api();
    let keyed =
        api.post_keyed("order-1", r#"{"tokens":["1","2"],"entityType":"order","data":{"n":1.50}}"#).await.pushed();
    for n in 0..1200 {
        api.post(&json!({"tokens": ["1", n.to_string()], "data": n}).to_string()).await.pushed();
    }
    for actor in ["Alice", "Bob"] {
        api.post(&json!({"tokens": "grouped", "groupKey": "post-7", "actor": actor}).to_string()).await.pushed();
    }
    let later = chrono::Utc::now() + chrono::TimeDelta::days(1);
    let scheduled = api.post(&json!({"tokens": "1", "deliverAt": later.to_rfc3339()}).to_string()).await;
    assert_eq!(scheduled.status, 200, "{}", scheduled.text);
    // More data than one transaction takes is stored once.
    let tokens: Vec<String> = (0..100).map(|n| format!("wide {n}")).collect();
    old.api().post(&json!({"tokens": tokens, "data": "x".repeat(90_000)}).to_string()).await.pushed();
    let mut socket = old.login("1").await;
    let epoch = old.table().value("select epoch from meta").await;
    socket.replay().await;
    socket.call(r#"["ack",{"upTo":700}]"#).await;
    socket.call(r#"["read",{"upTo":10}]"#).await;
    let to = Database::create();
    let from = format!("sqlite://{}", old.database().display());
    let in_use = tidings(&["copy", "--from", &from, "--to", &to.url()]).await;
    assert!(in_use.status.code() == Some(1) && stderr(&in_use).contains("another process"), "{in_use:?}");
    old.stop().await;

    let nowhere = format!("sqlite://{}", old.database().with_file_name("typo.db").display());
    let mistyped = tidings(&["copy", "--from", &nowhere, "--to", &to.url()]).await;
    assert!(mistyped.status.code() == Some(1) && stderr(&mistyped).contains("typo.db"), "{mistyped:?}");
    assert!(!old.database().with_file_name("typo.db").exists(), "nothing is made");

    let copied = tidings(&["copy", "--from", &from, "--to", &to.url()]).await;
    assert!(copied.status.success(), "{copied:?}");
    assert!(stdout(&copied).contains("2502 notifications"), "{}", stdout(&copied));
    let twice = tidings(&["copy", "--from", &from, "--to", &to.url()]).await;
    assert!(twice.status.code() == Some(1) && stderr(&twice).contains("not empty"), "{twice:?}");

    let before = old.table().snapshot().await;
    let more = |table: crate::table::Table| async move {
        let mut rows = table.query("select token, kind, key, seq from notification_key order by 1, 2, 3").await;
        rows.extend(table.query("select token, seq, actor, rev from notification_actor order by 1, 2, 3").await);
        rows.extend(table.query("select token, entity_type, ttl_secs, actor from scheduled order by 1, 2").await);
        rows.extend(table.query("select token, seq, group_count from notification where group_count > 0").await);
        rows.extend(table.query("select id, length(cast(data as text)) as chars from notification_payload").await);
        rows
    };
    let groups = more(old.table()).await;
    assert_eq!(groups.len(), 6, "a key, two actors, a push for later, a group, a payload: {groups:?}");
    let new = TestServer::builder().at(Place::Postgres(std::sync::Arc::new(to))).start().await;
    let after = new.table().snapshot().await;
    assert_eq!(before.inboxes, after.inboxes);
    assert_eq!(before.notifications, after.notifications);
    assert_eq!(before.changes, after.changes);
    assert_eq!(groups, more(new.table()).await);
    new.table().expect_sound().await;
    assert_eq!(new.table().value("select epoch from meta").await, epoch, "clients need not list anew");
    let retry = new.api().post_keyed("order-1", r#"{"tokens":["1","2"],"entityType":"order","data":{"n":1.50}}"#).await;
    assert_eq!(retry.pushed().id, keyed.id, "keys came along");
    let next = new.api().push("1", "{}").await.results[0].seq;
    assert_eq!(Some(next), before.inboxes.iter().find(|inbox| inbox.token == "1").map(|inbox| inbox.rev + 1));
}

#[tokio::test]
async fn after_a_backup_was_restored_the_epoch_is_renewed_and_clients_start_over() {
    for builder in [TestServer::builder().on_sqlite(), TestServer::builder().on_postgres()] {
        let mut server = builder.start().await;
        server.api().push_numbers("1", 3).await;
        let epoch = server.connect().await.login("1").await.epoch;
        server.stop().await;
        let url = server.place().url();
        assert_eq!(stdout(&tidings(&["epoch", "--database-url", &url]).await).trim(), epoch);
        let renewed = stdout(&tidings(&["epoch", "--renew", "--database-url", &url]).await).trim().to_owned();
        assert!(renewed.len() == epoch.len() && renewed != epoch, "{renewed}");
        server.start_again().await;
        let mut socket = server.connect().await;
        let login = socket.login_with(&format!(r#"["user_login",{{"tokenId":"1","rev":3,"epoch":"{epoch}"}}]"#)).await;
        assert_eq!(login.epoch, renewed);
        assert_eq!(socket.expect_event("resync").await, json!({"epoch": renewed, "rev": 3, "unread": 3}));
    }
}

#[tokio::test]
async fn check_names_what_is_wrong_and_ends_with_1() {
    for builder in [TestServer::builder().on_sqlite(), TestServer::builder().on_postgres()] {
        let server = builder.start().await;
        server.api().push_numbers("1", 3).await;
        server.table().expect_sound().await;
        let edit = "update inbox set unread = 2; delete from notification where seq = 2";
        match server.place() {
            Place::Postgres(database) => drop(database.sql(edit)),
            Place::File(path) => {
                assert!(Command::new("sqlite3").arg(path).arg(edit).status().await.unwrap().success());
            }
        }
        let found = tidings(&["check", "--database-url", &server.place().url()]).await;
        assert_eq!(found.status.code(), Some(1));
        assert_eq!(stdout(&found).trim(), "inbox 1: rev 3, purged up to 0, but 2 events at 2 revs, the newest 3");
    }
    for nowhere in ["sqlite:///nowhere/tidings.db", "postgres://tidings@127.0.0.1:9/none"] {
        let missing = tidings(&["check", "--database-url", nowhere]).await;
        assert!(missing.status.code() == Some(1) && !stderr(&missing).is_empty(), "{missing:?}");
    }
}

#[tokio::test]
async fn a_copy_elsewhere_is_refused() {
    for (from, to) in [("postgres://a@127.0.0.1:9/a", "sqlite://x.db"), ("sqlite://x.db", "sqlite://y.db")] {
        let refused = tidings(&["copy", "--from", from, "--to", to]).await;
        assert!(refused.status.code() == Some(1) && stderr(&refused).contains("only"), "{refused:?}");
    }
}

#[tokio::test]
async fn a_postgres_that_does_not_wait_for_the_disk_is_refused() {
    let database = Database::create();
    let name = database.sql("select current_database()");
    database.sql(&format!("alter database {} set synchronous_commit = off", name.trim()));
    let mut server = TestServer::builder().at(Place::Postgres(std::sync::Arc::new(database))).prepare();
    let refusal = server.start_refused().await;
    assert!(refusal.code == Some(1) && refusal.stderr.contains("synchronous_commit=off"), "{refusal:?}");

    let careless = Server::start();
    let database = Database::create_on(&careless);
    database.sql("alter system set fsync = off");
    database.sql("select pg_reload_conf(), pg_sleep(0.2)");
    let place = Place::Postgres(std::sync::Arc::new(database));
    let refusal = TestServer::builder().at(place.clone()).prepare().start_refused().await;
    let said = &refusal.stderr;
    assert!(refusal.code == Some(1) && said.contains("fsync=off") && said.contains("--allow-fsync-off"), "{refusal:?}");

    // For those who keep commits safe in another way; it is told at each start.
    let server = TestServer::builder().at(place.clone()).flag("--allow-fsync-off").start().await;
    assert!(server.stderr().contains("fsync=off"), "{}", server.stderr());
    assert_eq!(server.api().push("1", "{}").await.results[0].seq, 1);
    for (args, code) in [(&["key", "list"][..], 1), (&["key", "list", "--allow-fsync-off"], 0)] {
        let listed = tidings(&[args, &["--database-url", &place.url()]].concat()).await;
        assert_eq!(listed.status.code(), Some(code), "{args:?}: {listed:?}");
    }
}

#[tokio::test]
async fn a_postgres_that_cannot_hold_any_text_is_refused() {
    let postgres = Server::start();
    let database = Database::create_with(&postgres, "template template0 encoding 'LATIN1' locale 'C'");
    let mut server = TestServer::builder().at(Place::Postgres(std::sync::Arc::new(database))).prepare();
    let refusal = server.start_refused().await;
    assert!(refusal.code == Some(1) && refusal.stderr.contains("LATIN1"), "{refusal:?}");
}

#[tokio::test]
async fn errors_of_commands_are_plain_lines() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("--database-url=sqlite://{}/tidings.db", folder.path().display());
    for (arguments, said) in [
        (&["sign", "--token=1"][..], "error: there is no such login key"),
        (&["key", "revoke", "nobody", &url], "error: there is no API key"),
        (&["check", "--database-url=sqlite:///no/such/folder/x.db"], "error: "),
    ] {
        let output = tidings(arguments).await;
        let text = stderr(&output);
        assert!(
            output.status.code() == Some(1) && text.lines().last().unwrap().starts_with(said),
            "{arguments:?}: {text}"
        );
    }
}

#[tokio::test]
async fn completions_and_the_manual_name_commands_and_flags() {
    for arguments in [&["completions", "bash"][..], &["completions", "zsh"], &["completions", "fish"], &["man"]] {
        let output = tidings(arguments).await;
        let text = stdout(&output).replace("\\-", "-");
        assert!(output.status.success() && text.contains("migrate") && text.contains("listen"), "{arguments:?}");
    }
}
