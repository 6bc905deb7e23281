//! Databases of a throwaway Postgres, for the unit tests and the integration tests alike.
//!
//! The server is the one that TIDINGS_TEST_POSTGRES names, so that many test processes can share it; else each process
//! starts its own, which ends with it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

struct Server {
    url: String,
    /// The server runs until this child's standard input ends.
    _child: Option<Child>,
}

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        if let Ok(url) = std::env::var("TIDINGS_TEST_POSTGRES") {
            return Server { url, _child: None };
        }
        let mut child = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/postgres"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("scripts/postgres runs");
        let mut url = String::new();
        let output = child.stdout.take().expect("it is piped");
        BufReader::new(output).read_line(&mut url).expect("its output is text");
        assert!(url.starts_with("postgres://"), "Postgres did not start");
        Server { url: url.trim_end().to_owned(), _child: Some(child) }
    })
}

/// An empty database; dropped with this.
#[derive(Debug)]
pub(crate) struct Database {
    name: String,
}

impl Database {
    pub(crate) fn create() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        psql(&server().url, &format!("create database {name}"));
        Self { name }
    }

    /// How a client reaches it.
    pub(crate) fn url(&self) -> String {
        let (server, _) = server().url.rsplit_once('/').expect("a URL has a path");
        format!("{server}/{}", self.name)
    }

    /// Runs SQL as an admin does and returns what it printed, a line a row and `|` between columns.
    pub(crate) fn sql(&self, sql: &str) -> String {
        psql(&self.url(), sql)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let sql = format!("drop database if exists {} with (force)", self.name);
        let dropped = Command::new("psql").args(["-qX", &server().url, "-c", &sql]).status();
        if !std::thread::panicking() {
            assert!(dropped.is_ok_and(|status| status.success()), "cannot drop {}", self.name);
        }
    }
}

fn psql(url: &str, sql: &str) -> String {
    let output = Command::new("psql")
        .args(["-qXAt", "-v", "ON_ERROR_STOP=1", url, "-c", sql])
        .output()
        .expect("psql is installed");
    assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
