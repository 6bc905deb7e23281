//! The service as a child process: started on a free port with a temporary folder, stopped, paused, killed and started
//! again on the same database.
//!
//! Its stderr goes to a file that is shown when a test fails; a panic in it fails the test even when nothing else did. It
//! is killed when dropped.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::api::Api;
use crate::postgres::Database;
use crate::socket::{Dial, Socket};
use crate::table::Table;

/// How long any single thing may take before a test gives up on it. Far above what is expected: tests share two cores.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// How a server is to be started.
#[derive(Default)]
pub(crate) struct Builder {
    flags: Vec<String>,
    environment: Vec<(String, String)>,
    disk_kib: Option<u32>,
    failing_sync: bool,
    on_sqlite: bool,
    place: Option<Place>,
}

/// Where a server keeps its data.
#[derive(Clone)]
pub(crate) enum Place {
    File(PathBuf),
    Postgres(Arc<Database>),
}

impl Place {
    pub(crate) fn url(&self) -> String {
        match self {
            Self::File(path) => format!("sqlite://{}", path.display()),
            Self::Postgres(database) => database.url(),
        }
    }
}

impl Builder {
    /// Adds a flag in the form `--window=8`.
    pub(crate) fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// Adds an environment variable.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Puts the database on a disk of its own of that size, which only the server sees (a mount namespace).
    pub(crate) fn on_small_disk(mut self, kib: u32) -> Self {
        self.disk_kib = Some(kib);
        self
    }

    /// Lets the disk fail for good after a while: every sync to it answers EIO (`strace` injects it).
    pub(crate) fn on_failing_disk(mut self) -> Self {
        self.failing_sync = true;
        self
    }

    /// Has a SQLite file, whatever the others have: the test is about that.
    pub(crate) fn on_sqlite(mut self) -> Self {
        self.on_sqlite = true;
        self
    }

    /// Has a Postgres database, whatever the others have.
    pub(crate) fn on_postgres(self) -> Self {
        self.at(Place::Postgres(Arc::new(Database::create())))
    }

    /// Has the database of another server.
    pub(crate) fn at(mut self, place: Place) -> Self {
        self.place = Some(place);
        self
    }

    /// Starts it and waits until it is ready.
    pub(crate) async fn start(self) -> TestServer {
        let mut server = self.prepare();
        server.start_again().await;
        server
    }

    /// Everything but the start.
    pub(crate) fn prepare(self) -> TestServer {
        let folder = tempfile::Builder::new().prefix("tidings-it-").tempdir().expect("a temporary folder");
        let data = folder.path().join("data");
        fs::create_dir(&data).expect("a folder for the database");
        let sqlite = self.on_sqlite || self.disk_kib.is_some() || self.failing_sync;
        let place = match std::env::var("TIDINGS_TEST_DATABASE").as_deref() {
            _ if self.place.is_some() => self.place.clone().expect("it is there"),
            Ok("postgres") if !sqlite => Place::Postgres(Arc::new(Database::create())),
            Ok("postgres" | "sqlite") | Err(_) => Place::File(data.join("tidings.db")),
            Ok(other) => panic!("TIDINGS_TEST_DATABASE={other}: sqlite or postgres"),
        };
        TestServer {
            place,
            folder,
            options: self,
            running: None,
            address: watch::Sender::new(SocketAddr::from(([127, 0, 0, 1], 9))),
        }
    }
}

/// A server that ended instead of getting ready.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// Its exit code; none when a signal ended it.
    pub(crate) code: Option<i32>,
    /// What it wrote to stderr in this run.
    pub(crate) stderr: String,
}

/// One server and its database.
pub(crate) struct TestServer {
    folder: TempDir,
    place: Place,
    options: Builder,
    running: Option<Running>,
    address: watch::Sender<SocketAddr>,
}

struct Running {
    child: Child,
    pid: u32,
    ready_line: String,
    ready_after: Duration,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl TestServer {
    /// A server with every default but the port and the database.
    pub(crate) async fn start() -> Self {
        Self::builder().start().await
    }

    /// A server with these flags, each in the form `--window=8`.
    pub(crate) async fn with(flags: &[&str]) -> Self {
        flags.iter().fold(Self::builder(), |builder, flag| builder.flag(flag)).start().await
    }

    pub(crate) fn builder() -> Builder {
        Builder::default()
    }

    /// From its next start on the disk works.
    pub(crate) fn repair_disk(&mut self) {
        self.options.failing_sync = false;
    }

    /// Starts it (again) on its database and waits until it is ready.
    pub(crate) async fn start_again(&mut self) {
        if let Err(refusal) = self.try_start().await {
            panic!("the server ended with {:?} before it was ready; it said:\n{}", refusal.code, refusal.stderr);
        }
    }

    /// Starts it on its database, which it is expected to refuse.
    pub(crate) async fn start_refused(&mut self) -> Refusal {
        match self.try_start().await {
            Ok(()) => panic!("the server should have refused to start, but it is ready"),
            Err(refusal) => refusal,
        }
    }

    /// Starts it and says whether it got ready.
    pub(crate) async fn try_start(&mut self) -> Result<(), Refusal> {
        assert!(self.running.is_none(), "the server runs already");
        let said_before = self.stderr().len();
        let stderr = File::options().create(true).append(true).open(self.stderr_path()).expect("a file for stderr");
        let began = Instant::now();
        let mut child = self
            .command()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn()
            .expect("the binary starts");
        let pid = child.id().expect("a process that was not waited for has an id");
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let line = timeout(PATIENCE, stdout.next_line()).await.expect("ready in time").expect("stdout is text");
        let Some(ready_line) = line else {
            let status = timeout(PATIENCE, child.wait()).await.expect("ends in time").expect("can be waited for");
            return Err(Refusal { code: status.code(), stderr: self.stderr().split_off(said_before) });
        };
        let ready_after = began.elapsed();
        let address = address_in(&ready_line).unwrap_or_else(|| panic!("no address in the ready line: {ready_line}"));
        self.running = Some(Running { child, pid, ready_line, ready_after, stdout });
        self.address.send_replace(address);
        Ok(())
    }

    fn command(&self) -> Command {
        let binary = env!("CARGO_BIN_EXE_tidings");
        let mut command = if let Some(kib) = self.options.disk_kib {
            let mut command = Command::new("unshare");
            command.arg(if is_root() { "-m" } else { "-rm" });
            command.args(["sh", "-c", "mount -t tmpfs -o size=\"$1\"k tmpfs \"$2\" && shift 2 && exec \"$@\"", "sh"]);
            command.arg(kib.to_string()).arg(self.data_folder()).arg(binary);
            command
        } else if self.options.failing_sync {
            let mut command = Command::new("strace");
            // With -D it is the server that has the process id, and strace ends with it.
            command.args(["-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync"]);
            command.args(["-e", "inject=fsync,fdatasync:error=EIO:when=60+", binary]);
            command
        } else {
            Command::new(binary)
        };
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TIDINGS_") || name == "DATABASE_URL" {
                command.env_remove(name);
            }
        }
        command.env("TIDINGS_LISTEN", "127.0.0.1:0").env("TIDINGS_ADMIN_LISTEN", "127.0.0.1:0");
        command.env("DATABASE_URL", self.place.url());
        // All clients of a test come from one address; the tests of this limit set it.
        command.env("TIDINGS_MAX_SOCKETS_PER_ADDRESS", "0");
        command.envs(self.options.environment.iter().map(|(name, value)| (name, value)));
        command.args(&self.options.flags).current_dir(self.folder.path());
        command
    }

    /// Ends it with SIGKILL, at once.
    pub(crate) async fn kill_9(&mut self) {
        let mut running = self.running.take().expect("the server runs");
        timeout(PATIENCE, running.child.kill()).await.expect("ends in time").expect("can be killed");
    }

    /// Asks it to stop with SIGTERM.
    pub(crate) async fn ask_to_stop(&self) {
        self.signal("-TERM").await;
    }

    /// SIGINT, as Ctrl-C sends it.
    pub(crate) async fn interrupt(&self) {
        self.signal("-INT").await;
    }

    /// SIGHUP, as `systemctl reload` sends it.
    pub(crate) async fn hang_up(&self) {
        self.signal("-HUP").await;
    }

    /// Waits until it has ended; the rest of its stdout with it.
    pub(crate) async fn ended(&mut self) -> (ExitStatus, Vec<String>) {
        let mut running = self.running.take().expect("the server runs");
        let status =
            timeout(PATIENCE * 2, running.child.wait()).await.expect("ends in time").expect("can be waited for");
        let mut rest = Vec::new();
        while let Some(line) = running.stdout.next_line().await.expect("stdout is text") {
            rest.push(line);
        }
        (status, rest)
    }

    /// Stops it with SIGTERM and expects exit code 0.
    pub(crate) async fn stop(&mut self) {
        self.ask_to_stop().await;
        let (status, _) = self.ended().await;
        assert_eq!(status.code(), Some(0), "a graceful stop ends with 0");
    }

    /// SIGSTOP: it holds still, its connections stay open.
    pub(crate) async fn freeze(&self) {
        self.signal("-STOP").await;
    }

    /// SIGCONT.
    pub(crate) async fn thaw(&self) {
        self.signal("-CONT").await;
    }

    async fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.pid().to_string()]).status().await.expect("kill runs");
        assert!(status.success(), "kill {name} failed");
    }

    pub(crate) fn pid(&self) -> u32 {
        self.running.as_ref().expect("the server runs").pid
    }

    /// The one line on stdout that said it is ready.
    pub(crate) fn ready_line(&self) -> &str {
        &self.running.as_ref().expect("the server runs").ready_line
    }

    /// From the start of the process to its ready line.
    pub(crate) fn ready_after(&self) -> Duration {
        self.running.as_ref().expect("the server runs").ready_after
    }

    pub(crate) fn address(&self) -> SocketAddr {
        *self.address.borrow()
    }

    /// The address now and after each start.
    pub(crate) fn addresses(&self) -> watch::Receiver<SocketAddr> {
        self.address.subscribe()
    }

    pub(crate) fn api(&self) -> Api {
        Api::new(self.address())
    }

    /// Where the metrics are.
    pub(crate) fn metrics_api(&self) -> Api {
        let said = self.stderr();
        let address = said.rsplit_once("Metrics are at ").and_then(|(_, rest)| address_in(rest));
        Api::new(address.expect("it says where"))
    }

    /// The value of a metric, labels and all in its name.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = self.metrics_api().get("/metrics").await.text;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
    }

    /// A connected client: engine.io 4 over a websocket, not logged in.
    pub(crate) async fn connect(&self) -> Socket {
        Dial::new(self.address()).connect().await
    }

    /// A logged-in client whose replay has not been read yet.
    pub(crate) async fn login(&self, token: &str) -> Socket {
        let mut socket = self.connect().await;
        socket.login(token).await;
        socket
    }

    /// A logged-in client of a token that has nothing to replay.
    pub(crate) async fn login_empty(&self, token: &str) -> Socket {
        let mut socket = self.login(token).await;
        let replay = socket.replay().await;
        assert!(replay.messages.is_empty(), "nothing to replay was expected, got {:?}", replay.messages);
        socket
    }

    /// The database, as an admin reads it.
    pub(crate) fn table(&self) -> Table {
        Table::new(self.place.clone(), self.inside())
    }

    /// The SQLite file.
    pub(crate) fn database(&self) -> &Path {
        match &self.place {
            Place::File(path) => path,
            Place::Postgres(_) => panic!("a test that needs the file says on_sqlite()"),
        }
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    fn data_folder(&self) -> &Path {
        self.database().parent().expect("the database is in a folder")
    }

    /// A path of the server's own disk, as seen from here.
    pub(crate) fn on_its_disk(&self, name: &str) -> PathBuf {
        let path = self.data_folder().join(name);
        if self.options.disk_kib.is_none() {
            return path;
        }
        let inside = path.strip_prefix("/").expect("temporary folders are absolute");
        PathBuf::from(format!("/proc/{}/root", self.pid())).join(inside)
    }

    /// The command that runs another one where the server's disk is mounted.
    fn inside(&self) -> Vec<String> {
        if self.options.disk_kib.is_none() {
            return Vec::new();
        }
        let target = self.pid().to_string();
        let ways: &[&str] = if is_root() { &["--mount"] } else { &["--user", "--preserve-credentials", "--mount"] };
        ["nsenter", "--target", &target].iter().chain(ways).map(ToString::to_string).collect()
    }

    fn stderr_path(&self) -> PathBuf {
        self.folder.path().join("stderr.log")
    }

    /// All it wrote to stderr so far.
    pub(crate) fn stderr(&self) -> String {
        fs::read(self.stderr_path()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Its resident memory in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("a process has a status");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("memory is in the status");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("memory is a number")
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        let said = self.stderr();
        if std::thread::panicking() {
            let lines: Vec<&str> = said.lines().collect();
            eprintln!("--- the server's stderr, the last of {} lines ---", lines.len());
            for line in &lines[lines.len().saturating_sub(80)..] {
                eprintln!("{line}");
            }
        } else if let Some(line) = said.lines().find(|line| line.contains("panicked at")) {
            panic!("the server panicked: {line}");
        }
    }
}

/// Whether this machine lets a test give a server a disk of its own.
pub(crate) async fn small_disks_work() -> bool {
    let mut command = Command::new("unshare");
    command.arg(if is_root() { "-m" } else { "-rm" }).args(["mount", "-t", "tmpfs", "tmpfs", "/mnt"]);
    command.stderr(Stdio::null()).status().await.is_ok_and(|status| status.success())
}

/// Whether this machine can inject errors into system calls.
pub(crate) async fn failing_disks_work() -> bool {
    let mut command = Command::new("strace");
    command.args(["-f", "-o", "/dev/null", "-e", "inject=fsync:error=EIO", "true"]).stderr(Stdio::null());
    command.status().await.is_ok_and(|status| status.success())
}

pub(crate) fn is_root() -> bool {
    fs::read_to_string("/proc/self/status")
        .expect("a process has a status")
        .lines()
        .any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"))
}

/// The address in the first `http://HOST:PORT` of a line.
fn address_in(line: &str) -> Option<SocketAddr> {
    let rest = line.split_once("http://").or_else(|| line.split_once("https://"))?.1;
    let end = rest.find(|c: char| c != '.' && c != ':' && !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}
