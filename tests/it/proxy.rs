//! A network that fails: a TCP proxy in front of a server that can delay, throttle, cut, half-close and swallow answers,
//! switched while connections run.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::server::PATIENCE;

/// What the network does to every connection from now on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    /// Each chunk waits that long.
    pub(crate) delay: Duration,
    /// At most that many bytes a second and direction.
    pub(crate) bytes_per_second: Option<u32>,
    /// What the server says is read and thrown away.
    pub(crate) swallow_answers: bool,
    /// So it is from the first answer on that holds this text.
    swallow_from: Option<&'static str>,
    /// Raised to end all connections that there are.
    cuts: u64,
    /// Raised to tell the server that the clients will say no more.
    half_closes: u64,
}

/// A proxy in front of one address.
pub(crate) struct ChaosProxy {
    pub(crate) address: SocketAddr,
    faults: watch::Sender<Faults>,
    swallowed: watch::Sender<u64>,
    accepting: JoinHandle<()>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToClient,
}

impl ChaosProxy {
    /// Starts on a free port, without any fault.
    pub(crate) async fn in_front_of(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let faults = watch::Sender::new(Faults::default());
        let swallowed = watch::Sender::new(0);
        let (rules, swallowed_too) = (faults.clone(), swallowed.clone());
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(connection(client, server, rules.subscribe(), swallowed_too.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, faults, swallowed, accepting }
    }

    /// Changes the faults.
    pub(crate) fn set(&self, change: impl FnOnce(&mut Faults)) {
        self.faults.send_modify(change);
    }

    /// Throws away what the server says on a connection from the first answer on that holds a text.
    pub(crate) fn swallow_from(&self, text: &'static str) {
        self.set(|faults| faults.swallow_from = Some(text));
    }

    /// Lets everything pass that comes from now on, and ends what there is.
    pub(crate) fn start_over(&self) {
        self.set(|faults| *faults = Faults { cuts: faults.cuts + 1, ..Faults::default() });
    }

    /// Ends every connection there is.
    pub(crate) fn cut(&self) {
        self.set(|faults| faults.cuts += 1);
    }

    /// Closes every connection's direction towards the server; answers still come through.
    pub(crate) fn half_close(&self) {
        self.set(|faults| faults.half_closes += 1);
    }

    /// Waits until at least one byte of an answer has been swallowed since the last call.
    pub(crate) async fn swallowed_something(&self) {
        let mut swallowed = self.swallowed.subscribe();
        let wait = swallowed.wait_for(|bytes| *bytes > 0);
        timeout(PATIENCE, wait).await.expect("an answer in time").expect("the proxy runs");
        self.swallowed.send_replace(0);
    }
}

impl Drop for ChaosProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// The address of the server that a URL with a user names.
pub(crate) fn address_in(url: &str) -> SocketAddr {
    let rest = url.split_once('@').expect("a user in the URL").1;
    rest.split_once('/').expect("a path in the URL").0.parse().expect("an address")
}

async fn connection(
    client: TcpStream,
    server: SocketAddr,
    mut rules: watch::Receiver<Faults>,
    swallowed: watch::Sender<u64>,
) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let cuts = rules.borrow_and_update().cuts;
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let up = carry(Direction::ToServer, from_client, to_server, rules.clone(), swallowed.clone());
    let down = carry(Direction::ToClient, from_server, to_client, rules.clone(), swallowed);
    tokio::select! {
        _ = async { tokio::join!(up, down) } => {},
        _ = rules.wait_for(|faults| faults.cuts > cuts) => {},
    }
}

async fn carry(
    direction: Direction,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut rules: watch::Receiver<Faults>,
    swallowed: watch::Sender<u64>,
) {
    let half_closes = rules.borrow_and_update().half_closes;
    let mut chunk = vec![0; 16 * 1024];
    let mut swallows = false;
    loop {
        let limit = rules.borrow().bytes_per_second.map_or(chunk.len(), |rate| (rate as usize / 20).max(1));
        let read = tokio::select! {
            read = from.read(&mut chunk[..limit]) => read,
            _ = rules.wait_for(|faults| direction == Direction::ToServer && faults.half_closes > half_closes) => break,
        };
        let Ok(count @ 1..) = read else { break };
        let faults = rules.borrow().clone();
        sleep(faults.delay).await;
        if let Some(rate) = faults.bytes_per_second {
            sleep(Duration::from_secs(count as u64) / rate.max(1)).await;
        }
        let holds = |text: &str| chunk[..count].windows(text.len()).any(|window| window == text.as_bytes());
        swallows |= faults.swallow_from.is_some_and(holds);
        if (faults.swallow_answers || swallows) && direction == Direction::ToClient {
            swallowed.send_modify(|bytes| *bytes += count as u64);
        } else if to.write_all(&chunk[..count]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// A server that sends back what it reads, and `bye` when the client is done.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.into_split();
                    tokio::io::copy(&mut read, &mut write).await.ok();
                    write.write_all(b"bye").await.ok();
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn the_proxy_passes_delays_and_throttles() {
        let proxy = ChaosProxy::in_front_of(echo().await).await;
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        let mut answer = [0; 40];
        stream.write_all(b"ping").await.unwrap();
        stream.read_exact(&mut answer[..4]).await.unwrap();
        assert_eq!(&answer[..4], b"ping");

        proxy.set(|faults| faults.delay = Duration::from_millis(50));
        let began = Instant::now();
        stream.write_all(b"ping").await.unwrap();
        stream.read_exact(&mut answer[..4]).await.unwrap();
        assert!(began.elapsed() >= Duration::from_millis(50));

        proxy.set(|faults| (faults.delay, faults.bytes_per_second) = (Duration::ZERO, Some(200)));
        let began = Instant::now();
        stream.write_all(&[7; 40]).await.unwrap();
        stream.read_exact(&mut answer).await.unwrap();
        assert!(began.elapsed() >= Duration::from_millis(150), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn the_proxy_cuts_half_closes_and_swallows() {
        let proxy = ChaosProxy::in_front_of(echo().await).await;
        let mut text = String::new();
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
        proxy.half_close();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "bye", "the server's direction stays open");

        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
        proxy.set(|faults| faults.swallow_answers = true);
        stream.write_all(b"lost").await.unwrap();
        proxy.swallowed_something().await;
        proxy.cut();
        let rest = timeout(PATIENCE, stream.read(&mut [0; 8])).await.unwrap();
        assert!(matches!(rest, Ok(0) | Err(_)), "nothing comes after a cut: {rest:?}");
    }
}
