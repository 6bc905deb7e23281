//! What the documentation tells users and admins to run, run as they would.

use std::sync::Arc;

use tokio::process::Command;

use crate::postgres::{Database, Server};
use crate::server::{Place, TestServer};

/// The SQL blocks of a text.
fn sql_of(text: &str) -> Vec<&str> {
    blocks_of(text, "sql")
}

fn blocks_of<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let start = format!("```{language}\n");
    text.split(start.as_str()).skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

/// How a script says that the runtime of its language is not here.
const MISSING: i32 = 77;

#[tokio::test]
async fn the_documented_pushes_work_in_every_language_that_is_here() {
    let server = TestServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let url = format!("http://{}", server.address());
    let mono = format!(
        "test -e /usr/lib/mono/4.5/System.Net.Http.dll || exit {MISSING}\nmcs -r:System.Net.Http -out:push.exe \"$1\" && exec mono push.exe"
    );
    std::fs::write(folder.path().join("mono.sh"), mono).unwrap();
    let mut worked = Vec::new();
    for (language, runtime, file) in [
        ("sh", "sh", "push.sh"),
        ("java", "java", "Push.java"),
        ("js", "node", "push.mjs"),
        ("python", "python3", "push.py"),
        ("php", "php", "push.php"),
        ("ruby", "ruby", "push.rb"),
        ("go", "go run", "push.go"),
        ("csharp", "sh mono.sh", "push.cs"),
    ] {
        let blocks = blocks_of(include_str!("../../docs/guides/push.md"), language);
        let block = blocks.into_iter().find(|block| block.contains("idempotency-key")).expect("an example");
        std::fs::write(folder.path().join(file), block.replace("http://127.0.0.1:4001", &url)).unwrap();
        let mut words = runtime.split(' ');
        let mut command = Command::new(words.next().unwrap());
        // Go wants a folder for its caches.
        command.args(words).arg(file).current_dir(folder.path()).env("HOME", folder.path());
        let Ok(output) = command.output().await else { continue };
        if output.status.code() == Some(MISSING) {
            continue;
        }
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{language}: {said}");
        worked.push(language);
    }
    assert!(["sh", "js", "python", "php", "ruby"].iter().all(|language| worked.contains(language)), "{worked:?}");
    let rows = server.table().rows("1").await;
    assert_eq!(rows.len(), worked.len());
    assert!(rows.iter().all(|row| row.entity_type == "like"), "{rows:?}");
}

#[tokio::test]
async fn every_documented_query_runs_beside_the_server_and_finds_something() {
    let server = TestServer::start().await;
    let api = server.api();
    for who in ["Alice", "Bob", "Carol"] {
        let body = format!(r#"{{"tokens":["1","2"],"entityType":"like","data":{{"who":"{who}"}}}}"#);
        assert_eq!(api.post(&body).await.pushed().accepted, 2);
    }
    let mut socket = server.login("1").await;
    socket.replay().await;
    socket.call(r#"["ack",{"upTo":2}]"#).await;
    socket.call(r#"["read",{"upTo":1}]"#).await;

    let queries = sql_of(include_str!("../../docs/reference/tables.md"));
    assert_eq!(queries.len(), 10);
    for query in queries {
        let found = match server.place() {
            Place::Postgres(database) => database.sql(query),
            Place::File(path) => {
                // sqlite3 would take the comment at the start for an option.
                let query = format!(" {query}");
                let output = Command::new("sqlite3").arg("-readonly").arg(path).arg(&query).output().await.unwrap();
                assert!(output.status.success(), "{query}: {}", String::from_utf8_lossy(&output.stderr));
                String::from_utf8(output.stdout).unwrap()
            }
        };
        assert!(!found.trim().is_empty(), "{query} found nothing");
    }
}

#[tokio::test]
async fn the_documented_roles_can_do_their_work_and_no_more() {
    let postgres = Server::start();
    let database = Database::create_on(&postgres);
    let [roles] = sql_of(include_str!("../../docs/operate/postgres.md"))[..] else { panic!("one block of SQL") };
    database.sql(roles);
    let url = |role: &str| database.url().replace("tidings@", &format!("tidings_{role}@"));
    let tidings = async |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_tidings")).args(arguments).output().await.unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = tidings(&["migrate", "--database-url", &url("app")]).await;
    assert!(code == Some(1) && said.contains("permission denied"), "the app may not make tables: {said}");
    assert_eq!(tidings(&["migrate", "--database-url", &url("owner")]).await.0, Some(0));
    assert_eq!(tidings(&["migrate", "--check", "--database-url", &url("app")]).await.0, Some(0));

    let app = url("app");
    let queries = sql_of(include_str!("../../docs/reference/tables.md"));
    let admin = |sql: &str| {
        let output = std::process::Command::new("psql").args(["-qXAt", &url("admin"), "-c", sql]).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (admin_reads, admin_writes) = {
        let database = Place::Postgres(Arc::new(Database::create_on(&postgres)));
        let server = TestServer::builder().at(database).flag(&format!("--database-url={app}")).start().await;
        server.api().post_keyed("key", r#"{"tokens":["1"],"entityType":"like","data":{"who":"x"}}"#).await.pushed();
        let mut socket = server.login("1").await;
        socket.replay().await;
        socket.call(r#"["read",{"all":true}]"#).await;
        (queries.iter().map(|query| admin(query)).collect::<Vec<_>>(), admin("delete from notification"))
    };
    assert!(admin_reads.iter().all(|(worked, _)| *worked), "{admin_reads:?}");
    assert!(!admin_writes.0 && admin_writes.1.contains("read-only"), "{admin_writes:?}");
    let forced = admin("begin read write; delete from notification; commit");
    assert!(!forced.0 && forced.1.contains("permission denied"), "{forced:?}");
}
