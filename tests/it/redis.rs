//! A throwaway Redis on a free port, that can be killed and started again.

use std::net::{SocketAddr, TcpListener};
use std::process::Stdio;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{interval, timeout};

use crate::server::{PATIENCE, is_root};

pub(crate) struct Redis {
    port: u16,
    child: Option<Child>,
}

impl Redis {
    pub(crate) async fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port();
        let mut redis = Self { port, child: None };
        redis.start_again().await;
        redis
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address())
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
        let child = command
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--daemonize", "no"])
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
