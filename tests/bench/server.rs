//! A server under load: started with a fresh database, measured from outside, stopped when dropped.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Tidings,
    Peer,
    TidingsOnPostgres,
    PeerOnPostgres,
    /// As it is usually written: without group commit.
    PeerOnPostgresEach,
}

/// Where a server keeps its data; gone when dropped.
pub(crate) enum Place {
    File(TempDir),
    Postgres(String),
}

impl Place {
    fn new(kind: Kind) -> Self {
        match kind {
            Kind::Tidings | Kind::Peer => Self::File(tempfile::tempdir().expect("a temporary folder")),
            Kind::TidingsOnPostgres | Kind::PeerOnPostgres | Kind::PeerOnPostgresEach => {
                static COUNT: AtomicU32 = AtomicU32::new(0);
                let name = format!("bench_{}", COUNT.fetch_add(1, Ordering::Relaxed));
                psql(&format!("create database {name}"));
                Self::Postgres(name)
            }
        }
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Self::File(folder) => format!("sqlite://{}", folder.path().join("bench.db").display()),
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
                // All load comes from one address.
                .args(["--max-sockets-per-address", "0", "--max-connections-per-address", "0"])
                .args(flags),
            Kind::Peer => command.args(["node", &format!("{peer}server.mjs"), &place.url()["sqlite://".len()..]]),
            Kind::PeerOnPostgres => command.args(["node", &format!("{peer}postgres.mjs"), &place.url()]),
            Kind::PeerOnPostgresEach => {
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

    /// Processor time used so far, user and system, of all threads.
    pub(crate) fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("the server runs");
        // After the name in parentheses; utime and stime are the 14th and 15th field of all, in hundredths of a second.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
        Duration::from_millis(ticks * 10)
    }

    /// Resident memory in bytes.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the server runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }
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
