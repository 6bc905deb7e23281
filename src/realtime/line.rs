//! The TCP connection under a socket, and the one sure way to end it.
//!
//! The engine cannot close a connection whose writer is blocked, nor one whose client ignores that it was disconnected.
//! So the service keeps a weak hold on each connection, with which it hangs up on the socket itself.

use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
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
        let read = Reading { half: Mutex::new(read), held: AtomicBool::new(false), waiting: Mutex::default() };
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
        let waiting = lock(&self.waiting).take();
        if let Some(waker) = waiting {
            waker.wake();
        }
    }

    /// Whether nothing is to be read now; then the task is woken when that changes.
    fn is_held(&self, context: &Context<'_>) -> bool {
        if !self.held.load(Ordering::SeqCst) {
            return false;
        }
        *lock(&self.waiting) = Some(context.waker().clone());
        // It may have been released before that.
        self.held.load(Ordering::SeqCst)
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
        if self.read.is_held(context) {
            return Poll::Pending;
        }
        Pin::new(&mut *lock(&self.read.half)).poll_read(context, buffer)
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.write).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.write).poll_write_vectored(context, slices)
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
