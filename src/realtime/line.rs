//! The TCP connection under a socket or a request, the one sure way to end it, and its backpressure.
//!
//! The engine cannot close a connection whose writer is blocked, nor one whose client ignores that it was disconnected.
//! So the service keeps a weak hold on each connection, with which it hangs up on the socket itself.
//!
//! A client that asks and does not read the answers is not read either. The libraries above need not know of that: hyper
//! stops by itself, but tungstenite reads on while its answers wait, and queues a pong for each ping without a limit. Once
//! a write finds no room only [`READ_AHEAD`] bytes are read, and then as many as the client takes. So a client that is
//! merely slow still gets its acks and pongs through while messages wait for it, and what it can have queued stays in
//! proportion to what it reads.

use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use socket2::SockRef;
use socketioxide::socket::Sid;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;

use crate::access::ClientAddress;
use crate::limits::{Pace, Seat};

/// Bytes that are read from a client which takes nothing: some 150 acks. A read that begins below it may end beyond it, by
/// at most the reader's buffer (512 bytes of a websocket, `--max-header-bytes` of HTTP).
pub(super) const READ_AHEAD: usize = 8 * 1024;

/// A connection that can be hung up from outside. In halves, of which one can be shared: what reads and writes a whole
/// one by reference asks the system once more each time, to learn that there is no more.
pub struct Line {
    read: Arc<Reading>,
    write: OwnedWriteHalf,
}

struct Reading {
    half: Mutex<OwnedReadHalf>,
    /// Nothing is read while it is set.
    held: AtomicBool,
    /// Whether the last write found no room.
    blocked: AtomicBool,
    /// Bytes that may be read while it is set.
    read_ahead: AtomicUsize,
    /// Who wants to read on.
    waiting: Mutex<Option<Waker>>,
}

/// Ends a [`Line`], or has it not read for a while; does not keep it open.
#[derive(Clone)]
pub struct HangUp(Weak<Reading>);

/// The websocket that a socket uses now, once it does: until then the connection of a poll may be a proxy's, with the
/// requests of others on it. A client that leaves the namespace and comes back still has this one.
#[derive(Clone)]
pub(super) struct CurrentLine(Arc<Held>);

/// A [`CurrentLine`] that may be gone.
pub(super) struct WeakLine(Weak<Held>);

impl WeakLine {
    pub(super) fn upgrade(&self) -> Option<CurrentLine> {
        self.0.upgrade().map(CurrentLine)
    }
}

struct Held {
    /// If it was one from the start.
    first: Option<HangUp>,
    /// Those that took over from polling, or tried to, and are still there: one of them did.
    upgrades: Mutex<Vec<HangUp>>,
    /// Made with the first event.
    pace: OnceLock<Option<Pace>>,
    /// Nothing is read from the client while it is set.
    held: AtomicBool,
    released: Notify,
    address: Option<ClientAddress>,
    /// Given back when the socket is gone.
    _seat: Option<Seat>,
}

/// Websockets that took over from polling, or tried to, while their client was not in the namespace, so that there is no
/// [`CurrentLine`] to be had. Those that have ended are let go of when another one comes.
#[derive(Clone, Default)]
pub(super) struct EarlyLines(Arc<Mutex<Vec<(Sid, HangUp)>>>);

impl EarlyLines {
    pub(super) fn note(&self, sid: Sid, line: HangUp) {
        let mut lines = lock(&self.0);
        lines.retain(|(_, line)| line.is_there());
        lines.push((sid, line));
    }

    pub(super) fn hang_up(&self, sid: Sid) {
        let lines = lock(&self.0);
        lines.iter().filter(|(of, _)| *of == sid).for_each(|(_, line)| line.now());
    }
}

impl Line {
    /// Takes over a connection.
    #[must_use]
    pub fn new(stream: TcpStream) -> Self {
        let (read, write) = stream.into_split();
        let read = Reading {
            half: Mutex::new(read),
            held: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            read_ahead: AtomicUsize::new(READ_AHEAD),
            waiting: Mutex::default(),
        };
        Self { read: Arc::new(read), write }
    }

    /// The means to end it.
    #[must_use]
    pub fn hang_up(&self) -> HangUp {
        HangUp(Arc::downgrade(&self.read))
    }
}

impl HangUp {
    fn is_there(&self) -> bool {
        self.0.strong_count() > 0
    }

    fn now(&self) {
        if let Some(read) = self.0.upgrade() {
            // Fails if the other end was faster.
            SockRef::from(lock(&read.half).as_ref()).shutdown(Shutdown::Both).ok();
            // So that its end is read.
            read.blocked.store(false, Ordering::SeqCst);
            read.release();
        }
    }

    fn hold(&self) {
        if let Some(read) = self.0.upgrade() {
            read.held.store(true, Ordering::SeqCst);
        }
    }

    fn release(&self) {
        if let Some(read) = self.0.upgrade() {
            read.release();
        }
    }
}

impl Reading {
    fn release(&self) {
        self.held.store(false, Ordering::SeqCst);
        self.wake();
    }

    fn wake(&self) {
        let waiting = lock(&self.waiting).take();
        if let Some(waker) = waiting {
            waker.wake();
        }
    }

    /// Whether nothing is to be read now; then the task is woken when that changes.
    fn is_stopped(&self, context: &Context<'_>) -> bool {
        if !self.must_stop() {
            return false;
        }
        *lock(&self.waiting) = Some(context.waker().clone());
        // It may have changed before that.
        self.must_stop()
    }

    fn must_stop(&self) -> bool {
        self.held.load(Ordering::SeqCst)
            || self.blocked.load(Ordering::SeqCst) && self.read_ahead.load(Ordering::SeqCst) == 0
    }

    /// Counts what was read while answers wait. Only the task that reads comes here, and [`Reading::wrote`] only adds.
    fn was_read(&self, bytes: usize) {
        if bytes > 0 && self.blocked.load(Ordering::SeqCst) {
            let less = |left: usize| Some(left.saturating_sub(bytes));
            self.read_ahead.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).ok();
        }
    }

    /// Notes what became of a write. What the client took it may send again.
    fn wrote(&self, result: &Poll<io::Result<usize>>) {
        let bytes = match result {
            Poll::Pending => return self.blocked.store(true, Ordering::SeqCst),
            Poll::Ready(Ok(bytes)) => *bytes,
            // The reader is to see the end.
            Poll::Ready(Err(_)) => READ_AHEAD,
        };
        if self.read_ahead.load(Ordering::SeqCst) < READ_AHEAD {
            let more = |left: usize| Some(left.saturating_add(bytes).min(READ_AHEAD));
            self.read_ahead.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).ok();
        }
        if self.blocked.load(Ordering::SeqCst) {
            self.blocked.store(false, Ordering::SeqCst);
            self.wake();
        }
    }
}

impl CurrentLine {
    pub(super) fn new(first: Option<HangUp>, seat: Option<Seat>, address: Option<ClientAddress>) -> Self {
        Self(Arc::new(Held {
            first,
            upgrades: Mutex::default(),
            pace: OnceLock::new(),
            held: AtomicBool::new(false),
            released: Notify::new(),
            address,
            _seat: seat,
        }))
    }

    /// Where its client is.
    pub(super) fn address(&self) -> Option<ClientAddress> {
        self.0.address
    }

    /// Counts an event; if it is too early, how long to wait before asking again.
    pub(super) fn wait(&self, rate: u32, burst: usize) -> Option<Duration> {
        self.0.pace.get_or_init(|| Pace::per_second(rate, burst)).as_ref()?.wait()
    }

    pub(super) fn downgrade(&self) -> WeakLine {
        WeakLine(Arc::downgrade(&self.0))
    }

    pub(super) fn upgrade_to(&self, line: HangUp) {
        let mut upgrades = self.upgrades();
        upgrades.retain(HangUp::is_there);
        if self.0.held.load(Ordering::SeqCst) {
            line.hold();
        }
        upgrades.push(line);
    }

    pub(super) fn hang_up(&self) {
        self.0.first.iter().chain(&*self.upgrades()).for_each(HangUp::now);
    }

    /// Reads nothing more from the client until [`CurrentLine::release`].
    pub(super) fn hold(&self) {
        self.0.held.store(true, Ordering::SeqCst);
        self.0.first.iter().chain(&*self.upgrades()).for_each(HangUp::hold);
    }

    pub(super) fn release(&self) {
        self.0.held.store(false, Ordering::SeqCst);
        self.0.first.iter().chain(&*self.upgrades()).for_each(HangUp::release);
        self.0.released.notify_waiters();
    }

    /// Returns when the client may send more: its next poll waits for that.
    pub(super) async fn released(&self) {
        loop {
            let released = self.0.released.notified();
            if !self.0.held.load(Ordering::SeqCst) {
                return;
            }
            released.await;
        }
    }

    fn upgrades(&self) -> MutexGuard<'_, Vec<HangUp>> {
        lock(&self.0.upgrades)
    }
}

impl AsyncRead for Line {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read.is_stopped(context) {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut *lock(&self.read.half)).poll_read(context, buffer);
        self.read.was_read(buffer.filled().len() - before);
        result
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.write).poll_write(context, bytes);
        self.read.wrote(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.write).poll_write_vectored(context, slices);
        self.read.wrote(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.write.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_shutdown(context)
    }
}

/// Locks for a moment. A panic in one cannot leave half a change behind, so poisoning means nothing here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// What a reader takes at a time.
    const CHUNK: usize = 512;

    async fn connected() -> (Line, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Line::new(listener.accept().await.unwrap().0), client)
    }

    /// Writes until there is no room; how many bytes that took.
    async fn fill(line: &mut Line) -> usize {
        let mut written = 0;
        poll_fn(|context| {
            while let Poll::Ready(bytes) = Pin::new(&mut *line).poll_write(context, &[0; 64 * 1024]) {
                written += bytes.unwrap();
            }
            Poll::Ready(())
        })
        .await;
        written
    }

    /// Reads until nothing more is to be had now; how many bytes that were.
    async fn drain(line: &mut Line) -> usize {
        let mut bytes = 0;
        loop {
            let mut chunk = [0; CHUNK];
            // Whatever has arrived is read before the task yields for good.
            let read = tokio::time::timeout(Duration::from_millis(100), line.read(&mut chunk)).await;
            match read {
                Ok(read) => bytes += read.unwrap(),
                Err(_) => return bytes,
            }
        }
    }

    #[tokio::test]
    async fn of_a_client_that_takes_nothing_little_is_read_and_then_as_much_as_it_takes() {
        let (mut line, mut client) = connected().await;
        let mut waiting = fill(&mut line).await;
        client.write_all(&[1; 64 * 1024]).await.unwrap();
        let read = drain(&mut line).await;
        assert!((READ_AHEAD..READ_AHEAD + CHUNK).contains(&read), "{read}");
        assert_eq!(drain(&mut line).await, 0);

        // It takes some: there is room again, and as much of what it sent is read.
        let mut taken = 0;
        let mut buffer = vec![0; 64 * 1024];
        while taken < waiting {
            taken += client.read(&mut buffer).await.unwrap();
        }
        waiting = poll_fn(|context| Pin::new(&mut line).poll_write(context, &[0; 1000])).await.unwrap();
        assert_eq!(waiting, 1000);
        assert_eq!(drain(&mut line).await + read, 64 * 1024, "nothing waits: all is read");
        fill(&mut line).await;
        client.write_all(&[1; 64 * 1024]).await.unwrap();
        let read = drain(&mut line).await;
        assert!((READ_AHEAD..READ_AHEAD + CHUNK).contains(&read), "{read}");
    }

    #[tokio::test]
    async fn one_that_is_slow_is_read_again_with_each_write_that_finds_room() {
        let (mut line, mut client) = connected().await;
        fill(&mut line).await;
        client.write_all(&vec![1; 256 * 1024]).await.unwrap();
        let mut read = drain(&mut line).await;
        let mut buffer = vec![0; 256 * 1024];
        while read < 40 * 1024 {
            client.read_exact(&mut buffer).await.unwrap();
            let written = fill(&mut line).await;
            let more = drain(&mut line).await;
            assert!(more <= written.min(READ_AHEAD) + CHUNK, "{more} for {written}");
            read += more;
        }
    }

    #[tokio::test]
    async fn a_reader_that_waits_is_woken_when_there_is_room_and_when_the_connection_is_hung_up() {
        for hang_up in [false, true] {
            let (mut line, mut client) = connected().await;
            let waiting = fill(&mut line).await;
            client.write_all(&vec![1; READ_AHEAD + 2 * CHUNK]).await.unwrap();
            drain(&mut line).await;
            let means = line.hang_up();
            let (mut reader, mut writer) = tokio::io::split(line);
            // The halves are given back: without them the connection would be reset.
            let reading = tokio::spawn(async move { (reader.read(&mut [0; CHUNK]).await, reader) });
            let writing = tokio::spawn(async move { (writer.write_all(&[0; 1000]).await, writer) });
            tokio::task::yield_now().await;
            if hang_up {
                means.now();
            } else {
                client.read_exact(&mut vec![0; waiting]).await.unwrap();
            }
            let ((read, _reader), (written, _writer)) = (reading.await.unwrap(), writing.await.unwrap());
            if !hang_up {
                assert_eq!(read.unwrap(), CHUNK);
                written.unwrap();
            }
        }
    }
}
