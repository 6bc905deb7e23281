//! A throwaway Redis on a free port, that can be killed and started again.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{interval, timeout};

use crate::server::{PATIENCE, is_root};

pub(crate) struct Redis {
    port: u16,
    child: Option<Child>,
    /// With a certificate of a CA of its own, if it speaks TLS.
    tls: Option<TempDir>,
}

impl Redis {
    pub(crate) async fn start() -> Self {
        Self::start_with(None).await
    }

    /// One that speaks TLS alone.
    pub(crate) async fn start_tls() -> Self {
        Self::start_with(Some(certify("127.0.0.1"))).await
    }

    async fn start_with(tls: Option<TempDir>) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port();
        let mut redis = Self { port, child: None, tls };
        redis.start_again().await;
        redis
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://{}", if self.tls.is_some() { "rediss" } else { "redis" }, self.address())
    }

    /// The certificate of its CA.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.tls.as_ref().expect("it speaks TLS").path().join("ca.pem")
    }

    pub(crate) fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// Says something to whoever listens to the channel.
    pub(crate) async fn publish(&self, channel: &str, message: &str) {
        let port = self.port.to_string();
        let command = Command::new("redis-cli").args(["-p", &port, "publish", channel, message]).output().await;
        assert!(command.is_ok_and(|output| output.status.success()), "redis-cli publishes");
    }

    /// Starts it and waits until it answers.
    pub(crate) async fn start_again(&mut self) {
        // As somebody who owns nothing, where that can be chosen; it writes no file.
        let mut command = Command::new("redis-server");
        if is_root() {
            command = Command::new("setpriv");
            command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "redis-server"]);
        }
        let port = self.port.to_string();
        match &self.tls {
            None => command.args(["--port", &port]),
            Some(folder) => {
                let file = |name: &str| folder.path().join(name);
                command.args(["--port", "0", "--tls-port", &port, "--tls-auth-clients", "no"]);
                command.arg("--tls-cert-file").arg(file("cert.pem")).arg("--tls-key-file").arg(file("key.pem"));
                command.arg("--tls-ca-cert-file").arg(file("ca.pem"))
            }
        };
        let child = command
            .args(["--bind", "127.0.0.1", "--save", "", "--daemonize", "no"])
            .current_dir("/")
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the redis-server command is installed (Debian package redis-server)");
        self.child = Some(child);
        let mut pause = interval(Duration::from_millis(10));
        let answers = async {
            while TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
                pause.tick().await;
            }
        };
        timeout(PATIENCE, answers).await.expect("Redis answers in time");
    }

    /// SIGSTOP: it takes connections and answers nothing.
    pub(crate) async fn freeze(&self) {
        self.signal("-STOP").await;
    }

    /// SIGCONT.
    pub(crate) async fn thaw(&self) {
        self.signal("-CONT").await;
    }

    async fn signal(&self, name: &str) {
        let pid = self.child.as_ref().and_then(Child::id).expect("it runs").to_string();
        let status = Command::new("kill").args([name, &pid]).status().await.expect("kill runs");
        assert!(status.success(), "kill {name} failed");
    }

    pub(crate) async fn kill(&mut self) {
        self.child.take().expect("it runs").kill().await.expect("it can be killed");
    }
}

/// A folder with `ca.pem`, and a `cert.pem` of it for this name with its `key.pem`, that everybody may read: what serves
/// with them may be somebody else.
pub(crate) fn certify(name: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().expect("a key");
    let ca_pem = ca.self_signed(&ca_key).expect("a CA").pem();
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new([name.to_owned()]).expect("a name");
    let certificate = params.signed_by(&key, &Issuer::new(ca, ca_key)).expect("a certificate");
    for (file, text) in [("ca.pem", ca_pem), ("cert.pem", certificate.pem()), ("key.pem", key.serialize_pem())] {
        fs::write(folder.path().join(file), text).expect("it is written");
    }
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("it can be opened");
    folder
}
