//! A server under load: started with a fresh database, measured from outside, stopped when dropped.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Tidings,
    Peer,
}

/// A running server.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    child: Child,
    _folder: TempDir,
}

/// Descriptors a server may open: one a socket and some for itself.
const DESCRIPTORS: &str = "ulimit -n 16384 && exec \"$@\"";

impl Server {
    /// Starts a server on a fresh database. `flags` are for Tidings alone: the peer has no limits to raise.
    pub(crate) fn start(kind: Kind, flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let database = folder.path().join("bench.db");
        let mut command = Command::new("sh");
        command.args(["-c", DESCRIPTORS, "sh"]);
        match kind {
            Kind::Tidings => command
                .arg(env!("CARGO_BIN_EXE_tidings"))
                .args(["--listen", "127.0.0.1:0", "--log", "warn", "--database-url"])
                .arg(format!("sqlite://{}", database.display()))
                .args(flags),
            Kind::Peer => command
                .args(["node", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/peer/server.mjs")])
                .arg(database),
        };
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the server starts");
        let mut line = String::new();
        let output = child.stdout.take().expect("it is piped");
        BufReader::new(output).read_line(&mut line).expect("the server says where it listens");
        let address = line.split("http://").nth(1).and_then(|rest| rest.split([',', ';', '/', ' ', '\n']).next());
        let address = address.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no address in {line:?}"));
        Self { address, child, _folder: folder }
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
