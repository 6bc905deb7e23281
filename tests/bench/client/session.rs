//! Sockets that log in, count what they receive, and ack it.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use memchr::memmem::Finder;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::websocket::{FrameWriter, WebSocket};
use super::{PATIENCE, Tally, after, leading_number};

/// How a socket acks what it receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Acks {
    /// Each message by its id.
    Each,
    /// As the client library does: it logs in for batches, and acks up to a rev once 200 ms have passed since the first
    /// message, 32 have come, or several came in one event; the ack has a callback.
    Batches,
    Never,
}

/// `ACK_MS` and `ACK_AT` of client/src/session.ts.
const ACK_AFTER: Duration = Duration::from_millis(200);
const ACK_AT: u64 = 32;

/// Keys are searched in the whole text: no text of the load's data looks like one.
struct Keys {
    number: Finder<'static>,
    sent: Finder<'static>,
    id: Finder<'static>,
    rev: Finder<'static>,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys {
    number: Finder::new("\"n\":"),
    sent: Finder::new(",\"t\":"),
    id: Finder::new("\"id\":\""),
    rev: Finder::new("\"rev\":"),
});

/// What all sockets of a load have received.
pub(crate) struct Received {
    pub(crate) messages: u64,
    /// By socket.
    pub(crate) tallies: Vec<Tally>,
    /// Microseconds from the start of a push to the receipt.
    pub(crate) latency: Histogram<u64>,
    /// When the last message or answer to a login came.
    pub(crate) last: Instant,
    /// Sockets that are logged in and have what they missed.
    ready: u64,
    /// Messages whose ack is not sent yet.
    unacked: u64,
    /// Acks with a callback that was not called yet.
    unanswered: u64,
    /// Messages with a lower rev than the one before.
    pub(crate) disorder: u64,
    error: Option<io::Error>,
}

/// The sockets of a load; closed when dropped.
pub(crate) struct Sessions {
    count: u64,
    received: Arc<Mutex<Received>>,
    _tasks: JoinSet<()>,
}

impl Sessions {
    /// Opens `count` sockets that log in, at most `opening` at a time. The n-th has the token `n % tokens`, after `prefix`.
    /// The times that messages carry count from `epoch`.
    pub(crate) fn open(
        address: SocketAddr,
        (count, tokens, prefix): (u64, u64, &str),
        acks: Acks,
        opening: usize,
        epoch: Instant,
    ) -> Self {
        let received = Arc::new(Mutex::new(Received {
            messages: 0,
            tallies: vec![Tally::default(); usize::try_from(count).expect("memory holds them")],
            latency: Histogram::new(3).expect("three digits are allowed"),
            last: Instant::now(),
            ready: 0,
            unacked: 0,
            unanswered: 0,
            disorder: 0,
            error: None,
        }));
        let opening = Arc::new(Semaphore::new(opening));
        let mut tasks = JoinSet::new();
        for index in 0..count {
            let (opening, received) = (Arc::clone(&opening), Arc::clone(&received));
            let batch = acks == Acks::Batches;
            let login = format!(r#"420["user_login",{{"tokenId":"{prefix}{}","batch":{batch}}}]"#, index % tokens);
            let index = usize::try_from(index).expect("memory holds them");
            tasks.spawn(async move {
                let socket = Socket { index, acks, epoch, received: Arc::clone(&received) };
                let Err(error) = socket.run(address, login, &opening).await;
                lock(&received).error.get_or_insert(error);
            });
        }
        Self { count, received, _tasks: tasks }
    }

    /// What was received until now.
    pub(crate) fn received(&self) -> MutexGuard<'_, Received> {
        lock(&self.received)
    }

    /// Waits until all are logged in and have what they missed.
    pub(crate) async fn ready(&self) {
        self.wait(|received| (received.ready, self.count, "logins")).await;
    }

    /// Waits until that many messages came to all of them together.
    pub(crate) async fn expect(&self, messages: u64) {
        self.wait(|received| (received.messages, messages, "messages")).await;
    }

    /// Waits until everything is acked that came.
    pub(crate) async fn acked(&self) {
        self.wait(|received| (received.messages - received.unacked, received.messages, "sent acks")).await;
        self.wait(|received| (u64::from(received.unanswered == 0), 1, "answers to acks")).await;
    }

    async fn wait(&self, progress: impl Fn(&Received) -> (u64, u64, &'static str)) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            {
                let received = self.received();
                assert!(received.error.is_none(), "a socket failed: {:?}", received.error);
                let (count, due, what) = progress(&received);
                if count >= due {
                    return;
                }
                assert!(Instant::now() < deadline, "lost: {count} of {due} {what}");
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn lock(received: &Mutex<Received>) -> MutexGuard<'_, Received> {
    received.lock().expect("nobody panics while it is locked")
}

/// One socket.
struct Socket {
    index: usize,
    acks: Acks,
    epoch: Instant,
    received: Arc<Mutex<Received>>,
}

/// What one socket has to ack.
#[derive(Default)]
struct Unacked {
    messages: u64,
    upto: u64,
    due: Option<tokio::time::Instant>,
}

impl Socket {
    async fn run(&self, address: SocketAddr, login: String, opening: &Semaphore) -> io::Result<Infallible> {
        let mut opening = Some(opening.acquire().await.map_err(io::Error::other)?);
        let mut socket = WebSocket::connect(address, "/socket.io/?EIO=4&transport=websocket").await?;
        let mut unacked = Unacked::default();
        loop {
            let ready = self.take(&mut socket, &login, &mut lock(&self.received), &mut unacked)?;
            if ready {
                drop(opening.take());
            }
            socket.flush()?;
            match unacked.due {
                None => socket.fill().await?,
                Some(due) => match tokio::time::timeout_at(due, socket.fill()).await {
                    Ok(filled) => filled?,
                    Err(_) => ack_batch(&mut socket.writer, &mut lock(&self.received), &mut unacked),
                },
            }
        }
    }

    /// Takes every packet that was read. Whether one of them said that the login is complete.
    fn take(
        &self,
        socket: &mut WebSocket,
        login: &str,
        received: &mut Received,
        unacked: &mut Unacked,
    ) -> io::Result<bool> {
        let WebSocket { reader, writer, .. } = socket;
        let (mut now, mut ready) = (None, false);
        while let Some(packet) = reader.next_text()? {
            match packet {
                [b'0', ..] => writer.text(&[b"40"]),
                [b'2'] => writer.text(&[b"3"]),
                [b'4', b'0', ..] => writer.text(&[login.as_bytes()]),
                [b'4', b'2', event @ ..] if event.starts_with(b"[\"receive_message") => {
                    let now = *now.get_or_insert_with(Instant::now);
                    let messages = self.count(event, now, received, &mut unacked.upto);
                    match self.acks {
                        Acks::Never => {}
                        Acks::Each => {
                            let id = after(event, &KEYS.id).and_then(|rest| rest.split(|byte| *byte == b'"').next());
                            writer.text(&[b"42[\"ack\",\"", id.expect("an id"), b"\"]"]);
                        }
                        Acks::Batches => {
                            unacked.messages += messages;
                            received.unacked += messages;
                            unacked.due.get_or_insert_with(|| tokio::time::Instant::from_std(now + ACK_AFTER));
                            if unacked.messages >= ACK_AT || messages > 1 {
                                ack_batch(writer, received, unacked);
                            }
                        }
                    }
                }
                [b'4', b'2', event @ ..] => {
                    if event.starts_with(b"[\"replay_complete\"") {
                        ready = true;
                        received.ready += 1;
                        received.last = Instant::now();
                    }
                }
                [b'4', b'3', answer @ ..] => {
                    if memchr::memmem::find(answer, b"\"ok\":true").is_none() {
                        return Err(io::Error::other(String::from_utf8_lossy(packet).into_owned()));
                    }
                    // 0 is the login's.
                    received.unanswered -= u64::from(!answer.starts_with(b"0"));
                }
                _ => return Err(io::Error::other(String::from_utf8_lossy(packet).into_owned())),
            }
        }
        Ok(ready)
    }

    /// Counts the messages of an event, and returns how many they are.
    fn count(&self, event: &[u8], now: Instant, received: &mut Received, upto: &mut u64) -> u64 {
        let micros = u64::try_from((now - self.epoch).as_micros()).unwrap_or(u64::MAX);
        let (mut rest, mut messages) = (event, 0);
        while let Some(found) = after(rest, &KEYS.number) {
            received.tallies[self.index].add(leading_number(found).expect("the number of a message"));
            let sent = after(found, &KEYS.sent).and_then(leading_number).expect("the time of a message");
            received.latency.record(micros.saturating_sub(sent).max(1)).ok();
            rest = found;
            messages += 1;
        }
        let mut rest = event;
        while let Some(found) = after(rest, &KEYS.rev) {
            let rev = leading_number(found).expect("the rev of a message");
            received.disorder += u64::from(rev <= *upto);
            *upto = rev.max(*upto);
            rest = found;
        }
        received.messages += messages;
        received.last = now;
        messages
    }
}

/// Acks up to the newest message, and asks for an answer.
fn ack_batch(writer: &mut FrameWriter, received: &mut Received, unacked: &mut Unacked) {
    let mut digits = [0; 20];
    writer.text(&[b"421[\"ack\",{\"upTo\":", decimal(unacked.upto, &mut digits), b"}]"]);
    received.unacked -= unacked.messages;
    received.unanswered += 1;
    *unacked = Unacked { upto: unacked.upto, ..Unacked::default() };
}

fn decimal(mut number: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(number % 10).expect("one digit");
        number /= 10;
        if number == 0 {
            return &digits[at..];
        }
    }
}
