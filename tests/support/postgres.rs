//! Databases of a throwaway Postgres, for the unit tests and the integration tests alike.
//!
//! The server is the one that TIDINGS_TEST_POSTGRES names, so that many test processes can share it; else each process
//! starts its own, which ends with it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// A server that belongs to the caller, to be mistreated.
#[derive(Debug)]
pub(crate) struct Server {
    url: String,
    /// The script that runs it until its standard input ends, and what that says; none for a server of somebody else.
    script: Option<(Child, BufReader<ChildStdout>)>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let mut child = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/postgres"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("scripts/postgres runs");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut server = Self { url: String::new(), script: Some((child, output)) };
        server.url = server.line();
        assert!(server.url.starts_with("postgres://"), "Postgres did not start");
        server
    }

    /// Says `restart`, `pause` or `resume` and waits until that is done.
    pub(crate) fn order(&mut self, word: &str) {
        let (child, _) = self.script.as_mut().expect("the server is its owner's");
        let stdin = child.stdin.as_mut().expect("it is piped");
        writeln!(stdin, "{word}").expect("it listens");
        assert_eq!(self.line(), format!("{word}: done"));
    }

    fn line(&mut self) -> String {
        let (_, output) = self.script.as_mut().expect("the server is its owner's");
        let mut line = String::new();
        output.read_line(&mut line).expect("its output is text");
        line.trim_end().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some((child, _)) = &mut self.script {
            drop(child.stdin.take());
            child.wait().ok();
        }
    }
}

fn shared() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| match std::env::var("TIDINGS_TEST_POSTGRES") {
        Ok(url) => Server { url, script: None },
        Err(_) => Server::start(),
    })
}

/// An empty database; dropped with this.
#[derive(Debug)]
pub(crate) struct Database {
    server: String,
    name: String,
}

impl Database {
    /// On the server that tests share.
    pub(crate) fn create() -> Self {
        Self::create_on(shared())
    }

    pub(crate) fn create_on(server: &Server) -> Self {
        Self::create_with(server, "")
    }

    /// With what stands behind the name when it is made.
    pub(crate) fn create_with(server: &Server, how: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        psql(&server.url, &format!("create database {name} {how}"));
        Self { server: server.url.clone(), name }
    }

    /// How a client reaches it.
    pub(crate) fn url(&self) -> String {
        let (server, _) = self.server.rsplit_once('/').expect("a URL has a path");
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
        let dropped = Command::new("psql").args(["-qX", &self.server, "-c", &sql]).status();
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
