//! A server under load: started with a fresh database, measured from outside, stopped when dropped.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use crate::process;

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Tidings,
    Node,
    Floor,
    TidingsOnPostgres,
    NodeOnPostgres,
    /// As it is usually written: a statement a push, through a pool, without group commit.
    NodeOnPostgresEach,
}

impl Kind {
    /// Whether it promises that the rev of what a socket receives grows.
    pub(crate) fn is_ordered(self) -> bool {
        matches!(self, Self::Tidings | Self::TidingsOnPostgres)
    }
}

/// Where a server keeps its data; gone when dropped.
pub(crate) enum Place {
    File(TempDir),
    Postgres(String),
}

impl Place {
    fn new(kind: Kind) -> Self {
        match kind {
            Kind::Tidings | Kind::Node | Kind::Floor => Self::File(tempfile::tempdir().expect("a temporary folder")),
            Kind::TidingsOnPostgres | Kind::NodeOnPostgres | Kind::NodeOnPostgresEach => {
                static COUNT: AtomicU32 = AtomicU32::new(0);
                let name = format!("bench_{}", COUNT.fetch_add(1, Ordering::Relaxed));
                psql(&format!("create database {name}"));
                Self::Postgres(name)
            }
        }
    }

    fn file(&self) -> PathBuf {
        match self {
            Self::File(folder) => folder.path().join("bench.db"),
            Self::Postgres(name) => panic!("{name} is no file"),
        }
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Self::File(_) => format!("sqlite://{}", self.file().display()),
            Self::Postgres(name) => format!("{}/{name}", postgres().rsplit_once('/').expect("a URL has a path").0),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Self::Postgres(name) = self {
            psql(&format!("drop database {name} with (force)"));
        }
    }
}

fn postgres() -> String {
    std::env::var("TIDINGS_TEST_POSTGRES").expect("scripts/bench starts a Postgres and names it")
}

fn psql(sql: &str) {
    psql_at(&postgres(), sql);
}

fn psql_at(url: &str, sql: &str) {
    let done = Command::new("psql").args(["-qX", url, "-c", sql]).status();
    assert!(done.is_ok_and(|status| status.success()), "psql: {sql}");
}

/// A running server.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) place: Arc<Place>,
    child: Child,
}

/// Descriptors a server may open: one a socket and some for itself.
const DESCRIPTORS: &str = "ulimit -n 16384 && exec \"$@\"";

impl Server {
    /// Starts a server on a fresh database. `flags` are for Tidings alone: the peer has no limits to raise.
    pub(crate) fn start(kind: Kind, flags: &[&str]) -> Self {
        Self::at(Arc::new(Place::new(kind)), kind, flags)
    }

    /// Starts another node of a server that is on Postgres.
    pub(crate) fn beside(&self, flags: &[&str]) -> Self {
        Self::at(Arc::clone(&self.place), Kind::TidingsOnPostgres, flags)
    }

    fn at(place: Arc<Place>, kind: Kind, flags: &[&str]) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", DESCRIPTORS, "sh"]);
        let peer = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/peer/");
        match kind {
            Kind::Tidings | Kind::TidingsOnPostgres => command
                .arg(env!("CARGO_BIN_EXE_tidings"))
                .args([
                    "--listen",
                    "127.0.0.1:0",
                    "--admin-listen",
                    "off",
                    "--log",
                    "warn",
                    "--database-url",
                    &place.url(),
                ])
                // All load comes from one address, faster than from users.
                .args(["--max-sockets-per-address", "0", "--max-connections-per-address", "0", "--socket-rate", "0"])
                .args(["--max-sockets-per-token", "10000"])
                .args(flags),
            Kind::Node => command.args(["node", &format!("{peer}server.mjs")]).arg(place.file()),
            Kind::Floor => command.arg(std::env::current_exe().expect("it runs")).arg("floor").arg(place.file()),
            Kind::NodeOnPostgres => command.args(["node", &format!("{peer}postgres.mjs"), &place.url()]),
            Kind::NodeOnPostgresEach => {
                command.args(["node", &format!("{peer}postgres.mjs"), &place.url(), "0", "each"])
            }
        };
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the server starts");
        let mut line = String::new();
        let output = child.stdout.take().expect("it is piped");
        BufReader::new(output).read_line(&mut line).expect("the server says where it listens");
        let address = line.split("http://").nth(1).and_then(|rest| rest.split([',', ';', '/', ' ', '\n']).next());
        let address = address.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no address in {line:?}"));
        Self { address, place, child }
    }

    /// Has Postgres look at its tables, as it does by itself within a minute of many changes.
    pub(crate) fn analyze(&self) {
        if let Place::Postgres(_) = *self.place {
            psql_at(&self.place.url(), "analyze");
        }
    }

    /// Processor time used so far, with that of Postgres if the server is on it.
    pub(crate) fn processor_time(&self) -> Duration {
        let database = match *self.place {
            Place::File(_) => Duration::ZERO,
            Place::Postgres(_) => process::time_with_children(postmaster()),
        };
        process::time(self.child.id()) + database
    }

    /// Resident memory in bytes.
    pub(crate) fn resident(&self) -> u64 {
        process::resident(self.child.id())
    }
}

/// The process id of Postgres.
fn postmaster() -> u32 {
    let done =
        Command::new("psql").args(["-qXAt", &postgres(), "-c", "select pg_read_file('postmaster.pid')"]).output();
    let lines = String::from_utf8(done.expect("psql runs").stdout).expect("text");
    lines.lines().next().and_then(|line| line.trim().parse().ok()).expect("a process id")
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A Redis for the bus; stopped when dropped.
pub(crate) struct Redis {
    port: u16,
    child: Child,
}

impl Redis {
    pub(crate) fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { port, child }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
