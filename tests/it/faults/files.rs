//! Database files that must not be served: one that another server holds, and ones that are damaged. Each is refused at
//! the start, with the reason on stderr and an exit code that is not 0.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::server::{Refusal, TestServer};

fn wal_of(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let mut file = OpenOptions::new().write(true).open(path).expect("the file is there");
    file.seek(SeekFrom::Start(at)).expect("can seek");
    file.write_all(bytes).expect("can write");
}

fn refused_because(refusal: &Refusal, words: &[&str]) {
    assert!(refusal.code.is_some_and(|code| code != 0), "an exit code that is not 0: {refusal:?}");
    let said = refusal.stderr.to_lowercase();
    assert!(words.iter().any(|word| said.contains(word)), "stderr says none of {words:?}:\n{}", refusal.stderr);
}

/// A server, stopped, whose file has some hundred pages, all of them in the main file.
async fn stopped_with_rows() -> TestServer {
    let mut server = TestServer::builder().on_sqlite().start().await;
    let api = server.api();
    let data = format!("\"{}\"", "x".repeat(1000));
    for _ in 0..5 {
        futures_util::future::join_all((0..100).map(|n| api.push(["1", "2", "3"][n % 3], &data))).await;
    }
    server.stop().await;
    server
}

#[tokio::test]
async fn a_second_server_on_the_same_file_is_refused_and_the_first_goes_on() {
    let server = TestServer::builder().on_sqlite().start().await;
    let mut live = server.login_empty("1").await;
    let url = format!("--database-url=sqlite://{}", server.database().display());
    for _ in 0..2 {
        let refusal = TestServer::builder().on_sqlite().flag(&url).prepare().start_refused().await;
        refused_because(&refusal, &["another", "in use", "already", "locked", "lock"]);
        assert!(refusal.stderr.contains(&*server.database().to_string_lossy()), "names the file: {}", refusal.stderr);
        let pushed = server.api().push("1", "{}").await;
        assert_eq!(live.expect_message().await.id, pushed.id);
    }
}

#[tokio::test]
async fn a_second_server_is_refused_by_whatever_name_it_calls_the_file() {
    let server = TestServer::builder().on_sqlite().start().await;
    server.api().push("1", "{}").await;
    let other = tempfile::tempdir().unwrap();
    let link = other.path().join("link.db");
    std::os::unix::fs::symlink(server.database(), &link).unwrap();
    let folder = other.path().join("folder");
    std::os::unix::fs::symlink(server.database().parent().unwrap(), &folder).unwrap();
    let detour = server.database().parent().unwrap().join("../data/./tidings.db");
    for name in [folder.join("tidings.db"), detour, link] {
        let url = format!("--database-url=sqlite://{}", name.display());
        let refusal = TestServer::builder().on_sqlite().flag(&url).prepare().start_refused().await;
        refused_because(&refusal, &["another", "in use", "already", "locked", "lock"]);
    }
}

#[tokio::test]
async fn a_file_is_free_again_after_a_kill() {
    let mut server = TestServer::builder().on_sqlite().start().await;
    for n in 1..=3 {
        assert_eq!(server.api().push("1", "{}").await.results[0].seq, n);
        server.kill_9().await;
        server.start_again().await;
    }
}

#[tokio::test]
async fn a_corrupt_page_of_a_table_or_an_index_is_refused() {
    for name in ["notification", "sqlite_autoindex_notification_2", "inbox"] {
        let mut server = stopped_with_rows().await;
        let root = server.table().count(&format!("select rootpage from sqlite_schema where name = '{name}'")).await;
        let size = server.table().count("select page_size from pragma_page_size").await;
        let at = u64::try_from((root - 1) * size).unwrap();
        overwrite(server.database(), at, &[0xff; 512]);
        refused_because(&server.start_refused().await, &["corrupt", "malformed", "integrity", "damaged"]);
    }
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_and_left_alone() {
    let mut server = TestServer::builder().on_sqlite().prepare();
    let text = "this is somebody's diary, not a database; it is long enough to be read as a header. ".repeat(50);
    std::fs::write(server.database(), &text).unwrap();
    refused_because(&server.start_refused().await, &["not a database", "corrupt", "malformed"]);
    assert_eq!(std::fs::read_to_string(server.database()).unwrap(), text);
}

#[tokio::test]
async fn a_main_file_cut_short_is_refused() {
    let mut server = stopped_with_rows().await;
    let length = std::fs::metadata(server.database()).unwrap().len();
    File::options().write(true).open(server.database()).unwrap().set_len(length / 2 / 8192 * 8192).unwrap();
    refused_because(
        &server.start_refused().await,
        &["corrupt", "malformed", "integrity", "damaged", "short", "truncated"],
    );
}

#[tokio::test]
async fn a_truncated_wal_after_a_kill_is_refused() {
    for keep_percent in [0, 1, 50, 95] {
        let mut server = TestServer::builder().on_sqlite().start().await;
        let data = format!("\"{}\"", "x".repeat(1000));
        for _ in 0..100 {
            server.api().push("1", &data).await;
        }
        server.kill_9().await;
        let wal = wal_of(server.database());
        let length = std::fs::metadata(&wal).expect("a kill leaves the WAL").len();
        File::options().write(true).open(&wal).unwrap().set_len(length * keep_percent / 100).unwrap();
        let refusal = server.start_refused().await;
        refused_because(&refusal, &["wal", "write-ahead"]);
    }
}

#[tokio::test]
async fn a_whole_wal_after_a_kill_is_taken_in() {
    let mut server = TestServer::builder().on_sqlite().start().await;
    server.api().push_numbers("1", 50).await;
    server.kill_9().await;
    let mut head = [0; 16];
    File::open(wal_of(server.database())).unwrap().read_exact(&mut head).expect("a kill leaves the WAL");
    server.start_again().await;
    assert_eq!(server.login("1").await.replay().await.count, 50);
}
